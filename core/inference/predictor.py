"""Photographs in, classes and reasons out: a finished run with the backbone that made its regions.

What a photograph goes through is what the training images went through: the backbone's transform, its arithmetic, the
rounding of stored features, regions of unit length, γ on unseen classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from core.features.backbones import Backbone, build_backbone
from core.features.decoding import decoded
from core.features.devices import resolve_device
from core.features.extraction import memory_error, threads_of
from core.features.images import Normaliser
from core.features.regions import unit_regions
from core.features.settings import BATCH_SIZE, DTYPES, ExtractionConfig, recorded_config
from core.features.weights import is_weights_file, state_sha256
from core.files.atomic import sha256_file
from core.files.errors import UserError
from core.inference import added_classes
from core.inference.trained import SIDES, Trained, load_trained

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (  # of files in a folder that are taken for images; what cannot be read of them is a row with its reason
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"),
    *(".heic", ".heif", ".avif", ".jp2", ".jxl"),
)
SPOKEN = 5  # attributes named with a prediction
_SAME = ("backbone", "layer", "transform", "input_size", "pool", "flip")  # of the backbone's record, beside its weights
_MISSING = {"pool": 1, "flip": "no"}  # where a record is of before there was such a choice


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


class Predictor:
    """A trained model and its backbone, which is built when the first image comes."""

    def __init__(self, trained: Trained, config: ExtractionConfig, device: torch.device) -> None:
        """``config`` holds the weights, batch size and workers; what decides the regions is the checkpoint's."""
        self.trained, self.config, self.device = trained, config, device

    @classmethod
    def load(
        cls, run: Path | str, *, weights: Path | str | None = None, device: str = "auto",
        batch_size: int = BATCH_SIZE, workers: int | None = None,
    ) -> Predictor:  # fmt: skip
        """A finished run.

        Args:
            run: the folder of one seed.
            weights: the backbone's weights file, where the run's were a file; it must be the same one.
            batch_size: images a forward pass. workers: decoding threads (None: one per core, 2 to 16).

        Raises:
            UserError: no finished run, or its checkpoint does not say what made its regions.
        """
        where = resolve_device(device)
        trained = load_trained(Path(run), where)
        record = trained.backbone
        if str(record.get("backbone", "unknown")) == "unknown":
            raise UserError(
                f"the features that {run} was trained on do not say which backbone made them, so no photograph can be "
                "turned into such features; extract them anew (extract_feature/), train again, and predict from that"
            )
        if record.get("dtype", "float32") not in DTYPES or record["store"] not in ("float16", "float32"):
            raise UserError(f"the checkpoint in {run} records features of an unknown type; it is not usable")
        config = recorded_config({k: v for k, v in record.items() if k != "batch_size"})
        if config.backbone != record["backbone"]:
            raise UserError(f"the checkpoint in {run} records a backbone {record['backbone']!r} that cannot be made")
        config = replace(config, device=device, batch_size=batch_size, workers=workers, pretraining_saw_unseen=None)
        if weights is not None:
            config = replace(config, weights=str(weights))
        return cls(trained, config, where)

    # ------------------------------------------------------------------------------------------------- the network
    @cached_property
    def network(self) -> Backbone:
        """The backbone, on the device.

        Raises:
            UserError: its weights are not there, or are not those that made the training images' regions.
        """
        record, config = self.trained.backbone, self.config
        recorded, digest = str(record.get("weights", "")), str(record.get("weights_sha256", ""))
        given = config.weights or ""
        if is_weights_file(recorded):
            # the record has the file's name alone: what lies under it where we happen to be is not what was meant
            if given == recorded and not Path(given).is_file():
                raise UserError(
                    f"this run's regions come from {record['backbone']} with the weights file {recorded} (sha256 "
                    f"{digest}), which is not here; name it with --weights FILE"
                )
            if not Path(given).is_file():
                raise UserError(f"no weights file at {given}")
            if (found := sha256_file(given)) != digest:
                raise UserError(
                    f"{given} is not the weights file of this run: its sha256 is {found}, that of {recorded}, which "
                    f"made the regions it was trained on, is {digest}. Name that file with --weights"
                )
        network = build_backbone(
            str(record["backbone"]), config.weights, input_size=config.input_size, layers=config.layers,
            pool=config.pool, flip=config.flip,
        )  # fmt: skip
        made = network.record()
        if not is_weights_file(recorded) and digest not in (network.sha256, state_sha256(network.network)):
            raise UserError(
                f"the weights of {record['backbone']} are not those of this run: their sha256 is {network.sha256}, "
                f"recorded is {digest} ({recorded}); name the right file with --weights"
            )
        for key in _SAME:
            if str(made[key]) != str(record.get(key, _MISSING.get(key))):
                raise UserError(
                    f"{record['backbone']} has the {key} {made[key]} here, and had {record.get(key)} when this run's "
                    "features were made; install the versions it was made with, or extract and train again"
                )
        (D, h, w), (R, D_run) = network.shape, self.trained.shape
        if (D, h * w) != (D_run, R):
            raise UserError(f"{h}x{w} regions of {D} channels here, the run was trained on {R} of {D_run}")
        network.to(self.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the backbone."""
        return DTYPES[str(self.trained.backbone.get("dtype", "float32"))]

    @cached_property
    def _normaliser(self) -> Normaliser:
        how = self.network.transform
        return Normaliser(self.device, self.dtype, how.mean, how.std)

    @torch.inference_mode()
    def regions(self, pixels: Tensor) -> Tensor:
        """(B,R,D) float32 regions of unit length, from pixels (B,H,W,3) uint8 that were resized and cropped."""
        maps = self.network(self._normaliser(pixels)).to(getattr(torch, self.trained.backbone["store"]))
        return unit_regions(maps.flatten(2))[0].float()

    # ----------------------------------------------------------------------------------------------------- answers
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
        """One answer an image, in their order; images that cannot be read have a reason in its place.

        Decoding runs in threads ahead of the network.
        """
        if among not in SIDES:
            raise UserError(f"--among {among}: choose {', '.join(SIDES)}")
        self.trained.of_side(among)
        for paths, pixels, reasons in self._batches([Path(p) for p in images]):
            yield from self._answers(paths, self.regions(pixels), reasons, top, among)

    def _batches(self, paths: list[Path]) -> Iterator[tuple[list[Path], Tensor, dict[int, str]]]:
        """Batches of images: paths, pixels (B,S,S,3), and position and reason of those that could not be read."""
        size, pin = self.config.batch_size, self.device.type == "cuda"
        rows = [np.arange(s, min(s + size, len(paths))) for s in range(0, len(paths), size)]
        coming = decoded(rows, paths, self.network.transform, pin=pin, threads=threads_of(self.config))
        with closing(coming):
            try:
                for batch, reasons in coming:
                    yield [paths[i] for i in batch.rows], batch.pixels, reasons
            except (RuntimeError, MemoryError) as error:
                raise memory_error(error, self.config) from error

    def _answers(
        self, paths: list[Path], x: Tensor, reasons: dict[int, str], top: int, among: str
    ) -> Iterator[Prediction]:
        trained = self.trained
        found, evidence = trained.scores(x)
        scores = trained.calibrated(found.float().cpu().numpy(), among)
        best = np.argsort(-scores, axis=1, kind="stable")
        spoke = self._spoke(evidence, best[:, 0])
        seen = set(trained.space.seen.tolist())
        for i, path in enumerate(paths):
            if i in reasons:
                yield Prediction(image=str(path), error=reasons[i])
                continue
            row, order = scores[i], best[i, : top + 1]
            order = order[np.isfinite(row[order])]
            yield Prediction(
                image=str(path),
                classes=tuple(
                    ClassScore(name=trained.classes[c], side="seen" if c in seen else "unseen", score=float(row[c]))
                    for c in order[:top].tolist()
                ),
                margin=float(row[order[0]] - row[order[1]]) if len(order) > 1 else None,
                attributes=spoke[i],
            )

    def _spoke(self, evidence: Tensor | None, classes: np.ndarray) -> list[tuple[tuple[str, float], ...]]:
        """For each image the attributes that add most to the score of its class (B,), and how much."""
        z = self.trained.z
        if evidence is None or z is None:
            return [()] * len(classes)
        parts = evidence * z[torch.from_numpy(classes.copy()).to(z.device)]  # (B,K)
        values, places = parts.topk(min(SPOKEN, parts.shape[1]), dim=1)
        names = self.trained.attributes
        return [
            tuple((names[k], value) for k, value in zip(ks, vs, strict=True) if value > 0)
            for ks, vs in zip(places.tolist(), values.tolist(), strict=True)
        ]

    def regions_of(self, images: Sequence[Path | str]) -> Iterator[tuple[Path, Tensor]]:
        """Path and regions (R,D) of each image that can be read."""
        for paths, pixels, reasons in self._batches([Path(p) for p in images]):
            x = self.regions(pixels)
            yield from ((path, x[i]) for i, path in enumerate(paths) if i not in reasons)

    def attention(self, image: Path | str) -> AttentionMaps:
        """Where each attribute was looked for in one image.

        Raises:
            UserError: the image cannot be read, or the method has no attention over regions.
        """
        ((_, pixels, reasons),) = self._batches([Path(image)])
        if reasons:
            raise UserError(f"cannot read {image}: {reasons[0]}")
        with torch.inference_mode():
            a = self.trained.model.attend(self.regions(pixels))
        if a is None:
            raise UserError(f"{self.trained.config['method']} has no attention over regions")
        _, h, w = self.network.shape
        return AttentionMaps(
            attributes=list(self.trained.attributes),
            theta=a.theta[0].T.float().cpu().numpy().reshape(-1, h, w),
            w=a.w[0].float().cpu().numpy(),
            e=None if a.e is None else a.e[0].float().cpu().numpy(),
        )

    # ----------------------------------------------------------------------------------------------------- classes
    def add_classes(self, frame: pd.DataFrame) -> None:
        """Classes by description alone: see :func:`core.inference.added_classes.add_classes`."""
        self.trained = added_classes.add_classes(self.trained, frame)

    def remove_classes(self, names: Sequence[str]) -> None:
        """No longer predict these classes."""
        self.trained = added_classes.remove_classes(self.trained, names)

    def rename(self, names: Mapping[str, str]) -> None:
        """Other names for some classes, {old: new}."""
        self.trained = added_classes.rename(self.trained, names)


def find_images(given: Sequence[Path | str]) -> list[Path]:
    """Files as they are given, and those below folders in sorted order; hidden ones are passed over.

    Raises:
        UserError: something given is not there, or there is no image at all.
    """
    found: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            for folder, below, names in os.walk(path):
                below[:] = sorted(name for name in below if not name.startswith("."))
                kept = [n for n in sorted(names) if not n.startswith(".") and n.lower().endswith(SUFFIXES)]
                found += [Path(folder) / name for name in kept]
        elif path.exists() or path.is_symlink():
            found.append(path)
        else:
            raise UserError(f"no file or folder {path}")
    if not found:
        where = ", ".join(map(str, given)) or "nothing: name photographs or folders behind the run"
        raise UserError(f"no image found in {where}; of files in folders those are taken that end in "
                        f"{', '.join(SUFFIXES[:5])}, ...")  # fmt: skip
    return list(dict.fromkeys(found))
