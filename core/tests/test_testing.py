"""The conformance kit itself: each check catches the fault it is there for, and sound components pass."""

import subprocess
import sys

import pytest
import torch
from pydantic import Field
from torch.nn import functional as F

import dcf
import dcf.testing
from dcf.augmenter import Augmenter, NoAugmentation
from dcf.networks.base import NetworkFactory
from dcf.pixels import Pixels
from dcf.registry import registry
from dcf.selector import Random
from dcf.types import Batch, Step

# --- parameterizations with one fault each ---------------------------------------------------------------------


class WrongCount(Pixels):
    @property
    def view_class(self):
        return self.item_class.repeat_interleave(2)


class WrongShape(Pixels):
    def decode(self, latents, size):
        return latents["images"][..., :4]


class Detached(Pixels):
    def decode(self, latents, size):
        return latents["images"].detach() + 0 * latents["images"].sum()


class Explodes(Pixels):
    def decode(self, latents, size):
        return latents["images"] / 0


class Drifts(Pixels):
    def decode(self, latents, size):
        latents["images"].data.mul_(0.9)
        return latents["images"]

    def images(self, index):
        self._parameters["images"].data.add_(0.1)
        return super().images(index)


class Noisy(Pixels):
    def decode(self, latents, size):
        return latents["images"] + 0.01 * torch.randn_like(latents["images"])


class Unordered(Pixels):
    def images(self, index):
        return super().images(index.sort().values)


class LeavesOut(Pixels):
    @property
    def epoch_length(self):
        return len(self.view_class) - 1

    def epoch(self, generator):
        return torch.randperm(self.epoch_length, generator=generator)


class Repeats(Pixels):
    def inner_epoch(self, generator, batch):
        return torch.randint(len(self.view_class), (len(self.view_class),), generator=generator)


class Underreports(Pixels):
    def storage(self):
        return dcf.parameterization.Storage((), len(self.view_class), 192)


class IgnoresMeta(Pixels):
    def allocate(self, spec, item_class):
        self.set_layout(spec, item_class)
        self._parameters["images"] = torch.nn.Parameter(torch.zeros(len(item_class), *spec.shape, device="cpu"))
        self.latent_names = ("images",)


class Generous(Pixels):
    def plan(self, spec, floats):
        return super().plan(spec, floats) + 1


class Stingy(Pixels):
    def plan(self, spec, floats):
        return 1 if super().plan(spec, floats) else 0


class Unrefusing(Pixels):
    def plan(self, spec, floats):
        return floats // self.cost(spec, 1)


class Lossy(Pixels):
    lossless = True

    def encode(self, images):
        return {"images": images.round()}


class Forgetful(Pixels):
    def allocate(self, spec, item_class):
        super().allocate(spec, item_class)
        self.offset = getattr(self, "offset", 0.0)

    def absorb(self, images, generator=None):
        self.offset = 1.0
        super().absorb(images, generator)

    def decode(self, latents, size):
        return latents["images"] + self.offset


class TouchesRng(Pixels):
    def absorb(self, images, generator=None):
        torch.rand(1)
        super().absorb(images, generator)


class Undescribed(Pixels):
    class Config(dcf.Config):
        size: int = 3


class InvalidDefault(Pixels):
    class Config(dcf.Config):
        size: int = Field(0, ge=1, description="a size")


class StaleGap(Pixels):
    conformance_xfail = {"check_decoding_is_pure": "it was not, once"}


class UnknownGap(Pixels):
    conformance_xfail = {"check_nothing": "no such check"}


PARAM_FAULTS = {
    WrongCount: "check_images_have_the_promised_shape",
    WrongShape: "check_images_have_the_promised_shape",
    Detached: "check_gradient_reaches_every_latent",
    Explodes: "check_something_is_learned",
    Drifts: "check_decoding_is_pure",
    Noisy: "check_same_seed_same_result",
    Unordered: "check_decoding_follows_the_index",
    LeavesOut: "check_epoch_visits_every_view",
    Repeats: "check_epoch_visits_every_view",
    Underreports: "check_storage_is_what_the_file_holds",
    IgnoresMeta: "check_allocates_on_meta",
    Generous: "check_plan_uses_the_budget",
    Stingy: "check_plan_uses_the_budget",
    Unrefusing: "check_plan_refuses_too_small_a_budget",
    Lossy: "check_absorbing_keeps_images",
    Forgetful: "check_saving_is_lossless",
    TouchesRng: "check_global_state_is_untouched",
    Undescribed: "check_config_is_declared",
    StaleGap: "check_decoding_is_pure",
    UnknownGap: "check_declared_gaps_exist",
}

# --- matchers ----------------------------------------------------------------------------------------------------


class VectorLoss(dcf.testing.PullToMean):
    def outer(self, ctx, it):
        for chunk in ctx.chunks():
            yield Step(ctx.synthetic(chunk.classes).flatten(1).sum(1), update=chunk.last)


class Backwards(dcf.testing.PullToMean):
    def outer(self, ctx, it):
        for step in super().outer(ctx, it):
            yield step._replace(loss=-step.loss)


class Blind(dcf.testing.PullToMean):
    def outer(self, ctx, it):
        for step in super().outer(ctx, it):
            yield step._replace(loss=step.loss * 0)


class NeverUpdates(dcf.testing.PullToMean):
    def outer(self, ctx, it):
        for step in super().outer(ctx, it):
            yield step._replace(update=False)


class UpdatesEachChunk(dcf.testing.PullToMean):
    def outer(self, ctx, it):
        mean = 0.0
        for chunk in ctx.chunks():
            mean = mean + ctx.synthetic(chunk.classes).mean()
            yield Step(mean.square(), update=chunk.last)
            mean = mean.detach()


class MovesWeights(dcf.testing.PullToMean):
    def outer(self, ctx, it):
        net = ctx.network()
        loss = net(ctx.synthetic(ctx.all_classes().classes).flatten(0, 1)).square().sum()
        with torch.no_grad():
            for weight in net.parameters():
                weight.add_(0.1)
        yield Step(loss)


class Remembers(dcf.testing.PullToMean):
    steps = 0

    def outer(self, ctx, it):
        self.steps += 1
        for step in super().outer(ctx, it):
            yield step._replace(loss=step.loss * self.steps)


MATCHER_FAULTS = {
    VectorLoss: "check_loss_is_a_finite_scalar",
    Backwards: "check_loss_is_lower_for_the_real_images",
    Blind: "check_gradient_reaches_the_images",
    NeverUpdates: "check_gradient_reaches_the_images",
    UpdatesEachChunk: "check_classes_may_be_chunked",
    MovesWeights: "check_yield_leaves_networks_alone",
    Remembers: "check_resuming_changes_nothing",
}

# --- augmenters --------------------------------------------------------------------------------------------------


class Shift(Augmenter):
    """Sound: adds a number."""

    def draw(self, n, shape, generator, shared):
        return {"by": torch.rand(1 if shared else n, generator=generator)}

    def apply(self, batch, values):
        return Batch(batch.x + values["by"].to(batch.x).view(-1, 1, 1, 1), batch.y)


class Crops(Shift):
    def apply(self, batch, values):
        return Batch(batch.x[..., 1:], batch.y)


class Amplifies(Shift):
    def apply(self, batch, values):
        return Batch(batch.x * 100, batch.y)


class Quantizes(Shift):
    def apply(self, batch, values):
        return Batch(super().apply(batch, values).x.round() + 0 * batch.x, batch.y)


class DependsOnBatch(Shift):
    def apply(self, batch, values):
        return Batch(batch.x - batch.x.mean() + values["by"].to(batch.x).view(-1, 1, 1, 1), batch.y)


class DrawsInApply(Shift):
    def apply(self, batch, values):
        return Batch(batch.x + torch.rand(1), batch.y)


class InPlace(Shift):
    def apply(self, batch, values):
        return Batch(batch.x.detach().add_(1.0) + 0 * batch.x, batch.y)


class GlobalDraw(Shift):
    def draw(self, n, shape, generator, shared):
        return {"by": torch.rand(1 if shared else n)}


class ConstantDraw(Shift):
    def draw(self, n, shape, generator, shared):
        return {"by": torch.ones(1)}


class Unstorable(Shift):
    def draw(self, n, shape, generator, shared):
        return {**super().draw(n, shape, generator, shared), "who": self}


class WrongClasses(Shift):
    def apply_classes(self, images, draws):
        return super().apply_classes(images, [draws[0]] * len(draws))


class FalseIdentity(Shift):
    is_identity = True


AUGMENTER_FAULTS = {
    Crops: "check_shape_and_dtype_are_kept",
    Amplifies: "check_values_stay_in_range",
    Quantizes: "check_gradient_reaches_the_images",
    DependsOnBatch: "check_shared_draw_fits_any_batch",
    DrawsInApply: "check_apply_is_pure",
    InPlace: "check_apply_is_pure",
    GlobalDraw: "check_draw_only_uses_its_generator",
    ConstantDraw: "check_draw_only_uses_its_generator",
    Unstorable: "check_draws_can_be_stored",
    WrongClasses: "check_classes_at_once_equal_a_loop",
    FalseIdentity: "check_identity_is_one",
}

# --- networks, selectors -----------------------------------------------------------------------------------------


class ReluOnce(dcf.testing.TinyNet):
    def features(self, x):
        return F.adaptive_avg_pool2d(self.conv(x), 2).flatten(1).detach() + 0 * self.conv(x).sum()


class FrozenFactory(NetworkFactory):
    def build(self, spec):
        return ReluOnce(spec.channels, spec.num_classes)


class OneWeight(NetworkFactory):
    def build(self, spec):
        net = dcf.testing.TinyNet(spec.channels, spec.num_classes)
        for weight in net.parameters():
            torch.nn.init.constant_(weight, 0.1)
        return net


class Branches(dcf.testing.TinyNet):
    def features(self, x):
        return super().features(x) * (2.0 if float(x.sum()) > 0 else 1.0)


class BranchingFactory(NetworkFactory):
    def build(self, spec):
        return Branches(spec.channels, spec.num_classes)


class AnyClass(Random):
    def indices(self, data, view_class, generator):
        return torch.arange(len(view_class))


class OneImage(Random):
    def indices(self, data, view_class, generator):
        return torch.stack([data.train.of_class(int(c))[0] for c in view_class]) if len(view_class) else view_class


OTHER_FAULTS = {
    FrozenFactory: ("network", "check_second_derivative"),
    OneWeight: ("network", "check_seed_decides_the_weights"),
    BranchingFactory: ("network", "check_vmap_equals_a_loop"),
    AnyClass: ("selector", "check_images_are_of_their_class"),
    OneImage: ("selector", "check_images_are_of_their_class"),
}

FAULTS = [
    *((cls, "param", name) for cls, name in PARAM_FAULTS.items()),
    *((cls, "matcher", name) for cls, name in MATCHER_FAULTS.items()),
    *((cls, "augmenter", name) for cls, name in AUGMENTER_FAULTS.items()),
    *((cls, kind, name) for cls, (kind, name) in OTHER_FAULTS.items()),
]


def announced(cls, kind, summary="made for a test"):
    return dcf.Component(kind, "subject", f"{__name__}:{cls.__name__}", summary)


def results(cls, kind, spec="subject", **facts):
    with dcf.testing.registry_with(announced(cls, kind, **facts)):
        return {r.name: r for r in dcf.testing.run_checks(kind, spec)}


@pytest.mark.parametrize(("cls", "kind", "name"), FAULTS, ids=[f"{c.__name__}-{n}" for c, _, n in FAULTS])
def test_fault_is_caught(cls, kind, name):
    found = results(cls, kind)[name]
    assert found.status == "failed", found
    assert found.detail


@pytest.mark.parametrize(
    ("cls", "kind"),
    [
        (Pixels, "param"),
        (dcf.testing.PullToMean, "matcher"),
        (Shift, "augmenter"),
        (dcf.testing.TinyFactory, "network"),
    ],
)
def test_sound_component_passes(cls, kind):
    globals()[cls.__name__] = cls
    bad = {n: r.detail for n, r in results(cls, kind).items() if r.status in ("failed", "expected")}
    # Announced under this module's name, the class is not found again from the object alone.
    bad.pop("check_spec_round_trips", None)
    assert bad == {}


def test_invalid_default_is_caught():
    found = results(InvalidDefault, "param", "subject:size=3")["check_config_is_declared"]
    assert found.status == "failed"
    assert "size" in found.detail


def test_summary_must_be_one_line():
    for summary in ("", "two\nlines", "A sentence."):
        assert results(NoAugmentation, "augmenter", summary=summary)["check_summary_is_one_line"].status == "failed"


class Known(Pixels):
    conformance_xfail = {"check_decoding_follows_the_index": "sorts its views"}

    def images(self, index):
        return super().images(index.sort().values)


def test_declared_gap_is_expected_and_keeps_its_reason():
    found = results(Known, "param")["check_decoding_follows_the_index"]
    assert (found.status, found.detail) == ("expected", "sorts its views")


def test_stale_gap_says_so():
    assert "remove it" in results(StaleGap, "param")["check_decoding_is_pure"].detail


def test_unexpected_exception_is_a_result_with_its_place():
    class_error = results(WrongShape, "param")["check_something_is_learned"]
    assert class_error.status == "failed"
    assert "Error" in class_error.detail


def test_checks_of_a_kind_are_distinct_and_explained():
    for kind in dcf.Kind:
        checks = dcf.testing.checks_for(kind)
        names = [c.__name__ for c in checks]
        assert len(set(names)) == len(names)
        assert all(n.startswith("check_") for n in names)
        assert all(c.__doc__ for c in checks)


def test_kind_is_found_by_name():
    assert dcf.testing.run_checks(None, "noise")[0].status == "ok"
    assert {r.name for r in dcf.testing.run_checks(None, "dcf-std@1")} >= {"check_protocol_is_readable"}


@pytest.mark.parametrize(
    ("kind", "spec", "text"),
    [
        (None, "nosuch", "no component is named 'nosuch'"),
        (None, "pixel", "did you mean 'pixels'"),
        (None, "none", "matcher and augmenter"),
        ("parm", "pixels", "unknown kind 'parm'"),
        ("param", "pixels:k=3", "pixels has no option 'k'"),
        ("param", "dsa", "no parameterization named 'dsa'"),
    ],
)
def test_wrong_request_is_a_usage_error(kind, spec, text):
    with pytest.raises(dcf.UsageError, match=text):
        dcf.testing.run_checks(kind, spec)


def test_broken_plugin_repeats_its_reason():
    from dcf.registry import Candidate

    broken = Candidate("gone", "dcf-gone", "0.1.0", ("dcf-core>=9",))
    with dcf.testing.registry_with(broken), pytest.raises(dcf.PluginError, match="needs dcf-core >=9"):
        dcf.testing.run_checks(None, "gone")


def fail_inside(fresh):
    assert registry() is fresh
    assert fresh.names("param") == ["pixels"]
    raise ZeroDivisionError


def test_registry_is_put_back_after_a_failure():
    before = registry()
    with pytest.raises(ZeroDivisionError), dcf.testing.registry_with() as fresh:
        fail_inside(fresh)
    assert registry() is before


@dcf.testing.parametrize("pixels")
def test_parametrize_gives_one_test_a_check(check):
    assert check.check in dcf.testing.checks_for("param")
    check()


def test_fake_data_are_deterministic_and_can_be_learned():
    first, second = dcf.testing.fake_data(), dcf.testing.fake_data()
    assert first.checksum == second.checksum != dcf.testing.fake_data(seed=1).checksum
    images, labels = first.train.images(torch.arange(len(first.train))), first.train.labels
    centres = torch.stack([images[labels == c].mean(0) for c in (0, 1)])
    nearest = torch.cdist(images.flatten(1), centres.flatten(1)).argmin(1)
    assert torch.equal(nearest, labels)


@pytest.mark.slow
def test_kit_works_without_pytest():
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "import dcf.testing\n"
        "bad = [r for r in dcf.testing.run_checks(None, 'random') if r.status == 'failed']\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
