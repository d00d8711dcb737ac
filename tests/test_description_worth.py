"""What a description is worth: with its own prototypes the model scores as ever; only unseen classes are replaced."""

import pytest
import torch
import torch.nn.functional as F

from core.datasets.registry import DATASETS
from core.features.feature_file import FeatureFile
from core.files.errors import UserError
from core.training.folds import validation_fold
from studies.description_worth import main, observed, replaced, scores
from studies.validation import best_on_fold, config_of
from tests.helpers_runs import inputs_of
from tests.helpers_xlsa17 import tiny_features


def test_with_the_descriptions_prototypes_scores_are_the_models_own(toy):
    inputs = inputs_of(toy)
    fold = validation_fold(toy, inputs.w2v, 0)
    model = best_on_fold(config_of("vsmr", inputs, 0, 1, "float32"), inputs, fold).method.model
    model.requires_grad_(False)
    images = fold.unseen_images(inputs.features)
    s1, u, y = observed(model, images)
    own = torch.cat([model.class_scores(x) for x, _ in images.blocks()])
    torch.testing.assert_close(torch.from_numpy(scores(model, s1, u, model.prototypes())), own)

    rows = [torch.tensor([i, j]) for i, j in ((0, 1), (len(y) - 2, len(y) - 1))]
    made = replaced(model.prototypes(), u, y, rows)
    for mine in rows:
        torch.testing.assert_close(made[y[mine[0]]], F.normalize((u[mine[0]] + u[mine[1]]) / 2, dim=0))
    kept = [c for c in range(len(made)) if c not in {int(y[r[0]]) for r in rows}]
    assert torch.equal(made[kept], model.prototypes()[kept])
    before = model.hub.clone()
    others = scores(model, s1, u, made)
    assert torch.equal(model.hub, before)
    # by hand, for one class: s1 + β α (f·p - h max_s cos(p, M_s)), since the class is unseen and has no seen expert
    c = int(y[rows[0][0]])
    p, r = made[c], model.recipe
    hub = (F.normalize(model.projected_means(), dim=1) @ p).max()
    by_hand = s1[:, c] + r.beta * r.alpha * (F.normalize(u, dim=1) @ p - model.hubness * hub)
    torch.testing.assert_close(torch.from_numpy(others[:, c]), by_hand)


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
