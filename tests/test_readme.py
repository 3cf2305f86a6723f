"""The README's lines work as printed."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.weights
def test_the_ten_lines_run(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "' Paris' is written in the residual stream" in printed
    assert "rank of ' Paris'" in printed


def test_the_code_is_about_ten_lines():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12


def test_the_first_two_commands_are_tour_and_test():
    commands = re.findall(r"^(make \w+)", README.read_text(), re.M)
    assert commands[:2] == ["make tour", "make test"]


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text()):
        assert (README.parent / target).exists(), target
