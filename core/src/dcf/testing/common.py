"""Checks of every component: what it announces, its options, and how it treats the process it runs in."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch

from dcf.build import create_stack, spec_text
from dcf.config import Config
from dcf.registry import registry
from dcf.testing.subject import TEXTS, Check, CheckSkipped, Subject, require, same

__all__ = ["ANNOUNCED", "CONFIGURED", "EXERCISED"]

_CPU = torch.device("cpu")
#: Imports a plugin the way start-up does, and the modules of options that promise the same; says what of torch came in.
_START_UP = """
import importlib, json, sys
path, module, configs = json.loads(sys.stdin.read())
sys.path[:] = path
plugin = importlib.import_module(module)
list(plugin.dcf_components())
for target in configs:
    importlib.import_module(target)
sys.exit(f"{module} imports torch" if "torch" in sys.modules else 0)
"""


def check_summary_is_one_line(subject: Subject) -> None:
    """Listings show one line: it must be there, and be one."""
    summary = subject.component.summary
    require(bool(summary.strip()), "expected a summary, got none")
    require("\n" not in summary, f"expected a summary of one line, got {summary!r}")
    require(not summary.endswith("."), f"expected a summary without full stop, got {summary!r}")


def check_plugin_import_is_torch_free(subject: Subject) -> None:
    """The plugin's module is imported at every start of the program, which must not wait for torch."""
    plugin = registry().manager.get_plugin(subject.registered.plugin.name)
    if not isinstance(plugin, ModuleType):
        raise CheckSkipped("the plugin is no module")
    configs = {
        i.component.config.partition(":")[0] for i in registry().items() if i.plugin == subject.registered.plugin
    }
    complaint = _start_up(plugin.__name__, tuple(sorted(configs - {""})))
    require(not complaint, complaint)


@cache
def _start_up(module: str, configs: tuple[str, ...]) -> str:
    """What is wrong with importing a plugin in a fresh process; empty when nothing is."""
    request = json.dumps([sys.path, module, configs])
    done = subprocess.run(
        [sys.executable, "-c", _START_UP], input=request, capture_output=True, text=True, check=False, timeout=120
    )
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def check_import_has_no_side_effects(subject: Subject) -> None:
    """Importing the component changes no global state and prints nothing."""
    module = sys.modules[subject.cls.__module__]
    before, output = _process_state(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        _execute_again(module)
    after = _process_state()
    changed = [name for name in before if not same(before[name], after[name])]
    require(not changed, f"importing '{module.__name__}' changes {', '.join(changed)}")
    require(not output.getvalue(), f"importing '{module.__name__}' prints {output.getvalue()[:80]!r}")


def _execute_again(module: ModuleType) -> None:
    """Execute a module's code once more under another name, so that the real one stays as it is."""
    if module.__spec__ is None or module.__spec__.origin is None:
        raise CheckSkipped(f"'{module.__name__}' is no file that could be imported again")
    name = f"{module.__name__}__again"
    spec = importlib.util.spec_from_file_location(name, module.__spec__.origin)
    if spec is None or spec.loader is None:
        raise CheckSkipped(f"'{module.__name__}' is no file that could be imported again")
    twin = importlib.util.module_from_spec(spec)
    sys.modules[name] = twin
    try:
        spec.loader.exec_module(twin)
    finally:
        del sys.modules[name]


def _generators() -> dict[str, Any]:
    """States of the process's random generators."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch's generator": torch.get_rng_state(),
        "numpy's generator": [str(kind), torch.from_numpy(np.array(keys, dtype=np.int64)), *rest],
        "random's generator": random.getstate(),
    }


def _process_state() -> dict[str, Any]:
    """What code may not change behind the user's back."""
    return {
        **_generators(),
        "the default dtype": torch.get_default_dtype(),
        "the grad mode": torch.is_grad_enabled(),
        "the number of threads": torch.get_num_threads(),
        "the precision of matrix products": torch.backends.cuda.matmul.allow_tf32,
        "the precision of convolutions": torch.backends.cudnn.allow_tf32,
        "cudnn's benchmark mode": torch.backends.cudnn.benchmark,
        "the deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "the environment": dict(os.environ),
        "the current folder": os.getcwd(),
        "sys.path": list(sys.path),
        "the warning filters": list(warnings.filters),
        "the root logger": [logging.getLogger().level, list(map(id, logging.getLogger().handlers))],
    }


def check_config_is_declared(subject: Subject) -> None:
    """Options are a `dcf.Config`, each with a description; those without a default are required, the others valid."""
    config = subject.cls.Config
    require(issubclass(config, Config), f"expected Config to be a dcf.Config, got {config!r}")
    require(config.model_config.get("extra") == "forbid", "Config accepts unknown options")
    require(config.model_config.get("frozen") is True, "Config is not frozen")
    nameless = [name for name, info in config.model_fields.items() if not (info.description or "").strip()]
    require(not nameless, f"options without description: {', '.join(nameless)}")
    if not any(info.is_required() for info in config.model_fields.values()):
        config()


def check_config_is_the_announced_one(subject: Subject) -> None:
    """Where the announcement names the options' class, it is the one the component uses."""
    announced = subject.component.load_config()
    require(announced is subject.cls.Config, f"'{subject.component.config}' is not the component's Config")


def check_config_round_trips(subject: Subject) -> None:
    """Files keep the options as JSON: reading them back gives the same."""
    config = subject.config()
    again = type(config).model_validate(json.loads(config.model_dump_json()))
    require(again == config, f"expected {config} back from its JSON, got {again}")


def check_spec_round_trips(subject: Subject) -> None:
    """Files keep the spec: the one made from an object gives an object with the same options."""
    made = subject.make()
    text = spec_text(subject.kind, made)
    again = create_stack(subject.kind, text)[-1]
    require(again.config == made.config, f"'{text}' gives {again.config}, expected {made.config}")


def check_same_seed_same_result(subject: Subject) -> None:
    """Two fresh objects with the same seed compute the same, bit for bit, whatever the global generators hold."""
    first, second = _exercise_after(subject, 1), _exercise_after(subject, 2)
    require(same(first, second), "the same seed gives different results")


def _exercise_after(subject: Subject, global_seed: int) -> list[torch.Tensor]:
    """Exercise the component with global generators that were seeded so; they are put back."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(global_seed)
            np.random.seed(global_seed)
            random.seed(global_seed)
            return subject.exercise(subject, 0, _CPU)
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def check_global_state_is_untouched(subject: Subject) -> None:
    """Using the component leaves the global generators, and everything else the process shares, as they were."""
    subject.exercise(subject, 0, _CPU)  # imports and caches come first
    before = _process_state()
    subject.exercise(subject, 0, _CPU)
    after = _process_state()
    changed = [name for name in before if not same(before[name], after[name])]
    require(not changed, f"using it changes {', '.join(changed)}")


def check_follows_device(subject: Subject) -> None:
    """On a GPU, everything stays on the GPU."""
    if not torch.cuda.is_available():
        raise CheckSkipped("no CUDA device here")
    found = {t.device.type for t in subject.exercise(subject, 0, torch.device("cuda", 0))}
    require(found <= {"cuda"}, f"expected results on the device of the data, got {sorted(found)}")


def check_declared_gaps_exist(subject: Subject) -> None:
    """Names in `conformance_xfail` are names of checks, and have a reason."""
    from dcf.testing.collect import checks_for

    names = {getattr(check, "__name__", "") for check in checks_for(subject.kind)}
    unknown = sorted(set(subject.gaps) - names)
    require(not unknown, f"conformance_xfail names no check of a {subject.kind.noun}: {', '.join(unknown)}")
    require(all(str(r).strip() for r in subject.gaps.values()), "conformance_xfail gives no reason")


def check_plugin_is_named(subject: Subject) -> None:
    """The component belongs to a distribution with a version, which files record."""
    plugin = subject.registered.plugin
    require(bool(plugin.distribution and plugin.version), "expected a distribution and a version")
    if subject.kind not in TEXTS:
        require(isinstance(subject.cls, type), f"expected '{subject.component.target}' to be a class")


#: Of every component.
ANNOUNCED: Sequence[Check] = (
    check_summary_is_one_line,
    check_plugin_is_named,
    check_plugin_import_is_torch_free,
)
#: Of every component that is a class.
CONFIGURED: Sequence[Check] = (
    check_import_has_no_side_effects,
    check_declared_gaps_exist,
    check_config_is_declared,
    check_config_is_the_announced_one,
    check_config_round_trips,
    check_spec_round_trips,
)
#: Of every component that computes.
EXERCISED: Sequence[Check] = (
    check_same_seed_same_result,
    check_global_state_is_untouched,
    check_follows_device,
)
