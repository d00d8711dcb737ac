"""tf-VAEGAN: features of unseen classes, by a generator that is told what its own look like. Method ``tf-vaegan``.

S. Narayan, A. Gupta, F. S. Khan, C. G. M. Snoek, L. Shao, "Latent Embedding Feedback and Discriminative Features for
Zero-Shot Classification", ECCV 2020. The equations and numbers are those of the released code, whose losses and
gradients tests/golden/ holds. Every inner activation is leaky relu 0.2.
    encoder         [x,a] -> H -> 2K -> mean m and log-variance v (K)         h = m + exp(v/2) ε,  ε ~ N(0,1)
    generator       u = U [h,a],  x̂ = σ(L u);  with feedback: x̂ = σ(L(u + strength F(E x̂))), no gradient through E x̂
    decoder         e = E x,  Dec x = unit(A e)            R(o,a) = mean over images of Σ_i |d_i| d_i² / |d|,  d = o - a
    decoder's step  w_R R(Dec x, a), and on the same images
    critic's step   γ (critic(x̂) - critic(x) + λ (|∇ critic(τx + (1-τ)x̂)| - 1)²),  τ uniform, one an image
    after each five BCE(x̂, x) + KL - γ critic(x̂) + w_R R(Dec x̂, a), sums over channels, by encoder, generator, feedback
                    and decoder; λ grows by a tenth where the five (|∇| - 1)² are above 1.05, shrinks below 1.001
    then            a linear classifier of [x, Dec x, e]: of seen images, and of features made of each unseen class from
                    h ~ N(0,1), with feedback; score = its logits
x: mean-pooled, each channel scaled to [0,1] by the training images; a: unit attribute rows. An epoch passes over the
images ten times, five without feedback, five with it. The generator has a fixed number of epochs; validation chooses
those of the classifier. A class that is described later has no logit.

B images · D channels · K attributes · C classes (S seen + U unseen) · H hidden
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from core.method import Batches, ClassSpace, Images, Losses, Method, Phase, ZeroShotModel, hp, method
from core.scaling import Scaling

_CRITIC_STEPS, _BATCH = 5, 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    gan_epochs: int = hp(300, "epochs of the generator", at_least=0)
    gan_lr: float = hp(1e-4, "learning rate of encoder, generator and critic", above=0)
    feedback_lr: float = hp(1e-5, "learning rate of the feedback", above=0)
    decoder_lr: float = hp(1e-4, "learning rate of the decoder", above=0)
    hidden: int = hp(4096, "hidden units of each", at_least=1)
    gamma_gan: float = hp(10.0, "weight of what the critic says", at_least=0)
    w_r: float = hp(0.01, "weight of decoded attributes", at_least=0)
    strength: float = hp(1.0, "of the feedback", at_least=0)
    frozen: bool = hp(False, "the generator's step leaves the decoder as it is")
    per_class: int = hp(300, "features made of an unseen class, and rows in a step of the classifier", at_least=1)
    lr: float = hp(1e-3, "learning rate of the classifier", above=0)
    epochs: int = hp(25, "most epochs of the classifier", at_least=0)


def _layers(*widths: int) -> nn.Sequential:
    """Linear layers, each activated."""
    return nn.Sequential(*(layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.LeakyReLU(0.2))))


class TFVAEGAN(ZeroShotModel):
    uses_pooled_features = True

    def __init__(self, space: ClassSpace, D: int, recipe: Recipe) -> None:
        super().__init__()
        z, H = space.z, recipe.hidden
        K = z.shape[1]
        self.recipe, self.scaling, self.z = recipe, Scaling("range", z, D), nn.Buffer(z)
        self.encoder = _layers(D + K, H, 2 * K).append(nn.Linear(2 * K, 2 * K))  # m beside v
        self.generator = nn.ModuleDict({"U": _layers(2 * K, H), "L": nn.Linear(H, D)})
        self.decoder = nn.ModuleDict({"E": _layers(D, H), "A": nn.Linear(H, K)})
        self.feedback, self.critic = _layers(H, H, H), _layers(D + K, H).append(nn.Linear(H, 1))
        self.classifier = nn.Linear(D + K + H, len(z))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else nn.init.zeros_(parameter)
        self.penalty = nn.Buffer(z.new_tensor(10.0))  # λ
        self.penalties = nn.Buffer(z.new_tensor(0.0))  # sum since the generator's last step
        self.steps, self.turn = nn.Buffer(torch.tensor(0)), nn.Buffer(torch.tensor(1))  # the critic's; of half an epoch

    def generated(self, h: Tensor, a: Tensor, feedback: bool) -> Tensor:
        """x̂ (B,D) of codes h (B,K) and attributes a (B,K)."""
        u = self.generator["U"](torch.cat([h, a], dim=1))
        if feedback:
            seen = self.decoder["E"](self.generator["L"](u).sigmoid()).detach()
            u = u + self.recipe.strength * self.feedback(seen)
        return self.generator["L"](u).sigmoid()

    def reconstructed(self, x: Tensor, a: Tensor, feedback: bool, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x̂ (B,D), m and v (B,K) of scaled features x (B,D), their attributes a (B,K) and ε (B,K)."""
        m, v = self.encoder(torch.cat([x, a], dim=1)).chunk(2, dim=1)
        return self.generated(m + (v / 2).exp() * noise, a, feedback), m, v

    def described(self, x: Tensor) -> Tensor:
        """[Dec x, x, e] (B,K+D+H) of scaled features."""
        e = self.decoder["E"](x)
        return torch.cat([F.normalize(self.decoder["A"](e), dim=1), x, e], dim=1)

    def decoder_loss(self, x: Tensor, a: Tensor) -> Tensor:
        d = self.described(x)[:, : a.shape[1]] - a
        return self.recipe.w_r * (d.abs() * d.square() / d.norm(dim=1, keepdim=True)).sum(dim=1).mean()

    def critic_losses(self, x: Tensor, a: Tensor, feedback: bool, noise: Tensor, tau: Tensor) -> Losses:
        fake = self.reconstructed(x, a, feedback, noise)[0].detach()
        between = (tau * x + (1 - tau) * fake).requires_grad_()
        said = [self.critic(torch.cat([of, a], dim=1)) for of in (x, fake, between)]  # (B,1) each
        (slope,) = torch.autograd.grad(said[2].sum(), between, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        loss = self.recipe.gamma_gan * (said[1].mean() - said[0].mean() + self.penalty * penalty)
        return {"loss": loss, "penalty": penalty.detach()}

    def generator_loss(self, x: Tensor, a: Tensor, feedback: bool, noise: Tensor) -> Tensor:
        fake, m, v = self.reconstructed(x, a, feedback, noise)
        bce = F.binary_cross_entropy(fake + 1e-12, x, reduction="sum")
        kl = 0.5 * (m.square() + v.exp() - 1 - v).sum()
        said = self.critic(torch.cat([fake, a], dim=1)).mean()
        return (bce + kl) / len(x) - self.recipe.gamma_gan * said + self.decoder_loss(fake, a)

    def play(self, x: Tensor, y: Tensor, by: dict[str, Optimizer]) -> Losses:
        """A step of decoder and critic and, after each five, the generator's; of pooled x (B,D) and their classes."""
        x, a, feedback = self.scaling(x).clamp(0, 1), self.z[y], int(self.steps) // int(self.turn) % 2 == 1
        _descend(self.decoder_loss(x, a), by["decoder"])
        losses = self.critic_losses(x, a, feedback, torch.randn_like(a), torch.rand_like(x[:, :1]))
        _descend(losses["loss"], by["critic"])
        self.penalties.add_(losses["penalty"])
        self.steps.add_(1)
        if self.steps % _CRITIC_STEPS == 0:
            playing = ["encoder", "generator"] + ["feedback"] * feedback + ["decoder"] * (not self.recipe.frozen)
            _descend(self.generator_loss(x, a, feedback, torch.randn_like(a)), *(by[name] for name in playing))
            self.adapt()
        return losses

    def adapt(self) -> None:
        """λ, after a step of the generator."""
        mean = self.penalties / _CRITIC_STEPS
        self.penalty.mul_(1.1 if mean > 1.05 else 1 / 1.1 if mean < 1.001 else 1.0)
        self.penalties.zero_()

    @torch.no_grad()
    def rows(self, images: Images, unseen: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """(M,K+D+H) and classes (M,) that the classifier learns from: seen images, and what is made of unseen ones."""
        a = self.z[classes := unseen.repeat_interleave(self.recipe.per_class)]
        h = torch.randn(a.shape, generator=torch.Generator().manual_seed(seed)).to(a)
        x = torch.cat([self.scaling(images.pooled()), self.generated(h, a, feedback=True)])
        return self.described(x), torch.cat([images.labels, classes])

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) logits for regions x (B,R,D)."""
        return self.classifier(self.described(self.scaling(x.mean(dim=1))))


def _descend(loss: Tensor, *optimizers: Optimizer) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


@method(
    "tf-vaegan",
    recipes={
        "*": Recipe(),
        "AWA2": Recipe(
            gan_epochs=120, gan_lr=1e-5, feedback_lr=1e-4, w_r=0.1, strength=0.01, frozen=True, per_class=1800
        ),
        "SUN": Recipe(
            gan_epochs=400, gan_lr=1e-3, feedback_lr=1e-4, gamma_gan=1.0, strength=0.1, per_class=400, lr=5e-4
        ),
    },
    deviations="epochs of the classifier and γ chosen on validation classes (published: epochs of both on test, no γ); "
    "T1 by the scores of the one classifier; batches cover every image equally often",
)
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    """Two phases: the players, each by an Adam of its own, then the classifier on what they have made."""
    model = TFVAEGAN(space, shape[1], recipe)
    rates = dict.fromkeys(("critic", "encoder", "generator"), recipe.gan_lr)
    rates |= {"feedback": recipe.feedback_lr, "decoder": recipe.decoder_lr}
    by: dict[str, Optimizer] = {}
    for name, lr in rates.items():
        by[name] = Adam(getattr(model, name).parameters(), lr=lr, betas=(0.9 if name == "encoder" else 0.5, 0.999))

    def begin(images: Images) -> None:
        model.scaling.fit(images.pooled())
        model.turn.fill_(_CRITIC_STEPS * -(-len(images.labels) // _BATCH))

    players = Phase(
        name="players", loss=lambda x, y: model.play(x, y, by), optimizer=by["critic"], others=(*by.values(),)[1:],
        batches=Batches(_BATCH, passes=2 * _CRITIC_STEPS), epochs=recipe.gan_epochs, selectable=False, pooled=True,
    )  # fmt: skip
    classifier = Phase(
        name="classifier", loss=lambda f, y: {"loss": F.cross_entropy(model.classifier(f), y)},
        optimizer=Adam(model.classifier.parameters(), lr=recipe.lr, betas=(0.5, 0.999)),
        batches=Batches(recipe.per_class), epochs=epochs,
        made=lambda images: model.rows(images, space.unseen.to(model.z.device), seed),
    )  # fmt: skip
    return Method(model=model, phases=[players, classifier], begin=begin)
