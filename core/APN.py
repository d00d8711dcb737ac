"""APN: attribute prototypes that are looked for in the regions, its head on stored maps. Method ``apn``.

W. Xu, Y. Xian, J. Wang, B. Schiele, Z. Akata, "Attribute Prototype Network for Zero-Shot Learning", NeurIPS 2020. The
equations and numbers are those of the released code, whose losses and gradients tests/golden/ holds.
    global   g = V x̄ (AWA2, SUN: of the mean region) or max over r of V x_r (CUB)         s_c = g z_c
    local    M_ir = P_i x_r,   l_i = max over r of M_ir
    loss     = w1 CE(softmax(s)) + w2 mean (g - z_y)² + w3 CE(softmax(l z)) + w4 mean (l - z_y)² + w5 |P| + w6 |V|
               + w7 Σ σ(M_ir) |r - r*|²          over seen classes; r* is the region where M_i is highest
CE(softmax) is the cross-entropy of a softmax taken as logits: softmax twice, as the code has it. |P| with groups of
attributes: Σ over groups √(Σ_{i in group} Σ_d P_id² + D 1e-8); without, √ΣP²; |V| likewise. x_r are regions as the
network gives them, so unit regions are given back the training images' mean length.

Trained by Adam with β1 0.5, made anew every epoch. Published results also train the backbone, which stored maps cannot
follow: these rows are of the head alone.

B images · R regions · D channels · K attributes · C classes (S seen)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.method import AttentionOutput, AttributeModel, Batches, ClassSpace, Losses, Method, Phase, hp, method


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The released settings of the head's epochs; w1 is 1."""

    lr: float = hp(1e-4, "learning rate of Adam", above=0)
    epochs: int = hp(30, "most epochs", at_least=0)
    batch_size: int = hp(64, "images in a step", at_least=1)
    maximum: bool = hp(True, "g by the highest region (on) or the mean one (off)")
    w2: float = hp(1e-2, "weight of the global attributes' error", at_least=0)
    w3: float = hp(1.0, "weight of the local cross-entropy", at_least=0)
    w4: float = hp(0.1, "weight of the local attributes' error", at_least=0)
    w5: float = hp(0.04, "weight of the prototypes' norm", at_least=0)
    w6: float = hp(5e-5, "weight of V's norm", at_least=0)
    w7: float = hp(1e-9, "weight of the compactness of maps", at_least=0)


class APN(AttributeModel):
    """P and V (K,D)."""

    def __init__(self, space: ClassSpace, D: int, recipe: Recipe, groups: Sequence[Tensor] | None = None) -> None:
        super().__init__(space)
        self.recipe, self.groups, K = recipe, groups, space.z.shape[1]
        self.P = nn.Parameter(2e-4 * torch.rand(K, D))
        self.V = nn.Parameter(2e-4 * torch.rand(K, D))
        self.length = nn.Buffer(torch.tensor(1.0))  # of a region, on average over the training images

    def global_attributes(self, x: Tensor) -> Tensor:
        """g (B,K) of unit regions x (B,R,D)."""
        x = self.length * x
        return (x @ self.V.T).amax(dim=1) if self.recipe.maximum else x.mean(dim=1) @ self.V.T

    def attend(self, x: Tensor) -> AttentionOutput:
        """θ: softmax of each attribute's map; w is 1; e: l."""
        maps = self.length * x @ self.P.T  # (B,R,K)
        l = maps.amax(dim=1)  # noqa: E741
        return AttentionOutput(maps.softmax(dim=1), torch.ones_like(l), l)

    def evidence(self, x: Tensor, a: AttentionOutput | None) -> Tensor:
        """g (B,K)."""
        return self.global_attributes(x)

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) for unit regions x (B,R,D), without the local maps."""
        return self.global_attributes(x) @ self.z.T

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """All seven terms, of unit regions x (B,R,D)."""
        r, z, own = self.recipe, self.z[self.seen], self.place[y]
        g, maps = self.global_attributes(x), self.length * x @ self.P.T  # (B,K), (B,R,K)
        l = maps.amax(dim=1)  # noqa: E741
        parts = {
            "ce": F.cross_entropy((g @ z.T).softmax(dim=1), own),
            "attributes": r.w2 * F.mse_loss(g, self.z[y]),
            "local_ce": r.w3 * F.cross_entropy((l @ z.T).softmax(dim=1), own),
            "local_attributes": r.w4 * F.mse_loss(l, self.z[y]),
            "norm": r.w5 * self._norm(self.P) + r.w6 * self._norm(self.V),
            "compactness": r.w7 * compactness(maps),
        }
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def _norm(self, P: Tensor) -> Tensor:
        """|P| of P (K,D)."""
        if self.groups is None:
            return P.norm()
        squares = torch.stack([P[group].square().sum() for group in self.groups])
        return (squares + P.shape[1] * 1e-8).sqrt().sum()


def compactness(maps: Tensor) -> Tensor:
    """Σ over images, attributes and regions of σ(M) times the squared grid distance from the region of the highest M;
    maps (B,R,K) of a square grid.
    """
    R = maps.shape[1]
    side = round(R**0.5)
    rows, columns = torch.arange(R, device=maps.device) // side, torch.arange(R, device=maps.device) % side
    top = maps.argmax(dim=1, keepdim=True)  # (B,1,K)
    squared = (rows[None, :, None] - rows[top]) ** 2 + (columns[None, :, None] - columns[top]) ** 2
    return (maps.sigmoid() * squared).sum()


@method(
    "apn",
    recipes={
        "*": Recipe(),
        "AWA2": Recipe(maximum=False, w2=1e-4, w4=1e-2, w5=5e-7, w6=5e-4, w7=0.0),
        "SUN": Recipe(lr=1e-3, maximum=False, w2=1e-4, w4=0.05, w5=5e-3, w6=1e-3, w7=2e-7),
    },
    deviations="the head on stored maps, the backbone stays as it is (published: trained too); no groups of attributes "
    "in the prototypes' norm; γ on scores and epochs from validation classes (published: on test)",
)
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    model = APN(space, shape[1], recipe)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, betas=(0.5, 0.999))
    phase = Phase(
        name="prototypes", loss=model.loss, optimizer=optimizer, batches=Batches(recipe.batch_size), epochs=epochs,
        after_epoch=lambda: optimizer.state.clear(),
    )  # fmt: skip
    return Method(model=model, phases=[phase], begin=lambda images: model.length.fill_(images.region_norm()))
