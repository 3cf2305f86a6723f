"""A question written down as a command or a program asks the same question."""

import shlex
from types import SimpleNamespace
from typing import Annotated

import pytest

from patchclamp.errors import SpecError
from patchclamp.evidence.cli_hints import CommaList
from patchclamp.evidence.code import command_line, python_code
from patchclamp.evidence.method import Spec, get_method
from patchclamp.tour import STOPS

READY = [stop for stop in STOPS if isinstance(stop.fields, dict)]


@pytest.mark.parametrize("stop", READY, ids=lambda s: s.heading)
def test_every_question_of_the_tour_is_a_command(stop):
    from patchclamp.cli.build import build_command  # the words behind the method's name
    from patchclamp.cli.line import arrange

    spec = get_method(stop.method).make_spec(**stop.fields)
    words = shlex.split(command_line(stop.method, spec, stop.model))[1:]
    asked = []
    app = build_command(get_method(stop.method), lambda _, spec, options: asked.append((spec, options.model)))
    app(arrange(app, words[len(stop.method.split(".")):]), print_error=False, exit_on_error=False,
        result_action="return_value")
    assert asked == [(spec, stop.model)]


@pytest.mark.parametrize("stop", READY, ids=lambda s: s.heading)
def test_every_question_of_the_tour_is_a_program(stop, monkeypatch):
    import patchclamp as pc

    spec, asked = get_method(stop.method).make_spec(**stop.fields), []
    load = pc.get_method(stop.method).load
    code = python_code(stop.method, spec, stop.model)
    assert ("pc.load(" in code) == (load.__name__ == "load_language_model")
    fake = SimpleNamespace(load=lambda ref: ref, get_method=lambda name: SimpleNamespace(load=lambda ref: ref),
                           run=lambda name, model, **fields: asked.append((name, model, fields)) or
                           SimpleNamespace(verdict=None, chart=lambda: None))
    exec(code.replace("import patchclamp as pc\n", ""), {"pc": fake})
    (name, model, fields), = asked
    assert (name, model, get_method(name).make_spec(**fields)) == (stop.method, stop.model, spec)


def test_only_what_differs_from_the_defaults_is_written():
    spec = get_method("lens.logit").make_spec(prompt="The capital of Poland is", watch=[" Warsaw"], top=5)
    assert command_line("lens.logit", spec, "smollm2-135m-instruct") == (
        "patchclamp lens logit 'The capital of Poland is' --watch ' Warsaw'")
    assert command_line("lens.logit", spec, "./mine", "bfloat16").endswith("--model ./mine --dtype bfloat16")


def test_a_value_that_no_command_line_says():
    class Named(Spec):
        names: Annotated[tuple[str, ...], CommaList()] = ()

    with pytest.raises(SpecError, match=r"--names: no command line says \[\"a,b\"\]"):
        command_line("test", Named(names=("a,b",)), "m")
