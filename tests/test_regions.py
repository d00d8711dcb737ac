"""Region features in memory or streamed: the same values, whatever fits; and the memory that is seen to be left."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from core.features.regions import RegionFeatures, free_bytes, held_bytes
from core.methods import find_method
from core.training import loop
from core.training.folds import final_fold, validation_fold
from core.training.loop import class_scores
from tests.helpers import ToyFeatures


def test_resident_and_streamed_features_are_the_same(toy):
    source = ToyFeatures(toy)
    rows = np.concatenate([np.arange(30, 90), np.arange(40), [30, 31]])
    resident = RegionFeatures(source, rows, source.shape, budget=90 * 9 * 12 * 2)
    streamed = RegionFeatures(source, rows, source.shape, budget=90 * 9 * 12 * 2 - 1)
    assert resident.resident is not None and streamed.resident is None
    pick = np.array([5, 80, 5, 3])
    assert torch.equal(resident.batch(pick), streamed.batch(pick))
    torch.testing.assert_close(resident.batch(pick).norm(dim=2), torch.ones(4, 9), atol=1e-3, rtol=0)
    assert torch.equal(resident.pooled(pick), streamed.pooled(pick))
    unit = source.maps.astype(np.float64) / np.linalg.norm(source.maps.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(resident.pooled(pick).numpy(), unit[pick].mean(axis=2), atol=1e-3)


@pytest.mark.parametrize("cores", [1, 99])  # one after the other; a thread reads the next
def test_reading_ahead_changes_nothing(toy, monkeypatch, cores):
    source, rows = ToyFeatures(toy), [np.arange(i, i + 3) for i in range(5)]
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    features = RegionFeatures(source, np.arange(90), source.shape, budget=0)
    for some, x in zip(rows, features.batches(rows), strict=True):
        assert torch.equal(x, features.batch(some))
    assert list(features.batches([])) == []


def test_features_are_streamed_where_memory_is_short(toy, monkeypatch):
    source = ToyFeatures(toy)
    monkeypatch.setattr("core.features.regions.free_bytes", lambda device: 1000)
    assert RegionFeatures(source, np.arange(90), source.shape).resident is None
    monkeypatch.setattr("core.features.regions.free_bytes", lambda device: 2 << 30)  # 1 GiB is left
    assert RegionFeatures(source, np.arange(90), source.shape).resident is not None


def test_the_length_that_a_method_begins_with_is_of_training_images_alone(toy):
    source = ToyFeatures(toy)
    source.maps *= np.linspace(0.5, 2, 90, dtype=np.float16)[:, None, None]
    for budget, fold in itertools.product((None, 0), (final_fold(toy, np.eye(8)), validation_fold(toy, np.eye(8), 1))):
        features = RegionFeatures(source, np.arange(90), source.shape, budget=budget)  # held, streamed
        lengths = np.linalg.norm(source.maps[fold.train_rows].astype(np.float64), axis=1)  # (N,R)
        found = fold.train_images(features).region_norm()
        assert found == pytest.approx(lengths.mean(), rel=1e-5)
        assert abs(found - features.region_norm(np.arange(90))) > 1e-3


@pytest.mark.parametrize("name", ["dazle", "eszsl"])  # of regions, of means
def test_very_many_scores_come_in_pieces(toy, name):
    source = ToyFeatures(toy)
    features = RegionFeatures(source, np.arange(90), source.shape)
    features.block = 8
    fold = final_fold(toy, np.eye(toy.att.shape[1], dtype=np.float32))
    registered = find_method(name)
    method = registered.build(registered.recipe("*"), fold.space, source.shape, 0, 0)
    if method.begin:
        method.begin(fold.train_images(features))
    rows = np.arange(90)[::-1].copy()
    method.model.train()
    whole = class_scores(method.model, features, rows)
    assert not method.model.training
    pieces = list(loop.score_pieces(method.model, features, rows))
    assert len(pieces) > 1
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_a_closed_form_reads_each_image_once_and_few_at_a_time(toy):
    """However many settings validation tries: on disk, each would read all features again."""
    source, read = ToyFeatures(toy), []
    plain = RegionFeatures(source, np.arange(90), source.shape)
    taken, source.read = source.read, lambda rows: read.append(rows) or taken(rows)
    streamed = RegionFeatures(source, np.arange(90), source.shape, budget=0)
    fold, scores = final_fold(toy, np.eye(toy.att.shape[1], dtype=np.float32)), {}
    for features in (plain, streamed):
        registered = find_method("eszsl")
        method = registered.build(registered.recipe("*"), fold.space, source.shape, 0, 0)
        method.begin(fold.train_images(features))
        for number, setting in enumerate(method.grid):
            method.set_params(setting)
            for rows in (fold.seen_rows, fold.unseen_rows):
                scores.setdefault((number, rows.tobytes()), []).append(class_scores(method.model, features, rows))
    assert all(np.array_equal(a, b) for a, b in scores.values())
    regions = torch.cat([method.model.class_scores(x) for _, x in plain.blocks(fold.seen_rows)]).numpy()
    np.testing.assert_array_equal(scores[number, fold.seen_rows.tobytes()][0], regions)
    assert np.array_equal(np.sort(np.concatenate(read)), np.arange(90)) and max(map(len, read)) <= 16


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(text))
    return root


GiB = 1 << 30
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
HOST = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {40 << 20} kB\n"}


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 40),
        ({"proc/self/cgroup": "0::/", f"{V2}/memory.max": 3 * GiB, f"{V2}/memory.current": GiB}, 2),
        (  # a parent's limit is the tighter one; what the page cache holds can be had back
            {
                "proc/self/cgroup": "0::/slurm/job_1/step\n",
                f"{V2}/slurm/job_1/step/memory.max": "max",
                f"{V2}/slurm/job_1/memory.max": 8 * GiB,
                f"{V2}/slurm/job_1/memory.current": 7 * GiB,
                f"{V2}/slurm/job_1/memory.stat": f"anon 5\ninactive_file {4 * GiB}\n",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/a\n4:memory:/docker/abc\n0::/",
                f"{V1}/memory.limit_in_bytes": 2 * GiB,
                f"{V1}/memory.usage_in_bytes": GiB,
                f"{V1}/memory.stat": f"inactive_file 7\ntotal_inactive_file {GiB // 2}\n",
            },
            1.5,
        ),
        ({"proc/self/cgroup": "0::/", f"{V2}/memory.max": GiB, f"{V2}/memory.current": 2 * GiB}, 0),
    ],
)
def test_the_memory_limit_of_a_container_or_job_is_seen(tmp_path: Path, files: dict[str, object], gib: float) -> None:
    assert free_bytes(torch.device("cpu"), tree(tmp_path, HOST | files)) == int(gib * GiB)


def test_features_leave_memory_for_what_is_done_with_them() -> None:
    assert [held_bytes(free) / GiB for free in (40 * GiB, 5 * GiB, 2 * GiB, GiB, 0)] == pytest.approx([8, 3, 1, 0, 0])
