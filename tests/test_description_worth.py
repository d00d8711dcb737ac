"""What a description is worth: from features to the table without a test image, by methods chosen as in a run."""

import pandas as pd
import pytest

from core.datasets.registry import DATASETS
from core.experiments.identity import run_config
from core.experiments.run import choose
from core.features.feature_file import FeatureFile
from core.methods import find_method
from core.training.folds import validation_fold
from studies.description_worth import main
from studies.validation import best_on_fold
from tests.helpers_runs import inputs_of
from tests.helpers_xlsa17 import tiny_features


@pytest.mark.parametrize("method", ["vsmr", "eszsl-prepared", "dazle", "vsmr-staged"])
def test_a_method_is_chosen_as_a_run_chooses_it(toy, tmp_path, method):
    inputs = inputs_of(toy)
    config = run_config(inputs, method, find_method(method).recipe("TOY"), seed=1, epochs=2)
    chosen, _ = choose(config, inputs, tmp_path)
    _, best = best_on_fold(config, inputs, validation_fold(toy, inputs.w2v, 1))
    assert {name: best[name] for name in chosen["validation"]} == pytest.approx(chosen["validation"])
    assert best["epoch"] == chosen["epochs"]


def test_from_features_to_the_table_without_a_test_image(tmp_path, monkeypatch, capsys):
    given = tiny_features(tmp_path)
    read: set[int] = set()
    real = FeatureFile.read
    monkeypatch.setattr(FeatureFile, "read", lambda self, rows: (read.update(rows), real(self, rows))[1])
    flags = [word for key, path in given.items() for word in (f"--{key.replace('_', '-')}", str(path))]
    flags += ["--dataset", "AWA2", "--splits", "1", "--out", str(tmp_path / "out")]
    assert main(flags) == 0
    with FeatureFile(given["features"]) as file:
        m = file.to_metadata(DATASETS["AWA2"])
    assert read and not read & {*m.test_seen_loc.tolist(), *m.test_unseen_loc.tolist()}
    assert "T1_low  T1_high   gain" in capsys.readouterr().out
    found = pd.read_csv(tmp_path / "out" / "description_worth.csv").set_index(["by", "n", "k"])
    assert found.loc["description", 0, 3].gain == 0 and (found.T1.dropna() <= 100).all()
    assert {*found[found.H.notna()].reset_index().by} == {"γ", "γ k/(n+k)", "no γ"}
    monkeypatch.setattr("studies.validation.train", None)  # nothing is trained again
    assert main(flags) == 0
    with pytest.raises(TypeError):  # for another precision it is
        main([*flags, "--precision", "bfloat16"])
