"""ESZSL: a bilinear map between pooled features and class attributes in closed form. Method ``eszsl``.

B. Romera-Paredes, P. Torr, "An embarrassingly simple approach to zero-shot learning", ICML 2015.
    W (D,K) = (XᵀX + γI)^-1 Xᵀ Y Z (ZᵀZ + λI)^-1,   Y = +1 for an image's own class, -1 else;   s = x W z_c
X (N,D) mean-pooled unit features of the training images, Z (S,K) unit attribute rows of the seen classes. γ and λ are
chosen on validation from powers of ten. ``prepared`` gives it the inputs of ``vsmr`` (core/preparation.py), which shows
how much of a gain is preparation alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.DAZLE import ClassSpace
from core.preparation import prepared_attributes, signed_root


@dataclass(frozen=True)
class EszslRecipe:
    """γ and λ (None: chosen on validation) and what the inputs are."""

    regularise_x: float | None = None
    regularise_z: float | None = None
    prepared: bool = False


GRID = tuple(10.0**power for power in range(-3, 4))  # the paper's range


class ESZSL(nn.Module):
    """The closed form; :meth:`decompose` once, then :meth:`solve` for any γ and λ."""

    gamma = 0.0
    z: Tensor
    seen: Tensor
    mean: Tensor
    W: Tensor

    def __init__(self, space: ClassSpace, D: int, recipe: EszslRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        z = prepared_attributes(space.att, space.seen) if recipe.prepared else space.z
        self.register_buffer("z", z)
        self.register_buffer("seen", space.seen)
        self.register_buffer("mean", z.new_zeros(D))
        self.register_buffer("W", z.new_zeros(D, z.shape[1]))
        self._parts: tuple[Tensor, ...] | None = None

    def inputs(self, pooled: Tensor) -> Tensor:
        """(B,D) unit rows of mean-pooled features; prepared: root taken and the training mean away."""
        if self.recipe.prepared:
            pooled = signed_root(pooled) - self.mean
        return F.normalize(pooled, dim=1)

    @torch.no_grad()
    def decompose(self, pooled: Tensor, y: Tensor) -> None:
        """Eigenvectors of XᵀX and ZᵀZ, and XᵀYZ, from pooled (N,D) and classes y (N,)."""
        if self.recipe.prepared:
            self.mean.copy_(signed_root(pooled).mean(dim=0))
        X = self.inputs(pooled).double()
        Z = self.z[self.seen].double()
        own = torch.zeros(len(self.z), X.shape[1], dtype=X.dtype, device=X.device).index_add_(0, y, X)[self.seen]
        XYZ = (2 * own - X.sum(dim=0)).T @ Z  # (D,K)
        lx, Qx = torch.linalg.eigh(X.T @ X)
        lz, Qz = torch.linalg.eigh(Z.T @ Z)
        self._parts = (lx, Qx, lz, Qz, Qx.T @ XYZ @ Qz)

    @torch.no_grad()
    def solve(self, regularise_x: float, regularise_z: float) -> None:
        """W for one γ and λ."""
        assert self._parts is not None, "decompose first"
        lx, Qx, lz, Qz, core = self._parts
        shrunk = core / (lx.clamp_min(0) + regularise_x)[:, None] / (lz.clamp_min(0) + regularise_z)
        W = Qx @ shrunk @ Qz.T
        self.W.copy_(W / W.norm())  # the scale is free; unit length keeps γ of calibrated stacking comparable

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) for regions x (B,R,D)."""
        return self.inputs(x.mean(dim=1)) @ self.W @ self.z.T
