"""The measurement itself, in the process that is made for it: the real data, set and steps, at their real size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Final

from dcf import compiled
from dcf.build import create
from dcf.components import Kind
from dcf.estimate.advice import advice_on_data, advice_on_evaluation, advice_on_run
from dcf.estimate.evaluating import Evaluation
from dcf.estimate.gauge import Gauge
from dcf.estimate.memory import peak_resident
from dcf.estimate.model import Sample
from dcf.matcher import Matcher
from dcf.resolve import Request
from dcf.run import Listener, Prepared, prepare
from dcf.runconfig import RunConfig
from dcf.runtime import keep_freed_pages, precision_of, select_device
from dcf.session import Session
from dcf.storage import measure

__all__ = ["Rehearsal", "measured", "sampled_iterations"]

#: Seconds after which no further iteration is begun, and one that has two updates is cut short.
_ENOUGH: Final = 3.0
#: Iterations that are run at most.
_MOST: Final = 32

#: Says by keyword what is done, to the process that waits.
Tell = Callable[..., None]


class _Stages(Listener):
    """Hands the stages of the preparation on."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell

    def stage(self, text: str) -> None:
        """A stage begins."""
        self.tell(stage=text)


def measured(request: Request, tell: Tell, began: float) -> dict[str, Any]:
    """Run the first steps of a run, and say what `dcf.estimate.model.Estimate.from_json` takes.

    Args:
        request: The run.
        tell: Told of stages, parts and advice, by keyword.
        began: `time.perf_counter()` when the process began.

    Raises:
        DcfError: What would keep the run from starting.
    """
    keep_freed_pages()
    gauge = Gauge(select_device(str(request.settings.get("device", "auto"))))
    text = str(request.settings.get("data", RunConfig.model_fields["data"].default))
    tell(part="loading", advice={"loading": advice_on_data(text, gauge.on_gpu)})
    prepared = prepare(request, _Stages(tell))
    start, base, room = gauge.now() - began, gauge.used(), gauge.room()
    tell(part="preparing", stage="preparing", advice=_early_advice(prepared, gauge.on_gpu))
    precision = prepared.config.precision
    with precision_of(precision), compiled.allowed(precision, gauge.device):
        session = Session(prepared.config, prepared.data, prepared.matcher, prepared.objects)
        session.config = prepared.config.model_copy(update={"class_chunk": session.ctx.class_chunk})
        found = Rehearsal(session, gauge, tell).facts()
    known = {"start": start, "baseline_bytes": base, "available_bytes": room, "host_bytes": peak_resident()}
    return {**found, **known, "device": gauge.name, "config": session.config.model_dump(mode="json")}


def _early_advice(prepared: Prepared, on_gpu: bool) -> dict[str, list[str]]:
    """Advice for a set that is too large to be made."""
    network = create(Kind.NETWORK, prepared.objects.get("network", prepared.config.network))
    return {"preparing": advice_on_run(prepared.config, prepared.matcher.config, network.config, 1, on_gpu)}


class Rehearsal:
    """A run that is begun, measured and thrown away.

    Args:
        session: The run.
        gauge: Of its device.
        tell: Told of stages, parts and advice.
    """

    def __init__(self, session: Session, gauge: Gauge, tell: Tell) -> None:
        self.session, self.gauge, self.tell = session, gauge, tell
        self.evaluation = Evaluation(session)
        self.peaks: dict[str, int] = {}

    def facts(self) -> dict[str, Any]:
        """Everything that is measured once the data are loaded."""
        session, ctx = self.session, self.session.ctx
        self.tell(advice=self._advice())
        preparation, initialisation = self._prepare()
        self._ends("preparing")
        self.tell(part="condensing", stage="measuring iterations")
        samples = self._samples(session.matcher.updates(ctx))
        checkpoint = sum(t.numel() * t.element_size() for t in session.engine.state_dict().values())
        self._ends("condensing")
        self.tell(part="evaluating", stage="measuring the evaluation")
        rows = [asdict(row) for row in self.evaluation.measured(self.gauge)]
        self._ends("evaluating")
        return {
            "iterations": session.config.iterations,
            "updates": session.matcher.updates(ctx),
            "samples": [asdict(sample) for sample in samples],
            "preparation": preparation,
            "initialisation": initialisation,
            "evaluation": rows,
            "kernels": self.gauge.kernels(),
            "peaks": self.peaks,
            "stored_bytes": measure(session.param, session.config.store).nbytes,
            "checkpoint_bytes": checkpoint,
        }

    def _advice(self) -> dict[str, list[str]]:
        session, on_gpu = self.session, self.gauge.on_gpu
        run = advice_on_run(
            session.config, session.matcher.config, session.networks.config, session.ctx.class_chunk, on_gpu
        )
        batch, rows = self.evaluation.ctx.rules.batch, self.evaluation.rows
        judge = advice_on_evaluation(session.config, batch, rows, on_gpu)
        return {"preparing": run, "condensing": run, "evaluating": judge}

    def _ends(self, part: str) -> None:
        self.peaks[part] = self.gauge.peak()

    def _prepare(self) -> tuple[float, float]:
        """Seconds of the matcher's preparation, and of choosing images and giving the set its starting values."""
        session, gauge = self.session, self.gauge
        said = session.matcher.preparation(session.ctx)
        begin = gauge.now()
        session.engine.rehearse()
        rehearsed = gauge.now()
        session.initialise()
        self.evaluation.keep()
        done = gauge.now()
        # One that has no rehearsal of its own has just been prepared in earnest.
        real = type(session.matcher).rehearse is Matcher.rehearse
        return max(said, rehearsed - begin) if real else said, done - rehearsed

    def _samples(self, updates: int) -> list[Sample]:
        """Iterations from all over the run, the first one first, until they took a while."""
        samples: list[Sample] = []
        begin = self.gauge.now()
        with compiled.expected(self.session.config.iterations):
            for it in sampled_iterations(self.session.config.iterations):
                samples.append(self._sample(it, updates, begin))
                if self.gauge.now() - begin >= _ENOUGH or len(samples) >= _MOST:
                    break
        return samples

    def _sample(self, it: int, updates: int, begin: float) -> Sample:
        """One iteration; cut short where the time is up, but not before its second update."""
        last, times, cut = self.gauge.now(), list[float](), False

        def go_on() -> bool:
            nonlocal last, cut
            now = self.gauge.now()
            times.append(now - last)
            last = now
            cut = 2 <= len(times) < updates and now - begin >= _ENOUGH
            return not cut

        self.session.engine.iterate(it, go_on)
        return Sample(it, tuple(times), None if cut else self.gauge.now() - last)


def sampled_iterations(iterations: int) -> Iterator[int]:
    """Numbers of iterations: the first, then some spread over the run ever more densely, each once.

    What an iteration takes may depend on its number, as in a warm-up or a curriculum.

    Example:
        >>> list(sampled_iterations(8)), list(sampled_iterations(1))
        ([0, 4, 2, 6, 1, 5, 3, 7], [0])
    """
    known: set[int] = set()
    for number in range(2 * _MOST if iterations else 0):
        it = int(iterations * _mirrored(number))
        if it not in known:
            known.add(it)
            yield it


def _mirrored(number: int) -> float:
    """The binary digits of a number mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8, ..."""
    value, weight = 0.0, 0.5
    while number:
        number, digit = divmod(number, 2)
        value, weight = value + digit * weight, weight / 2
    return value
