"""What would make a run smaller, from nothing but the names and values of its options. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dcf.components import Kind
from dcf.config import Config, validate_mapping
from dcf.errors import ConfigError
from dcf.registry import registry
from dcf.runconfig import RunConfig
from dcf.spec import parse_one

__all__ = ["advice_on_data", "advice_on_evaluation", "advice_on_run"]


def advice_on_data(text: str, on_gpu: bool) -> list[str]:
    """For data that do not fit.

    Args:
        text: Spec of the dataset.
        on_gpu: Whether they are kept on a GPU.
    """
    spec = parse_one(text)
    options = registry().find(Kind.DATASET, spec).component.load_config().model_fields
    return [
        *(["smaller images: the option 'size' of --data"] if "size" in options else []),
        f'fewer images: --data "subset:base=({spec}),per_class=N"',
        *_elsewhere(on_gpu),
    ]


def advice_on_run(config: RunConfig, matcher: Config, network: Config, chunk: int, on_gpu: bool) -> list[str]:
    """For a run that does not fit once its data are loaded: what changes least comes first.

    Args:
        config: The run.
        matcher: Options of the matcher.
        network: Options of the network.
        chunk: Classes that are worked on together.
        on_gpu: Whether it runs on a GPU.
    """
    found = []
    if chunk > 1:
        less = "fewer classes at once, where the matcher takes them in chunks; the same result"
        found.append(f"--class-chunk {chunk // 2} (now {chunk}): {less}")
    found += [*_of_unrolling(matcher, on_gpu), *_of_batches(matcher)]
    if config.ipc is not None and config.ipc > 1:
        found.append(f"--ipc {config.ipc // 2} (now {config.ipc}): fewer images")
    elif config.budget is not None:
        found.append(f"a smaller --budget (now {config.budget}): fewer images")
    width = getattr(network, "width", None)
    if isinstance(width, int) and width > 1:
        found.append(f"--set network.width={width // 2} (now {width}): a narrower network")
    return found + _elsewhere(on_gpu)


def advice_on_evaluation(config: RunConfig, batch: int, rows: tuple[str, ...], on_gpu: bool) -> list[str]:
    """For an evaluation that does not fit.

    Args:
        config: The run.
        batch: Images a step under its protocol.
        rows: Rows beside the result.
        on_gpu: Whether it runs on a GPU.
    """
    found = [f"--set protocol.batch={batch // 2} (now {batch})"] if batch > 1 else []
    found += ["--baselines random: without the whole training set"] if "whole" in rows else []
    found += ["--no-eval, and 'dcf evaluate' elsewhere"] if config.evaluate else []
    return found + _elsewhere(on_gpu)


def _of_unrolling(options: Config, on_gpu: bool) -> Iterator[str]:
    """Advice on how a matcher differentiates through training, where it has options for it."""
    now = getattr(options, "unroll", None)
    if now in ("auto", "full", "checkpoint") and _takes(options, "unroll", "adjoint"):
        yield f"--set matcher.unroll=adjoint (now {now}): the same gradients, with the graph of one step at a time"
    keep = getattr(options, "keep", None)
    if keep is None or keep == "cpu":
        return
    if on_gpu and _takes(options, "keep", "cpu"):
        yield f"--set matcher.keep=cpu (now {keep}): weights between steps wait outside the GPU"
    elif isinstance(keep, int) and _takes(options, "keep", 4 * keep):
        yield f"--set matcher.keep={4 * keep} (now {keep}): fewer weights are kept, those between are made again"


def _of_batches(options: Config) -> Iterator[str]:
    """Advice on batches, halved."""
    for name, value in options:
        counted = isinstance(value, int) and not isinstance(value, bool) and value > 1
        if counted and name.split("_")[0] == "batch" and _takes(options, name, value // 2):
            yield f"--set matcher.{name}={value // 2} (now {value})"


def _takes(options: Config, name: str, value: Any) -> bool:
    """Whether an option exists and may have this value beside the others."""
    try:
        validate_mapping(type(options), {**options.model_dump(), name: value}, "matcher")
    except ConfigError:
        return False
    return True


def _elsewhere(on_gpu: bool) -> list[str]:
    return ["--device cpu: slower, but with the memory of the machine"] if on_gpu else ["a machine with more memory"]
