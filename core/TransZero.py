"""TransZero: an encoder of regions that knows where they lie, a decoder of attributes that query it: ``transzero``.

S. Chen, Z. Hong, Y. Liu, G.-S. Xie, B. Sun, H. Li, Q. Peng, K. Lu, X. You, "TransZero: Attribute-guided Transformer for
Zero-Shot Learning", AAAI 2022. The equations and numbers are those of the authors' released code, whose losses and
gradients tests/golden/ holds. The geometry is that of H. Hu, J. Gu, Z. Zhang, J. Dai, Y. Wei, "Relation Networks for
Object Detection", CVPR 2018.

How to read it. d is the transformer's width, v_i the word vector of attribute i, x_r the feature of region r:
    region, attribute   h_r = W_e x_r + b_e              a_i = W_a v_i + b_a
    geometry            Δ = log max(|difference of centres| / (1 + 1/side), 0.001) on each axis of a side x side grid in
                        [0,1]; G_rq = ReLU(w_g·sinusoids(Δ_rq) + b_g)
    encoder             A_rq = softmax over q of Q_r·K_q / √d - G_rq    o_r = W_o Σ_q A_rq V_q    Q, K, V: linear in h
                        u = LN(h + o)     u' = LN(h + u)     m = LN(u' + FFN(u'))
    decoder             t = LN(a + self-attention over attributes(a))    (SUN: t = a)
                        t' = LN(t + attention of t over the regions m)   F = LN(t' + FFN(t'))
    attribute score     ψ_i = v_i^T W F_i
    class score         s_c = Σ_i ψ_i z_ci                               z: L2-normalised class attributes
    loss                cross-entropy(s) + λ_cal·(-log mean_b Σ_{c unseen} softmax(s + m)[b,c])
                        + λ_reg·mean over images and attributes of (ψ - z_y)²
                        m_c = +1 for unseen, -1 for seen classes
All attention has one head. While training, dropout acts on everything that is added before an LN (h + o, h + u, ...),
inside both FFN behind the ReLU, on the decoder's attention weights, and with 0.1 on the encoder's.

The attributes are K and the regions R, and R is the smaller: what is linear on the attributes' side of the attention
over regions (its query and output maps) is applied to the regions instead.

B images · R regions · D channels · K attributes · C classes · V word-vector size · d width
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attention import AttributeClassifier
from core.files.errors import UserError
from core.method import AttentionOutput, Batches, ClassSpace, Losses, Method, Phase, hp, method

_FREQUENCIES = 8  # of the sinusoids of each of the four numbers of a pair of regions
_WAVELENGTH = 1000.0  # ratio of the longest to the shortest (Hu et al.)
_SCALE = 100.0  # of the numbers before they enter the sinusoids (Hu et al.)
_NEAREST = 1e-3  # smallest |Δ|: the logarithm of 0 has no place
_ENCODER_ATTENTION_DROPOUT = 0.1


def relative_geometry(side: int) -> Tensor:
    """(R,R,64) sinusoids of the relative geometry of the cells of a side x side grid, row by row; in default dtype."""
    cells = torch.arange(side, dtype=torch.float64) / side
    row, column = (t.reshape(-1) for t in torch.meshgrid(cells, cells, indexing="ij"))  # (R,)
    far = 1 + 1 / side  # the authors' size of a cell: its width in [0,1], plus 1
    down, across = (((c[:, None] - c).abs() / far).clamp_min(_NEAREST).log() for c in (row, column))  # (R,R)
    same = torch.zeros_like(down)  # all cells are of one size: log of the ratios of widths and of heights
    numbers = torch.stack([down, across, same, same], dim=2)  # (R,R,4)
    frequencies = _WAVELENGTH ** (-torch.arange(_FREQUENCIES, dtype=torch.float64) / _FREQUENCIES)  # (8,)
    angles = (_SCALE * numbers.unsqueeze(3) * frequencies).flatten(2)  # (R,R,32)
    return torch.cat([angles.sin(), angles.cos()], dim=2).to(torch.get_default_dtype())


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """TransZero's settings, those of its released training scripts."""

    lr: float = hp(1e-4, "learning rate", above=0)
    weight_decay: float = hp(1e-4, "weight decay", at_least=0)
    momentum: float | None = hp(None, "momentum of SGD; none: Adam", at_least=0, below=1)
    epochs: int = hp(200, "most epochs", at_least=0)
    batch_size: int = hp(50, "images in a step", at_least=1)
    balanced: bool = hp(False, "batches of one image of each of as many classes (on), or of any images (off)")
    normalize_vectors: bool = hp(False, "keep word vectors at unit length while they are learned")
    width: int = hp(300, "width of the transformer", at_least=1)
    feed_forward: int = hp(512, "hidden width of its feed-forward parts", at_least=1)
    dropout: float = hp(0.4, "share of values dropped while training", at_least=0, below=1)
    attribute_attention: bool = hp(True, "self-attention over attributes before they query the regions")
    lambda_cal: float = hp(0.3, "weight of the self-calibration loss", at_least=0)
    lambda_reg: float = hp(0.005, "weight of the attribute regression, a mean over attributes", at_least=0)


class FeedForward(nn.Module):
    """LN(t + FFN(t)): what both layers end with."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.fc1 = nn.Linear(recipe.width, recipe.feed_forward)
        self.fc2 = nn.Linear(recipe.feed_forward, recipe.width)
        self.norm = nn.LayerNorm(recipe.width)
        self.drop = nn.Dropout(recipe.dropout)

    def forward(self, t: Tensor) -> Tensor:
        """(...,d) to (...,d)."""
        return self.norm(t + self.drop(self.fc2(self.drop(F.relu(self.fc1(t))))))


class RegionEncoder(nn.Module):
    """One transformer layer over the regions of a square grid, which their relative geometry tells apart."""

    def __init__(self, side: int, recipe: Recipe) -> None:
        super().__init__()
        d = recipe.width
        self.geometry = nn.Buffer(relative_geometry(side), persistent=False)  # (R,R,64)
        self.w_g = nn.Linear(8 * _FREQUENCIES, 1)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        for layer in (self.q, self.k, self.v, self.o):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.norm1 = nn.LayerNorm(d)
        self.norm2 = nn.LayerNorm(d)
        self.ffn = FeedForward(recipe)
        self.drop = nn.Dropout(recipe.dropout)
        self.drop_attention = nn.Dropout(_ENCODER_ATTENTION_DROPOUT)

    def forward(self, h: Tensor) -> Tensor:
        """m (B,R,d) of h (B,R,d)."""
        G = F.relu(self.w_g(self.geometry)).squeeze(2)  # (R,R)
        A = (self.q(h) @ self.k(h).transpose(1, 2) / math.sqrt(h.shape[2]) - G).softmax(dim=2)  # (B,R,R)
        u = self.norm1(h + self.drop(self.o(self.drop_attention(A) @ self.v(h))))
        u = self.norm2(h + self.drop(u))
        return self.ffn(u)


class AttributeDecoder(nn.Module):
    """One transformer layer in which attributes query each other, then the regions."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        d = recipe.width
        self.among = nn.MultiheadAttention(d, 1) if recipe.attribute_attention else None
        self.norm1 = nn.LayerNorm(d) if recipe.attribute_attention else None
        self.over = nn.MultiheadAttention(d, 1)  # holds the maps; the product is in another order, see above
        self.norm2 = nn.LayerNorm(d)
        self.ffn = FeedForward(recipe)
        self.drop = nn.Dropout(recipe.dropout)

    def queries(self, a: Tensor, B: int) -> Tensor:
        """t of a (K,d): (K,d) in evaluation, (B,K,d) while training."""
        if self.among is None or self.norm1 is None:
            return a
        if not self.training:  # the same for every image
            return self.norm1(a + self.among(a, a, a, need_weights=False)[0])
        # The products do not depend on the image and are made once a batch. What is dropped does: the authors expand
        # the attributes to the batch first, so that each image has masks of its own, on the weights and on the sum.
        # (CUB's sizes on a CPU: a step takes 0.6 of the literal form's time; one mask of weights a batch, 0.5.)
        q, k, v = F.linear(a, self.among.in_proj_weight, self.among.in_proj_bias).chunk(3, dim=1)  # (K,d)
        weights = (q @ k.T / math.sqrt(a.shape[1])).softmax(dim=1)  # (K,K)
        out = self.among.out_proj  # its bias is added whole: weights of which some are dropped do not sum to 1
        mixed = self.drop(weights.expand(B, -1, -1)) @ F.linear(v, out.weight) + out.bias
        return self.norm1(a + self.drop(mixed))

    def forward(self, a: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """θ (B,K,R) and F (B,K,d) of attributes a (K,d) and regions m (B,R,d)."""
        t = self.queries(a, m.shape[0])
        W_q, W_k, W_v = self.over.in_proj_weight.chunk(3)
        b_q, b_k, b_v = self.over.in_proj_bias.chunk(3)
        keys = F.linear(m, W_k, b_k)  # (B,R,d)
        products = t @ (keys @ W_q).transpose(1, 2) + (keys @ b_q).unsqueeze(1)  # (B,K,R)
        theta = (products / math.sqrt(a.shape[1])).softmax(dim=2)
        values = F.linear(F.linear(m, W_v, b_v), self.over.out_proj.weight)  # (B,R,d)
        t = self.norm2(t + self.drop(self.drop(theta) @ values + self.over.out_proj.bias))
        return theta, self.ffn(t)


class TransZero(AttributeClassifier):
    def __init__(self, space: ClassSpace, R: int, D: int, recipe: Recipe) -> None:
        super().__init__(space)
        side = math.isqrt(R)
        if side * side != R:
            raise UserError(f"{R} regions do not form a square; TransZero needs a grid such as 7x7 or 14x14")
        self.recipe = recipe
        V = space.w2v.shape[1]
        self.v = nn.Parameter(F.normalize(space.w2v.float(), dim=1))  # (K,V)
        self.embed_regions = nn.Linear(D, recipe.width)
        self.embed_attributes = nn.Linear(V, recipe.width)
        self.encoder = RegionEncoder(side, recipe)
        self.decoder = AttributeDecoder(recipe)
        self.W = nn.Parameter(torch.randn(V, recipe.width))

    def attend(self, x: Tensor) -> AttentionOutput:
        """θ of the decoder and ψ of x (B,R,D); w is 1: attributes count alike."""
        v = F.normalize(self.v, dim=1) if self.recipe.normalize_vectors else self.v
        m = self.encoder(self.embed_regions(x))  # (B,R,d)
        theta, features = self.decoder(self.embed_attributes(v), m)  # (B,K,R), (B,K,d)
        psi = (features * (v @ self.W)).sum(dim=2)  # (B,K)
        return AttentionOutput(theta.transpose(1, 2), torch.ones_like(psi), psi)

    def evidence(self, x: Tensor, a: AttentionOutput | None) -> Tensor:
        """ψ (B,K)."""
        assert a is not None and a.e is not None
        return a.e

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy, self-calibration and attribute regression; x (B,R,D), y (B,) class numbers."""
        psi = self.evidence(x, self.attend(x))  # (B,K)
        ce, cal = self.classification_losses(psi @ self.z.T, y)
        reg = F.mse_loss(psi, self.z[y])
        loss = ce + self.recipe.lambda_cal * cal + self.recipe.lambda_reg * reg
        return {"loss": loss, "ce": ce, "cal": cal, "reg": reg}


# The numbers of the released scripts of CUB, AWA2 and SUN. The synthetic set's are ours: its classes are few and the
# run is meant to take minutes.
RECIPES = {
    "*": Recipe(),
    "AWA2": Recipe(momentum=0.0, balanced=True, normalize_vectors=True, dropout=0.5, lambda_cal=2.0, lambda_reg=0.0005),
    "SUN": Recipe(
        momentum=0.9, epochs=400, balanced=True, width=128, feed_forward=2048, dropout=0.3, attribute_attention=False,
        lambda_cal=0.25, lambda_reg=0.001,
    ),
    "DEMO": Recipe(lr=5e-4, epochs=30, balanced=True),
}  # fmt: skip
_DEVIATIONS = (
    "chosen on validation and calibrated by γ where the authors use m alone; one model for T1 and H; batches of CUB "
    "take every image once an epoch where the authors draw each batch afresh; regions are those of the feature file "
    "where the authors have 14x14"
)


@method("transzero", recipes=RECIPES, deviations=_DEVIATIONS)
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    model = TransZero(space, *shape, recipe)
    parameters, lr, decay = model.parameters(), recipe.lr, recipe.weight_decay
    optimizer: torch.optim.Optimizer
    if recipe.momentum is None:
        optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(parameters, lr=lr, weight_decay=decay, momentum=recipe.momentum)
    batches = Batches(recipe.batch_size, balanced=recipe.balanced)
    phase = Phase(name="transformer", loss=model.loss, optimizer=optimizer, batches=batches, epochs=epochs)
    return Method(model=model, phases=[phase])
