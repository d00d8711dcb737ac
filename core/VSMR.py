"""VSMR trained jointly: method ``vsmr``, this repository's headline.

The parts are those of Zhang, Chen, Yu and Hu (J. Electron. Imaging 33(5) 053041, 2024): region weights, attribute
scores and weights, visual class prototypes, an encoder of attributes into visual space. Here they are trained together
so that each direction corrects the other, and what has a closed form is not left to gradient descent.

How to read it. θ, S, e, w are the dense attribute attention's (core/attention.py), z̃ the prepared class attributes:
    visual -> semantic   s1[b,c] = α cos(w∘e, z̃_c)                     attributes seen, against attributes described
    semantic -> visual   ρ[b,r] = ½/R + ½ Σ_i w_i θ_ir / Σ_i w_i       where the attributes that count are looked for
                         f[b]   = P (root(Σ_r ρ x_r) - μ)              image feature in whitened space
                         E(z_c) = Σ_s weights_cs P M_s                 visual prototype of a class: ridge regression
                                                                       from z̃ to the seen classes' means M_s, with
                                                       the kernel exp((z̃·z̃_s - 1)/τ)
                         s2[b,c] = α cos(f, E(z̃_c))
    loss = CE(s1) + CE(s2)
    score = s1 + β (s2 - αh max_s cos(P M_s, E(z̃_c)) + ακ l_c)
The last two correct what a prototype cannot know. h, hubness: a prototype close to a mean of training images is close
to many an image, so it is chosen too often (M. Radovanović et al., JMLR 2010; in zero-shot, G. Dinu et al., ICLR 2015).
κ, seen expert: for seen classes alone, l is a linear discriminant of f (within-class covariance, shrunk), standardised
over the seen classes: it has their images where E has their attributes only.
s2's gradient reaches v, W2 and W3 through ρ, and s1's does through e and w: both directions shape one attention. M is
measured anew every epoch with the attention as it then is. E is never fitted by gradient: a few dozen to a few hundred
classes are too few pairs for that (measured: the ablation's row "E by gradient").

Before the first step everything is already a usable model (epoch 0): P, M and E from the training images, W1 and W2
from closed forms pulled back onto the word vectors (core/closed_forms.py): W1 says how much of an attribute a region
has, W2 where it can be read.

B images · R regions · D channels · K attributes · C classes (S seen) · V word-vector size · d width of P
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attention import DenseAttention, region_saliency
from core.closed_forms import closed_form_W1, closed_form_W2
from core.method import (
    AttentionOutput,
    Batches,
    ClassSpace,
    Images,
    Losses,
    Method,
    Phase,
    ZeroShotModel,
    hp,
    method,
    seeded,
)
from core.preparation import ClassEncoder, Mixing, prepared_attributes, shrunk_whitening, signed_root

_START = 0.05  # root mean square of W1 at the start; s1 does not depend on it, only how far a step of AdamW moves W1
_HUBNESS = (0.15, 0.0)  # what validation chooses among, by T1; the first where the two are equal
_EXPERT_SHRINKAGE = 0.3  # of the within-class covariance towards its mean diagonal


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every number and switch of ``vsmr``; one setting for all data sets but for how batches are drawn."""

    lr: float = hp(3e-4, "learning rate of AdamW", above=0)
    weight_decay: float = hp(1e-2, "weight decay", at_least=0)
    epochs: int = hp(5, "most epochs", at_least=0)
    batch_size: int = hp(50, "images in a step", at_least=1)
    balanced: bool = hp(False, "batches of one image of each of as many classes (on), or of any images (off)")
    alpha: float = hp(10.0, "scale of the cosines, s1 and s2", above=0)
    beta: float = hp(16.0, "share of s2 in the score s1 + β s2", at_least=0)
    ridge: float = hp(0.2, "penalty of the ridge regression E, in mean eigenvalues", above=0)
    kernel_width: float | None = hp(2.0, "width τ of E's kernel; none: linear ridge regression", above=0)
    hubness: float | None = hp(None, "share h of hubness taken from a class; none: chosen on validation", at_least=0)
    seen_expert: float = hp(0.025, "share κ of the discriminant of seen classes in their scores", at_least=0)
    width: int = hp(512, "width of the whitened visual space", at_least=1)
    shrinkage: float = hp(10.0, "shrinkage r of the whitening, in mean eigenvalues", above=0)
    mean_share: float = hp(0.5, "share of the plain mean in the pooling, beside the saliency ρ", at_least=0, at_most=1)
    root_attributes: bool = hp(True, "square root of class attributes (ablation switch)")
    centre_attributes: bool = hp(True, "mean of the seen classes taken from class attributes (ablation switch)")
    root_features: bool = hp(True, "signed square root of pooled features (ablation switch)")
    whiten: bool = hp(True, "whitening; off rotates only (ablation switch)")
    closed_start: bool = hp(True, "W1 from ESZSL's closed form; off starts at N(0,1) (ablation switch)")
    sharpness: float = hp(40.0, "of the attention's closed start W2; 0 looks everywhere alike", at_least=0)
    ridge_encoder: bool = hp(True, "E by ridge regression; off learns a linear E by gradient (ablation switch)")
    loss_semantic: bool = hp(True, "CE(s1) in the loss (ablation switch)")
    loss_visual: bool = hp(True, "CE(s2) in the loss (ablation switch)")


class VSMR(ZeroShotModel):
    """Joint visual-semantic model; :meth:`fit_closed_form` must see the training images before the first step."""

    def __init__(self, space: ClassSpace, D: int, recipe: Recipe) -> None:
        super().__init__()
        r = self.recipe = recipe
        C, K, S, d = len(space.att), space.att.shape[1], len(space.seen), min(recipe.width, D)
        self.attention = DenseAttention(space.w2v, D)
        self.hubness = _HUBNESS[0] if r.hubness is None else r.hubness
        self.E = None if r.ridge_encoder else nn.Linear(K, d, bias=False, dtype=space.att.dtype)
        z = prepared_attributes(space.att, space.seen, root=r.root_attributes, centre=r.centre_attributes)
        seen_index = torch.full((C,), -1, dtype=torch.long, device=z.device)
        seen_index[space.seen] = torch.arange(S, device=z.device)
        self.z = nn.Buffer(z)  # (C,K)
        self.seen = nn.Buffer(space.seen)
        self.unseen = nn.Buffer(space.unseen)
        self.seen_index = nn.Buffer(seen_index)  # (C,) place of a seen class among the seen
        mixing = Mixing.solve(z[space.seen], ridge=r.ridge, width=r.kernel_width)
        self.landmarks = nn.Buffer(mixing.landmarks, persistent=False)  # (m,K); both follow from z
        self.mixing_A = nn.Buffer(mixing.A, persistent=False)  # (m,S)
        self.x_mean = nn.Buffer(z.new_zeros(D))  # mean pooled feature of the training images
        self.phi_mean = nn.Buffer(z.new_zeros(D))  # μ
        self.P = nn.Buffer(z.new_zeros(d, D))
        self.class_means = nn.Buffer(z.new_zeros(S, D))  # M
        self.encoded = nn.Buffer(z.new_zeros(C, d))  # E(z̃) where it is ridge regression: it changes with M only
        self.hub = nn.Buffer(z.new_zeros(C))  # cosine of a prototype with the nearest seen mean
        self.expert = nn.Buffer(z.new_zeros(S, d))  # the discriminant of seen classes,
        self.expert_bias = nn.Buffer(z.new_zeros(S))  # and its constant
        self.epoch_sums = nn.Buffer(z.new_zeros(S, D))  # of φ over this epoch's batches
        self.epoch_counts = nn.Buffer(z.new_zeros(S))
        self.epoch_scatter = nn.Buffer(z.new_zeros(d, d))  # of P φ over this epoch's batches

    @property
    def mixing(self) -> Mixing:
        """What writes a class as a mixture of the seen ones."""
        return Mixing(landmarks=self.landmarks, A=self.mixing_A, width=self.recipe.kernel_width)

    @torch.no_grad()
    def fit_closed_form(self, pooled: Tensor, y: Tensor) -> None:
        """Everything that has a closed form, from mean-pooled training features (N,D) and their classes (N,)."""
        r = self.recipe
        index = self.seen_index[y]
        self.x_mean.copy_(pooled.mean(dim=0))
        phi = self._root(pooled)
        self.phi_mean.copy_(phi.mean(dim=0))
        phi = phi - self.phi_mean
        shrinkage = r.shrinkage if r.whiten else float("inf")
        self.P.copy_(shrunk_whitening(phi, len(self.P), min(shrinkage, 1e12)))
        self._accumulate(phi, phi @ self.P.T, index)
        self.update_closed_forms()
        if r.closed_start:
            assert self.attention.W1 is not None
            W1 = closed_form_W1(pooled - self.x_mean, index, self.z[self.seen], F.normalize(self.attention.v, dim=1))
            self.attention.W1.copy_(W1 * (_START / W1.square().mean().sqrt()))

    def start_attention(self, images: Images) -> None:
        """W2 from where each attribute can be read; M is then what it is with this attention."""
        if not self.recipe.sharpness:
            return
        v = F.normalize(self.attention.v, dim=1)
        W2 = closed_form_W2(images, self.seen_index, self.z[self.seen], v)
        with torch.no_grad():
            self.attention.W2.copy_(self.recipe.sharpness * W2)
            for x, y in images.blocks():
                phi = self.pooled(x, self.attend(x))
                self._accumulate(phi, phi @ self.P.T, self.seen_index[y])
        self.update_closed_forms()

    def _root(self, g: Tensor) -> Tensor:
        return signed_root(g) if self.recipe.root_features else F.normalize(g, dim=1)

    def _accumulate(self, phi: Tensor, u: Tensor, index: Tensor) -> None:
        self.epoch_sums.index_add_(0, index, phi)
        self.epoch_counts.index_add_(0, index, torch.ones_like(index, dtype=self.epoch_counts.dtype))
        self.epoch_scatter.addmm_(u.T, u)

    @torch.no_grad()
    def update_closed_forms(self) -> None:
        """Take this epoch's class means as the new M, where a class was drawn, with all that rests on it: the
        prototypes, their hubness and the seen expert. Then start counting anew.
        """
        fresh = self.epoch_sums / self.epoch_counts.clamp_min(1).unsqueeze(1)
        self.class_means.copy_(torch.where(self.epoch_counts.unsqueeze(1) > 0, fresh, self.class_means))
        means = self.projected_means()
        self.encoded.copy_(F.normalize(self.mixing.expected(self.z, means), dim=1))
        self.hub.copy_(self._nearest_mean(self.prototypes()))
        if self.epoch_counts.any():
            self.update_expert(means, fresh @ self.P.T)
        for sums in (self.epoch_sums, self.epoch_counts, self.epoch_scatter):
            sums.zero_()

    def update_expert(self, means: Tensor, drawn: Tensor) -> None:
        """Linear discriminant of classes with means (S,d); ``drawn`` (S,d): those of this epoch, as its scatter is."""
        within = self.epoch_scatter - (drawn * self.epoch_counts.unsqueeze(1)).T @ drawn  # (d,d)
        within = within.double() / self.epoch_counts.sum()
        more = _EXPERT_SHRINKAGE * within.diagonal().mean().clamp_min(1e-12)
        shrunk = within + more * torch.eye(len(within), dtype=within.dtype, device=within.device)
        self.expert.copy_(torch.linalg.solve(shrunk, means.T.double()).T)
        self.expert_bias.copy_(-0.5 * (means * self.expert).sum(dim=1))

    def projected_means(self) -> Tensor:
        """P M_s (S,d)."""
        return self.class_means @ self.P.T

    def _nearest_mean(self, prototypes: Tensor) -> Tensor:
        """(N,) highest cosine of unit prototypes (N,d) with a seen class's mean."""
        return (prototypes @ F.normalize(self.projected_means(), dim=1).T).amax(dim=1)

    def prototypes(self) -> Tensor:
        """E(z̃) (C,d), unit rows."""
        return self.encoded if self.E is None else F.normalize(self.E(self.z), dim=1)

    def pooled(self, x: Tensor, a: AttentionOutput) -> Tensor:
        """φ (B,D): root of the saliency-weighted regions less its mean over the training images."""
        rho = region_saliency(a.w / a.w.sum(dim=1, keepdim=True), a.theta)  # (B,R), sums to 1
        share = self.recipe.mean_share
        rho = share / x.shape[1] + (1 - share) * rho
        return self._root(torch.bmm(rho.unsqueeze(1), x).squeeze(1)) - self.phi_mean

    def attend(self, x: Tensor) -> AttentionOutput:
        """θ, w and e of x (B,R,D)."""
        output: AttentionOutput = self.attention(x)
        return output

    def branch_scores(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """s1 (B,C), s2 (B,C), φ (B,D) and P φ (B,d)."""
        a = self.attend(x)
        s1 = self.evidence(x, a) @ self.z.T
        phi = self.pooled(x, a)
        u = phi @ self.P.T
        s2 = self.recipe.alpha * F.normalize(u, dim=1) @ self.prototypes().T
        return s1, s2, phi, u

    def _correct(self, u: Tensor) -> Tensor:
        """β α (κ l - h hub): (B,C), from image features u (B,d)."""
        r = self.recipe
        logits = u @ self.expert.T + self.expert_bias  # (B,S)
        logits = logits - logits.mean(dim=1, keepdim=True)
        logits = logits / logits.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
        of_seen = F.pad(r.seen_expert * logits, (0, 1))[:, self.seen_index]  # (B,C); the last column serves the unseen
        return r.beta * r.alpha * (of_seen - self.hubness * self.hub)

    def corrections(self, x: Tensor, a: AttentionOutput | None) -> Tensor:
        """Seen expert and hubness: (B,C)."""
        assert a is not None
        return self._correct(self.pooled(x, a) @ self.P.T)

    def evidence(self, x: Tensor, a: AttentionOutput | None) -> Tensor:
        """α w∘e / |w∘e| (B,K), whose product with z̃ is s1; e less what the mean training image has."""
        assert a is not None and a.e is not None and self.attention.W1 is not None
        e = a.e - self.attention.v @ (self.attention.W1 @ self.x_mean)  # (B,K)
        return self.recipe.alpha * F.normalize(a.w * e, dim=1)

    def seen_class_evidence(self, x: Tensor, a: AttentionOutput | None) -> tuple[Tensor, Tensor] | None:
        """s2 as a sum over seen classes: h_s = β α f·P M_s, mixture_cs = weights_cs / |Σ_s weights_cs P M_s|."""
        if self.E is not None:
            return None
        assert a is not None
        means = self.projected_means()  # (S,d)
        f = F.normalize(self.pooled(x, a) @ self.P.T, dim=1)  # (B,d)
        weights = self.mixing.weights(self.z)  # (C,S)
        length = (weights @ means).norm(dim=1, keepdim=True).clamp_min(1e-12)  # (C,1)
        return self.recipe.beta * self.recipe.alpha * f @ means.T, weights / length

    def class_encoder(self, space: ClassSpace) -> ClassEncoder | None:
        """Descriptions become z̃ and a mixture as the class attributes did; E learned by gradient does not split."""
        if self.E is not None:
            return None
        r, means = self.recipe, self.projected_means()
        plain = ClassEncoder.of(space.att, space.seen, root=r.root_attributes, centre=r.centre_attributes)
        return replace(plain, mixing=self.mixing, gram=means @ means.T, hubness=r.beta * r.alpha * self.hubness)

    @torch.no_grad()
    def describe_classes(self, classes: Tensor) -> None:
        """E(z̃) and hubness of classes (A,) that were added after training."""
        if self.E is None:
            self.encoded[classes] = F.normalize(self.mixing.expected(self.z[classes], self.projected_means()), dim=1)
        self.hub[classes] = self._nearest_mean(self.prototypes()[classes])

    def class_scores(self, x: Tensor) -> Tensor:
        """s1 + β s2, corrected: (B,C)."""
        s1, s2, _, u = self.branch_scores(x)
        return s1 + self.recipe.beta * s2 + self._correct(u)

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy of both directions over all classes; y (B,) class numbers of seen classes."""
        r = self.recipe
        s1, s2, phi, u = self.branch_scores(x)
        with torch.no_grad():
            kind = self.epoch_sums.dtype
            self._accumulate(phi.detach().to(kind), u.detach().to(kind), self.seen_index[y])
        parts = {"s1": F.cross_entropy(s1, y), "s2": F.cross_entropy(s2, y)}
        loss = parts["s1"] * float(r.loss_semantic) + parts["s2"] * float(r.loss_visual)
        return {"loss": loss, **parts}

    @torch.no_grad()
    def tune_hubness(self, unseen: Images) -> dict[str, float]:
        """The share h of the highest per-class accuracy among unseen classes on validation images of such classes."""
        blocks = [self.branch_scores(x)[:2] for x, _ in unseen.blocks()]
        scores = torch.cat([s1 + self.recipe.beta * s2 for s1, s2 in blocks])[:, self.unseen]  # (N,U)
        labels = (unseen.labels.unsqueeze(1) == self.unseen).float()  # (N,U)
        weight = self.recipe.beta * self.recipe.alpha * self.hub[self.unseen]

        def accuracy(share: float) -> float:
            hit = labels.gather(1, (scores - share * weight).argmax(dim=1, keepdim=True))  # (N,1)
            return float(((labels * hit).sum(dim=0) / labels.sum(dim=0).clamp_min(1)).sum())

        self.hubness = max(_HUBNESS, key=accuracy)
        return {"hubness": self.hubness}

    def set_params(self, settings: dict[str, float]) -> None:
        """Take the share h that validation chose."""
        self.hubness = settings["hubness"]


# One setting for all; AWA2's and SUN's batches are class-balanced, as in DAZLE's scripts. beta 16 is from photographs
# cropped to the creature; where it is a small part of the picture, as in the synthetic set, validation prefers more s1.
RECIPES = {
    "*": Recipe(),
    "AWA2": Recipe(balanced=True),
    "SUN": Recipe(balanced=True),
    "DEMO": Recipe(lr=1e-3, epochs=20, beta=2.0),
}


@method("vsmr", recipes=RECIPES)
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    """The closed form, then one phase of AdamW under a cosine schedule over the epochs as planned."""
    with seeded(seed):
        model = VSMR(space, shape[1], recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)

    def begin(images: Images) -> None:
        model.fit_closed_form(images.pooled(), images.labels)
        model.start_attention(images)

    phase = Phase(
        name="joint",
        loss=model.loss,
        optimizer=optimizer,
        batches=Batches(recipe.batch_size, balanced=recipe.balanced),
        epochs=epochs,
        lr_at=lambda done: recipe.lr * (1 + cos(pi * done / epochs)) / 2,
        after_epoch=model.update_closed_forms,
    )
    return Method(
        model=model,
        phases=[phase],
        begin=begin,
        tune=model.tune_hubness if recipe.hubness is None else None,
        set_params=model.set_params if recipe.hubness is None else None,
    )
