"""Pointing against figures worked out by hand."""

import numpy as np
import pytest

from studies.part_measures import Parts, localisation_table, predicted_points


def parts(points, labels=None):
    labels = np.arange(len(points)) if labels is None else labels
    return Parts(points=np.asarray(points, dtype=float), groups=((0,),), labels=labels)


def test_the_attribute_of_the_highest_value_speaks_for_its_group():
    theta = np.zeros((2, 4, 3))
    for attribute, cell in enumerate((0, 3, 1)):
        theta[:, cell, attribute] = 1.0
    values = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 5.0]])
    points = predicted_points(theta, values, np.array([0, 0, 1]), 2, (2, 2))
    # group 0: attribute 0 (upper left), then attribute 1 (lower right); group 1: attribute 2 (upper right)
    assert points[:, 0].tolist() == [[0.25, 0.25], [0.75, 0.75]]
    assert points[:, 1].tolist() == [[0.75, 0.25]] * 2


def test_the_table_by_hand():
    shown = [[[0.25, 0.25, 1]], [[0.75, 0.25, 1]], [[0.5, 0.5, 1]], [[0.1, 0.1, 0]]]
    test, training = parts(shown, np.array([4, 4, 7, 7])), parts([[[0.25, 0.25, 1]]])
    model = np.array([[0.75, 0.75], [0.75, 0.34], [0.25, 0.25], [0.1, 0.1]])[:, None]
    rng = np.random.default_rng(0)
    table = localisation_table({"vsmr": model}, test, training, grid=(2, 2), radius=0.1, rng=rng, resamples=500)
    shares = table.set_index("point")
    # of four cells one hits in the first two images, none in the third; the fourth shows no part
    assert list(shares.index) == ["random cell", "image centre", "part prior", "vsmr", "best cell"]
    assert shares.share.tolist() == pytest.approx([(1 / 4 + 1 / 4 + 0) / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert set(shares.pairs) == {3}
    # classes 4 and 7 drawn: both twice 4 gives 1/2, both once 1/3, twice 7 gives 0
    assert (shares.low["vsmr"], shares.high["vsmr"]) == (0.0, 0.5)
