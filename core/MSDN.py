"""MSDN: two attentions that teach each other, attributes over regions and regions over attributes.

S. Chen, Z. Hong, G.-S. Xie, W. Yang, Q. Peng, K. Wang, J. Zhao, X. You, "MSDN: Mutually Semantic Distillation Network
for Zero-Shot Learning", CVPR 2022. Written from knowledge of its equations, without its text or its code at hand.

How to read it. For attribute i with word vector v_i and region feature x_r:
    attribute -> visual    θ_ri = softmax over r of v_i^T W1 x_r        F_i = Σ_r θ_ri x_r
                           ψ1_i = v_i^T W2 F_i                          attribute score of the first branch
    visual -> attribute    β_ri = softmax over i of x_r^T W3 v_i        S_r = Σ_i β_ri v_i
                           ψ̄_r  = x_r^T W4 S_r                          region score
                           ψ2_i = Σ_r ψ̄_r (v_i^T W_att x_r)             attribute score of the second branch
    class scores           s1 = ψ1·z, s2 = ψ2·z                         z: L2-normalised class attributes
    prediction             0.9 s1 + 0.1 s2
    loss                   L(s1) + L(s2) + λ_distill (JSD(p1, p2) + ||p1 - p2||²)           p: softmax over classes of s
                           L(s) = cross-entropy(s) + λ_cal·(-log mean_b Σ_{c unseen} softmax(s + m)[b,c])
                           m_c = +1 for unseen, -1 for seen classes
Neither F (B,K,D) nor S (B,R,V) is formed: v^T W2 F_i = Σ_r θ (v^T W2 x_r), x^T W4 S_r = Σ_i β (x_r^T W4 v_i), so four
(B,R,K) maps of one product are enough; and ψ2_i = v_i^T W_att (Σ_r ψ̄_r x_r) needs only the (B,D) sum.

Defaults, as we know the paper's: λ_cal 0.1, λ_distill 0.001, fusion 0.9/0.1; trained as DAZLE is (RMSprop 1e-4).
Inferred, where we do not know better:
    - the start is DAZLE's: what decides where to look (W1, W3) is 0, what scores (W2, W4, W_att) is N(0,1)
    - the cross-entropy runs over all classes without m, as DAZLE's; ``seen_only`` runs it over the seen ones
    - the calibration takes the mean over the batch inside the logarithm, as DAZLE's
    - the calibration has the margin m, and each branch has its own cross-entropy and calibration
    - JSD is the Jensen-Shannon divergence to the mean of both, not the half sum of the two Kullback-Leibler divergences
    - ψ2 carries ψ̄ to the attributes by W_att, a matrix of its own

B images · R regions · D channels · K attributes · C classes · V word-vector size
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.DAZLE import Attended, ClassSpace, region_products, self_calibration


@dataclass(frozen=True)
class MutuallyAttended(Attended):
    """What both attentions found; ``theta`` and ``e`` are the first branch's, ``w`` is 1: attributes count alike."""

    beta: Tensor  # (B,R,K) attribute weights of each region, sum to 1 over K
    e2: Tensor  # (B,K) attribute scores of the second branch


class MutualAttention(nn.Module):
    """Both branches up to the attribute scores, from four maps of one product (the equations above)."""

    def __init__(self, w2v: Tensor, D: int, *, train_vectors: bool = True, normalize_vectors: bool = False) -> None:
        """Args:
        w2v: (K,V) attribute word vectors; rows are L2-normalised here.
        train_vectors: learn v along with the W.
        normalize_vectors: keep v at unit length while it is learned.
        """
        super().__init__()
        V = w2v.shape[1]
        self.v = nn.Parameter(F.normalize(w2v.float(), dim=1), requires_grad=train_vectors)  # (K,V)
        self.normalize_vectors = normalize_vectors
        self.W1 = nn.Parameter(torch.zeros(V, D))
        self.W2 = nn.Parameter(torch.randn(V, D))
        self.W3 = nn.Parameter(torch.zeros(V, D))  # transposed against the equation, like W4: one product for all
        self.W4 = nn.Parameter(torch.randn(V, D))
        self.W_att = nn.Parameter(torch.randn(V, D))

    def forward(self, x: Tensor) -> MutuallyAttended:
        """x (B,R,D) of unit regions."""
        B, R, _ = x.shape
        v = F.normalize(self.v, dim=1) if self.normalize_vectors else self.v
        queries = torch.cat([v @ W for W in (self.W1, self.W2, self.W3, self.W4)])  # (4K,D)
        maps = region_products(x, queries).view(B, R, 4, -1)  # (B,R,4,K)
        theta = maps[:, :, 0].softmax(dim=1)  # (B,R,K)
        e = (theta * maps[:, :, 1]).sum(dim=1)  # (B,K)
        beta = maps[:, :, 2].softmax(dim=2)  # (B,R,K)
        region_score = (beta * maps[:, :, 3]).sum(dim=2)  # (B,R)
        pooled = torch.bmm(region_score.unsqueeze(1), x).squeeze(1)  # (B,D)
        e2 = pooled @ (v @ self.W_att).T  # (B,K)
        return MutuallyAttended(theta, torch.ones_like(e), e, beta, e2)


def margins(C: int, unseen: Tensor) -> Tensor:
    """(C,) of +1 for unseen and -1 for seen classes."""
    return torch.full((C,), -1.0, device=unseen.device).index_fill(0, unseen, 1.0)


def classification_losses(
    s: Tensor, y: Tensor, unseen: Tensor, margin: Tensor, seen_only: bool
) -> tuple[Tensor, Tensor]:
    """Cross-entropy without the margin (C,) and self-calibration with it, of scores s (B,C) and classes y (B,)."""
    logits = s.index_fill(1, unseen, -torch.inf) if seen_only else s
    return F.cross_entropy(logits, y), self_calibration(s + margin, unseen)


def distillation(s1: Tensor, s2: Tensor) -> Tensor:
    """Batch mean of JSD(p1, p2) + ||p1 - p2||² for the class posteriors p of two score matrices (B,C); a scalar."""
    log1, log2 = s1.log_softmax(dim=1), s2.log_softmax(dim=1)  # (B,C)
    p1, p2 = log1.exp(), log2.exp()
    mean = torch.logaddexp(log1, log2) - math.log(2)
    jsd = 0.5 * (p1 * (log1 - mean) + p2 * (log2 - mean)).sum(dim=1)  # (B,)
    return (jsd + (p1 - p2).square().sum(dim=1)).mean()


class MSDN(nn.Module):
    """Both branches' class scores, trained with cross-entropy, self-calibration and mutual distillation."""

    gamma = 2.0  # its own calibration: m_c = +1 for unseen, -1 for seen classes
    z: Tensor
    unseen: Tensor
    margin: Tensor

    def __init__(
        self,
        space: ClassSpace,
        D: int,
        *,
        lambda_cal: float = 0.1,
        lambda_distill: float = 0.001,
        fusion: float = 0.9,
        train_vectors: bool = True,
        normalize_vectors: bool = False,
        seen_only: bool = False,
    ) -> None:
        """Args:
        space: the classes.
        D: channels of a region.
        lambda_cal: weight of the self-calibration of each branch.
        lambda_distill: weight of JSD + L2 between the branches.
        fusion: share of the first branch in the prediction.
        train_vectors: learn the attribute vectors.
        normalize_vectors: keep them at unit length.
        seen_only: cross-entropy over seen classes in place of all.
        """
        super().__init__()
        self.attention = MutualAttention(space.w2v, D, train_vectors=train_vectors, normalize_vectors=normalize_vectors)
        self.lambda_cal = lambda_cal
        self.lambda_distill = lambda_distill
        self.fusion = fusion
        self.seen_only = seen_only
        self.register_buffer("z", space.z)
        self.register_buffer("unseen", space.unseen)
        self.register_buffer("margin", margins(len(space.att), space.unseen), persistent=False)

    def branch_scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores (B,C) of each branch for x (B,R,D), without the margin m."""
        a = self.attention(x)
        return a.e @ self.z.T, a.e2 @ self.z.T

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C), both branches fused, without the margin m: calibration is applied by the evaluation."""
        s1, s2 = self.branch_scores(x)
        return self.fusion * s1 + (1 - self.fusion) * s2

    def loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Both branches' classification losses and their distillation; x (B,R,D), y (B,) class numbers."""
        s1, s2 = self.branch_scores(x)  # (B,C)
        ce1, cal1 = classification_losses(s1, y, self.unseen, self.margin, self.seen_only)
        ce2, cal2 = classification_losses(s2, y, self.unseen, self.margin, self.seen_only)
        ce, cal, distill = ce1 + ce2, cal1 + cal2, distillation(s1, s2)
        total = ce + self.lambda_cal * cal + self.lambda_distill * distill
        return {"loss": total, "ce": ce, "cal": cal, "distill": distill}
