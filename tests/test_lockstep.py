"""Seeds trained in lockstep: the same runs as alone, whatever their data, lengths and methods."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from core import lockstep
from core.experiments import sweep as r
from core.experiments.run import run, running
from core.files.atomic import Lock
from core.files.errors import UserError
from core.lockstep import Step, drive, gradients
from core.recipes import build
from core.training.loop import training
from tests.test_reproduce import toy_plan  # noqa: F401 (a fixture)
from tests.test_training import RECIPES, W2V, config, fold_of, same, setup

STACKED = [method for method in RECIPES if method not in ("eszsl", "vsmr-staged", "transzero")]


@pytest.fixture
def widest(monkeypatch):
    """How many steps were done at once, largest first."""
    sizes = []
    real = lockstep.gradients

    def counting(steps, stack=None):
        sizes.append(len(steps))
        return real(steps, stack)

    monkeypatch.setattr(lockstep, "gradients", counting)
    return lambda: max(sizes, default=0)


def steps_of(method, toy, seeds):
    fold, features = fold_of(toy, W2V), setup(toy)
    made = []
    for seed in seeds:
        m = build(method, RECIPES[method], fold, (features.R, features.D), seed)
        if m.begin:
            m.begin(features, fold)
        m.model.train()
        rows = np.random.default_rng(seed).choice(len(fold.train_rows), 12)
        x, y = features.batch(fold.train_rows[rows]), torch.from_numpy(fold.train_labels[rows])
        made.append(Step(m.model, m.phases[0].loss, x, y, None))
    return made


@pytest.mark.parametrize("method", STACKED)
def test_gradients_losses_and_written_buffers_are_those_of_each_alone(toy, method):
    alone, stacked = steps_of(method, toy, (0, 1, 2)), steps_of(method, toy, (0, 1, 2))
    assert len({step.stackable() for step in stacked}) == 1 and stacked[0].stackable() is not None
    expected = [gradients([step])[0] for step in alone]
    found = gradients(stacked)
    for a, b, losses, other in zip(alone, stacked, expected, found, strict=True):
        assert losses.keys() == other.keys()
        for key in losses:
            torch.testing.assert_close(other[key], losses[key])
        for (name, p), q in zip(a.model.named_parameters(), b.model.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-6 * float(p.grad.abs().max()))
        for (name, p), q in zip(a.model.named_buffers(), b.model.buffers(), strict=True):
            torch.testing.assert_close(q, p, msg=name)
    assert expected[0]["loss"] != expected[1]["loss"]


def runs_of(method, toy, out, seeds, **kw):
    features = setup(toy)
    return [running(config(method, seed), RECIPES[method], toy, W2V, features, out / str(seed), **kw) for seed in seeds]


@pytest.mark.parametrize("method", STACKED)
def test_whole_runs_end_as_they_do_alone(toy, tmp_path, method, widest):
    """Each seed has its own validation split here, of other images and another length."""
    for seed in (0, 1, 2):
        run(config(method, seed), RECIPES[method], toy, W2V, setup(toy), tmp_path / "alone" / str(seed))
    assert widest() == 1
    together = drive(runs_of(method, toy, tmp_path / "together", (0, 1, 2), beside=2))
    assert widest() == 3
    for seed, result in enumerate(together):
        a, b = tmp_path / "alone" / str(seed), tmp_path / "together" / str(seed)
        before = json.loads((a / "metrics.json").read_text())
        assert result["where"].pop("seeds_beside") == 2 and before["where"].pop("seeds_beside") == 0
        assert result["where"] == before["where"] and result["config"] == before["config"]
        assert result["chosen"]["epochs"] == before["chosen"]["epochs"]
        assert result["standard"] == pytest.approx(before["standard"], abs=1e-3)
        for name in ("history.csv", "history_validation.csv"):
            x, y = pd.read_csv(a / name), pd.read_csv(b / name)
            assert list(x) == list(y) and list(x.epoch) == list(y.epoch)
            if "loss" in x:  # epoch 0 alone has none
                np.testing.assert_allclose(x.loss, y.loss, rtol=1e-3)


def test_models_that_draw_or_branch_take_their_steps_alone(toy, widest):
    fold, features = fold_of(toy, W2V), setup(toy)
    for method in ("vsmr-staged", "transzero"):
        built = [build(method, RECIPES[method], fold, (features.R, features.D), seed, 1) for seed in (0, 1)]
        before = torch.get_rng_state()
        drive([training(m, features, fold, seed) for seed, m in enumerate(built)])
        assert torch.equal(torch.get_rng_state(), before)  # though dropout was seeded
    assert widest() == 1


def test_staged_runs_side_by_side_are_bit_identical(toy, tmp_path):
    run(config("vsmr-staged"), RECIPES["vsmr-staged"], toy, W2V, setup(toy), tmp_path / "alone")
    drive(runs_of("vsmr-staged", toy, tmp_path / "beside", (0, 1)))
    same(tmp_path / "alone", tmp_path / "beside" / "0")


def test_a_run_that_fails_leaves_no_lock_and_the_others_continue_where_they_were(toy, tmp_path):
    run(config("dazle", 1), RECIPES["dazle"], toy, W2V, setup(toy), tmp_path / "0")
    with pytest.raises(UserError, match="other seed"):
        drive(runs_of("dazle", toy, tmp_path, (1, 0)))
    for seed in (0, 1):
        Lock(tmp_path / str(seed) / "run").release()
    (done,) = drive(runs_of("dazle", toy, tmp_path, (1,)))
    assert done["config"]["seed"] == 1


def test_tables_are_the_same_with_seeds_together(toy_plan, tmp_path, widest):  # noqa: F811
    plan = replace(toy_plan, methods=("vsmr", "dazle"), seeds=3, ablation=False)
    columns = ["T1", "H", "AUSUC", "val_AUSUC", "epochs"]
    alone = pd.read_csv(r.reproduce(plan))
    together = pd.read_csv(r.reproduce(replace(plan, together=2, out=tmp_path / "other")))
    assert widest() == 2 and sorted(together.seeds_beside) == [0, 0, 1, 1, 1, 1]
    np.testing.assert_allclose(together[columns], alone[columns], atol=2e-3)
    assert list(together.seed) == list(alone.seed)


def test_a_result_of_other_code_stops_only_its_own_seed(toy_plan):  # noqa: F811
    plan = replace(toy_plan, methods=("dazle",), seeds=2, ablation=False, together=2)
    foreign = r.folder_of(plan, r.Job("TOY", "dazle", 0)) / "metrics.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("{}")
    with pytest.raises(UserError, match="dazle  seed 0"):
        r.reproduce(plan)
    assert list(pd.read_csv(plan.out / "summary.csv").seed) == [1]


def test_seeds_are_bundled_by_what_can_be_stacked(toy_plan, monkeypatch):  # noqa: F811
    monkeypatch.undo()
    plan = r.Plan(("CUB",), ("transzero", "dazle"), seeds=5, together=3, ablation=False)
    sizes = [[job.seed for job in jobs] for jobs in r.bundles(plan, r.jobs_of(plan))]
    assert sizes == [[0], [1], [2], [3], [4], [0, 1, 2], [3, 4]]
