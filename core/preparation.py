"""What is done to class attributes and pooled features before anything is learned from them.

Both are sums of many non-negative parts that most classes share, so raw cosines between any two classes are high. A
square root tames the few large entries, and taking the mean of the seen classes away leaves what tells classes apart.
Attributes that answer one question ("bill shape") are shares of its answers first: each question then counts alike,
however often it was answered, and the root makes them the Hellinger form of a distribution.
Measured on class-disjoint splits inside CUB's trainval, this is worth more to a closed-form method than any network
here is worth over another (README, ablation). Only seen classes and training images enter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 1e-2  # keeps the root's slope finite at 0


@dataclass(frozen=True, kw_only=True)
class ClassEncoder:
    """How a description becomes class attributes as a model takes them, and what else it adds to a score.

    It holds for classes without training images: a changed description of a seen class would change the model itself.
    """

    root: bool  # square root of the unit rows, or of the shares
    centre: Tensor  # (K,) mean of the seen classes' rows, taken away; zeros where none is
    questions: Tensor | None = None  # (K,) what each attribute is an answer to, -1: to none that others answer too
    W: Tensor | None = None  # (K,d) what attributes look like: attributes are divided by the prototype's length |W z|
    means: Tensor | None = None  # (S,d) unit means of the seen classes
    hubness: float = 0.0  # taken from a class's score, times the cosine of its prototype with the nearest seen mean

    @classmethod
    def of(cls, att: Tensor, seen: Tensor, *, root: bool, centre: bool, **more: Any) -> ClassEncoder:
        """The one that makes what :func:`prepared_attributes` does of class attributes att (C,K); more: its fields."""
        plain = cls(root=root, centre=att.new_zeros(att.shape[1]), **more)
        return replace(plain, centre=plain.rooted(att[seen]).nanmean(dim=0).nan_to_num()) if centre else plain

    def rooted(self, att: Tensor) -> Tensor:
        """Unit rows of att (N,K); or the root of what they say to each question, of what is negative -√|a|.

        An attribute's share is taken in all answers to its question, NaN where there is none; one that stands alone is
        a question of its own, and is taken in the largest of these.
        """
        a = F.normalize(att.to(self.centre), dim=1)
        if self.root and self.questions is not None:
            asked, size, alone = self.questions.clamp_min(0), a.abs(), self.questions < 0
            sums = torch.zeros_like(a).index_add_(1, asked, size.masked_fill(alone, 0))[:, asked]
            largest = size.masked_fill(~alone, 0).amax(dim=1, keepdim=True)
            a = a / torch.where(alone, largest.clamp_min(1e-12), sums)  # of those alone all may be lacking
        return a.sign() * a.abs().sqrt() if self.root else a

    def prepare(self, att: Tensor) -> Tensor:
        """z (N,K) of descriptions att (N,K) in any unit: rows are scaled to unit length. What is not answered is 0, as
        of a class that is like the mean of the seen ones: few words say little, and not that all else is missing.
        """
        return F.normalize((self.rooted(att) - self.centre).nan_to_num(), dim=1)

    def encode(self, att: Tensor) -> tuple[Tensor, Tensor]:
        """Class attributes (N,K) and correction (N,) of descriptions att (N,K): Σ_i g_i z_i + correction is a score."""
        z = self.prepare(att)
        if self.W is None or self.means is None:
            return z, z.new_zeros(len(z))
        prototypes = z @ self.W  # (N,d)
        length = prototypes.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return z / length, -self.hubness * (prototypes / length @ self.means.T).amax(dim=1)


def prepared_attributes(att: Tensor, seen: Tensor, *, root: bool = True, questions: Tensor | None = None) -> Tensor:
    """z (C,K): shares of att in each question (without: unit rows), root taken, the mean over seen classes taken away,
    unit rows.

    Args:
        att: (C,K) class attributes; of negative ones the root is -√|a|.
        seen: (S,) class numbers whose mean is taken away; unseen classes do not enter it.
        questions: (K,) see :class:`ClassEncoder`.
    """
    return ClassEncoder.of(att, seen, root=root, centre=True, questions=questions).prepare(att)


def signed_root(g: Tensor) -> Tensor:
    """(B,D) pooled features, scaled to √D length, then sign(g) √|g|, smooth at 0."""
    g = F.normalize(g, dim=1) * g.shape[1] ** 0.5
    return g.sign() * ((g.abs() + SMALL).sqrt() - SMALL**0.5)


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
