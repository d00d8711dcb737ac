"""VSMR as published, stage by stage: method ``vsmr-staged``.

Y. Zhang, T. Chen, K. Yu, X. Hu, "Zero-shot learning with visual-semantic mutual reinforcement for image recognition",
Journal of Electronic Imaging 33(5) 053041, 2024. Reading order is the order of the stages:
    0 attribute predictor     p[b] = σ(linear(mean_r x[b,r])); its binary mask stands for the label at test time
    1 visual transfer         masked attention -> image feature f[b]; L_PS + L_PP (f near its class mean, means apart)
    2 seen visual prototypes  P_c = mean of f over the class's training images
    3 semantic transfer       autoencoder E, D of class attributes with E(A_c) near P_c
    4 prediction              cosine of f with P (seen) and E(A) (unseen)
    5 transductive            unseen prototypes averaged with nearest test features (never headline)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.DAZLE import ClassSpace, DenseAttention, region_saliency


@dataclass(frozen=True)
class StagedRecipe:
    """The published numbers of one data set (stage in the name)."""

    predictor_lr: float
    predictor_epochs: int
    threshold: float | None  # of the predicted mask; None: chosen on validation
    visual_momentum: float
    visual_iterations: int
    train_vectors: bool
    hidden: int
    semantic_lr: float
    semantic_epochs: int
    neighbours: int  # stage 5
    classes_per_batch: int = 40
    images_per_class: int = 50


class VSMRStaged(nn.Module):
    """The five published stages; training them is :mod:`core.training.loop`'s and :meth:`finish`'s work."""

    gamma = 0.0  # no calibration was published
    steps_alone = True  # core/lockstep.py: how many classes a batch holds decides the shapes of its loss
    A: Tensor
    presence: Tensor
    seen: Tensor
    unseen: Tensor
    prototypes: Tensor
    threshold: Tensor

    def __init__(self, space: ClassSpace, D: int, recipe: StagedRecipe, seed: int) -> None:
        super().__init__()
        K = space.att.shape[1]
        self.recipe = recipe
        self.seed = seed
        self.predictor = nn.Linear(D, K)
        self.attention = DenseAttention(
            space.w2v, D, scores=False, train_vectors=recipe.train_vectors, zero_attention=False
        )
        self.E = nn.Sequential(nn.Linear(K, recipe.hidden), nn.ReLU(), nn.Linear(recipe.hidden, D))
        self.D = nn.Sequential(nn.Linear(D, recipe.hidden), nn.ReLU(), nn.Linear(recipe.hidden, K))
        self.register_buffer("A", space.att)
        self.register_buffer("presence", (space.att > 0).float())  # (C,K)
        self.register_buffer("seen", space.seen)
        self.register_buffer("unseen", space.unseen)
        self.register_buffer("prototypes", torch.zeros(len(space.att), D))  # (C,D)
        self.register_buffer("threshold", torch.tensor(recipe.threshold if recipe.threshold is not None else 0.5))

    def predictor_loss(self, pooled: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Stage 0: BCE of the attributes of the image's class; pooled (B,D)."""
        return {"loss": F.binary_cross_entropy_with_logits(self.predictor(pooled), self.presence[y])}

    def predicted_mask(self, x: Tensor) -> Tensor:
        """(B,K) of 0 and 1 from the image alone."""
        return (torch.sigmoid(self.predictor(x.mean(dim=1))) > self.threshold).float()

    def image_features(self, x: Tensor, mask: Tensor) -> Tensor:
        """f[b] = Σ_r ρ[b,r] x[b,r] with the attention masked to the attributes in ``mask`` (B,K): (B,D)."""
        a = self.attention(x)
        # the mask multiplies both θ and w; being binary, it matters once, and σ is the same wherever it is 1
        rho = region_saliency(a.w * mask, a.theta)  # (B,R)
        return torch.bmm(rho.unsqueeze(1), x).squeeze(1)

    def visual_loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Stage 1: L_PS + L_PP over the classes in the batch."""
        f = self.image_features(x, self.presence[y])  # (B,D)
        return visual_losses(f, y)

    @torch.no_grad()
    def accumulate(self, x: Tensor, y: Tensor, total: Tensor) -> None:
        """Add the true-mask features of a training batch to ``total`` (C,D), for stage 2."""
        total.index_add_(0, y, self.image_features(x, self.presence[y]))

    def semantic_loss(self, classes: Tensor, targets: Tensor) -> Tensor:
        """Stage 3: 0.1 MSE(E(A_c), P_c) + MSE(D(E(A_c)), A_c)."""
        A = self.A[classes]
        visual = self.E(A)
        return 0.1 * F.mse_loss(visual, targets[classes]) + F.mse_loss(self.D(visual), A)

    def finish(self, total: Tensor, counts: Tensor) -> None:
        """Stages 2 and 3 from the feature sums (C,D) and image counts (C,) of the seen classes; seeded by the run."""
        r = self.recipe
        targets = total / counts.clamp_min(1).unsqueeze(1)  # (C,D)
        generator = torch.Generator().manual_seed(self.seed)
        for layer in (*self.E, *self.D):
            if isinstance(layer, nn.Linear):  # torch's own default initialisation, from our generator
                bound = layer.in_features**-0.5
                for parameter in (layer.weight, layer.bias):
                    values = torch.rand(parameter.shape, generator=generator) * 2 * bound - bound
                    parameter.data.copy_(values)
        optimizer = torch.optim.Adam([*self.E.parameters(), *self.D.parameters()], lr=r.semantic_lr)
        with torch.enable_grad():
            for _ in range(r.semantic_epochs):
                order = torch.randperm(len(self.seen), generator=generator).to(self.seen.device)
                for batch in self.seen[order].split(10):
                    loss = self.semantic_loss(batch, targets)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
        with torch.no_grad():
            self.prototypes.copy_(targets)
            self.prototypes[self.unseen] = self.E(self.A[self.unseen])

    def class_scores(self, x: Tensor) -> Tensor:
        """Stage 4: cosine of f (predicted mask) with every class prototype: (B,C)."""
        f = self.image_features(x, self.predicted_mask(x))
        return F.normalize(f, dim=1) @ F.normalize(self.prototypes, dim=1).T


def visual_losses(f: Tensor, y: Tensor) -> dict[str, Tensor]:
    """L_PS and L_PP of VSMR for image features f (B,D) of classes y (B,)."""
    classes, index = y.unique(return_inverse=True)
    C_B = len(classes)
    sums = torch.zeros(C_B, f.shape[1], dtype=f.dtype, device=f.device).index_add(0, index, f)
    p = F.normalize(sums, dim=1)  # (C_B,D); a mean and a sum have the same direction
    cos = F.normalize(f, dim=1) @ p.T  # (B,C_B)
    own = cos.gather(1, index.unsqueeze(1)).sum()
    ps = (cos.sum() - own) / own
    between = p @ p.T
    pp = (between.sum() - between.diagonal().sum()) / (2 * C_B)
    return {"loss": ps + pp, "L_PS": ps, "L_PP": pp}
