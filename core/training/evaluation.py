"""Accuracy of zero-shot and generalised zero-shot recognition: T1, U, S, H and the exact AUSUC.

Every accuracy is the mean over classes of per-class top-1. Calibrated stacking (Chao et al., ECCV 2016) adds γ to the
scores of unseen classes; raising γ trades seen accuracy S for unseen accuracy U, and AUSUC is the area under S over U.

All of it depends on three things an image: its best seen class, its best unseen class, and the margin between the two.
:func:`compact` reduces scores (N,C) to these; every metric is computed from the reduced form, which is small enough to
be stored with a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.files.errors import UserError

_CACHED = 512  # images taken at a time: their scores stay in the processor's cache


@dataclass(frozen=True)
class Metrics:
    """Shares in [0, 1]; γ in the unit of the scores."""

    T1: float
    U: float
    S: float
    H: float
    AUSUC: float
    gamma: float


def harmonic(u: float, s: float) -> float:
    """H = 2US / (U + S), 0 where both are 0."""
    return 2 * u * s / (u + s) if u + s > 0 else 0.0


def per_class_accuracy(predicted: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Top-1 accuracy (len(classes),) of each of ``classes``, from predicted and true class numbers (N,) each.

    Raises:
        UserError: a class has no image, so its accuracy is undefined (never a silent 0 or NaN).
    """
    length = int(classes.max()) + 1
    counts, hits = (np.bincount(y, minlength=length)[classes] for y in (labels, labels[predicted == labels]))
    if (empty := classes[counts == 0]).size:
        more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
        raise UserError(f"the classes {empty[:10].tolist()}{more} have no test image; accuracy is undefined")
    return hits / counts


@dataclass(frozen=True)
class CalibrationCurve:
    """U and S as step functions of γ: value i holds from thresholds[i-1] on, up to but without thresholds[i]."""

    thresholds: np.ndarray  # (T,) ascending
    U: np.ndarray  # (T+1,) never falls
    S: np.ndarray  # (T+1,) never rises

    @property
    def T1(self) -> float:
        """Accuracy among unseen classes alone, which is U once γ excludes the seen ones."""
        return float(self.U[-1])

    @property
    def area(self) -> float:
        """AUSUC: exact area, by trapezoids between the points of the curve, from U = 0 on."""
        u = np.concatenate([[0.0], self.U])
        s = np.concatenate([self.S[:1], self.S])
        return float(np.sum(np.diff(u) * (s[1:] + s[:-1]) / 2))

    def at(self, gamma: float) -> tuple[float, float]:
        """(U, S) at γ. Where γ equals a margin, the image is predicted as its best unseen class."""
        i = int(np.searchsorted(self.thresholds, gamma, side="right"))
        return float(self.U[i]), float(self.S[i])

    def H_at(self, gamma: float) -> float:
        """Harmonic mean of U and S at γ."""
        return harmonic(*self.at(gamma))

    def best(self) -> float:
        """The γ of the highest H: the middle of the interval in which it holds."""
        total = self.U + self.S
        h = np.divide(2 * self.U * self.S, total, out=np.zeros_like(total), where=total > 0)
        i = int(np.argmax(h))
        if not len(self.thresholds):
            return 0.0
        low = self.thresholds[max(i - 1, 0)]
        high = self.thresholds[min(i, len(self.thresholds) - 1)]
        if i == 0:
            return float(low) - 1.0
        if i == len(self.thresholds):
            return float(high) + 1.0
        return float((low + high) / 2)


@dataclass(frozen=True, kw_only=True)
class ScoredImages:
    """What a model made of test images: scores (N,C) and class numbers (N,) of those of seen and of unseen classes.

    Scores may also come in pieces (n,C), in the order of the labels, of which only one is held at a time.
    """

    scores_seen: np.ndarray | Iterator[np.ndarray]
    labels_seen: np.ndarray
    scores_unseen: np.ndarray | Iterator[np.ndarray]
    labels_unseen: np.ndarray
    seen: np.ndarray  # (S,) class numbers
    unseen: np.ndarray  # (U,)
    # those of ``unseen`` that no image is of: they compete in every prediction, right answers they cannot be, and no
    # mean is over them
    candidates: Sequence[int] | np.ndarray = ()


def compact(images: ScoredImages) -> dict[str, np.ndarray]:
    """All that the metrics need of scores (N,C): five arrays (N,), seen classes' images first.

    ``labels``; ``side``, 1 for an image of an unseen class; ``best_seen`` and ``best_unseen``, the class numbers of the
    highest score on either side; ``margin``, by how much the former is ahead, in the unit of the scores. An image is
    predicted as its best unseen class once γ reaches its margin. About 17 bytes an image.

    Raises:
        UserError: scores not finite, or a class of ``seen`` or ``unseen`` without test images, ``candidates`` excepted.
        ValueError: an image's label is not among the classes of its side, or there is not a row of scores for each.
    """
    scores, labels = (images.scores_seen, images.scores_unseen), (images.labels_seen, images.labels_unseen)
    parts = []
    for given, y, classes in zip(
        scores, labels, (images.seen, np.setdiff1d(images.unseen, images.candidates)), strict=True
    ):
        per_class_accuracy(y, y, classes)
        if not np.isin(y, classes).all():
            raise ValueError("a test image's label is no class of its side")
        pieces = iter((given,)) if isinstance(given, np.ndarray) else given
        found = list(map(lambda s: _reduced(s, images), pieces))
        if (rows := sum(len(margin) for margin, *_ in found)) != len(y):
            raise ValueError(f"scores of {rows} images, labels of {len(y)}")
        parts += found
    margin, best_seen, best_unseen = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return {
        "labels": np.concatenate(labels).astype(np.int32),
        "side": np.repeat(np.array([0, 1], dtype=np.uint8), [len(y) for y in labels]),
        "best_seen": best_seen.astype(np.int32),
        "best_unseen": best_unseen.astype(np.int32),
        "margin": margin,
    }


def _reduced(scores: np.ndarray, images: ScoredImages) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By how much the best seen class is ahead of the best unseen one (n,), and these two classes (n,) each."""
    if not np.isfinite(scores).all():
        raise UserError(
            "the model's scores hold NaN or infinity; training diverged (try a lower --lr where the method has one)"
        )
    seen, unseen = images.seen, images.unseen
    margin = np.empty(len(scores), dtype=scores.dtype)
    best_seen, best_unseen = (np.empty(len(scores), dtype=classes.dtype) for classes in (seen, unseen))
    for start in range(0, len(scores), _CACHED):
        here = slice(start, start + _CACHED)
        block = scores[here]
        rows = np.arange(len(block))
        # take() returns C order; block[:, classes] returns F order, on which argmax is three times slower
        best_seen[here], best_unseen[here] = (
            classes[block.take(classes, axis=1).argmax(axis=1)] for classes in (seen, unseen)
        )
        margin[here] = block[rows, best_seen[here]] - block[rows, best_unseen[here]]
    return margin, best_seen, best_unseen


def curve_from_compact(arrays: Mapping[str, np.ndarray]) -> CalibrationCurve:
    """The whole calibration curve from what :func:`compact` returns, in O(N log N)."""
    of_unseen = arrays["side"].astype(bool)
    labels, margin = arrays["labels"], arrays["margin"].astype(np.float64)
    counts = np.bincount(labels)
    sizes = [len(np.unique(labels[side])) for side in (~of_unseen, of_unseen)]
    weight = 1.0 / (counts[labels] * np.where(of_unseen, sizes[1], sizes[0]))  # in a mean of per-class accuracies
    right_s = ~of_unseen & (arrays["best_seen"] == labels)
    right_u = of_unseen & (arrays["best_unseen"] == labels)

    thresholds = np.unique(margin[right_s | right_u])
    lost, won = (
        np.bincount(np.searchsorted(thresholds, margin[right]), weights=weight[right], minlength=len(thresholds))
        for right in (right_s, right_u)
    )
    s = weight[right_s].sum() - np.concatenate([[0.0], np.cumsum(lost)])
    u = np.concatenate([[0.0], np.cumsum(won)])
    return CalibrationCurve(thresholds, np.clip(u, 0.0, 1.0), np.clip(s, 0.0, 1.0))


def metrics_from_compact(arrays: Mapping[str, np.ndarray], gamma: float | None) -> Metrics:
    """All metrics from what :func:`compact` returns; ``gamma`` as for :func:`evaluate`."""
    curve = curve_from_compact(arrays)
    gamma = curve.best() if gamma is None else gamma
    u, s = curve.at(gamma)
    return Metrics(T1=curve.T1, U=u, S=s, H=harmonic(u, s), AUSUC=curve.area, gamma=float(gamma))


def predictions(arrays: Mapping[str, np.ndarray], gamma: float) -> np.ndarray:
    """Class numbers (N,) at γ, from what :func:`compact` returns; at an image's margin its unseen class wins."""
    return np.where(gamma >= arrays["margin"].astype(np.float64), arrays["best_unseen"], arrays["best_seen"])


def evaluate(images: ScoredImages, gamma: float | None) -> Metrics:
    """All metrics of one model; the one function every method is measured with.

    Args:
        gamma: added to unseen scores; None picks the γ of the highest H on these very images (validation only).

    Raises:
        UserError: scores not finite, or a class without test images.
    """
    return metrics_from_compact(compact(images), gamma)


def calibrated(scores: np.ndarray, seen: np.ndarray, unseen: np.ndarray, gamma: float) -> np.ndarray:
    """Scores (N,C) in float64 with γ added to unseen classes; classes of neither side are -inf."""
    offered = np.full(scores.shape, -np.inf)
    offered[:, seen] = scores[:, seen]
    offered[:, unseen] = scores[:, unseen].astype(np.float64) + gamma
    return offered
