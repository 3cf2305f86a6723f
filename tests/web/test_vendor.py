"""What others wrote is what they wrote."""

import hashlib
import re
from importlib.resources import files

VENDOR = files("patchclamp.web") / "static" / "vendor"


def test_vendored_files_are_unchanged_and_have_their_licences():
    row = r"^\| `([\w.-]+)` \| .*? \| .*?\(`([\w.-]+)`\) \| `(\w{64})` \|$"
    rows = re.findall(row, (VENDOR / "README.md").read_text(), re.M)
    assert {name for name, _, _ in rows} == {path.name for path in VENDOR.iterdir() if path.name.endswith(".js")}
    for name, licence, expected in rows:
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == expected
        assert "Redistribution and use" in (VENDOR / licence).read_text()
