"""Whether a difference is more than chance: paired over seeds, and paired over classes.

Seeds (each with its own validation split) say how far a method's number depends on chance in training and selection.
Classes say how far it depends on which classes happened to be in the test set: with 50 unseen classes T1 has a standard
error of about 3 points, most of it common to two methods, so the difference is taken on the same resampled classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.files.errors import UserError

RESAMPLED = ("T1", "U", "S", "H", "AUSUC")
_SIGNS = 1 << 16  # most signs that are tried: all up to 16 seeds, beyond them drawn
_BLOCK = 1 << 22  # numbers of a block of resampled curves: 32 MB


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number with its 95 % confidence interval, in the unit of what went in."""

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0 (95 %, two-sided)."""
        return self.low > 0 or self.high < 0


def paired(a: Any, b: Any) -> tuple[Interval, float]:
    """The difference a - b of values (n,) of the same n seeds, two or more of them, with the interval of the t
    distribution; and p of the two-sided sign-flip test, which cannot go below 2^(1-n).
    """
    import scipy.stats  # half a second, which a table of one seed need not wait for

    d = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    n, mean = len(d), float(d.mean())
    half = float(scipy.stats.t.ppf(0.975, n - 1) * d.std(ddof=1) / np.sqrt(n))
    flips = {"permutation_type": "samples", "n_resamples": min(2**n, _SIGNS), "random_state": 0}
    p = float(scipy.stats.permutation_test((d,), np.mean, **flips).pvalue)
    return Interval(mean=mean, low=mean - half, high=mean + half), p


def bootstrap_over_classes(
    a: Sequence[Mapping[str, np.ndarray]], b: Sequence[Mapping[str, np.ndarray]] = (), *, rng: np.random.Generator,
    resamples: int = 10_000,
) -> dict[str, Interval]:  # fmt: skip
    """T1, U, S, H and AUSUC of runs, or of ``a`` minus ``b``, with intervals over the draw of test classes, as shares.

    Unseen and seen classes are drawn anew with replacement, apart from each other, all images of a class together;
    ``a`` and ``b`` see the same draws. The candidates that a model chooses among stay as they are, so no prediction
    changes and a drawn set is a reweighting of the per-class curves, for AUSUC too (exact, not an approximation).
    Metrics are averaged over the runs of a side (seeds: what core.training.evaluation.compact returns of each); in
    each draw the γ of the highest H is chosen anew.
    """
    classes = [[np.unique(run["labels"][run["side"] == side]) for side in (1, 0)] for run in (*a, *b)]
    if any(not np.array_equal(one, other) for of_run in classes for one, other in zip(of_run, classes[0], strict=True)):
        raise UserError("the runs were tested on other classes, so they cannot be compared class by class")
    weights = [_weights(n, resamples, rng) for n in map(len, classes[0])]
    result = np.mean([_resampled(run, *weights) for run in a], axis=0)
    if b:
        result = result - np.mean([_resampled(run, *weights) for run in b], axis=0)
    return {key: _interval(values) for key, values in zip(RESAMPLED, result.T, strict=True)}


def ranks_over_classes(
    lines: Sequence[Sequence[Mapping[str, np.ndarray]]], *, rng: np.random.Generator, resamples: int = 10_000
) -> list[tuple[Interval, Interval]]:
    """AUSUC of each line of runs (a share, mean over its runs) and its rank among them, over the draw of test classes.

    All lines see the same draws: what makes a set of classes hard for all leaves the ranks alone.
    """
    areas = np.stack([np.mean([_by_class(run)[2] for run in runs], axis=0) for runs in lines])  # (L,U,S)
    w_u, w_s = (_weights(n, resamples, rng) for n in areas.shape[1:])
    found = np.einsum("nu,lus,ns->ln", w_u, areas, w_s, optimize=True)
    ranks = 1 + (found[None] > found[:, None] + 1e-12).sum(axis=1)
    return [(_interval(area), _interval(rank)) for area, rank in zip(found, ranks, strict=True)]


def _weights(n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(1+resamples,n) shares of n classes: as they are, then drawn with replacement."""
    return np.concatenate([np.full((1, n), 1 / n), rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n])


def _interval(values: np.ndarray) -> Interval:
    low, high = np.percentile(values[1:], (2.5, 97.5))
    return Interval(mean=float(values[0]), low=float(low), high=float(high))


def _by_class(run: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (U,T+1) and S (S,T+1) of every class as γ passes the thresholds, and areas (U,S) of one of either's curves."""
    labels, margin, unseen = run["labels"], run["margin"].astype(np.float64), run["side"].astype(bool)
    right = np.where(unseen, run["best_unseen"], run["best_seen"]) == labels
    thresholds, flips = np.unique(margin[right]), []  # per side (classes, T+1): shares of a class's images that flip
    for side in (unseen, ~unseen):
        classes, position, counts = np.unique(labels[side], return_inverse=True, return_counts=True)
        flip, hit = np.zeros((len(classes), len(thresholds) + 1)), right[side]
        np.add.at(flip, (position[hit], np.searchsorted(thresholds, margin[side][hit]) + 1), 1.0)
        flips.append(flip / counts[:, None])
    won, lost = flips
    S = lost.sum(axis=1, keepdims=True) - np.cumsum(lost, axis=1)
    return np.cumsum(won, axis=1), S, won[:, 1:] @ ((S[:, 1:] + S[:, :-1]) / 2).T


def _resampled(run: Mapping[str, np.ndarray], w_u: np.ndarray, w_s: np.ndarray) -> np.ndarray:
    """T1, U, S, H, AUSUC (n,5) of class weights (n,U) and (n,S) whose rows sum to 1, each at its γ of the highest H.

    Every metric is linear in the weights on either side: U_i(γ) and S_j(γ) of single classes are counted once.
    """
    U, S, area = _by_class(run)  # AUSUC: the weighted mean of the areas
    # points that can have the highest H: where U has just risen and S is about to fall
    corner = np.append(True, np.diff(U).any(axis=0)) & np.append(np.diff(S).any(axis=0), True)
    u_points, s_points = (np.ascontiguousarray(side[:, corner]) for side in (U, S))
    found = []
    for start in range(0, len(w_u), step := max(1, _BLOCK // corner.sum())):
        u, s = w_u[start : start + step] @ u_points, w_s[start : start + step] @ s_points
        h = np.divide(2 * u * s, u + s, out=np.zeros_like(u), where=u + s > 0)
        best = np.arange(len(h)), h.argmax(axis=1)
        found.append(np.stack([u[best], s[best], h[best]]))
    return np.stack([w_u @ U[:, -1], *np.hstack(found), np.einsum("nu,nu->n", w_u, w_s @ area.T)], axis=1)
