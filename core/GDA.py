"""GDA: Gaussian classifiers of CLIP embeddings beside their texts, in closed form. Method ``gda``.

Z. Wang, J. Liang, L. Sheng, R. He, Z. Wang, T. Tan, "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation",
ICLR 2024. The equations and numbers are those of the released code, which tests/golden/ holds.
x unit image embeddings, t_c unit text embeddings, D their width.
    score        s_c = 100 x t_c + α (x W_c + b_c),   W_c = P μ_c,   b_c = -log n - ½ μ_c P μ_c of n classes
    seen c       μ_c the class's mean; P: pseudo-inverse of the mean over classes of the sample covariances
    unseen u     its 64 nearest training images by x t_u;  μ_u = (their sum + 16 t_u) / 80
                 Σ_u = Σ (x - t_u)(x - t_u)ᵀ / 63 of them;  P: mean over u of D (63 Σ_u + tr(Σ_u) I)^-1
α is chosen on validation. The released code scores seen and unseen classes as two problems; here they stand side by
side, γ between them.

It takes CLIP's image embeddings with the texts of the classes, as core/CLIP.py does, and is no zero-shot result: what
CLIP's pretraining saw of the unseen classes is unknown.
"""

from dataclasses import dataclass
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.CLIP import text_of
from core.method import ClassSpace, Images, Method, ZeroShotModel, hp, method

GRID = tuple(10.0**power for power in range(-4, 3))
_NEIGHBOURS, _TEXT_WEIGHT = 64, 16


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """α (None: chosen on validation)."""

    alpha: float | None = hp(None, "share of the Gaussian classifiers; none: chosen on validation", at_least=0)


class GDA(ZeroShotModel):
    def __init__(self, space: ClassSpace, R: int, D: int) -> None:
        super().__init__()
        text = F.normalize(text_of(space, R, D, attributes=False), dim=1)
        self.text = nn.Buffer(text)  # (C,D)
        self.seen = nn.Buffer(space.seen)
        self.unseen = nn.Buffer(space.unseen)
        self.W = nn.Buffer(torch.zeros_like(text))
        self.b = nn.Buffer(text.new_zeros(len(text)))
        self.alpha = nn.Buffer(text.new_zeros(()))

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor) -> None:
        """Both classifiers, from unit embeddings x (N,D) of the training images and their classes y (N,)."""
        D, x = x.shape[1], x.double()
        means = torch.stack([x[y == c].mean(dim=0) for c in self.seen])  # (S,D)
        within = torch.stack([x[y == c].T.cov() for c in self.seen]).mean(dim=0)
        self._store(self.seen, means, torch.linalg.pinv(within, hermitian=True))
        if not len(self.unseen):
            return
        of_unseen, precision = [], torch.zeros(D, D, dtype=x.dtype, device=x.device)
        for t in self.text[self.unseen].double():
            near = x[(x @ t).topk(min(_NEIGHBOURS, len(x))).indices]  # (n,D)
            of_unseen.append((near.sum(dim=0) + _TEXT_WEIGHT * t) / (len(near) + _TEXT_WEIGHT))
            scatter = (near - t).T @ (near - t)
            more = scatter.trace() / (len(near) - 1) * torch.eye(D, dtype=x.dtype, device=x.device)
            precision += D * torch.linalg.inv(scatter + more) / len(self.unseen)
        self._store(self.unseen, torch.stack(of_unseen), precision)

    def _store(self, classes: Tensor, means: Tensor, precision: Tensor) -> None:
        W = means @ precision
        self.W[classes] = W.to(self.W)
        self.b[classes] = (-log(len(classes)) - 0.5 * (W * means).sum(dim=1)).to(self.b)

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) for the one region of x (B,1,D), the unit image embedding."""
        x = F.normalize(x[:, 0], dim=1)
        return 100 * x @ self.text.T + self.alpha * (x @ self.W.T + self.b)


@method(
    "gda",
    recipes={"*": Recipe()},
    needs_text=True,
    deviations="seen and unseen classes in one matrix with γ between them (published: two problems); α chosen on "
    "validation classes by AUSUC; one view an image (published: ten); means over classes (published: over images)",
)
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    model = GDA(space, *shape)
    grid = GRID if recipe.alpha is None else (recipe.alpha,)

    def set_params(setting: dict[str, float]) -> None:
        model.alpha.fill_(setting["alpha"])

    def begin(images: Images) -> None:
        model.fit(images.pooled(), images.labels)
        model.alpha.fill_(grid[0])

    return Method(model=model, phases=[], begin=begin, grid=tuple({"alpha": a} for a in grid), set_params=set_params)
