"""Multi-formation against slow loops: which views there are, in which order, what they show, and the way back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dcf
from dcf.parameterization import Parameterization
from dcf.pixels import Pixels
from dcf.testing import fake_data
from dcf.testing.fakes import fake_spec, filled
from dcf_idc.formation import decode_tiles, grid_of, pack, shrink, tile_size, view_table
from dcf_idc.options import MultiFormationConfig
from dcf_idc.param import MultiFormation
from dcf_lowrank.options import LowRankConfig
from dcf_lowrank.param import LowRank

BOTH = ("height", "width")


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def resample(tile, height, width):
    """Bilinear enlargement of one plane (h, w), from the place of each pixel's centre, with clamped edges."""
    h, w = tile.shape
    out = torch.zeros(height, width, dtype=tile.dtype)
    for y in range(height):
        for x in range(width):
            v, u = max(0.0, (y + 0.5) * h / height - 0.5), max(0.0, (x + 0.5) * w / width - 0.5)
            top, left = int(v), int(u)
            low, right = min(top + 1, h - 1), min(left + 1, w - 1)
            a, b = v - top, u - left
            out[y, x] = (1 - a) * ((1 - b) * tile[top, left] + b * tile[top, right]) + a * (
                (1 - b) * tile[low, left] + b * tile[low, right]
            )
    return out


def slow_view(canvas, rows, columns, row, column, height, width):
    """One tile of a canvas (C, H, W) as an image, pixel by pixel, half-grey beyond the canvas."""
    channels, tall, wide = canvas.shape
    h, w = -(-tall // rows), -(-wide // columns)
    tile = torch.full((channels, h, w), 0.5, dtype=canvas.dtype)
    for y in range(h):
        for x in range(w):
            if row * h + y < tall and column * w + x < wide:
                tile[:, y, x] = canvas[:, row * h + y, column * w + x]
    return torch.stack([resample(plane, height, width) for plane in tile])


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(4, 9), st.integers(4, 9), st.integers(0, 99))
def test_tiles_equal_a_loop_over_pixels(rows, columns, height, width, seed):
    canvases = draw(rows * columns, 2, height, width, seed=seed)
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    images = decode_tiles(canvases, row, column, (rows, columns), (height, width))
    for image, canvas, r, c in zip(images, canvases, row.tolist(), column.tolist(), strict=True):
        assert torch.allclose(image, slow_view(canvas, rows, columns, r, c, height, width), atol=1e-12)


def test_tiles_have_the_derivative_of_finite_differences():
    canvases = draw(2, 1, 5, 7).requires_grad_()
    row, column = torch.tensor([1, 0]), torch.tensor([0, 2])
    assert torch.autograd.gradcheck(lambda x: decode_tiles(x, row, column, (2, 3), (5, 7)), canvases)


def slow_order(canvases, factor, decode, bound, rows_only=False):
    """The rows of a view table, by nested loops."""

    def tiles(numbers, k):
        return [[n, k, r, c] for r in range(k) for c in range(1 if rows_only else k) for n in numbers]

    if decode == "single":
        return tiles(range(canvases), factor)
    if decode == "multi":
        return [row for k in range(1, factor + 1) for row in tiles(range(canvases), k)]
    found, left, start = [], canvases, 0
    for k in range(factor, 0, -1):
        room, each = bound - left - len(found), k if rows_only else k * k
        n = left if k == 1 else min(max(0, room) // each, left)
        found += tiles(range(start, start + n), k)
        start, left = start + n, left - n
    return found


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 30), st.integers(1, 4), st.sampled_from(["single", "multi", "bound"]), st.integers(1, 150),
    st.booleans(),
)  # fmt: skip
def test_views_come_in_the_published_order(canvases, factor, decode, bound, rows_only):
    axes = ("height",) if rows_only else BOTH
    found = view_table(canvases, factor, decode, bound, axes)
    assert found.tolist() == slow_order(canvases, factor, decode, bound, rows_only)
    if decode == "bound":
        assert len(found) <= max(bound, canvases)
        assert sorted(set(found[:, 0].tolist())) == list(range(canvases))


def test_bound_gives_the_first_canvases_the_largest_factor():
    table = view_table(20, 3, "bound", 128, BOTH)
    # 108 beyond one each: 12 canvases with 9, then 12 beyond: 3 with 4, and the other five with 1.
    assert torch.bincount(table[:, 1]).tolist() == [0, 5, 12, 108]
    assert table[torch.tensor([0, 12, -1])].tolist() == [[0, 3, 0, 0], [0, 3, 0, 1], [19, 1, 0, 0]]


def test_packing_undoes_cutting_where_the_grid_divides():
    canvases = draw(3, 2, 6, 8)
    tiles = canvases.reshape(3, 2, 2, 3, 4, 2).permute(0, 2, 4, 1, 3, 5)
    assert torch.equal(pack(tiles, (6, 8)), canvases)
    assert tile_size((7, 8), (2, 3)) == (4, 3)
    assert grid_of(3, ("height",)) == (3, 1)


def test_shrinking_takes_one_pixel_of_a_patch_or_its_mean():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert shrink(image, (2, 2), "nearest").flatten().tolist() == [0, 2, 8, 10]
    assert shrink(image, (2, 2), "area").flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


# --- the parameterization -----------------------------------------------------------------------------------------


def made(items=2, inner=None, data=None, **options):
    return filled(MultiFormation(MultiFormationConfig(**options), inner), data or fake_data(shape=(3, 8, 8)), items)


def every(param):
    return torch.arange(len(param.view_class))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_storage_is_that_of_as_many_plain_images(factor):
    param, plain = made(factor=factor), filled(Pixels(), fake_data(shape=(3, 8, 8)), 2)
    assert param.storage().floats == plain.storage().floats
    assert param.storage().views == factor**2 * 4
    spec = fake_spec()
    assert MultiFormation(MultiFormationConfig(factor=factor)).plan(spec, 10 * 192) == 5


def test_stored_values_are_pixels_and_images_are_normalised():
    data = fake_data()
    images = data.train.images(torch.arange(4))
    param = filled(MultiFormation(MultiFormationConfig(factor=1)), data, 2, images)
    assert torch.allclose(param.canvases, data.spec.space.decode(images), atol=1e-6)
    assert torch.allclose(param.images(every(param)), images, atol=1e-6)


@pytest.mark.parametrize("options", [{"factor": 2}, {"factor": 3}, {"factor": 3, "axes": ["width"]}])
def test_start_shows_each_image_in_its_view(options):
    """Flat images of one grey each survive shrinking, so each must come back where it was put."""
    data = fake_data(shape=(1, 8, 8))
    blank = MultiFormation(MultiFormationConfig(**options))
    blank.allocate(data.spec, torch.tensor([0, 0, 1]))
    greys = torch.arange(len(blank.view_class)).float() / len(blank.view_class)
    blank.absorb(data.spec.space.encode(greys.view(-1, 1, 1, 1).expand(-1, 1, 8, 8)))
    shown = data.spec.space.decode(blank.images(every(blank)))[:, 0, 1, 1]  # the padding is far from this pixel
    assert torch.allclose(shown, greys, atol=1e-6)


def test_bound_is_that_of_a_class_and_each_class_keeps_its_order():
    param = made(items=3, factor=2, decode="bound", bound=8)
    assert torch.bincount(param.view_class).tolist() == [6, 6]
    alone = view_table(3, 2, "bound", 8, BOTH)
    images = param.images(every(param))
    for c in (0, 1):
        own = param.canvases[3 * c : 3 * c + 3]
        for image, (canvas, k, row, column) in zip(images[param.view_class == c], alone.tolist(), strict=True):
            pixels = slow_view(own[canvas].detach(), k, k, row, column, 8, 8)
            assert torch.allclose(image, fake_spec().space.encode(pixels.float()), atol=1e-5)


@pytest.mark.parametrize(
    ("clamp", "start", "after"),
    [("auto", True, False), ("iteration", True, False), ("update", False, True), ("none", False, False)],
)
def test_stored_pixels_are_cut_when_asked_for(clamp, start, after):
    for method, cut in (("begin_", start), ("project_", after)):
        param = made(factor=2, clamp=clamp)
        with torch.no_grad():
            param.canvases.fill_(1.5)
            getattr(param, method)()
        assert float(param.canvases.detach().max()) == (1.0 if cut else 1.5)


def test_decoded_pixels_are_cut_and_give_no_gradient_beyond():
    param = made(factor=2, clamp="decode")
    with torch.no_grad():
        param.canvases.fill_(0.5)
        param.canvases[0] = 1.5
    images = param.images(every(param))
    (grad,) = torch.autograd.grad(images.sum(), param.canvases)
    assert float(fake_spec().space.decode(images.detach()).max()) == pytest.approx(1.0)
    assert not grad[0].any()
    assert grad[1].all()


def test_noise_is_grey_with_a_quarter_of_deviation_cut_to_pixels():
    param = made(items=40, factor=2, init="noise")
    values = param.canvases.detach()
    assert float(values.min()) == 0
    assert float(values.max()) == 1
    assert abs(float(values.mean()) - 0.5) < 0.01
    inside = (torch.randn(100_000, generator=torch.Generator().manual_seed(0)) / 4 + 0.5).clamp(0, 1).std()
    assert abs(float(values.std()) - float(inside)) < 0.01


# --- with something on its left -----------------------------------------------------------------------------------


def test_left_one_stores_plain_pixels_and_decides_how_many():
    data = fake_data(shape=(3, 32, 32))
    low = LowRank(LowRankConfig(r=4))
    param = MultiFormation(MultiFormationConfig(factor=2), low)
    assert param.plan(data.spec, 2 * 3 * 32 * 32) == 4  # four canvases at rank 4 in the floats of one image
    param = filled(param, data, 4)
    assert set(param.state_dict()) == {"inner.A", "inner.B"}
    assert len(param.view_class) == 2 * 4 * 4
    canvases = low.images(torch.arange(8)).detach()
    assert -0.5 < float(canvases.min()) < float(canvases.max()) < 1.5
    shown = data.spec.space.decode(param.images(torch.tensor([0])))[0]
    assert torch.allclose(shown, slow_view(canvases[0], 2, 2, 0, 0, 32, 32), atol=1e-4)


class Inks(Parameterization):
    """Two canvases from each stored number."""

    def encode(self, images):
        return {"ink": images.mean((1, 2, 3))}

    def allocate(self, spec, item_class):
        self.set_layout(spec, item_class)
        self.register_parameter("ink", torch.nn.Parameter(torch.zeros(len(item_class))))
        self.latent_names = ("ink",)

    @property
    def view_class(self):
        return self.item_class.repeat_interleave(2)

    def absorb(self, images, generator=None):
        with torch.no_grad():
            self.ink.copy_(images[::2].mean((1, 2, 3)))

    def images(self, index):
        sign = 1 - 2 * (index % 2)
        return (self.ink[index // 2] * sign).view(-1, 1, 1, 1).expand(-1, *self.shape)


def test_every_image_of_the_left_one_is_a_canvas():
    param = made(items=1, inner=Inks(), factor=2)
    assert param.canvas_class.tolist() == [0, 0, 1, 1]
    assert param.view_class.tolist() == [0, 0, 1, 1] * 4


def test_what_cannot_be_stacked_is_refused():
    from dcf_labels.param import SoftLabels

    with pytest.raises(dcf.UsageError, match="put it to the right of multiformation"):
        MultiFormation(MultiFormationConfig(), SoftLabels(None, Pixels()))
    for clamp in ("iteration", "update"):
        with pytest.raises(dcf.UsageError, match="expected clamp=decode or clamp=none"):
            MultiFormation(MultiFormationConfig(clamp=clamp), LowRank())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 0}, "greater than or equal to 1"),
        ({"axes": []}, "at least 1"),
        ({"axes": ["width", "width"]}, "each axis once"),
        ({"axes": ["depth"]}, "height"),
        ({"bound": 64}, "'bound' has no effect with decode=single"),
        ({"decode": "double"}, "single"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MultiFormationConfig(**options)
