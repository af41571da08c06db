"""Evaluation protocols: named, versioned sets of everything that makes two accuracies comparable.

A protocol is a TOML file inside a plugin (or core), found as the component `NAME@VERSION`. One that the user
changed carries the change in its id (`dcf-std@1[epochs=200]`), so that it cannot be mistaken for the real one.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from dcf.components import Kind
from dcf.config import Config, validate_mapping
from dcf.errors import ConfigError, EvaluationError, PluginError, SpecError, UsageError
from dcf.registry import Registry, registry
from dcf.spec import Option, Spec, parse, parse_one

__all__ = ["PROGRAM", "Cost", "Protocol", "cost", "load_protocol", "require_augmenter"]

#: What stands for the protocol where a set is run as the program it is: nothing else decides the training.
PROGRAM: Final = "replay@1"

_ID = re.compile(r"(?P<name>[a-z][a-z0-9-]*)(@(?P<version>\d+))?(\[(?P<changes>.*)\])?\Z", re.S)
_IDENTITY = ("name", "version", "summary", "paper", "original")
#: Written out in an id as the change of `augment`, which replaces the whole table.
_TABLE = "augment_for"


@dataclass(frozen=True)
class Cost:
    """What training one network costs.

    Attributes:
        epochs: Passes over the training images.
        steps: Optimiser steps.
        images_seen: Images through the network, repetitions counted.
    """

    epochs: int
    steps: int
    images_seen: int


class Protocol(Config):
    """How a network is trained on a set before it is tested; always the last epoch, tested once."""

    name: str = Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", description="name without the version")
    version: int = Field(ge=1, description="raised whenever anything that can change a number changes")
    summary: str = Field("", description="one line for listings")
    paper: str = Field("", description="where the protocol comes from")

    epochs: int = Field(ge=1, le=1_000_000, description="nominal number of epochs E")
    extra_epoch: bool = Field(False, description="run epochs 0..E, as the published loops do, instead of E")
    steps_min: int = Field(
        0, ge=0, le=1_000_000, description="train more epochs where E are fewer optimiser steps than this"
    )
    length: Literal["epochs", "learned"] = Field(
        "epochs", description="'learned': as many optimiser steps as recorded in the set, E epochs where none are"
    )
    batch: int = Field(256, ge=1, le=2**31 - 1, description="images an optimiser step")

    optimizer: Literal["sgd", "adam"] = Field("sgd", description="optimiser")
    lr: float | Literal["learned"] = Field(description="step size; 'learned': the one recorded in the set")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD; the first of Adam's two coefficients")
    weight_decay: float = Field(5e-4, ge=0, description="added to the gradient, for all parameters")
    schedule: Literal["step-restart", "step-fifth", "cosine", "constant"] = Field(
        description="'step-restart': a tenth and a new optimiser after epoch number E//2+1; 'step-fifth': a fifth "
        "after 2E//3 epochs and again after 5E//6; 'cosine': to 0 by step"
    )

    augment: str = Field("none", description="'none', 'same' (the one recorded in the set) or a spec")
    augment_for: dict[str, str] = Field({}, description="augmentation by name of the data, before 'augment'")
    network: str = Field("same", description="'same' (the one recorded in the set) or a spec")
    networks: int = Field(5, ge=1, le=10_000, description="networks trained for each set")
    labels: Literal["stored", "hard"] = Field("stored", description="'hard': soft labels become their largest class")

    original: dict[str, Any] = Field({}, description="values of the published protocol that were overridden")

    @model_validator(mode="after")
    def _lr_is_positive(self) -> Protocol:
        if isinstance(self.lr, float) and not 0 < self.lr < math.inf:
            raise ValueError(f"expected lr > 0, got {self.lr}")
        return self

    @property
    def published_id(self) -> str:
        """`NAME@VERSION`."""
        return f"{self.name}@{self.version}"

    @property
    def id(self) -> str:
        """`NAME@VERSION`, followed by everything that was overridden in brackets."""
        keys = sorted({"augment" if key == _TABLE else key for key in self.original})
        if not keys:
            return self.published_id
        changes = tuple(Option(key, _text(getattr(self, key))) for key in keys)
        return f"{self.published_id}[{str(Spec('x', changes)).removeprefix('x:')}]"

    @property
    def config_hash(self) -> str:
        """16 hexadecimal digits over everything that can change a number."""
        values = self.model_dump(mode="json", exclude={"summary", "paper", "original"})
        if self.length == "epochs":  # as protocols were before they could say otherwise
            del values["length"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def with_overrides(self, /, **changes: Any) -> Protocol:
        """The same protocol with other values; the id tells, unless they are the published ones.

        Overriding `augment` also drops the table `augment_for`.

        Raises:
            UsageError: For a value that identifies the protocol.
            ConfigError: For an unknown name or a value that does not fit.
        """
        for key in changes:
            if key in _IDENTITY or key == _TABLE:
                other = "; override 'augment' instead" if key == _TABLE else ""
                raise UsageError(f"protocol '{self.id}': '{key}' cannot be overridden{other}")
        if "augment" in changes:
            changes = {**changes, _TABLE: {}}
        changed = validate_mapping(Protocol, {**self.model_dump(exclude={"original"}), **changes}, self.published_id)
        before = {**{key: getattr(self, key) for key in changes}, **self.original}
        return changed.model_copy(update={"original": {k: v for k, v in before.items() if v != getattr(changed, k)}})

    def augment_spec(self, recorded: str, data: str) -> str:
        """The augmentation to train with.

        Args:
            recorded: The spec recorded in the set.
            data: Name of the dataset, such as `"cifar10"`; options behind `:` are ignored.
        """
        chosen = self.augment_for.get(data.partition(":")[0], self.augment)
        return recorded if chosen == "same" else chosen

    def network_spec(self, recorded: str) -> str:
        """The network to train, given the one recorded in the set.

        Raises:
            EvaluationError: When neither names one.
        """
        chosen = recorded if self.network == "same" else self.network
        if not chosen:
            raise EvaluationError(
                f"protocol '{self.id}' trains the network recorded in the set, which records none; name one"
            )
        return chosen

    def step_size(self, learned: float | None) -> float:
        """The learning rate, given the one that the set learned.

        Raises:
            EvaluationError: When the protocol wants a learned one and there is none.
        """
        if self.lr != "learned":
            return self.lr
        if learned is None:
            raise EvaluationError(
                f"protocol '{self.id}' trains with the step size learned with the set, which has none; override 'lr'"
            )
        return learned

    def nominal_epochs(self, n: int, learned: int | None = None) -> int:
        """E for n training images, raised where `steps_min` asks for it.

        Args:
            n: Training images.
            learned: Optimiser steps that were learned with the set, if any.
        """
        per_epoch = math.ceil(n / self.batch)
        if self.length == "learned" and learned is not None:
            return math.ceil(learned / per_epoch)
        return max(self.epochs, math.ceil(self.steps_min / per_epoch))


def cost(protocol: Protocol, n_train: int) -> Cost:
    """What training one network on `n_train` images costs under a protocol."""
    epochs = protocol.nominal_epochs(n_train) + protocol.extra_epoch
    return Cost(epochs, epochs * math.ceil(n_train / protocol.batch), epochs * n_train)


def load_protocol(text: str, reg: Registry | None = None) -> Protocol:
    """Read an installed protocol.

    Args:
        text: `NAME@VERSION`, or `NAME` for its highest version; either with changes in brackets, as in an id.
        reg: Where to look; the process's registry by default.

    Raises:
        SpecError: When there is no such protocol, or a change does not fit.
        PluginError: When the plugin's file is not a protocol of that name.
    """
    match = _ID.match(text)
    if match is None:
        raise SpecError(
            "expected a protocol such as 'dcf-std@1' or 'dcf-std@1[lr=0.02]'",
            text,
            (0, len(text)),
            flag="--protocol",
        )
    reg = reg or registry()
    name = f"{match['name']}@{match['version']}" if match["version"] else _highest(match["name"], reg)
    found = reg.find(Kind.PROTOCOL, Spec(name, text=text, span=(0, len(name))))
    protocol = _read(found.component.read_text(), name, found.plugin.distribution)
    if not match["changes"]:
        return protocol
    return protocol.with_overrides(**parse_one(f"x:{match['changes']}", "--protocol").as_dict())


def _read(text: str, name: str, distribution: str) -> Protocol:
    try:
        values: Mapping[str, Any] = tomllib.loads(text)
        protocol = validate_mapping(Protocol, values, name)
    except (tomllib.TOMLDecodeError, ConfigError) as error:
        raise PluginError(f"protocol '{name}' of '{distribution}' cannot be read: {error}") from None
    if protocol.published_id != name or protocol.original:
        raise PluginError(f"protocol '{name}' of '{distribution}' calls itself '{protocol.id}'")
    return protocol


def _highest(name: str, reg: Registry) -> str:
    versions = [n for n in reg.names(Kind.PROTOCOL) if n.partition("@")[0] == name]
    return max(versions, key=lambda n: int(n.partition("@")[2]), default=name)


def require_augmenter(text: str, protocol: Protocol, reg: Registry | None = None) -> None:
    """Make sure that the augmenters a protocol trains with are installed.

    Raises:
        PluginError: Naming the missing one, and how to get it.
    """
    for spec in parse(text):
        try:
            (reg or registry()).find(Kind.AUGMENTER, spec)
        except (SpecError, PluginError) as error:
            raise PluginError(
                f"protocol '{protocol.id}' trains with the augmenter '{spec.name}', which is not available; "
                f"install the plugin that provides it (usually: pip install dcf-{spec.name}) or override 'augment'"
                f"\n  reason: {str(error).splitlines()[0]}"
            ) from None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
