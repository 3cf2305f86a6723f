import fake_cli
import fake_methods
import pytest

from patchclamp.cli import run
from patchclamp.cli.app import execute
from patchclamp.evidence import method


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    """The methods of `fake_methods` alone, a model that is none, an empty store in `tmp_path / "runs"`."""
    registry = {m.name: m for m in vars(fake_methods).values() if isinstance(m, method.Method)}
    monkeypatch.setattr(method, "_registry", registry)
    monkeypatch.setattr(method, "BUILT_IN", fake_cli.METHODS)
    monkeypatch.setattr(run, "load_model", fake_cli.load_model)
    monkeypatch.setenv("PATCHCLAMP_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("PATCHCLAMP_DEBUG", raising=False)


@pytest.fixture
def command(fakes, capsys):
    """Run a command line; gives exit code, standard output and standard error."""

    def run_line(*tokens: str) -> tuple[int, str, str]:
        code = execute(tokens)
        out, err = capsys.readouterr()
        return code, out, err

    return run_line
