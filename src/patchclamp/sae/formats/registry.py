"""The formats by name: how each is told, read and written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from patchclamp.errors import FileError
from patchclamp.forward.autoencoder import FILE, Autoencoder
from patchclamp.sae.formats import dictionary_learning, gemmascope, saelens, sparsify
from patchclamp.sae.formats.parts import Parts
from patchclamp.tasks.files import note

FormatName = Literal["patchclamp", "saelens", "sparsify", "dictionary_learning", "gemmascope", "gemmascope2"]


@dataclass(frozen=True)
class Format:
    """A project's files."""

    weights: str
    """The file that tells the format and holds the tensors."""
    read: Callable[[Path], Parts]
    write: Callable[[Autoencoder, Path], str]
    """Into a folder; returns what the format calls it."""


def _read_own(source: Path) -> Parts:
    own = Autoencoder.load(source)
    note(source / FILE if source.is_dir() else source)
    info = own.info
    return Parts(kind=info.architecture, architecture=info.architecture, tensors=own.tensors, k=info.k, site=info.site,
                 output_site=info.output_site, is_transcoder=info.output_site is not None, model=info.model, told=info)


def _write_own(autoencoder: Autoencoder, folder: Path) -> str:
    autoencoder.save(folder)
    return autoencoder.info.architecture


FORMATS: dict[FormatName, Format] = {
    "patchclamp": Format(FILE, _read_own, _write_own),
    "saelens": Format(saelens.WEIGHTS, saelens.read, saelens.write),
    "sparsify": Format(sparsify.WEIGHTS, sparsify.read, sparsify.write),
    "dictionary_learning": Format(dictionary_learning.WEIGHTS, dictionary_learning.read, dictionary_learning.write),
    "gemmascope": Format(gemmascope.ARRAYS, gemmascope.read, gemmascope.write),
    "gemmascope2": Format(gemmascope.WEIGHTS, gemmascope.read_2, gemmascope.write_2),
}


def detect(source: Path) -> FormatName:
    """The format of a folder, or of the one that a file of it is in. Raises FileError for none or several."""
    if not source.exists():
        raise FileError(f"{source} does not exist; give an autoencoder's folder")
    found = holds(source) if source.is_dir() else [name for name, one in FORMATS.items() if one.weights == source.name]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{one.weights} ({name})" for name, one in FORMATS.items())
    if found:
        raise FileError(f"{source} holds autoencoders in several formats, {', '.join(found)}; say which with --from")
    raise FileError(f"{source} holds no autoencoder of a known format, which would be {known}")


def holds(folder: Path) -> list[FormatName]:
    """The formats whose tensors lie in a folder."""
    return [name for name, one in FORMATS.items() if (folder / one.weights).is_file()]
