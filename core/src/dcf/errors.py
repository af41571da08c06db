"""Every failure that can be expected, as an exception with one clear message.

The command line turns a `DcfError` into one message on stderr and an exit status; Python callers
catch it. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "BudgetError",
    "ConfigError",
    "DataError",
    "DcfError",
    "EvaluationError",
    "FormatError",
    "NonFiniteError",
    "PluginError",
    "RunError",
    "SpecError",
    "Stopped",
    "UsageError",
]


class DcfError(Exception):
    """A failure that can be expected; `str()` of it is the message for people."""

    exit_code: ClassVar[int] = 1


class UsageError(DcfError):
    """The request itself is wrong: nothing was started."""

    exit_code: ClassVar[int] = 2


class SpecError(UsageError):
    """A component spec that cannot be used, with the place in the text that is wrong.

    Args:
        message: What is wrong, lower case, without full stop.
        text: The whole spec as it was written; empty when there is no text to point into.
        span: First and one-past-last character of the wrong part of `text`.
        hints: Further lines: did-you-mean, valid choices, how to repair it.
        flag: The option the text was given to, such as `--param`.
    """

    def __init__(
        self,
        message: str,
        text: str = "",
        span: tuple[int, int] = (0, 0),
        hints: Sequence[str] = (),
        flag: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.text = text
        self.span = span
        self.hints = tuple(hints)
        self.flag = flag

    def with_flag(self, flag: str) -> SpecError:
        """The same error, told which command line option it came from."""
        return type(self)(self.message, self.text, self.span, self.hints, self.flag or flag)

    def __str__(self) -> str:
        lines = [self.message]
        if self.text:
            lead = f"  {self.flag} " if self.flag else "  "
            start, stop = self.span
            lines.append(lead + self.text)
            lines.append(" " * (len(lead) + start) + "^" * max(1, stop - start))
        lines.extend(f"  {hint}" for hint in self.hints)
        return "\n".join(lines)


class ConfigError(SpecError):
    """Options that a component does not take, or takes in another form."""


class PluginError(UsageError):
    """A plugin is missing, broken or in conflict, and something of it was asked for."""


class BudgetError(UsageError):
    """A storage budget that cannot hold what was asked for."""


class DataError(DcfError):
    """A dataset that is missing, empty, corrupt or of the wrong form."""


class FormatError(DcfError):
    """A file that is not a condensed set, or is damaged, or newer than this program."""


class NonFiniteError(DcfError):
    """A loss or a synthetic value became NaN, infinite or absurdly large; the last good checkpoint is kept."""


class RunError(DcfError):
    """A run directory that cannot be used, or a run that could not go on."""


class Stopped(DcfError):  # noqa: N818 - nothing went wrong
    """The user asked to stop while something was prepared; what was finished is kept."""


class EvaluationError(DcfError):
    """An evaluation that cannot be carried out on this set."""
