"""The spec language: `lowrank:r=4+multiformation:factor=2`, parsed and printed.

Grammar::

    specs  := spec ("+" spec)*                     a stack, left to right
    spec   := NAME [":" option ("," option)*]
    option := KEY "=" value
    value  := WORD | QUOTED | "[" [value ("," value)*] "]" | "(" specs ")"

The parser never guesses types: every value stays text, a list or a nested stack, and the component's
`Config` converts it. Providers that stand for somebody else's name (`python`, `torchvision`) take it
bare, as in `python:package.attribute`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from dcf.errors import SpecError

__all__ = ["Option", "Spec", "Stack", "Value", "parse", "parse_one"]

#: Names whose first option may be written without its key.
BARE_ARGUMENT: Final[Mapping[str, str]] = {"python": "target", "torchvision": "name"}

#: Levels of brackets that are read; a text may come from a file that nobody wrote by hand.
_MAX_DEPTH: Final = 50

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\Z")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\Z")
_WORD = re.compile(r"""[^\s:,=+\[\]()"']+""")
_TOKEN = re.compile(
    rf"""(?P<space>\s+)|(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<word>{_WORD.pattern})|(?P<mark>[:,=+\[\]()])""",
    re.S,
)

Value: TypeAlias = "str | tuple[Value, ...] | Stack"


@dataclass(frozen=True)
class Option:
    """One `key=value` of a spec."""

    key: str
    value: Value
    key_span: tuple[int, int] = field(default=(0, 0), compare=False, repr=False)
    value_span: tuple[int, int] = field(default=(0, 0), compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.key}={_format(self.value)}"


@dataclass(frozen=True)
class Spec:
    """A component's name and the options given to it; `text` and spans only serve error messages."""

    name: str
    options: tuple[Option, ...] = ()
    text: str = field(default="", compare=False, repr=False)
    span: tuple[int, int] = field(default=(0, 0), compare=False, repr=False)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        bare = BARE_ARGUMENT.get(self.name)
        shown = [_format(o.value) if i == 0 and o.key == bare else str(o) for i, o in enumerate(self.options)]
        return f"{self.name}:{','.join(shown)}"

    def as_dict(self) -> dict[str, Any]:
        """Options as nested dictionaries: `opt.lr=1` becomes `{"opt": {"lr": "1"}}`."""
        tree: dict[str, Any] = {}
        for option in self.options:
            *path, last = option.key.split(".")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
                if not isinstance(node, dict):
                    raise SpecError(
                        f"option '{option.key}' is given both as a value and as a group",
                        self.text,
                        option.key_span,
                    )
            if last in node:
                raise SpecError(
                    f"option '{option.key}' is given both as a value and as a group",
                    self.text,
                    option.key_span,
                )
            node[last] = _plain(option.value)
        return tree


@dataclass(frozen=True)
class Stack:
    """Specs joined by `+`, left to right; the left one is what is stored or applied first."""

    specs: tuple[Spec, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.specs))

    def __iter__(self) -> Iterator[Spec]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def parse(text: str, flag: str = "") -> Stack:
    """Parse one or more specs joined by `+`.

    Args:
        text: What the user wrote.
        flag: The command line option it came from, for error messages.

    Raises:
        SpecError: With the place that is wrong.
    """
    try:
        return _Parser(text).stack_to_end()
    except SpecError as error:
        raise error.with_flag(flag) from None
    except RecursionError:
        raise SpecError("brackets are nested too deeply", flag=flag) from None


def parse_one(text: str, flag: str = "") -> Spec:
    """Parse a spec where only a single one makes sense, such as a matcher."""
    stack = parse(text, flag)
    if len(stack) > 1:
        second = stack.specs[1]
        raise SpecError(
            "expected one component, got several joined by '+'",
            text,
            (second.span[0] - 1, second.span[0]),
            ["only parameterizations and augmenters stack"],
            flag,
        )
    return stack.specs[0]


def _plain(value: Value) -> Any:
    """A value as pydantic takes it: text, list of such, or the canonical text of a nested stack."""
    if isinstance(value, Stack):
        return str(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _format(value: Value) -> str:
    if isinstance(value, Stack):
        return f"({value})"
    if isinstance(value, tuple):
        return f"[{','.join(map(_format, value))}]"
    if _WORD.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    stop: int


class _Parser:
    """Recursive descent over the tokens; one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._tokenize())
        self.at = 0
        self.depth = 0

    def _tokenize(self) -> Iterator[_Token]:
        at = 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                raise SpecError("a quote is opened and not closed", self.text, (at, len(self.text)))
            kind = match.lastgroup or ""
            if kind == "space":
                raise SpecError(
                    "a space cannot stand here",
                    self.text,
                    match.span(),
                    ["put a value with spaces in quotes"],
                )
            yield _Token(kind, match.group(), *match.span())
            at = match.end()

    def _peek(self) -> _Token:
        end = len(self.text)
        return self.tokens[self.at] if self.at < len(self.tokens) else _Token("end", "", end, end)

    def _take(self) -> _Token:
        token = self._peek()
        self.at += 1
        return token

    def _accept(self, mark: str) -> bool:
        if self._peek().kind == "mark" and self._peek().text == mark:
            self.at += 1
            return True
        return False

    def _fail(self, expected: str, token: _Token, *hints: str) -> SpecError:
        got = f"'{token.text}'" if token.text else "the end"
        return SpecError(
            f"expected {expected}, got {got}",
            self.text,
            (token.start, max(token.stop, token.start + 1)),
            hints,
        )

    def stack_to_end(self) -> Stack:
        stack = self._stack()
        if (token := self._peek()).kind != "end":
            raise self._fail("',' or '+' or the end", token, *self._separator_hint(token))
        return stack

    def _separator_hint(self, token: _Token) -> list[str]:
        if token.text in (":", "="):
            return [f"'{token.text}' separates: put a value that contains it in quotes"]
        return []

    def _stack(self) -> Stack:
        specs = [self._spec()]
        while self._accept("+"):
            specs.append(self._spec())
        return Stack(tuple(specs))

    def _spec(self) -> Spec:
        token = self._take()
        if token.kind != "word" or not _NAME.match(token.text):
            raise self._fail("a component's name (lower case letters, digits, '-')", token, *self._number_hint(token))
        options = self._options(token.text) if self._accept(":") else ()
        stop = self.tokens[self.at - 1].stop
        return Spec(token.text, options, self.text, (token.start, stop))

    def _number_hint(self, token: _Token) -> list[str]:
        if token.text[:1].isdigit() and self.text[: token.start].rstrip("+")[-1:] in ("e", "E"):
            return ["'+' stacks components: write 1e3 instead of 1e+3, or use quotes"]
        return []

    def _options(self, name: str) -> tuple[Option, ...]:
        options = [self._bare(name) or self._option()]
        while self._accept(","):
            option = self._option()
            if option.key in {o.key for o in options}:
                raise SpecError(f"option '{option.key}' is given twice", self.text, option.key_span)
            options.append(option)
        return tuple(options)

    def _bare(self, name: str) -> Option | None:
        following = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else None
        if name not in BARE_ARGUMENT or (following is not None and following.text == "="):
            return None
        start = self._peek().start
        value = self._value()
        return Option(BARE_ARGUMENT[name], value, (start, start), (start, self.tokens[self.at - 1].stop))

    def _option(self) -> Option:
        key = self._take()
        if key.kind != "word" or not _KEY.match(key.text):
            raise self._fail("an option's name", key)
        if not self._accept("="):
            raise self._fail(f"'=' and a value after '{key.text}'", self._peek(), f"write {key.text}=VALUE")
        start = self._peek().start
        value = self._value()
        return Option(key.text, value, (key.start, key.stop), (start, self.tokens[self.at - 1].stop))

    def _value(self) -> Value:
        token = self._take()
        if token.kind == "word":
            return token.text
        if token.kind == "quoted":
            return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.S)
        if token.text in ("[", "("):
            return self._nested(token)
        raise self._fail("a value", token)

    def _nested(self, opened: _Token) -> Value:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise SpecError(f"nested more than {_MAX_DEPTH} deep", self.text, (opened.start, opened.stop))
        value: Value
        if opened.text == "[":
            value = self._list()
        else:
            value = self._stack()
            self._close(")", opened)
        self.depth -= 1
        return value

    def _list(self) -> tuple[Value, ...]:
        opened = self.tokens[self.at - 1]
        if self._accept("]"):
            return ()
        items = [self._value()]
        while self._accept(","):
            items.append(self._value())
        self._close("]", opened)
        return tuple(items)

    def _close(self, mark: str, opened: _Token) -> None:
        if not self._accept(mark):
            raise self._fail(f"'{mark}' to close '{opened.text}'", self._peek())
