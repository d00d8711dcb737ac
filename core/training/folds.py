"""What is trained on and measured on: the final fold of the tables, and the validation fold everything is chosen on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from core.datasets.metadata import Metadata, class_disjoint_split
from core.features.regions import RegionFeatures, on_device
from core.files.errors import UserError
from core.method import ClassSpace
from core.training.evaluation import ScoredImages, Scores

HELD_OUT = 0.2  # share of each training class's images that stands for test_seen during validation


@dataclass(frozen=True)
class FoldImages:
    """Images of one part of a fold as a method's hooks see them (core/method.py, ``Images``)."""

    _features: RegionFeatures
    _rows: np.ndarray
    _labels: np.ndarray

    @property
    def labels(self) -> Tensor:
        return on_device(torch.from_numpy(self._labels), self._features.device)

    def pooled(self) -> Tensor:
        return self._features.pooled(self._rows)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        pieces = (x for _, x in self._features.blocks(self._rows))
        yield from zip(pieces, self.labels.split(self._features.block), strict=True)

    def region_norm(self) -> float:
        return self._features.region_norm(self._rows)


@dataclass(frozen=True, kw_only=True)
class Fold:
    """What is trained on and what is measured on; labels are class numbers of ``space``."""

    space: ClassSpace
    train_rows: np.ndarray
    train_labels: np.ndarray
    seen_rows: np.ndarray  # images of seen classes that are not trained on
    seen_labels: np.ndarray
    unseen_rows: np.ndarray
    unseen_labels: np.ndarray
    candidates: np.ndarray | tuple[int, ...] = ()  # unseen classes without an image

    def train_images(self, features: RegionFeatures) -> FoldImages:
        return FoldImages(features, self.train_rows, self.train_labels)

    def seen_images(self, features: RegionFeatures) -> FoldImages:
        return FoldImages(features, self.seen_rows, self.seen_labels)

    def unseen_images(self, features: RegionFeatures) -> FoldImages:
        return FoldImages(features, self.unseen_rows, self.unseen_labels)

    def scored(self, seen: Scores, unseen: Scores) -> ScoredImages:
        """The measured images with scores (N,C) of those of seen and of unseen classes, whole or in pieces."""
        return ScoredImages(
            scores_seen=seen, labels_seen=self.seen_labels, scores_unseen=unseen, labels_unseen=self.unseen_labels,
            seen=self.space.seen.numpy(), unseen=self.space.unseen.numpy(), candidates=self.candidates,
        )  # fmt: skip


def final_fold(m: Metadata, w2v: np.ndarray) -> Fold:
    """Train on trainval, measure on the test sets: the numbers that are reported.

    Classes without images (a folder of one's own may have some) compete in every prediction and are in no mean.
    """
    classes = m.seen, np.union1d(m.unseen, m.candidates)
    return _fold(m, w2v, *classes, m.trainval_loc, m.test_seen_loc, m.test_unseen_loc, m.candidates)


def every_photograph(m: Metadata, w2v: np.ndarray) -> Fold:
    """Train on the photographs of all splits, measure on none: the model that is put to use."""
    rows, none = np.sort(np.concatenate([m.trainval_loc, m.test_seen_loc, m.test_unseen_loc])), np.empty(0, np.int64)
    return _fold(m, w2v, np.union1d(m.seen, m.unseen), m.candidates, rows, none, none, m.candidates)


def validation_fold(m: Metadata, w2v: np.ndarray, seed: int = 0) -> Fold:
    """Train on train_loc less a held-out share, measure on that share and on val_loc: everything is chosen here.

    Only the classes of trainval exist in this fold; nothing of the true unseen classes, not even attributes, enters.
    Seed 0 takes the metadata's own train and val classes (xlsa17's where it has them); any other seed redraws them, as
    many as there are, so that a choice need not rest on one split.
    """
    train_loc, val_loc = m.train_loc, m.val_loc
    if seed:
        share = len(np.unique(m.labels[m.val_loc])) / len(m.seen)
        train_loc, val_loc = class_disjoint_split(m.labels, m.trainval_loc, share, seed)
    rng = np.random.default_rng(seed)
    held = []
    for c in np.unique(m.labels[train_loc]):
        rows = rng.permutation(train_loc[m.labels[train_loc] == c])
        if len(rows) < 2:
            said = f"the training class {m.class_names[c]!r} has one training image, validation needs two"
            raise UserError(f"{said}: add one to trainval_loc, or choose nothing on validation with --select last")
        held.append(rows[: max(1, round(HELD_OUT * len(rows)))])
    held_rows = np.sort(np.concatenate(held))
    train = np.setdiff1d(train_loc, held_rows)
    number = np.full(len(m.class_names), -1, dtype=np.int64)  # of a class among those of trainval
    number[m.seen] = np.arange(len(m.seen))
    text = None if m.class_text is None else m.class_text[m.seen]
    of_trainval = replace(m, labels=number[m.labels], att=m.att[m.seen], class_text=text)
    seen, unseen = (np.unique(of_trainval.labels[rows]) for rows in (train, val_loc))
    return _fold(of_trainval, w2v, seen, unseen, train, held_rows, val_loc)


def _fold(
    m: Metadata, w2v: np.ndarray, seen: np.ndarray, unseen: np.ndarray, train_rows: np.ndarray, seen_rows: np.ndarray,
    unseen_rows: np.ndarray, candidates: np.ndarray | tuple[int, ...] = (),
) -> Fold:  # fmt: skip
    if (K := m.att.shape[1]) != len(w2v):
        raise UserError(f"{len(w2v)} attribute vectors for {K} attributes; name those of this data set with --w2v")
    parts = {"att": m.att, "seen": seen, "unseen": unseen, "w2v": w2v.astype(np.float32), "text": m.class_text}
    parts |= {"questions": m.questions}
    given = {k: torch.from_numpy(np.ascontiguousarray(a)) for k, a in parts.items() if a is not None}
    return Fold(
        space=ClassSpace(**given), candidates=candidates,
        train_rows=train_rows, train_labels=m.labels[train_rows], seen_rows=seen_rows, seen_labels=m.labels[seen_rows],
        unseen_rows=unseen_rows, unseen_labels=m.labels[unseen_rows],
    )  # fmt: skip
