"""Learning curves: what a smaller fold holds, and that a method is chosen on it as a run's validation chooses."""

import numpy as np
import pandas as pd
import pytest
import torch

from core.experiments.identity import run_config
from core.experiments.run import choose
from core.features.feature_file import FeatureFile
from core.files.errors import UserError
from core.methods import find_method
from core.training.folds import validation_fold
from studies.learning_curves import main, subset
from studies.validation import best_on_fold
from tests.helpers_runs import inputs_of
from tests.helpers_xlsa17 import tiny_features


def classes_of(metadata, rows):
    return set(metadata.labels[rows].tolist())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_smaller_folds_lie_within_larger_ones_and_leave_validation_alone(toy, seed):
    whole = validation_fold(toy, np.eye(8, dtype=np.float32), seed)
    S = len(whole.space.seen)
    larger = whole
    for n in range(S, 1, -1):
        small = subset(whole, n, seed)
        assert len(classes_of(toy, small.train_rows)) == n == len(small.space.seen)
        assert set(small.train_rows) <= set(larger.train_rows) and set(small.seen_rows) <= set(larger.seen_rows)
        assert classes_of(toy, small.seen_rows) == classes_of(toy, small.train_rows)
        assert np.array_equal(small.unseen_rows, whole.unseen_rows)
        assert not classes_of(toy, small.train_rows) & classes_of(toy, whole.unseen_rows)
        # labels name the same classes as before: those of the very attributes
        for rows, labels in (
            (small.train_rows, small.train_labels),
            (small.seen_rows, small.seen_labels),
            (small.unseen_rows, small.unseen_labels),
        ):
            assert torch.equal(small.space.att[labels], torch.from_numpy(toy.att[toy.labels[rows]]))
        assert set(small.train_labels) == set(small.space.seen.tolist())
        assert set(small.unseen_labels) == set(small.space.unseen.tolist())
        assert len(small.space.att) == n + len(whole.space.unseen)  # nothing of the classes left out
        larger = small
    assert set(subset(whole, S, seed).train_rows) == set(whole.train_rows)
    with pytest.raises(UserError, match=rf"--classes {S + 1}.*{S} seen classes"):
        subset(whole, S + 1, seed)


@pytest.mark.parametrize("method", ["vsmr", "eszsl-prepared", "dazle", "vsmr-staged"])
def test_a_method_is_chosen_as_a_run_chooses_it(toy, tmp_path, method):
    inputs = inputs_of(toy)
    config = run_config(inputs, method, find_method(method).recipe("TOY"), seed=1, epochs=2)
    chosen, _ = choose(config, inputs, tmp_path)
    best = best_on_fold(config, inputs, validation_fold(toy, inputs.w2v, 1))
    assert best.metrics == pytest.approx(chosen["validation"])
    assert best.epoch == chosen["epochs"]


def test_the_command_reads_no_test_image(tmp_path, monkeypatch, capsys):
    given = tiny_features(tmp_path)
    read: set[int] = set()
    for name in ("read", "prefetch"):
        real = getattr(FeatureFile, name)
        monkeypatch.setattr(FeatureFile, name, lambda self, rows, real=real: (read.update(rows), real(self, rows))[1])
    flags = [word for key, path in given.items() for word in (f"--{key.replace('_', '-')}", str(path))]
    flags += ["--dataset", "AWA2", "--methods", "eszsl-prepared", "vsmr", "--epochs", "1", "--splits", "2"]
    assert main([*flags, "--classes", "10", "20", "--images-per-class", "1", "--out", str(tmp_path / "out")]) == 0
    with FeatureFile(given["features"]) as file:
        from core.datasets.registry import DATASETS

        m = file.to_metadata(DATASETS["AWA2"])
    assert read and not read & set(np.concatenate([m.test_seen_loc, m.test_unseen_loc]).tolist())
    rows = pd.read_csv(tmp_path / "out" / "learning_curves.csv")
    assert len(rows) == 2 * 2 * 3 and set(rows.classes) == {10, 20} and rows.AUSUC.between(0, 1).all()
    assert rows.groupby("classes").unseen.nunique().eq(1).all() and rows.unseen.nunique() == 1
    assert (tmp_path / "out" / "learning_curves.md").read_text() == capsys.readouterr().out
    for kind in ("png", "pdf"):
        assert (tmp_path / "out" / f"learning_curves_classes.{kind}").stat().st_size > 1000
    monkeypatch.setattr("studies.validation.train", None)  # nothing is trained again
    (tmp_path / "out" / "learning_curves.md").unlink()
    assert main([*flags, "--classes", "10", "20", "--images-per-class", "1", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == (tmp_path / "out" / "learning_curves.md").read_text()
    with pytest.raises(TypeError):  # for another precision it is
        main([*flags, "--classes", "10", "--precision", "bfloat16", "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="--classes 9999: the validation splits have"):
        main([*flags, "--classes", "9999", "--out", str(tmp_path / "out")])
