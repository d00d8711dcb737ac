"""What DAZLE's parts and every method share: products, calibration, preparation, starts, batches, devices."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.attention import region_products
from core.DAZLE import DAZLE, Recipe
from core.features.regions import RegionFeatures
from core.inference.trained import CHECKPOINT, load_trained
from core.method import Batches
from core.methods import find_method, methods
from core.preparation import prepared_attributes
from core.training.checkpoint import load_checkpoint, save_checkpoint
from core.training.folds import final_fold
from core.training.loop import train
from tests.helpers import K, ToyFeatures
from tests.helpers_runs import SMALL, W2V, go, recipe_of

R, D = 9, 16
NAMES = [name for name, m in methods().items() if not m.needs_text]


def test_dazle_starts_as_published(space):
    a = DAZLE(space, D, Recipe()).attention
    assert not a.W2.any() and not a.W3.any()
    assert 0.7 < a.W1.std() < 1.3
    torch.testing.assert_close(a.v.norm(dim=1), torch.ones(K))
    assert a.v.requires_grad


def test_a_methods_own_calibration_is_what_was_published(space):
    """Taken where none is validated (--select last): +1 and -1 are 2 apart; VSMR published none."""
    margin = {"dazle": 2.0, "dazle-prepared": 2.0, "msdn": 2.0, "transzero": 2.0}
    for name in margin.keys() | {"vsmr", "vsmr-staged", "eszsl", "eszsl-prepared"}:
        known = find_method(name)
        assert known.build(known.recipe("*"), space, (R, D), 0, 1).model.gamma == margin.get(name, 0.0), name


@pytest.mark.parametrize("name", [name for name in NAMES if "eszsl" not in name])
def test_the_seed_decides_the_start(space, name):
    known = find_method(name)

    def start(seed):
        model = known.build(known.recipe("CUB"), space, (R, D), seed, 2).model
        return torch.cat([torch.ones(1).double(), *(p.detach().double().flatten() for p in model.parameters())])

    assert torch.equal(start(1), start(1)) and (not torch.equal(start(1), start(2)) or len(start(1)) == 1)


@pytest.mark.parametrize("columns", [33, 700])  # a convolution below the width where that pays, a product above
def test_region_products_are_a_matrix_product(columns):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 9, 64, generator=g)
    q = torch.randn(columns, 64, generator=g, requires_grad=True)
    mark = torch.randn(4, 9, columns, generator=g)
    got = region_products(x, q)
    assert got.shape == (4, 9, columns) and got.is_contiguous()
    torch.testing.assert_close(got, x @ q.T, atol=1e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad((got * mark).sum(), q)
    (expected,) = torch.autograd.grad(((x @ q.T) * mark).sum(), q)
    torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["dazle", "eszsl"])
def test_prepared_rows_get_the_preparation_and_plain_ones_do_not(space, name):
    x = torch.nn.functional.normalize(torch.rand(8, R, D, dtype=torch.float64), dim=2)
    y = torch.tensor([0, 1, 3, 5, 0, 1, 3, 5])
    for dataset in ("CUB", "AWA2", "SUN", "CUB50", "one nobody knows"):
        built = []
        for known in (find_method(name), find_method(f"{name}-prepared")):
            built.append(known.build(known.recipe(dataset), space, (R, D), 0, 1).model.double())
        torch.testing.assert_close(built[0].z, space.z)
        torch.testing.assert_close(built[1].z, prepared_attributes(space.att, space.seen))
        for model in built:  # classes described anew become what the model was trained on
            torch.testing.assert_close(model.class_encoder(space).prepare(space.att), model.z)
    if name == "eszsl":  # the features too: roots, and the training mean taken away
        for model in built:
            model.decompose(x.mean(1), y)
        unit = x.mean(1) / x.mean(1).norm(dim=1, keepdim=True)
        torch.testing.assert_close(built[0].inputs(x.mean(1)), unit)
        root = (unit * 4 + 0.01).sqrt() - 0.1  # √D is 4
        root = root - root.mean(0)
        torch.testing.assert_close(built[1].inputs(x.mean(1)), root / root.norm(dim=1, keepdim=True))


def test_a_setting_that_is_given_is_not_chosen_anew(space):
    known = find_method("eszsl")

    def grid(**given):
        return known.build(replace(known.recipe("*"), **given), space, (R, D), 0, 0).grid

    powers = [10.0**k for k in range(-3, 4)]
    assert [tuple(s.values()) for s in grid()] == [(x, z) for x in powers for z in powers]
    assert [tuple(s.values()) for s in grid(regularise_x=5.0)] == [(5.0, z) for z in powers]
    assert grid(regularise_x=2.0, regularise_z=5.0) == ({"regularise_x": 2.0, "regularise_z": 5.0},)


# ---- batches

LABELS = np.array([4, 4, 4, 4, 7, 7, 1, 1, 1, 9, 2, 2])  # five classes of 4, 2, 3, 1, 2 images


def batches(rule, seed=0):
    return list(rule.epoch(LABELS, np.random.default_rng(seed)))


def test_plain_batches_take_every_image_once_an_epoch():
    drawn = batches(Batches(5))
    assert [len(b) for b in drawn] == [5, 5, 2]
    assert sorted(np.concatenate(drawn)) == list(range(12))
    assert any((a != b).any() for a, b in zip(drawn, batches(Batches(5), seed=1), strict=True))


@pytest.mark.parametrize(("size", "held"), [(3, 3), (40, 5)])
def test_balanced_batches_take_one_image_of_each_of_so_many_classes(size, held):
    drawn = batches(Batches(size, balanced=True, steps=300))
    assert all(len(b) == held == len(np.unique(LABELS[b])) for b in drawn)
    classes = np.bincount(LABELS[np.concatenate(drawn)])[[1, 2, 4, 7, 9]]
    assert classes.sum() == 300 * held and (abs(classes - 60 * held) < 0.2 * 60 * held).all()  # all alike
    of_class_4 = np.bincount(np.concatenate(drawn), minlength=12)[:4]
    assert (of_class_4 > 0.15 * of_class_4.sum()).all()  # and all images of a class
    assert Batches(50, balanced=True).count(23527) == 471  # AWA2: as many as plain ones


def test_batches_of_classes_hold_so_many_images_of_each():
    for b in batches(Batches(6, steps=20, classes=2, per_class=3)):
        _, counts = np.unique(LABELS[b], return_counts=True)
        assert counts.tolist() == [3, 3]


@pytest.mark.parametrize("method", ["eszsl", "dazle", "msdn", "transzero"])
def test_a_checkpoint_of_before_gives_the_same_model(method: str, toy, tmp_path) -> None:
    """Those hold no classes of the space, and MSDN's name its parameters otherwise."""
    go(method, toy, tmp_path, epochs=1)
    model, path = load_trained(tmp_path).model, tmp_path / CHECKPOINT
    tensors, meta = load_checkpoint(path)
    before = {key: value for key, value in tensors.items() if key not in ("model.seen", "model.place")}
    if method == "msdn":
        before = {re.sub(r"^model\.(v|W\d)$", r"model.attention.\1", key): v for key, v in before.items()}
    assert before.keys() != tensors.keys()
    save_checkpoint(path, before, meta)
    again = load_trained(tmp_path).model.state_dict()
    assert all(torch.equal(value, again.pop(key)) for key, value in model.state_dict().items()) and not again


# ---- another device: no step makes the host wait for it, nothing is on the wrong one. The meta device is one:
# its tensors have no values, so that whatever asks for one raises, and every operation between the two kinds of memory
# can be seen

SYNCHRONOUS = {"vsmr-staged"}  # its visual loss counts the classes of a batch
POOLED = ("cada-vae", "tf-vaegan", "cnzsl", "bias-aware")  # of means, which are not on the meta device here


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


@pytest.mark.parametrize("name", [m for m in SMALL if m not in (*SYNCHRONOUS, *POOLED, "eszsl", "vsmr")])
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
