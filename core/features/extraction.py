"""Extraction: every image of a data set through a frozen backbone into its feature file.

Decoding runs in threads, a bounded number of batches ahead of the forward pass. Batches are always the same rows, and
one that was not finished is redone whole: a run that was killed and started again, or several processes with a range
of batches each, end with the same bytes as one that was not.
"""

import contextlib
import logging
import math
import os
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.datasets.own import stand_in
from core.datasets.paths import image_folder, resolve_images
from core.datasets.registry import DATASETS, OWN, DataSet
from core.datasets.xlsa17 import read_metadata
from core.features.backbones import Backbone, build_backbone
from core.features.devices import resolve_device
from core.features.feature_file import FeatureFile
from core.features.images import Normaliser, Picture, Transform, load_image, look_at
from core.features.regions import ahead
from core.features.settings import DTYPES, ExtractionConfig, default_out
from core.features.weights import finetuned_record
from core.features.writer import FeatureFileMetadata, Writer, decisive, remove_parts
from core.files.atomic import Busy
from core.files.errors import UserError, differences
from core.files.progress import Progress

_AHEAD = 3  # batches decoded ahead of the forward pass
_log = logging.getLogger(__name__)


def extract(
    dataset: DataSet, *, data_root: Path, config: ExtractionConfig, out: Path | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Path:  # fmt: skip
    """Extract a data set's feature file, or go on with a run that was interrupted.

    Bad images are collected, and raised when all others are done. Returned is ``out`` (None: :func:`default_out`), or
    the part of it where rows are missing still.

    Args: shard: (i,n): extract part i of n of the images, from 0 on; the process that ends last makes the file.
    """
    dataset = DATASETS.get(dataset.source, dataset)
    final = out or default_out(data_root, dataset, config)
    paths, network, content = _prepare(dataset, data_root, config, final)
    if final.exists():
        return _already_there(final, content, network.shape, config)
    rows = shard_rows(len(paths), config.batch_size, *shard)
    with Writer(final, content, network.shape, config.store, rows) as writer:
        failed = _run(writer, paths, network, config, _take_over(writer) if dataset.name == OWN.name else rows)
        if failed:
            lines = "\n  ".join(f"{paths[row]}: {reason}" for row, reason in sorted(failed.items()))
            raise UserError(
                f"{len(failed)} of {len(paths)} images could not be read:\n  {lines}\nReplace them and run the same "
                f"command again; the others are kept in {writer.path}"
            )
        with contextlib.suppress(Busy):  # of two that end together one makes the file
            return writer.finish() or writer.path
        return writer.path


def shard_rows(images: int, batch_size: int, index: int, count: int) -> range:
    """Rows of a shard; it begins and ends where a batch does, so every division has the same batches."""
    batches = -(-images // batch_size)
    if count > batches:
        raise UserError(f"--shard {index}/{count}: batches of {batch_size} images are at most {batches} shards here")
    start, stop = (batches * i // count * batch_size for i in (index, index + 1))
    return range(start, min(stop, images))


def _prepare(
    dataset: DataSet, root: Path, config: ExtractionConfig, final: Path
) -> tuple[list[Path], Backbone, FeatureFileMetadata]:
    """Look at everything that can be refused before the first image is read."""
    device = resolve_device(config.device)
    metadata = stand_in(root, look_at(root, final)) if dataset.name == OWN.name else read_metadata(root, dataset)
    paths, missing = resolve_images(image_folder(root, dataset), metadata.image_files)
    if len(missing) == len(paths):
        raise UserError(f"none of the {len(paths)} images of {dataset.source} is there; looked for {paths[0]}, ...")
    network = build_backbone(config.backbone, config.weights, input_size=config.input_size, pool=config.pool)
    size = len(paths) * math.prod(network.shape) * np.dtype(config.store).itemsize / 1e9
    _log.info("%s: %s an image; %d images take %.3f GB", network.name, network.shape, len(paths), size)
    unseen, tuned = np.unique(metadata.labels[metadata.test_unseen_loc]), finetuned_record(config.weights)
    declared = config.pretraining_saw_unseen or tuned.get("saw_unseen")
    kept = {f"finetuned_{key}": tuned[key] for key in ("dataset", "fold", "split_sha256", "rows") if tuned}
    provenance: dict[str, str | int] = {
        "dataset": dataset.source,
        **network.record(),
        "pretraining_saw_unseen": network.saw_unseen(dataset, [metadata.class_names[c] for c in unseen], declared),
        "opened": "as a viewer shows it",  # turned by EXIF, grey by its type; files without this: by neither
        **({"finetuned": "true"} | kept if tuned else {}),
        "dtype": config.dtype,
        "batch_size": config.batch_size,
        "device": device.type,
        "torch_version": str(torch.__version__),  # a TorchVersion, which HDF5 does not take
        "split_sha256": metadata.split_sha256,
        "notes": "; ".join(metadata.notes),
    }
    return paths, network, FeatureFileMetadata(metadata, provenance, class_text=network.class_text(metadata))


def _already_there(final: Path, content: FeatureFileMetadata, shape: tuple[int, ...], config: ExtractionConfig) -> Path:
    """A finished file of the same features is the result; another one is not overwritten."""
    with FeatureFile(final) as file:
        there = FeatureFileMetadata(file.metadata, file.provenance, class_text=file.class_text)
        before = there.signature(file.dtype.name, (file.shape[1], *file.grid))
        saw, declared = file.provenance.get("pretraining_saw_unseen"), config.pretraining_saw_unseen
    differs = differences(before, content.signature(config.store, shape))
    differs += [f"pretraining_saw_unseen: {saw!r} there, {declared!r} now"] * (declared not in (None, saw))
    if differs:
        way = f"move it away, or name another file ({'--features' if content.metadata.name == OWN.name else '--out'})"
        raise UserError(f"{final} is of other settings or images ({'; '.join(differs)}); {way}")
    remove_parts(final)  # where it was killed before it did
    _log.info("%s is complete already", final)
    return final


def _take_over(writer: Writer) -> np.ndarray:
    """Rows whose photographs (by their digests) are in no earlier file of the same settings; the others are copied."""

    def same(provenance: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in decisive(provenance).items() if k != "split_sha256"}  # of a folder: the list of images

    digests, taken = writer.content.metadata.image_sha256, np.zeros(writer.count, dtype=bool)
    for path in sorted(writer.final.parent.glob("*.hdf5")):
        with contextlib.suppress(UserError), FeatureFile(path) as file:
            if same(file.provenance) == same(writer.content.provenance) and file.dtype == writer.dtype:
                place = {digest: row for row, digest in enumerate(file.metadata.image_sha256)}
                for row in np.flatnonzero(~taken).tolist():
                    if (there := place.get(digests[row])) is not None:
                        writer.write(np.array([row]), file.read(np.array([there])))
                        taken[row] = True
    if taken.any():
        _log.info("%d of %d images are as in an earlier file, their features are taken over", taken.sum(), len(taken))
    return np.flatnonzero(~taken)


def _run(
    writer: Writer, paths: list[Path], network: Backbone, config: ExtractionConfig, rows: Sequence[int] | np.ndarray
) -> dict[int, str]:
    """Extract of ``rows`` what is not done yet. Returns row and reason of each image that cannot be read."""
    device, dtype, size = resolve_device(config.device), DTYPES[config.dtype], config.batch_size
    network.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalise = Normaliser(device, dtype, network.transform)
    batches = [np.asarray(rows[s : s + size]) for s in range(0, len(rows), size)]
    batches = [batch for batch in batches if not writer.done[batch].all()]
    failed: dict[int, str] = {}

    def forward(batch: tuple[np.ndarray, Tensor, dict[int, str]]) -> Future[int]:
        rows, pixels, reasons = batch
        failed.update({int(rows[i]): reason for i, reason in reasons.items()})
        return writing.submit(store, rows, network(normalise(pixels)), reasons)

    def store(rows: np.ndarray, maps: Tensor, reasons: dict[int, str]) -> int:
        values = maps.to(DTYPES[config.store]).cpu().numpy()  # in channels_last; the writer puts it in order
        good = [i for i in range(len(rows)) if i not in reasons]
        writer.write(rows[good], values[good])
        return len(rows)

    with (
        ThreadPoolExecutor(1) as writing,
        closing(
            decoded(batches, paths, network.transform, device.type == "cuda", threads_of(config.workers))
        ) as coming,
        Progress(sum(map(len, batches)), writer.final.name, "image") as bar,
    ):
        for written in ahead(forward, coming, 2):
            bar.update(written.result())
    return failed


def threads_of(workers: int | None) -> int:
    return workers or min(16, max(2, os.cpu_count() or 2))


def decoded(
    batches: Sequence[np.ndarray], images: Sequence[Picture], transform: Transform, pin: bool, threads: int
) -> Generator[tuple[np.ndarray, Tensor, dict[int, str]], None, None]:
    """Batches of rows with their pixels (B,H,W,3) uint8, and position and reason of those that could not be read.

    Some are decoded ahead of the one that is given out, with ``pin`` into memory from which a GPU reads by itself.
    """
    pool, size = ThreadPoolExecutor(threads), transform.crop

    def fill(pixels: np.ndarray, image: Picture) -> str | None:
        try:
            pixels[:] = load_image(image, size, transform.resize, transform.interpolation)
        except (ValueError, UserError) as error:  # of one in HEIC without its library: the others are read
            return str(error)
        return None

    def start(rows: np.ndarray) -> tuple[np.ndarray, Tensor, list[Future[str | None]]]:
        pixels = torch.zeros(len(rows), size, size, 3, dtype=torch.uint8, pin_memory=pin)
        view = pixels.numpy()
        return rows, pixels, [pool.submit(fill, view[i], images[r]) for i, r in enumerate(rows)]

    try:
        for rows, pixels, jobs in ahead(start, batches, _AHEAD):
            yield rows, pixels, {i: reason for i, job in enumerate(jobs) if (reason := job.result()) is not None}
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
