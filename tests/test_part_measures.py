"""PCP, pointing and own/others against figures worked out by hand."""

import numpy as np
import pytest

from studies.part_measures import Parts, hits, localisation_table, predicted_points


def parts(points, groups=((0,),), size=(1.0, 1.0), labels=None):
    points = np.asarray(points, dtype=float)
    size = np.tile(size, (len(points), 1))
    return Parts(points=points, groups=groups, size=size, labels=np.arange(len(points)) if labels is None else labels)


def test_the_attribute_of_the_highest_value_speaks_for_its_group():
    theta = np.zeros((2, 4, 3))
    for attribute, cell in enumerate((0, 3, 1)):
        theta[:, cell, attribute] = 1.0
    values = np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 5.0]])
    points = predicted_points(theta, values, np.array([0, 0, 1]), 2, (2, 2))
    # group 0: attribute 0 (upper left), then attribute 1 (lower right); group 1: attribute 2 (upper right)
    assert points[:, 0].tolist() == [[0.25, 0.25], [0.75, 0.75]]
    assert points[:, 1].tolist() == [[0.75, 0.25]] * 2


def test_boxes_and_radius_by_hand():
    # boxes of side 1/4: moved by d along x they share (1/4 - d)/(1/4 + d), which is above 1/2 until d = 1/12
    truth = parts([[[0.5, 0.5, 1]]] * 4)
    moved = np.array([0.0, 0.083, 0.084, 0.3])[:, None, None] * np.array([1.0, 0.0]) + 0.5
    found = hits(moved, truth, radius=0.3 + 1e-9)
    assert found["PCP, box 1/4"][:, 0].tolist() == [1, 1, 0, 0]
    assert found["PCP, box 1/√2"][:, 0].tolist() == [1, 1, 1, 0]  # until d = 0.2357
    assert found["pointing"][:, 0].tolist() == [1, 1, 1, 1]
    assert hits(moved, truth, radius=0.2)["pointing"][:, 0].tolist() == [1, 1, 1, 0]
    # an object half as wide has boxes half as wide; along both axes the shares multiply
    narrow = parts([[[0.5, 0.5, 1]]] * 4, size=(0.5, 1.0))
    assert hits(moved, narrow, radius=1)["PCP, box 1/4"][:, 0].tolist() == [1, 0, 0, 0]
    both = hits(np.array([0.55, 0.55]), parts([[[0.5, 0.5, 1]]]), radius=1)
    assert both["PCP, box 1/4"].item() == 0  # (0.2 / 0.25)² = 0.64 shared, 0.64 / 1.36 = 0.47


def test_the_table_by_hand():
    test = parts(
        [[[0.25, 0.25, 1]], [[0.75, 0.25, 1]], [[0.5, 0.5, 1]], [[0.1, 0.1, 0]]], labels=np.array([4, 4, 7, 7])
    )
    training = parts([[[0.25, 0.25, 1]]])
    model = np.array([[0.75, 0.75], [0.75, 0.25], [0.25, 0.25], [0.1, 0.1]])[:, None]
    table = localisation_table(
        {"vsmr": model}, test, training, grid=(2, 2), radius=0.1, rng=np.random.default_rng(0), resamples=500
    )
    shares = table[table.measure == "pointing"].set_index("point")
    # of four cells one hits in the first two images, none in the third; the fourth shows no part
    assert list(shares.index) == ["random cell", "image centre", "part prior", "vsmr", "best cell"]
    assert shares.share.tolist() == pytest.approx([(1 / 4 + 1 / 4 + 0) / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert set(shares.pairs) == {3}
    # classes 4 and 7 drawn: both twice 4 gives 1/2, both once 1/3, twice 7 gives 0
    assert (shares.low["vsmr"], shares.high["vsmr"]) == (0.0, 0.5)
