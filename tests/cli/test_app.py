"""The command as its users meet it: outputs, records, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import patchclamp as patchclamp_package
from patchclamp.cli.app import build_app
from patchclamp.evidence.record import Record

FAKE = Path(__file__).with_name("fake_cli.py")


def patchclamp(*arguments, **options):
    """The command in a process of its own."""
    command = [sys.executable, str(FAKE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def test_a_run_prints_table_verdict_and_place(command, tmp_path):
    code, out, err = command("text", "count", "hello", "--top", "2")
    assert code == 0
    lines = out.splitlines()
    assert [line.split() for line in lines[:3]] == [["letter", "count"], ["l", "2"], ["e", "1"]]
    assert lines[3] == "Not supported: The letters are as frequent as any."
    (place,) = (tmp_path / "runs").iterdir()
    assert lines[4] == f"Record {place.name}: {place}"
    assert err == "noise on standard output\n"


def test_json_is_one_object_and_all_else_is_on_standard_error(command, tmp_path):
    code, out, err = command("text", "count", "hello", "--json", "--seed", "3")
    record = json.loads(out)
    assert code == 0
    assert list(record) == ["method", "spec", "result", "verdict", "provenance"]
    assert (record["method"], record["spec"]["prompt"], record["spec"]["seed"]) == ("text.count", "hello", 3)
    (place,) = (tmp_path / "runs").iterdir()
    assert json.loads((place / "record.json").read_text()) == record
    assert "noise" in err and place.name in err


def test_no_record_stores_nothing(command, tmp_path):
    assert command("text", "count", "hello", "--no-record")[0] == 0
    assert not (tmp_path / "runs").exists()


def test_out_is_where_the_record_goes(command, tmp_path):
    folder = tmp_path / "mine"
    assert command("text", "count", "hello", "--out", str(folder))[0] == 0
    assert Record.from_json((folder / "record.json").read_bytes()).method == "text.count"
    assert not (tmp_path / "runs").exists()


def test_the_chart_is_written_as_page_and_picture(command, tmp_path):
    page, picture = tmp_path / "a.html", tmp_path / "a.png"
    code, out, _ = command("text", "count", "hello", "--html", str(page), "--png", str(picture))
    assert code == 0
    assert "https://cdn" not in page.read_text(encoding="utf-8")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"Chart: {page}" in out


@pytest.mark.parametrize(
    "line, message",
    [
        (["text", "count"], 'Command "text count" parameter PROMPT... requires an argument.'),
        (["text", "count", "a", "--wacth", "b"], "Unknown option: --wacth. Did you mean --watch?"),
        (["text", "coutn"], 'Unknown command "coutn". Did you mean "count"?'),
        (["text", "count", "a", "--top", "many"], "text.count: top: Input should be a valid integer"),
        (["text", "count", "a", "--model", "missing"], "there is no model missing"),
        (["text", "count", "a", "--html", "a.txt"], "--html a.txt: the file's name has to end in .html"),
        (
            ["text", "count", "a", "--png", "/etc/hostname/a.png"],
            "--png: /etc/hostname is a file; a folder is needed",
        ),
        (["text", "count", "a", "--out", "x", "--no-record"], "leave one out"),
        (["text", "count", "caf\udce9"], "the argument 'caf\\udce9' is not UTF-8 (character 3)"),
        (["runs", "show", "abc"], "there is no record 'abc'"),
    ],
)
def test_wrong_input_is_exit_code_2_and_a_sentence(command, line, message):
    code, out, err = command(*line)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and message in err
    assert "Traceback" not in err


def test_a_failed_run_is_exit_code_1(command):
    assert command("fail") == (1, "", "error: the loss is not a number at step 3\n")


def test_an_unforeseen_error_is_one_line_and_a_hint(command):
    code, out, err = command("fail", "--how", "bug")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "error: IndexError: list index out of range",
        "That was not foreseen; --debug or PATCHCLAMP_DEBUG=1 prints the traceback.",
    ]


def test_debug_prints_the_traceback(command, monkeypatch):
    assert "fake_methods.py" in command("fail", "--debug")[2]
    assert "fake_methods.py" not in command("fail")[2]
    monkeypatch.setenv("PATCHCLAMP_DEBUG", "1")
    assert "fake_methods.py" in command("fail")[2]


def test_an_interrupt_is_exit_code_130(command):
    assert command("fail", "--how", "interrupt") == (130, "", "Interrupted.\n")


def test_the_run_is_kept_when_its_chart_cannot_be_written(command, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    page = tmp_path / "full" / "a.html"
    real = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda self, *a, **k: full() if self.name == "full" else real(self, *a, **k))
    code, _, err = command("text", "count", "hello", "--html", str(page))
    (place,) = (tmp_path / "runs").iterdir()
    assert code == 1
    assert f"No space left on device; the run itself is stored in {place}" in err


def test_help_lists_the_methods(command):
    code, out, _ = command("--help")
    assert code == 0
    assert "Methods: count" in out and "Fail in the way asked for." in out
    code, out, _ = command("text", "--help")
    assert code == 0 and "Count the letters of a prompt." in out


def test_help_of_a_method_shows_its_fields(command):
    code, out, _ = command("text", "count", "--help")
    assert code == 0
    unwrapped = " ".join(out.replace("│", " ").split())
    for part in (
        "PROMPT...",
        "--watch TEXT",
        'A word to watch, e.g. " Warsaw"',
        "[default: 5]",
        "--edits JSON",
        "--no-window",
        "[default: smollm2-135m-instruct]",
        "--trust-remote-code",
    ):
        assert part in unwrapped


def test_methods_are_listed_with_schema(command):
    assert [line.split()[0] for line in command("methods")[1].splitlines()] == ["fail", "text"]
    listed = json.loads(command("methods", "--json")[1])
    assert [m["name"] for m in listed] == ["fail", "text.count"]
    assert listed[1]["schema"]["properties"]["top"]["description"] == "How many letters."


def test_only_the_method_asked_for_gets_its_options(fakes):
    app = build_app(["text", "count", "hello"])
    assert app["text"]["count"].default_command is not None
    assert app["fail"].default_command is None


def test_a_process_exits_with_the_code_and_only_json_on_standard_output(tmp_path):
    done = patchclamp("text", "count", "- hello", "--json", env=os.environ | {"PATCHCLAMP_RUNS": str(tmp_path)})
    assert done.returncode == 0
    assert json.loads(done.stdout)["spec"]["prompt"] == "- hello"
    done = patchclamp("text", "count", "hello", "--top", "0")
    assert (done.returncode, done.stdout) == (2, "")


def test_nobody_reading_the_output_is_quiet(tmp_path):
    env = os.environ | {"PATCHCLAMP_RUNS": str(tmp_path)}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, str(FAKE), "text", "count", "hello"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        timeout=120,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == "noise on standard output\n"


def test_the_version_and_the_help_need_no_heavy_import():
    code = (
        "import sys, types\n"
        # The command's own modules are looked at, whatever the package itself imports.
        "package = sys.modules['patchclamp'] = types.ModuleType('patchclamp')\n"
        f"package.__path__ = {patchclamp_package.__path__!r}\n"
        "from patchclamp.cli.app import execute\n"
        "assert execute(['--version']) == 0\n"
        "assert execute(['runs', '--help']) == 0\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'altair'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
