"""Commands as a user types them, on a real model; what a whole run does in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from patchclamp.cli.app import execute

pytestmark = pytest.mark.weights


def patchclamp(*words, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATCHCLAMP_RUNS": str(cwd / "runs")}
    return subprocess.run([sys.executable, "-m", "patchclamp", *words], cwd=cwd, env=environment, text=True,
                          capture_output=True, check=False, timeout=240)


def test_one_json_object_charts_record_and_replay(tmp_path):
    """The whole life of a run: standard output is one object, the files are there, the replay is the same."""
    done = patchclamp("lens", "logit", "The capital of France is the city of", "--watch", " Paris", "--json",
                      "--html", "lens.html", "--png", "lens.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert list(record) == ["method", "spec", "result", "verdict", "provenance"]
    assert set(record["result"]["layers"][0]) >= {"layer", "top", "watch", "entropy", "kl"}
    assert (tmp_path / "lens.html").read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "lens.png").read_bytes().startswith(b"\x89PNG")
    (stored,) = (tmp_path / "runs").iterdir()
    replayed = patchclamp("runs", "replay", stored.name, "--json", cwd=tmp_path)
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["same"] is True


WRONG = {
    "empty prompt": (["lens", "logit", ""], "empty"),
    "prompt beyond the context": (["lens", "logit", "word " * 9000], "context"),
    "unknown model, no hub": (["lens", "logit", "hi", "--model", "no/such-model"], "no/such-model"),
    "missing block": (["forward", "capture", "hi", "--sites", "resid.30"], "30 blocks (0 to 29)"),
    "missing head": (["forward", "capture", "hi", "--sites", "head.3.17"], "9 heads"),
    "missing neuron": (["neurons", "ablate", "neuron.3.1536", "--prompts", "example:agreement"], "1536 neurons"),
    "missing file": (["neurons", "ablate", "neuron.3.1", "--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    "no such word": (["forward", "capture", "hi", "--sites", 'resid.3@"zebra"'], "zebra"),
    "several tokens": (["lens", "logit", "hi", "--watch", " hippopotamus"], "not one token"),
    "NaN in a vector": (
        ["forward", "generate", "hi", "--edits", '{"op":"add","site":"resid.3","direction":[1.0,NaN]}'], "finite"),
    "wrong width": (
        ["forward", "generate", "hi", "--edits", '{"op":"add","site":"resid.3","direction":[1.0,2.0]}'], "width"),
}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """What a command line that is wrong says, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATCHCLAMP_RUNS", str(tmp_path / "runs"))

    def run(*words):
        code = execute(words)
        seen = capsys.readouterr()
        assert (code, seen.out) == (2, ""), seen.err
        return seen.err

    return run


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence_and_exit_code_two(case, refused):
    words, said = WRONG[case]
    told = refused(*words)
    assert said in told and "Traceback" not in told


def test_a_process_ends_with_that_code(tmp_path):
    words, said = WRONG["missing head"]
    done = patchclamp(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(("content", "said"), [
    (b'{"prompt": "a", "answer": " b", "distractor": " c"}\n{"prompt": \n', "line 2"),
    (b'{"prompt": "a", "answer": " b"}\n', "distractor"),
    (b'{"prompt": "\xff", "answer": " b", "distractor": " c"}\n', "UTF-8"),
    (b"", "no rows"),
])
def test_a_bad_row_is_named_by_file_and_line(content, said, tmp_path, refused):
    (tmp_path / "rows.jsonl").write_bytes(content)
    told = refused("neurons", "ablate", "neuron.3.1", "--prompts", "rows.jsonl")
    assert "rows.jsonl" in told and said in told
