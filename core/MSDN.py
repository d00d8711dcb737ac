"""MSDN: two attentions that teach each other, attributes over regions and regions over attributes. Method ``msdn``.

S. Chen, Z. Hong, G.-S. Xie, W. Yang, Q. Peng, K. Wang, J. Zhao, X. You, "MSDN: Mutually Semantic Distillation Network
for Zero-Shot Learning", CVPR 2022. The equations and numbers are those of the authors' released code, whose losses and
gradients tests/golden/ holds.

How to read it. For attribute i with word vector v_i and region feature x_r:
    attribute -> visual    θ_ri = softmax over r of v_i^T W1 x_r      ψ1_i = Σ_r θ_ri (v_i^T W2 x_r)
    visual -> attribute    β_ri = softmax over i of v_i^T W3 x_r      ψ2_i = Σ_r β_ri (v_i^T W4 x_r)
    class scores           s1 = ψ1·z, s2 = ψ2·z                       z: L2-normalised class attributes
    prediction             fusion s1 + (1 - fusion) s2
    loss                   L(s1) + L(s2) + λ_distill D(s1, s2)
                           L(s) = cross-entropy(s) + λ_cal·(-log mean_b Σ_{c unseen} softmax(s + m)[b,c])
                           D = mean_b [ JSD(softmax(s1 + m), softmax(s2 + m)) + Σ_c |d_c|³ / ||d|| ],   d = s1 - s2
                           m_c = +1 for unseen, -1 for seen classes
The four (B,R,K) maps of one product x [V W1; V W2; V W3; V W4]^T are all that is needed. What decides where to look
starts at 0 (W1, W3), W2 at N(0,1), W4 at 0: the second branch starts silent.

Trained by RMSprop, as DAZLE is. The regions of the published numbers are 14x14, of photographs at 448 px.

B images · R regions · D channels · K attributes · C classes · V word-vector size
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attention import AttributeClassifier, region_products
from core.method import AttentionOutput, Batches, ClassSpace, Losses, Method, Phase, hp, method


@dataclass(frozen=True, kw_only=True)
class MutualAttentionOutput(AttentionOutput):
    """What both attentions found; ``theta`` and ``e`` are the first branch's, ``w`` is 1: attributes count alike."""

    beta: Tensor  # (B,R,K) attribute weights of each region, sum to 1 over K
    e2: Tensor  # (B,K) attribute scores of the second branch


def distillation(s1: Tensor, s2: Tensor, margin: Tensor) -> Tensor:
    """D(s1, s2) of two score matrices (B,C) without their margin (C,); a scalar."""
    log1, log2 = (s1 + margin).log_softmax(dim=1), (s2 + margin).log_softmax(dim=1)  # (B,C)
    mean = torch.logaddexp(log1, log2) - math.log(2)
    jsd = 0.5 * (log1.exp() * (log1 - mean) + log2.exp() * (log2 - mean)).sum(dim=1)  # (B,)
    d = s1 - s2
    cubes = d.abs().pow(3).sum(dim=1) / d.norm(dim=1).clamp_min(1e-12)  # (B,)
    return (jsd + cubes).mean()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """MSDN's settings, those of its released training scripts."""

    lr: float = hp(1e-4, "learning rate of RMSprop", above=0)
    weight_decay: float = hp(1e-4, "weight decay", at_least=0)
    momentum: float = hp(0.9, "momentum of RMSprop", at_least=0, below=1)
    epochs: int = hp(30, "most epochs", at_least=0)
    batch_size: int = hp(50, "images in a step", at_least=1)
    balanced: bool = hp(False, "batches of one image of each of as many classes (on), or of any images (off)")
    normalize_vectors: bool = hp(False, "keep word vectors at unit length while they are learned")
    lambda_cal: float = hp(0.1, "weight of the self-calibration loss of each branch", at_least=0)
    lambda_distill: float = hp(0.001, "weight of the distillation between the branches", at_least=0)
    fusion: float = hp(0.9, "share of the first branch in the prediction", at_least=0, at_most=1)


class MSDN(AttributeClassifier):
    def __init__(self, space: ClassSpace, D: int, recipe: Recipe) -> None:
        super().__init__(space)
        self.recipe, V = recipe, space.w2v.shape[1]
        self.v = nn.Parameter(F.normalize(space.w2v.float(), dim=1))  # (K,V)
        self.W1 = nn.Parameter(torch.zeros(V, D))
        self.W2 = nn.Parameter(torch.randn(V, D))
        self.W3 = nn.Parameter(torch.zeros(V, D))
        self.W4 = nn.Parameter(torch.zeros(V, D))

    def attend(self, x: Tensor) -> MutualAttentionOutput:
        """Both branches up to the attribute scores, from four maps of one product; unit regions x (B,R,D)."""
        B, R, _ = x.shape
        v = F.normalize(self.v, dim=1) if self.recipe.normalize_vectors else self.v
        queries = torch.cat([v @ W for W in (self.W1, self.W2, self.W3, self.W4)])  # (4K,D)
        maps = region_products(x, queries).view(B, R, 4, -1)  # (B,R,4,K)
        theta = maps[:, :, 0].softmax(dim=1)  # (B,R,K)
        beta = maps[:, :, 2].softmax(dim=2)  # (B,R,K)
        e = (theta * maps[:, :, 1]).sum(dim=1)  # (B,K)
        e2 = (beta * maps[:, :, 3]).sum(dim=1)  # (B,K)
        return MutualAttentionOutput(theta, torch.ones_like(e), e, beta=beta, e2=e2)

    def branch_scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """s1 (B,C) and s2 (B,C) of x (B,R,D), without the margin m."""
        a = self.attend(x)
        assert a.e is not None
        return a.e @ self.z.T, a.e2 @ self.z.T

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C), both branches fused, without the margin m: calibration is applied by the evaluation."""
        s1, s2 = self.branch_scores(x)
        return self.recipe.fusion * s1 + (1 - self.recipe.fusion) * s2

    def evidence(self, x: Tensor, a: AttentionOutput | None) -> Tensor:
        """Both branches' attribute scores, fused: (B,K)."""
        assert isinstance(a, MutualAttentionOutput) and a.e is not None
        return self.recipe.fusion * a.e + (1 - self.recipe.fusion) * a.e2

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Both branches' classification losses and their distillation; x (B,R,D), y (B,) class numbers."""
        s1, s2 = self.branch_scores(x)  # (B,C)
        ce1, cal1 = self.classification_losses(s1, y)
        ce2, cal2 = self.classification_losses(s2, y)
        ce, cal, distill = ce1 + ce2, cal1 + cal2, distillation(s1, s2, self.margin)
        loss = ce + self.recipe.lambda_cal * cal + self.recipe.lambda_distill * distill
        return {"loss": loss, "ce": ce, "cal": cal, "distill": distill}


# the numbers of the released scripts of CUB, AWA2 and SUN; the synthetic set's were chosen on its validation classes
RECIPES = {
    "*": Recipe(),
    "AWA2": Recipe(
        momentum=0.0, epochs=50, balanced=True, normalize_vectors=True, lambda_cal=0.12, lambda_distill=1e-7, fusion=1.0
    ),
    "SUN": Recipe(epochs=70, balanced=True, lambda_cal=1e-4, lambda_distill=0.01, fusion=0.7),
    "DEMO": Recipe(lr=5e-4, balanced=True),
}
_DEVIATIONS = (
    "chosen on validation and calibrated by γ where the authors use m alone; batches of CUB take every image once an "
    "epoch where the authors draw each batch afresh; regions are those of the feature file where the authors have 14x14"
)


@method("msdn", recipes=RECIPES, deviations=_DEVIATIONS)
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    model = MSDN(space, shape[1], recipe)
    optimizer = torch.optim.RMSprop(
        model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
    )
    batches = Batches(recipe.batch_size, balanced=recipe.balanced)
    phase = Phase(name="mutual", loss=model.loss, optimizer=optimizer, batches=batches, epochs=epochs)
    return Method(model=model, phases=[phase])
