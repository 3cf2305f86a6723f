"""The user's cache folder, and checksums that are computed once per file.

    CACHE/models/vN/NAME/   an embedded model as an ordinary Hugging Face folder, in layout N (embedded.LAYOUT)
    CACHE/hashes/KEY.json   the sha256 of a file, believed while its path, size and modification time stay

CACHE is `PATCHCLAMP_CACHE`, or the platform's cache folder (on Linux `~/.cache/patchclamp`). All of it may be
deleted at any time.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from patchclamp.errors import RunError

_SHA256 = re.compile(r"[0-9a-f]{64}")


def cache_dir() -> Path:
    """Where patchclamp keeps what it can fetch or compute again. The folder need not exist yet."""
    chosen = os.environ.get("PATCHCLAMP_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return platformdirs.user_cache_path("patchclamp", appauthor=False)


@dataclass(frozen=True)
class FileStamp:
    """A file as it was at one moment: enough to notice later that it was replaced."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileStamp":
        """The stamp of the file as it is now. Raises OSError if there is none."""
        status = path.stat()
        return cls(path, status.st_size, status.st_mtime_ns)

    def sha256(self) -> str:
        """The file's sha256, from the cache if it was computed before.

        Raises RunError if the file changed since the stamp was taken: the sum would be of other content.
        """
        if not self.path.is_file() or FileStamp.of(self.path) != self:
            raise RunError(f"{self.path} changed on disk after it was loaded; load the model again.")
        known = _known_hash(self)
        if known is None:
            known = sha256_of(self.path)
            remember_hash(self, known)
        return known


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, read in full."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remember_hash(stamp: FileStamp, sha256: str) -> None:
    """Keep a file's checksum for later. A cache that cannot be written costs time, nothing else."""
    entry = _hash_entry(stamp.path)
    facts = {"path": str(stamp.path), "size": stamp.size, "mtime_ns": stamp.mtime_ns, "sha256": sha256}
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(entry, json.dumps(facts))


def write_atomically(path: Path, text: str) -> None:
    """Write `text` beside `path`, then rename: a reader sees the old file or the new, never half of one."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _hash_entry(path: Path) -> Path:
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return cache_dir() / "hashes" / f"{key}.json"


def _known_hash(stamp: FileStamp) -> str | None:
    blob = stamp.path.resolve()
    if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
        return blob.name  # huggingface_hub names a large file in its cache by the file's own sha256
    try:
        entry = json.loads(_hash_entry(stamp.path).read_text(encoding="utf-8"))
        if (entry["size"], entry["mtime_ns"]) == (stamp.size, stamp.mtime_ns):
            return str(entry["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None
