"""What is done to class attributes and pooled features before anything is learned from them.

Both are sums of many non-negative parts that most classes share, so raw cosines between any two classes are high. A
square root tames the few large entries, and taking the mean of the seen classes away leaves what tells classes apart.
Measured on class-disjoint splits inside CUB's trainval, this is worth more to a closed-form method than any network
here is worth over another (README, ablation). Only seen classes and training images enter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALL = 1e-2  # keeps the root's slope finite at 0


def prepared_attributes(att: Tensor, seen: Tensor, *, root: bool = True, centre: bool = True) -> Tensor:
    """z (C,K): unit rows of att, root taken, the mean over seen classes taken away, unit rows again.

    Args:
        att: (C,K) class attributes; of negative ones the root is -√|a|.
        seen: (S,) class numbers whose mean is taken away; unseen classes do not enter it.
    """
    z = F.normalize(att, dim=1)
    if root:
        z = z.sign() * z.abs().sqrt()  # descriptions of one's own may have negative attributes: not cut
    if centre:
        z = z - z[seen].mean(dim=0)
    return F.normalize(z, dim=1)


def signed_root(g: Tensor) -> Tensor:
    """(B,D) pooled features, scaled to √D length, then sign(g) √|g|, smooth at 0."""
    g = F.normalize(g, dim=1) * g.shape[1] ** 0.5
    return g.sign() * ((g.abs() + _SMALL).sqrt() - _SMALL**0.5)


def shrunk_whitening(phi: Tensor, width: int, shrinkage: float) -> Tensor:
    """(d,D) with d = min(width, D): the leading principal axes of centred phi (N,D), scaled to nearly equal variance.

    Row j is √r (λ_j/λ̄ + r)^-½ q_jᵀ for the eigenpairs (λ_j, q_j) of the covariance and r = ``shrinkage``: r → 0
    whitens fully, r → ∞ only rotates.
    """
    covariance = phi.T.double() @ phi.double() / len(phi)
    values, axes = torch.linalg.eigh(covariance)  # ascending
    values, axes = values.clamp_min(0).flip(0), axes.flip(1)
    scale = (shrinkage / (values / values.mean() + shrinkage)).sqrt()
    return (scale[:, None] * axes.T)[:width].to(phi.dtype)


def ridge_weights(z: Tensor, seen: Tensor, ridge: float) -> Tensor:
    """(C,S) weights that write a class as a mixture of seen classes: z Z_sᵀ (Z_s Z_sᵀ + λ I)^-1.

    The linear ridge map from attributes to anything known of the seen classes is these weights times that thing. λ is
    ``ridge`` times the mean non-zero eigenvalue of Z_s Z_sᵀ, so that one number suits few and many classes.
    """
    z = z.double()
    known = z[seen]  # (S,K)
    S, K = known.shape
    penalty = ridge * S / min(S, K)  # rows have unit length, so the eigenvalues sum to S
    if S <= K:
        gram = known @ known.T + penalty * torch.eye(S, dtype=z.dtype, device=z.device)
        return torch.linalg.solve(gram, known @ z.T).T
    gram = known.T @ known + penalty * torch.eye(K, dtype=z.dtype, device=z.device)
    return z @ torch.linalg.solve(gram, known.T)
