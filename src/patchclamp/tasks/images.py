"""Labelled pictures: a folder `FOLDER/<concept>/<form>/`, or a file of rows that name them, and opening one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from patchclamp.errors import FileError
from patchclamp.tasks.files import locate, note
from patchclamp.tasks.read import read_rows
from patchclamp.tasks.rows import ImageRow

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def read_images(source: str | Path) -> list[ImageRow]:
    """The pictures of `FOLDER/<concept>/<form>/`, sorted, or of a file of rows (image, concept, form); `image` is
    absolute in what is returned, and relative to the file in it.

    Raises FileError: no such place, no picture there, one that lies at another depth, a wrong row, or a picture that is
    named twice.
    """
    found = locate(source)
    if found.is_dir():
        note(found)
        return [_row_of(path, found) for path in image_files(found)]
    rows = []
    for row in read_rows(found, ImageRow):
        beside = found.absolute().parent
        path = (beside / Path(row.image).expanduser()).resolve()
        note(path)
        if not path.is_file():
            raise FileError(f"{found}: there is no image {row.image}; names are relative to {beside}")
        rows.append(row.model_copy(update={"image": str(path)}))
    names = [row.image for row in rows]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise FileError(f"{found}: the image {twice} is named twice; one picture counts once")
    return rows


def image_files(folder: Path) -> list[Path]:
    """All pictures in a folder and below, by their suffix, sorted. Raises FileError if there is none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
                   and path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if not files:
        raise FileError(f"{folder} holds no picture ({', '.join(IMAGE_SUFFIXES)}); it should hold "
                        "<concept>/<form>/<picture>, e.g. three/photo/1.png")
    return files


def _row_of(path: Path, folder: Path) -> ImageRow:
    parts = path.relative_to(folder).parts
    if len(parts) != 3:
        raise FileError(f"{path} does not lie in {folder}/<concept>/<form>/, e.g. three/photo/1.png; move it, or name "
                        "the pictures in a .csv or .jsonl file with the columns image, concept, form")
    return ImageRow(image=str(path.absolute()), concept=parts[0], form=parts[1])


def open_image(path: str | Path) -> Image:
    """A picture in RGB, upright as its camera noted, transparent parts on white; FileError if it cannot be read."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                ground = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(ground, image)
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise of many kinds: OSError, SyntaxError, ValueError, EOFError
        raise FileError(f"{path} cannot be read as a picture ({' '.join(str(error).split())[:120]}); "
                        "replace it or take it out") from error
