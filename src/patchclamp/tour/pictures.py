"""Pictures of ten things in three forms each, drawn with Pillow: the digits as lit objects, as outlines, as words.

A folder of them is `FOLDER/<concept>/<form>/NN.png`. Nothing is shared between a digit's object and its word but what
they mean, which is what a unit for the concept has to have learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

CONCEPTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FORMS = ("photo", "drawing", "text")
SIDE = 48
"""Height and width of a picture, pixels."""
CANVAS = 2 * SIDE
"""Drawn at twice the size and made smaller, which softens the edges."""


class Picture(NamedTuple):
    """One picture, what it shows, and how."""

    image: Image
    concept: str
    form: str


def pictures(each: int, seed: int) -> list[Picture]:
    """`each` pictures of every concept in every form, concept by concept; the same for the same seed."""
    generator = np.random.default_rng(seed)
    return [Picture(draw(number, form, generator), concept, form)
            for number, concept in enumerate(CONCEPTS) for form in FORMS for _ in range(each)]


def save_pictures(some: list[Picture], folder: Path) -> None:
    """Write pictures as `folder/<concept>/<form>/NN.png`."""
    for number, one in enumerate(some):
        place = folder / one.concept / one.form
        place.mkdir(parents=True, exist_ok=True)
        one.image.save(place / f"{number:04}.png")


def draw(number: int, form: str, generator: np.random.Generator) -> Image:
    """One picture [SIDE, SIDE] of the digit `number`: a lit object, an outline, or its name in letters."""
    from PIL import Image

    if form == "text":
        canvas = _word(CONCEPTS[number], generator)
    elif form == "drawing":
        canvas = _outline(str(number), generator)
    else:
        canvas = _object(str(number), generator)
    noise = generator.normal(0, generator.uniform(2, 10), canvas.shape)
    pixels = np.clip(canvas + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)


class Place(NamedTuple):
    """Where letters stand on the canvas and how far they are turned, degrees."""

    middle: tuple[float, float]
    angle: float


def _place(generator: np.random.Generator, turn: float) -> Place:
    """Near the middle, turned by up to `turn` degrees."""
    x, y = CANVAS / 2 + generator.uniform(-0.07, 0.07, 2) * CANVAS
    return Place((float(x), float(y)), float(generator.uniform(-turn, turn)))


def _mask(text: str, size: float, place: Place, stroke: int = 0) -> np.ndarray:
    """Where letters of this size are: [CANVAS, CANVAS], 0 to 1. `stroke` is how much thicker they are, pixels."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("L", (CANVAS, CANVAS))
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text(place.middle, text, fill=255, font=font, anchor="mm", stroke_width=stroke)
    return np.asarray(image.rotate(place.angle, Image.Resampling.BILINEAR), dtype=float) / 255


def _blurred(values: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of [CANVAS, CANVAS], 0 to 1."""
    from PIL import Image, ImageFilter

    image = Image.fromarray((values * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, dtype=float) / 255


def _texture(generator: np.random.Generator) -> np.ndarray:
    """Coarse and fine spots, [CANVAS, CANVAS], 0 to 1."""
    from PIL import Image

    total = np.zeros((CANVAS, CANVAS))
    for cells in (3, 8, 24):
        spots = Image.fromarray(generator.integers(0, 256, (cells, cells)).astype(np.uint8))
        total += np.asarray(spots.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC), dtype=float) / 255 / 3
    return total


def _object(text: str, generator: np.random.Generator) -> np.ndarray:
    """A coloured body lit from one side, with its shadow on a spotted ground: [CANVAS, CANVAS, 3], 0 to 255."""
    height = _blurred(_mask(text, generator.uniform(66, 88), _place(generator, 14), stroke=2), 2)
    body = np.clip((height - 0.35) * 5, 0, 1)[..., None]
    angle = generator.uniform(0, 2 * np.pi)
    slope_y, slope_x = np.gradient(height)
    light = np.clip(0.75 + 2.4 * (slope_x * np.cos(angle) + slope_y * np.sin(angle)), 0.15, 1.3)[..., None]
    shift = tuple(round(5 * part) for part in (np.sin(angle), np.cos(angle)))
    shadow = 1 - 0.5 * _blurred(np.roll(height, shift, axis=(0, 1)), 3)[..., None]
    ground = generator.uniform(60, 200, 3) + (_texture(generator)[..., None] - 0.5) * generator.uniform(40, 110, 3)
    paint = generator.uniform(40, 255, 3)
    if abs(paint.mean() - ground.mean()) < 45:
        paint = paint + 90 * (1 if ground.mean() < 128 else -1)
    return body * paint * light + (1 - body) * ground * shadow


def _outline(text: str, generator: np.random.Generator) -> np.ndarray:
    """A dark pen's line around the digit on light paper: [CANVAS, CANVAS, 3], 0 to 255."""
    size, pen, place = generator.uniform(62, 84), int(generator.integers(2, 5)), _place(generator, 14)
    outer, inner = _mask(text, size, place, pen), _mask(text, size, place)
    line = np.clip(outer - inner, 0, 1)[..., None]
    paper, ink = generator.uniform(215, 250, 3), generator.uniform(0, 80, 3)
    return line * ink + (1 - line) * paper


def _word(word: str, generator: np.random.Generator) -> np.ndarray:
    """The word in one of three cases, in two colours: [CANVAS, CANVAS, 3], 0 to 255."""
    text = (word, word.title(), word.upper())[generator.integers(3)]
    size, thicker, place = generator.uniform(23, 28), int(generator.integers(0, 2)), _place(generator, 8)
    mask = _mask(text, size, place, thicker)[..., None]
    light, dark = generator.uniform(190, 255, 3), generator.uniform(0, 90, 3)
    ground, ink = (light, dark) if generator.random() < 0.5 else (dark, light)
    return mask * ink + (1 - mask) * ground
