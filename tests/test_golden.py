"""Every method against what its authors' code gave, in float64 to 1e-9 (tests/golden/README.md)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from core.DAZLE import DAZLE
from core.DAZLE import RECIPES as DAZLE_RECIPES
from core.method import ClassSpace
from core.MSDN import MSDN, distillation
from core.MSDN import RECIPES as MSDN_RECIPES
from core.TransZero import RECIPES as TRANSZERO_RECIPES
from core.TransZero import TransZero
from core.VSMR_staged import RECIPES as STAGED_RECIPES
from core.VSMR_staged import VSMRStaged, visual_losses

GOLDEN = Path(__file__).parent / "golden"
D = 16


@pytest.fixture(autouse=True)
def double():
    """Models and buffers are built in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_default_dtype(before)


class Golden:
    """One file, its numbers as tensors, and which of them have been compared."""

    def __init__(self, name):
        with np.load(GOLDEN / f"{name}.npz") as file:
            self.numbers = {key: torch.from_numpy(file[key]) for key in file.files}
        self.open = set(self.numbers)

    def __getitem__(self, key):
        self.open.discard(key)
        return self.numbers[key]

    def space(self):
        return ClassSpace(self["att"], self["seen"], self["unseen"], self["w2v"])

    def batch(self):
        return self["x"], self["y"]

    def agrees(self, key, got):
        torch.testing.assert_close(got.detach(), self[key], rtol=1e-9, atol=1e-9, msg=lambda m: f"{key}: {m}")

    def give(self, **parameters):
        """Put the file's numbers into parameters, which are named by the file's keys."""
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(self[key])


def margin(space):
    return torch.where(torch.isin(torch.arange(len(space.att)), space.unseen), 1.0, -1.0)


@pytest.mark.parametrize(("name", "dataset"), [("dazle_cub", "CUB"), ("dazle_awa2", "AWA2"), ("dazle_sun", "SUN")])
def test_dazle(name, dataset):
    g = Golden(name)
    space, (x, y) = g.space(), g.batch()
    recipe = DAZLE_RECIPES.get(dataset, DAZLE_RECIPES["*"])
    assert (recipe.normalize_vectors, recipe.use_w) == (bool(g["normalize_v"]), bool(g["use_w"]))
    assert recipe.lambda_cal == g["lambda_cal"]
    model = DAZLE(space, D, recipe).double()
    a = model.attention
    parameters = {"W1": a.W1, "W2": a.W2, "W3": a.W3, "v": a.v}
    g.give(**parameters)
    found = model.attend(x)
    for key in ("theta", "w", "e"):
        g.agrees(key, getattr(found, key))
    g.agrees("scores_with_margin", model.class_scores(x) + margin(space))
    losses = model.loss(x, y)
    for key, ours in (("ce", "ce"), ("self_calibration", "cal"), ("loss", "loss")):
        g.agrees(key, losses[ours])
    losses["loss"].backward()
    for key, parameter in parameters.items():
        if f"grad_{key}" in g.numbers:
            g.agrees(f"grad_{key}", parameter.grad)
    assert g.open == {"raw"}


@pytest.mark.parametrize("name", ["msdn_plain", "msdn_normalized_v"])
def test_msdn(name):
    g = Golden(name)
    space, (x, y) = g.space(), g.batch()
    assert MSDN_RECIPES["*"].lambda_cal == g["lambda_cal"]
    assert MSDN_RECIPES["*"].lambda_distill == g["lambda_distill"]
    model = a = MSDN(space, D, replace(MSDN_RECIPES["*"], normalize_vectors=bool(g["normalize_v"]))).double()
    parameters = {"V": (a.v, False), "W_1": (a.W2, False), "W_2": (a.W1, False)}
    parameters |= {"W_1_1": (a.W4, True), "W_2_1": (a.W3, False)}  # W_1_1 is (D,V) there
    with torch.no_grad():
        for key, (parameter, turned) in parameters.items():
            parameter.copy_(g[f"param_{key}"].T if turned else g[f"param_{key}"])
    m = margin(space)
    s1, s2 = model.branch_scores(x)
    g.agrees("scores1_with_margin", s1 + m)
    g.agrees("scores2_with_margin", s2 + m)
    g.agrees("distill", distillation(s1, s2, m))
    losses = model.loss(x, y)
    torch.testing.assert_close(losses["ce"], g["ce1"] + g["ce2"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(losses["cal"], g["cal1"] + g["cal2"], rtol=1e-9, atol=1e-9)
    g.agrees("loss", losses["loss"])
    losses["loss"].backward()
    for key, (parameter, turned) in parameters.items():
        g.agrees(f"grad_{key}", parameter.grad.T if turned else parameter.grad)
    assert g.open == {"raw", "param_W_3", "param_W_3_1"}  # the last two take no part


ENCODER, DECODER = "transformer.transformer_encoder.", "transformer.transformer_decoder.layers.0."
TRANSZERO = {  # ours: theirs
    "v": "V",
    "W": "W_1",
    "embed_regions": "transformer.embed_cv.0",
    "embed_attributes": "transformer.embed_attr.0",
    "encoder.q": ENCODER + "layers.0.mhatt.attention.fc_q",
    "encoder.k": ENCODER + "layers.0.mhatt.attention.fc_k",
    "encoder.v": ENCODER + "layers.0.mhatt.attention.fc_v",
    "encoder.o": ENCODER + "layers.0.mhatt.attention.fc_o",
    "encoder.norm1": ENCODER + "layers.0.mhatt.layer_norm",
    "encoder.norm2": ENCODER + "layers.0.lnorm",
    "encoder.ffn.fc1": ENCODER + "layers.0.pwff.fc1",
    "encoder.ffn.fc2": ENCODER + "layers.0.pwff.fc2",
    "encoder.ffn.norm": ENCODER + "layers.0.pwff.layer_norm",
    "encoder.w_g": ENCODER + "WGs.0",
    "decoder.among": DECODER + "self_attn",
    "decoder.over": DECODER + "multihead_attn",
    "decoder.norm1": DECODER + "norm1",
    "decoder.norm2": DECODER + "norm2",
    "decoder.ffn.fc1": DECODER + "linear1",
    "decoder.ffn.fc2": DECODER + "linear2",
    "decoder.ffn.norm": DECODER + "norm3",
}


def theirs(name):
    """Their name of one of our parameters: the longest prefix in the table, and the rest as it is."""
    prefix = max((p for p in TRANSZERO if name == p or name.startswith(p + ".")), key=len)
    return TRANSZERO[prefix] + name[len(prefix) :]


@pytest.mark.parametrize("mode", ["evaluation", "training without dropout"])
def test_transzero(mode):
    g = Golden("transzero_eval")
    space, (x, y) = g.space(), g.batch()
    recipe = replace(TRANSZERO_RECIPES["*"], width=20, feed_forward=24, dropout=0.0)
    assert (recipe.lambda_cal, recipe.lambda_reg) == (g["lambda_cal"], g["lambda_reg"])
    model = TransZero(space, int(g["side"]) ** 2, D, recipe).double()
    model.encoder.drop_attention.p = 0.0
    model.train(mode != "evaluation")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(g["param_" + theirs(name)])
    torch.testing.assert_close(model.encoder.geometry, g["geometry"], rtol=0, atol=1e-4)  # theirs is of float32
    model.encoder.geometry.copy_(g["geometry"])
    g.agrees("embed", model.attend(x).e)
    g.agrees("scores_with_margin", model.class_scores(x) + margin(space))
    losses = model.loss(x, y)
    for key in ("ce", "cal", "reg", "loss"):
        g.agrees(key, losses[key])
    losses["loss"].backward()
    for name, parameter in parameters.items():
        g.agrees("grad_" + theirs(name), parameter.grad)
    aux = "param_transformer.embed_cv_aux.0."
    assert g.open == {"raw", aux + "weight", aux + "bias"}  # the last two take no part


@pytest.mark.parametrize(("name", "dataset"), [("vsmr_staged_awa2", "AWA2"), ("vsmr_staged_cub50", "CUB50")])
def test_vsmr_staged(name, dataset):
    g = Golden(name)
    space, (x, y) = g.space(), g.batch()
    recipe = replace(STAGED_RECIPES[dataset], hidden=16, train_vectors=True)  # the files have grad_v of both
    assert recipe.normalize_vectors == bool(g["normalize_v"])
    model = VSMRStaged(space, D, recipe, seed=0).double()
    a = model.attention
    g.give(W2=a.W2, W3=a.W3, v=a.v)
    g.agrees("mask", model.presence[y])
    f = model.image_features(x, model.presence[y])
    g.agrees("f", f)
    losses = visual_losses(f, y)
    g.agrees("L_PS", losses["L_PS"])
    g.agrees("L_PP", losses["L_PP"])
    model.visual_loss(x, y)["loss"].backward()
    for key, parameter in {"W2": a.W2, "W3": a.W3, "v": a.v}.items():
        g.agrees(f"grad_{key}", parameter.grad)
    autoencoder = {
        f"E_D_{part}_fc{k}_{which}": getattr(layers[2 * (k - 1)], which)
        for part, layers in (("encoder", model.E), ("decoder", model.D))
        for k in (1, 2)
        for which in ("weight", "bias")
    }
    g.give(**autoencoder)
    loss = model.semantic_loss(space.seen, g["targets"])
    g.agrees("semantic_loss", loss)
    loss.backward()
    for key, parameter in autoencoder.items():
        g.agrees(f"grad_{key}", parameter.grad)
    assert g.open == {"raw"}
