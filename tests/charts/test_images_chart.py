"""The chart of a vision model's unit: it shows what the result says, and pictures only while they are the same."""

import pytest
from PIL import Image
from seeing import fill
from torch import nn

import patchclamp as pc
from patchclamp.charts.images import THUMBNAIL, thumbnail


@pytest.fixture
def record(tmp_path):
    folder = fill(tmp_path / "animals", forms=("photo", "drawing", "text"), each=6, side=70)
    return pc.image_units(pc.VisionModel(nn.Sequential(nn.Conv2d(3, 6, 5)), size=16), images=str(folder), concept="cat",
                          related=["owl"], top=14)


def test_it_renders_and_names_every_concept_and_the_unit(record, tmp_path):
    svg = record.save(tmp_path / "chart.svg").read_text()
    for said in ("cat", "dog", "owl", "photo", "drawing", "text", "related", record.result.unit):
        assert said in svg
    assert svg.count("data:image/png;base64,") == 14
    assert record.save(tmp_path / "chart.png").stat().st_size > 10_000
    assert "data:image/png;base64," in record.save(tmp_path / "chart.html").read_text()


def test_the_concept_stands_first_then_the_related_then_rivals(record):
    spec = record.chart().to_dict()
    order = spec["vconcat"][0]["hconcat"][0]["layer"][1]["encoding"]["y"]["sort"]
    assert order == ["cat", "owl (related)", "dog"]


def test_a_small_picture_is_of_the_file(record):
    import base64
    import io

    one = record.result.top[0]
    data = thumbnail(one).removeprefix("data:image/png;base64,")
    small = Image.open(io.BytesIO(base64.b64decode(data)))
    assert small.size == (70, 70) and max(small.size) <= 2 * THUMBNAIL
    assert small.tobytes() == Image.open(one.image).tobytes()


def test_a_changed_or_missing_picture_is_named_and_not_shown(record, tmp_path):
    first, second = record.result.top[:2]
    Image.new("RGB", (9, 9)).save(first.image)
    (tmp_path / "animals" / second.concept / second.form / second.image.rsplit("/", 1)[-1]).unlink()
    assert thumbnail(first) == thumbnail(second) == ""
    svg = record.save(tmp_path / "chart.svg").read_text()
    assert svg.count("data:image/png;base64,") == 12
    assert first.image.rsplit("/", 1)[-1] in svg


def test_no_picture_above_a_threshold(record, tmp_path):
    empty = record.result.model_copy(update={"thresholds": [
        t.model_copy(update={"concept": 0, "related": 0, "rival": 0}) for t in record.result.thresholds]})
    assert record.model_copy(update={"result": empty}).save(tmp_path / "chart.svg").read_text().startswith("<svg")
