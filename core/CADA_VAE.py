"""CADA-VAE: two variational autoencoders with one latent space, then a classifier of its codes. Method ``cada-vae``.

E. Schönfeld, S. Ebrahimi, S. Sinha, T. Darrell, Z. Akata, "Generalized Zero- and Few-Shot Learning via Aligned
Variational Autoencoders", CVPR 2019. The equations and numbers are those of the released code, whose losses and
gradients tests/golden/ holds.
    encoders   one hidden relu layer, then μ and v (64 each), of images x and of class attributes a
    codes      h = μ + exp(v) ε,  ε ~ N(0,1), one number an image and modality
    rec   = |D_x h_x - x|₁ + |D_a h_a - a|₁        cross = |D_x h_a - x|₁ + |D_a h_x - a|₁        sums over the batch
    KL    = ½ Σ (μ² + exp v - 1 - v), both         dist = Σ over images √(|μ_x - μ_a|² + |exp(v_x/2) - exp(v_a/2)|²)
    loss  = rec + β KL + γ_c cross + δ dist            β, γ_c, δ grow with the epoch
    then  a linear classifier of codes: 200 h_x of each seen class and 400 h_a of each unseen one, made once
    score = that classifier's logits of μ_x
v is a log-variance in KL and dist, but the noise is scaled by exp(v); and ε is one number instead of 64: both belong to
the published results. x: mean-pooled, each channel scaled to [0,1] by the training images; a: unit attribute rows.

Trained by Adam, the autoencoders for a fixed number of epochs; validation chooses those of the classifier. A class that
is described later has no logit.

B images · D channels · K attributes · C classes (S seen + U unseen) · L latent
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.method import Batches, ClassSpace, Images, Losses, Method, Phase, ZeroShotModel, hp, method
from core.scaling import Scaling

_RAMPS = {"kl": (0, 93, 0.25), "cross": (21, 75, 2.37), "dist": (6, 22, 8.13)}  # from epoch, to epoch, to weight
_PER_SEEN, _PER_UNSEEN = 200, 400  # codes of a class


@dataclass(frozen=True, kw_only=True)
class Recipe:
    vae_epochs: int = hp(100, "epochs of the autoencoders", at_least=0)
    vae_lr: float = hp(1.5e-4, "learning rate of the autoencoders' Adam", above=0)
    vae_batch_size: int = hp(50, "images in a step of the autoencoders", at_least=1)
    latent: int = hp(64, "width of the latent space", at_least=1)
    image_encoder: int = hp(1560, "hidden units of the images' encoder", at_least=1)
    image_decoder: int = hp(1660, "of their decoder", at_least=1)
    attribute_encoder: int = hp(1450, "hidden units of the attributes' encoder", at_least=1)
    attribute_decoder: int = hp(665, "of their decoder", at_least=1)
    lr: float = hp(1e-3, "learning rate of the classifier's Adam", above=0)
    batch_size: int = hp(32, "codes in a step of the classifier", at_least=1)
    epochs: int = hp(23, "most epochs of the classifier", at_least=0)


class Code(NamedTuple):
    mu: Tensor  # (B,L)
    v: Tensor  # (B,L) log-variance

    def sample(self, noise: Tensor) -> Tensor:
        """h (B,L) with ε (B,1)."""
        return self.mu + self.v.exp() * noise


class VAE(nn.Module):
    def __init__(self, width: int, encoder: int, decoder: int, latent: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(width, encoder), nn.ReLU())
        self.mu, self.v = nn.Linear(encoder, latent), nn.Linear(encoder, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, decoder), nn.ReLU(), nn.Linear(decoder, width))
        self.apply(_start)

    def forward(self, x: Tensor) -> Code:
        hidden = self.encode(x)
        return Code(self.mu(hidden), self.v(hidden))


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight, gain=0.5)
        nn.init.zeros_(module.bias)


def ramp(epoch: float, start: float, end: float, top: float) -> float:
    """From 0 at epoch ``start`` up to ``top`` at epoch ``end``."""
    return min(max((epoch - start) / (end - start) * top, 0.0), top)


class CADAVAE(ZeroShotModel):
    uses_pooled_features = True

    def __init__(self, space: ClassSpace, D: int, recipe: Recipe) -> None:
        super().__init__()
        z = space.z
        self.scaling = Scaling("range", z, D)
        self.images = VAE(D, recipe.image_encoder, recipe.image_decoder, recipe.latent)
        self.attributes = VAE(z.shape[1], recipe.attribute_encoder, recipe.attribute_decoder, recipe.latent)
        self.classifier = nn.Linear(recipe.latent, len(z))
        _start(self.classifier)
        self.z = nn.Buffer(z)  # (C,K)
        self.epoch = nn.Buffer(torch.tensor(0))  # finished ones of the autoencoders

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Of pooled features x (B,D) and their classes."""
        return self.losses(self.scaling(x), self.z[y], *torch.randn(2, len(x), 1, device=x.device).to(x))

    def losses(self, x: Tensor, a: Tensor, noise_x: Tensor, noise_a: Tensor) -> Losses:
        """Of scaled features x (B,D), attributes a (B,K) of their classes, and ε (B,1) of both."""
        code_x, code_a = self.images(x), self.attributes(a)
        h_x, h_a = code_x.sample(noise_x), code_a.sample(noise_a)
        D_x, D_a = self.images.decoder, self.attributes.decoder
        rec = (D_x(h_x) - x).abs().sum() + (D_a(h_a) - a).abs().sum()
        cross = (D_x(h_a) - x).abs().sum() + (D_a(h_x) - a).abs().sum()
        kl = sum(0.5 * (c.mu.square() + c.v.exp() - 1 - c.v).sum() for c in (code_x, code_a))
        spread = (code_x.v / 2).exp() - (code_a.v / 2).exp()
        dist = ((code_x.mu - code_a.mu).square().sum(dim=1) + spread.square().sum(dim=1)).sqrt().sum()
        weight = {name: ramp(float(self.epoch), *of) for name, of in _RAMPS.items()}
        loss = rec + weight["kl"] * kl + weight["cross"] * cross + weight["dist"] * dist
        return {"loss": loss, "rec": rec, "cross": cross, "dist": dist}

    @torch.no_grad()
    def codes(self, images: Images, unseen: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """(M,L) codes and (M,) classes that the classifier learns from. A seen class repeats its images in their order
        where they are fewer than 200; an unseen one repeats its attributes.
        """
        pooled, labels = self.scaling(images.pooled()), images.labels
        of_seen = [torch.where(labels == c)[0] for c in labels.unique()]
        rows = torch.cat([r[torch.arange(_PER_SEEN, device=r.device) % len(r)] for r in of_seen])
        classes = unseen.repeat_interleave(_PER_UNSEEN)
        noise = torch.randn(len(rows) + len(classes), 1, generator=torch.Generator().manual_seed(seed)).to(pooled)
        h_x = self.images(pooled[rows]).sample(noise[: len(rows)])
        h_a = self.attributes(self.z[classes]).sample(noise[len(rows) :])
        return torch.cat([h_x, h_a]), torch.cat([labels[rows], classes])

    def classifier_loss(self, h: Tensor, y: Tensor) -> Losses:
        """Cross-entropy of codes h (B,L)."""
        return {"loss": F.cross_entropy(self.classifier(h), y)}

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) logits of μ_x for regions x (B,R,D)."""
        return self.classifier(self.images(self.scaling(x.mean(dim=1))).mu)


@method(
    "cada-vae",
    recipes={"*": Recipe(), "AWA2": Recipe(epochs=29), "SUN": Recipe(epochs=21)},
    deviations="epochs of the classifier and γ chosen on validation classes (published: no γ); T1 by the scores of the "
    "one classifier, not by a second one of the unseen classes; batches of the autoencoders cover every image once",
)
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    """Two phases of Adam: the autoencoders on the images, the classifier on codes made when they are done."""
    model = CADAVAE(space, shape[1], recipe)
    vaes = [*model.images.parameters(), *model.attributes.parameters()]
    count = _PER_SEEN * len(space.seen) + _PER_UNSEEN * len(space.unseen)

    return Method(
        model=model,
        phases=[
            Phase(
                name="autoencoders",
                loss=model.loss,
                optimizer=torch.optim.Adam(vaes, lr=recipe.vae_lr, amsgrad=True),
                batches=Batches(recipe.vae_batch_size),
                epochs=recipe.vae_epochs,
                selectable=False,
                pooled=True,
                after_epoch=lambda: model.epoch.add_(1),
            ),
            Phase(
                name="classifier",
                loss=model.classifier_loss,
                optimizer=torch.optim.Adam(model.classifier.parameters(), lr=recipe.lr, betas=(0.5, 0.999)),
                batches=Batches(recipe.batch_size, steps=max(1, count // recipe.batch_size)),
                epochs=epochs,
                made=lambda images: model.codes(images, space.unseen.to(model.z.device), seed),
            ),
        ],
        begin=lambda images: model.scaling.fit(images.pooled()),
    )
