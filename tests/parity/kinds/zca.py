"""ZCA whitening fitted to images, with which these and other images are whitened and restored."""

from __future__ import annotations

from tests.parity.case import Case, ParityError
from torch import Tensor

from dcf.whitening import fit_zca, unwhiten, whiten


def compute(case: Case) -> dict[str, Tensor]:
    """The mean and both matrices, whitened `images` and `test_images`, and `images` restored."""
    if not case.hyper.get("unbiased", True):
        raise ParityError("dcf divides by n - 1; the case asks for another covariance")
    zca = fit_zca([case["images"]], case.hyper["eps"])
    whitened = whiten(case["images"], zca)
    return {
        "out/mean": zca.mean,
        "out/matrix": zca.matrix,
        "out/inverse_matrix": zca.inverse,
        "out/images": whitened,
        "out/test_images": whiten(case["test_images"], zca),
        "out/restored": unwhiten(whitened, zca),
    }
