"""SAE: a linear map to attributes that can be undone by its transpose, in closed form. Method ``sae``.

E. Kodirov, T. Xiang, S. Gong, "Semantic Autoencoder for Zero-Shot Learning", CVPR 2017; what is not in the paper is as
in the re-implementation of Xian et al.'s protocol by M. V. Prasad (Popular-ZSL-Algorithms), whose numbers
tests/golden/ holds.
    W (K,D):  (TᵀT) W + W (λ XᵀX) = (1 + λ) TᵀX          a Sylvester equation
    to attributes   s_c = cos(W̃ x, z_c)                  W̃: W with rows of unit length
    to features     s_c = cos(x, z_c W̃)
X (N,D) unit rows of mean-pooled training features, T (N,K) whose row n is z of the class of image n. With TᵀT =
P diag(a) Pᵀ and XᵀX = Q diag(b) Qᵀ every λ costs two products: W = P [(1 + λ)(Pᵀ TᵀX Q)_ij / (a_i + λ b_j)] Qᵀ.
Where a_i + λ b_j is 0 (few classes, few images) W is 0: the shortest solution. Validation chooses λ and the way.

N images · D channels · K attributes · C classes
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.method import AttentionOutput, AttributeModel, ClassSpace, Images, Method, hp, method
from core.preparation import ClassEncoder

GRID = tuple(0.005 * 2.0**power for power in range(21))  # what the published grids of the three data sets span


@dataclass(frozen=True, kw_only=True)
class Recipe:
    penalty: float | None = hp(None, "SAE's λ; none: chosen on validation", above=0)
    to_features: bool | None = hp(None, "compare in feature space (on), attribute space (off); none: validation")


class SAE(AttributeModel):
    """The closed form; :meth:`decompose` once, then :meth:`solve` for any λ."""

    uses_pooled_features = True

    def __init__(self, space: ClassSpace, D: int) -> None:
        super().__init__(space)
        self.W = nn.Buffer(space.z.new_zeros(space.z.shape[1], D))
        self.to_features = nn.Buffer(torch.tensor(True))
        self._parts: tuple[Tensor, ...] | None = None

    @torch.no_grad()
    def decompose(self, pooled: Tensor, y: Tensor) -> None:
        """Eigenvectors of TᵀT and XᵀX, and TᵀX between them, from pooled (N,D) and classes y (N,)."""
        X, T = F.normalize(pooled, dim=1).double(), self.z.double()[y]
        (a, P), (b, Q) = (torch.linalg.eigh(M.T @ M) for M in (T, X))
        a, b = (torch.where(v > 1e-10 * v[-1], v, 0.0) for v in (a, b))  # below that it is rounding
        self._parts = (a, P, b, Q, P.T @ (T.T @ X) @ Q)

    @torch.no_grad()
    def solve(self, penalty: float, to_features: bool) -> None:
        """W for one λ, and the way."""
        assert self._parts is not None, "decompose first"
        a, P, b, Q, core = self._parts
        sums = a[:, None] + penalty * b
        inner = torch.where(sums > 0, (1 + penalty) * core / sums, 0.0)
        self.W.copy_(P @ inner @ Q.T)
        self.to_features.fill_(bool(to_features))

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) cosines for regions x (B,R,D)."""
        if self.to_features:
            return F.normalize(x.mean(dim=1), dim=1) @ F.normalize(self.z @ F.normalize(self.W, dim=1), dim=1).T
        return super().class_scores(x)

    def class_encoder(self, space: ClassSpace) -> ClassEncoder | None:
        return None if self.to_features else super().class_encoder(space)

    def evidence(self, x: Tensor, a: AttentionOutput | None) -> Tensor | None:
        """W̃ x (B,K) at unit length; in feature space a class's length mixes its attributes, and there is none."""
        if self.to_features:
            return None
        return F.normalize(x.mean(dim=1) @ F.normalize(self.W, dim=1).T, dim=1)


@method(
    "sae",
    recipes={"*": Recipe()},
    deviations="λ and the way are chosen on validation classes; fitted on all training classes for T1 too",
)
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    model = SAE(space, shape[1])
    penalties = GRID if recipe.penalty is None else (recipe.penalty,)
    ways = (True, False) if recipe.to_features is None else (recipe.to_features,)

    def begin(images: Images) -> None:
        model.decompose(images.pooled(), images.labels)
        model.solve(penalties[0], ways[0])

    return Method(
        model=model,
        phases=[],
        begin=begin,
        grid=tuple({"penalty": p, "to_features": w} for w in ways for p in penalties),
        set_params=lambda setting: model.solve(setting["penalty"], bool(setting["to_features"])),
    )
