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
from core.CADA_VAE import CADAVAE
from core.CADA_VAE import Recipe as VAERecipe
from core.CNZSL import CNZSL
from core.CNZSL import Recipe as CNZSLRecipe
from core.GDA import GDA
from core.method import ClassSpace, ZeroShotModel
from core.methods import find_method
from core.ranking import Bilinear
from core.SAE import SAE
from core.TF_VAEGAN import TFVAEGAN
from core.TF_VAEGAN import Recipe as GANRecipe
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


def test_cada_vae() -> None:
    g = Golden("cada_vae")
    sizes = {"image_encoder": 14, "image_decoder": 12, "attribute_encoder": 11, "attribute_decoder": 9}
    recipe = VAERecipe(latent=int(g["latent"]), **sizes)
    model = CADAVAE(g.space(), g["pooled"].shape[1], recipe).double()
    model.scaling.fit(g["pooled"])
    x, a = model.scaling(g["pooled"]), model.z[g["y"]]
    g.agrees("X", x)
    names = {}
    for theirs, vae in (("img", model.images), ("att", model.attributes)):
        layers = {"encoder_feature_encoder.0": vae.encode[0], "encoder__mu": vae.mu, "encoder__logvar": vae.v}
        layers |= {f"decoder_feature_decoder.{i}": vae.decoder[i] for i in (0, 2)}
        names |= {f"{theirs}_{k}.{part}": getattr(v, part) for k, v in layers.items() for part in ("weight", "bias")}
    g.give(**{f"param_{name}": value for name, value in names.items()})
    noise = g["noise_img"], g["noise_att"]
    for modality, vae, inputs, eps in (("img", model.images, x, noise[0]), ("att", model.attributes, a, noise[1])):
        code = vae(inputs)
        for key, value in (("mu", code.mu), ("logvar", code.v), ("z", code.sample(eps))):
            g.agrees(f"{key}_{modality}", value)
    g.agrees("img_from_img", model.images.decoder(g["z_img"]))
    g.agrees("img_from_att", model.images.decoder(g["z_att"]))
    for key in TEST:
        g.agrees(key.replace("pooled", "mu"), model.images(model.scaling(g[key])).mu)
    for epoch in g["epochs_given"].tolist():
        model.epoch.fill_(epoch)
        model.zero_grad()
        loss = model.losses(x, a, *noise)["loss"]
        g.agrees(f"loss_epoch_{epoch}", loss)
        loss.backward()
    for name, value in names.items():
        g.agrees(f"grad_{name}", value.grad)
    vaes = [*model.images.parameters(), *model.attributes.parameters()]
    optimizer, losses = torch.optim.Adam(vaes, lr=recipe.vae_lr, amsgrad=True), []
    for eps in g["steps_noise"]:
        optimizer.zero_grad()
        loss = model.losses(x, a, eps[:, :1], eps[:, 1:])["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    g.agrees("steps_loss", torch.stack(losses))
    for name, value in names.items():
        if name.startswith("img_encoder"):
            g.agrees(f"after_3_{name}", value)
    assert g.open <= {"y_test_seen", "y_test_unseen"}


def test_tf_vaegan() -> None:
    g = Golden("tf_vaegan")
    recipe = GANRecipe(hidden=int(g["width"]), gamma_gan=float(g["gamma_G"]), strength=float(g["a1"]))
    assert recipe.w_r == g["recons_weight"] and recipe.gamma_gan == g["gamma_D"] and g["max_after_scaling"] == 1
    model = TFVAEGAN(g.space(), g["pooled"].shape[1], recipe).double()
    assert model.penalty == g["lambda_gp"]
    model.scaling.fit(g["pooled"])
    g.agrees("X", model.scaling(g["pooled"]))
    layers = {"netE_fc1": model.encoder[0], "netE_fc3": model.encoder[2]}
    layers |= {"netG_fc1": model.generator["U"][0], "netG_fc3": model.generator["L"]}
    layers |= {"netD_fc1": model.critic[0], "netD_fc2": model.critic[2]}
    layers |= {"netF_fc1": model.feedback[0], "netF_fc2": model.feedback[2]}
    layers |= {"netDec_fc1": model.decoder["E"][0], "netDec_fc3": model.decoder["A"]}
    names = {f"{k}.{part}": getattr(layer, part) for k, layer in layers.items() for part in ("weight", "bias")}
    g.give(**{f"param_{name}": value for name, value in names.items()})
    for part in ("weight", "bias"):
        both = [g[f"param_netE_linear_{name}.{part}"] for name in ("means", "log_var")]
        getattr(model.encoder[4], part).data = torch.cat(both)

    def gradients(loss: Tensor, before: str, nets: tuple[str, ...]) -> None:
        model.zero_grad()
        loss.backward()
        for name, value in names.items():
            if name.startswith(nets):
                g.agrees(f"{before}_{name}", value.grad)

    x, a = model.scaling(g["pooled"])[:12], model.z[g["y"]][:12]
    for loop in (0, 1):
        fake, m, v = model.reconstructed(x, a, bool(loop), g["noise_generator"])
        for key, value in (("mean", m), ("logvar", v), ("reconstruction", fake)):
            g.agrees(f"loop{loop}_{key}", value)
        of_critic = model.critic_losses(x, a, bool(loop), g["noise_critic"], g["alpha"])
        g.agrees(f"loop{loop}_critic_loss", of_critic["loss"])
        g.agrees(f"loop{loop}_gradient_penalty", recipe.gamma_gan * model.penalty * of_critic["penalty"])
        g.agrees(f"loop{loop}_semantic_loss", model.decoder_loss(fake, a) / recipe.w_r)
        if loop:
            gradients(of_critic["loss"] + model.decoder_loss(x, a), "grad_loop1_critic", ("netD",))
        loss = model.generator_loss(x, a, bool(loop), g["noise_generator"])
        g.agrees(f"loop{loop}_generator_loss", loss)
        gradients(loss, f"grad_loop{loop}", ("netE", "netG", "netF", "netDec") if loop else ("netG",))
        if loop:
            for part in ("weight", "bias"):
                for name, value in zip(
                    ("means", "log_var"), getattr(model.encoder[4], part).grad.chunk(2), strict=True
                ):
                    g.agrees(f"grad_loop1_netE_linear_{name}.{part}", value)
        before = model.penalty.clone()
        model.penalties.fill_(5 * of_critic["penalty"])
        model.adapt()
        g.agrees(f"loop{loop}_lambda_gp_after", model.penalty)
        model.penalty.copy_(before)
    assert all(
        key.split("_", 1)[-1] in ("critic_real", "critic_fake", "generator_cost", "vae_loss")
        or "test" in key
        or key in ("hidden", "latent")
        for key in g.open
    ), g.open


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
