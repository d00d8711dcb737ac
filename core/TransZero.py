"""TransZero: a transformer encoder over regions that knows where they lie, and attributes that query what it returns.

S. Chen, Z. Hong, Y. Liu, G.-S. Xie, B. Sun, H. Li, Q. Peng, K. Lu, X. You, "TransZero: Attribute-guided Transformer for
Zero-Shot Learning", AAAI 2022. Written from knowledge of its equations, without its text or its code at hand. The
relative-geometry attention is that of H. Hu, J. Gu, Z. Zhang, J. Dai, Y. Wei, "Relation Networks for Object Detection",
CVPR 2018.

How to read it. The regions are the cells of a square grid, with centres (cx,cy) and sizes (w,h); u_r = W_in x_r + b_in:
    relative geometry   g_rq = (log |Δcx|/w, log |Δcy|/h, log w/w', log h/h')   of regions r and q, |Δ|/w at least 0.001
    geometry            G_rq = ReLU(w_g·sinusoids(g_rq) + b_g)
    encoder             A_rq = softmax over q of Q_r·K_q / sqrt(width) + log G_rq
                        u'_r = LayerNorm(u_r + Σ_q A_rq V_q)                      Q, K, V: linear in u
                        t_r  = LayerNorm(u'_r + FFN(u'_r))
    decoder             θ_ri = softmax over r of (W_q v_i)·(W_k t_r) / sqrt(width)
                        F_i  = W_b ReLU(W_a (Σ_r θ_ri W_v t_r) + b_a) + b_b
    attribute score     e_i  = v_i^T W F_i
    class score         s_c  = Σ_i e_i z_ci                                       z: L2-normalised class attributes
    loss                cross-entropy(s) + λ_cal·(-log mean_b Σ_{c unseen} softmax(s + m)[b,c]) + λ_reg·||e - z_y||²
                        m_c = +1 for unseen, -1 for seen classes
The decoder's layers are linear on both sides of one ReLU, so the first is applied to the R regions in place of the K
attributes (the θ sum to 1) and the last to the attribute vectors: neither Σ_r θ W_v t_r nor F, both (B,K,width), is
formed.

Defaults, as we know the paper's: one layer each, λ_cal 0.3, λ_reg 0.005; trained with Adam 1e-4.
Inferred, where we do not know better:
    - one head; the encoder layer is the usual one (feed-forward part, both LayerNorms after the sum)
    - the geometry enters as log G, Hu et al.'s way; ``subtract_geometry`` takes G off the products instead, the other
      reading of the paper's "reducing the entangled relative geometry relationships among region features"
    - b_g starts at 1, so that attention starts with little preference and few pairs behind a closed ReLU
    - the decoder has neither the residual of its queries nor LayerNorm: F depends on the image alone
    - the cross-entropy runs over all classes without m, as DAZLE's; ``seen_only`` runs it over the seen ones
    - the calibration takes the mean over the batch inside the logarithm, as DAZLE's, and has the margin m
    - the regression target is z, and ||e - z||² is summed over attributes and averaged over images
    - dropout acts on what the encoder's two parts add and on the decoder's hidden layer, there on the same channels for
      all attributes of an image (a mask of its own for each of K attributes is half the time of a step)
    - biases where the equations write a linear map; W ~ Xavier normal, all other layers start as torch starts them

B images · R regions · D channels · K attributes · C classes · V word-vector size
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.DAZLE import Attended, ClassSpace
from core.files.errors import UserError
from core.MSDN import classification_losses, margins

_FREQUENCIES = 8  # of the sinusoids of each of the four numbers
_WAVELENGTH = 1000.0  # ratio of the longest to the shortest (Hu et al.)
_SCALE = 100.0  # of the numbers before they enter the sinusoids (Hu et al.)
_NEAREST = 1e-3  # smallest |Δ|/w: the logarithm of 0 has no place
_CLOSED = 1e-6  # smallest G under the logarithm


def relative_geometry(side: int) -> Tensor:
    """(R,R,64) sinusoids of the relative geometry of the cells of a side x side grid, row by row; in default dtype."""
    cells = torch.arange(side, dtype=torch.float64)
    cy, cx = (t.reshape(-1) for t in torch.meshgrid(cells, cells, indexing="ij"))  # (R,), in cell widths
    dx, dy = ((c[:, None] - c).abs().clamp_min(_NEAREST).log() for c in (cx, cy))  # (R,R)
    same = torch.zeros_like(dx)  # log w/w' and log h/h': all cells are of one size
    numbers = torch.stack([dx, dy, same, same], dim=2)  # (R,R,4)
    frequencies = _WAVELENGTH ** (-torch.arange(_FREQUENCIES, dtype=torch.float64) / _FREQUENCIES)  # (8,)
    angles = (_SCALE * numbers.unsqueeze(3) * frequencies).flatten(2)  # (R,R,32)
    return torch.cat([angles.sin(), angles.cos()], dim=2).to(torch.get_default_dtype())


class RegionEncoder(nn.Module):
    """One transformer layer over the regions of a square grid with a relative-geometry bias."""

    geometry: Tensor

    def __init__(self, side: int, width: int, feed_forward: int, dropout: float, subtract_geometry: bool) -> None:
        super().__init__()
        self.subtract_geometry = subtract_geometry
        self.register_buffer("geometry", relative_geometry(side), persistent=False)  # (R,R,64)
        self.w_g = nn.Linear(8 * _FREQUENCIES, 1)
        nn.init.ones_(self.w_g.bias)
        self.qkv = nn.Linear(width, 3 * width)
        self.norm1 = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, feed_forward), nn.ReLU(), nn.Linear(feed_forward, width))
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def bias(self) -> Tensor:
        """(R,R): what the geometry adds to the products of region r (row) with region q."""
        G = F.relu(self.w_g(self.geometry)).squeeze(2)  # (R,R)
        return -G if self.subtract_geometry else G.clamp_min(_CLOSED).log()

    def weights(self, Q: Tensor, K: Tensor) -> Tensor:
        """A (B,R,R) of queries and keys (B,R,width); rows sum to 1."""
        return (Q @ K.transpose(1, 2) / math.sqrt(Q.shape[2]) + self.bias()).softmax(dim=2)

    def forward(self, u: Tensor) -> Tensor:
        """(B,R,width) to (B,R,width)."""
        Q, K, V = self.qkv(u).chunk(3, dim=2)
        u = self.norm1(u + self.dropout(self.weights(Q, K) @ V))
        return self.norm2(u + self.dropout(self.ffn(u)))


class AttributeDecoder(nn.Module):
    """Attribute vectors query the regions; one score per attribute, without forming the (B,K,width) features."""

    def __init__(self, V: int, width: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.q = nn.Linear(V, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.a = nn.Linear(width, feed_forward)
        self.b = nn.Linear(feed_forward, width)
        self.W = nn.Parameter(nn.init.xavier_normal_(torch.empty(V, width)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """θ (B,R,K) and e (B,K) of attribute vectors (K,V) and encoded regions t (B,R,width)."""
        keys = self.k(t)  # (B,R,width)
        theta = (keys @ self.q(vectors).T / math.sqrt(keys.shape[2])).softmax(dim=1)  # (B,R,K)
        values = self.a(self.v(t))  # (B,R,feed_forward)
        # a dropout mask that all attributes share passes through ReLU and the sum over regions
        values = values * self.dropout(torch.ones_like(values[:, :1]))
        hidden = F.relu(theta.transpose(1, 2) @ values)  # (B,K,feed_forward)
        scorer = vectors @ self.W  # (K,width)
        e = (hidden * (scorer @ self.b.weight)).sum(dim=2) + scorer @ self.b.bias  # (B,K)
        return theta, e


class TransZero(nn.Module):
    """Encoder, decoder and class scores, with cross-entropy, self-calibration and attribute regression."""

    gamma = 2.0  # its own calibration: m_c = +1 for unseen, -1 for seen classes
    z: Tensor
    unseen: Tensor
    margin: Tensor

    def __init__(
        self,
        space: ClassSpace,
        D: int,
        R: int,
        *,
        width: int = 300,
        feed_forward: int = 512,
        dropout: float = 0.4,
        lambda_cal: float = 0.3,
        lambda_reg: float = 0.005,
        seen_only: bool = False,
        subtract_geometry: bool = False,
    ) -> None:
        """Args:
            space: the classes.
            D: channels of a region.
            R: regions of an image, a square number (49, 196, ...), row by row.
            width: of the transformer.
            feed_forward: hidden width of its feed-forward parts.
            dropout: share of values dropped while training.
            lambda_cal: weight of the self-calibration.
            lambda_reg: weight of the attribute regression.
            seen_only: cross-entropy over seen classes in place of all.
            subtract_geometry: attention takes G off in place of adding log G.

        Raises:
            UserError: R is not a square number.
        """
        super().__init__()
        side = math.isqrt(R)
        if side * side != R:
            raise UserError(f"{R} regions do not form a square; TransZero needs a grid such as 7x7 or 14x14")
        self.lambda_cal = lambda_cal
        self.lambda_reg = lambda_reg
        self.seen_only = seen_only
        self.v = nn.Parameter(F.normalize(space.w2v.float(), dim=1))  # (K,V)
        self.embed = nn.Linear(D, width)
        self.encoder = RegionEncoder(side, width, feed_forward, dropout, subtract_geometry)
        self.decoder = AttributeDecoder(space.w2v.shape[1], width, feed_forward, dropout)
        self.register_buffer("z", space.z)
        self.register_buffer("unseen", space.unseen)
        self.register_buffer("margin", margins(len(space.att), space.unseen), persistent=False)

    def attention(self, x: Tensor) -> Attended:
        """Decoder attention and attribute scores for x (B,R,D) of unit regions; w is 1: attributes count alike."""
        theta, e = self.decoder(self.v, self.encoder(self.embed(x)))
        return Attended(theta, torch.ones_like(e), e)

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) without the margin m: calibration is applied by the evaluation."""
        e = self.attention(x).e
        assert e is not None
        return e @ self.z.T

    def loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Cross-entropy, self-calibration and attribute regression; x (B,R,D), y (B,) class numbers."""
        e = self.attention(x).e  # (B,K)
        assert e is not None
        ce, cal = classification_losses(e @ self.z.T, y, self.unseen, self.margin, self.seen_only)
        reg = (e - self.z[y]).square().sum(dim=1).mean()
        return {"loss": ce + self.lambda_cal * cal + self.lambda_reg * reg, "ce": ce, "cal": cal, "reg": reg}
