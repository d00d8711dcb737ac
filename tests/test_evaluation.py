"""Metrics against hand-worked tables and brute force; statistics against loops that do what the words say."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.experiments.statistics import RESAMPLED, bootstrap_over_classes, paired, ranks_over_classes
from core.files.errors import UserError
from core.training.evaluation import (
    ScoredImages,
    calibrated,
    compact,
    curve_from_compact,
    evaluate,
    harmonic,
    metrics_from_compact,
    per_class_accuracy,
    predictions,
)

SEEN, UNSEEN = np.array([0, 2]), np.array([1, 3])


def scored(ss, ys, su, yu, seen=SEEN, unseen=UNSEEN, **more):
    sides = {"scores_seen": ss, "labels_seen": ys, "scores_unseen": su, "labels_unseen": yu}
    return ScoredImages(**sides, seen=seen, unseen=unseen, **more)


def predict(scores, seen, unseen, gamma):
    """Brute force: the highest of all calibrated scores."""
    return calibrated(scores, seen, unseen, gamma).argmax(axis=1)


def test_hand_worked_table():
    # classes 0, 2 seen; 1, 3 unseen
    s = np.array([[3, 0, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0.5]], dtype=float)  # right, stolen by unseen 1, right
    u = np.array([[2, 1, 0, 0], [0, 3, 0, 0], [0, 2, 0, 1]], dtype=float)  # 1 lost to seen; 1 right; 3 taken for 1
    m = evaluate(scored(s, np.array([0, 0, 2]), u, np.array([1, 1, 3])), gamma=0.0)
    assert pytest.approx((1 / 2 + 1) / 2) == m.S
    assert pytest.approx((1 / 2 + 0) / 2) == m.U
    assert pytest.approx((1 + 0) / 2) == m.T1
    assert pytest.approx(harmonic(0.25, 0.75)) == m.H
    # points of the curve (U,S): (0,1) (1/4,1) at -3, (1/4,3/4) at -1, (1/4,1/4) at .5, (1/2,1/4) at 1, (1/2,0) at 3
    assert pytest.approx(0.25 * 1 + 0.25 * 0.25) == m.AUSUC


@pytest.mark.parametrize(("labels", "score", "said"), [([0, 0], 0.0, "no test image"), ([0, 2], np.nan, "NaN")])
def test_what_has_no_accuracy_is_an_error_and_never_a_silent_0(labels, score, said):
    scores = np.full((2, 4), score)
    with pytest.raises(UserError, match=said):
        evaluate(scored(scores, np.array(labels), scores, UNSEEN), 0.0)


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    C = draw(st.integers(2, 6))
    unseen = np.arange(C)[: draw(st.integers(1, C - 1))]
    seen = np.setdiff1d(np.arange(C), unseen)
    n = draw(st.integers(0, 12))
    ys = np.concatenate([seen, rng.choice(seen, n)])
    yu = np.concatenate([unseen, rng.choice(unseen, n)])
    return rng.normal(size=(len(ys), C)), ys, rng.normal(size=(len(yu), C)), yu, seen, unseen


@settings(max_examples=150, deadline=None)
@given(problems())
def test_curve_equals_brute_force(problem):
    ss, ys, su, yu, seen, unseen = problem
    margins = np.concatenate([s[:, seen].max(1) - s[:, unseen].max(1) for s in (ss, su)])
    ticks = np.sort(margins)
    gammas = np.concatenate([[ticks[0] - 1], (ticks[1:] + ticks[:-1]) / 2, [ticks[-1] + 1]])
    us, hs = [], []
    for g in gammas:
        u = per_class_accuracy(predict(su, seen, unseen, g), yu, unseen).mean()
        s = per_class_accuracy(predict(ss, seen, unseen, g), ys, seen).mean()
        us.append((u, s))
        hs.append(harmonic(u, s))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(us))
    m = evaluate(scored(*problem), None)
    assert pytest.approx(area) == m.AUSUC
    assert pytest.approx(max(hs)) == m.H
    condensed = compact(scored(*problem))
    curve = curve_from_compact(condensed)
    for g, (u, s) in zip(gammas, us, strict=True):
        assert curve.at(g) == pytest.approx((u, s))
        both = [predict(scores, seen, unseen, g) for scores in (ss, su)]
        assert np.array_equal(predictions(condensed, g), np.concatenate(both))
    assert np.all(np.diff(curve.U) >= 0) and np.all(np.diff(curve.S) <= 0)
    for g in margins:  # at an image's margin its unseen class wins, in the curve and in what is predicted
        said_s, said_u = np.split(predictions(condensed, g), [len(ys)])
        assert curve.at(g) == pytest.approx(
            (per_class_accuracy(said_u, yu, unseen).mean(), per_class_accuracy(said_s, ys, seen).mean())
        )


def test_gamma_is_added_to_unseen_classes_and_seen_ones_keep_their_scores():
    scores = np.array([[0.5, 0.25, -1.0, 2.0]], dtype=np.float32)
    shown = calibrated(scores, np.array([0, 2]), np.array([1]), 0.75)
    assert shown.tolist() == [[0.5, 1.0, -1.0, -np.inf]] and shown.dtype == np.float64


def test_where_a_seen_and_an_unseen_image_have_one_margin_the_curve_falls_aslant():
    """(0,1) to (1/2,1/2) to (1,0): with ties the area is of the line between points, not of steps."""
    ss, su = np.array([[1.0, 0, -9, -9], [-9, 0, 2, -9]]), np.array([[1.0, 0, -9, -9], [-9, -9, 2, 0]])
    m = evaluate(scored(ss, np.array([0, 2]), su, np.array([1, 3])), None)
    assert pytest.approx(0.5) == m.AUSUC and pytest.approx(0.5) == m.H and m.gamma == pytest.approx(1.5)


def test_of_two_gammas_with_the_highest_h_the_lower_is_taken():
    """U rises at -3 and 1, S falls at 0 and 4: (1/2,1) and (1,1/2) have H 2/3 both."""
    ss, su = np.array([[0.0, 0, -9, -9], [-9, 0, 4, -9]]), np.array([[-3.0, 0, -9, -9], [-9, -9, 1, 0]])
    m = evaluate(scored(ss, np.array([0, 2]), su, np.array([1, 3])), None)
    assert (m.gamma, m.U, m.S) == (-1.5, 0.5, 1.0) and pytest.approx(2 / 3) == m.H


def test_a_candidate_competes_and_is_in_no_mean():
    """Of four classes 0 and 2 are seen; class 1 has a candidate's place: it has no images, and takes one of class 3."""
    su = np.array([[0.0, 9, 0, 0], [0, 0, 0, 9]])
    sides = np.eye(4)[SEEN], SEEN, su, np.array([3, 3])
    m = evaluate(scored(*sides, candidates=np.array([1])), 0.0)
    assert m.T1 == m.U == 0.5
    with pytest.raises(UserError, match="no test image"):
        evaluate(scored(*sides), 0.0)


def test_scores_in_pieces_are_the_scores():
    rng = np.random.default_rng(0)
    labels = [np.resize(SEEN, 1025), np.resize(UNSEEN, 511)]
    ss, su = (rng.standard_normal((len(y), 4)) for y in labels)
    whole = compact(scored(ss, labels[0], su, labels[1]))
    found = compact(scored(*(p for s, y in zip((ss, su), labels, strict=True) for p in (np.array_split(s, 40), y))))
    assert all(np.array_equal(whole[key], found[key]) and whole[key].dtype == found[key].dtype for key in whole)
    said = np.concatenate([predict(scores, SEEN, UNSEEN, 0.3) for scores in (ss, su)])
    assert np.array_equal(predictions(whole, 0.3), said)


# ---- statistics

SOME, OTHERS = np.array([0, 2, 5, 6]), np.array([1, 3, 4])  # seen and unseen classes


def scores_of(seed, helped=1.5, per_class=6):
    """Scores (N,C) and labels of both sides; a few of them tie."""
    rng = np.random.default_rng(seed)
    sides = []
    for classes in (SOME, OTHERS):
        labels = np.repeat(classes, per_class)
        scores = rng.normal(size=(len(labels), 7)).round(1)
        scores[np.arange(len(labels)), labels] += helped
        scores[:, SOME] += 0.7
        sides += [scores, labels]
    return sides


def run_of(seed, **options):
    return compact(scored(*scores_of(seed, **options), SOME, OTHERS))


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
    counts = [rng.multinomial(len(c), np.full(len(c), 1 / len(c)), size=40) for c in (OTHERS, SOME)]
    both = []
    for n_unseen, n_seen in zip(*counts, strict=True):
        drawn = np.repeat(OTHERS, n_unseen), np.repeat(SOME, n_seen)
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
