"""The spec language: what parses, to what, and what an error points at."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcf.errors import SpecError
from dcf.spec import BARE_ARGUMENT, Option, Spec, Stack, parse, parse_one


def spec(name, /, **options):
    return Spec(name, tuple(Option(k.replace("__", "."), v) for k, v in options.items()))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("pixels", [spec("pixels")]),
        ("lowrank:r=4", [spec("lowrank", r="4")]),
        ("lowrank:r=4+up:f=2", [spec("lowrank", r="4"), spec("up", f="2")]),
        ("x:lr=1e-3,bias=-1", [spec("x", lr="1e-3", bias="-1")]),
        ("x:opt.lr=0.1", [spec("x", opt__lr="0.1")]),
        ("x:path='a+b,c'", [spec("x", path="a+b,c")]),
        ('x:path="C:/d"', [spec("x", path="C:/d")]),
        (r'x:v="say \"hi\" \\"', [spec("x", v='say "hi" \\')]),
        ("x:v=''", [spec("x", v="")]),
        ("x:sizes=[8,16]", [spec("x", sizes=("8", "16"))]),
        ("x:sizes=[]", [spec("x", sizes=())]),
        ("x:s=[[1,2],[3]]", [spec("x", s=(("1", "2"), ("3",)))]),
        ("x:base=(a:r=4+b)", [spec("x", base=Stack((spec("a", r="4"), spec("b"))))]),
        ("python:my.module.data", [spec("python", target="my.module.data")]),
        ("python:target=my.data", [spec("python", target="my.data")]),
        ("torchvision:resnet18", [spec("torchvision", name="resnet18")]),
        ("x:v=no", [spec("x", v="no")]),
    ],
)
def test_text_parses(text, wanted):
    assert parse(text) == Stack(tuple(wanted))


@pytest.mark.parametrize(
    ("text", "message", "under"),
    [
        ("", "expected a component's name (lower case letters, digits, '-'), got the end", ""),
        ("LowRank:r=4", "expected a component's name (lower case letters, digits, '-'), got 'LowRank'", "LowRank"),
        ("a--b", "expected a component's name (lower case letters, digits, '-'), got 'a--b'", "a--b"),
        ("lowrank:r", "expected '=' and a value after 'r', got the end", ""),
        ("lowrank:r=", "expected a value, got the end", ""),
        ("lowrank:r=4,r=5", "option 'r' is given twice", "r"),
        ("lowrank:r=4+", "expected a component's name (lower case letters, digits, '-'), got the end", ""),
        ("lowrank:4=r", "expected an option's name, got '4'", "4"),
        ("lowrank:", "expected an option's name, got the end", ""),
        ("x:p='open", "a quote is opened and not closed", "'open"),
        ("x:s=1e+3", "expected a component's name (lower case letters, digits, '-'), got '3'", "3"),
        ("x:path=C:/d", "expected ',' or '+' or the end, got ':'", ":"),
        ("x:a=b=c", "expected ',' or '+' or the end, got '='", "="),
        ("x:a=[1,2", "expected ']' to close '[', got the end", ""),
        ("x:a=(b", "expected ')' to close '(', got the end", ""),
        ("x:a=[,]", "expected a value, got ','", ","),
        ("x:a=b c=d", "a space cannot stand here", " "),
        ("a b", "a space cannot stand here", " "),
        ("x:a=)", "expected a value, got ')'", ")"),
    ],
)
def test_error_says_what_and_points_at_it(text, message, under):
    with pytest.raises(SpecError) as caught:
        parse(text)
    error = caught.value
    assert error.message == message
    assert error.text == text
    start, stop = error.span
    assert text[start:stop] == under
    if text:
        lines = str(error).splitlines()
        assert lines[1] == f"  {text}"
        assert lines[2] == " " * (2 + start) + "^" * max(1, stop - start)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("x:s=1e+3", "'+' stacks components: write 1e3 instead of 1e+3, or use quotes"),
        ("x:path=C:/d", "':' separates: put a value that contains it in quotes"),
        ("lowrank:r", "write r=VALUE"),
        ("a b", "put a value with spaces in quotes"),
    ],
)
def test_error_offers_the_repair(text, hint):
    with pytest.raises(SpecError) as caught:
        parse(text, "--param")
    assert hint in caught.value.hints
    assert f"  --param {text}" in str(caught.value).splitlines()


def test_stack_where_one_is_wanted_is_refused():
    with pytest.raises(SpecError) as caught:
        parse_one("a:x=1+b", "--matcher")
    assert "expected one component" in str(caught.value)
    start, stop = caught.value.span
    assert caught.value.text[start:stop] == "+"
    assert str(parse_one("a:x=1")) == "a:x=1"


def test_dotted_keys_nest():
    assert parse_one("x:opt.lr=1,opt.wd=2,k=[a,(b:c=d)]").as_dict() == {
        "opt": {"lr": "1", "wd": "2"},
        "k": ["a", "b:c=d"],
    }


@pytest.mark.parametrize("text", ["x:opt=1,opt.lr=2", "x:opt.lr=2,opt=1"])
def test_key_cannot_be_value_and_group(text):
    with pytest.raises(SpecError, match="both as a value and as a group"):
        parse_one(text).as_dict()


def test_spans_point_into_the_text():
    text = "one:a=1+two:key='v w',list=[1,2]"
    second = parse(text).specs[1]
    assert text[slice(*second.span)] == "two:key='v w',list=[1,2]"
    assert [text[slice(*o.key_span)] for o in second.options] == ["key", "list"]
    assert [text[slice(*o.value_span)] for o in second.options] == ["'v w'", "[1,2]"]


def test_spans_do_not_count_in_comparisons():
    assert parse("a:b='c'") == parse('a:b="c"') == parse("a:b=c")
    assert hash(parse("a:b='c'")) == hash(parse("a:b=c"))


def test_printing_is_minimal():
    assert str(parse("x:a='plain',b=\"with space\",c=['1','2']")) == 'x:a=plain,b="with space",c=[1,2]'
    assert str(parse("python:target=a.b")) == "python:a.b"


# --- the round trip, for anything that can be built --------------------------------------------------------

NAMES = st.from_regex(r"[a-z][a-z0-9]{0,4}(-[a-z0-9]{1,3}){0,2}", fullmatch=True)
KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,4}(\.[A-Za-z_][A-Za-z0-9_]{0,3}){0,1}", fullmatch=True)
TEXTS = st.text(max_size=8) | st.text(alphabet=string.punctuation + " \t\n", max_size=6)


def specs_of(values):
    options = st.lists(st.tuples(KEYS, values), max_size=3, unique_by=lambda kv: kv[0])
    return st.builds(lambda name, found: Spec(name, tuple(Option(k, v) for k, v in found)), NAMES, options)


def stacks_of(values):
    return st.lists(specs_of(values), min_size=1, max_size=3).map(lambda found: Stack(tuple(found)))


VALUES = st.recursive(TEXTS, lambda inner: st.lists(inner, max_size=3).map(tuple) | stacks_of(inner), max_leaves=6)


@given(stacks_of(VALUES))
def test_printed_stack_parses_to_itself(stack):
    text = str(stack)
    assert parse(text) == stack
    assert str(parse(text)) == text


@given(st.sampled_from(sorted(BARE_ARGUMENT)), VALUES, st.lists(st.tuples(KEYS, TEXTS), max_size=2))
def test_bare_argument_round_trips(name, value, others):
    key = BARE_ARGUMENT[name]
    rest = {k: v for k, v in others if k != key}
    made = Spec(name, (Option(key, value), *(Option(k, v) for k, v in rest.items())))
    assert parse_one(str(made)) == made


@given(st.text(max_size=20) | st.text(alphabet="ab:,=+[]()'\" \\1", max_size=14))
def test_any_text_parses_or_is_a_spec_error(text):
    stack, error = attempt(text)
    if error is None:
        assert parse(str(stack)) == stack
        return
    start, stop = error.span
    assert 0 <= start <= len(text)
    assert stop >= start
    assert str(error)


def attempt(text):
    try:
        return parse(text), None
    except SpecError as error:
        return None, error


def test_deep_nesting_is_an_error_of_the_spec():
    with pytest.raises(SpecError):
        parse("x:a=" + "[" * 5000)
