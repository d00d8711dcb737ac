"""What the numbers rest on: a scripted model whose best epoch, setting and γ are known by hand, on either fold.

Features say class, row and difficulty of an image: every hook can be asked which images it was shown.
"""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import core.experiments.run as experiment
import core.method as contract
import core.training.loop as loop
from core.experiments.identity import run_config
from core.experiments.run import build, carried_over, run, unit_of
from core.features.regions import RegionFeatures
from core.inference.trained import load_trained
from core.method import Batches
from core.methods import find_method, methods
from core.training.folds import final_fold, validation_fold
from tests import helpers_selection
from tests.helpers_runs import inputs_of, interrupted
from tests.helpers_selection import EACH, SEEN, W2V, C, D, Recipe, Source, decode, metadata, registered


@pytest.fixture
def inputs():
    m = metadata()
    return inputs_of(m, RegionFeatures(source := Source(m), np.arange(len(m.labels)), (1, D)), source, W2V)


@pytest.fixture
def go(inputs, tmp_path, monkeypatch):
    """Run the scripted method: go(recipe changes, hooks) -> (result, what was shown)."""

    def go(
        recipe=None, select="val", do=run, seed=0, precision="float32", epochs=None, gamma_splits=1, drift=None,
        spread=lambda classes: 1.0, **hooks,
    ):  # fmt: skip
        shown: dict = {} if drift is None else {"drift": drift}
        monkeypatch.setattr("core.experiments.run.unit_of", lambda method, inputs, fold: spread(len(fold.space.att)))
        monkeypatch.setattr(contract, "REGISTRY", {m.name: m for m in methods().values()})
        contract.method("scripted", recipes={"*": Recipe()})(registered(shown, **hooks))
        how = {"select": select, "precision": precision, "epochs": epochs, "gamma_splits": gamma_splits}
        config = run_config(inputs, "scripted", recipe or Recipe(), seed=seed, **how)
        return do(config, inputs, tmp_path / f"out{len(list(tmp_path.iterdir()))}"), shown

    return go


def test_epoch_and_gamma_of_the_validation_classes_are_what_the_test_sets_are_read_with(go):
    """Validation: unseen images win from γ = 0.5 on, seen images lose from 2.5 on, so γ is 1.5. Test would need 2."""
    result, _ = go()
    chosen, standard = result["chosen"], result["standard"]
    assert chosen["epochs"] == 1 and chosen["validation"]["AUSUC"] == pytest.approx(0.45)  # 0.5 of seen, 0.9 of unseen
    assert chosen["validation"]["H"] == pytest.approx(2 * 0.45 / 1.4)
    assert standard["T1"] == pytest.approx(0.4)  # FINAL after epoch 1, though epoch 2 would give 1
    assert standard["AUSUC"] == pytest.approx(0.6 * 0.4) and standard["S"] == pytest.approx(0.6)
    assert chosen["gamma"] == standard["gamma"] == pytest.approx(1.5)
    assert (standard["U"], standard["H"], standard["H_gamma0"]) == (0, 0, 0)
    assert standard["H_best"] == result["selected_on_test"]["H"] == pytest.approx(2 * 0.6 * 0.4 / 1.0)


def test_nothing_depends_on_the_row_selected_on_test(go, monkeypatch):
    plain, real = go()[0], experiment._measured
    forged = lambda *a: dict.fromkeys(real(*a), 1.0) if "selected_on_test_" in a else real(*a)  # noqa: E731
    monkeypatch.setattr(experiment, "_measured", forged)
    result = go()[0]
    assert result["selected_on_test"]["H"] == 1.0
    assert all(result[key] == plain[key] for key in ("chosen", "standard", "certainty"))


def test_gamma_is_carried_over_in_spreads_of_the_training_images_scores(go):
    """A model whose scores have twice the unit when it is refitted needs twice the γ."""
    result, _ = go(spread=lambda classes: 3.0 if classes == 12 else 6.0)
    assert result["chosen"]["gamma"] == pytest.approx(1.5)
    assert result["chosen"]["gamma_in_spreads"] == pytest.approx(0.5)
    assert result["standard"]["gamma"] == pytest.approx(3.0)


def test_the_spread_is_of_training_images_alone(inputs):
    config = run_config(inputs, "eszsl", find_method("eszsl").recipe("TOY"), seed=0)
    fold = validation_fold(inputs.metadata, inputs.w2v, 0)
    method, images = build(config, config.recipe, fold, inputs), fold.train_images(inputs.features)
    method.begin(images)
    x = torch.cat([x for x, _ in images.blocks()])
    scores = method.model.class_scores(x).numpy()
    assert len(scores) == len(fold.train_rows) < 1024
    by_hand = (scores - scores.mean(axis=1, keepdims=True)).std()
    assert unit_of(method, inputs, fold) == pytest.approx(by_hand, rel=1e-5)


def test_gamma_is_the_mean_over_validation_splits_at_the_epoch_that_the_first_has_chosen(go, tmp_path):
    """Split s wants γ = 1.5, 2.1, 3.3 after epoch 1 and another after every other epoch; 1 and 2 like epoch 2 best."""
    drift = lambda split, epoch: 0.3 * split * (split + 1) + 0.05 * (epoch - 1)  # noqa: E731
    result, shown = go(gamma_splits=3, drift=drift)
    assert result["chosen"]["epochs"] == 1 and result["config"]["gamma_splits"] == 3
    assert [*(chosen := result["chosen"])["gammas"], chosen["gamma"]] == pytest.approx([1.5, 2.1, 3.3, 2.3])
    assert result["standard"]["gamma"] == pytest.approx(2.3 * (12 / 8) ** 0.25 * (6 / 4) ** -0.1)
    assert "mean over 3 splits" in result["chosen"]["how"] and len(shown["built"]) == 4
    alone, _ = go(drift=drift)
    for key in ("epochs", "validation", "recipe", "configurations"):
        assert alone["chosen"][key] == result["chosen"][key]
    assert not list(tmp_path.rglob("*.state"))


def test_gamma_of_several_splits_grows_with_the_seen_classes_and_shrinks_with_the_unseen(inputs, monkeypatch):
    monkeypatch.setattr("core.experiments.run.unit_of", lambda method, inputs, fold: 10.0)
    chosen = {"gamma_in_spreads": 2.0, "classes": [3, 12], "certainty": {"gammas": [1.0]}}
    law, fold = (12 / 3) ** 0.25 * (6 / 12) ** -0.1, final_fold(inputs.metadata, inputs.w2v)
    gamma, sure = carried_over(chosen, None, inputs, fold)
    assert (gamma, *sure["gammas"]) == pytest.approx((20 * law, 10 * law))
    assert carried_over(chosen | {"gamma_in_spreads": -2.0}, None, inputs, fold)[0] == -20


def test_every_split_has_its_gamma_at_the_settings_that_are_used(go):
    """Split s would tune a setting of 5 s, which raises its γ by as much; what is used is the 0 of the seed's own."""

    def choose(model, split, images):
        model.shift = 5.0 * split
        return {"tuned": model.shift}

    tune = lambda model, shown: partial(choose, model, shown["seeds"][-1])  # noqa: E731
    result, shown = go(gamma_splits=3, tune=tune, drift=lambda split, epoch: 0.1 * split)
    assert result["chosen"]["recipe"] == {"tuned": 0.0}
    assert result["chosen"]["gammas"] == pytest.approx([1.5, 1.6, 1.7])
    assert [recipe.tuned for recipe in shown["built"]] == [-1.0, 0.0, 0.0, 0.0]


def test_further_splits_are_of_trainval_and_are_taken_up_where_they_were_cut_off(go, inputs, monkeypatch):
    m = inputs.metadata
    _, shown = go(gamma_splits=3, do=partial(run, ablation=""))
    folds = [validation_fold(m, W2V, split) for split in range(3)]
    assert shown["scored"] == {row for f in folds for row in (*f.seen_rows.tolist(), *f.unseen_rows.tolist())}
    assert shown["scored"] <= set(m.trainval_loc.tolist())

    def cut_off(config, inputs, out):
        assert interrupted(monkeypatch, 5, lambda: run(config, inputs, out))[-1] == "split1.state"
        written, real = [], loop._store
        monkeypatch.setattr(loop, "_store", lambda path, *a: (written.append(path.name), real(path, *a)))
        again = run(config, inputs, out)
        assert written == ["split2.state", "refit.state"]
        return again

    how = {"gamma_splits": 3, "drift": lambda split, epoch: 0.6 * split}
    assert go(**how)[0]["chosen"] == go(do=cut_off, **how)[0]["chosen"]


def test_H_without_calibration_is_at_gamma_0(go):
    """Seen classes lead by 0.1 in the end and trail by 1.4 in validation, so the validated γ of -1.4 gives no U."""
    m = go(drift=lambda split, epoch: -2.9)[0]["standard"]
    assert (m["gamma"], m["H"], m["H_gamma0"]) == (pytest.approx(-1.4), 0, pytest.approx(2 * 0.6 * 0.4))


def test_only_trainval_is_trained_on_and_validation_trains_on_its_training_classes_alone(go, inputs):
    m = inputs.metadata
    _, shown = go(do=partial(run, ablation=""))
    fold = validation_fold(m, W2V, 0)
    assert shown["trained"] == set(fold.train_rows.tolist())
    assert shown["scored"] == {*fold.seen_rows.tolist(), *fold.unseen_rows.tolist()} <= set(m.trainval_loc.tolist())
    _, shown = go()
    assert shown["trained"] == set(m.trainval_loc.tolist())


def test_the_refit_has_the_learning_rates_of_the_model_that_was_validated(go, inputs):
    """Four epochs are planned, one is chosen: the refit's only epoch has the plan's first rates, not a plan of one."""
    _, shown = go()
    of_fold, of_trainval = len(validation_fold(inputs.metadata, W2V, 0).train_rows), len(inputs.metadata.trainval_loc)
    steps, refit, rates = -(-of_fold // 30), -(-of_trainval // 30), shown["rates"]
    assert len(rates) == 4 * steps + refit
    np.testing.assert_allclose(rates[: 4 * steps], 1 - np.arange(4 * steps) / steps / 5)
    np.testing.assert_allclose(rates[4 * steps :], 1 - np.arange(refit) / refit / 5)
    assert shown["model"].dummy.item() == pytest.approx(-sum(rates[4 * steps :]))  # each gradient is taken once
    _, shown = go(epochs=2)  # as --epochs 2 plans it, whatever the recipe has
    np.testing.assert_allclose(shown["rates"][: 2 * steps], 1 - np.arange(2 * steps) / steps / 3)


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_first_of_the_best_epochs_is_chosen_the_untrained_model_among_them(go, monkeypatch, epoch):
    equal = [(0.2, 0.2)] * epoch + [(0.5, 0.9)] * (5 - epoch)
    monkeypatch.setattr(helpers_selection, "VALIDATION", equal)
    result, shown = go()
    assert (result["chosen"]["epochs"], result["chosen"]["configurations"]) == (epoch, 5)
    assert (shown["model"].dummy.item() == 0) == (epoch == 0)
    assert result["standard"]["T1"] == pytest.approx((0.1, 0.4)[epoch])


def test_select_last_takes_all_epochs_and_the_own_gamma_and_selected_on_test_the_highest_h(go, monkeypatch):
    """AUSUC on test says epoch 1, the last epoch is worst."""
    monkeypatch.setattr(helpers_selection, "FINAL", [(0.1, 0.1), (0.5, 1.0), (0.7, 0.7), (0.6, 0.6), (0.2, 0.2)])
    result, shown = go(select="last", gamma_splits=3)
    chosen, on_test = result["chosen"], result["selected_on_test"]
    assert result["config"]["gamma_splits"] == 1 and len(shown["built"]) == 2 and "own γ" in chosen["how"]
    assert (chosen["epochs"], chosen["configurations"], result["standard"]["gamma"]) == (4, 0, 0.25)
    assert result["standard"]["T1"] == pytest.approx(0.2)
    assert (on_test["epoch"], on_test["H"], on_test["AUSUC"]) == (2, pytest.approx(0.7), pytest.approx(0.49))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_seed_decides_split_start_batches_and_dropout_of_either_fold(go, inputs, precision):
    _, shown = go(seed=3, precision=precision)
    assert shown["seeds"] == [3, 3]
    folds = validation_fold(inputs.metadata, W2V, 3), final_fold(inputs.metadata, W2V)
    steps = iter(shown["steps"])
    for fold, epochs in zip(folds, (4, 1), strict=True):
        generator, dropout = np.random.default_rng(3), torch.Generator().manual_seed(3)
        for _ in range(epochs):
            for positions in Batches(30).epoch(fold.train_labels, generator):
                rows, drawn, kind = next(steps)
                assert kind == getattr(torch, precision)  # of the products
                assert rows == fold.train_rows[positions].tolist()
                assert drawn == torch.rand((), generator=dropout).item()
    assert next(steps, None) is None


def test_the_best_setting_of_the_grid_is_chosen_and_applied_to_the_test_sets(go, tmp_path):
    """Settings stand for epochs of the script here; with no epoch of training only they differ."""

    def apply(model, shown, setting):
        shown.setdefault("applied", []).append(setting["setting"])
        model.epoch.fill_(int(setting["setting"]))

    grid = tuple({"setting": float(s)} for s in (3, 2, 1, 0))
    hooks = {"grid": lambda *_: grid, "set_params": lambda model, shown: partial(apply, model, shown)}
    result, shown = go(Recipe(epochs=0), **hooks)
    assert result["chosen"]["recipe"] == {"setting": 1.0} and result["standard"]["T1"] == pytest.approx(0.4)
    assert shown["applied"][-1] == 1.0 and shown["built"][-1].setting == 1.0
    assert result["chosen"]["configurations"] == 5  # epoch 0 and four settings
    (checkpoint,) = tmp_path.rglob("checkpoint.safetensors")
    trained = load_trained(checkpoint.parent)  # predicts with what was chosen, too
    assert (trained.model.recipe.setting, trained.gamma) == (1.0, result["chosen"]["gamma"])


def test_what_tune_chose_at_the_chosen_epoch_goes_into_the_refit(go, inputs):
    def choose(model, shown, images):
        rows = np.concatenate([decode(x)[1] for x, _ in images.blocks()])
        shown.setdefault("tuned on", set()).update(rows.tolist())
        return {"tuned": 10.0 + float(model.epoch)}

    result, shown = go(tune=lambda *given: partial(choose, *given))
    assert result["chosen"]["recipe"] == {"tuned": 11.0} and shown["built"][-1].tuned == 11.0
    assert shown["tuned on"] == set(inputs.metadata.val_loc.tolist())
    better = lambda model, shown: lambda images: {"tuned": float(model.epoch.fill_(1))}  # noqa: E731
    result, _ = go(Recipe(epochs=0), tune=better)
    assert result["chosen"]["validation"]["AUSUC"] == pytest.approx(0.45)  # measured with what was just chosen


def test_hooks_see_training_images_only_and_diagnose_the_test_images(go, inputs):
    m, found = inputs.metadata, {"T1": 0.5, "U": 0.25, "S": 0.75, "H": 0.375}

    def note(name):
        def hook(model, shown, *parts):
            for part in parts:
                rows = decode(part.pooled())[1]
                assert len(model.att) < C or torch.equal(part.labels, torch.from_numpy(m.labels[rows]))
                shown.setdefault(name, []).append(set(rows.tolist()))
            return found

        return lambda model, shown: partial(hook, model, shown)

    result, shown = go(begin=note("begin"), finish=note("finish"), diagnose=note("diagnose"))
    train, trainval = set(validation_fold(m, W2V, 0).train_rows.tolist()), set(m.trainval_loc.tolist())
    assert shown["begin"] == [train, trainval] and all(rows in (train, trainval) for rows in shown["finish"])
    assert shown["diagnose"] == [set(m.test_seen_loc.tolist()), set(m.test_unseen_loc.tolist())]
    assert result["published_procedure"] == found


def test_validation_seeds_draw_other_classes_and_seed_0_takes_the_files(inputs):
    m = inputs.metadata
    folds = [validation_fold(m, W2V, seed) for seed in range(4)]
    assert set(folds[0].unseen_rows) == set(m.val_loc) and len({tuple(fold.unseen_rows) for fold in folds}) == 4
    assert np.array_equal(folds[1].unseen_rows, validation_fold(m, W2V, 1).unseen_rows)
    held = [{c: tuple(rows) for c in m.seen if len(rows := f.seen_rows[m.labels[f.seen_rows] == c])} for f in folds]
    for a, b in itertools.combinations(held, 2):  # of a class that both train on other images are held out
        assert a.keys() & b.keys() and all(a[c] != b[c] for c in a.keys() & b.keys())
    for fold in folds:
        rows = np.concatenate([fold.train_rows, fold.seen_rows, fold.unseen_rows])
        assert len(fold.space.unseen) == 4 and len(fold.space.seen) == 8
        assert np.isin(rows, m.trainval_loc).all() and len(np.unique(rows)) == len(rows)
        np.testing.assert_array_equal(fold.space.att.numpy()[fold.train_labels], m.att[m.labels[fold.train_rows]])


@pytest.mark.parametrize(("images", "held"), [(2, 1), (7, 1), (8, 2), (13, 3)])
def test_a_fifth_of_a_training_class_is_held_out_rounded(inputs, images, held):
    few = np.arange(C * EACH).reshape(C, EACH)[:SEEN, :images]
    rows = {"trainval_loc": few.ravel(), "train_loc": few[:-4].ravel(), "val_loc": few[-4:].ravel()}
    for seed in (0, 1):
        fold = validation_fold(replace(inputs.metadata, **rows), W2V, seed)
        for labels, count in ((fold.seen_labels, held), (fold.train_labels, images - held)):
            assert np.unique(labels, return_counts=True)[1].tolist() == [count] * 8


def test_validation_knows_nothing_of_the_true_unseen_classes(inputs):
    blind = replace(inputs.metadata, att=inputs.metadata.att.copy())
    blind.att[SEEN:] = 7.0
    a, b = (validation_fold(m, W2V, 0).space.att for m in (inputs.metadata, blind))
    assert torch.equal(a, b) and len(a) == SEEN
