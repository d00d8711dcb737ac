"""The training loop: learns, is deterministic, resumes bit-identically, and never touches what it must not."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from core.commands.verify import check
from core.ESZSL import EszslRecipe
from core.experiments.run import RunConfig, run
from core.features.regions import RegionFeatures, read_ahead
from core.files.errors import UserError
from core.recipes import DazleRecipe, MsdnRecipe, StagedRecipe, TransZeroRecipe, build
from core.training.checkpoint import load_checkpoint, save_checkpoint
from core.training.loop import Batches, test_fold, train, validation_fold
from core.VSMR import JointRecipe
from tests.conftest import ToyFeatures, toy_mats

RECIPES = {
    "dazle": DazleRecipe(lr=1e-3, batch_size=16, epochs=4),
    "vsmr-staged": StagedRecipe(
        1e-2, 3, None, 0.9, 20, False, 16, 1e-2, 20, 5, classes_per_batch=4, images_per_class=3
    ),
    "vsmr": JointRecipe(batch_size=16, width=8),
    "eszsl": EszslRecipe(),
    "msdn": MsdnRecipe(lr=1e-3, batch_size=16),
    "transzero": TransZeroRecipe(lr=1e-3, batch_size=16, width=12, feed_forward=16),
}
W2V = np.random.default_rng(3).normal(size=(8, 6)).astype(np.float32)
fold_of = test_fold  # an alias that pytest does not take for a test
del test_fold


def setup(metadata):
    source = ToyFeatures(metadata)
    return RegionFeatures(source, np.arange(len(metadata.labels)), source.shape)


def config(method, seed=0, epochs=2):
    return RunConfig("TOY", method, seed, "val", epochs, dict(RECIPES[method].__dict__), {"backbone": "toy"}, "none")


def go(method, toy, out, epochs=2, **kw):
    return run(config(method, epochs=epochs), RECIPES[method], toy, W2V, setup(toy), out, **kw)


@pytest.mark.parametrize("method", RECIPES)
def test_a_run_leaves_everything_and_is_read_back(toy, tmp_path, method):
    first = go(method, toy, tmp_path / "a")
    for name in (
        "metrics.json",
        "history.csv",
        "history_validation.csv",
        "per_class.csv",
        "confusion.csv",
        "config.json",
        "checkpoint.safetensors",
    ):
        assert (tmp_path / "a" / name).stat().st_size > 0
    assert not list((tmp_path / "a").glob("*.state"))
    assert go(method, toy, tmp_path / "a") == json.loads((tmp_path / "a/metrics.json").read_text())
    per_class = pd.read_csv(tmp_path / "a/per_class.csv")
    by_side = per_class.groupby("side").accuracy.mean()
    assert by_side["seen"] == pytest.approx(first["standard"]["S"])
    assert by_side["unseen"] == pytest.approx(first["standard"]["U"])
    assert pd.read_csv(tmp_path / "a/confusion.csv", index_col=0).to_numpy().sum() == per_class.images.sum()


def test_dazle_learns_the_toy(toy):
    fold = fold_of(toy, W2V)
    features = setup(toy)
    method = build("dazle", replace(RECIPES["dazle"], epochs=20), fold, (features.R, features.D), 0)
    history = train(method, features, fold, 0)
    assert history[-1]["ce"] < 0.7 * history[0]["ce"]


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_stopped_and_resumed_is_bit_identical(toy, tmp_path, monkeypatch, method, stop):
    go(method, toy, tmp_path / "whole")
    import core.training.loop as t

    real, calls = t._store, []

    def stopping(*a, **k):
        real(*a, **k)
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(t, "_store", stopping)
    try:
        go(method, toy, tmp_path / "cut")
    except KeyboardInterrupt:
        assert not (tmp_path / "cut/metrics.json").exists()
    monkeypatch.setattr(t, "_store", real)
    go(method, toy, tmp_path / "cut")
    same(tmp_path / "whole", tmp_path / "cut")


def same(a, b):
    for name in ("history.csv", "history_validation.csv", "per_class.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    x, _ = load_checkpoint(a / "checkpoint.safetensors")
    y, _ = load_checkpoint(b / "checkpoint.safetensors")
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
    m, n = (json.loads((p / "metrics.json").read_text()) for p in (a, b))
    for result in (m, n):
        result.pop("seconds")
        result.pop("sha256")  # of all else, the seconds too
    assert m == n


def states(folder):
    """Name and time of every resumable state in a run's folder."""
    found = set()
    for path in folder.glob("*.state") if folder.exists() else ():
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:
            continue  # the run has just removed it
    return found


@pytest.mark.parametrize("method", ["dazle", "vsmr"])
def test_killed_at_random_moments_ends_bit_identical(toy, tmp_path, method):
    toy_mats(tmp_path / "mats")
    script = (
        "import sys, pathlib; from tests import test_training as t; from tests.conftest import TOY;"
        "from core.datasets.xlsa17 import read_mat_files;"
        "d = pathlib.Path(sys.argv[1]);"
        "m = read_mat_files(d/'mats/res101.mat', d/'mats/att_splits.mat', TOY);"
        "t.go(sys.argv[2], m, d/'killed', epochs=40)"
    )
    go(method, toy, tmp_path / "whole", epochs=40)
    rng, landed = np.random.default_rng(0), 0
    for _ in range(int(os.environ.get("KILLS", "3"))):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), method], stderr=subprocess.DEVNULL)
        before = states(tmp_path / "killed")
        while process.poll() is None and states(tmp_path / "killed") == before:
            time.sleep(0.001)  # until this process has written a state of its own
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.wait()
        landed += bool(states(tmp_path / "killed")) and not (tmp_path / "killed/metrics.json").exists()
    assert landed >= 1, "no kill fell into the training"
    subprocess.run([sys.executable, "-c", script, str(tmp_path), method], check=True, capture_output=True)
    # the split file's hash is not part of this config, so both runs are the same run
    same(tmp_path / "whole", tmp_path / "killed")


def test_a_second_process_on_a_run_is_refused_and_a_dead_one_is_no_obstacle(toy, tmp_path):
    script = (
        "import sys, pathlib, time; from core.files.atomic import Lock;"
        "lock = Lock(pathlib.Path(sys.argv[1]) / 'run'); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another process"):
        go("eszsl", toy, tmp_path)
    process.kill()
    process.wait()
    assert (tmp_path / "run.lock").exists()
    go("eszsl", toy, tmp_path)
    assert not (tmp_path / "run.lock").exists()


def test_every_flipped_byte_of_a_result_is_found(toy, tmp_path):
    out = tmp_path / "run"
    go("eszsl", toy, out)
    assert check(out) == 1
    rng = np.random.default_rng(0)
    for path in sorted(out.iterdir()):
        content = path.read_bytes()
        for position in rng.integers(0, len(content), 12):
            damaged = bytearray(content)
            damaged[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            try:
                same_content = json.loads(damaged) == json.loads(content) if path.name == "metrics.json" else False
            except ValueError:
                same_content = False
            if not same_content:  # white space in JSON carries nothing
                with pytest.raises(UserError):
                    go("eszsl", toy, out)
        path.write_bytes(content)
    assert go("eszsl", toy, out)["standard"]
    (out / "per_class.csv").unlink()
    with pytest.raises(UserError, match="missing"):
        check(out)


def test_a_run_of_another_kind_is_refused(toy, tmp_path):
    go("dazle", toy, tmp_path)
    with pytest.raises(UserError, match="other seed"):
        run(config("dazle", seed=1), RECIPES["dazle"], toy, W2V, setup(toy), tmp_path)


def test_validation_never_sees_test_images_or_unseen_classes(toy):
    fold = validation_fold(toy, W2V)
    assert np.isin(fold.rows, toy.trainval_loc).all()
    assert len(fold.space.att) == len(toy.seen)
    assert not np.intersect1d(fold.train_rows, np.r_[fold.seen_rows, fold.unseen_rows]).size
    assert not np.intersect1d(fold.space.seen.numpy(), fold.space.unseen.numpy()).size
    np.testing.assert_array_equal(fold.space.att.numpy()[fold.train_labels], toy.att[toy.labels[fold.train_rows]])


def test_choices_do_not_depend_on_test_labels(toy, tmp_path):
    a = go("dazle", toy, tmp_path / "a")
    labels = toy.labels.copy()
    labels[toy.test_unseen_loc] = np.roll(labels[toy.test_unseen_loc], 10)
    other = replace(toy, labels=labels)
    b = run(config("dazle"), RECIPES["dazle"], other, W2V, setup(toy), tmp_path / "b")
    assert a["chosen"] == b["chosen"]
    assert a["standard"] != b["standard"]


@pytest.mark.parametrize("method", RECIPES)
def test_the_diagnostic_row_changes_nothing(toy, tmp_path, method):
    with_row = go(method, toy, tmp_path / "a")
    without = go(method, toy, tmp_path / "b", diagnostics=False)
    assert with_row["selected_on_test"] and without["selected_on_test"] is None
    assert with_row["chosen"] == without["chosen"] and with_row["standard"] == without["standard"]


def test_resident_and_streamed_features_are_the_same(toy):
    source = ToyFeatures(toy)
    rows = np.arange(90)
    resident = RegionFeatures(source, rows, source.shape)
    streamed = RegionFeatures(source, rows, source.shape, budget=0)
    assert resident.resident is not None and streamed.resident is None
    pick = np.array([5, 80, 5, 3])
    assert torch.equal(resident.batch(pick), streamed.batch(pick))
    torch.testing.assert_close(resident.batch(pick).norm(dim=2), torch.ones(4, 9), atol=1e-3, rtol=0)
    assert torch.equal(resident.pooled(pick), streamed.pooled(pick))


@pytest.mark.parametrize("held", [1, 40, 89])
def test_features_held_in_part_are_the_same(toy, held):
    source = ToyFeatures(toy)
    rows = np.concatenate([np.arange(30, 90), np.arange(45), [30, 31]])  # what comes first is held
    streamed = RegionFeatures(source, rows, source.shape, budget=0)
    partly = RegionFeatures(source, rows, source.shape, budget=(held + 1) * 9 * 12 * 2 - 1)
    assert partly.resident is None and len(partly.held) == held
    first = np.concatenate([np.arange(30, 90), np.arange(30)])[:held]
    assert np.array_equal(np.flatnonzero(partly._position >= 0), np.sort(first))
    for pick in (np.arange(90), np.arange(29, 34), np.array([3, 80, 3]), np.array([30, 30]), np.array([44, 2, 30, 29])):
        assert torch.equal(partly.batch(pick), streamed.batch(pick))
        assert torch.equal(partly.pooled(pick), streamed.pooled(pick))
        source.prefetched = np.empty(0, dtype=np.int64)
        partly.prefetch(pick)
        assert np.array_equal(source.prefetched, pick[partly._position[pick] < 0])  # what is held is not fetched


def test_reading_ahead_changes_nothing():
    def load(rows):
        return torch.from_numpy(rows * 2)

    batches = [np.arange(i, i + 3) for i in range(5)]
    plain, threaded = (list(read_ahead(load, batches, t)) for t in (False, True))
    assert len(plain) == len(threaded) == 5
    for rows, x, y in zip(batches, plain, threaded, strict=True):
        assert torch.equal(x, load(rows)) and torch.equal(y, x)
    assert list(read_ahead(load, [], True)) == list(read_ahead(load, [], False)) == []
    told = []
    for number, _ in enumerate(read_ahead(load, batches, False, told.append)):
        assert len(told) == min(number + 1, 4)  # of the next batch, before this one is used
    assert all(np.array_equal(rows, batch) for rows, batch in zip(told, batches[1:], strict=True))

    def failing(rows):
        raise UserError("no such row")

    with pytest.raises(UserError, match="no such row"):
        list(read_ahead(failing, batches, True))


def test_features_are_streamed_where_memory_is_short(toy, monkeypatch):
    source = ToyFeatures(toy)
    monkeypatch.setattr("core.features.regions.free_bytes", lambda device: 1000)
    assert RegionFeatures(source, np.arange(90), source.shape).resident is None
    monkeypatch.setattr("core.features.regions.free_bytes", lambda device: 1 << 30)
    assert RegionFeatures(source, np.arange(90), source.shape).resident is not None


@pytest.mark.parametrize("method", ["dazle", "vsmr", "vsmr-staged"])
def test_training_from_the_file_equals_training_from_memory(toy, tmp_path, method):
    source = ToyFeatures(toy)
    streamed = RegionFeatures(source, np.arange(len(toy.labels)), source.shape, budget=0)
    assert streamed.resident is None
    run(config(method), RECIPES[method], toy, W2V, streamed, tmp_path / "streamed")
    go(method, toy, tmp_path / "resident")
    same(tmp_path / "resident", tmp_path / "streamed")


@pytest.mark.parametrize("method", ["dazle", "vsmr", "vsmr-staged"])
def test_bfloat16_steps_stay_close_to_float32(toy, method):
    fold, features = fold_of(toy, W2V), setup(toy)
    found = {}
    for precision in ("float32", "bfloat16"):
        m = build(method, RECIPES[method], fold, (features.R, features.D), 0, 3)
        history = train(m, features, fold, 0, precision=precision)
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in m.model.parameters())
        found[precision] = history[-1]["loss"]
    assert found["bfloat16"] != found["float32"]
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.1)


def test_batches_cover_or_balance():
    labels = np.repeat([0, 1, 2], [50, 5, 1])
    rng = np.random.default_rng(0)
    plain = np.concatenate(list(Batches(10).epoch(labels, rng)))
    assert np.array_equal(np.sort(plain), np.arange(56))
    drawn = np.concatenate(list(Batches(10, balanced=True, steps=300).epoch(labels, rng)))
    shares = np.bincount(labels[drawn]) / len(drawn)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
    assert len(np.unique(drawn)) == 56
    blocks = list(Batches(0, steps=4, classes=2, per_class=7).epoch(labels, rng))
    assert len(blocks) == 4
    for block in blocks:
        assert sorted(np.bincount(labels[block], minlength=3).tolist()) == [0, 7, 7]


def test_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.arange(50.0)}, {"k": 1})
    assert load_checkpoint(path)[1] == {"k": 1}
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="safetensors"):
            load_checkpoint(path)
    path.write_bytes(content[:40])
    with pytest.raises(UserError, match="readable"):
        load_checkpoint(path)
