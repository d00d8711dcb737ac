"""What a device other than the processor is given: no step makes the host wait for it, nothing is on the wrong one.

The meta device stands in for it: its tensors have no values, so that whatever asks for one raises, and every operation
between the two kinds of memory can be seen.
"""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.features.regions import RegionFeatures
from core.methods import find_method
from core.training.folds import final_fold
from core.training.loop import train
from tests.helpers import ToyFeatures
from tests.helpers_runs import SMALL, W2V, recipe_of

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


@pytest.mark.parametrize(
    "name", [m for m in SMALL if m not in ("eszsl", "vsmr", "cada-vae", "cnzsl", "bias-aware") and m not in SYNCHRONOUS]
)
def test_no_step_makes_the_host_wait_for_the_device(toy, features, name):
    """Two steps of an epoch of three, from one call of the loss to the next; at an epoch's end the losses are read."""
    fold = final_fold(toy, W2V)
    method = find_method(name).build(recipe_of(name), fold.space, (features.R, features.D), 0, 2)
    method.model.to("meta")
    method.begin, places, crossings, counts = None, [], Crossings(), []
    phase, loss = method.phases[0], method.phases[0].loss

    def counting(x, y):
        places.append((x.device.type, y.device.type))
        counts.append(len(crossings.seen))
        if len(places) == 3:
            raise InterruptedError  # enough steps were seen
        return loss(x, y)

    phase.loss = counting
    with crossings, pytest.raises(InterruptedError):
        train(method, features, fold, seed=0)
    assert counts[0] == counts[2], crossings.seen
    assert places == [("meta", "meta")] * 3
