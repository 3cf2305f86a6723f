"""The flat public list, and what importing it costs."""

import subprocess
import sys

import patchclamp as pc


def test_the_list_is_sorted_and_every_name_is_there():
    assert pc.__all__ == sorted(pc.__all__)
    assert set(pc.__all__) == set(pc._HOME)
    for name in pc.__all__:
        assert getattr(pc, name) is not None


def test_an_unknown_name_is_an_attribute_error_with_the_list():
    try:
        pc.zero  # noqa: B018
    except AttributeError as error:
        assert "Edit" in str(error)
    else:
        raise AssertionError("pc.zero should not exist")


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, patchclamp; sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'altair', 'datasets')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_loading_a_models_machinery_imports_no_charts_or_tables():
    code = ("import sys, patchclamp; patchclamp.load; patchclamp.Edit; patchclamp.logit_lens; patchclamp.ablate;"
            "sys.exit(any(m in sys.modules for m in ('pandas', 'altair', 'datasets', 'scipy', 'pyarrow')))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
