"""The board's methods against what their authors' code gave, in float64 to 1e-9 (tests/golden/README.md)."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core.APN import APN
from core.BiasAware import BiasAware
from core.BiasAware import Recipe as BiasRecipe
from core.CNZSL import CNZSL
from core.CNZSL import Recipe as CNZSLRecipe
from core.GDA import GDA
from core.method import ClassSpace, ZeroShotModel
from core.methods import find_method
from core.ranking import Bilinear
from core.SAE import SAE
from core.training.evaluation import per_class_accuracy
from tests.test_golden import Golden, double  # noqa: F401

TEST = ("pooled_test_seen", "pooled_test_unseen")


def scores(model: ZeroShotModel, pooled: Tensor) -> Tensor:
    """Of pooled features (B,D): each is an image of one region."""
    model.eval()
    with torch.no_grad():
        return model.class_scores(pooled.unsqueeze(1))


def accuracy(s: Tensor, y: Tensor, classes: Tensor) -> float:
    """Mean per-class accuracy of scores (B,n) over ``classes`` (n,)."""
    mine = per_class_accuracy(classes[s.argmax(dim=1)].numpy(), y.numpy(), y.unique().numpy())
    return float(mine.mean())


def agree(g: Golden, seen: Tensor, unseen: Tensor, way: str = "") -> None:
    """S, U and T1 of scores of the test images are theirs."""
    every = torch.arange(len(g["att"]))
    assert accuracy(seen, g["y_test_seen"], every) == pytest.approx(float(g[f"S{way}"]))
    assert accuracy(unseen, g["y_test_unseen"], every) == pytest.approx(float(g[f"U{way}"]))
    assert accuracy(unseen[:, g["unseen"]], g["y_test_unseen"], g["unseen"]) == pytest.approx(float(g[f"T1{way}"]))


def image_by_image(g: Golden, model: Bilinear, lr: float, when: str, tried: list[Tensor]) -> None:
    """An epoch from the file's start, of one image a step in the file's order, each with the places it tries."""
    optimizer = torch.optim.SGD([model.W], lr=lr)
    with torch.no_grad():
        model.W.copy_(g[f"{when}W_start"].reshape(model.W.shape))
    order = g[f"{when}order"].tolist()
    for done, (n, places) in enumerate(zip(order, tried, strict=True), 1):
        optimizer.zero_grad()
        model.step(g["pooled"][[n]], g["y"][[n]], places).backward()
        optimizer.step()
        for key in (f"{when}W_after_{done}", f"{when}W_epoch" if done == len(order) else ""):
            if key in g.numbers:
                g.agrees(key, model.W.reshape(g.numbers[key].shape))


def three_steps(
    g: Golden, model: ZeroShotModel, optimizer: torch.optim.Optimizer, names: dict[str, Tensor], **running: Tensor
) -> None:
    """The first loss and its gradients by ``names``, what these and ``running`` are after 1 and 3 steps, all losses."""
    losses: list[Tensor] = []
    for step in (1, 2, 3):
        optimizer.zero_grad()
        loss = model.loss(g["pooled"], g["y"])["loss"]
        loss.backward()
        if step == 1:
            g.agrees("loss", loss)
            for name, value in names.items():
                g.agrees(f"grad_{name}", value.grad)
        optimizer.step()
        losses.append(loss.detach())
        if step in (1, 3):
            for name, value in (names | running).items():
                g.agrees(f"after_{step}_{name}", value)
    g.agrees("losses", torch.stack(losses))


@pytest.mark.parametrize("name", ["sae_cub", "sae_awa2", "sae_sun"])
def test_sae(name: str) -> None:
    g = Golden(name)
    model = SAE(g.space(), g["pooled"].shape[1])
    model.decompose(g["pooled"], g["y"])
    g.agrees("X", F.normalize(g["pooled"], dim=1))
    for way in ("f2s", "s2f"):
        model.solve(float(g[f"lambda_{way}"]), way == "s2f")
        g.agrees(f"W_{way}", model.W)
        seen, unseen = (scores(model, g[key]) for key in TEST)
        g.agrees(f"scores_{way}_test_seen", seen)
        g.agrees(f"scores_{way}_test_unseen", unseen)
        agree(g, seen, unseen, f"_{way}")
    assert g.open == set()


@pytest.mark.parametrize("dataset", ["CUB", "AWA2", "SUN"])
@pytest.mark.parametrize("rule", ["ale", "devise", "sje"])
def test_ranking(rule: str, dataset: str) -> None:
    g = Golden(f"{rule}_{dataset.lower()}")
    recipe = find_method(rule).recipe(dataset)
    assert recipe.inputs == ("none", "unit", "standard")[int(g["normalisation"])] and recipe.lr == g["lr"]
    if rule != "ale":
        assert recipe.margin == g["margin"]
    model = Bilinear(g.space(), g["pooled"].shape[1], recipe).double()
    model.scaling.fit(g["pooled"])
    g.agrees("X", model.scaling(g["pooled"]))
    if rule == "ale":
        g.agrees("beta", model.beta)
    for when in ("", "late_"):
        tried = [torch.arange(len(g["seen"]))] * len(g[f"{when}order"])
        if rule == "ale":
            tried = [row[row >= 0] for row in g[f"{when}negatives"]]
        image_by_image(g, model, recipe.lr, when, tried)
        if not when:
            seen, unseen = (scores(model, g[key]) for key in TEST)
            if recipe.inputs == "unit":  # theirs has unit rows of training images alone: a factor an image
                seen, unseen = (
                    s * g[key].norm(dim=1, keepdim=True) for s, key in zip((seen, unseen), TEST, strict=True)
                )
            g.agrees("scores_dot_test_seen", seen)
            g.agrees("scores_dot_test_unseen", unseen)
            x = g["pooled_test_unseen"].unsqueeze(1)
            length = model.evidence(x, None).norm(dim=1, keepdim=True)
            g.agrees("scores_cosine_test_unseen", (scores(model, x[:, 0]) / length)[:, g["unseen"]])
            agree(g, seen, unseen)
    assert g.open == set()


def test_latem() -> None:
    g = Golden("latem")
    recipe = replace(find_method("latem").recipe("CUB"), maps=int(g["maps"]), lr=float(g["lr"]))
    model = Bilinear(g.space(), g["pooled"].shape[1], recipe).double()
    model.scaling.fit(g["pooled"])
    g.agrees("X", model.scaling(g["pooled"]))
    for when in ("", "late_"):
        image_by_image(g, model, recipe.lr, when, list(g[f"{when}negatives"].reshape(-1, 1)))
    unseen = scores(model, g["pooled_test_unseen"])[:, g["unseen"]]
    assert accuracy(unseen, g["y_test_unseen"], g["unseen"]) == pytest.approx(float(g["T1"]))
    assert g.open <= {"pooled_test_seen", "y_test_seen"}


def test_cnzsl() -> None:
    g = Golden("cnzsl")
    recipe = CNZSLRecipe(hidden=int(g["hidden"]))
    model = CNZSL(g.space(), g["pooled"].shape[1], recipe).double().train()
    names = {f"model.{i}.{part}": getattr(model.network[i], part) for i in (0, 2, 6) for part in ("weight", "bias")}
    running = {f"model.{i}.running_{part}": getattr(model.network[i], part) for i in (3, 5) for part in ("mean", "var")}
    g.give(**{f"param_{name}": value for name, value in (names | running).items()})
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    g.agrees("scores", deepcopy(model)._scores(g["pooled"], model.attributes[model.seen]))  # running values move
    three_steps(g, model, optimizer, names, **running)
    for side, key in zip(("seen", "unseen"), TEST, strict=True):
        g.agrees(f"scores_test_{side}", scores(model, g[key]))
    assert g.open == {"seen_factor", "y_test_seen", "y_test_unseen"}  # their multiplicative calibration


def test_bias_aware() -> None:
    g = Golden("bias_gzsl")
    recipe = BiasRecipe(hidden=int(g["hidden"]), dropout=0.0)
    assert recipe.temperature == g["temperature"]
    model = BiasAware(g.space(), g["pooled"].shape[1], recipe).double().train()
    layers = {"mlp.linear.0": 0, "mlp.linear.1": 3, "embed.fc_embed": 5}
    names = {f"{k}.{part}": getattr(model.network[i], part) for k, i in layers.items() for part in ("weight", "bias")}
    g.give(**{f"param_{name}": value for name, value in names.items()})
    model.scaling.fit(g["pooled"])
    g.agrees("X", model.scaling(g["pooled"]))
    g.agrees("embedding", model.embedding(g["pooled"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-5)
    three_steps(g, model, optimizer, names)
    for side, key in zip(("seen", "unseen"), TEST, strict=True):
        logits = scores(model, g[key])
        theirs = logits.exp() / (logits.exp().sum(dim=1, keepdim=True) + 1e-8)
        g.agrees(f"posteriors_test_{side}", theirs)
    # generated images of unseen classes (both_*), and γ chosen on test, take no part here
    assert {key for key in g.open if not key.startswith("both_")} == {"gamma_on_test", "y_test_seen", "y_test_unseen"}


@pytest.mark.parametrize("dataset", ["CUB", "AWA2", "SUN"])
def test_apn(dataset: str) -> None:
    g = Golden(f"apn_{dataset.lower()}")
    recipe = find_method("apn").recipe(dataset)
    file = {"w2": "final_attri", "w3": "layer4_l_xe", "w4": "layer4_attri"}
    file |= {"w5": "layer4_regular", "w6": "final_regular"}
    theirs = {field: float(g[f"weight_{key}"]) for field, key in file.items()} | {"w7": float(g["weight_layer4_cpt"])}
    grouped = bool(g["use_group"])
    assert recipe.maximum is not bool(g["average_pool"]) and g["weight_final_xe"] == 1
    assert all(getattr(recipe, w) == theirs[w] for w in ("w2", "w4", "w5"))
    numbers = g["group_numbers"]
    groups = [g["group_attributes"][numbers == n] for n in numbers.unique()] if grouped else None
    recipe = replace(recipe, **theirs | ({} if grouped else {"w7": 0.0}))
    model = APN(g.space(), g["maps"].shape[1], recipe, groups).double()
    with torch.no_grad():
        model.P.copy_(g["param_prototypes"])
        model.V.copy_(g["param_global"])
    x, y = g["maps"].flatten(2).transpose(1, 2), g["y"]  # (B,R,D)
    g.agrees("attributes_global", model.global_attributes(x))
    g.agrees("attributes_local", model.attend(x).e)
    every, local = (model.class_scores(x).softmax(dim=1), (model.attend(x).e @ model.z.T).softmax(dim=1))
    g.agrees("posteriors_seen", model.class_scores(x)[:, model.seen].softmax(dim=1))
    g.agrees("posteriors_all", every)
    g.agrees("posteriors_all_local", local)
    losses = model.loss(x, y)
    for ours, key in (
        *(("ce", "l_xe_final"), ("attributes", "l_attri_final"), ("local_attributes", "l_attri_layer")),
        *(("local_ce", "l_xe_layer"), ("compactness", "l_cpt")),
    ):
        torch.testing.assert_close(losses[ours].detach(), g[f"part_{key}"].double(), rtol=1e-9, atol=1e-9)
    norms = g["part_l_regular_final"] + g["part_l_regular_layer"]
    torch.testing.assert_close(losses["norm"].detach(), norms, rtol=1e-9, atol=1e-9)
    g.agrees("loss", losses["loss"])
    losses["loss"].backward()
    g.agrees("grad_prototypes", model.P.grad)
    g.agrees("grad_global", model.V.grad)
    assert g.open <= {"posteriors_all_stacked", "weight_layer4_cpt", "group_attributes", "group_numbers"}, g.open


def test_gda() -> None:
    g = Golden("gda")
    text = g["text"]
    space = ClassSpace(g["att"], g["seen"], g["unseen"], text.new_zeros(g["att"].shape[1], 1), text.unsqueeze(1))
    model = GDA(space, 1, text.shape[1])
    x = F.normalize(g["raw"], dim=1)
    model.fit(x, g["y"])
    for side in ("seen", "unseen"):
        g.agrees(f"W_{side}", model.W[g[side]].T)
        g.agrees(f"b_{side}", model.b[g[side]])
    assert (g["neighbours"], g["repeats"]) == (64, 16)
    model.alpha.copy_(g["alpha"])
    g.agrees("logits_test_unseen", scores(model, g["x_test_unseen"])[:, g["unseen"]])
    unread = {"x_val", "y_val", "x_test_seen", "y_test_seen", "y_test_unseen", "mu_seen", "mu_unseen"}
    # few_*: its variant for few images a class
    assert {key for key in g.open if not key.startswith("few_")} == unread | {"precision_unseen"}
