"""Faults of images: every bad one is named in one report, and good rows belong to their image."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image, PngImagePlugin

from core.datasets.registry import DEMO
from core.features.backbones import build_backbone
from core.features.extraction import extract
from core.features.feature_file import FeatureFile
from core.features.images import Normaliser, load_image
from core.files.errors import UserError
from core.files.kinds import IMAGE_SUFFIXES
from tests.helpers_features import TINY, make_data

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))


def encoded(form: str, mode: str = "RGB", image: Image.Image = NOISE, **options) -> bytes:
    out = io.BytesIO()
    (image if image.mode == mode else image.convert(mode)).save(out, form, **options)
    return out.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6
BAD = {
    "truncated.jpg": encoded("JPEG")[:1500],
    "html.jpg": b"<!DOCTYPE html><title>404</title>",
    "postscript.jpg": encoded("EPS"),  # a program, which Pillow would start another to run
    "bomb.png": encoded("PNG", "1", Image.new("1", (20_000, 20_000))),
    "missing.jpg": None,
    "loop.jpg": None,
    "folder.jpg": None,
}
GOOD = {
    "palette.png": encoded("PNG", "P"),
    "grey and alpha.png": encoded("PNG", "LA"),
    "cmyk.jpg": encoded("JPEG", "CMYK"),
    "1x1.png": encoded("PNG", image=Image.new("RGB", (1, 1), (9, 8, 7))),
    "16 bit.png": encoded("PNG", "I;16", Image.fromarray(np.full((40, 40), 32896, np.uint16))),
    "animated.gif": encoded("GIF", "P", save_all=True, append_images=[Image.new("P", (80, 50))]),
    "turned.jpg": encoded("JPEG", exif=TURNED),
    "Grünspecht, weiß (1).jpg": encoded("JPEG"),
    "日本語 🐦.png": encoded("PNG"),
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
    with pytest.raises(UserError, match=f"{len(BAD)} of {len(names)} images"):
        extract(DEMO, data_root=data, out=out, config=TINY)
    (path,) = tmp_path.glob("f.hdf5*.bad_images.txt")
    report = path.read_text(encoding="utf-8").splitlines()
    assert [line.split(": ")[0].rsplit("/", 1)[1] for line in report] == [*BAD] and not out.exists()
    assert "Too many levels of symbolic links" in report[-2] and "Is a directory" in report[-1]

    for name in BAD:
        path = folder / "images" / name
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(GOOD["palette.png"])
    assert extract(DEMO, data_root=data, out=out, config=TINY) == out and not list(tmp_path.glob("f.hdf5?*"))
    network, normalise = build_backbone(TINY.backbone, "random"), Normaliser(torch.device("cpu"), torch.float32)
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
