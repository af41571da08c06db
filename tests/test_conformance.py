"""Everything that is installed keeps the promises of its interface."""

import pytest

import dcf
import dcf.testing
from dcf.registry import registry
from dcf.testing.collect import run_check, subject_of

#: Specs of what cannot or should not be checked with its defaults: required options, smaller sizes.
SPECS = {
    ("evaluator", "cross-arch"): "cross-arch:pool=[mlp]",
    ("evaluator", "nas-rank"): "nas-rank:sample=3,max_width=32,resamples=100",
    ("evaluator", "robust"): "robust:steps=2,corruptions=[blur]",
    ("network", "torchvision"): "torchvision:resnet18",
    ("network", "convnet"): "convnet:width=8,depth=2",
    ("network", "densenet"): "densenet:growth=2",
    ("dataset", "python"): "python:dcf.testing.fake_data",
    ("dataset", "subset"): "subset:base=(digits),classes=[0,1,2],per_class=20",
    ("dataset", "nuisance"): "nuisance:base=(digits),background=(digits),mode=pool,signal=0.1",
    ("matcher", "dc"): "dc:match_steps=2,net_epochs=1",
    ("matcher", "dcc"): "dcc:match_steps=2,net_epochs=1,outer_warmup=0,inner_warmup=0",
    ("matcher", "mtt"): "mtt:syn_steps=3,expert_epochs=2,max_start_epoch=3,experts=2",
    ("matcher", "idc"): "idc:inner_loop=2,n_data=8,batch_train=4",
    **{
        ("selector", name): f"{name}:network=mlp,epochs=2"
        for name in ("herding", "k-center", "k-means", "forgetting", "least-confidence", "entropy", "margin")
    },
    **{("selector", name): f"{name}:networks=2,network=mlp,epochs=2" for name in ("el2n", "grand")},
}

#: Further options worth a check of their own.
VARIANTS = [
    ("matcher", "dc"),
    ("matcher", "dc:metric=mse"),
    ("augmenter", "dsa:mode=multi"),
    ("augmenter", "idc:ops=auto+cutmix"),
    ("augmenter", "dsa:siamese=false"),
    ("augmenter", "none+dsa:ops=[color,crop]"),
    ("network", "convnet:width=8,depth=1,norm=batch"),
]

ON_DISK = "needs real data on disk"
SKIPPED = dict.fromkeys(
    [
        ("dataset", name)
        for name in (
            *("mnist", "fashion-mnist", "svhn", "cifar10", "cifar100", "tiny-imagenet", "imagenette", "imagewoof"),
            *("imagenet32", "imagenet-subset", "folder"),
        )
    ],
    ON_DISK,
)

#: What takes more than a second, all checks together.
SLOW = {("network", name) for name in ("alexnet", "vgg", "resnet10", "resnet18", "densenet", "torchvision")}
SLOW |= {("evaluator", name) for name in ("lrs", "ars", "nas-rank", "robust", "membership")}


def installed():
    for item in registry().items():
        kind, name = str(item.component.kind), item.component.name
        marks = [pytest.mark.slow] if (kind, name) in SLOW else []
        if (kind, name) in SKIPPED:
            marks.append(pytest.mark.skip(reason=SKIPPED[kind, name]))
        spec = SPECS.get((kind, name), name)
        yield pytest.param(kind, spec, id=f"{kind}-{spec}", marks=marks)
    for kind, spec in VARIANTS:
        if spec.partition(":")[0].split("+")[-1] in registry().names(kind):
            yield pytest.param(kind, spec, id=f"{kind}-{spec}")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """Trained networks and decoded folders of these tests belong to no user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize(("kind", "spec"), list(installed()))
def test_component_keeps_its_promises(kind, spec):
    results = dcf.testing.run_checks(kind, spec)
    failed = [f"{r.name}: {r.detail}" for r in results if r.status == "failed"]
    assert not failed, "\n".join(failed)
    assert sum(r.status == "ok" for r in results) >= 5


def test_tables_name_what_exists():
    known = {(str(i.component.kind), i.component.name) for i in registry().items()}
    assert set(SKIPPED) | SLOW <= known
    assert set(SPECS) <= known


#: Hashes of protocols that have been used: what enters them may grow only so that these stay.
HASHES = {
    "dcf-std@1": "dd83f7fdd50d892c",
    "vico-dc@1": "a891fcd42ce3d9cb",
    "vico-dc@2": "c650cda5f6fc70a5",
    "vico-dsa@1": "7823303efad41453",
    "mtt@1": "cb878e2eed9f8ca6",
    "datm@1": "17c2cf03afe44705",
    "rtp@1": "1992cfb1ed5f074f",
    "ld@1": "8699d110fb4ecffd",
    "idc@1": "586816716b4a9f3e",
    "haba@1": "a6cc0cfb5496f78b",
}


@pytest.mark.parametrize("name", HASHES)
def test_protocols_that_have_been_used_keep_their_hashes(name):
    from dcf.evaluation.protocol import load_protocol

    assert load_protocol(name).config_hash == HASHES[name]


@pytest.mark.parametrize("name", [name for _, name in SKIPPED])
def test_dataset_announces_itself_without_its_data(name):
    local = {
        "folder": "folder:path=nowhere",
        "imagenet32": "imagenet32:group=fish",
        "imagenet-subset": "imagenet-subset:subset=fruit",
    }
    subject = subject_of("dataset", local.get(name, f"{name}:download=false"))
    checks = [c for c in dcf.testing.checks_for("dataset") if "config" in c.__name__ or "import" in c.__name__]
    assert len(checks) >= 4
    for check in checks:
        result = run_check(check, subject)
        assert result.status == "ok", result


def test_declared_gaps_stay_rare():
    # A gap is for what cannot be mended; more than a few would hide what the kit is there to show.
    found = []
    for item in registry().items():
        if item.component.kind not in (dcf.Kind.RECIPE, dcf.Kind.PROTOCOL):
            found += list(getattr(item.component.load(), "conformance_xfail", {}))
    assert len(found) <= 3
