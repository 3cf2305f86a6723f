"""Labelled pictures from a folder or a file of rows, and what is wrong with them."""

import csv
import hashlib

import pytest
from PIL import Image

from patchclamp.errors import FileError
from patchclamp.tasks import read_images
from patchclamp.tasks.files import hash_of_folder, noting_files
from patchclamp.tasks.images import open_image


@pytest.fixture
def folder(tmp_path):
    for place in ("cat/photo/1.png", "cat/text/2.jpg", "dog/photo/3.webp"):
        path = tmp_path / "animals" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(path)
    return tmp_path / "animals"


def as_rows(folder, names, path):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "concept", "form"])
        writer.writerows([[name, *name.split("/")[-3:-1]] for name in names])
    return path


def test_a_folder_and_a_file_of_rows_say_the_same(folder):
    rows = read_images(folder)
    assert [(row.concept, row.form) for row in rows] == [("cat", "photo"), ("cat", "text"), ("dog", "photo")]
    file = as_rows(folder, ["cat/photo/1.png", "cat/text/2.jpg", "dog/photo/3.webp"], folder / "rows.csv")
    assert read_images(file) == rows


def test_files_that_are_no_pictures_and_hidden_ones_are_passed_over(folder):
    (folder / "cat" / "photo" / "notes.txt").write_text("mine")
    (folder / "cat" / "photo" / "._1.png").write_text("left by another system")
    (folder / ".thumbnails").mkdir()
    Image.new("RGB", (4, 4)).save(folder / ".thumbnails" / "1.png")
    assert len(read_images(folder)) == 3


def test_what_was_read_is_noted(folder):
    with noting_files() as files:
        read_images(folder)
    assert files == {folder}
    file = as_rows(folder, ["cat/photo/1.png"], folder / "rows.csv")
    with noting_files() as files:
        read_images(file)
    assert files == {file, folder / "cat/photo/1.png"}


def test_a_folders_hash_is_that_of_its_files_sums_and_names(folder):
    paths = ["cat/photo/1.png", "cat/text/2.jpg", "dog/photo/3.webp"]
    lines = "".join(f"{hashlib.sha256((folder / path).read_bytes()).hexdigest()}  {path}\n" for path in paths)
    assert hash_of_folder(folder) == hashlib.sha256(lines.encode()).hexdigest()
    (folder / "cat/photo/1.png").rename(folder / "cat/photo/0.png")
    assert hash_of_folder(folder) != hashlib.sha256(lines.encode()).hexdigest()


def test_a_picture_at_another_depth(folder):
    (folder / "cat" / "photo" / "1.png").rename(folder / "cat" / "1.png")
    with pytest.raises(FileError, match=r"cat/1\.png does not lie in .*<concept>/<form>"):
        read_images(folder)


def test_an_empty_folder(tmp_path):
    with pytest.raises(FileError, match="holds no picture"):
        read_images(tmp_path)


def test_rows_that_name_no_file_or_one_twice_or_lack_a_field(folder):
    with pytest.raises(FileError, match=r"no image cat/photo/9\.png"):
        read_images(as_rows(folder, ["cat/photo/9.png"], folder / "rows.csv"))
    with pytest.raises(FileError, match="named twice"):
        read_images(as_rows(folder, ["cat/photo/1.png", "dog/../cat/photo/1.png"], folder / "rows.csv"))
    (folder / "rows.jsonl").write_text('{"image": "cat/photo/1.png", "concept": "cat"}\n')
    with pytest.raises(FileError, match=r"line 1: field 'form' is missing"):
        read_images(folder / "rows.jsonl")


def test_transparent_parts_are_white_and_modes_become_rgb(tmp_path):
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    clear.save(tmp_path / "clear.png")
    Image.new("L", (1, 1), 77).save(tmp_path / "grey.png")
    image = open_image(tmp_path / "clear.png")
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]
    assert open_image(tmp_path / "grey.png").getpixel((0, 0)) == (77, 77, 77)


def test_a_picture_is_turned_as_the_camera_noted(tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (2, 4)


@pytest.mark.parametrize("keep", [0, 8, 60])
def test_a_picture_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "cut.png"
    Image.effect_noise((32, 32), 50).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileError, match=r"cut\.png cannot be read as a picture"):
        open_image(path)
