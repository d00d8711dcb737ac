"""Accuracy of zero-shot and generalised zero-shot recognition: T1, U, S, H and the exact AUSUC.

Every accuracy is the mean over classes of per-class top-1. Calibrated stacking (Chao et al., ECCV 2016) adds γ to the
scores of unseen classes; raising γ trades seen accuracy S for unseen accuracy U, and AUSUC is the area under S over U.
"""

from __future__ import annotations

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
    """Top-1 accuracy of each of ``classes``: (len(classes),).

    Raises:
        UserError: a class has no sample, so its accuracy is undefined (never a silent 0 or NaN).
    """
    counts = np.bincount(labels, minlength=int(classes.max()) + 1)[classes]
    if not counts.all():
        raise UserError(f"the classes {classes[counts == 0][:10].tolist()} have no test image; accuracy is undefined")
    hits = np.bincount(labels[predicted == labels], minlength=int(classes.max()) + 1)[classes]
    return hits / counts


@dataclass(frozen=True)
class CalibrationCurve:
    """U and S as step functions of γ: value i holds between thresholds[i-1] and thresholds[i]."""

    thresholds: np.ndarray  # (T,) ascending
    U: np.ndarray  # (T+1,) never falls
    S: np.ndarray  # (T+1,) never rises

    @property
    def T1(self) -> float:
        """Accuracy among unseen classes alone, which is U where γ excludes the seen ones."""
        return float(self.U[-1])

    @property
    def area(self) -> float:
        """AUSUC: exact area, by trapezoids between the points of the curve, from U = 0 on."""
        u = np.concatenate([[0.0], self.U])
        s = np.concatenate([self.S[:1], self.S])
        return float(np.sum(np.diff(u) * (s[1:] + s[:-1]) / 2))

    def at(self, gamma: float) -> tuple[float, float]:
        """(U, S) at γ; on a threshold the class with the unseen label wins."""
        i = int(np.searchsorted(self.thresholds, gamma, side="right"))
        return float(self.U[i]), float(self.S[i])

    def best(self) -> float:
        """The γ of the highest H: the middle of its interval."""
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


def calibration_curve(
    scores_seen: np.ndarray,
    labels_seen: np.ndarray,
    scores_unseen: np.ndarray,
    labels_unseen: np.ndarray,
    seen: np.ndarray,
    unseen: np.ndarray,
) -> CalibrationCurve:
    """The whole curve from scores (N,C) of test images of seen and of unseen classes, in O(N (C + log N))."""
    # an image flips from seen to unseen prediction where γ passes its margin
    weight_s = _weights(labels_seen, seen)
    weight_u = _weights(labels_unseen, unseen)
    margin_s, seen_s, _ = _best_two(scores_seen, seen, unseen)
    margin_u, _, unseen_u = _best_two(scores_unseen, seen, unseen)
    right_s, right_u = seen_s == labels_seen, unseen_u == labels_unseen

    thresholds = np.unique(np.concatenate([margin_s[right_s], margin_u[right_u]]).astype(np.float64))
    lost = np.bincount(
        np.searchsorted(thresholds, margin_s[right_s]), weights=weight_s[right_s], minlength=len(thresholds)
    )
    won = np.bincount(
        np.searchsorted(thresholds, margin_u[right_u]), weights=weight_u[right_u], minlength=len(thresholds)
    )
    s = weight_s[right_s].sum() - np.concatenate([[0.0], np.cumsum(lost)])
    u = np.concatenate([[0.0], np.cumsum(won)])
    return CalibrationCurve(thresholds, np.clip(u, 0.0, 1.0), np.clip(s, 0.0, 1.0))


def _best_two(scores: np.ndarray, seen: np.ndarray, unseen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By how much the best seen class is ahead of the best unseen one (N,), and these two classes (N,) each."""
    margin = np.empty(len(scores), dtype=scores.dtype)
    first, second = (np.empty(len(scores), dtype=group.dtype) for group in (seen, unseen))
    for start in range(0, len(scores), _CACHED):
        here = slice(start, start + _CACHED)
        block = scores[here]
        rows = np.arange(len(block))
        # take leaves rows contiguous; indexing with [:, group] leaves columns so, which is three times slower here
        first[here], second[here] = (group[block.take(group, axis=1).argmax(axis=1)] for group in (seen, unseen))
        margin[here] = block[rows, first[here]] - block[rows, second[here]]
    return margin, first, second


def _weights(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """What each image counts in a mean of per-class accuracies."""
    counts = np.bincount(labels, minlength=int(classes.max()) + 1)
    if not counts[classes].all():
        empty = classes[counts[classes] == 0]
        raise UserError(f"the classes {empty[:10].tolist()} have no test image; accuracy is undefined")
    return 1.0 / (counts[labels] * len(classes))


def evaluate(
    scores_seen: np.ndarray,
    labels_seen: np.ndarray,
    scores_unseen: np.ndarray,
    labels_unseen: np.ndarray,
    seen: np.ndarray,
    unseen: np.ndarray,
    gamma: float | None,
) -> Metrics:
    """All metrics of one model; the one function every method is measured with.

    Args:
        scores_seen, scores_unseen: (N,C) scores of the test images of seen and of unseen classes.
        seen, unseen: the class numbers of either side.
        gamma: added to unseen scores; None picks the γ of the highest H on these very images (validation only).

    Raises:
        UserError: scores not finite, or a class without test images.
    """
    if not (np.isfinite(scores_seen).all() and np.isfinite(scores_unseen).all()):
        raise UserError("the model's scores hold NaN or infinity; training diverged (try a lower --lr)")
    curve = calibration_curve(scores_seen, labels_seen, scores_unseen, labels_unseen, seen, unseen)
    gamma = curve.best() if gamma is None else gamma
    u, s = curve.at(gamma)
    return Metrics(T1=curve.T1, U=u, S=s, H=harmonic(u, s), AUSUC=curve.area, gamma=float(gamma))


def predict(scores: np.ndarray, seen: np.ndarray, unseen: np.ndarray, gamma: float) -> np.ndarray:
    """Generalised prediction (N,) among seen and unseen classes after calibrated stacking; others are not offered."""
    calibrated = np.full(scores.shape, -np.inf)
    calibrated[:, seen] = scores[:, seen]
    calibrated[:, unseen] = scores[:, unseen].astype(np.float64) + gamma
    return calibrated.argmax(axis=1)
