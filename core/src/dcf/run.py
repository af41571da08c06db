"""`condense`, `resume` and `evaluate`: what the command line and Python callers use."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dcf import compiled
from dcf.assembly import arranged
from dcf.build import create, spec_text, suited
from dcf.components import Kind
from dcf.data.real import RealData
from dcf.distributed import World, joined
from dcf.engine import Progress
from dcf.errors import DataError, EvaluationError, FormatError, Stopped, UsageError
from dcf.evaluation.protocol import load_protocol
from dcf.evaluation.report import Report
from dcf.evaluation.runner import affordable_baselines, evaluate_sets
from dcf.files import atomic_write
from dcf.matcher import Matcher
from dcf.preview import save_preview
from dcf.recorded import data_of, load_data
from dcf.resolve import Request, complete, resolve
from dcf.runconfig import SPEC_ROLES, RunConfig
from dcf.rundir import RunDir, default_directory
from dcf.runtime import precision_of, select_device
from dcf.session import Session, interruptible
from dcf.synthetic import SyntheticSet, load

__all__ = ["Listener", "Outcome", "Prepared", "condense", "evaluate", "prepare", "resume", "start"]

log = logging.getLogger(__name__)

DEFAULT_PROTOCOL: Final = "dcf-std@1"


class Listener:
    """What wants to know how far a run is; every method may be overridden, none needs to be."""

    def stage(self, text: str) -> None:
        """A stage begins, such as loading the data."""

    def preparing(self, what: str, done: int, total: int, facts: str) -> None:
        """A part of what comes before the first iteration is done, such as an expert of several."""

    def step(self, progress: Progress) -> None:
        """An outer iteration is done."""

    def evaluated(self, row: str, done: int, total: int, accuracy: float) -> None:
        """An evaluation network of a row is trained and tested; `accuracy` is a fraction."""


class _StepListener(Listener):
    def __init__(self, on_step: Callable[[Progress], None]) -> None:
        self.on_step = on_step

    def step(self, progress: Progress) -> None:
        self.on_step(progress)


@dataclass(frozen=True)
class Prepared:
    """A run that could start: its complete configuration, its data and its matcher."""

    config: RunConfig
    data: RealData
    matcher: Matcher
    objects: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        config: The run.
        directory: Where its files are; None when nothing was kept.
        synthetic: The set as it stands.
        report: Its evaluation; None when it was not asked for or the run was stopped before.
        done: Outer iterations that are done.
        interrupted: Whether it was stopped before its end.
    """

    config: RunConfig
    directory: RunDir | None
    synthetic: SyntheticSet
    report: Report | None
    done: int
    interrupted: bool


def condense(
    *,
    recipe: str | None = None,
    out: Path | str | None = None,
    force: bool = False,
    overrides: Mapping[str, Any] | None = None,
    on_step: Callable[[Progress], None] | None = None,
    **options: Any,
) -> SyntheticSet:
    """Condense a dataset.

    Args:
        recipe: Name of a recipe; options given beside it win.
        out: Run directory; without one, nothing is written.
        force: Start over in a directory that holds a run.
        overrides: Component options by dotted key, as with `--set`.
        on_step: Called after each outer iteration.
        options: Settings of `dcf.runconfig.RunConfig` by name (`data`, `matcher`, `param`, `augment`, `ipc`,
            `iterations`, `seed`, ...); components as specs such as "lowrank:r=4", or as objects.

    Returns:
        The condensed set; `set.metadata["results"]` holds its evaluation unless `evaluate=False`.

    Raises:
        DcfError: A subclass says what went wrong.

    Example:
        >>> small = dcf.condense(matcher="dm", data="digits", ipc=1, iterations=5, evaluate=False)  # doctest: +SKIP
    """
    listener = Listener() if on_step is None else _StepListener(on_step)
    prepared = prepare(resolve(options, recipe, overrides), listener)
    return start(prepared, RunDir(out) if out is not None else None, force, listener).synthetic


def prepare(request: Request, listener: Listener | None = None) -> Prepared:
    """Load the data and complete the configuration.

    Raises:
        DcfError: When the data cannot be loaded or the settings do not fit together.
    """
    listener = listener or Listener()
    settings = request.settings
    device = select_device(str(settings.get("device", "auto")))
    # Before the data, which may take long: what cannot be made is said at once.
    matcher: Matcher = create(Kind.MATCHER, request.objects.get("matcher", settings.get("matcher", "none")))
    usual = suited(request.objects.get("param", settings.get("param", "pixels")))
    text = str(settings.get("data", RunConfig.model_fields["data"].default))
    listener.stage(f"loading {text}")
    data = load_data(request.objects.get("data", text))
    config = complete(request, {**usual, **data.hints}, matcher.defaults)
    config = config.model_copy(update={"device": str(device)})
    if config.evaluate and not len(data.test):
        raise DataError(f"the data '{data.id}' have no test images to evaluate on; add some, or pass --no-eval")
    return Prepared(config, data.to(device), matcher, request.objects)


def start(
    prepared: Prepared, directory: RunDir | None, force: bool = False, listener: Listener | None = None
) -> Outcome:
    """Run from the beginning.

    Raises:
        RunError: When the directory holds a run and `force` is not set, or cannot be written.
        NonFiniteError: When the run diverged; the last good checkpoint is kept.
    """
    with joined(prepared.data.train.device) as world:
        session = Session(prepared.config, prepared.data, prepared.matcher, prepared.objects, world)
        # What was decided by looking at the machine is written down, so that a resumed run decides the same.
        decided = {"class_chunk": session.ctx.class_chunk}
        if session.engine.replicas > 1:
            decided["replicas"] = session.engine.replicas
        session.config = prepared.config.model_copy(update=decided)
        directory = world.from_first(directory)
        if directory is None or not world.first:
            return _begun(session, directory, world, listener or Listener())
        with directory.locked():
            directory.create(session.config, force)
            return _begun(session, directory, world, listener or Listener())


def _begun(session: Session, directory: RunDir | None, world: World, listener: Listener) -> Outcome:
    """Carry out a run whose directory, if any, is ready in the first process."""
    world.wait()
    return _carry_out(session, directory, listener)


def resume(path: Path | str, listener: Listener | None = None) -> Outcome:
    """Go on with a run that was stopped, killed or not yet evaluated; a finished one is only read.

    Raises:
        RunError: When `path` holds no run, or its data have changed.
    """
    directory, listener = RunDir(path), listener or Listener()
    config = directory.config()
    if directory.report.exists():
        return _finished(directory, config)
    request = resolve({k: v for k, v in config.model_dump().items() if k != "recipe"})
    prepared = prepare(request, listener)
    with joined(prepared.data.train.device) as world:
        session = Session(config, prepared.data, prepared.matcher, world=world, resumed=True)
        if not world.first:
            return _begun(session, directory, world, listener)
        with directory.locked():
            return _begun(session, directory, world, listener)


def default_run_directory(config: RunConfig) -> RunDir:
    """The directory of a run that names none."""
    return RunDir(default_directory(config))


def evaluate(
    file: Path | str | SyntheticSet | Sequence[Path | str | SyntheticSet],
    evaluator: Any = "train",
    *,
    data: Any = None,
    protocol: str | None = None,
    networks: int | None = None,
    network: Any = None,
    overrides: Mapping[str, Any] | None = None,
    baselines: Sequence[str] = (),
    seed: int | None = None,
    device: str = "auto",
    precision: Any = "default",
    listener: Listener | None = None,
) -> Report:
    """Evaluate condensed sets; a file says itself how.

    Args:
        file: One set or several independently condensed ones, as files or objects.
        evaluator: Spec or object.
        data: Dataset spec or object; the one the file names by default.
        protocol: Its name; the one the file names by default.
        networks: Networks a set; the protocol's number by default.
        network: Network spec; the one the file names by default.
        overrides: Protocol settings to change; the report's protocol name shows them.
        baselines: Rows beside it: "random" (real images at equal bytes), "whole" (the training set).
        seed: Of the evaluation; the file's by default.
        device: auto, cpu, cuda or cuda:N.
        precision: "default" or "strict".
        listener: Told of progress.

    Raises:
        DcfError: When a file is damaged, its plugin is missing, or its data are not those found here.
    """
    many = [file] if isinstance(file, (str, Path, SyntheticSet)) else list(file)
    sets = [s if isinstance(s, SyntheticSet) else load(s) for s in many]
    if not sets:
        raise UsageError("expected at least one set to evaluate, got none")
    first, listener = sets[0], listener or Listener()
    target = select_device(device)
    listener.stage("loading the data")
    real = data_of(first, data).to(target)
    sets = [_in_order_of(synthetic, real) for synthetic in sets]
    for synthetic in sets:
        _check_matches(synthetic, real)
        synthetic.param.to(target)
    recorded = {} if protocol else first.metadata.get("run") or {}
    changes = {**(recorded.get("protocol_set") or {}), **(overrides or {})}
    with precision_of(precision), compiled.allowed(precision, target), joined(target) as world:
        return evaluate_sets(
            sets,
            real,
            evaluator=create(Kind.EVALUATOR, evaluator, "--evaluator"),
            protocol=protocol or str(first.config.get("protocol", DEFAULT_PROTOCOL)),
            overrides=changes,
            networks=networks or recorded.get("networks"),
            network=network,
            baselines=baselines,
            seed=first.seed if seed is None else seed,
            progress=listener.evaluated,
            world=world,
        )


def _finished(directory: RunDir, config: RunConfig) -> Outcome:
    """What a run came to that needs no more work; its report is the last file that a run writes."""
    synthetic = load(directory.result)
    report = _read_report(directory) if config.evaluate else None
    return Outcome(config, directory, synthetic, report, config.iterations, False)


def _read_report(directory: RunDir) -> Report:
    try:
        return Report.read(directory.report)
    except FormatError as error:
        mend = f"delete it, and 'dcf resume {directory.path}' evaluates the set again"
        raise FormatError(f"{error}\n  {mend}") from None


def _carry_out(session: Session, directory: RunDir | None, listener: Listener) -> Outcome:
    config, world = session.config, session.ctx.world
    device = session.ctx.device
    with precision_of(config.precision), compiled.allowed(config.precision, device), interruptible() as interrupt:
        listener.stage("condensing")
        try:
            done = session.run(directory, listener.step, lambda: interrupt.asked, listener.preparing)
        except Stopped as reason:
            log.warning("%s", reason)
            return Outcome(config, directory, session.result(), None, 0, True)
        synthetic = session.result()
        if done < config.iterations:
            return Outcome(config, directory, synthetic, None, done, True)
        if directory is not None and world.first:
            synthetic.save(directory.result)
            save_preview(synthetic, directory.preview)
        report = _evaluate_result(session, synthetic, listener) if config.evaluate else None
    if report is not None:
        synthetic.metadata["results"] = report.to_json(timing=False)
    if directory is not None and world.first:
        synthetic.save(directory.result)
        atomic_write(
            directory.report,
            json.dumps(report.to_json() if report else _not_evaluated(synthetic), indent=1) + "\n",
        )
    return Outcome(config, directory, synthetic, report, done, False)


def _not_evaluated(synthetic: SyntheticSet) -> dict[str, Any]:
    """What the report of a run says that was not to be evaluated."""
    return {"evaluated": False, "storage": synthetic.storage().to_json()}


def _evaluate_result(session: Session, synthetic: SyntheticSet, listener: Listener) -> Report:
    config, data = session.config, session.data
    listener.stage("evaluating")
    rules = load_protocol(config.protocol).with_overrides(**config.protocol_set)
    rows = affordable_baselines(data, rules, config.networks) if config.baselines == "auto" else config.baselines
    return evaluate_sets(
        [synthetic],
        data,
        evaluator=create(Kind.EVALUATOR, "replay" if synthetic.hints.program else "train", "--evaluator"),
        protocol=rules,
        networks=config.networks,
        baselines=rows,
        seed=config.seed,
        progress=listener.evaluated,
        objects={spec_text(SPEC_ROLES[role], made): made for role, made in session.objects.items()},
        world=session.ctx.world,
    )


def _some(names: Sequence[str]) -> list[str]:
    return [name[:40] for name in names[:5]]


def _in_order_of(synthetic: SyntheticSet, real: RealData) -> SyntheticSet:
    """The set with its classes in the order of the data, where they are the same."""
    same = sorted(synthetic.spec.classes) == sorted(real.spec.classes)
    return arranged(synthetic, real.spec.classes) if same else synthetic


def _check_matches(synthetic: SyntheticSet, real: RealData) -> None:
    ours, theirs = synthetic.spec, real.spec
    if ours.shape != theirs.shape:
        raise EvaluationError(f"the set has images of {ours.shape}, the data of {theirs.shape}")
    if ours.classes != theirs.classes:
        raise EvaluationError(
            f"the set and the data have different classes: {_some(ours.classes)} and {_some(theirs.classes)}"
        )
    if ours.space != theirs.space:
        raise EvaluationError(
            f"the set lives in the value space {ours.space}, the data in {theirs.space}: accuracies would mean nothing"
        )
    known = (synthetic.metadata.get("data") or {}).get("checksum")
    if known is not None and known != real.checksum:
        log.warning("the data differ from those the set was made from (other checksum); accuracies may differ")
