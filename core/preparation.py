"""What is done to class attributes and pooled features before anything is learned from them.

Both are sums of many non-negative parts that most classes share, so raw cosines between any two classes are high. A
square root tames the few large entries, and taking the mean of the seen classes away leaves what tells classes apart.
Measured on class-disjoint splits inside CUB's trainval, this is worth more to a closed-form method than any network
here is worth over another (README, ablation). Only seen classes and training images enter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALL = 1e-2  # keeps the root's slope finite at 0


@dataclass(frozen=True, kw_only=True)
class Describer:
    """How a description becomes class attributes as a model takes them, and a mixture of seen classes.

    It holds for classes without training images: a changed description of a seen class would change the ridge itself.
    """

    root: bool  # square root of the unit rows
    centre: Tensor  # (K,) mean of the seen classes' rows, taken away; zeros where none is
    B: Tensor | None = None  # (S,K) = (Z_s Z_sᵀ + λI)^-1 Z_s; None: the model has no mixture
    gram: Tensor | None = None  # (S,S) products of the seen classes' means in visual space

    @classmethod
    def of(cls, att: Tensor, seen: Tensor, *, root: bool, centre: bool) -> Describer:
        """The one that makes what :func:`prepared_attributes` does of class attributes att (C,K)."""
        plain = cls(root=root, centre=att.new_zeros(att.shape[1]))
        return replace(plain, centre=plain.rooted(att[seen]).mean(dim=0)) if centre else plain

    def rooted(self, att: Tensor) -> Tensor:
        """Unit rows of att (N,K), root taken; of what is negative, which descriptions of one's own may be, -√|a|."""
        a = F.normalize(att.to(self.centre), dim=1)
        return a.sign() * a.abs().sqrt() if self.root else a

    def prepare(self, att: Tensor) -> Tensor:
        """z (N,K) of descriptions att (N,K) in any unit: rows are scaled to unit length."""
        return F.normalize(self.rooted(att) - self.centre, dim=1)

    def mixture(self, z: Tensor) -> Tensor | None:
        """(N,S) weights of the seen classes in classes with prepared attributes z (N,K), over the mixture's length."""
        if self.B is None or self.gram is None:
            return None
        W = z @ self.B.T
        n = ((W @ self.gram) * W).sum(dim=1, keepdim=True).clamp_min(0).sqrt()
        return W / n.clamp_min(1e-12)


def prepared_attributes(att: Tensor, seen: Tensor, *, root: bool = True, centre: bool = True) -> Tensor:
    """z (C,K): unit rows of att, root taken, the mean over seen classes taken away, unit rows again.

    Args:
        att: (C,K) class attributes; of negative ones the root is -√|a|.
        seen: (S,) class numbers whose mean is taken away; unseen classes do not enter it.
    """
    plain = Describer.of(att, seen, root=root, centre=centre)
    return plain.prepare(att)


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


def ridge_factors(known: Tensor, ridge: float) -> Tensor:
    """(S,K) float64 B = (Z_s Z_sᵀ + λ I)^-1 Z_s of the seen classes' attributes Z_s (S,K): z Bᵀ writes a class as a
    mixture of them. The linear ridge map from attributes to anything known of the seen classes is that times the thing.

    λ is ``ridge`` times the mean non-zero eigenvalue of Z_s Z_sᵀ, so that one number suits few and many classes.
    """
    known = known.double()
    S, K = known.shape
    penalty = ridge * S / min(S, K)  # rows have unit length, so the eigenvalues sum to S
    if S <= K:
        return torch.linalg.solve(
            known @ known.T + penalty * torch.eye(S, dtype=known.dtype, device=known.device), known
        )
    gram = known.T @ known + penalty * torch.eye(K, dtype=known.dtype, device=known.device)
    return torch.linalg.solve(gram, known.T).T


def ridge_weights(z: Tensor, seen: Tensor, ridge: float) -> Tensor:
    """(C,S) float64 weights that write each class as a mixture of the seen ones: z Bᵀ (:func:`ridge_factors`)."""
    return z.double() @ ridge_factors(z[seen], ridge).T
