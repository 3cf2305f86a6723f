from patchclamp.cli.catalog import summaries
from patchclamp.evidence import method


def test_reading_the_source_finds_what_importing_finds(fakes):
    assert summaries() == {name: m.summary for name, m in method.methods().items()}


def test_a_module_that_cannot_be_read_is_left_out(fakes, monkeypatch, tmp_path):
    (tmp_path / "broken_methods.py").write_text("def")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(method, "BUILT_IN", ("broken_methods", "no_such_module", "fake_methods"))
    assert list(summaries()) == ["fail", "text.count"]
