"""Each data set's recipe against the table of its source, written here by hand: the released scripts of each method."""

from dataclasses import asdict, replace

import pytest

from core.method import epochs_of
from core.methods import find_method

DAZLE = {  # D. Huynh's scripts: RMSprop 1e-4, weight decay 1e-4, 50 images, λ 0.1
    "CUB": {"momentum": 0.9, "epochs": 20, "balanced": False, "normalize_vectors": False, "use_w": True},
    "AWA2": {"momentum": 0.0, "epochs": 20, "balanced": True, "normalize_vectors": True, "use_w": True},
    "SUN": {"momentum": 0.9, "epochs": 100, "balanced": True, "normalize_vectors": False, "use_w": False},
}
MSDN = {  # S. Chen's scripts: RMSprop as DAZLE's
    "CUB": {"momentum": 0.9, "epochs": 30, "balanced": False, "normalize_vectors": False}
    | {"lambda_cal": 0.1, "lambda_distill": 0.001, "fusion": 0.9},
    "AWA2": {"momentum": 0.0, "epochs": 50, "balanced": True, "normalize_vectors": True}
    | {"lambda_cal": 0.12, "lambda_distill": 1e-7, "fusion": 1.0},
    "SUN": {"momentum": 0.9, "epochs": 70, "balanced": True, "normalize_vectors": False}
    | {"lambda_cal": 0.0001, "lambda_distill": 0.01, "fusion": 0.7},
}
TRANSZERO = {  # S. Chen's scripts; momentum None is Adam, a number SGD
    "CUB": {"momentum": None, "epochs": 200, "balanced": False, "normalize_vectors": False, "attribute_attention": True}
    | {"lambda_cal": 0.3, "lambda_reg": 0.005, "width": 300, "feed_forward": 512, "dropout": 0.4},
    "AWA2": {"momentum": 0.0, "epochs": 200, "balanced": True, "normalize_vectors": True, "attribute_attention": True}
    | {"lambda_cal": 2, "lambda_reg": 0.0005, "width": 300, "feed_forward": 512, "dropout": 0.5},
    "SUN": {"momentum": 0.9, "epochs": 400, "balanced": True, "normalize_vectors": False, "attribute_attention": False}
    | {"lambda_cal": 0.25, "lambda_reg": 0.001, "width": 128, "feed_forward": 2048, "dropout": 0.3},
}
STAGED = {  # the paper's procedure; no threshold was published for CUB and SUN
    "AWA2": {"predictor_lr": 1e-3, "predictor_epochs": 10, "threshold": 0.5, "visual_momentum": 0.0}
    | {"visual_iterations": 470, "train_vectors": True, "normalize_vectors": True, "hidden": 1850}
    | {"semantic_lr": 1e-3, "semantic_epochs": 180, "neighbours": 30},
    "CUB50": {"predictor_lr": 1e-5, "predictor_epochs": 20, "threshold": 0.45, "visual_momentum": 0.9}
    | {"visual_iterations": 40, "train_vectors": False, "normalize_vectors": False, "hidden": 1024}
    | {"semantic_lr": 8e-4, "semantic_epochs": 200, "neighbours": 10},
}
STAGED = {name: {**row, "classes_per_batch": 40, "images_per_class": 50} for name, row in STAGED.items()}
STAGED["CUB"] = STAGED["SUN"] = STAGED["CUB50"] | {"threshold": None}
RMSPROP = {"lr": 1e-4, "weight_decay": 1e-4, "batch_size": 50}
SOURCES = {
    "dazle": {name: {**RMSPROP, "lambda_cal": 0.1, "prepared": False, **row} for name, row in DAZLE.items()},
    "dazle-prepared": {name: {**RMSPROP, "lambda_cal": 0.1, "prepared": True, **row} for name, row in DAZLE.items()},
    "msdn": {name: {**RMSPROP, **row} for name, row in MSDN.items()},
    "transzero": {name: {**RMSPROP, **row} for name, row in TRANSZERO.items()},
    "vsmr-staged": STAGED,
}
CASES = [(method, dataset) for method, rows in SOURCES.items() for dataset in rows]


@pytest.mark.parametrize(("method", "dataset"), CASES)
def test_a_recipe_is_that_of_its_source(method, dataset):
    assert asdict(find_method(method).recipe(dataset)) == SOURCES[method][dataset]


def test_epochs_of_the_staged_method_are_tens_of_iterations_and_cub50_is_trained_as_cub_is():
    assert epochs_of(find_method("vsmr-staged").recipe("AWA2")) == 47
    for method in ("dazle", "dazle-prepared", "msdn", "transzero"):
        assert find_method(method).recipe("CUB50") == find_method(method).recipe("CUB")


@pytest.mark.parametrize("method", SOURCES)
def test_every_setting_of_training_reaches_the_optimiser_and_the_batches(space, method):
    """Other numbers than any default of PyTorch's: a setting that goes nowhere would be one that only looks varied."""
    known = find_method(method)
    wanted = {"lr": 0.02, "weight_decay": 0.03, "momentum": 0.4, "batch_size": 33, "balanced": True}
    own = {"momentum": "visual_momentum"} if method == "vsmr-staged" else {key: key for key in wanted}
    taken = {key: wanted[key] for key, name in own.items() if hasattr(known.recipe("*"), name)}
    recipe = replace(known.recipe("*"), **{own[key]: value for key, value in taken.items()})
    phase = known.build(recipe, space, (9, 16), 0, 3).phases[-1]
    (group,) = phase.optimizer.param_groups
    found = group | {"batch_size": phase.batches.size, "balanced": phase.batches.balanced}
    assert taken and {key: found[key] for key in taken} == taken and phase.epochs == 3
    kinds = {"transzero": "SGD"}  # TransZero's with momentum; without it is Adam, as on CUB
    assert type(phase.optimizer).__name__ == kinds.get(method, "RMSprop")
    if method == "transzero":
        phase = known.build(known.recipe("CUB"), space, (9, 16), 0, 3).phases[-1]
        assert type(phase.optimizer).__name__ == "Adam" and phase.optimizer.param_groups[0]["lr"] == 1e-4


def test_the_phases_of_the_staged_method_are_those_published(space):
    known = find_method("vsmr-staged")
    for dataset, rate in (("AWA2", 1e-3), ("CUB50", 1e-5)):
        predictor, visual = known.build(known.recipe(dataset), space, (9, 16), 0, 3).phases
        (group,) = predictor.optimizer.param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (rate, 0.9, 1e-4)
        assert (predictor.batches.size, predictor.batches.balanced) == (64, False)
        assert (predictor.epochs, predictor.pooled, predictor.selectable) == (
            known.recipe(dataset).predictor_epochs,
            True,
            False,
        )
        (group,) = visual.optimizer.param_groups
        assert (group["lr"], group["weight_decay"]) == (1e-4, 1e-4) and visual.selectable
        batches = visual.batches
        assert (batches.classes, batches.per_class, batches.count(10**6), visual.epochs) == (40, 50, 10, 3)
