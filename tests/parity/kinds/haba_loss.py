"""The adversarial objective of hallucinators, and the losses of the network that judges them."""

from __future__ import annotations

import torch
from tests.parity.case import Case
from torch import Tensor

from dcf.training import cross_entropy
from dcf_haba.losses import adversarial, adversary_loss, contrastive, likelihood


def compute(case: Case) -> dict[str, Tensor]:
    """Each loss with its weight, their sum for the extractor, and the gradients of both sides."""
    hyper, labels = case.hyper, case["labels"]
    embeddings, logits = case["embeddings"].requires_grad_(), case["logits"].requires_grad_()
    temperature = float(hyper["temperature"])
    # The released loss has a second temperature, the ratio of the two being a further weight.
    weight = hyper["lambda_contrast"] * temperature / float(hyper.get("base_temperature", temperature))
    weights = {"cls": hyper["lambda_cls"], "likely": hyper["lambda_likelihood"], "contrast": weight}
    apart = hyper["lambda_adversarial"] * adversarial(embeddings)
    extractor = adversary_loss(embeddings, logits, labels, temperature=temperature, **weights)
    (d_apart,) = torch.autograd.grad(apart, embeddings)
    d_embeddings, d_logits = torch.autograd.grad(extractor, [embeddings, logits])
    return {
        "out/adversarial": apart,
        "out/cls": weights["cls"] * cross_entropy(logits, labels.repeat(2)),
        "out/likelihood": weights["likely"] * likelihood(embeddings),
        "out/contrast": weight * contrastive(embeddings, labels, temperature),
        "out/extractor": extractor,
        "out/d_adversarial_d_embeddings": d_apart,
        "out/d_extractor_d_embeddings": d_embeddings,
        "out/d_extractor_d_logits": d_logits,
    }
