"""Labels, attributes and splits of a data set, and every rule they must keep, whatever file they come from."""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from core.datasets.registry import CUB50, CUB50_SEEN, CUB50_UNSEEN, DataSet
from core.files.errors import UserError

VALIDATION_SEED = 0
NEGATIVE_SHARE = 0.01  # of the attributes; above it the benchmarks' rule for negative ones is no repair of a few values
SPLITS = ("trainval_loc", "test_seen_loc", "test_unseen_loc")
LOCS = (*SPLITS, "train_loc", "val_loc")


def name_problem(name: str) -> str:
    """Why a text can name no class, attribute or image, as the end of a sentence; "" where it breaks no line."""
    kinds = {unicodedata.category(letter) for letter in name}  # Cs: as Python shows bytes that are no letter
    unfit = not name or kinds & {"Cc", "Cs", "Zl", "Zp"}
    return "is empty, is not UTF-8, or holds control characters" if unfit else ""


def listed(names: Collection[str]) -> str:
    """The first five names, quoted, and how many more there are."""
    shown = ", ".join(map(repr, list(names)[:5]))
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def questions_of(names: Sequence[str]) -> np.ndarray | None:
    """(K,) number of the question that an attribute is an answer to, by its name (``bill shape: needle``, or CUB's
    ``has_bill_shape::needle``), -1 where it is the only answer; None where no two answer one.
    """
    asked = [name.partition("::" if "::" in name else ": ")[0] if ":" in name else "" for name in names]
    times = Counter(filter(None, asked))
    numbers = {question: n for n, question in enumerate(sorted(q for q in times if times[q] > 1))}
    return np.array([numbers.get(question, -1) for question in asked], np.int64) if numbers else None


@dataclass
class Metadata:
    """Labels, attributes and splits of a data set; every index 0-based."""

    name: str
    image_files: list[str]  # (N,) below the data set's own folder, '/'-separated; empty where a feature file names none
    labels: np.ndarray  # (N,) int64; -1: of no class, for images in no split
    class_names: list[str]  # (C,)
    att: np.ndarray  # (C,K) float32
    original_att: np.ndarray  # (C,K) float32
    trainval_loc: np.ndarray
    test_seen_loc: np.ndarray
    test_unseen_loc: np.ndarray
    train_loc: np.ndarray  # class-disjoint from val_loc, inside trainval
    val_loc: np.ndarray
    split_sha256: str
    notes: list[str] = field(default_factory=list)
    attribute_names: list[str] = field(default_factory=list)  # (K,) where the source of the attributes has them
    allow_candidates: bool = False  # classes without an image in any split may be there
    questions: np.ndarray | None = None  # (K,) int64, see :func:`questions_of`
    class_text: np.ndarray | None = None  # (C,2,E) float32: core/datasets/class_text.py
    groups: list[str] = field(default_factory=list)  # (C,) genus, family or the like, where the sheet says; "": none
    image_sha256: list[str] = field(default_factory=list)  # (N,) of the files, where the images are a user's own

    @property
    def seen(self) -> np.ndarray:
        """Sorted seen classes (those of trainval)."""
        return np.unique(self.labels[self.trainval_loc])

    @property
    def unseen(self) -> np.ndarray:
        """Sorted unseen classes (those of test_unseen)."""
        return np.unique(self.labels[self.test_unseen_loc])

    @property
    def candidates(self) -> np.ndarray:
        """Sorted classes of neither side: no image of theirs is measured, but a prediction may name them."""
        if not self.allow_candidates:
            return np.empty(0, np.int64)
        return np.setdiff1d(np.arange(len(self.class_names)), np.concatenate([self.seen, self.unseen]))

    def check(self, where: str) -> None:
        """Raise unless everything fits together; what is odd but usable goes into ``notes``."""
        for problem in self._problems():
            raise UserError(f"{where}: {problem}")
        for note in self._oddities():
            # a feature file's notes have it already, perhaps with names where it is numbers here
            if not any(note.partition(" (")[0] in known for known in self.notes):
                self.notes.append(note)

    def _problems(self) -> Iterator[str]:
        names, att, n = self.class_names, self.att, len(self.labels)
        if self.image_files and len(self.image_files) != n:
            yield f"{n} labels for {len(self.image_files)} image files"
        for what, of in (("image files", self.image_files), ("classes", names)):
            if double := sorted(name for name, count in Counter(of).items() if count > 1):
                yield f"{what} stand there more than once: {listed(double)}"
        for name in names:
            if why := name_problem(name):
                yield f"{name!r} is no class name: it {why}"
        if len(names) != len(att) or self.original_att.shape != att.shape:
            yield f"att is {att.shape}, original_att {self.original_att.shape}, but there are {len(names)} class names"
        for key, values in (("att", att), ("original_att", self.original_att)):
            for c, k in np.argwhere(~np.isfinite(values))[:1]:
                yield f"{key} holds NaN or infinity, first for the class {names[c]!r}, attribute {k + 1} (from 1)"
        if (none := ~(att != 0).any(axis=1)).any():
            yield f"no attribute is present in the classes {self._named(np.flatnonzero(none))}"
        # a subset's other images, which are in no split, have the label -1
        for key, lowest, count in (("labels", -1, len(names)), *((key, 0, n) for key in LOCS)):
            values = getattr(self, key)
            if len(values) and (values.min() < lowest or values.max() >= count):
                yield f"{key} runs from {values.min()} to {values.max()}, expected 0 to {count - 1} (counted from 0)"
            if key in SPLITS and len(values) == 0 and not (key == "test_unseen_loc" and self.allow_candidates):
                yield f"{key} is empty"
            if key in LOCS and len(values) > len(np.unique(values)):
                yield f"{key} names {len(values) - len(np.unique(values))} images twice"
        for key, other in itertools.combinations(SPLITS, 2):
            if common := np.intersect1d(getattr(self, key), getattr(self, other)).size:
                yield f"{key} and {other} share {common} images; this is not a usable split"
        seen, unseen, tested = self.seen, self.unseen, np.unique(self.labels[self.test_seen_loc])
        if min(seen[0], tested[0], *unseen[:1]) < 0:
            yield "the splits hold images without a class"
        if both := np.intersect1d(seen, unseen).size:
            yield f"{both} unseen classes have images in trainval; this is not a zero-shot split"
        if (one_side := np.setxor1d(seen, tested)).size:
            yield f"the seen classes {self._named(one_side)} have no test image, or no other"
        left = np.setdiff1d(np.arange(len(names)), np.concatenate([seen, unseen]))
        if left.size and not self.allow_candidates:
            yield f"the classes {self._named(left)} have no image in any split"

    def _oddities(self) -> Iterator[str]:
        _, group, size = np.unique(self.att, axis=0, return_inverse=True, return_counts=True)
        for g in np.flatnonzero(size > 1)[:5]:
            alike = self._named(np.flatnonzero(group.ravel() == g))
            yield f"the classes {alike} have identical attributes, so no method can tell them apart"
        if (flat := np.flatnonzero(np.ptp(self.att, axis=0) == 0)).size:
            some = ", ".join(self.attribute_names[k] if self.attribute_names else f"number {k + 1}" for k in flat[:5])
            yield f"{flat.size} attributes have one value for all classes and tell none apart ({some})"

    def _named(self, classes: np.ndarray) -> str:
        return listed([self.class_names[c] for c in classes])

    def with_validation(self, share: float, seed: int = VALIDATION_SEED) -> Metadata:
        """With train_loc and val_loc inside trainval and class-disjoint: its own where they are usable, else drawn.

        xlsa17's own may contain test images (two versions circulate), so they are always cut to trainval.
        """
        train, val = (np.intersect1d(loc, self.trainval_loc) for loc in (self.train_loc, self.val_loc))
        shared = np.intersect1d(self.labels[train], self.labels[val]).size
        if len(train) and len(val) and not shared:
            outside = len(self.train_loc) + len(self.val_loc) - len(train) - len(val)
            note = f"train/val classes of the split file; {outside} of its images lie outside trainval and are dropped"
            new = [] if any("train/val classes" in known for known in self.notes) else [note]  # a feature file's has it
        else:
            train, val = class_disjoint_split(self.labels, self.trainval_loc, share, seed)
            why = f"the split file's share {shared} classes" if shared else "the split file has none"
            new = [f"train/val classes drawn with seed {seed} ({why})"]
        return replace(self, train_loc=train, val_loc=val, notes=[*self.notes, *new])


def clip_negative(att: np.ndarray, dataset: DataSet) -> tuple[np.ndarray, list[str]]:
    """Attributes (C,K) under the data set's rule for negative ones, and notes where that concerns many."""
    share = float((att < 0).mean()) if att.size else 0.0
    count = f"{(att < 0).sum()} of {att.size} attributes ({share:.1%}) are negative"
    if not dataset.clip_negative:
        return att, [f"{count} and are kept; methods that take attributes as strengths may not suit"] if share else []
    note = f"{count} and were set to 0, xlsa17's rule for missing values; embeddings need clip_negative=False"
    return np.maximum(att, 0.0), [note] if share > NEGATIVE_SHARE else []


def class_disjoint_split(labels: np.ndarray, loc: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split ``loc`` by class: ``share`` of its classes (at least one, never all) go to the second part."""
    classes = np.unique(labels[loc])
    if len(classes) < 2:
        raise UserError("a class-disjoint validation split needs at least two seen classes")
    count = min(max(1, round(share * len(classes))), len(classes) - 1)
    held = np.random.default_rng(seed).permutation(classes)[:count]
    inside = np.isin(labels[loc], held)
    return loc[~inside], loc[inside]


def cub50(metadata: Metadata, seed: int = VALIDATION_SEED) -> Metadata:
    """The authors' 40+10 class subset of CUB: 10 seeded test images from each seen class, the rest for training.

    Which images the authors tested on was not published; their counts (1938/400/598) are met exactly.
    """
    m, rng = metadata, np.random.default_rng(seed)
    number = {int(name.split(".")[0]): c for c, name in enumerate(m.class_names) if name.split(".")[0].isdigit()}
    if lost := [str(n) for n in CUB50_SEEN + CUB50_UNSEEN if n not in number]:
        raise UserError(f"CUB50 needs the CUB classes {listed(lost)}, which this copy of CUB does not have")
    seen, unseen = ([number[n] for n in numbers] for numbers in (CUB50_SEEN, CUB50_UNSEEN))
    test_seen = np.concatenate([rng.permutation(np.flatnonzero(m.labels == c))[:10] for c in seen])
    kept, none = np.array(sorted(seen + unseen)), np.empty(0, dtype=np.int64)
    new_label = np.full(len(m.class_names), -1, dtype=np.int64)
    new_label[kept] = np.arange(len(kept))
    subset = replace(
        m,
        name=CUB50.name,
        labels=new_label[m.labels],
        class_names=[m.class_names[c] for c in kept],
        att=m.att[kept],
        original_att=m.original_att[kept],
        trainval_loc=np.setdiff1d(np.flatnonzero(np.isin(m.labels, seen)), test_seen),
        test_seen_loc=np.sort(test_seen),
        test_unseen_loc=np.flatnonzero(np.isin(m.labels, unseen)),
        train_loc=none,  # theirs are of other seen classes
        val_loc=none,
        # what was noted of the proposed split does not hold here
        notes=[f"CUB50: 10 test images per seen class drawn with seed {seed}"],
    )
    compare_counts(subset, CUB50, "CUB50")
    subset.check("CUB50")
    return subset


def compare_counts(m: Metadata, dataset: DataSet, where: Path | str) -> None:
    """Hold a full copy of a published data set against its published counts; note a subset."""
    counts = dataset.counts
    if counts is None or m.name != dataset.name:  # CUB, which CUB50 is made of
        return
    found = {key: len(getattr(m, key)) for key in ("seen", "unseen")}
    found |= {"images": int((m.labels >= 0).sum())} | {key[:-4]: len(getattr(m, key)) for key in SPLITS}
    found["attributes"] = m.att.shape[1]
    wrong = {k: f"{k} {v} (published {getattr(counts, k)})" for k, v in found.items() if v != getattr(counts, k)}
    if found["images"] == counts.images and wrong.keys() - {"attributes"}:
        raise UserError(f"{where}: not the proposed split of {dataset.name}: {', '.join(wrong.values())}")
    if wrong:
        what = "a subset of" if wrong.keys() - {"attributes"} else "other attributes than"
        numbers = "numbers do not compare with the literature"
        m.notes.append(f"{what} {dataset.name}, {numbers}: {', '.join(wrong.values())}")
