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
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from core.datasets.metadata import Metadata
from core.datasets.own import stand_in
from core.datasets.paths import image_folder, resolve_images
from core.datasets.registry import DATASETS, OWN, DataSet
from core.datasets.vectors import load_attribute_vectors
from core.datasets.xlsa17 import read_metadata
from core.features.backbones import Backbone, build_backbone
from core.features.devices import resolve_device
from core.features.feature_file import FeatureFile
from core.features.finetuned import finetuned_provenance, finetuned_record
from core.features.images import Normaliser, Transform, load_image
from core.features.merge import finish as finish_shard
from core.features.regions import ahead
from core.features.settings import DTYPES, ExtractionConfig, default_out, extraction_command
from core.features.shards import Shard, part_content, refuse_other_division
from core.features.writer import FeatureFileMetadata, Writer
from core.files.atomic import sha256_file, write_bytes
from core.files.errors import UserError, differences, is_out_of_memory

_AHEAD = 3  # batches decoded ahead of the forward pass
_log = logging.getLogger(__name__)


class Batch:
    """Rows of one batch and their images, filled by the decoding threads."""

    def __init__(
        self, rows: np.ndarray, paths: list[Path], transform: Transform, pin: bool, pool: ThreadPoolExecutor
    ) -> None:
        self.rows = rows
        size = transform.crop
        self.pixels = torch.zeros(len(rows), size, size, 3, dtype=torch.uint8, pin_memory=pin)
        self._view = self.pixels.numpy()
        self._transform = transform
        self._jobs: list[Future[str | None]] = [pool.submit(self._fill, i, paths[r]) for i, r in enumerate(rows)]

    def _fill(self, i: int, path: Path) -> str | None:
        how = self._transform
        try:
            self._view[i] = load_image(path, how.crop, how.resize, how.interpolation)
        except ValueError as error:
            return str(error)
        return None

    def wait(self) -> dict[int, str]:
        """Block until all are decoded; position and reason of those that could not be."""
        reasons = [job.result() for job in self._jobs]
        return {i: reason for i, reason in enumerate(reasons) if reason is not None}


def decoded(
    batches: Sequence[np.ndarray], paths: list[Path], transform: Transform, *, pin: bool, threads: int
) -> Generator[tuple[Batch, dict[int, str]], None, None]:
    """Batches of rows with their images, and position and reason of those that could not be read.

    Some are decoded ahead of the one that is given out. What is queued is dropped when the generator is closed.

    Args: paths one a row; pin: memory from which a GPU reads while something else is done.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        for batch in ahead(lambda rows: Batch(rows, paths, transform, pin, pool), batches, _AHEAD):
            yield batch, batch.wait()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
    provenance: dict[str, str | int]

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
    w2v: Path | str | None = None,
    shard: Shard | None = None,
) -> Path:
    """Extract a data set's feature file, or go on with a run that was interrupted.

    Args:
        out: the feature file; None: <data_root>/<source>/feature_map_<Backbone>_<source>.hdf5, what differs from the
            defaults in its name.
        config: backbone, input size and all else that decides the features; None: DAZLE's protocol.
        limit: stop after that many images and leave the .partial (for timing); its path is then returned. Images of a
            batch that was cut short are done again by the next run.
        w2v: pickle with the attributes' word vectors (K,V), stored beside the features.
        shard: extract this part of the images into a part file; the last part to be finished merges all of them. The
            path of the part is returned where others are missing still.

    Raises:
        UserError: anything missing or damaged. Bad images are collected, and raised when all others are done.
    """
    config = config or ExtractionConfig()
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: must be at least 1")
    dataset = DATASETS.get(dataset.source, dataset)
    final = Path(out) if out is not None else default_out(data_root, dataset, config)
    again = extraction_command(dataset, data_root=data_root, out=out, config=config)
    job = _prepare(dataset, Path(data_root), config, w2v)
    if final.exists():
        return _already_there(final, job.provenance, again)
    refuse_other_division(final, shard.count if shard else 1)
    vectors = load_attribute_vectors(w2v, job.metadata.att.shape[1]) if w2v is not None else None
    content, target, rows = FeatureFileMetadata(job.metadata, job.provenance, vectors), final, range(len(job.paths))
    if shard is not None and shard.count > 1:
        rows, target = shard.rows(len(rows), config.batch_size), shard.part(final)
        content = part_content(content, shard, rows)
        _log.info("shard %s: %d images, %s", shard, len(rows), size_of(len(rows) * job.row_bytes))
        if target.exists():
            return finish_shard(final, content)
    if job.missing:
        _log.warning(
            "%d images are missing, the first is %s; going on with the others",
            len(job.missing),
            job.paths[job.missing[0]],
        )
    with Writer(target, content, job.network.shape, config.store) as writer:
        failed = _run(writer, job, rows, limit)
        report = writer.partial.with_name(writer.partial.name + ".bad_images.txt")
        if failed:
            lines = [f"{job.paths[row]}: {reason}" for row, reason in sorted(failed.items())]
            write_bytes(report, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
            raise UserError(
                f"{len(failed)} of {len(job.paths)} images could not be read (all of them in {report}):\n  "
                + "\n  ".join(lines[:10])
                + f"\nReplace them and run the same command again; the others are kept in {writer.partial}:\n  {again}"
            )
        if not writer.done.all() and limit is not None:
            writer.flush()
            if not writer.done.all():
                return writer.partial
        report.unlink(missing_ok=True)
        writer.finish()
    return finish_shard(final, content)


def estimate(dataset: DataSet, *, data_root: Path | str = "data", config: ExtractionConfig | None = None) -> Estimate:
    """Rows, bytes and time of an extraction, from its second batch; writes nothing.

    Raises:
        UserError: as :func:`extract`.
    """
    config = config or ExtractionConfig()
    job = _prepare(DATASETS.get(dataset.source, dataset), Path(data_root), config, None)
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


def _prepare(dataset: DataSet, root: Path, config: ExtractionConfig, w2v: Path | str | None) -> _Job:
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
    provenance = _provenance(dataset, metadata, network, config, device, w2v)
    network.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    normalise = Normaliser(device, dtype, network.transform.mean, network.transform.std)
    job = _Job(dataset, config, metadata, paths, missing, network, normalise, provenance)
    channels, height, width = network.shape
    _log.info(
        "%s, layer %s: %d x %dx%d an image at %d pixels; %d images take %s as %s",
        network.name, network.layer, channels, height, width, network.input_size, len(paths),
        size_of(len(paths) * job.row_bytes), config.store,
    )  # fmt: skip
    return job


def threads_of(config: ExtractionConfig) -> int:
    return config.workers or min(16, max(2, os.cpu_count() or 2))


def _run(writer: Writer, job: _Job, rows: range, limit: int | None = None) -> dict[int, str]:
    """Extract of a range of rows what is not done yet. Returns row and reason of each image that could not be read.

    ``writer`` has these rows and no others: row ``rows.start`` of the data set is its row 0. The range begins at a
    multiple of the batch size, so that every division into ranges has the same batches.
    """
    size, paths, cuda = job.config.batch_size, job.paths, job.normalise.device.type == "cuda"
    if rows.start % size:
        raise ValueError(f"rows from {rows.start} on do not begin at a batch of {size}")
    batches = [np.arange(s, min(s + size, rows.stop)) for s in range(rows.start, rows.stop, size)]
    batches = [batch for batch in batches if not writer.done[batch - rows.start].all()]
    left = sum(map(len, batches))
    if limit is not None:
        batches = [batch[: max(0, limit - size * i)] for i, batch in enumerate(batches) if size * i < limit]
        left = sum(map(len, batches))
    before = len(rows) - left if limit is None else 0
    failed: dict[int, str] = {}
    with ExitStack() as stack:
        writing = stack.enter_context(ThreadPoolExecutor(1))
        coming = decoded(batches, paths, job.network.transform, pin=cuda, threads=threads_of(job.config))
        stack.enter_context(closing(coming))
        bar = stack.enter_context(tqdm(total=before + left, initial=before, unit="image", desc=writer.final.name))
        written: deque[Future[None]] = deque()
        try:
            for batch, reasons in coming:
                maps, tokens = job.network(job.normalise(batch.pixels)), None
                if len(written) == 2:
                    written.popleft().result()
                good = [i for i in range(len(batch.rows)) if i not in reasons]
                failed.update({int(batch.rows[i]): reason for i, reason in reasons.items()})
                written.append(writing.submit(_store, writer, batch.rows - rows.start, maps, tokens, good))
                bar.update(len(batch.rows))
            while written:
                written.popleft().result()
        except (RuntimeError, MemoryError) as error:
            raise _out_of_memory(error, writer, job.config) from error
    return failed


def _out_of_memory(error: Exception, writer: Writer, config: ExtractionConfig) -> Exception:
    """The error to raise. The batch size is part of a file's record: a partial file without a row gives way."""
    said = memory_error(error, config)
    if isinstance(said, UserError) and not writer.done.any():
        writer.partial.unlink(missing_ok=True)
    return said


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


def _store(writer: Writer, rows: np.ndarray, maps: Tensor, tokens: Tensor | None, good: list[int]) -> None:
    kind = torch.float16 if writer.dtype == np.float16 else torch.float32
    values = maps.to(kind).cpu().numpy()  # contiguous only in channels_last; the writer puts it in order
    beside = None if tokens is None else tokens.to(kind).cpu().numpy()[good]
    if good:
        writer.write(rows[good], values[good], beside)


def _provenance(
    dataset: DataSet, metadata: Metadata, network: Backbone, config: ExtractionConfig, device: torch.device,
    w2v: Path | str | None,
) -> dict[str, str | int]:  # fmt: skip
    if w2v is not None and not Path(w2v).is_file():
        raise UserError(f"no attribute vectors at {w2v}; name a file with --w2v, or leave it out")
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
        "word_vectors": f"{Path(w2v).name} sha256 {sha256_file(w2v)}" if w2v is not None else "none",
        "notes": "; ".join(metadata.notes),
    }


def _already_there(final: Path, provenance: dict[str, str | int], again: str) -> Path:
    """A finished file of the same settings is the result; of other settings it is not overwritten."""
    with FeatureFile(final) as file:
        differs = differences({key: file.provenance.get(key) for key in provenance}, provenance)
    if differs:
        raise UserError(
            f"{final} exists and was made with other settings ({'; '.join(differs)}). Delete it (rm {final}) or choose "
            f"another --out:\n  {again}"
        )
    _log.info("%s is complete already", final)
    return final


def size_of(count: int) -> str:
    """A number of bytes as a person reads it."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
