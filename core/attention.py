"""Dense attribute attention, which every method with attention over regions here shares, and the scores made of it.

For attribute i with word vector v_i and region feature x_r (Huynh and Elhamifar, CVPR 2020; core/DAZLE.py):
    region score     S = v_i^T W1 x_r
    region weight    θ = softmax over r of v_i^T W2 x_r
    attribute score  e_i = Σ_r θ S                     how much of attribute i is seen where it is looked for
    attribute weight w_i = σ(Σ_r θ v_i^T W3 x_r)       how much this image's attribute i counts
The original forms the attribute features h_i = Σ_r θ x_r, a (B,K,D) tensor. Because v^T W h_i = Σ_r θ (v^T W x_r), the
three (B,R,K) maps of one product x [V W1; V W2; V W3]^T are all that is needed.

B images · R regions · D channels · K attributes · C classes · V word-vector size
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.method import AttentionOutput, AttributeModel, ClassSpace

_NARROW = 600  # columns, measured: 255 and 306 gain, 936 loses


class DenseAttention(nn.Module):
    """Dense attribute attention in the three-map form (the equations above)."""

    def __init__(
        self, w2v: Tensor, D: int, *, scores: bool = True, train_vectors: bool = True, normalize_vectors: bool = False
    ) -> None:
        """Args:
        w2v: (K,V) attribute word vectors; rows are L2-normalised here.
        scores: make W1 (region scores), W2 and W3 start at 0: attend everywhere alike, as DAZLE does; without, as in
            VSMR's published visual branch, they start at N(0,1).
        train_vectors: learn v along with the W.
        normalize_vectors: keep v at unit length while it is learned.
        """
        super().__init__()
        V = w2v.shape[1]
        self.v = nn.Parameter(F.normalize(w2v.float(), dim=1), requires_grad=train_vectors)  # (K,V)
        self.normalize_vectors = normalize_vectors

        start = torch.zeros if scores else torch.randn
        self.W1 = nn.Parameter(torch.randn(V, D)) if scores else None
        self.W2 = nn.Parameter(start(V, D))
        self.W3 = nn.Parameter(start(V, D))

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
    whose narrow products are up to 1.5 times faster, forward and backward (docs/speed.md).
    """
    B, R, D = x.shape
    plain = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if x.device.type == "cpu" and plain and len(queries) < _NARROW and x.is_contiguous():
        maps = F.conv2d(x.view(B, R, 1, D).permute(0, 3, 1, 2), queries[:, :, None, None])  # (B,N,R,1)
        return maps.permute(0, 2, 3, 1).reshape(B, R, len(queries))
    return (x.reshape(B * R, D) @ queries.T).view(B, R, len(queries))


class AttributeClassifier(AttributeModel):
    """Class scores from attribute scores, trained with self-calibration."""

    gamma = 2.0  # its own calibration: m_c = +1 for unseen, -1 for seen classes

    def __init__(self, space: ClassSpace, *, prepared: bool = False) -> None:
        super().__init__(space, prepared=prepared)
        self.unseen = nn.Buffer(space.unseen)
        seen = torch.full((len(space.att),), -1.0, device=space.unseen.device)
        self.margin = nn.Buffer(seen.index_fill(0, space.unseen, 1.0))  # m (C,)

    def classification_losses(self, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy over all classes, and DAZLE's self-calibration, of scores s (B,C) and classes y (B,).

        The latter is -log mean_b Σ_{c unseen} softmax(s + m)[b,c], as the released code has it: the softmax is of the
        scores WITH the margin.
        """
        of_unseen = (s + self.margin).softmax(dim=1)[:, self.unseen].sum(dim=1)  # (B,)
        return F.cross_entropy(s, y), -of_unseen.mean().clamp_min(1e-12).log()
