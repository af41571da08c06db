"""Matching by differentiating through a whole training (DD, RememberThePast) for dcf."""

from __future__ import annotations

from collections.abc import Iterable

import dcf

__all__ = ["dcf_components"]

DD = "Wang et al., 2018"
RTP = "Deng and Russakovsky, NeurIPS 2022"
LORTP = "Yang et al., NeurIPS 2023"


@dcf.hookimpl
def dcf_components() -> Iterable[dcf.Component]:
    """Announce the two matchers, the recipes and the evaluation protocol."""
    yield dcf.Component(
        "matcher",
        "dd",
        "dcf_bptt.matcher:DD",
        "train fresh networks on the set in a fixed order with learned step sizes: the set is a program",
        DD,
        "dcf_bptt.options:DDConfig",
    )
    yield dcf.Component(
        "matcher",
        "bptt",
        "dcf_bptt.matcher:BPTT",
        "train fresh networks on random mini-batches of the set with momentum, and differentiate through it",
        RTP,
        "dcf_bptt.options:BPTTConfig",
    )
    yield dcf.Component(
        "protocol", "rtp@1", "dcf_bptt:protocols/rtp.toml", "300 epochs of SGD at a constant step size", RTP
    )
    yield dcf.Component("recipe", "dd", "dcf_bptt:recipes/dd.toml", "dataset distillation: images as a program", DD)
    yield dcf.Component(
        "recipe", "rtp", "dcf_bptt:recipes/rtp.toml", "addressable memory, learned through training", RTP
    )
    yield dcf.Component("recipe", "lortp", "dcf_bptt:recipes/lortp.toml", "addressable memory of low-rank bases", LORTP)
