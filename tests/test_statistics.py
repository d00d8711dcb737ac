"""Statistics against loops that do what the words say: sign flips, resampled classes, coverage."""

import itertools

import numpy as np
import pytest

from core.experiments.statistics import RESAMPLED, bootstrap_over_classes, paired, ranks_over_classes
from core.files.errors import UserError
from core.training.evaluation import ScoredImages, compact, metrics_from_compact

SEEN, UNSEEN = np.array([0, 2, 5, 6]), np.array([1, 3, 4])


def scores_of(seed, helped=1.5, per_class=6):
    """Scores (N,C) and labels of both sides; a few of them tie."""
    rng = np.random.default_rng(seed)
    sides = []
    for classes in (SEEN, UNSEEN):
        labels = np.repeat(classes, per_class)
        scores = rng.normal(size=(len(labels), 7)).round(1)
        scores[np.arange(len(labels)), labels] += helped
        scores[:, SEEN] += 0.7
        sides += [scores, labels]
    return sides


def scored(scores_s, labels_s, scores_u, labels_u):
    sides = {"scores_seen": scores_s, "labels_seen": labels_s, "scores_unseen": scores_u, "labels_unseen": labels_u}
    return ScoredImages(**sides, seen=SEEN, unseen=UNSEEN)


def run_of(seed, **options):
    return compact(scored(*scores_of(seed, **options)))


def test_paired_by_hand():
    d, p = paired(np.array([3.0, 4.0, 5.0]), np.array([1.0, 2.0, 3.0]))
    assert d.mean == d.low == d.high == 2.0 and p == pytest.approx(2 / 8) and d.significant
    d, p = paired(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 4.0, 3.0]))
    assert d.mean == 0 and p == 1.0 and not d.significant
    # t interval of (1, 2, 3): mean 2, standard error 1/√3, t(0.975, 2) = 4.303
    d, _ = paired(np.array([1.0, 2.0, 3.0]), np.zeros(3))
    assert d.high - d.mean == pytest.approx(4.303 / 3**0.5, abs=1e-3)


@pytest.mark.parametrize("n", [2, 5, 10])
def test_sign_flip_equals_all_signs(n):
    d = np.random.default_rng(n).normal(0.5, 1, n)
    d[0] = -d[1]  # equal sums, which rounding must not tell apart
    sums = [abs(np.dot(signs, d)) for signs in itertools.product([1, -1], repeat=n)]
    assert paired(d, np.zeros(n))[1] == pytest.approx(np.mean(np.array(sums) >= abs(d.sum()) - 1e-9))


def test_bootstrap_of_what_is_there_equals_the_metrics():
    runs = [run_of(seed) for seed in range(3)]
    found = bootstrap_over_classes(runs, rng=np.random.default_rng(0), resamples=50)
    each = [metrics_from_compact(run, None) for run in runs]
    for key in RESAMPLED:
        assert found[key].mean == pytest.approx(np.mean([getattr(m, key) for m in each]), abs=1e-12)


def resampled_by_hand(arrays, drawn_unseen, drawn_seen):
    """The metrics of a test set in which every drawn class stands as a class of its own, images repeated."""
    images = []  # margin, weight, whether it is right, whether its class is unseen
    for unseen, classes in ((True, drawn_unseen), (False, drawn_seen)):
        for c in classes:
            mine = np.flatnonzero(arrays["labels"] == c)
            right = arrays["best_unseen" if unseen else "best_seen"][mine] == c
            images += [
                (m, 1 / (len(mine) * len(classes)), r, unseen)
                for m, r in zip(arrays["margin"][mine], right, strict=True)
            ]
    margins, weights, rights, sides = (np.array(values) for values in zip(*images, strict=True))

    def at(g):
        return weights[sides & rights & (margins <= g)].sum(), weights[~sides & rights & (margins > g)].sum()

    points = [at(g) for g in [margins.min() - 1, *np.unique(margins)]]
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
    H = max(2 * u * s / (u + s) if u + s else 0.0 for u, s in points)
    return {"T1": points[-1][0], "H": H, "AUSUC": area}


def of_unequal_classes(run):
    """The run without some images, so that classes have 6, 5, 4, ... of them."""
    kept = np.ones(len(run["labels"]), dtype=bool)
    for less, c in enumerate(np.unique(run["labels"])):
        kept[np.flatnonzero(run["labels"] == c)[: less % 5]] = False
    return {key: values[kept] for key, values in run.items()}


def test_bootstrap_equals_a_loop_over_drawn_test_sets():
    """U and S alone depend on which of two equal H is taken."""
    a, b = of_unequal_classes(run_of(1)), of_unequal_classes(run_of(2, helped=1.0))
    found = bootstrap_over_classes([a], [b], rng=np.random.default_rng(5), resamples=40)
    rng = np.random.default_rng(5)
    counts = [rng.multinomial(len(c), np.full(len(c), 1 / len(c)), size=40) for c in (UNSEEN, SEEN)]
    both = []
    for n_unseen, n_seen in zip(*counts, strict=True):
        drawn = np.repeat(UNSEEN, n_unseen), np.repeat(SEEN, n_seen)
        both.append([resampled_by_hand(run, *drawn) for run in (a, b)])
    for key in ("T1", "H", "AUSUC"):
        low, high = np.percentile([one[key] - two[key] for one, two in both], (2.5, 97.5))
        assert (found[key].low, found[key].high) == pytest.approx((low, high), abs=1e-12)


def test_runs_on_other_classes_are_refused():
    a, b = run_of(1), run_of(2)
    b["labels"] = np.where(b["labels"] == 6, 7, b["labels"])
    with pytest.raises(UserError, match="other classes"):
        bootstrap_over_classes([a], [b], rng=np.random.default_rng(0))


def test_ranks_are_those_of_the_same_drawn_test_sets():
    """The interval of AUSUC is the bootstrap's own; a line that is better in every class is first in every draw."""
    lines = [[run_of(1, helped=0.5)], [run_of(1), run_of(2)], [run_of(1, helped=9.0)]]
    found = ranks_over_classes(lines, rng=np.random.default_rng(3), resamples=60)
    for runs, (area, _) in zip(lines, found, strict=True):
        assert vars(area) == pytest.approx(
            vars(bootstrap_over_classes(runs, rng=np.random.default_rng(3), resamples=60)["AUSUC"])
        )
    assert [(r.mean, r.low, r.high) for _, r in found[1:]] == [(2, 2, 2), (1, 1, 1)]
    tied = ranks_over_classes([lines[0], lines[0]], rng=np.random.default_rng(3), resamples=9)
    assert [rank.high for _, rank in tied] == [1, 1]
