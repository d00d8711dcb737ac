"""What a description is worth: with its own prototypes the model scores as ever; only unseen classes are replaced."""

import pytest
import torch
import torch.nn.functional as F

from core.datasets.registry import DATASETS
from core.features.feature_file import FeatureFile
from core.files.errors import UserError
from core.training.folds import validation_fold
from studies.description_worth import both, main, observed, shown
from studies.validation import best_on_fold, config_of
from tests.helpers_runs import inputs_of
from tests.helpers_xlsa17 import tiny_features


def test_a_class_of_photographs_alone_and_beside_its_description_by_hand(toy):
    inputs = inputs_of(toy)
    fold = validation_fold(toy, inputs.w2v, 0)
    model = best_on_fold(config_of("vsmr", inputs, 0, 0, "float32"), inputs, fold).method.model
    s, f, y = observed(model, fold.unseen_images(inputs.features))
    c = int(y[0])
    mean = f[:2].mean(dim=0)
    hub = (F.normalize(model.means, dim=1) @ F.normalize(mean, dim=0)).max()
    cosine = F.normalize(f, dim=1) @ F.normalize(mean, dim=0)
    own = shown(model, f, mean.unsqueeze(0))
    torch.testing.assert_close(own[:, 0], 100 * (cosine - model.recipe.hubness * hub))
    torch.testing.assert_close(both(s[:, [c]], own, 2), 0.4 * own + 0.6 * s[:, [c]])
    assert torch.equal(both(s[:, [c]], own, 0), s[:, [c]])


def test_from_features_to_the_table_without_a_test_image(tmp_path, monkeypatch, capsys):
    given = tiny_features(tmp_path)
    read: set[int] = set()
    for name in ("read", "prefetch"):
        real = getattr(FeatureFile, name)
        monkeypatch.setattr(FeatureFile, name, lambda self, rows, real=real: (read.update(rows), real(self, rows))[1])
    flags = [word for key, path in given.items() for word in (f"--{key.replace('_', '-')}", str(path))]
    flags += ["--dataset", "AWA2", "--epochs", "1", "--splits", "1", "--out", str(tmp_path / "out")]
    assert main(flags) == 0
    with FeatureFile(given["features"]) as file:
        m = file.to_metadata(DATASETS["AWA2"])
    assert read and not read & {*m.test_seen_loc.tolist(), *m.test_unseen_loc.tolist()}
    assert (tmp_path / "out" / "description_worth.md").read_text() == capsys.readouterr().out
    with pytest.raises(UserError, match="--methods dazle: only vsmr"):
        main([*flags, "--methods", "dazle"])
