"""Dense attribute attention, shared by every method here, and DAZLE's classifier on top of it.

D. Huynh, E. Elhamifar, "Fine-Grained Generalized Zero-Shot Learning via Dense Attribute-Based Attention", CVPR 2020.

How to read it. For attribute i with word vector v_i and region feature x_r:
    region score     S = v_i^T W1 x_r
    region weight    θ = softmax over r of v_i^T W2 x_r
    attribute score  e_i = Σ_r θ S                     how much of attribute i is seen where it is looked for
    attribute weight w_i = σ(Σ_r θ v_i^T W3 x_r)       how much this image's attribute i counts
    class score      s_c = Σ_i w_i e_i z_ci            z: L2-normalised class attributes
    loss             cross-entropy(s) + λ_cal·(-log mean_b Σ_{c unseen} softmax(s + m)[b,c]),  m: +1 unseen, -1 seen
The original forms the attribute features h_i = Σ_r θ x_r, a (B,K,D) tensor. Because v^T W h_i = Σ_r θ (v^T W x_r), the
three (B,R,K) maps of one product x [V W1; V W2; V W3]^T are all that is needed.

B images · R regions · D channels · K attributes · C classes · V word-vector size
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.losses import classification_losses, margins
from core.method import AttentionOutput, Batches, ClassSpace, Losses, Method, Phase, ZeroShotModel, hp, method, seeded
from core.preparation import Describer, prepared_attributes

_NARROW = 600  # columns, measured: 255 and 306 gain, 936 loses


class DenseAttention(nn.Module):
    """Dense attribute attention in the three-map form (the equations above)."""

    def __init__(
        self,
        w2v: Tensor,
        D: int,
        *,
        scores: bool = True,
        train_vectors: bool = True,
        normalize_vectors: bool = False,
        zero_attention: bool = True,
    ) -> None:
        """Args:
        w2v: (K,V) attribute word vectors; rows are L2-normalised here.
        scores: make W1 (region scores); VSMR's published visual branch has none.
        train_vectors: learn v along with the W.
        normalize_vectors: keep v at unit length while it is learned.
        zero_attention: start W2 and W3 at 0 (DAZLE: attend everywhere alike) or at N(0,1) (VSMR).
        """
        super().__init__()
        V = w2v.shape[1]
        self.v = nn.Parameter(F.normalize(w2v.float(), dim=1), requires_grad=train_vectors)  # (K,V)
        self.normalize_vectors = normalize_vectors

        def start() -> nn.Parameter:
            return nn.Parameter(torch.zeros(V, D) if zero_attention else torch.randn(V, D))

        self.W1 = nn.Parameter(torch.randn(V, D)) if scores else None
        self.W2 = start()
        self.W3 = start()

    def forward(self, x: Tensor) -> AttentionOutput:
        """x (B,R,D) of unit regions."""
        B, R, _ = x.shape
        v = F.normalize(self.v, dim=1) if self.normalize_vectors else self.v
        Ws = [self.W2, self.W3] if self.W1 is None else [self.W2, self.W3, self.W1]
        queries = torch.cat([v @ W for W in Ws])  # (3K,D)
        maps = region_products(x, queries).view(B, R, len(Ws), -1)  # (B,R,3,K)
        theta = maps[:, :, 0].softmax(dim=1)  # (B,R,K)
        pooled = (theta.unsqueeze(2) * maps[:, :, 1:]).sum(dim=1)  # (B,2,K)
        e = None if self.W1 is None else pooled[:, 1]
        return AttentionOutput(theta, torch.sigmoid(pooled[:, 0]), e)


def region_products(x: Tensor, queries: Tensor) -> Tensor:
    """x queriesᵀ: (B,R,N) contiguous, for regions x (B,R,D) and queries (N,D), the bulk of a training step.

    On a CPU a narrow product is asked for as a 1x1 convolution over channels-last regions: the same sums, in a library
    whose narrow products are up to 1.5 times faster, forward and backward (benchmarks/steps.py).
    """
    B, R, D = x.shape
    plain = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if x.device.type == "cpu" and plain and len(queries) < _NARROW and x.is_contiguous():
        maps = F.conv2d(x.view(B, R, 1, D).permute(0, 3, 1, 2), queries[:, :, None, None])  # (B,N,R,1)
        return maps.permute(0, 2, 3, 1).reshape(B, R, len(queries))
    return (x.reshape(B * R, D) @ queries.T).view(B, R, len(queries))


def region_saliency(w: Tensor, theta: Tensor) -> Tensor:
    """ρ[b,r] = Σ_i w[b,i] θ[b,r,i]: (B,R), how much all attributes together look at a region."""
    return torch.einsum("brk,bk->br", theta, w)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """DAZLE's settings, those of its released training scripts."""

    lr: float = hp(1e-4, "learning rate of RMSprop", above=0)
    weight_decay: float = hp(1e-4, "weight decay", at_least=0)
    momentum: float = hp(0.9, "momentum of RMSprop", at_least=0, below=1)
    epochs: int = hp(20, "most epochs", at_least=0)
    batch_size: int = hp(50, "images in a step", at_least=1)
    balanced: bool = hp(False, "batches of one image of each of as many classes (on), or of any images (off)")
    lambda_cal: float = hp(0.1, "weight of the self-calibration loss", at_least=0)
    normalize_vectors: bool = hp(False, "keep word vectors at unit length while they are learned")
    use_w: bool = hp(True, "weight attribute scores by w")
    prepared: bool = hp(False, "class attributes as vsmr takes them (core/preparation.py)", flag=False)


class DAZLE(ZeroShotModel):
    """DAZLE's classifier: class scores from attended attribute scores, cross-entropy and self-calibration."""

    gamma = 2.0  # its own calibration: m_c = +1 for unseen, -1 for seen classes
    z: Tensor
    unseen: Tensor
    margin: Tensor

    def __init__(self, space: ClassSpace, D: int, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.attention = DenseAttention(space.w2v, D, normalize_vectors=recipe.normalize_vectors)
        self.register_buffer("z", prepared_attributes(space.att, space.seen) if recipe.prepared else space.z)  # (C,K)
        self.register_buffer("unseen", space.unseen)
        self.register_buffer("margin", margins(len(space.att), space.unseen))  # (C,)

    def attend(self, x: Tensor) -> AttentionOutput:
        """θ, w and e of x (B,R,D)."""
        output: AttentionOutput = self.attention(x)
        return output

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) without the margin m: calibration is applied by the evaluation."""
        return self.evidence(x, self.attend(x)) @ self.z.T

    def describer(self, space: ClassSpace) -> Describer:
        return Describer.of(space.att, space.seen, root=self.recipe.prepared, centre=self.recipe.prepared)

    def evidence(self, x: Tensor, a: AttentionOutput | None) -> Tensor:
        """w∘e (B,K)."""
        assert a is not None and a.e is not None
        return a.w * a.e if self.recipe.use_w else a.e

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy of s over all classes + λ self-calibration of s + m; y (B,) class numbers."""
        ce, cal = classification_losses(self.class_scores(x), y, self.unseen, self.margin)
        return {"loss": ce + self.recipe.lambda_cal * cal, "ce": ce, "cal": cal}


# the numbers of the released scripts of AWA2, CUB and SUN; the synthetic set's were chosen on its validation classes
RECIPES = {
    "*": Recipe(),
    "AWA2": Recipe(momentum=0.0, balanced=True, normalize_vectors=True),
    "SUN": Recipe(epochs=100, balanced=True, use_w=False),
    "DEMO": Recipe(lr=5e-4, balanced=True),
}
_DEVIATIONS = (
    "chosen on validation and calibrated by γ where the authors use m alone; batches of CUB take every image once an "
    "epoch where the authors draw each batch afresh"
)


@method(
    "dazle-prepared",
    recipes={name: replace(recipe, prepared=True) for name, recipe in RECIPES.items()},
    given_preparation=True,
)
@method("dazle", recipes=RECIPES, deviations=_DEVIATIONS)
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    """One phase of RMSprop."""
    with seeded(seed):
        model = DAZLE(space, shape[1], recipe)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.RMSprop(
        parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
    )
    batches = Batches(recipe.batch_size, balanced=recipe.balanced)
    phase = Phase(name="attention", loss=model.loss, optimizer=optimizer, batches=batches, epochs=epochs)
    return Method(model=model, phases=[phase])
