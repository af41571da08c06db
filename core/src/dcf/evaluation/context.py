"""What an evaluator is given: real data, protocol, networks, seeds, device, progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

from dcf.augmenter import Augmenter, ChainAugmenter
from dcf.build import create, create_stack
from dcf.components import Kind
from dcf.distributed import ALONE, World
from dcf.errors import EvaluationError
from dcf.evaluation.protocol import Protocol, load_protocol, require_augmenter
from dcf.networks.base import NetworkFactory, NetworkState
from dcf.seeding import generator, seed_for

if TYPE_CHECKING:
    from dcf.data.real import RealData
    from dcf.evaluation.fit import Trial
    from dcf.synthetic import SyntheticSet

__all__ = ["EvalContext", "Findings", "OnProgress", "Probe"]

#: Called after each network: row and network spec, how many of the row are done, of how many, and its accuracy
#: in [0, 1].
OnProgress: TypeAlias = "Callable[[str, int, int, float], None]"


class Findings(NamedTuple):
    """What was found out about a trained network beside its accuracy.

    Attributes:
        metrics: Finite numbers by name, the same names for every network of a row, which summarises them.
        details: Tables and curves by name, JSON-ready, kept with the network's run.
    """

    metrics: Mapping[str, float]
    details: Mapping[str, Any] = {}


#: From a network that is trained and tested, and the trial it was trained for, to what is found out about it; must
#: leave the network as it is, and be a function of the two.
Probe: TypeAlias = "Callable[[NetworkState, Trial], Findings]"


@dataclass
class EvalContext:
    """What an evaluator may use.

    Every random stream is seeded by `(seed, "evaluate", set, net, purpose)`: one more network, set or baseline
    changes none of the others, up to rounding, and an evaluation changes nothing of a run.

    Args:
        data: Real data; `data.test` is touched once for each network, after its last epoch.
        protocol: A protocol, or the text that `load_protocol` takes; `rules` is the one that is applied.
        seed: Of the evaluation.
        device: Where networks are trained; by default where the real data are.
        networks: Networks a set; the protocol's number by default. It decides the precision, which is reported
            as such, and is not part of the protocol's id.
        baselines: Rows beside the result: "random" (real images at equal bytes), "whole" (the training set).
        progress: Called after each network.
        overrides: Changes of the protocol, which show in its id.
        objects: Networks and augmenters that were given as objects, by the text they are recorded under.
        world: Processes that divide the networks among them.
        probe: Looks at every network after its test. An evaluator that asks more of networks than their accuracy sets
            it with `dataclasses.replace`; the rows of sets and baselines then have what it finds.
    """

    data: RealData
    protocol: Protocol | str = "dcf-std@1"
    seed: int = 0
    device: torch.device | str | None = None
    networks: int | None = None
    baselines: Sequence[str] = ("random",)
    progress: OnProgress | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    objects: Mapping[str, Any] = field(default_factory=dict)
    world: World = ALONE
    probe: Probe | None = None

    def __post_init__(self) -> None:
        protocol = load_protocol(self.protocol) if isinstance(self.protocol, str) else self.protocol
        self.rules: Protocol = protocol.with_overrides(**self.overrides) if self.overrides else protocol
        self.place = torch.device(self.data.train.device if self.device is None else self.device)
        if self.networks is not None and self.networks < 1:
            raise EvaluationError(f"expected at least one network, got {self.networks}")

    @property
    def n_nets(self) -> int:
        """Networks a set."""
        return self.networks if self.networks is not None else self.rules.networks

    def stream(self, set_number: int, net: int, purpose: str) -> tuple[str | int, ...]:
        """Name of a random stream, as `dcf.seeding` takes it."""
        return ("evaluate", set_number, net, purpose)

    def seed_for(self, set_number: int, net: int, purpose: str) -> int:
        """Seed of a stream."""
        return seed_for(self.seed, *self.stream(set_number, net, purpose))

    def generator(self, set_number: int, net: int, purpose: str) -> torch.Generator:
        """A CPU generator for a stream."""
        return generator(self.seed, *self.stream(set_number, net, purpose))

    def network_spec(self, sets: Sequence[SyntheticSet]) -> str:
        """Spec of the network that the protocol trains on these sets."""
        return self.rules.network_spec(str(sets[0].config.get("network") or ""))

    def factory(self, network: str) -> NetworkFactory:
        """The network component behind a spec."""
        return self.objects.get(network) or create(Kind.NETWORK, network)  # type: ignore[no-any-return]

    def augment_spec(self, sets: Sequence[SyntheticSet]) -> str:
        """Spec of the augmentation that the protocol trains these sets with."""
        return self.rules.augment_spec(str(sets[0].config.get("augment") or "none"), self.data.id)

    def augmenter(self, text: str) -> Augmenter | None:
        """The augmenter behind a spec, or None where it changes nothing.

        Raises:
            PluginError: When its plugin is not installed.
        """
        if text in self.objects:
            return self.objects[text]  # type: ignore[no-any-return]
        require_augmenter(text, self.rules)
        parts = create_stack(Kind.AUGMENTER, text)
        augmenter = parts[0] if len(parts) == 1 else ChainAugmenter(parts)
        return None if augmenter.is_identity else augmenter

    def check(self, sets: Sequence[SyntheticSet]) -> None:
        """Make sure, before anything is trained, that the sets can be evaluated on this data, together.

        Raises:
            EvaluationError: No set, no test image, another shape, number of classes or value space than the
                data, or sets of different methods.
        """
        if not sets:
            raise EvaluationError("expected at least one set to evaluate, got none")
        if len(self.data.test) == 0:
            raise EvaluationError(f"the data '{self.data.id}' have no test images to evaluate on")
        for number, one in enumerate(sets):
            _check_spec(number, one, self.data)
            if one.config != sets[0].config:
                raise EvaluationError(f"set {number} was made with other settings than set 0; evaluate them one by one")


def _check_spec(number: int, one: SyntheticSet, data: RealData) -> None:
    got, want = one.spec, data.spec
    for what, a, b in (
        ("shape", got.shape, want.shape),
        ("number of classes", got.num_classes, want.num_classes),
        ("value space", got.space, want.space),
    ):
        if a != b:
            raise EvaluationError(f"set {number} does not fit the data '{data.id}': {what}: expected {b}, got {a}")
