"""Pictures are opened as a viewer shows them, and every bad one of a data set is named in one report."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image, PngImagePlugin

from core.datasets.registry import DEMO
from core.features.backbones import build_backbone
from core.features.extraction import decoded, extract
from core.features.feature_file import FeatureFile
from core.features.images import Normaliser, Transform, load_image, open_image
from core.files.errors import UserError
from core.files.kinds import IMAGE_SUFFIXES
from tests.helpers_features import TINY, make_data

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


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (NOISE.transpose(2, 0, 1), r"Cannot handle this data type: \(1, 1, 8\)"),
        (NOISE[:0], "no pixels|no image"),
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
    with pytest.raises(UserError, match="pip install pillow-heif"):
        open_image(HEIC, 32)
    drawn = encoded(SMOOTH, "PNG")
    ((_, pixels, bad),) = decoded([np.arange(3)], [drawn, HEIC, drawn], Transform(16, 16), False, 1)
    assert [*bad] == [1] and "pip install pillow-heif" in bad[1]  # the others are read
    assert pixels[[0, 2]].amax(dim=(1, 2, 3)).all() and not pixels[1].any()


def test_heic_is_read_upright() -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    content = encoded(SMOOTH, "HEIF", quality=95, exif=exif(6))  # the tag counts for nothing in HEIC, which has its own
    got = open_image(content, 32)
    assert got.size == SMOOTH.size and np.abs(np.asarray(got, float) - np.asarray(SMOOTH, float)).mean() < 8
    with pytest.raises(ValueError, match="no image, or a damaged one"):
        open_image(HEIC, 32)


def test_avif_is_read() -> None:
    got = open_image(encoded(SMOOTH, "AVIF", quality=95), 32)
    assert np.abs(np.asarray(got, float) - np.asarray(SMOOTH, float)).mean() < 8


SPECKLED = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
BAD = {
    "truncated.jpg": encoded(SPECKLED, "JPEG")[:1500],
    "html.jpg": b"<!DOCTYPE html><title>404</title>",
    "postscript.jpg": encoded(SPECKLED, "EPS"),  # a program, which Pillow would start another to run
    "bomb.png": encoded(Image.new("1", (20_000, 20_000)), "PNG"),
    "missing.jpg": None,
    "loop.jpg": None,
    "folder.jpg": None,
}
GOOD = {
    "palette.png": encoded(SPECKLED.convert("P"), "PNG"),
    "grey and alpha.png": encoded(SPECKLED.convert("LA"), "PNG"),
    "cmyk.jpg": encoded(SPECKLED.convert("CMYK"), "JPEG"),
    "1x1.png": encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"),
    "16 bit.png": encoded(Image.fromarray(np.full((40, 40), 32896, np.uint16)), "PNG"),
    "animated.gif": encoded(SPECKLED.convert("P"), "GIF", save_all=True, append_images=[Image.new("P", (80, 50))]),
    "turned.jpg": encoded(SPECKLED, "JPEG", exif=exif(6)),
    "Grünspecht, weiß (1).jpg": encoded(SPECKLED, "JPEG"),
    "日本語 🐦.png": encoded(SPECKLED, "PNG"),
}


def test_one_report_names_every_bad_image_and_good_rows_belong_to_their_image(tmp_path: Path) -> None:
    data, out = make_data(tmp_path / "data"), tmp_path / "f.hdf5"
    folder, mat = data / "DEMO" / "DEMO_creatures", data / "xlsa17" / "data" / "DEMO" / "res101.mat"
    names = [f"images/{name}" for name in [*GOOD, *BAD]]
    names += [f"images/{p.name}" for p in sorted((folder / "images").iterdir())[len(names) :]]
    files = np.array([[f"/x/DEMO_creatures/{name}"] for name in names], dtype=object)
    scipy.io.savemat(mat, {"labels": scipy.io.loadmat(mat)["labels"], "image_files": files})
    for name, content in (GOOD | BAD).items():
        if content is not None:
            (folder / "images" / name).write_bytes(content)
    (folder / "images/loop.jpg").symlink_to(folder / "images/loop.jpg")
    (folder / "images/folder.jpg").mkdir()
    with pytest.raises(UserError, match=f"{len(BAD)} of {len(names)} images") as caught:
        extract(DEMO, data_root=data, out=out, config=TINY)
    report = str(caught.value).splitlines()[1:-1]
    assert [line.split(": ")[0].rsplit("/", 1)[1] for line in report] == [*BAD] and not out.exists()
    assert "Too many levels of symbolic links" in report[-2] and "Is a directory" in report[-1]

    for name in BAD:
        path = folder / "images" / name
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(GOOD["palette.png"])
    assert extract(DEMO, data_root=data, out=out, config=TINY) == out and not list(tmp_path.glob("f.hdf5?*"))
    assert out.read_bytes() == extract(DEMO, data_root=data, out=tmp_path / "clean.hdf5", config=TINY).read_bytes()
    network = build_backbone(TINY.backbone, "random")
    normalise = Normaliser(torch.device("cpu"), torch.float32, network.transform)
    with FeatureFile(out) as file:
        assert file.metadata.image_files == names
        for row, name in enumerate(names):
            expected = network(normalise(torch.from_numpy(load_image(folder / name, 64)[None].copy())))[0].flatten(1)
            np.testing.assert_allclose(
                file.read(np.array([row]))[0], expected.numpy(), atol=0.02, rtol=0.01, err_msg=name
            )
    # of an animation the first frame, noise, is taken; the second is black
    assert load_image(folder / "images" / "animated.gif", 32).std() > 10


def test_photographs_that_every_program_opens_are_read(tmp_path: Path) -> None:
    """108 megapixels of a telephone, an uncompressed TIFF of a camera, an editor's history and profile in a PNG."""
    red, text = Image.new("RGB", (80, 60), (200, 40, 40)), PngImagePlugin.PngInfo()
    red.resize((12_000, 9_000)).save(tmp_path / "phone.jpg", quality=20)
    red.resize((6_000, 4_000)).save(tmp_path / "camera.tif")
    text.add_text("XML:com.adobe.xmp", "edited " * 300_000, zip=True)
    red.save(tmp_path / "history.png", pnginfo=text)
    red.save(tmp_path / "profile.png", icc_profile=bytes(2 << 20))
    red.save(tmp_path / "browser.jfif", "JPEG")
    for path in sorted(tmp_path.iterdir()):
        assert path.suffix in IMAGE_SUFFIXES
        pixels = load_image(path, 32)
        assert pixels.shape == (32, 32, 3) and np.abs(pixels - [200.0, 40, 40]).max() < 4, path.name
