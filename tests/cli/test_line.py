from typing import Annotated

import pytest
from cyclopts import App, Parameter

from patchclamp.cli.line import arrange

app = App(name="patchclamp")


@app.command
def ask(prompt: str, /, *, watch: Annotated[list[str], Parameter(negative=())] = (), chat: bool = False): ...


@pytest.mark.parametrize(
    "line, arranged",
    [
        (["p"], ["--", "p"]),
        (["p", "--watch", " a", "--watch", "b"], ["--watch= a", "--watch=b", "--", "p"]),
        (["--watch", "-ing", "p"], ["--watch=-ing", "--", "p"]),
        (["--watch", "--", "p"], ["--watch", "--", "p"]),
        (["--watch=--chat", "p"], ["--watch=--chat", "--", "p"]),
        (["- one", "--chat"], ["--chat", "--", "- one"]),
        (["-5", "--chat"], ["--chat", "--", "-5"]),
        (["--no-chat", "--", "--chat"], ["--no-chat", "--", "--chat"]),
        (["--debug", "p"], ["--", "p"]),
        (["--watch", "x", "--debug"], ["--watch=x"]),
        (["--help"], ["--help"]),
    ],
)
def test_values_are_written_so_that_they_cannot_be_options(line, arranged):
    assert arrange(app, ["ask", *line]) == ["ask", *arranged]


def test_an_option_without_its_value_does_not_swallow_the_next_option():
    assert arrange(app, ["ask", "--watch", "--chat"]) == ["ask", "--watch", "--chat"]


def test_an_unknown_option_is_left_for_cyclopts_to_refuse():
    assert arrange(app, ["ask", "--wacth", "x"]) == ["ask", "--wacth", "--", "x"]


def test_a_line_without_a_command_is_left_alone():
    assert arrange(app, ["--debug", "--help"]) == ["--help"]
