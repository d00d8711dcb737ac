"""The split reader: real files with their counts, and every wrong file refused by name."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.datasets.registry import AWA2, CUB, CUB50, SUN
from core.datasets.xlsa17 import class_disjoint_split, read_mat_files, read_metadata
from core.files.errors import UserError
from tests.conftest import TOY, toy_mats


@pytest.mark.parametrize("dataset", [AWA2, CUB, CUB50, SUN], ids=lambda d: d.name)
def test_real_metadata_has_the_published_counts(shared, dataset):
    m = read_metadata(shared, dataset)
    c = dataset.counts
    assert (len(m.seen), len(m.unseen), m.att.shape[1]) == (c.seen, c.unseen, c.attributes)
    assert (len(m.trainval_loc), len(m.test_seen_loc), len(m.test_unseen_loc)) == (
        c.trainval,
        c.test_seen,
        c.test_unseen,
    )
    assert (m.att >= 0).all() and m.att.shape[0] == len(m.class_names) == c.seen + c.unseen
    assert np.array_equal(np.sort(np.concatenate([m.train_loc, m.val_loc])), m.trainval_loc)
    assert not np.intersect1d(m.labels[m.train_loc], m.labels[m.val_loc]).size
    held = len(np.unique(m.labels[m.val_loc]))
    assert held == round(dataset.val_share * c.seen)
    assert all(not f.startswith("/") for f in m.image_files[:50])


@pytest.mark.parametrize(("dataset", "leaked"), [(AWA2, 5882), (SUN, 2580)], ids=["AWA2", "SUN"])
def test_the_other_circulating_files_leak_test_images_and_are_cut(shared, dataset, leaked):
    m = read_mat_files(
        shared / "xlsa17/data" / dataset.name / "res101.mat",
        shared / "xlsa17_variants" / dataset.name / "att_splits.mat",
        dataset,
    )
    assert any(f"{leaked} of its images" in n for n in m.notes)
    assert not np.intersect1d(np.concatenate([m.train_loc, m.val_loc]), m.test_seen_loc).size
    assert len(np.unique(m.labels[m.val_loc])) == round(dataset.val_share * dataset.counts.seen)


def test_mini_cub_loads_and_every_image_is_there(shared):
    m = read_metadata(shared / "mini_cub", CUB)
    assert (len(m.trainval_loc), len(m.test_seen_loc), len(m.test_unseen_loc)) == (2078, 519, 844)
    assert (len(np.unique(m.labels[m.train_loc])), len(np.unique(m.labels[m.val_loc]))) == (41, 14)
    assert any("a subset of CUB" in n for n in m.notes)
    folder = shared / "mini_cub/CUB/CUB_200_2011"
    assert all((folder / f).is_file() for f in m.image_files)
    assert all(m.class_names[y] in f for y, f in zip(m.labels, m.image_files, strict=True))


def test_toy_loads(toy):
    assert toy.image_files[0] == "c1/0.jpg"
    assert toy.labels.min() == 0 and toy.trainval_loc.min() == 0
    assert list(toy.unseen) == [6, 7, 8]


_WRONG = {
    "zero-based labels": ({"labels": np.repeat(np.arange(9), 10)[:, None]}, "labels run from 0"),
    "zero-based locs": ({"trainval_loc": np.arange(0, 48)[:, None]}, "runs from 0"),
    "beyond the end": ({"test_unseen_loc": np.arange(61, 92)[:, None]}, "expected 1 to 90"),
    "duplicate": ({"test_seen_loc": np.array([[9], [9]])}, "twice"),
    "trainval holds test": ({"trainval_loc": np.arange(1, 61)[:, None]}, "share"),
    "unseen class trained": (
        {"trainval_loc": np.r_[1:9, 61][:, None], "test_unseen_loc": np.arange(62, 91)[:, None]},
        "unseen classes have images in trainval",
    ),
    "seen class untested": ({"test_seen_loc": np.array([[9], [10]])}, "have no test image"),
    "NaN attribute": ({"att": np.full((8, 9), np.nan)}, "NaN"),
    "zero row": ({"att": np.r_["1", np.ones((8, 8)), np.zeros((8, 1))]}, "no attribute is present"),
    "class count": ({"att": np.ones((8, 5))}, "9 class names"),
    "fractions": ({"labels": np.full((90, 1), 1.5)}, "whole numbers"),
    "missing variable": ({"test_seen_loc": None}, "lacks test_seen_loc"),
    "one-based locs read as 0-based and written again": ({"test_unseen_loc": np.arange(62, 92)[:, None]}, "1 to 90"),
    "class without test images": (
        {"test_unseen_loc": np.arange(61, 81)[:, None]},
        r"\['class8'\] have no image in any split",
    ),
    "empty split": ({"test_unseen_loc": np.empty((0, 1))}, "empty"),
    "names twice": ({"allclasses_names": np.array([["a"]] * 9, dtype=object)}, "more than once"),
    "numbers for names": ({"allclasses_names": np.ones((9, 1))}, "not a name"),
    "text for numbers": ({"att": "text"}, "not a matrix"),
    "infinite attribute": ({"att": np.full((8, 9), 1e300)}, "infinity"),
    "NaN percentage": ({"original_att": np.full((8, 9), np.nan)}, "original_att holds NaN"),
    "attributes of another version": ({"original_att": np.ones((7, 9))}, "original_att"),
    "NaN label": ({"labels": np.full((90, 1), np.nan)}, "whole numbers"),
    "huge label": ({"labels": np.full((90, 1), 1e300)}, "whole numbers"),
    "label count": ({"labels": np.ones((89, 1), int)}, "89 labels for 90"),
}


@pytest.mark.parametrize("case", _WRONG)
def test_wrong_files_are_refused_with_their_name(tmp_path, case):
    changes, message = _WRONG[case]
    with pytest.raises(UserError, match=message) as info:
        read_mat_files(*toy_mats(tmp_path, **changes), TOY)
    assert ".mat" in str(info.value)


def test_classes_in_another_order_than_the_labels_are_refused(tmp_path):
    """The folders of the images tell their classes, as in AWA2, CUB and SUN."""
    labels = np.repeat(np.arange(1, 10), 10)
    words = ["ant", "bee", "cow", "deer_mouse", "elk", "fox", "gnu", "hen", "muskrat"]
    folders = ["ant", "bee", "c/cow", "d/deer/mouse", "elk", "fox", "gnu", "hen", "m/muskrat"]
    files = np.array([[f"/x/TOY_images/{folders[y - 1]}/{i}.jpg"] for i, y in enumerate(labels)], dtype=object)
    for order, fine in ((range(9), True), ([1, 0, *range(2, 9)], False), ([*range(3), 4, 3, *range(5, 9)], False)):
        names = np.array([[words[c]] for c in order], dtype=object)
        mats = toy_mats(tmp_path, image_files=files, allclasses_names=names)
        if fine:
            assert read_mat_files(*mats, TOY).class_names == words
            continue
        with pytest.raises(UserError, match=r"att_splits\.mat: class . is .* number the classes differently"):
            read_mat_files(*mats, TOY)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_right_split_is_read_as_written_and_no_shifted_one(tmp_path, data):
    """Every image of six seen and three unseen classes in a random place; then counted from 0, or from 2."""
    labels = np.sort(np.r_[np.repeat(np.arange(1, 10), 2), data.draw(st.lists(st.integers(1, 9), max_size=20))])
    labels = labels.astype(int)
    unseen = data.draw(st.sets(st.integers(1, 9), min_size=1, max_size=7))
    drawn = np.array(data.draw(st.lists(st.booleans(), min_size=len(labels), max_size=len(labels))))
    for c in range(1, 10):  # a seen class has images on both sides
        drawn[np.flatnonzero(labels == c)[:2]] = [False, True]
    new = np.isin(labels, list(unseen))
    locs = {"trainval_loc": ~new & ~drawn, "test_seen_loc": ~new & drawn, "test_unseen_loc": new}
    locs = {key: data.draw(st.permutations(list(np.flatnonzero(inside) + 1))) for key, inside in locs.items()}
    files = np.array([[f"/x/TOY_images/{i}.jpg"] for i in range(len(labels))], dtype=object)
    for shift in (0, -1, 1):
        columns = {key: np.array(loc)[:, None] + shift for key, loc in locs.items()}
        mats = toy_mats(tmp_path, labels=labels[:, None], image_files=files, **columns)
        if shift:
            with pytest.raises(UserError, match=r"att_splits\.mat"):
                read_mat_files(*mats, TOY)
            continue
        m = read_mat_files(*mats, TOY)
        np.testing.assert_array_equal(m.labels, labels - 1)
        for key, loc in locs.items():
            np.testing.assert_array_equal(getattr(m, key), np.sort(loc) - 1)
        assert not np.isin(np.r_[m.train_loc, m.val_loc], np.r_[m.test_seen_loc, m.test_unseen_loc]).any()
        assert not np.intersect1d(m.labels[m.train_loc], m.labels[m.val_loc]).size


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["trainval_loc", "test_seen_loc", "test_unseen_loc"]), st.integers(1, 90), st.integers(0, 99))
def test_one_image_more_in_a_split_is_always_noticed(tmp_path, key, image, where):
    """All 90 images of the toy are in some split, so one more is there twice."""
    m = read_mat_files(*toy_mats(tmp_path), TOY)
    loc = getattr(m, key) + 1
    with pytest.raises(UserError, match=r"att_splits\.mat.*(twice|share)"):
        read_mat_files(*toy_mats(tmp_path, **{key: np.insert(loc, where % len(loc), image)[:, None]}), TOY)


def test_another_data_sets_paths_are_refused(tmp_path):
    with pytest.raises(UserError, match="another data set"):
        read_mat_files(*toy_mats(tmp_path), CUB)


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" + b"\0" * 300, b"<html>"])
def test_damaged_mat_is_a_clear_error(tmp_path, content):
    first, second = toy_mats(tmp_path)
    second.write_bytes(content)
    with pytest.raises(UserError, match=r"att_splits\.mat"):
        read_mat_files(first, second, TOY)


def test_missing_folder_says_where_it_looked(tmp_path):
    with pytest.raises(UserError, match=r"xlsa17.data.AWA2.*data/AWA2\.md"):
        read_metadata(tmp_path, AWA2)


@given(st.lists(st.integers(0, 12), min_size=2, max_size=60), st.floats(0, 1), st.integers(0, 99))
def test_drawn_validation_split_is_class_disjoint_and_complete(labels, share, seed):
    y = np.array(labels)
    loc = np.arange(len(y))
    if len(np.unique(y)) < 2:
        with pytest.raises(UserError, match="two seen classes"):
            class_disjoint_split(y, loc, share, seed)
        return
    train, val = class_disjoint_split(y, loc, share, seed)
    assert len(train) and len(val)
    assert not np.intersect1d(y[train], y[val]).size
    assert np.array_equal(np.sort(np.r_[train, val]), loc)
    again = class_disjoint_split(y, loc, share, seed)
    assert np.array_equal(train, again[0])
