"""Extraction: every image of a data set through a frozen backbone into its feature file.

Decoding runs in threads, a bounded number of batches ahead of the forward pass, so memory does not grow with the data
set. Batches are always the same consecutive rows, and one that was not finished is redone whole: a run that was killed
and started again ends with the same bytes as one that was not.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.datasets.metadata import Metadata
from core.datasets.own import stand_in
from core.datasets.paths import image_folder, resolve_images
from core.datasets.registry import DATASETS, OWN, DataSet
from core.datasets.xlsa17 import read_metadata
from core.features.backbones import Backbone, build_backbone
from core.features.decoding import Batch, decoded
from core.features.devices import resolve_device
from core.features.feature_file import FeatureFile
from core.features.finetuned import finetuned_provenance, finetuned_record
from core.features.images import Normaliser
from core.features.layout import FeatureFileMetadata, difference, held, parts_of
from core.features.settings import DTYPES, ExtractionConfig, default_out, extraction_command
from core.features.shards import Shard
from core.features.writer import Writer, finish
from core.files.atomic import Busy, write_bytes
from core.files.errors import UserError, is_out_of_memory
from core.files.hdf5 import open_hdf5
from core.files.progress import Progress

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """What an extraction works with, once everything that can be refused has been looked at."""

    dataset: DataSet
    config: ExtractionConfig
    metadata: Metadata
    paths: list[Path]  # one an image
    missing: list[int]  # rows whose image is not there
    network: Backbone
    normalise: Normaliser
    content: FeatureFileMetadata

    @property
    def row_bytes(self) -> int:
        return math.prod(self.network.shape) * np.dtype(self.config.store).itemsize


@dataclass(frozen=True)
class Estimate:
    """What an extraction would take."""

    rows: int
    row_bytes: int  # of one image's features
    seconds: float  # from one measured batch, decoding included

    def __str__(self) -> str:
        rate = self.rows / self.seconds if self.seconds else math.inf
        duration = f"{self.seconds / 60:.0f} minutes" if self.seconds >= 120 else f"{self.seconds:.0f} s"
        return f"{self.rows} rows, {size_of(self.rows * self.row_bytes)}, about {duration} ({rate:.1f} images/s)"


def extract(
    dataset: DataSet,
    *,
    data_root: Path | str = "data",
    out: Path | str | None = None,
    config: ExtractionConfig | None = None,
    limit: int | None = None,
    shard: Shard | None = None,
) -> Path:
    """Extract a data set's feature file, or go on with a run that was interrupted.

    Args:
        out: the feature file; None: <data_root>/<source>/feature_map_<Backbone>_<source>.hdf5, what differs from the
            defaults in its name.
        config: backbone, input size and all else that decides the features; None: DAZLE's protocol.
        limit: stop after that many images and leave the part (for timing); its path is then returned. Images of a
            batch that was cut short are done again by the next run.
        shard: extract this part of the images; the process that ends last makes the file. The path of the part is
            returned where others are missing still.

    Raises:
        UserError: anything missing or damaged. Bad images are collected, and raised when all others are done.
    """
    config = config or ExtractionConfig()
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be at least 1")
    dataset = DATASETS.get(dataset.source, dataset)
    final = Path(out) if out is not None else default_out(data_root, dataset, config)
    again = extraction_command(dataset, data_root=data_root, out=out, config=config)
    job = _prepare(dataset, Path(data_root), config)
    if final.exists():
        return _already_there(final, job, again)
    rows = (shard or Shard(0, 1)).rows(len(job.paths), config.batch_size)
    if job.missing:
        _log.warning(
            "%d images are missing, the first is %s; going on with the others",
            len(job.missing),
            job.paths[job.missing[0]],
        )
    with Writer(final, job.content, job.network.shape, config.store, rows) as writer:
        failed = _run(writer, job, limit)
        part = writer.part.path
        report = part.with_suffix(".bad_images.txt")
        if failed:
            lines = [f"{job.paths[row]}: {reason}" for row, reason in sorted(failed.items())]
            write_bytes(report, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
            raise UserError(
                f"{len(failed)} of {len(job.paths)} images could not be read (all of them in {report}):\n  "
                + "\n  ".join(lines[:10])
                + f"\nReplace them and run the same command again; the others are kept in {part}:\n  {again}"
            )
        if not writer.done[rows].all():  # of --limit
            return part
        report.unlink(missing_ok=True)
        try:
            missing = finish(final)
        except Busy:  # two that end together both come here, and one makes the file
            _log.info("rows %d to %d are there; another process makes %s", rows.start, rows.stop - 1, final)
            return part
    if missing:
        _log.info("rows %d to %d are there; %d others are missing", rows.start, rows.stop - 1, missing)
    return part if missing else final


def estimate(dataset: DataSet, *, data_root: Path | str = "data", config: ExtractionConfig | None = None) -> Estimate:
    """Rows, bytes and time of an extraction, from its second batch; writes nothing.

    Raises:
        UserError: as :func:`extract`.
    """
    config = config or ExtractionConfig()
    job = _prepare(DATASETS.get(dataset.source, dataset), Path(data_root), config)
    there = np.setdiff1d(np.arange(len(job.paths)), job.missing)[: 2 * config.batch_size]
    batches = np.array_split(there, 2) if len(there) > 1 else [there]
    with ThreadPoolExecutor(threads_of(config)) as pool:
        for rows in batches:  # what the first takes does not count
            started = time.perf_counter()
            try:
                batch = Batch(rows, job.paths, job.network.transform, False, pool)
                batch.wait()
                job.network(job.normalise(batch.pixels)).cpu()
            except (RuntimeError, MemoryError) as error:
                raise memory_error(error, config) from error
            taken = time.perf_counter() - started
    return Estimate(len(job.paths), job.row_bytes, taken / len(rows) * len(job.paths))


def _prepare(dataset: DataSet, root: Path, config: ExtractionConfig) -> _Job:
    """Look at everything that can be refused before the first image is read."""
    device, dtype = resolve_device(config.device), DTYPES[config.dtype]
    metadata = stand_in(root) if dataset.name == OWN.name else read_metadata(root, dataset)
    paths, missing = resolve_images(image_folder(root, dataset), metadata.image_files)
    if len(missing) == len(paths):
        raise UserError(f"none of the {len(paths)} images of {dataset.source} is there; looked for {paths[0]}, ...")
    network = build_backbone(
        config.backbone, config.weights, input_size=config.input_size, layers=config.layers, pool=config.pool,
        flip=config.flip,
    )  # fmt: skip
    text = network.class_text(metadata)
    provenance = _provenance(dataset, metadata, network, config, device)
    network.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalise = Normaliser(device, dtype, network.transform.mean, network.transform.std)
    content = FeatureFileMetadata(metadata, provenance, class_text=text)
    job = _Job(dataset, config, metadata, paths, missing, network, normalise, content)
    channels, height, width = network.shape
    _log.info(
        "%s, layer %s: %d x %dx%d an image at %d pixels; %d images take %s as %s",
        network.name, network.layer, channels, height, width, network.input_size, len(paths),
        size_of(len(paths) * job.row_bytes), config.store,
    )  # fmt: skip
    return job


def threads_of(config: ExtractionConfig) -> int:
    return config.workers or min(16, max(2, os.cpu_count() or 2))


def _run(writer: Writer, job: _Job, limit: int | None = None) -> dict[int, str]:
    """Extract of the writer's rows what is not done yet. Returns row and reason of each image that cannot be read."""
    rows, size, cuda = writer.rows, job.config.batch_size, job.normalise.device.type == "cuda"
    batches = [np.arange(s, min(s + size, rows.stop)) for s in range(rows.start, rows.stop, size)]
    batches = [batch for batch in batches if not writer.done[batch].all()]
    before = len(rows) - sum(map(len, batches))
    if limit is not None:
        before = 0
        batches = [batch[: max(0, limit - size * i)] for i, batch in enumerate(batches) if size * i < limit]
    total = before + sum(map(len, batches))
    failed: dict[int, str] = {}
    with ExitStack() as stack:
        writing = stack.enter_context(ThreadPoolExecutor(1))
        coming = decoded(batches, job.paths, job.network.transform, pin=cuda, threads=threads_of(job.config))
        stack.enter_context(closing(coming))
        bar = stack.enter_context(Progress(total, writer.final.name, "image", before))
        written: deque[Future[None]] = deque()
        try:
            for batch, reasons in coming:
                maps = job.network(job.normalise(batch.pixels))
                if len(written) == 2:
                    written.popleft().result()
                good = [i for i in range(len(batch.rows)) if i not in reasons]
                failed.update({int(batch.rows[i]): reason for i, reason in reasons.items()})
                written.append(writing.submit(_store, writer, batch.rows, maps, good))
                bar.update(len(batch.rows))
            while written:
                written.popleft().result()
        except (RuntimeError, MemoryError) as error:
            raise memory_error(error, job.config) from error
    return failed


def memory_error(error: Exception, config: ExtractionConfig) -> Exception:
    """The error to raise in place of one of a forward pass: if memory ran out, what to do about it."""
    if not is_out_of_memory(error) and "could not create a" not in str(error):  # the latter of oneDNN
        return error
    size = config.batch_size
    smaller = f"--image-batch-size {max(1, size // 2)}" if size > 1 else "a smaller --input-size"
    return UserError(
        f"the memory is not enough for {size} images at once (--image-batch-size {size}): run again with {smaller}"
        + ("" if config.dtype != "float32" else " or --dtype bfloat16")
    )


def _store(writer: Writer, rows: np.ndarray, maps: Tensor, good: list[int]) -> None:
    kind = torch.float16 if writer.dtype == np.float16 else torch.float32
    values = maps.to(kind).cpu().numpy()  # contiguous only in channels_last; the writer puts it in order
    if good:
        writer.write(rows[good], values[good])


def _provenance(
    dataset: DataSet, metadata: Metadata, network: Backbone, config: ExtractionConfig, device: torch.device
) -> dict[str, str | int]:
    unseen = np.unique(metadata.labels[metadata.test_unseen_loc])
    declared = config.pretraining_saw_unseen or finetuned_record(config.weights).get("saw_unseen")
    saw = network.saw_unseen(dataset, [metadata.class_names[c] for c in unseen], declared)
    return {
        "dataset": dataset.source,
        **network.record(),
        "pretraining_saw_unseen": saw,
        **finetuned_provenance(config.weights),
        "dtype": config.dtype,
        "batch_size": config.batch_size,
        "device": device.type,
        "torch_version": str(torch.__version__),  # a TorchVersion, which HDF5 does not take
        "split_sha256": metadata.split_sha256,
        "notes": "; ".join(metadata.notes),
    }


def _already_there(final: Path, job: _Job, again: str) -> Path:
    """A finished file of the same features is the result; another one is not overwritten."""
    with FeatureFile(final) as file, open_hdf5(final) as stored:
        differs = difference(held(stored), (job.content.provenance, job.content.arrays()))
        if file.dtype.name != job.config.store:
            differs = f"features: {file.dtype.name} there, {job.config.store} now"
        declared, there = job.config.pretraining_saw_unseen, file.provenance.get("pretraining_saw_unseen")
        if declared not in (None, there):
            differs = f"pretraining_saw_unseen: {there!r} there, {declared!r} now"
    if differs:
        raise UserError(
            f"{final} exists and was made with other settings ({differs}). Move it away or choose another --out:\n"
            f"  {again}"
        )
    if parts_of(final):
        finish(final)  # was killed before it removed them
    _log.info("%s is complete already", final)
    return final


def size_of(count: int) -> str:
    """A number of bytes as a person reads it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
