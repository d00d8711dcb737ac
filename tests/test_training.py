"""Runs to their end: every file is left, killed and resumed runs end the same, other runs and damage are refused."""

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import core.experiments.run as experiment
from core.experiments.identity import run_config
from core.experiments.results import finished, read_scores
from core.experiments.run import run
from core.files.atomic import Lock
from core.files.errors import UserError
from core.method import epochs_of
from core.methods import find_method
from core.training.evaluation import metrics_from_compact
from core.training.folds import final_fold
from core.training.loop import train
from tests.helpers import forked, refused, run_here
from tests.helpers_runs import METHODS, W2V, config_of, go, go_to_the_end, inputs_of, interrupted, recipe_of, same
from tests.messages import DRIVER, base


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_everything_and_is_read_back(toy, tmp_path, method):
    first, m = go(method, toy, tmp_path / "a"), ("T1", "U", "S", "H", "AUSUC", "gamma")
    files = {"metrics.json", "per_class.csv", "scores.npz", "checkpoint.safetensors", "log.jsonl"}
    assert {p.name for p in (tmp_path / "a").iterdir()} == files
    assert go(method, toy, tmp_path / "a") == json.loads((tmp_path / "a/metrics.json").read_text())
    by_side = pd.read_csv(tmp_path / "a/per_class.csv").groupby("side").accuracy.mean()
    assert [by_side[side] for side in ("seen", "unseen")] == pytest.approx([first["standard"][k] for k in "SU"])
    found = asdict(metrics_from_compact(read_scores(tmp_path / "a"), first["standard"]["gamma"]))
    assert found == {k: first["standard"][k] for k in m}
    history = first["history"]
    assert max(row.get("val_AUSUC", 0) for row in history["validation"]) == first["chosen"]["validation"]["AUSUC"]
    assert history["refit"][-1]["epoch"] == first["chosen"]["epochs"]
    assert first["environment"]["torch"] == torch.__version__ and first["environment"]["threads"] > 0


def test_a_run_made_anew_holds_nothing_of_the_one_before(toy, tmp_path):
    go("dazle", toy, tmp_path)
    inputs = inputs_of(toy)
    config = run_config(inputs, "dazle", recipe_of("dazle"), seed=0, epochs=2, select="last")
    result = run(config, inputs, tmp_path, resume=False)
    assert result["history"]["validation"] == [] and len(result["history"]["refit"]) == 3
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert {json.loads(line)["fold"] for line in lines} == {"refit"}


def test_a_state_of_another_run_or_fold_or_a_damaged_one_is_not_taken_up(toy, tmp_path, monkeypatch):
    interrupted(monkeypatch, 1, lambda: go("dazle", toy, tmp_path))
    with pytest.raises(UserError, match=r"validation\.state belongs to a run with other seed"):
        go("dazle", toy, tmp_path, seed=1)
    state = (tmp_path / "validation.state").rename(tmp_path / "refit.state")
    with pytest.raises(UserError, match=r"refit\.state belongs to a run with other chosen, fold"):
        go("dazle", toy, tmp_path)
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(UserError, match=r"refit\.state is damaged"):
        go("dazle", toy, tmp_path)
    monkeypatch.setattr(experiment, "choose", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        go("dazle", toy, tmp_path, resume=False)
    assert not state.exists()  # a run made anew takes no state up


def test_a_choice_of_epochs_shortens_the_phase_it_is_of_and_no_other(toy):
    inputs, fold = inputs_of(toy), final_fold(toy, W2V)
    recipe = replace(recipe_of("vsmr-staged"), predictor_epochs=3)
    method = find_method("vsmr-staged").build(recipe, fold.space, (inputs.features.R, inputs.features.D), 0, 4)
    history = train(method, inputs.features, fold, seed=0, stop_after=1)
    assert [(row["phase"], row["epoch"]) for row in history] == [*(("predictor", k) for k in (1, 2, 3)), ("visual", 1)]


def test_training_leaves_the_callers_random_numbers_alone(toy, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002
    go("dazle", toy, tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002


# states written: two epochs of validation and two of the refit; vsmr-staged has two of its predictor before each
OF_ALE = ("devise", "sje", "latem")  # of one file with ale, and all that they keep is its W
CASES = [(method, 3) for method in METHODS if epochs_of(recipe_of(method)) and method not in OF_ALE]
CASES += [("dazle", 1), ("dazle", 2), ("vsmr-staged", 6), ("cada-vae", 1), ("tf-vaegan", 1)]


@pytest.mark.parametrize(("method", "stop"), CASES)
def test_stopped_and_resumed_is_bit_identical(toy, tmp_path, monkeypatch, method, stop):
    go_to_the_end(method, toy, tmp_path / "whole")
    written = interrupted(monkeypatch, stop, lambda: go_to_the_end(method, toy, tmp_path / "cut"))
    assert not (tmp_path / "cut/metrics.json").exists()
    in_refit = stop > {"vsmr-staged": 4, "cada-vae": 3, "tf-vaegan": 4}.get(method, 2)
    assert written[-1] == ("refit.state" if in_refit else "validation.state")
    go_to_the_end(method, toy, tmp_path / "cut")
    same(tmp_path / "whole", tmp_path / "cut")


def states(folder):
    """Name and time of every resumable state in a run's folder."""
    with contextlib.suppress(FileNotFoundError):  # the run has just removed it
        return {(path.name, path.stat().st_mtime_ns) for path in folder.glob("*.state")}
    return set()


def test_killed_at_random_moments_ends_bit_identical(toy, tmp_path):
    method = "dazle"
    go_to_the_end(method, toy, tmp_path / "whole", epochs=40)
    rng, landed = np.random.default_rng(0), 0
    for _ in range(int(os.environ.get("KILLS", "3"))):
        before = states(tmp_path / "killed")
        process = forked(partial(go_to_the_end, epochs=40), method, toy, tmp_path / "killed")
        while process.is_alive() and states(tmp_path / "killed") == before:
            time.sleep(0.001)  # until this process has written a state of its own
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.join()
        landed += bool(states(tmp_path / "killed")) and not (tmp_path / "killed/metrics.json").exists()
    assert landed >= 1, "no kill fell into the training"
    go_to_the_end(method, toy, tmp_path / "killed", epochs=40)
    same(tmp_path / "whole", tmp_path / "killed")


def test_a_second_process_on_a_run_is_refused_and_a_dead_one_is_no_obstacle(toy, tmp_path):
    with Lock(tmp_path / "run"), pytest.raises(UserError, match="another process"):
        go("eszsl", toy, tmp_path)
    (tmp_path / "run.lock").touch()  # of a process that was killed
    go("eszsl", toy, tmp_path)
    assert not (tmp_path / "run.lock").exists()


def test_every_flipped_byte_of_a_result_is_found(toy, tmp_path):
    out = tmp_path / "run"
    go("eszsl", toy, out)
    rng = np.random.default_rng(0)
    for name in ("metrics.json", "scores.npz", "per_class.csv", "checkpoint.safetensors"):
        content = (out / name).read_bytes()
        for position in rng.integers(0, len(content), 12):
            damaged = bytearray(content)
            damaged[position] ^= 1 << int(rng.integers(8))
            (out / name).write_bytes(damaged)
            with contextlib.suppress(ValueError):
                if name == "metrics.json" and json.loads(damaged) == json.loads(content):
                    continue  # white space in JSON carries nothing
            with pytest.raises(UserError):
                go("eszsl", toy, out)
        (out / name).write_bytes(content)
    assert go("eszsl", toy, out)["standard"]
    (out / "per_class.csv").unlink()
    with pytest.raises(UserError, match="missing"):
        go("eszsl", toy, out)


def test_a_finished_run_is_read_back_by_its_whole_identity(toy, tmp_path):
    go("eszsl", toy, tmp_path)
    with pytest.raises(UserError, match="other seed"):
        go("eszsl", toy, tmp_path, seed=1)
    config = config_of("eszsl", inputs_of(toy))
    assert finished(tmp_path / "metrics.json", config, resume=True)
    for key in asdict(config):
        with pytest.raises(UserError, match=f"with other {key};"):
            finished(tmp_path / "metrics.json", replace(config, **{key: "another"}), resume=True)


TRAIN = ["--method", "dazle", "--epochs", "2", "--device", "cpu"]


def test_without_tensorboard_a_sentence_names_it_and_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused(run_here(tmp_path, DRIVER, *TRAIN, "--tensorboard"), "pip install tensorboard", "log.jsonl")


def test_losses_and_validation_are_shown_and_no_number_of_the_test_sets(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    base(tmp_path)
    assert run_here(tmp_path, DRIVER, *TRAIN, "--tensorboard")[0] == 0
    (folder,) = tmp_path.glob("results/AWA2/*/dazle/seed0")
    shown = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    keys = shown.Tags()["scalars"]
    chosen = json.loads((folder / "metrics.json").read_text())["chosen"]["epochs"]
    assert {"validation/loss", "validation/AUSUC", "validation/H"} <= {*keys}
    assert ("refit/loss" in keys) == (chosen > 0)  # with no epoch chosen there is nothing to refit
    assert not [key for key in keys if "test" in key]
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    logged = [row["loss"] for row in rows if row["fold"] == "validation" and "loss" in row]
    assert [e.value for e in shown.Scalars("validation/loss")] == pytest.approx(logged)


@pytest.mark.parametrize("frozen", [False, True])
def test_players_take_turns_as_published(toy, frozen):
    """Steps of each Adam in an epoch of tf-vaegan: ten passes, one of the generator to five, feedback in one half."""
    inputs, fold = inputs_of(toy), final_fold(toy, W2V)
    recipe = replace(recipe_of("tf-vaegan"), gan_epochs=1, frozen=frozen)
    method = find_method("tf-vaegan").build(recipe, fold.space, (inputs.features.R, inputs.features.D), 0, 1)
    plain, flags = method.model.generator_loss, []
    method.model.generator_loss = lambda x, a, feedback, noise: flags.append(feedback) or plain(x, a, feedback, noise)
    train(method, inputs.features, fold, seed=0, stop_after=0)
    phase, passes = method.phases[0], -(-len(fold.train_rows) // 64)
    taken = [int(next(iter(o.state_dict()["state"].values()))["step"]) for o in (phase.optimizer, *phase.others)]
    # critic, encoder, generator, feedback, decoder
    assert taken == [10 * passes, 2 * passes, 2 * passes, passes, (10 if frozen else 12) * passes]
    assert flags == [False] * passes + [True] * passes
