"""Photographs in, classes and reasons out: a finished run with the backbone that made its regions.

What a photograph goes through is what the training images went through: the backbone's transform, its arithmetic, the
rounding of stored features, regions of unit length, γ on unseen classes. Threads may share a predictor: a forward pass
keeps nothing.

B images · R regions · D channels · K attributes · C classes
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from core.features.backbones import Backbone
from core.features.devices import resolve_device
from core.features.images import Picture
from core.features.settings import BATCH_SIZE
from core.files.atomic import sha256_file
from core.files.errors import UserError
from core.files.kinds import IMAGE_SUFFIXES
from core.inference.added_classes import add_classes, in_folder
from core.inference.answer import ClassScore, Prediction
from core.inference.backbone import View, recorded_settings
from core.inference.explain import LIKENESS, Explanation, explain
from core.inference.names import shown_reason
from core.inference.sure import NONE_RATE, Sure
from core.inference.trained import CHECKPOINT, Trained, find_run, load_trained

log = logging.getLogger(__name__)
SPOKEN, AGAINST = 5, 2  # attributes named with a prediction, for and against its class


# Some images after the backbone: (B,) as an answer calls them; (B,R,D) float32 regions of unit length, of an unreadable
# image without meaning; place of each that could not be read, and why.
RegionBatch = tuple[list[str], Tensor, dict[int, str]]


class Predictor:
    """A trained model and its backbone, which is built when the first image comes."""

    def __init__(self, trained: Trained, views: Sequence[View], none_rate: float = NONE_RATE) -> None:
        """``views``: of an ensemble several."""
        self.trained, self.views, self.none_rate = trained, views, none_rate

    @classmethod
    def load(
        cls, run: Path | str, *, weights: Path | str | Sequence[Path | str] | None = None, device: str = "auto",
        gamma: float | None = None, none_rate: float = NONE_RATE, batch_size: int = BATCH_SIZE,
    ) -> Self:  # fmt: skip
        """A finished run.

        Args:
            run: the folder of one seed, or any above it that holds no other run.
            weights: the backbone's weights file, where the run's were a file; it must be the same one. Several where an
                ensemble has several.
            gamma: points added to the scores of unseen classes (None: as validation chose it).
            none_rate: share of photographs of the classes that may be called none of these; 0: none is.
            batch_size: images a forward pass.
        """
        where, run = resolve_device(device), find_run(run)
        trained, views = load_trained(run, where), list[View]()
        files = [weights] if isinstance(weights, Path | str) else [*(weights or ())]
        for record in (trained.backbone, *trained.beside):
            wanted = record.get("weights_sha256")
            own = [f for f in files if not trained.beside or (Path(f).is_file() and sha256_file(Path(f)) == wanted)]
            config = recorded_settings(record, run, own[0] if own else None, batch_size=batch_size)
            views.append(View(record, config, where))
        return cls(trained if gamma is None else replace(trained, gamma=gamma), views, none_rate)

    @property
    def network(self) -> Backbone:
        """The backbone, of an ensemble the first."""
        return self.views[0].network

    def batches(self, images: Sequence[Picture]) -> Iterator[RegionBatch]:
        """Images through the backbone, in their order, each once; of several backbones the regions side by side."""
        with ExitStack() as stack:
            coming = [stack.enter_context(closing(view.batches(images))) for view in self.views]
            for parts in zip(*coming, strict=True):
                some, x, errors = parts[0]
                names = [str(p) if isinstance(p := images[i], Path | str) else f"image {i + 1}" for i in some]
                x = torch.cat([x for _, x, _ in parts], dim=2) if len(parts) > 1 else x
                yield names, x, errors

    def predict(self, image: Picture, *, top: int = 5, among: str = "all") -> Prediction:
        """What the model says of one picture: a path, bytes, an open file, a PIL image, or an array (H,W,3) uint8.

        Args: top: number of classes in the answer. among: "all", "seen" or "unseen".
        """
        (found,) = self.predict_all([image], top=top, among=among)
        if found.error:
            raise UserError(f"cannot read {found.image}: {found.error}")
        return found

    def predict_all(self, images: Sequence[Picture], *, top: int = 5, among: str = "all") -> Iterator[Prediction]:
        """One answer a picture, in their order; those that cannot be read have a reason in its place."""
        for batch in self.batches(images):
            yield from self.answers(batch, top=top, among=among)

    def answers(self, batch: RegionBatch, *, top: int = 5, among: str = "all") -> list[Prediction]:
        """:meth:`predict_all` of images that went through the backbone already."""
        trained, (images, x, errors) = self.trained, batch
        found = explain(trained, x)
        scores = trained.calibrated(found.scores.float().cpu().numpy(), among)  # (B,C)
        best = np.argsort(-scores, axis=1, kind="stable")
        seen, sure = set(trained.space.seen.tolist()), Sure.of(trained, found, scores, self.none_rate)
        made = []
        for i, image in enumerate(images):
            if i in errors:
                made.append(Prediction(image=image, error=errors[i]))
                continue
            row, likely = scores[i], sure.likely(i)
            order = best[i][np.isfinite(row[best[i]])]
            classes = [
                ClassScore(
                    name=trained.classes[c],
                    side="seen" if c in seen else "unseen",
                    score=float(row[c]),
                    probability=None if sure.p is None else float(sure.p[i, c]),
                )
                for c in order[:top].tolist()
            ]
            spoke, against = _spoke(trained, found, i, int(order[0]))
            made.append(
                Prediction(
                    image=image, classes=tuple(classes), attributes=spoke, against=against,
                    margin=float(row[order[0]] - row[order[1]]) if len(order) > 1 else None,
                    none=None if sure.is_none is None else bool(sure.is_none[i]), group=sure.group(i),
                    likely=None if likely is None else tuple(trained.classes[c] for c in likely),
                )
            )  # fmt: skip
        return made

    def explain(self, image: Picture) -> Explanation:
        """The parts of a picture's scores, in a batch of one; regions row by row of the grid ``network.shape``."""
        ((names, x, errors),) = self.batches([image])
        if errors:
            raise UserError(f"cannot read {names[0]}: {errors[0]}")
        return explain(self.trained, x)

    def add_classes(
        self, described: pd.DataFrame | Path | str | None = None, images: Mapping[str, Sequence[Picture]] | None = None
    ) -> None:
        """Classes by descriptions, by photographs of each, or by both: core/inference/added_classes.py.

        Args:
            described: a row a class, its name first; or a CSV file, or a folder with attributes.csv, images/, or both.
            images: photographs of each class that is shown.
        """
        if isinstance(described, Path | str):
            described, found = in_folder(Path(described))
            images = found | dict(images or {})
        shown = {name: self._likeness(name, photos) for name, photos in (images or {}).items()}
        self.trained = add_classes(self.trained, described, shown)

    @torch.inference_mode()
    def _likeness(self, name: str, photos: Sequence[Picture]) -> Tensor:
        """(n,d) of a class's photographs; those that cannot be read are named and left out."""
        found = []
        for names, x, errors in self.batches(photos):
            f = self.trained.model.likeness(self.trained.model.attend(x))
            if f is None:
                raise UserError(f"{self.trained.config['method']} takes no class by photographs; vsmr does")
            for i, why in errors.items():
                log.warning("%s, of the class %s, is left out: %s", names[i], name, why)
            found += [row for i, row in enumerate(f) if i not in errors]
        if not found:
            raise UserError(f"no photograph of the class {name!r} could be read")
        return torch.stack(found)


Reasons = tuple[tuple[str, float], ...]


def _spoke(trained: Trained, found: Explanation, image: int, of: int) -> tuple[Reasons, Reasons]:
    """The attributes that add most to the score of a class and those that take most, in words, and their points."""
    if found.g is None:
        return (), ()
    parts, shows = found.attributes(image, of), found.g[image].tolist()  # (K,)

    def named(sign: int, most: int) -> Reasons:
        values, places = (sign * parts).topk(min(most, len(parts)))
        return tuple(
            (shown_reason(trained.attributes[k], shows[k]), sign * value)
            for k, value in zip(places.tolist(), values.tolist(), strict=True)
            if value > 0
        )

    alike = float(found.corrections[LIKENESS][image, of]) if LIKENESS in found.corrections else 0.0
    return ((LIKENESS, alike),) * (alike > 0) + named(1, SPOKEN), named(-1, AGAINST)


def find_images(given: Sequence[Path | str]) -> list[Path]:
    """Files as they are given, and those below folders in sorted order; hidden ones are passed over, links followed."""
    found, others = list[Path](), list[Path]()  # the others are no images by their names
    for path in map(Path, given):
        if not path.is_dir():
            found.append(path)  # one that is not there is answered with that
            continue
        for file in sorted(Path(place, name) for place, _, names in os.walk(path, followlinks=True) for name in names):
            if file.name == CHECKPOINT:
                raise UserError(f"{file.parent} is a run, and one run answers: name it first, photographs behind it")
            if not any(part.startswith(".") for part in file.relative_to(path).parts):
                (found if file.name.lower().endswith(IMAGE_SUFFIXES) else others).append(file)
    if others:
        log.info("%d files passed over, which are no images by their names, such as %s", len(others), others[0])
    if not found:
        raise UserError(f"no image found in {', '.join(map(str, given))}: none ends in {', '.join(IMAGE_SUFFIXES)}")
    return list(dict.fromkeys(found))
