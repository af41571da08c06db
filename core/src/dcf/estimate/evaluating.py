"""What the evaluation of a run takes, from a few training steps of each of its rows and a part of the test images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import torch

from dcf import compiled
from dcf.build import spec_text
from dcf.data.real import Split
from dcf.estimate.gauge import Gauge
from dcf.estimate.model import EvaluationRow
from dcf.evaluation.baselines import equal_bytes
from dcf.evaluation.context import EvalContext
from dcf.evaluation.fit import Material, material_of, material_of_split, schedule_for
from dcf.evaluation.grouping import Grouping
from dcf.evaluation.protocol import cost, load_protocol
from dcf.evaluation.runner import affordable_baselines
from dcf.networks.base import NetworkFactory, NetworkState
from dcf.runconfig import SPEC_ROLES
from dcf.session import Session
from dcf.together import How, Learner, accuracies_each, train_each
from dcf.training import Schedule, random_augmentation, run_program
from dcf.types import Program

__all__ = ["Evaluation"]

#: Seconds of training that are measured for each row, and steps at least.
_ENOUGH: Final = 0.7
_FEWEST: Final = 3
#: Test images that are measured at most.
_TESTED: Final = 1024


class Evaluation:
    """The evaluation that a run ends with.

    Args:
        session: The run; its set is allocated.
    """

    def __init__(self, session: Session) -> None:
        config, self.data = session.config, session.data
        rules = load_protocol(config.protocol).with_overrides(**config.protocol_set)
        known = {spec_text(SPEC_ROLES[role], made): made for role, made in session.objects.items()}
        self.ctx = EvalContext(self.data, rules, config.seed, networks=config.networks, objects=known)
        auto = config.baselines == "auto"
        beside = affordable_baselines(self.data, rules, config.networks) if auto else config.baselines
        #: Rows beside the result.
        self.rows: tuple[str, ...] = tuple(beside) if config.evaluate else ()
        self.session = session

    def keep(self) -> None:
        """Take the set as it stands: what it holds does not matter, and after rehearsed steps it may be anything."""
        if self.session.config.evaluate:
            self.set = self.session.result()

    def measured(self, gauge: Gauge) -> Iterator[EvaluationRow]:
        """Each row, measured when it is asked for; none where the run is not evaluated."""
        if not self.session.config.evaluate:
            return
        rules, hints = self.ctx.rules, self.set.hints
        material = replace(material_of(self.set, self.ctx), program=hints.program)
        test = self._test_seconds(material, gauge)
        if hints.program is not None:
            yield from self._program_rows(material, hints.program, test, gauge)
        else:
            epochs = schedule_for(rules, material.epoch_length, hints.lr, hints.steps).epochs
            yield self._row("sets", material, epochs, test, gauge)
        for name in self.rows:
            beside = self._random() if name == "random" else self._real(self.data.train)
            if beside is not None:
                yield self._row(name, beside, cost(rules, beside.size).epochs, test, gauge)

    def _program_rows(self, material: Material, program: Program, test: float, gauge: Gauge) -> Iterator[EvaluationRow]:
        """What a program takes, and random images in its place: its own steps, whatever the protocol says."""
        each = self._program_seconds(material, program, _FEWEST, gauge)  # the first step also warms up
        steps = min(len(program.steps), max(_FEWEST, int(_ENOUGH / max(each, 1e-6))))
        seconds = len(program.steps) * self._program_seconds(material, program, steps, gauge)
        for name in ("replay", *(["random-replay"] if "random" in self.rows else [])):
            yield EvaluationRow(name, self.ctx.n_nets, 1, seconds, test)

    def _program_seconds(self, material: Material, program: Program, steps: int, gauge: Gauge) -> float:
        """Seconds of one step of a program, over its first few."""
        chosen = [torch.tensor(step, device=self.ctx.place) for step in program.steps[:steps]]
        state = self._network()
        begin = gauge.now()
        run_program(state, material.fetch, chosen, program.lrs[: len(chosen)], program.momentum)
        return (gauge.now() - begin) / len(chosen)

    def _row(self, name: str, material: Material, epochs: int, test: float, gauge: Gauge) -> EvaluationRow:
        seconds = epochs * material.epoch_length * self._seconds_per_image(material, epochs, gauge)
        return EvaluationRow(name, self.ctx.n_nets, epochs, seconds, test)

    def _random(self) -> Material | None:
        """As many real images as the row of random ones is trained on; None where there is no such row."""
        spec, split = self.data.spec, self.data.train
        k = equal_bytes(self.set.storage().nbytes, spec.shape, spec.num_classes)
        index = torch.cat([split.of_class(c)[:k] for c in range(spec.num_classes)])
        return self._real(split.select(index)) if len(index) else None

    def _real(self, split: Split) -> Material:
        return material_of_split(split, self.ctx.place, self.set.hints.lr)

    def _seconds_per_image(self, material: Material, epochs: int, gauge: Gauge) -> float:
        """Seconds that an image takes in training: after a step that warms up, over as many steps as need a while.

        Of one network; where several are trained at once, its share of their time.
        """
        batch = self.ctx.rules.batch
        first, _ = self._train(material, 1, epochs, gauge)
        seconds, images = self._train(material, _FEWEST, epochs, gauge)
        steps = min(int(_ENOUGH * _FEWEST / max(seconds, 1e-6)), epochs * math.ceil(material.epoch_length / batch))
        if steps > _FEWEST and first + seconds < _ENOUGH:
            seconds, images = self._train(material, steps, epochs, gauge)
        return seconds * self._share(material) / images

    def _share(self, material: Material) -> float:
        """The part of the seconds of a group that is due to each network of a row, whose last group may be smaller."""
        count, networks = len(self._networks(material)[0]), self.ctx.n_nets
        return math.ceil(networks / count) / networks

    def _train(self, material: Material, steps: int, epochs: int, gauge: Gauge) -> tuple[float, int]:
        """Seconds of about so many steps of fresh networks that have so many epochs, and the images that each saw."""
        rules, per_epoch = self.ctx.rules, min(steps, math.ceil(material.epoch_length / self.ctx.rules.batch))
        states, how = self._networks(material)
        learners = [self._learner(state, material, per_epoch) for state in states]
        length = math.ceil(steps / per_epoch)
        schedule = Schedule.constant(rules.step_size(material.lr), length)
        given: dict[str, Any] = {"batch": rules.batch, "momentum": rules.momentum, "weight_decay": rules.weight_decay}
        given["optimizer"] = rules.optimizer
        begin = gauge.now()
        # Whether a kernel pays depends on how long the real thing is.
        with compiled.expected(self.ctx.n_nets * epochs // length):
            trained = train_each(learners, how, schedule, **given)
        return gauge.now() - begin, trained[0].images_seen

    def _learner(self, state: NetworkState, material: Material, per_epoch: int) -> Learner:
        """A network with so many batches an epoch."""
        ctx, spec = self.ctx, self.data.spec
        order, count = material.order(ctx.generator(0, 0, "order")), per_epoch * ctx.rules.batch
        augmenter, draws = ctx.augmenter(ctx.augment_spec([self.set])), ctx.generator(0, 0, "augment")
        augmentation = random_augmentation(augmenter, spec.shape, draws, spec.num_classes)
        return Learner(state, material.fetch, lambda epoch: order(epoch)[:count], augmentation)

    def _factory(self) -> NetworkFactory:
        return self.ctx.factory(self.ctx.network_spec([self.set]))

    def _network(self) -> NetworkState:
        return self._factory().create(self.data.spec, self.ctx.seed, "estimate", device=self.ctx.place)

    def _networks(self, material: Material) -> tuple[list[NetworkState], How]:
        """As many networks as are trained at a time, and how they are."""
        count, how = Grouping(self._factory(), self.ctx, self.ctx.n_nets).first(material)
        return [self._network() for _ in range(count)], how

    def _test_seconds(self, material: Material, gauge: Gauge) -> float:
        """Seconds that testing one network takes, those trained at once being tested so."""
        test = self.data.test
        part = test.select(torch.arange(min(len(test), _TESTED)))
        (states, how), more = self._networks(material), len(test) / len(part)
        begin = gauge.now()
        with compiled.expected(round(self.ctx.n_nets * more)):
            accuracies_each(states, how, part)
        return (gauge.now() - begin) * more * self._share(material)
