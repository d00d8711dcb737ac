"""Accuracy of zero-shot and generalised zero-shot recognition: T1, U, S, H and the exact AUSUC.

Every accuracy is the mean over classes of per-class top-1. Calibrated stacking (Chao et al., ECCV 2016) adds γ to the
scores of unseen classes; raising γ trades seen accuracy S for unseen accuracy U, and AUSUC is the area under S over U.

All of it depends on three things an image: its best seen class, its best unseen class, and the margin between the two.
:func:`compact` reduces scores (N,C) to these, which are stored with a run and give every metric.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

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
    """Top-1 accuracy (len(classes),) of each of ``classes``; one without an image is an error, never a 0 or NaN."""
    length = int(classes.max(initial=-1)) + 1
    counts, hits = (np.bincount(y, minlength=length)[classes] for y in (labels, labels[predicted == labels]))
    if (empty := classes[counts == 0]).size:
        raise UserError(f"{empty.size} classes have no test image (first: number {empty[0]}); accuracy is undefined")
    return hits / counts


@dataclass(frozen=True)
class CalibrationCurve:
    """U and S as step functions of γ: value i holds from thresholds[i-1] on, up to but without thresholds[i]."""

    thresholds: np.ndarray  # (T,) ascending
    U: np.ndarray  # (T+1,) never falls
    S: np.ndarray  # (T+1,) never rises

    @property
    def area(self) -> float:
        """AUSUC: exact area, by trapezoids between the points of the curve, of which the first has U = 0."""
        return float(np.sum(np.diff(self.U) * (self.S[1:] + self.S[:-1]) / 2))

    def at(self, gamma: float) -> tuple[float, float]:
        """(U, S) at γ. Where γ equals a margin, the image is predicted as its best unseen class."""
        i = int(np.searchsorted(self.thresholds, gamma, side="right"))
        return float(self.U[i]), float(self.S[i])

    def best(self) -> float:
        """The γ of the highest H: the middle of the interval in which it holds, 1 beyond the ends of the curve."""
        if not len(self.thresholds):
            return 0.0
        total, t = self.U + self.S, self.thresholds
        i = int(np.argmax(np.divide(2 * self.U * self.S, total, out=np.zeros_like(total), where=total > 0)))
        ends = {0: t[0] - 1.0, len(t): t[-1] + 1.0}
        return float(ends[i] if i in ends else (t[i - 1] + t[i]) / 2)


Scores = np.ndarray | Iterable[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ScoredImages:
    """Scores (N,C) of test images, whole or in pieces (n,C) that come one at a time, and their class numbers (N,)."""

    scores_seen: Scores
    labels_seen: np.ndarray
    scores_unseen: Scores
    labels_unseen: np.ndarray
    seen: np.ndarray  # (S,) class numbers
    unseen: np.ndarray  # (U,)
    candidates: Sequence[int] | np.ndarray = ()  # of ``unseen``, without an image: they compete, and are in no mean


def compact(
    images: ScoredImages, confidence: Callable[[np.ndarray], np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """All that the metrics need of scores (N,C): five arrays (N,), seen classes' images first.

    ``labels``; ``side``, 1 for an image of an unseen class; ``best_seen`` and ``best_unseen``, the class numbers of the
    highest score on either side; ``margin``, by how much the former is ahead. An image is predicted as its best unseen
    class once γ reaches its margin. A sixth is ``confidence``, where a function makes it of scores (n,C).
    """
    labels = images.labels_seen, images.labels_unseen
    for y, classes in zip(labels, (images.seen, np.setdiff1d(images.unseen, images.candidates)), strict=True):
        per_class_accuracy(y, y, classes)  # every class has an image
    offered = images.seen, images.unseen if len(images.unseen) else images.seen
    reduced: list[tuple[np.ndarray, ...]] = []
    for given in (images.scores_seen, images.scores_unseen):
        for scores in np.array_split(given, len(given) // _CACHED + 1) if isinstance(given, np.ndarray) else given:
            if not np.isfinite(scores).all():
                raise UserError(
                    "the model's scores hold NaN or infinity: training diverged; try a lower --lr where there is one"
                )
            # take() returns C order; scores[:, classes] returns F order, on which argmax is three times slower
            best = [side[scores.take(side, axis=1).argmax(axis=1)] for side in offered]
            seen_score, unseen_score = (scores[np.arange(len(scores)), side] for side in best)
            margin = seen_score - unseen_score if len(images.unseen) else np.full(len(scores), np.inf)
            said = [confidence(scores)] if confidence else []
            reduced.append((*(classes.astype(np.int32) for classes in best), margin, *said))
    arrays = map(np.concatenate, zip(*reduced, strict=True))
    return {
        "labels": np.concatenate(labels).astype(np.int32),
        "side": np.repeat(np.array([0, 1], dtype=np.uint8), [len(y) for y in labels]),
        **dict(zip(("best_seen", "best_unseen", "margin", "confidence"), arrays, strict=False)),
    }


def class_weights(labels: np.ndarray, side: np.ndarray) -> np.ndarray:
    """(N,) what each image counts in a mean over the classes of its side of means over their images."""
    U, S = (len(np.unique(labels[side == s])) for s in (1, 0))
    return np.asarray(1.0 / (np.bincount(labels)[labels] * np.where(side, U, S)))


def curve_from_compact(arrays: Mapping[str, np.ndarray]) -> CalibrationCurve:
    """The whole calibration curve from what :func:`compact` returns, in O(N log N)."""
    unseen = arrays["side"].astype(bool)
    labels, margin = arrays["labels"], arrays["margin"].astype(np.float64)
    weight = class_weights(labels, arrays["side"])
    right_s = ~unseen & (arrays["best_seen"] == labels)
    right_u = unseen & (arrays["best_unseen"] == labels)
    thresholds = np.unique(margin[right_s | right_u])
    lost, won = (
        np.bincount(np.searchsorted(thresholds, margin[right]), weights=weight[right], minlength=len(thresholds))
        for right in (right_s, right_u)
    )
    s = weight[right_s].sum() - np.concatenate([[0.0], np.cumsum(lost)])
    u = np.concatenate([[0.0], np.cumsum(won)])
    return CalibrationCurve(thresholds, np.clip(u, 0.0, 1.0), np.clip(s, 0.0, 1.0))


def metrics_from_compact(arrays: Mapping[str, np.ndarray], gamma: float | None) -> Metrics:
    """All metrics from what :func:`compact` returns.

    ``gamma`` is added to unseen scores; None picks the γ of the highest H on these very images (validation only).
    """
    curve = curve_from_compact(arrays)
    gamma = float(curve.best() if gamma is None else gamma)
    u, s = curve.at(gamma)
    # T1, accuracy among unseen classes alone, is U once γ excludes the seen ones
    return Metrics(T1=float(curve.U[-1]), U=u, S=s, H=harmonic(u, s), AUSUC=curve.area, gamma=gamma)


def standard(arrays: Mapping[str, np.ndarray], gamma: float) -> dict[str, float]:
    """The metrics at γ by name, with H without calibration, and the highest H of any γ: that γ is chosen on test."""
    curve = curve_from_compact(arrays)
    also = {"H_gamma0": harmonic(*curve.at(0.0)), "H_best": harmonic(*curve.at(curve.best()))}
    return asdict(metrics_from_compact(arrays, gamma)) | also


def predictions(arrays: Mapping[str, np.ndarray], gamma: float) -> np.ndarray:
    """Class numbers (N,) at γ, from what :func:`compact` returns; at an image's margin its unseen class wins."""
    return np.where(gamma >= arrays["margin"].astype(np.float64), arrays["best_unseen"], arrays["best_seen"])


def reliability(arrays: Mapping[str, np.ndarray], gamma: float) -> np.ndarray:
    """(bins,3) by tenths of the probability that was said: share of the images in it, mean of the probability, and how
    many were right. Every class of a side counts the same, and both sides, as in H.

    ``arrays``: those of :func:`compact`, and ``confidence`` (N,), the probability of the class that was named.
    """
    labels, p = arrays["labels"], arrays["confidence"].astype(np.float64)
    weight, tenth = class_weights(labels, arrays["side"]), np.minimum((p * 10).astype(int), 9)
    right = predictions(arrays, gamma) == labels
    sums = [np.bincount(tenth, weight * of, minlength=10) for of in (np.ones_like(p), p, right)]
    return np.stack([sums[0] / weight.sum(), *(s / np.maximum(sums[0], 1e-12) for s in sums[1:])], axis=1)


def calibration_error(arrays: Mapping[str, np.ndarray], gamma: float) -> float:
    """ECE: by how far probabilities are from shares of right answers, mean over the images of :func:`reliability`."""
    share, said, right = reliability(arrays, gamma).T
    return float((share * np.abs(said - right)).sum())


def sample(N: int) -> np.ndarray:
    """Numbers of at most a thousand of N images, evenly spaced: they stand for all where a unit is measured."""
    return np.linspace(0, N - 1, min(N, 1024)).round().astype(int)


def spread(scores: Iterable[np.ndarray]) -> float:
    """Standard deviation of scores (n,C), block by block, each image's mean over classes taken away."""
    blocks = [block - block.mean(axis=1, keepdims=True, dtype=np.float64) for block in scores]
    return float(np.sqrt(sum(float(np.square(b).sum()) for b in blocks) / sum(b.size for b in blocks)))


def evaluate(images: ScoredImages, gamma: float | None) -> Metrics:
    """All metrics of one model, the one function every method is measured with; ``gamma`` as below."""
    return metrics_from_compact(compact(images), gamma)


def calibrated(scores: np.ndarray, seen: np.ndarray, unseen: np.ndarray, gamma: float | np.ndarray) -> np.ndarray:
    """Scores (N,C) in float64 with γ, one or (U,), added to unseen classes; classes of neither side are -inf."""
    offered = np.full(scores.shape, -np.inf)
    offered[:, seen] = scores[:, seen]
    offered[:, unseen] = scores[:, unseen].astype(np.float64) + gamma
    return offered
