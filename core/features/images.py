"""Image files: decoding, and the transform that a backbone was made for."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from core.files.kinds import what_it_is

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of torchvision's weights
# Pillow's other decoders are not needed, and one of them (EPS) starts a program
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
LARGE = 89_478_485  # pixels above which Pillow warns; it refuses twice as many, and so do we
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # telephones take 108 megapixels
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # editors write histories and profiles of some MB


@dataclass(frozen=True)
class Transform:
    """Resize the shorter side, crop the middle, normalise: pixels as a backbone was trained on them."""

    crop: int  # image side in pixels
    resize: int  # shorter side before the crop, in pixels, at least ``crop``
    interpolation: str = "bilinear"  # a value of torchvision's InterpolationMode
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def at(self, size: int) -> Transform:
        """The same transform for another image side; the share that is cropped stays."""
        resize = max(size, round(self.resize * size / self.crop))
        return Transform(size, resize, self.interpolation, self.mean, self.std)

    def __str__(self) -> str:
        return f"Resize({self.resize}, {self.interpolation}) CenterCrop({self.crop}) mean {self.mean} std {self.std}"


class Normaliser:
    """uint8 (B,H,W,3) to normalised (B,3,H,W), channels_last, on the device in the given type."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype,
        mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD,
    ) -> None:  # fmt: skip
        self.device, self.dtype = device, dtype
        self.scale = (1 / (255 * torch.tensor(std))).to(device)  # (3,)
        self.shift = (-torch.tensor(mean) / torch.tensor(std)).to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        width = pixels.shape[2]
        x = pixels.to(self.device, non_blocking=True).flatten(2).float()  # (B,H,3W)
        # by rows of pixels: three numbers are too few for a processor's vectors, and took nearly twice as long
        x = x.mul_(self.scale.repeat(width)).add_(self.shift.repeat(width)).to(self.dtype)
        return x.unflatten(2, (width, 3)).permute(0, 3, 1, 2)  # channels_last by its strides


def open_image(path: Path, shorter: int) -> Image.Image:
    """Decode a file as RGB; of an animation the first frame. Every reader of photographs decodes them here.

    Neither EXIF orientation nor transparency is applied: torchvision's loader and DAZLE apply none, so published
    features have none. Of grey images 16 bits become 8, and floats up to 1 are stretched to 255. A JPEG of very many
    pixels is shrunk while it is decoded, to no less than twice ``shorter`` pixels.

    Raises:
        ValueError: the file cannot be read as an image; says why.
    """
    try:
        path.stat()  # says what is wrong: nothing there, a loop of links, no permission
        if not path.is_file():  # opening a pipe would wait for ever
            raise ValueError("not a file")
        # from memory: decoders ask a file for as many bytes as it claims to have
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
            if image.width * image.height > LARGE:
                image.draft("RGB", (2 * shorter, 2 * shorter))
            image.load()
            if image.mode.startswith("I") or image.mode == "F":
                grey = np.nan_to_num(np.array(image, dtype=np.float32))
                brightest = grey.max()
                if image.mode == "F":
                    grey *= 255 if brightest <= 1 else 1
                elif image.mode != "I" or brightest > 255:
                    grey /= 257  # 65535 -> 255
                return Image.fromarray(np.clip(np.rint(grey, out=grey), 0, 255).astype(np.uint8)).convert("RGB")
            indexed = image.mode == "P" and isinstance(image.info.get("transparency"), bytes)
            return (image.convert("RGBA") if indexed else image).convert("RGB")
    except UnidentifiedImageError as error:  # its text is the address of an object
        what = what_it_is(path) or "no image, or a damaged one"
        raise ValueError(f"it is {what}; what is read: {', '.join(FORMATS)}") from error
    except Exception as error:  # damaged images raise nearly anything
        known = str(error) if type(error) is ValueError else getattr(error, "strerror", None)
        raise ValueError(known or f"{type(error).__name__}: {error}") from error


def load_image(path: Path, size: int, resize: int | None = None, interpolation: str = "bilinear") -> np.ndarray:
    """Decode, Resize, CenterCrop(size): uint8 (size,size,3).

    Args:
        resize: shorter side before the crop in pixels; None: ``size``, so that the whole shorter side is kept.
    """
    # brings torch._dynamo with it: seconds, which a run on a feature file need not wait for
    from torchvision.transforms import InterpolationMode, functional

    shorter = resize or size
    rgb = open_image(path, shorter)
    longer = shorter * max(rgb.size) // min(rgb.size)
    if longer * shorter > LARGE:
        raise ValueError(f"too narrow: resized it would be {shorter}x{longer} pixels")
    resized = functional.resize(rgb, [shorter], InterpolationMode(interpolation))
    return np.asarray(functional.center_crop(resized, [size, size]))
