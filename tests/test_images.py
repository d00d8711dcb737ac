"""Pictures are opened as a viewer shows them, whatever they are and wherever they come from."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.features.images import load_image, open_image
from core.files.kinds import IMAGE_SUFFIXES

NOISE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
SMOOTH = Image.fromarray(NOISE).resize((80, 60))  # survives JPEG; no side like another
HOW_IT_LIES = {  # EXIF orientation -> how the pixels of an upright picture lie in the file
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def encoded(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def levels(source: bytes | Image.Image) -> np.ndarray:
    """The grey levels (H,W) of a picture in which red, green and blue are alike."""
    rgb = np.asarray(open_image(source, 32))
    assert (rgb == rgb[:, :, :1]).all()
    return rgb[:, :, 0]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", HOW_IT_LIES)
def test_a_photograph_is_turned_as_its_exif_says(form: str, orientation: int) -> None:
    how = HOW_IT_LIES[orientation]
    lies = SMOOTH if how is None else SMOOTH.transpose(how)
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "JPEG" else {}
    content = encoded(lies, form, exif=exif(orientation), **options)
    got = open_image(content, 32)
    assert got.size == SMOOTH.size
    assert np.abs(np.asarray(got, float) - np.asarray(SMOOTH, float)).max() < (20 if form == "JPEG" else 1)
    with Image.open(io.BytesIO(content)) as image:  # the same for one who has opened it already
        np.testing.assert_array_equal(np.asarray(open_image(image, 32)), np.asarray(got))
    chosen: list[str] = []
    load_image(encoded(SMOOTH, "JPEG", exif=exif(orientation)), 32, chosen=chosen)
    assert chosen == ["turned by EXIF"] * (orientation != 1)


def test_damaged_exif_stops_no_photograph() -> None:
    content = encoded(SMOOTH, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x07" + b"\xff" * 20)
    assert open_image(content, 32).size == SMOOTH.size
    assert open_image(encoded(SMOOTH, "JPEG", exif=exif(99)), 32).size == SMOOTH.size
    broken = SMOOTH.copy()
    broken.info["exif"] = "none"
    assert open_image(broken, 32).size == SMOOTH.size


def test_grey_levels_are_scaled_by_their_type_and_never_by_the_picture() -> None:
    """A dim picture stays dim, so that a folder has one scale."""
    ramp = np.arange(0, 128, dtype=np.uint8).reshape(8, 16)  # up to half of white
    wide = ramp.astype(np.uint16) * 257
    for form in ("PNG", "TIFF"):
        np.testing.assert_array_equal(levels(encoded(Image.fromarray(wide), form)), ramp)
        assert levels(encoded(Image.fromarray(wide // 128), form)).max() <= 1  # 8 bits in 16 that nothing declares
    np.testing.assert_array_equal(levels(Image.fromarray(wide)), ramp)
    np.testing.assert_array_equal(levels(b"P5 16 8 65535\n" + wide.astype(">u2").tobytes()), ramp)
    twelve = np.rint(ramp * (4095 / 255)).astype(np.uint16)
    np.testing.assert_array_equal(levels(b"P5 16 8 4095\n" + twelve.astype(">u2").tobytes()), ramp)


@pytest.mark.parametrize("values", [np.linspace(0, 1, 128, dtype=np.float32), np.arange(128, dtype=np.int32)])
def test_grey_levels_without_a_white_are_refused(values: np.ndarray) -> None:
    image = Image.fromarray(values.reshape(8, 16))
    for source in (image, encoded(image, "TIFF")):
        with pytest.raises(ValueError, match="do not tell which is white: save it with 8 or 16 bits"):
            open_image(source, 32)


def test_transparency_lies_on_white() -> None:
    rgba = np.dstack([np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 255, np.uint8)])
    rgba[:2, :, 3] = 0  # the upper half is transparent black
    rgba[2, :, 3] = 128
    drawn = Image.fromarray(rgba)
    indexed = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    indexed.putpalette([0, 0, 0, 10, 10, 10])
    for source in (drawn, encoded(drawn, "PNG"), encoded(drawn.convert("LA"), "PNG")):
        assert levels(source)[:, 0].tolist() == [255, 255, 127, 0]
    for form in ("PNG", "GIF"):
        assert levels(encoded(indexed, form, transparency=0)).tolist() == [[255, 10]]
    chosen: list[str] = []
    load_image(drawn, 32, chosen=chosen)
    load_image(Image.fromarray(np.full((8, 8), 900, np.uint16)), 32, chosen=chosen)
    load_image(SMOOTH, 32, chosen=chosen)
    assert Counter(chosen) == {"transparency on white": 1, "white is 65535, and it is nearly black": 1}


def test_pictures_in_memory_are_those_of_files(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    SMOOTH.save(path)
    expected = load_image(path, 32)
    array = np.asarray(SMOOTH)
    with open(path, "rb") as handle:
        for source in (str(path), path.read_bytes(), handle, SMOOTH, array, array[:, ::-1][:, ::-1]):
            np.testing.assert_array_equal(load_image(source, 32), expected)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (NOISE.transpose(2, 0, 1), r"Cannot handle this data type: \(1, 1, 8\)"),
        (NOISE / 255, r"Cannot handle this data type: \(1, 1, 3\), <f8"),
        (NOISE[:0], "no pixels|no image"),
        (io.StringIO("text"), "bytes-like object is required"),
        (b"", "empty"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(99), "it is no image"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_reason(source, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        load_image(source, 32)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def test_heic_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert {".heic", ".heif", ".avif"} <= {*IMAGE_SUFFIXES}  # so a folder of them is refused, and not passed over
    with pytest.raises(ValueError, match="pip install pillow-heif"):
        open_image(HEIC, 32)


def test_heic_is_read_upright() -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    content = encoded(SMOOTH, "HEIF", quality=95, exif=exif(6))  # the tag counts for nothing in HEIC, which has its own
    got = open_image(content, 32)
    assert got.size == SMOOTH.size and np.abs(np.asarray(got, float) - np.asarray(SMOOTH, float)).mean() < 8
    with pytest.raises(ValueError, match="it is HEIC, and damaged"):
        open_image(HEIC, 32)


def test_avif_is_read() -> None:
    got = open_image(encoded(SMOOTH, "AVIF", quality=95), 32)
    assert np.abs(np.asarray(got, float) - np.asarray(SMOOTH, float)).mean() < 8
