"""The plugin keeps the promises of a parameterization, and stores thumbnails."""

import torch
from dcf_thumbnail.param import Thumbnail

import dcf
import dcf.testing


@dcf.testing.parametrize("thumbnail:k=4", kind="param")
def test_conformance(check):
    check()


def test_thumbnail_is_the_mean_of_its_block():
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    small = Thumbnail(Thumbnail.Config(k=2)).encode(image)["thumbnails"]
    assert torch.equal(
        small[0, 0],
        torch.stack([image[0, 0, :4, :4], image[0, 0, :4, 4:], image[0, 0, 4:, :4], image[0, 0, 4:, 4:]])
        .mean((1, 2))
        .reshape(2, 2),
    )


def test_budget_holds_more_thumbnails_than_images():
    spec = dcf.testing.fake_spec()
    budget = 2 * 3 * 8 * 8
    assert Thumbnail(Thumbnail.Config(k=4)).plan(spec, budget) == 4
