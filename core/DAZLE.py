"""Dense attribute attention, shared by every method here, and DAZLE's classifier on top of it.

D. Huynh, E. Elhamifar, "Fine-Grained Generalized Zero-Shot Learning via Dense Attribute-Based Attention", CVPR 2020.

How to read it. For attribute i with word vector v_i and region feature x_r:
    region score     S = v_i^T W1 x_r
    region weight    θ = softmax over r of v_i^T W2 x_r
    attribute score  e_i = Σ_r θ S                     how much of attribute i is seen where it is looked for
    attribute weight w_i = σ(Σ_r θ v_i^T W3 x_r)       how much this image's attribute i counts
    class score      s_c = Σ_i w_i e_i z_ci            z: L2-normalised class attributes
The original forms the attribute features h_i = Σ_r θ x_r, a (B,K,D) tensor. Because v^T W h_i = Σ_r θ (v^T W x_r), the
three (B,R,K) maps of one product x [V W1; V W2; V W3]^T are all that is needed.

B images · R regions · D channels · K attributes · C classes · V word-vector size
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NARROW = 600  # columns, measured: 255 and 306 gain, 936 loses


@dataclass(frozen=True)
class ClassSpace:
    """The classes a model knows: all that may be known about unseen classes is their attributes."""

    att: Tensor  # (C,K) class attributes, not negative
    seen: Tensor  # (S,) class numbers with training images
    unseen: Tensor  # (U,) class numbers without
    w2v: Tensor  # (K,V) attribute word vectors

    @property
    def z(self) -> Tensor:
        """(C,K) class attributes with rows of unit length."""
        return F.normalize(self.att, dim=1)

    def to(self, device: torch.device | str) -> ClassSpace:
        """The same space on another device."""
        return ClassSpace(*(t.to(device) for t in (self.att, self.seen, self.unseen, self.w2v)))


@dataclass(frozen=True)
class Attended:
    """What the attention found in a batch."""

    theta: Tensor  # (B,R,K) region weights, sum to 1 over R
    w: Tensor  # (B,K) attribute weights in (0,1)
    e: Tensor | None  # (B,K) attribute scores


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

    def forward(self, x: Tensor) -> Attended:
        """x (B,R,D) of unit regions."""
        B, R, _ = x.shape
        v = F.normalize(self.v, dim=1) if self.normalize_vectors else self.v
        Ws = [self.W2, self.W3] if self.W1 is None else [self.W2, self.W3, self.W1]
        queries = torch.cat([v @ W for W in Ws])  # (3K,D)
        maps = region_products(x, queries).view(B, R, len(Ws), -1)  # (B,R,3,K)
        theta = maps[:, :, 0].softmax(dim=1)  # (B,R,K)
        pooled = (theta.unsqueeze(2) * maps[:, :, 1:]).sum(dim=1)  # (B,2,K)
        e = None if self.W1 is None else pooled[:, 1]
        return Attended(theta, torch.sigmoid(pooled[:, 0]), e)


def region_products(x: Tensor, queries: Tensor) -> Tensor:
    """x queriesᵀ: (B,R,N) contiguous, for regions x (B,R,D) and queries (N,D), the bulk of a training step.

    On a CPU a narrow product is asked for as a 1x1 convolution over channels-last regions: the same sums, in a library
    whose narrow products are up to 1.5 times faster, forward and backward (benchmarks/training_step.py).
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


def self_calibration(scores: Tensor, unseen: Tensor) -> Tensor:
    """DAZLE's -log of the batch mean of the probability given to unseen classes; scores (B,C), a scalar back."""
    return -scores.softmax(dim=1)[:, unseen].sum(dim=1).mean().clamp_min(1e-12).log()


class DAZLE(nn.Module):
    """DAZLE's classifier: class scores from attended attribute scores, cross-entropy and self-calibration."""

    gamma = 2.0  # its own calibration: m_c = +1 for unseen, -1 for seen classes
    z: Tensor
    unseen: Tensor

    def __init__(
        self,
        space: ClassSpace,
        D: int,
        *,
        lambda_cal: float = 0.1,
        use_w: bool = True,
        train_vectors: bool = True,
        normalize_vectors: bool = False,
        z: Tensor | None = None,
    ) -> None:
        """``z`` (C,K) replaces the unit rows of the class attributes."""
        super().__init__()
        self.attention = DenseAttention(space.w2v, D, train_vectors=train_vectors, normalize_vectors=normalize_vectors)
        self.lambda_cal = lambda_cal
        self.use_w = use_w
        self.register_buffer("z", space.z if z is None else z)
        self.register_buffer("unseen", space.unseen)

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) without the margin m: calibration is applied by the evaluation."""
        a = self.attention(x)
        assert a.e is not None
        return (a.w * a.e if self.use_w else a.e) @ self.z.T

    def loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Cross-entropy over all classes + λ self-calibration; y (B,) class numbers."""
        s = self.class_scores(x)  # (B,C)
        ce = F.cross_entropy(s, y)
        cal = self_calibration(s, self.unseen)
        return {"loss": ce + self.lambda_cal * cal, "ce": ce, "cal": cal}
