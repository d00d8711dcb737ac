"""What a score is made of, exactly, and what scores a class from its description alone.

Two methods can be taken apart (their files hold the equations); for every other there is the map of its attention.
    dazle   s_c = Σ_i g_i z_ci                       g = w∘e
    vsmr    s_c = Σ_i g_i z_ci + Σ_s h_s mix_cs      g = α w∘e / |w∘e|,  h_s = β α f·P M_s,  mix_cs = W_cs / n_c
The second sum says a class as a mixture of seen classes: W are the ridge weights, n_c the length of Σ_s W_cs P M_s. It
does not split over regions (a root follows the pooling), so a map of attention is never evidence for it.

B images · R regions · D channels · K attributes · C classes (S seen) · N classes described anew
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from core.DAZLE import DAZLE
from core.inference.trained import Trained
from core.VSMR import VSMR


@dataclass(frozen=True, kw_only=True)
class Describer:
    """Class attributes as the model takes them, and a class as a mixture of seen ones; float64 on the CPU.

    Holds for classes without training images: a changed description of a seen class would change the ridge itself.
    """

    root: bool  # square root of the unit rows
    centre: Tensor  # (K,) mean of the seen classes' rows, taken away; zeros where the model takes none away
    B: Tensor | None  # (S,K) = (Z_s Z_sᵀ + λI)^-1 Z_s; None: the model has no mixture
    gram: Tensor | None  # (S,S) products of the projected means P M_s

    def prepare(self, att: Tensor) -> Tensor:
        """z (N,K) of descriptions att (N,K), in any unit: rows are scaled to unit length."""
        return F.normalize(self._rooted(att) - self.centre, dim=1)

    def _rooted(self, att: Tensor) -> Tensor:
        a = F.normalize(att.to(self.centre), dim=1)
        return a.clamp_min(0).sqrt() if self.root else a

    def mixture(self, z: Tensor) -> Tensor | None:
        """mix (N,S) of prepared attributes z (N,K)."""
        if self.B is None or self.gram is None:
            return None
        W = z @ self.B.T
        n = ((W @ self.gram) * W).sum(dim=1, keepdim=True).clamp_min(0).sqrt()
        return W / n.clamp_min(1e-12)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Scores of a batch and their parts: ``scores = g zᵀ + h mixtureᵀ``, calibrated by γ on unseen classes.

    ``g`` None: this method's scores do not split. ``h`` None: it has no mixture.
    """

    scores: Tensor  # (B,C) as the model gives them, without γ
    theta: Tensor | None  # (B,R,K) where each attribute was looked for
    w: Tensor | None  # (B,K) attribute weights
    e: Tensor | None  # (B,K) attribute scores, less what the mean training image has where the model takes that away
    g: Tensor | None  # (B,K) float64
    z: Tensor | None  # (C,K) float64
    h: Tensor | None  # (B,S) float64
    mixture: Tensor | None  # (C,S) float64
    describer: Describer | None

    def attributes(self, image: int, of: int) -> Tensor:
        """(K,) what each attribute adds to the score of class ``of``.

        Raises:
            ValueError: the scores of this method do not split.
        """
        if self.g is None or self.z is None:
            raise ValueError("the scores of this method do not split over attributes")
        return self.g[image] * self.z[of]

    def seen_classes(self, image: int, of: int) -> Tensor | None:
        """(S,) what each seen class adds to the score of class ``of``, either sign; None: no mixture in this method."""
        return None if self.h is None or self.mixture is None else self.h[image] * self.mixture[of]

    def summed(self) -> Tensor:
        """(B,C) the parts added up: equal to ``scores``."""
        if self.g is None or self.z is None:
            raise ValueError("the scores of this method do not split over attributes")
        total = self.g @ self.z.T
        return total if self.h is None or self.mixture is None else total + self.h @ self.mixture.T

    def described(self, att: Tensor) -> Tensor:
        """(B,N) scores of classes without training images, from their attributes att (N,K) alone.

        Raises:
            ValueError: this method cannot say.
        """
        if self.describer is None or self.g is None:
            raise ValueError("this method cannot score a class from its description alone")
        z = self.describer.prepare(att)
        mixture = self.describer.mixture(z)
        total = self.g @ z.T
        return total if self.h is None or mixture is None else total + self.h @ mixture.T


@torch.no_grad()
def explain(trained: Trained, x: Tensor) -> Explanation:
    """Take the scores of regions x (B,R,D), of unit length, apart.

    The model is left as it is; the parts are computed from what it computed, in float64 on the CPU.
    """
    model = trained.model
    a = model.attend(x)
    scores = model.class_scores(x)
    found = Explanation(
        scores=scores,
        theta=None if a is None else a.theta,
        w=None if a is None else a.w,
        e=None if a is None else a.e,
        g=None,
        z=None,
        h=None,
        mixture=None,
        describer=None,
    )
    if a is None or a.e is None:
        return found
    if isinstance(model, DAZLE):
        describer = describer_of(trained)
        g = _exact(a.w * a.e if model.recipe.use_w else a.e)
        return replace(found, g=g, z=_exact(model.z), describer=describer)
    if isinstance(model, VSMR) and model.E is None:
        assert model.attention.W1 is not None
        r = model.recipe
        e = a.e - model.attention.v @ (model.attention.W1 @ model.x_mean)
        g = r.alpha * F.normalize(_exact(a.w * e), dim=1)
        f = F.normalize(_exact(model.pooled(x, a) @ model.P.T), dim=1)  # (B,d)
        means = projected_means(model)
        W = _exact(model.ridge_weights)
        length = (W @ means).norm(dim=1, keepdim=True).clamp_min(1e-12)  # (C,1)
        return replace(
            found,
            e=e,
            g=g,
            z=_exact(model.z),
            h=r.beta * r.alpha * f @ means.T,
            mixture=W / length,
            describer=describer_of(trained),
        )
    return found


def _exact(t: Tensor) -> Tensor:
    """In float64 on the CPU: not every device has it."""
    return t.detach().cpu().double()


def projected_means(model: VSMR) -> Tensor:
    """P M (S,d) float64: the seen classes' means in the whitened space."""
    return _exact(model.class_means) @ _exact(model.P).T


def describer_of(trained: Trained) -> Describer | None:
    """What turns a description into a class for this model; None where the method cannot say."""
    model, space = trained.model, trained.space
    att = _exact(space.att)
    if isinstance(model, DAZLE):
        root = centre = model.recipe.prepared
    elif isinstance(model, VSMR) and model.E is None:
        root, centre = model.recipe.root_attributes, model.recipe.centre_attributes
    else:
        return None
    plain = Describer(root=root, centre=att.new_zeros(att.shape[1]), B=None, gram=None)
    mean = plain._rooted(att[space.seen.cpu()]).mean(dim=0) if centre else plain.centre
    if isinstance(model, DAZLE):
        return Describer(root=root, centre=mean, B=None, gram=None)
    known = _exact(model.z)[space.seen.cpu()]  # (S,K)
    S, K = known.shape
    penalty = model.recipe.ridge * S / min(S, K)  # ridge_weights' (core/preparation.py)
    eye = torch.eye(S, dtype=known.dtype)
    B = torch.linalg.solve(known @ known.T + penalty * eye, known)
    means = projected_means(model)
    return Describer(root=root, centre=mean, B=B, gram=means @ means.T)
