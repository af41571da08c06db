"""Soft labels through files of other programs."""

import pytest
import torch

import dcf


@pytest.fixture
def soft():
    made = dcf.condense(
        data="digits", matcher="none", param="pixels+soft-labels", ipc=2, iterations=0, evaluate=False, device="cpu"
    )
    with torch.no_grad():
        made.param.soft_labels.copy_(torch.rand(len(made), 10, generator=torch.Generator().manual_seed(0)))
        made.param.project_()
    return made


@pytest.mark.parametrize("to", ["pt", "pt-pair"])
def test_soft_labels_come_back_to_the_bit(soft, tmp_path, to):
    dcf.export_set(soft, to, tmp_path / "x.pt")
    back = dcf.import_set(tmp_path / "x.pt", "digits", param="pixels+soft-labels")
    if to == "pt":  # the table says of which class each image is; a pair only which is the likeliest
        assert torch.equal(back.tensors().x, soft.tensors().x)
        assert torch.equal(back.tensors().y, soft.tensors().y)
        assert back.targets == soft.targets
    assert back.storage().nbytes == soft.storage().nbytes


def test_logits_become_probabilities(tmp_path):
    logits = torch.randn(10, 10, generator=torch.Generator().manual_seed(0)) + 9 * torch.eye(10)
    torch.save([torch.randn(10, 1, 8, 8), logits], tmp_path / "x.pt")
    with pytest.raises(dcf.UsageError, match="--logits"):
        dcf.import_set(tmp_path / "x.pt", "digits", param="pixels+soft-labels")
    for param in ("pixels+soft-labels", "pixels+soft-labels:form=logits"):
        back = dcf.import_set(tmp_path / "x.pt", "digits", param=param, logits=True)
        assert torch.allclose(back.tensors().y, logits.softmax(1), atol=1e-6)


def test_pictures_say_that_soft_labels_are_lost(soft, tmp_path):
    written = dcf.export_set(soft, "png", tmp_path / "x")
    assert any("soft labels" in line for line in written.lost)
