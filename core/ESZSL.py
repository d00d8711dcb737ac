"""ESZSL: a bilinear map between pooled features and class attributes in closed form. Method ``eszsl``.

B. Romera-Paredes, P. Torr, "An embarrassingly simple approach to zero-shot learning", ICML 2015.
    W (D,K) = (XᵀX + γI)^-1 Xᵀ Y Z (ZᵀZ + λI)^-1,   Y = +1 for an image's own class, -1 else;   s = x W z_c
X (N,D) mean-pooled unit features of the training images, Z (S,K) unit attribute rows of the seen classes. γ and λ are
chosen on validation from powers of ten. ``prepared`` gives it the inputs of ``vsmr`` (core/preparation.py), which shows
how much of a gain is preparation alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.method import AttentionOutput, AttributeModel, ClassSpace, Images, Method, hp, method
from core.preparation import signed_root

GRID = tuple(10.0**power for power in range(-3, 4))  # the paper's range
_PART = 4096  # images that are held in double precision at a time: 64 MB of 2048 channels


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """γ and λ (None: chosen on validation) and what the inputs are."""

    regularise_x: float | None = hp(None, "ESZSL's γ; none: chosen on validation", above=0)
    regularise_z: float | None = hp(None, "ESZSL's λ; none: chosen on validation", above=0)
    prepared: bool = hp(False, "inputs as vsmr takes them (core/preparation.py)", flag=False)


class ESZSL(AttributeModel):
    """The closed form; :meth:`decompose` once, then :meth:`solve` for any γ and λ."""

    uses_pooled_features = True

    def __init__(self, space: ClassSpace, D: int, recipe: Recipe) -> None:
        super().__init__(space, prepared=recipe.prepared)
        self.mean = nn.Buffer(self.z.new_zeros(D))
        self.W = nn.Buffer(self.z.new_zeros(D, self.z.shape[1]))
        self._parts: tuple[Tensor, ...] | None = None

    def inputs(self, pooled: Tensor) -> Tensor:
        """(B,D) unit rows of mean-pooled features; prepared: root taken and the training mean away."""
        if self.prepared:
            pooled = signed_root(pooled) - self.mean
        return F.normalize(pooled, dim=1)

    @torch.no_grad()
    def decompose(self, pooled: Tensor, y: Tensor) -> None:
        """Eigenvectors of XᵀX and ZᵀZ, and XᵀYZ, from pooled (N,D) and classes y (N,)."""
        if self.prepared:
            self.mean.copy_(signed_root(pooled).mean(dim=0))
        Z = self.z[self.seen].double()
        own = Z.new_zeros(len(self.z), pooled.shape[1])  # (C,D) sums of each class
        gram = Z.new_zeros(pooled.shape[1], pooled.shape[1])  # (D,D) XᵀX
        for part, of in zip(pooled.split(_PART), y.split(_PART), strict=True):
            X = self.inputs(part).double()
            own.index_add_(0, of, X)
            gram += X.T @ X
        XYZ = (2 * own[self.seen] - own.sum(dim=0)).T @ Z  # (D,K)
        lx, Qx = torch.linalg.eigh(gram)
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

    def evidence(self, x: Tensor, a: AttentionOutput | None) -> Tensor:
        """x W (B,K)."""
        return self.inputs(x.mean(dim=1)) @ self.W


@method("eszsl-prepared", recipes={"*": Recipe(prepared=True)})
@method("eszsl", recipes={"*": Recipe()})
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    model = ESZSL(space, shape[1], recipe)

    def begin(images: Images) -> None:
        model.decompose(images.pooled(), images.labels)
        model.solve(recipe.regularise_x or 1.0, recipe.regularise_z or 1.0)

    grid = tuple(
        {"regularise_x": x, "regularise_z": z}
        for x in ([recipe.regularise_x] if recipe.regularise_x else GRID)
        for z in ([recipe.regularise_z] if recipe.regularise_z else GRID)
    )
    return Method(model=model, phases=[], begin=begin, grid=grid, set_params=lambda setting: model.solve(**setting))
