"""The generative methods against what their authors' code gave, in float64 to 1e-9 (tests/golden/README.md)."""

import torch
from torch import Tensor

from core.CADA_VAE import CADAVAE
from core.CADA_VAE import Recipe as VAERecipe
from core.TF_VAEGAN import TFVAEGAN
from core.TF_VAEGAN import Recipe as GANRecipe
from tests.test_golden import Golden, double  # noqa: F401

TEST = ("pooled_test_seen", "pooled_test_unseen")


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
