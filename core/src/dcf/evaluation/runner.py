"""Evaluate sets on loaded data: the way from settings as text to a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from dcf.build import spec_text
from dcf.components import Kind
from dcf.distributed import ALONE, World
from dcf.evaluation.context import EvalContext, OnProgress
from dcf.evaluation.protocol import Protocol, cost, load_protocol
from dcf.evaluation.report import Report
from dcf.evaluator import Evaluator

if TYPE_CHECKING:
    from dcf.data.real import RealData
    from dcf.synthetic import SyntheticSet

__all__ = ["affordable_baselines", "evaluate_sets"]

#: Pixels through the networks that take about a minute with the standard network, by type of device.
_PIXELS_A_MINUTE: Final = {"cpu": 6e7, "cuda": 1e9}


def evaluate_sets(
    sets: Sequence[SyntheticSet],
    data: RealData,
    *,
    evaluator: Evaluator,
    protocol: Protocol | str = "dcf-std@1",
    overrides: Mapping[str, Any] | None = None,
    networks: int | None = None,
    network: Any = None,
    baselines: Sequence[str] = ("random",),
    seed: int = 0,
    progress: OnProgress | None = None,
    objects: Mapping[str, Any] | None = None,
    world: World = ALONE,
) -> Report:
    """Evaluate independently condensed sets of one method.

    Args:
        sets: On the device of `data`.
        data: Real data, on the device to train on.
        evaluator: Which questions to ask.
        protocol: Or the text that `load_protocol` takes.
        overrides: Protocol settings to change; they show in its id.
        networks: Networks a set; the protocol's number by default.
        network: Spec or object; the one that the protocol trains by default. Another than that shows in the id.
        baselines: Rows beside the result.
        seed: Of the evaluation.
        progress: Called after each network.
        objects: Networks and augmenters that were given as objects, by the text they are recorded under.
        world: Processes that divide the networks among them.

    Raises:
        DcfError: When something is missing or does not fit.
    """
    rules = load_protocol(protocol) if isinstance(protocol, str) else protocol
    rules = rules.with_overrides(**overrides) if overrides else rules
    known = dict(objects or {})
    if network is not None:
        text = spec_text(Kind.NETWORK, network)
        known.update({} if isinstance(network, str) else {text: network})
        usual = str(sets[0].config.get("network") or "") if rules.network == "same" else rules.network
        rules = rules.with_overrides(network=text) if text != usual else rules
    ctx = EvalContext(
        data, rules, seed, networks=networks, baselines=tuple(baselines), progress=progress, objects=known, world=world
    )
    return evaluator.evaluate(sets, ctx)


def affordable_baselines(
    data: RealData, protocol: Protocol | str = "dcf-std@1", networks: int | None = None
) -> tuple[str, ...]:
    """The rows worth having without being asked for: random always, the whole training set where it is quick.

    Decided by the number of pixels that training on the whole set sends through the networks, and by the type of
    device; not by the clock, so that it comes out the same each time.
    """
    rules = load_protocol(protocol) if isinstance(protocol, str) else protocol
    nets = networks if networks is not None else rules.networks
    pixels = nets * cost(rules, len(data.train)).images_seen * math.prod(data.spec.shape[1:])
    return ("random", "whole") if pixels <= _PIXELS_A_MINUTE.get(data.train.device.type, 0.0) else ("random",)
