"""Photographs in, classes and reasons out: a finished run with the backbone that made its regions.

What a photograph goes through is what the training images went through: the backbone's transform, its arithmetic, the
rounding of stored features, regions of unit length, γ on unseen classes. Threads may share a predictor: a forward pass
keeps nothing.

B images · R regions · D channels · K attributes · C classes
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from core.features.backbones import Backbone
from core.features.decoding import decoded
from core.features.devices import resolve_device
from core.features.extraction import memory_error, threads_of
from core.features.images import Normaliser
from core.features.regions import unit_regions
from core.features.settings import BATCH_SIZE, DTYPES, ExtractionConfig
from core.files.errors import UserError
from core.files.kinds import IMAGE_SUFFIXES
from core.inference import added_classes
from core.inference.backbone import rebuild, recorded_settings
from core.inference.trained import CHECKPOINT, SIDES, Trained, find_run, load_trained

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
SPOKEN = 5  # attributes named with a prediction


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """A class and its score with γ."""

    name: str
    side: str  # "seen" | "unseen"
    score: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of one image; ``error`` is why it cannot, and the rest is empty then."""

    image: str
    classes: tuple[ClassScore, ...] = ()  # best first
    margin: float | None = None  # by how much the first is ahead of the second; None: there was one candidate
    attributes: tuple[tuple[str, float], ...] = ()  # what spoke most for the first class, and how much of its score
    error: str = ""

    @property
    def name(self) -> str:
        return self.classes[0].name if self.classes else ""


@dataclass(frozen=True, kw_only=True)
class AttentionMaps:
    """Where each attribute was looked for in an image as the backbone saw it."""

    attributes: list[str]  # (K,)
    theta: np.ndarray  # (K,h,w) sums to 1 over the grid
    w: np.ndarray  # (K,) how much each attribute counts
    e: np.ndarray | None  # (K,) attribute scores


@dataclass(frozen=True, kw_only=True)
class RegionBatch:
    """Some images after the backbone."""

    paths: list[Path]  # (B,)
    x: Tensor  # (B,R,D) float32 regions of unit length; what stands in the place of an unreadable image means nothing
    errors: dict[int, str]  # place of each image that could not be read, and why


class Predictor:
    """A trained model and its backbone, which is built when the first image comes."""

    def __init__(self, trained: Trained, config: ExtractionConfig, device: torch.device) -> None:
        """``config`` holds the weights, batch size and workers; what decides the regions is the checkpoint's."""
        self.trained, self.config, self.device = trained, config, device
        self._network: Backbone | None = None
        self._building = threading.Lock()

    @classmethod
    def load(
        cls, run: Path | str, *, weights: Path | str | None = None, device: str = "auto",
        batch_size: int = BATCH_SIZE, workers: int | None = None,
    ) -> Predictor:  # fmt: skip
        """A finished run.

        Args:
            run: the folder of one seed, or any above it that holds no other run.
            weights: the backbone's weights file, where the run's were a file; it must be the same one.
            batch_size: images a forward pass. workers: decoding threads (None: one per core, 2 to 16).

        Raises:
            UserError: no finished run, or its checkpoint does not say what made its regions.
        """
        where, run = resolve_device(device), find_run(run)
        trained = load_trained(run, where)
        config = recorded_settings(trained.backbone, run, weights)
        return cls(trained, replace(config, device=device, batch_size=batch_size, workers=workers), where)

    @property
    def network(self) -> Backbone:
        """The backbone, on the device.

        Raises:
            UserError: its weights are not there, or are not those that made the training images' regions.
        """
        with self._building:
            if self._network is None:
                network = rebuild(self.trained.backbone, self.config, self.trained.shape)
                network.to(self.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
                self._network = network
            return self._network

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the backbone."""
        return DTYPES[str(self.trained.backbone.get("dtype", "float32"))]

    @torch.inference_mode()
    def regions(self, pixels: Tensor) -> Tensor:
        """(B,R,D) float32 regions of unit length, from pixels (B,H,W,3) uint8 that were resized and cropped."""
        how = self.network.transform
        images = Normaliser(self.device, self.dtype, how.mean, how.std)(pixels)
        maps = self.network(images).to(getattr(torch, self.trained.backbone["store"]))
        return unit_regions(maps.flatten(2))[0].float()

    def batches(self, images: Sequence[Path | str]) -> Iterator[RegionBatch]:
        """Images through the backbone, in their order, each once. Decoding runs in threads ahead of it."""
        paths, size = [Path(image) for image in images], self.config.batch_size
        rows = [np.arange(s, min(s + size, len(paths))) for s in range(0, len(paths), size)]
        coming = decoded(
            rows, paths, self.network.transform, pin=self.device.type == "cuda", threads=threads_of(self.config)
        )
        with closing(coming):
            try:
                for batch, errors in coming:
                    yield RegionBatch(paths=[paths[i] for i in batch.rows], x=self.regions(batch.pixels), errors=errors)
            except (RuntimeError, MemoryError) as error:
                raise memory_error(error, self.config) from error

    def predict(self, image: Path | str, *, top: int = 5, among: str = "all") -> Prediction:
        """What the model says of one image file.

        Args: top: number of classes in the answer. among: "all", "seen" or "unseen".

        Raises:
            UserError: the file cannot be read as an image.
        """
        (found,) = self.predict_all([image], top=top, among=among)
        if found.error:
            raise UserError(f"cannot read {image}: {found.error}")
        return found

    def predict_all(self, images: Sequence[Path | str], *, top: int = 5, among: str = "all") -> Iterator[Prediction]:
        """One answer an image, in their order; images that cannot be read have a reason in its place."""
        if among not in SIDES:
            raise UserError(f"--among {among}: choose {', '.join(SIDES)}")
        self.trained.of_side(among)
        for batch in self.batches(images):
            yield from self.answers(batch, top=top, among=among)

    def answers(self, batch: RegionBatch, *, top: int = 5, among: str = "all") -> list[Prediction]:
        """:meth:`predict_all` of images that went through the backbone already."""
        trained = self.trained
        found, evidence = trained.scores(batch.x)
        scores = trained.calibrated(found.float().cpu().numpy(), among)  # (B,C)
        best = np.argsort(-scores, axis=1, kind="stable")
        spoke = _spoke(trained, evidence, best[:, 0])
        seen = set(trained.space.seen.tolist())
        made = []
        for i, path in enumerate(batch.paths):
            if i in batch.errors:
                made.append(Prediction(image=str(path), error=batch.errors[i]))
                continue
            row, order = scores[i], best[i, : max(top, 2)]
            order = order[np.isfinite(row[order])]
            classes = tuple(
                ClassScore(name=trained.classes[c], side="seen" if c in seen else "unseen", score=float(row[c]))
                for c in order[:top].tolist()
            )
            margin = float(row[order[0]] - row[order[1]]) if len(order) > 1 else None
            made.append(Prediction(image=str(path), classes=classes, margin=margin, attributes=spoke[i]))
        return made

    def attention(self, image: Path | str) -> AttentionMaps:
        """Where each attribute was looked for in one image.

        Raises:
            UserError: the image cannot be read, or the method has no attention over regions.
        """
        (batch,) = self.batches([image])
        if batch.errors:
            raise UserError(f"cannot read {image}: {batch.errors[0]}")
        with torch.inference_mode():
            a = self.trained.model.attend(batch.x)
        if a is None:
            raise UserError(f"{self.trained.config['method']} has no attention over regions")
        _, h, w = self.network.shape
        return AttentionMaps(
            attributes=list(self.trained.attributes),
            theta=a.theta[0].T.float().cpu().numpy().reshape(-1, h, w),
            w=a.w[0].float().cpu().numpy(),
            e=None if a.e is None else a.e[0].float().cpu().numpy(),
        )

    def add_classes(self, frame: pd.DataFrame) -> None:
        """Classes by description alone: see :func:`core.inference.added_classes.add_classes`."""
        self.trained = added_classes.add_classes(self.trained, frame)


def _spoke(trained: Trained, evidence: Tensor | None, classes: np.ndarray) -> list[tuple[tuple[str, float], ...]]:
    """For each image the attributes that add most to the score of its class (B,), and how much."""
    if evidence is None or trained.z is None:
        return [()] * len(classes)
    parts = evidence * trained.z[torch.from_numpy(classes.copy()).to(trained.z.device)]  # (B,K)
    values, places = parts.topk(min(SPOKEN, parts.shape[1]), dim=1)
    return [
        tuple((trained.attributes[k], value) for k, value in zip(ks, vs, strict=True) if value > 0)
        for ks, vs in zip(places.tolist(), values.tolist(), strict=True)
    ]


def find_images(given: Sequence[Path | str]) -> list[Path]:
    """Files as they are given, and those below folders in sorted order; hidden ones are passed over.

    Raises:
        UserError: something given is not there or is a run, or there is no image at all.
    """
    found: list[Path] = []
    others: list[Path] = []  # by their names no images
    for path in map(Path, given):
        if path.is_dir():
            for folder, below, names in os.walk(path):
                if CHECKPOINT in names:
                    raise UserError(f"{folder} is a run, and one run answers: name it first, and photographs behind it")
                below[:] = sorted(name for name in below if not name.startswith("."))
                for name in sorted(name for name in names if not name.startswith(".")):
                    (found if name.lower().endswith(IMAGE_SUFFIXES) else others).append(Path(folder) / name)
        elif path.exists() or path.is_symlink():
            found.append(path)
        else:
            raise UserError(f"no file or folder {path}")
    if others:
        log.info("%d files passed over, which are no images by their names, such as %s", len(others), others[0])
    if not found:
        raise UserError(
            f"no image found in {', '.join(map(str, given))}; of files in folders those are taken that end in "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    return list(dict.fromkeys(found))
