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
class ClassEncoder:
    """How a description becomes class attributes as a model takes them, and a mixture of seen classes.

    It holds for classes without training images: a changed description of a seen class would change the ridge itself.
    """

    root: bool  # square root of the unit rows
    centre: Tensor  # (K,) mean of the seen classes' rows, taken away; zeros where none is
    mixing: Mixing | None = None  # None: the model has no mixture
    gram: Tensor | None = None  # (S,S) products of the seen classes' means in visual space
    hubness: float = 0.0  # taken from a class's score, times the cosine of its mixture with the nearest seen mean

    @classmethod
    def of(cls, att: Tensor, seen: Tensor, *, root: bool, centre: bool) -> ClassEncoder:
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
        if self.mixing is None or self.gram is None:
            return None
        W = self.mixing.weights(z)
        n = ((W @ self.gram) * W).sum(dim=1, keepdim=True).clamp_min(0).sqrt()
        return W / n.clamp_min(1e-12)

    def correction(self, mixture: Tensor) -> Tensor:
        """(N,) what the scores of classes without training images get besides, from their mixtures (N,S)."""
        assert self.gram is not None
        cosines = mixture @ self.gram / self.gram.diagonal().sqrt().clamp_min(1e-12)  # (N,S)
        return -self.hubness * cosines.amax(dim=1)


def prepared_attributes(att: Tensor, seen: Tensor, *, root: bool = True, centre: bool = True) -> Tensor:
    """z (C,K): unit rows of att, root taken, the mean over seen classes taken away, unit rows again.

    Args:
        att: (C,K) class attributes; of negative ones the root is -√|a|.
        seen: (S,) class numbers whose mean is taken away; unseen classes do not enter it.
    """
    plain = ClassEncoder.of(att, seen, root=root, centre=centre)
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
    exact = phi.double()
    covariance = exact.T @ exact / len(phi)
    values, axes = torch.linalg.eigh(covariance)  # ascending
    values, axes = values.clamp_min(0).flip(0), axes.flip(1)
    scale = (shrinkage / (values / values.mean() + shrinkage)).sqrt()
    return (scale[:, None] * axes.T)[:width].to(phi.dtype)


LANDMARKS = 1024  # seen classes that a mixture is written through, at most


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How a class becomes a mixture of the seen ones: kernel ridge regression from class attributes, solved once.

    What is known of the seen classes, Y (S,·), is expected of a class with prepared attributes z as k(z,L) A Y. With
    all seen classes as landmarks L that is k(z,Z_s) (K_ss + λI)^-1 Y; where there are more than :data:`LANDMARKS`,
    evenly spaced ones stand for all (the subset of regressors: A = (K_Ls K_sL + λ K_LL)^-1 K_Ls), so that time and
    memory grow with the classes and not with their square.
    """

    landmarks: Tensor  # (m,K) prepared attributes
    A: Tensor  # (m,S)
    width: float | None  # τ of k(z,z') = exp((z·z' - 1)/τ); None: z·z', linear ridge regression

    @classmethod
    def solve(cls, known: Tensor, *, ridge: float, width: float | None, most: int = LANDMARKS) -> Mixing:
        """From the seen classes' prepared attributes (S,K). λ is ``ridge`` times the mean non-zero eigenvalue of K_ss
        (rows have unit length, so the eigenvalues sum to S), one number for few and many classes.
        """
        S = len(known)
        exact = known.double()
        chosen = exact[torch.linspace(0, S - 1, min(S, most), dtype=torch.float64).round().long()]
        among, across = _kernel(chosen, chosen, width), _kernel(chosen, exact, width)  # (m,m), (m,S)
        penalty = ridge * (S / min(S, known.shape[1]) if width is None else 1.0)
        if len(chosen) == S:
            A = torch.linalg.inv(among + penalty * torch.eye(S, dtype=exact.dtype, device=exact.device))
        else:
            system = across @ across.T + penalty * among
            jitter = 1e-10 * system.diagonal().mean() * torch.eye(len(system), dtype=exact.dtype, device=exact.device)
            A = torch.linalg.solve(system + jitter, across)
        return cls(landmarks=chosen.to(known.dtype), A=A.to(known.dtype), width=width)

    def weights(self, z: Tensor) -> Tensor:
        """(N,S) of classes z (N,K)."""
        return _kernel(z, self.landmarks, self.width) @ self.A

    def expected(self, z: Tensor, Y: Tensor) -> Tensor:
        """(N,·) of what is known of the seen classes, Y (S,·), for classes z (N,K); the weights are never formed."""
        return _kernel(z, self.landmarks, self.width) @ (self.A @ Y)


def _kernel(a: Tensor, b: Tensor, width: float | None) -> Tensor:
    """k of rows a (N,K) with rows b (M,K): (N,M)."""
    products = a @ b.T
    return products if width is None else ((products - 1) / width).exp()
