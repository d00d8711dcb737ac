"""Extraction: every image of a data set through a frozen backbone into its feature file.

Decoding runs in threads, a bounded number of batches ahead of the forward pass, so memory does not grow with the data
set. Batches are always the same consecutive rows, and one that was not finished is redone whole: a run that was killed
and started again ends with the same bytes as one that was not.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional
from tqdm import tqdm

from core.datasets.registry import DATASETS, DataSet, image_folder
from core.datasets.vectors import load_attribute_vectors
from core.datasets.xlsa17 import Metadata, read_metadata
from core.features.backbones import DEFAULT_WEIGHTS, FrozenBackbone, build_backbone, file_form
from core.features.backbones import IMAGENET_MEAN as MEAN
from core.features.backbones import IMAGENET_STD as STD
from core.features.feature_file import FeatureFile
from core.features.writer import FeatureFileMetadata, Writer
from core.files.atomic import sha256_file, write_bytes
from core.files.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BATCH_SIZE = 32
# Pillow's other decoders are not needed, and one of them (EPS) starts a program
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
FILE_LIMIT = 64 << 20  # bytes of one image file
_AHEAD = 3  # batches decoded ahead of the forward pass
_log = logging.getLogger(__name__)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode as 8-bit RGB. Transparency is dropped, as torchvision's loader does; 16-bit grey is scaled."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.array(image, dtype=np.float32)  # in place from here: it may have many pixels
        if image.mode == "F":
            grey *= 255 if np.nanmax(grey) <= 1 else 1
        elif image.mode != "I" or grey.max() > 255:
            grey /= 257  # 65535 -> 255
        np.nan_to_num(grey, copy=False)
        np.clip(np.rint(grey, out=grey), 0, 255, out=grey)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert("RGB")


def load_image(path: Path, size: int) -> np.ndarray:
    """Decode, Resize(size), CenterCrop(size): uint8 (size,size,3); of an animation the first frame.

    EXIF orientation is not applied: neither torchvision's loader nor DAZLE does, so published features have none.

    Raises:
        ValueError: the file cannot be read as an image; says why.
    """
    try:
        size_on_disk = path.stat().st_size  # says what is wrong: nothing there, a loop of links, no permission
        if not path.is_file():  # opening a pipe would wait for ever
            raise ValueError("not a file")
        if size_on_disk > FILE_LIMIT:
            raise ValueError(f"{size_on_disk} bytes are more than {FILE_LIMIT}")
        # from memory: decoders ask a file for as many bytes as it claims to have
        with Image.open(io.BytesIO(path.read_bytes()), formats=FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit and image.width * image.height > limit:
                raise ValueError(f"{image.width}x{image.height} pixels are more than {limit}")
            image.load()
            rgb = to_rgb(image)
        longer = size * max(rgb.size) // min(rgb.size)
        if limit and longer * size > limit:
            raise ValueError(f"too narrow: resized it would be {size}x{longer} pixels")
        return np.asarray(functional.center_crop(functional.resize(rgb, [size]), [size, size]))
    except Exception as error:  # damaged images raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(f"{type(error).__name__}: {reason}") from error


class _Batch:
    """Rows of one batch and their images, filled by the decoding threads."""

    def __init__(self, rows: np.ndarray, paths: list[Path], size: int, pin: bool, pool: ThreadPoolExecutor) -> None:
        self.rows = rows
        self.pixels = torch.zeros(len(rows), size, size, 3, dtype=torch.uint8, pin_memory=pin)
        self._view = self.pixels.numpy()
        self._size = size
        self._jobs: list[Future[str | None]] = [pool.submit(self._fill, i, paths[r]) for i, r in enumerate(rows)]

    def _fill(self, i: int, path: Path) -> str | None:
        try:
            self._view[i] = load_image(path, self._size)
        except ValueError as error:
            return str(error)
        return None

    def wait(self) -> dict[int, str]:
        """Block until all are decoded; position and reason of those that could not be."""
        reasons = [job.result() for job in self._jobs]
        return {i: reason for i, reason in enumerate(reasons) if reason is not None}


class Normaliser:
    """uint8 (B,H,W,3) to normalised (B,3,H,W), channels_last, on the device in the given type."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.scale = (1 / (255 * torch.tensor(STD))).view(1, 3, 1, 1).to(device)
        self.shift = (-torch.tensor(MEAN) / torch.tensor(STD)).view(1, 3, 1, 1).to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        x = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()  # channels_last by its strides
        return x.mul_(self.scale).add_(self.shift).to(self.dtype)


def resolve_device(device: str) -> torch.device:
    """auto: cuda where there is one, else cpu."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch sees no CUDA device; use --device cpu")
    return torch.device(device)


def extract(
    dataset: DataSet,
    data_root: Path | str = "data",
    out: Path | str | None = None,
    backbone: str = "resnet101",
    weights: str | Path = DEFAULT_WEIGHTS,
    input_size: int | None = None,
    dtype: str = "float32",
    device: str = "auto",
    workers: int | None = None,
    batch_size: int = BATCH_SIZE,
    limit: int | None = None,
    w2v: Path | str | None = None,
    store: str = "float16",
) -> Path:
    """Extract a data set's feature file, or go on with a run that was interrupted.

    Args:
        out: the feature file; None: data/<source>/feature_map_<Backbone>_<source>.hdf5.
        input_size: image side in pixels; None: what the backbone was made for.
        dtype: arithmetic of the backbone (a key of DTYPES). store: type in the file, float16 or float32.
        limit: stop after that many rows and leave the .partial (for timing); its path is then returned.
        w2v: pickle with the attributes' word vectors (K,V), stored beside the features.

    Raises:
        UserError: anything missing or damaged. Bad images are collected, and raised when all others are done.
    """
    dataset = DATASETS.get(dataset.source, dataset)
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
    if batch_size < 1 or (workers is not None and workers < 1) or (input_size is not None and input_size < 32):
        raise UserError("--batch-size and --workers must be at least 1, --input-size at least 32")
    root, target = Path(data_root), resolve_device(device)
    final = Path(out) if out is not None else default_out(dataset, backbone)
    metadata = read_metadata(root, dataset)
    folder = image_folder(root, dataset)
    folder = folder / "images" if _inside_images(folder, metadata.image_files[0]) else folder
    paths = [folder / name for name in metadata.image_files]
    missing = [row for row, path in enumerate(paths) if not path.is_file()]
    if len(missing) == len(paths):
        raise UserError(f"none of the {len(paths)} images of {dataset.source} is there; looked for {paths[0]}, ...")
    network = build_backbone(backbone, weights)
    size = input_size or network.input_size
    provenance = _provenance(dataset, metadata, network, size, dtype, batch_size, target, w2v)
    if final.exists():
        return _already_there(final, provenance)
    vectors = _word_vectors(w2v, metadata)
    network.to(target, DTYPES[dtype], memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalise = Normaliser(target, DTYPES[dtype])
    blank = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    _, channels, height, width = network(normalise(blank)).shape

    if missing:
        _log.warning(
            "%d images are missing, the first is %s; going on with the others", len(missing), paths[missing[0]]
        )
    with Writer(final, FeatureFileMetadata(metadata, provenance, vectors), (channels, height, width), store) as writer:
        failed = _run(writer, network, normalise, paths, size, batch_size, workers, limit)
        report = writer.partial.with_name(writer.partial.name + ".bad_images.txt")
        if failed:
            lines = [f"{paths[row]}: {reason}" for row, reason in sorted(failed.items())]
            write_bytes(report, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
            raise UserError(
                f"{len(failed)} of {len(paths)} images could not be read (all of them in {report}):\n  "
                + "\n  ".join(lines[:10])
                + f"\nReplace them and run the same command again; the others are kept in {writer.partial}"
            )
        if not writer.done.all() and limit is not None:
            writer.flush()
            if not writer.done.all():
                return writer.partial
        report.unlink(missing_ok=True)
        return writer.finish()


def _run(
    writer: Writer,
    network: FrozenBackbone,
    normalise: Normaliser,
    paths: list[Path],
    size: int,
    batch_size: int,
    workers: int | None,
    limit: int | None,
) -> dict[int, str]:
    """Extract what is not done yet. Returns row and reason of each image that could not be read."""
    total = len(paths)
    cuda = normalise.device.type == "cuda"
    starts = [s for s in range(0, total, batch_size) if not writer.done[s : s + batch_size].all()]
    if limit is not None:
        starts = starts[: -(-limit // batch_size)]
    failed: dict[int, str] = {}
    left = sum(min(s + batch_size, total) - s for s in starts)
    with ExitStack() as stack:
        decoding = stack.enter_context(ThreadPoolExecutor(workers or min(16, max(2, os.cpu_count() or 2))))
        writing = stack.enter_context(ThreadPoolExecutor(1))
        # on an error: do not decode or write what is queued
        stack.callback(decoding.shutdown, wait=True, cancel_futures=True)
        bar = stack.enter_context(tqdm(total=total, initial=total - left, unit="image", desc=writer.final.name))
        queue: deque[_Batch] = deque()
        written: deque[Future[None]] = deque()
        coming = iter(starts)

        def prefetch() -> None:
            while len(queue) < _AHEAD and (start := next(coming, None)) is not None:
                rows = np.arange(start, min(start + batch_size, total))
                queue.append(_Batch(rows, paths, size, cuda, decoding))

        prefetch()
        while queue:
            batch = queue.popleft()
            reasons = batch.wait()
            prefetch()
            maps = network(normalise(batch.pixels))
            if len(written) == 2:
                written.popleft().result()
            good = [i for i in range(len(batch.rows)) if i not in reasons]
            failed.update({int(batch.rows[i]): reason for i, reason in reasons.items()})
            written.append(writing.submit(_store, writer, batch.rows, maps, good))
            bar.update(len(batch.rows))
        while written:
            written.popleft().result()
    return failed


def _store(writer: Writer, rows: np.ndarray, maps: Tensor, good: list[int]) -> None:
    kind = torch.float16 if writer.dtype == np.float16 else torch.float32
    values = maps.to(kind).cpu().numpy()  # contiguous only in channels_last; the writer puts it in order
    if good:
        writer.write(rows[good], values[good])


def _inside_images(folder: Path, first: str) -> bool:
    """Whether the image paths of the .mat file start below an images/ folder (SUN's do)."""
    return not (folder / first).is_file() and (folder / "images" / first).is_file()


def _provenance(
    dataset: DataSet,
    metadata: Metadata,
    network: FrozenBackbone,
    size: int,
    dtype: str,
    batch_size: int,
    device: torch.device,
    w2v: Path | str | None,
) -> dict[str, str | int]:
    return {
        "dataset": dataset.source,
        "backbone": network.name,
        "layer": network.layer,
        "weights": network.weights,
        "weights_sha256": network.sha256,
        "transform": f"Resize({size}, bilinear) CenterCrop({size}) mean {MEAN} std {STD}",
        "input_size": size,
        "dtype": dtype,
        "batch_size": batch_size,
        "device": device.type,
        "torch_version": str(torch.__version__),  # a TorchVersion, which HDF5 does not take
        "split_sha256": metadata.split_sha256,
        "word_vectors": f"{Path(w2v).name} sha256 {_sha256(Path(w2v))}" if w2v is not None else "none",
        "notes": "; ".join(metadata.notes),
    }


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"no attribute vectors at {path}")
    return sha256_file(path)


def _word_vectors(w2v: Path | str | None, metadata: Metadata) -> np.ndarray | None:
    if w2v is None:
        return None
    return load_attribute_vectors(w2v, metadata.att.shape[1])


def _already_there(final: Path, provenance: dict[str, str | int]) -> Path:
    """A finished file of the same settings is the result; of other settings it is not overwritten."""
    with FeatureFile(final) as file:
        differs = [f"{k}: {file.provenance.get(k)!r} there, {v!r} now" for k, v in provenance.items()
                   if file.provenance.get(k) != v]  # fmt: skip
    if differs:
        raise UserError(
            f"{final} exists and was made with other settings ({'; '.join(differs)}); delete it or choose another --out"
        )
    _log.info("%s is complete already", final)
    return final


def default_out(dataset: DataSet, backbone: str) -> Path:
    """data/<source>/feature_map_<Backbone>_<source>.hdf5"""
    return Path("data") / dataset.source / dataset.feature_file(file_form(backbone))


def add_arguments(parser: argparse.ArgumentParser, dataset: DataSet) -> None:
    """The extraction flags, each with its default."""
    source = dataset.source
    demo = source == "DEMO"
    add = parser.add_argument
    add("--backbone", default="demo" if demo else "resnet101", help="torchvision CNN, or demo (default: %(default)s)")
    add(
        "--weights",
        default=DEFAULT_WEIGHTS,
        help="torchvision weights name, a .safetensors or .pth file, or random (default: %(default)s)",
    )
    add(
        "--input-size",
        type=int,
        default=None,
        help="image side in pixels: 224 gives 7x7 regions, 448 gives 14x14 (default: 224; 112 for demo)",
    )
    add("--dtype", choices=DTYPES, default="float32", help="arithmetic of the backbone (default: %(default)s)")
    add("--store", choices=("float16", "float32"), default="float16", help="type in the file (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    add("--workers", type=int, default=None, help="decoding threads (default: one per core, 2 to 16)")
    add("--batch-size", type=int, default=BATCH_SIZE, help="images per forward pass (default: %(default)s)")
    add("--limit", type=int, default=None, help="stop after this many images and keep the partial file (default: all)")
    add("--data-root", type=Path, default=Path("data"), help="folder with images and xlsa17/ (default: %(default)s)")
    add(
        "--out",
        type=Path,
        default=None,
        help=f"feature file (default: data/{source}/feature_map_<Backbone>_{source}.hdf5)",
    )
    add(
        "--w2v",
        type=Path,
        default=None,
        help=f"attribute word vectors to store too (default: w2v/{source}_attribute.pkl if it exists)",
    )


def main(dataset: DataSet, argv: Sequence[str] | None = None) -> int:
    """The command line of one data set's extraction."""
    parser = argparse.ArgumentParser(
        description=f"Extract the region features of {dataset.source}. Interrupted? Run the same command again.",
    )
    add_arguments(parser, dataset)
    args = parser.parse_args(argv)
    vectors: Path | None = args.w2v or Path("w2v") / f"{dataset.source}_attribute.pkl"
    if args.w2v is None and not (vectors and vectors.is_file()):
        vectors = None
    path = extract(
        dataset,
        data_root=args.data_root,
        out=args.out,
        backbone=args.backbone,
        weights=args.weights,
        input_size=args.input_size,
        dtype=args.dtype,
        device=args.device,
        workers=args.workers,
        batch_size=args.batch_size,
        limit=args.limit,
        w2v=vectors,
        store=args.store,
    )
    _log.info("features in %s", path)
    return 0
