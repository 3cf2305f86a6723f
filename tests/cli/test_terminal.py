import json
import os
import subprocess
import sys
import time

import pandas as pd
import pytest
from rich.console import Console

from patchclamp.cli import terminal
from patchclamp.cli.terminal import (
    TerminalProgress,
    as_json_text,
    as_lines,
    as_table,
    cell,
    say,
    standard_output_kept_clean,
)
from patchclamp.evidence.passage import Passage


def drawn(frame: pd.DataFrame, width: int) -> tuple[str, str]:
    table, left_out = as_table(frame, width)
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table)
    return captured.get(), left_out


@pytest.mark.parametrize(
    "value, text",
    [
        (0.123456, "0.1235"),
        (float("nan"), ""),
        (None, ""),
        (12, "12"),
        (True, "True"),
        ("Warsaw", "Warsaw"),
        (" Warsaw", '" Warsaw"'),
        ("\n", r'"\n"'),
        ("花", "花"),
        ("x" * 60, "x" * 47 + "…"),
    ],
)
def test_a_cell_shows_what_the_eye_would_miss(value, text):
    assert cell(value) == text


def test_a_small_table_is_shown_whole():
    text, left_out = drawn(pd.DataFrame({"token": [" a", "b"], "prob": [0.5, 0.25]}), 80)
    assert [line.split() for line in text.splitlines()] == [
        ["token", "prob"],
        ['"', 'a"', "0.5"],
        ["b", "0.25"],
    ]
    assert left_out == ""


def test_a_long_table_is_shown_by_both_ends():
    text, left_out = drawn(pd.DataFrame({"layer": range(100)}), 80)
    assert [int(line) for line in text.split() if line.isdigit()] == [*range(20), *range(80, 100)]
    assert left_out == "Not shown: 60 of 100 rows; --json prints everything."


def test_columns_that_do_not_fit_are_named():
    text, left_out = drawn(pd.DataFrame({"site": ["resid.1"], "effect": [0.5], "very_long_name": [1]}), 16)
    assert text.split() == ["site", "effect", "resid.1", "0.5"]
    assert left_out == "Not shown: the columns very_long_name; --json prints everything."


def test_two_columns_of_one_name_are_two_columns():
    assert drawn(pd.DataFrame([[1, 2]], columns=["a", "a"]), 80)[0].split() == ["a", "a", "1", "2"]


def test_text_is_printed_as_it_is(capsys):
    say("[bold] is not markup, :smile: no face, " + "and a long line is not broken " * 10)
    out = capsys.readouterr().out
    assert out.startswith("[bold] is not markup, :smile: no face, ")
    assert out.count("\n") == 1


def test_json_has_no_nan():
    assert json.loads(as_json_text([{"error": float("nan")}, {"error": float("inf")}])) == [{"error": None}] * 2


def test_standard_output_is_kept_clean_below_python_too():
    code = (
        "import os, subprocess\n"
        "from patchclamp.cli.terminal import standard_output_kept_clean\n"
        "print('before')\n"
        "with standard_output_kept_clean():\n"
        "    print('python')\n"
        "    os.write(1, b'descriptor\\n')\n"
        "    subprocess.run(['echo', 'child'])\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "before\nafter\n"
    assert sorted(done.stderr.split()) == ["child", "descriptor", "python"]


def test_standard_output_comes_back_after_an_error(capsys):
    with pytest.raises(ValueError), standard_output_kept_clean():
        raise ValueError
    print("back")
    assert capsys.readouterr().out == "back\n"


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "QUIET_SECONDS", 0.02)
    with TerminalProgress() as progress:
        for _ in progress.track([1, 2, 3], "rows"):
            time.sleep(0.03)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["rows: 1 of 3", "rows: 2 of 3"]


def test_quick_work_without_a_terminal_is_silent(capsys):
    with TerminalProgress() as progress:
        assert list(progress.track(iter("abc"), "letters")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_progress_on_a_terminal_is_a_bar_on_standard_error():
    code = (
        "import time\n"
        "from patchclamp.cli.terminal import TerminalProgress\n"
        "with TerminalProgress() as progress:\n"
        "    for i in progress.track(range(3), 'outer'):\n"
        "        for j in progress.track(range(2), 'inner'):\n"
        "            time.sleep(0.1)\n"
    )
    ours, theirs = os.openpty()
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=theirs,
        check=True,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(theirs)
    seen = os.read(ours, 1 << 20)
    os.close(ours)
    assert done.stdout == b""
    assert b"outer" in seen and b"inner" in seen and b"2/3" in seen


PASSAGES = [
    Passage("neuron.1.7, most active", "12.5", ("in", " these", "\n", " books"), (0.1, 12.5, 0.0, -12.5), 12.5, at=1),
    Passage("neuron.1.7, most active", "9", (" those", "."), (9.0, 0.0), 12.5, at=0),
]


def test_a_passage_is_one_line_with_the_token_it_is_about_in_angles():
    text = "\n".join(line.plain for line in as_lines(PASSAGES))
    assert text == "\nneuron.1.7, most active\n12.5  in «these»⏎ books\n9      «those».\n"


def test_tokens_are_coloured_by_their_number_from_blue_over_nothing_to_orange():
    (_, _, line, *_) = as_lines(PASSAGES)
    colours = {line.plain[span.start : span.end]: span.style.bgcolor.name for span in line.spans if span.style}
    assert colours == {" «these»": "rgb(230,140,40)", " books": "rgb(27,108,168)"}


def test_a_passage_on_a_page_cannot_break_out_of_it():
    from patchclamp.evidence.passage import passages_html

    page = passages_html([Passage("<b>", "&", ("<script>",), (1.0,), 1.0, at=0)])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<h3>&lt;b&gt;</h3>" in page
