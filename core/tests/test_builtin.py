"""What core announces: every component says where its options are, and a wrong one is reported without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dcf.builtin import dcf_components
from dcf.components import Kind

OPTIONLESS = {Kind.PROTOCOL, Kind.RECIPE}
COMPONENTS = [c for c in dcf_components() if c.kind not in OPTIONLESS]

#: Each spec is wrong, and what the message must say.
WRONG = [
    ("dataset", "folder:path=x,sise=3", "did you mean 'size'?"),
    (
        "dataset",
        "folder:path=x,size=0",
        "folder.size: expected a side in pixels such as 64, or HxW such as 48x64, got '0'",
    ),
    ("dataset", "folder:path=x,channels=5", "option 'channels' expects 'auto' or an int >= 1 and <= 4, got '5'"),
    ("dataset", "folder", "folder needs the option 'path'"),
    ("dataset", "mnist:root=", "expected a value, got the end"),
    ("dataset", "mnist:mean=[0.5]", "as many values in std as in mean"),
    ("dataset", "cifar10:norm=pca", "option 'norm' expects 'published' | 'auto' | 'unit' | 'zca', got 'pca'"),
    ("dataset", "mnist:norm=zca,mean=[0.5],std=[0.5]", "mean and std mean nothing with norm=zca"),
    ("dataset", "digits:size=3", "options: norm"),
    ("dataset", "python:a.b,nrm=unit", "did you mean 'norm'?"),
    ("network", "convnet:width=0", "option 'width' expects int >= 1 and <= 16384, got '0'"),
    ("network", "convnet:norm=group,width=6", "multiple of 4"),
    ("network", "vgg:depth=12", "option 'depth' expects 11 | 13 | 16 | 19"),
    ("network", "mlp:width=3", "options: none"),
    ("network", "torchvision", "torchvision needs the option 'name'"),
    ("evaluator", "cross-arch:pol=all", "did you mean 'pool'?"),
    ("evaluator", "train:pool=all", "options: none"),
    ("selector", "noise:std=1", "options: none"),
    ("matcher", "none:lr=1", "options: none"),
    ("param", "pixels:r=1", "options: none"),
    ("augmenter", "none:p=1", "options: none"),
]


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: f"{c.kind}:{c.name}")
def test_the_announced_options_are_those_of_the_class(component):
    assert component.config
    assert component.load_config() is component.load().Config


def test_wrong_options_are_reported_without_torch():
    code = (
        "import sys; from dcf.build import check; from dcf.errors import SpecError\n"
        "for kind, text, said in " + repr(WRONG) + ":\n"
        "    try: check(kind, text)\n"
        "    except SpecError as error: assert said in str(error), error\n"
        "    else: raise AssertionError(text)\n"
        "heavy = {'torch', 'numpy', 'PIL', 'torchvision'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
