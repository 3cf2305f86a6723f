"""Command line to spec is the identity: a spec, written by the rules in `options`, is read back equal."""

import json
import re
import shlex
import types
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from cyclopts import App, CycloptsError
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, create_model
from pydantic_core import to_jsonable_python

from patchclamp.cli.build import RunOptions, build_command
from patchclamp.cli.line import arrange
from patchclamp.errors import FileError, SpecError
from patchclamp.evidence.cli_hints import CommaList, Positional
from patchclamp.evidence.code import command_line
from patchclamp.evidence.method import Method, Result, Spec, methods
from patchclamp.evidence.options import Option, options_of


class Change(BaseModel):
    op: Literal["zero", "scale"]
    factor: float | None = None


class Colour(Enum):
    RED = "red"
    TWO = 2


def parse(spec: type[Spec], *line: str) -> tuple[Spec, RunOptions]:
    """What a command made of `spec` is called with for one command line."""
    calls = []
    method = Method("test", "A test.", "A test.", spec, Result, lambda *_: None)
    app = App(name="patchclamp")
    app.command(build_command(method, lambda _, *call: calls.append(call)))
    app(arrange(app, ["test", *line]), print_error=False, exit_on_error=False, result_action="return_value")
    return calls[0]


TEXT = st.text(max_size=8) | st.sampled_from([" Warsaw", "-ing", "--x", "none", "true", "5", "@x", "[1]", '"q"', "a,b"])
WORD = st.from_regex(r"[a-z]{1,5}", fullmatch=True)
CHANGE = st.builds(Change, op=st.sampled_from(["zero", "scale"]), factor=st.none() | st.integers(0, 9).map(float))
NUMBER = st.floats(allow_nan=False)

KINDS: dict[str, tuple[Any, st.SearchStrategy]] = {
    "flag": (bool, st.booleans()),
    "integer": (int, st.integers()),
    "number": (float, NUMBER),
    "text": (str, TEXT),
    "path": (Path, WORD.map(Path)),
    "choice": (Literal["a", "b c", "-d", "--e", 7], st.sampled_from(["a", "b c", "-d", "--e", 7])),
    "enum": (Colour, st.sampled_from(Colour)),
    "texts": (list[str], st.lists(TEXT, max_size=3)),
    "integers": (tuple[int, ...], st.lists(st.integers(), max_size=3).map(tuple)),
    "pair": (tuple[int, float], st.tuples(st.integers(), NUMBER)),
    "set": (frozenset[str], st.frozensets(TEXT, max_size=3)),
    "choices": (list[Literal["a", 7]], st.lists(st.sampled_from(["a", 7]), max_size=3)),
    "flags": (list[bool], st.lists(st.booleans(), max_size=3)),
    "union": (int | Literal["all"], st.integers() | st.just("all")),
    "object": (Change, CHANGE),
    "objects": (list[Change], st.lists(CHANGE, max_size=3)),
    "mapping": (dict[str, list[int]], st.dictionaries(TEXT, st.lists(st.integers()), max_size=2)),
    "matrix": (list[list[int]], st.lists(st.lists(st.integers(), max_size=2), max_size=3)),
    "gaps": (list[float | None], st.lists(st.none() | st.floats(-1e9, 1e9), max_size=3)),
    "words": (Annotated[list[str], CommaList()], st.lists(WORD, max_size=3)),
}
NESTED = ("object", "objects", "mapping", "matrix", "gaps")


def texts_of(kind: str, value: Any) -> list[str]:
    """What follows the option's name, once for each element."""
    plain = to_jsonable_python(value)
    if kind in ("matrix", "gaps") and plain:
        return [json.dumps(item) for item in plain]
    if kind in NESTED:
        return [json.dumps(plain)]
    if kind == "words":
        return [", ".join(value)]
    items = value if isinstance(value, list | tuple | frozenset) else [value]
    return [str(i).lower() if isinstance(i, bool) else str(i.value) if isinstance(i, Enum) else str(i) for i in items]


def written(name: str, kind: str, value: Any, apart: bool) -> list[str]:
    """An option and its value as a command line, in two words or one."""
    option = "--" + name.replace("_", "-")
    if kind == "flag":
        return [option] if value else [option.replace("--", "--no-", 1)]
    if value is None:
        return [option.replace("--", "--no-", 1)]
    if kind not in ("objects", "gaps", "words") and isinstance(value, list | tuple | frozenset) and not value:
        return [option.replace("--", "--empty-", 1)]
    texts = texts_of(kind, value)
    return [w for t in texts for w in ([option, t] if apart and t not in ("--", "-h") else [f"{option}={t}"])]


@st.composite
def specs(draw):
    """A spec class, one of its values, and the command line that says it."""
    fields, values, line = {}, {}, []
    for i, kind in enumerate(draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4))):
        name = f"field_{i}"
        hint, strategy = KINDS[kind]
        value = draw(strategy)
        if kind != "flag" and draw(st.booleans()):
            hint, value = hint | None, draw(st.just(value) | st.none())
            if kind == "words":
                hint = Annotated[hint, CommaList()]
        if draw(st.booleans()):
            default = draw(strategy)
            fields[name] = (hint, default)
            # An empty list or None that is the default has no flag of its own: leaving it out says it.
            has_words = not (value is None or (isinstance(value, list | tuple | frozenset) and not value))
            said = value != default or (has_words and draw(st.booleans()))
        else:
            fields[name] = (hint, ...)
            said = True
        values[name] = value
        if said:
            line += written(name, kind, value, draw(st.booleans()))
    spec = create_model("AnySpec", __base__=Spec, **fields)
    return spec, spec(**values), line


@settings(max_examples=150, deadline=None)
@given(specs())
def test_command_line_to_spec_is_the_identity(case):
    spec, value, line = case
    assert parse(spec, *line)[0] == value


@settings(max_examples=150, deadline=None)
@given(specs())
def test_what_a_spec_is_written_as_reads_as_that_spec(case):
    spec, value, _ = case
    try:
        words = shlex.split(command_line("test", value, "smollm2-135m-instruct"))
    except SpecError as error:
        assert "no command line says" in str(error)
        return
    assert parse(spec, *words[2:])[0] == value


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4), TEXT)
def test_positional_values_are_read_as_they_are(sites, last):
    class Both(Spec):
        sites: Annotated[list[str], Positional()]
        last: Annotated[str, Positional()]
        top: int = 1

    spec, _ = parse(Both, "--top", "3", "--", *sites, last)
    assert (spec.sites, spec.last, spec.top) == (sites, last, 3)


def test_consecutive_values_make_a_positional_list_wherever_the_options_stand():
    class Sites(Spec):
        sites: Annotated[list[str], Positional()]
        prompts: str

    assert parse(Sites, "neuron.1.2", "--prompts", "f", "neuron.3.4")[0].sites == ["neuron.1.2", "neuron.3.4"]


Prompt = str | tuple[int, ...] | tuple[dict[str, str], ...]


@pytest.mark.parametrize(
    "text, prompt",
    [
        ("Hello", "Hello"),
        ("5", "5"),
        ("[1, 2]", "[1, 2]"),
        ('"quoted"', '"quoted"'),
        ("@home", "@home"),
        ("null", "null"),
        ('[{"role": "user"}]', ({"role": "user"},)),
        ("[{not json", "[{not json"),
    ],
)
def test_text_is_taken_for_json_only_where_it_plainly_is(text, prompt):
    class Ask(Spec):
        prompt: Annotated[Prompt, Positional()]

    class AskAll(Spec):
        prompts: Annotated[tuple[Prompt, ...], Positional()]

    assert parse(Ask, text)[0].prompt == prompt
    assert parse(AskAll, text, "Hello")[0].prompts == (prompt, "Hello")


def test_one_prompt_is_one_argument():
    class Ask(Spec):
        prompt: Annotated[Prompt, Positional()]

    with pytest.raises(CycloptsError, match="two"):
        parse(Ask, "one", "two")


@pytest.mark.parametrize(
    "line, edits",
    [
        (['--edits={"op":"zero"}'], ["zero"]),
        (['--edits={"op":"zero"}', '--edits=[{"op":"scale"}, {"op":"zero"}]'], ["zero", "scale", "zero"]),
        (["--edits=[]"], []),
    ],
)
def test_objects_come_one_by_one_or_as_an_array(line, edits):
    class Edited(Spec):
        edits: tuple[Change, ...] = (Change(op="scale"),)

    assert [edit.op for edit in parse(Edited, *line)[0].edits] == edits


def test_json_is_read_from_a_file(tmp_path):
    class Edited(Spec):
        edits: list[Change]

    file = tmp_path / "edits.json"
    file.write_text('[{"op": "zero"}]')
    assert parse(Edited, "--edits", f"@{file}")[0].edits == [Change(op="zero")]
    with pytest.raises(FileError, match=r"cannot read .*none\.json: No such file"):
        parse(Edited, "--edits", f"@{tmp_path}/none.json")
    file.write_bytes(b'"\xff"')
    with pytest.raises(FileError, match=r"not UTF-8 \(byte 1\)"):
        parse(Edited, "--edits", f"@{file}")


class Counted(Spec):
    top: int = Field(5, ge=1)
    """How many."""
    names: Annotated[tuple[Literal["resid", "attn"], ...], CommaList()] = ("resid",)
    """Which."""
    edits: tuple[Change, ...] = ()


@pytest.mark.parametrize(
    "line, message",
    [
        (["--top", "1.5"], "top: Input should be a valid integer"),
        (["--top", "0"], "top: Input should be greater than or equal to 1"),
        (["--names", "resid,mlp"], "names.1: Input should be 'resid' or 'attn'"),
        (["--edits", "{op"], "--edits has to hold JSON and does not: Expecting property name"),
        (["--edits", '{"op": "mean"}'], "edits.0.op: Input should be 'zero' or 'scale'"),
    ],
)
def test_a_wrong_value_is_refused_by_name(line, message):
    with pytest.raises(SpecError, match=message.split(": ")[0]) as caught:
        parse(Counted, *line)
    assert message in str(caught.value)


def test_none_and_a_value_contradict():
    class Optional(Spec):
        window: int | None = 3

    with pytest.raises(SpecError, match="--no-window and a value for window were both given"):
        parse(Optional, "--no-window", "--window", "4")


@pytest.mark.filterwarnings("ignore:Field name .json.")
@pytest.mark.parametrize("field", ["model", "json", "record", "help"])
def test_a_field_named_as_a_common_option_is_refused(field):
    hint, default = (bool, True) if field == "record" else (str, "x")
    with pytest.raises(SpecError, match="rename the field"):
        parse(create_model("Clash", __base__=Spec, **{field: (hint, default)}))


def test_the_help_text_of_an_option_comes_from_the_field():
    options = {option.name: option for option in options_of(Counted, "test")}
    top = options["--top"]
    assert (top.help, top.metavar, top.default_text, top.required) == ("How many.", "INT", "5", False)
    assert (options["--names"].choices, options["--names"].metavar) == (["resid", "attn"], "CHOICE,…")
    assert options["--edits"].metavar == "JSON"


def test_a_recursive_type_is_json():
    module = types.ModuleType("recursive")
    exec(
        "from pydantic import BaseModel\nclass Node(BaseModel):\n    left: 'Node | None' = None\n",
        module.__dict__,
    )
    module.Node.model_rebuild(_types_namespace={"Node": module.Node})
    tree = create_model("Tree", __base__=Spec, root=(module.Node, ...))
    assert parse(tree, '--root={"left": {}}')[0].root.left.left is None


def test_common_options_are_read_by_the_same_rules():
    spec, options = parse(Counted, "--seed=7", "--json", "--no-record", "--html", "a.html", "--dtype", "bfloat16")
    assert spec.seed == 7
    assert options == RunOptions(json=True, no_record=True, html=Path("a.html"), dtype="bfloat16")


def test_an_option_knows_the_flags_that_go_with_it():
    class Many(Spec):
        a: tuple[str, ...] = ("x",)
        b: tuple[str, ...] = ()
        c: int | None = 3
        d: int | None = None

    flags = {option.field: (option.none_flag, option.empty_flag) for option in options_of(Many, "test")}
    assert flags == {
        "seed": (None, None),
        "a": (None, "--empty-a"),
        "b": (None, None),
        "c": ("--no-c", None),
        "d": (None, None),
    }
    assert isinstance(options_of(Many, "test")[0], Option)


MAY_NAME_A_FILE = re.compile(r"\b(file|folder|saved|path)s?\b", re.IGNORECASE)
TELLS_OF_ONE = {"label", "where", "from", "control", "name"}
"""Fields whose help speaks of files that other fields name."""


def test_every_field_that_may_name_a_file_says_so():
    """A server that keeps to one folder goes by these marks."""
    unmarked = [
        f"{name} {option.name}"
        for name, method in methods().items() for option in options_of(method.spec, name)
        if "string" in option.held.kinds and not option.held.path and MAY_NAME_A_FILE.search(option.help)
        and option.field not in TELLS_OF_ONE
    ]
    assert unmarked == []
