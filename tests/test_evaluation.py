"""Metrics against hand-worked tables, brute force and torchmetrics."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.files.errors import UserError
from core.training.evaluation import (
    ScoredImages,
    calibrated,
    compact,
    curve_from_compact,
    evaluate,
    harmonic,
    per_class_accuracy,
    predictions,
)

SEEN, UNSEEN = np.array([0, 2]), np.array([1, 3])


def scored(ss, ys, su, yu, seen=SEEN, unseen=UNSEEN):
    return ScoredImages(scores_seen=ss, labels_seen=ys, scores_unseen=su, labels_unseen=yu, seen=seen, unseen=unseen)


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


def test_scores_in_pieces_are_the_scores():
    rng = np.random.default_rng(0)
    labels = [np.resize(SEEN, 1025), np.resize(UNSEEN, 511)]
    ss, su = (rng.standard_normal((len(y), 4)) for y in labels)
    whole = compact(scored(ss, labels[0], su, labels[1]))
    found = compact(scored(*(p for s, y in zip((ss, su), labels, strict=True) for p in (np.array_split(s, 40), y))))
    assert all(np.array_equal(whole[key], found[key]) and whole[key].dtype == found[key].dtype for key in whole)
    said = np.concatenate([predict(scores, SEEN, UNSEEN, 0.3) for scores in (ss, su)])
    assert np.array_equal(predictions(whole, 0.3), said)
