"""What a device other than the processor is given: no step makes the host wait for it, nothing is on the wrong one.

The meta device stands in for it: its tensors have no values, so that whatever asks for one raises, and every operation
between the two kinds of memory can be seen.
"""

import numpy as np
import pytest
import torch
from core.lockstep import gradients
from core.recipes import build
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.features.regions import RegionFeatures
from core.training.loop import class_scores, training
from tests.conftest import ToyFeatures
from tests.test_training import RECIPES, W2V, fold_of

SYNCHRONOUS = {"vsmr-staged"}  # its visual loss counts the classes of a batch


class Crossings(TorchDispatchMode):
    """Operations that touch both memories; plain numbers (wrapped as tensors without dimensions) do not count."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        if len({t.device.type for t in tensors if t.dim() or t.device.type != "cpu"}) > 1:
            self.seen.append(str(function))
        return result


@pytest.fixture
def features(toy):
    source = ToyFeatures(toy)
    return RegionFeatures(source, np.arange(len(toy.labels)), source.shape, "meta")


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("method", [m for m in RECIPES if m != "eszsl" and m not in SYNCHRONOUS])
def test_no_step_makes_the_host_wait_for_the_device(toy, features, method, together):
    fold, runs = fold_of(toy, W2V), []
    for seed in range(together):
        built = build(method, RECIPES[method], fold, (features.R, features.D), seed, 2, device="meta")
        runs.append(training(built, features, fold, seed))
    steps = [next(run) for run in runs]
    with Crossings() as crossings:
        for _ in range(2):  # an epoch has three steps; at its end the losses are read
            stackable = together > 1 and steps[0].stackable() is not None
            losses = gradients(steps) if stackable else [gradients([step])[0] for step in steps]
            steps = [run.send(loss) for run, loss in zip(runs, losses, strict=True)]
    assert not crossings.seen
    assert all(step.x.device.type == step.y.device.type == "meta" for step in steps)


def test_a_crossing_is_seen(features):
    with Crossings() as crossings:
        features.batch(np.arange(3))
        torch.ones(3, device="meta") * 2.0
    assert crossings.seen == ["aten._to_copy.default"]  # the row numbers


def test_scores_are_brought_back_in_one_piece(toy, features):
    fold = fold_of(toy, W2V)
    model = build("dazle", RECIPES["dazle"], fold, (features.R, features.D), 0, device="meta").model
    features.block = 16
    with Crossings() as crossings, pytest.raises(NotImplementedError, match="no data"):  # the first one back
        class_scores(model, features, np.arange(90))
    assert crossings.seen == ["aten._to_copy.default"]  # the row numbers, of all batches
