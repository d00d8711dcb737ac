"""Image files: decoding, the transform that a backbone was made for, and a look at every one of a folder."""

import contextlib
import hashlib
import io
import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from core.datasets.own import Photograph, find_images
from core.files.atomic import read_json, write_bytes
from core.files.errors import UserError, library
from core.files.kinds import is_heic, what_it_is
from core.files.progress import Progress
from core.files.tars import read_photograph

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of torchvision's weights
# Pillow's other decoders are not needed, and one of them (EPS) starts a program
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")
LARGE = 89_478_485  # pixels above which Pillow warns; it refuses twice as many, and so do we
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # telephones take 108 megapixels
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # editors write histories and profiles of some MB
Picture = Path | str | bytes | BinaryIO | Image.Image | np.ndarray  # a path, a file or its bytes, or (H,W,3) uint8


@dataclass(frozen=True)
class Transform:
    """Resize the shorter side, crop the middle, normalise: pixels as a backbone was trained on them."""

    crop: int  # image side in pixels
    resize: int  # shorter side before the crop, in pixels, at least ``crop``
    interpolation: str = "bilinear"  # a value of torchvision's InterpolationMode
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def at(self, size: int) -> "Transform":
        """The same transform for another image side; the share that is cropped stays."""
        resize = max(size, round(self.resize * size / self.crop))
        return Transform(size, resize, self.interpolation, self.mean, self.std)

    def __str__(self) -> str:
        return f"Resize({self.resize}, {self.interpolation}) CenterCrop({self.crop}) mean {self.mean} std {self.std}"


class Normaliser:
    """uint8 (B,H,W,3) to normalised (B,3,H,W), channels_last, on the device in the given type."""

    def __init__(self, device: torch.device, dtype: torch.dtype, how: Transform) -> None:
        self.device, self.dtype, std = device, dtype, torch.tensor(how.std)
        self.scale = (1 / (255 * std)).to(device)  # (3,)
        self.shift = (-torch.tensor(how.mean) / std).to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        width = pixels.shape[2]
        x = pixels.to(self.device, non_blocking=True).flatten(2).float()  # (B,H,3W)
        # by rows of pixels: three numbers are too few for a processor's vectors, and took nearly twice as long
        x = x.mul_(self.scale.repeat(width)).add_(self.shift.repeat(width)).to(self.dtype)
        return x.unflatten(2, (width, 3)).permute(0, 3, 1, 2)  # channels_last by its strides


def open_image(source: Picture, shorter: int, quick: bool = False) -> Image.Image:
    """Decode a picture as RGB, as a viewer shows it. Every reader of photographs decodes them here.

    Its EXIF orientation is applied, transparency lies on white, CMYK and palettes become RGB, and of several frames the
    first counts. Grey levels of 16 bits are scaled by 65535, never by the picture's own brightest pixel, so that all
    pictures of a folder are scaled alike. ICC profiles are ignored. A JPEG of very many pixels (``quick``: each) is
    shrunk while it is decoded, to no less than twice ``shorter`` pixels.

    Raises:
        ValueError: it cannot be read as a picture; says why.
        UserError: it is HEIC, and the library for that is not installed.
    """
    content = b""
    try:
        if isinstance(source, np.ndarray):
            return _as_shown(Image.fromarray(np.ascontiguousarray(source)))
        if isinstance(source, Image.Image):
            return _as_shown(source)
        # all bytes of a file: decoders ask it for as many as it claims to have
        file = read_photograph(Path(source)) if isinstance(source, str | Path) else source
        content, formats = file if isinstance(file, bytes) else file.read(), FORMATS
        if is_heic(content):
            with library("a photograph in HEIC", "pillow-heif"):
                from pillow_heif import register_heif_opener
            register_heif_opener()
            formats = ("HEIF",)
        with Image.open(io.BytesIO(content), formats=formats) as image:
            if quick or image.width * image.height > LARGE:
                image.draft("RGB", (2 * shorter, 2 * shorter))
            return _as_shown(image)
    except UnidentifiedImageError as error:  # its text is the address of an object
        what = what_it_is(content) or "no image, or a damaged one"
        raise ValueError(f"it is {what}; what is read: {', '.join(FORMATS)}, HEIC") from error
    except (ValueError, UserError):
        raise
    except Exception as error:  # damaged images raise nearly anything
        raise ValueError(getattr(error, "strerror", None) or f"{type(error).__name__}: {error}") from error


def _as_shown(image: Image.Image) -> Image.Image:
    """RGB of what Pillow opened: turned upright, grey levels scaled, transparency on white."""
    image.load()
    if 0 in image.size:
        raise ValueError("it has no pixels")
    kind = image.format
    with contextlib.suppress(Exception):  # damaged EXIF turns nothing: the pixels are whole
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        # "I" is Pillow's mode for 16 bits too
        if not image.mode.startswith("I;16") and not (image.mode == "I" and kind in ("PNG", "PPM")):
            raise ValueError("its grey levels do not tell which is white: save it with 8 or 16 bits")
        grey = np.array(image, dtype=np.float32) * (255 / 65535)
        return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(rgba, mask=rgba)
        return rgb
    return image.convert("RGB")


def load_image(source: Picture, size: int, resize: int | None = None, interpolation: str = "bilinear") -> np.ndarray:
    """Decode, Resize, CenterCrop(size): uint8 (size,size,3).

    ``resize`` is the shorter side before the crop in pixels; None: ``size``, so that the whole shorter side is kept.
    """
    # brings torch._dynamo with it: seconds, which a run on a feature file need not wait for
    from torchvision.transforms import InterpolationMode, functional

    shorter = resize or size
    resized = functional.resize(open_image(source, shorter), [shorter], InterpolationMode(interpolation))
    return np.asarray(functional.center_crop(resized, [size, size]))


def look_at(root: Path, features: Path) -> dict[str, Photograph]:
    """Digest of every photograph of a folder of one's own, and why it cannot be read; kept beside ``features``, in
    photographs_OWN.json, until the file's size or time changes.
    """
    images, _ = find_images(root)
    files = [file for of_class in images.values() for file in of_class]
    cache, known = features.with_name("photographs_OWN.json"), {}
    with contextlib.suppress(UserError):  # none yet, or a damaged one
        known = {file: tuple(found) for file, found in read_json(cache).items()}
    stamps = {file: _stamp(root / "images" / file) for file in files}
    new = [file for file in files if known.get(file, ())[:2] != stamps[file]]

    def look(file: str) -> Photograph:
        try:
            digest = hashlib.sha256(content := (root / "images" / file).read_bytes()).hexdigest()
            open_image(content, 32, quick=True)  # shrunk, but all of it is read
        except OSError as error:
            return Photograph(file, error.strerror or "it cannot be read")
        except ValueError as error:
            return Photograph(digest, str(error))
        return Photograph(digest)

    if new:
        with ThreadPoolExecutor(os.cpu_count()) as pool, Progress(len(new), "photographs", "image") as bar:
            for file, found in zip(new, pool.map(look, new), strict=True):
                known[file] = (*stamps[file], found.sha256, found.error)
                bar.update(1)
    if new or len(known) > len(files):
        kept = {file: known[file] for file in files if known[file][2] != file}  # a refusal of the system's may pass
        with contextlib.suppress(UserError):  # a folder that may only be read: they are looked at again
            write_bytes(cache, json.dumps(kept, ensure_ascii=False, indent=0).encode())
    return {file: Photograph(*known[file][2:4]) for file in files}  # versions of before kept a fifth


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written; zeros where a link leads nowhere."""
    with contextlib.suppress(OSError):
        return path.stat().st_size, path.stat().st_mtime_ns
    return 0, 0
