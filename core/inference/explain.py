"""What a score is made of, exactly, and what scores a class from its description alone.

    s_c = Σ_i g_i z_ci + Σ_s h_s mix_cs        g: ZeroShotModel.evidence, h and mix: ZeroShotModel.seen_class_evidence
The first sum says what each attribute adds, the second writes a class as a mixture of seen classes. Neither splits over
regions (vsmr takes a root after pooling), so a map of attention is never evidence for a score.

B images · R regions · D channels · K attributes · C classes (S seen) · N classes described anew
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from core.inference.trained import Trained
from core.method import ClassSpace
from core.preparation import ClassEncoder


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Scores of a batch and their parts: ``scores = g zᵀ + h mixtureᵀ + own``, calibrated by γ on unseen classes.

    ``g`` None: this method's scores do not split. ``h`` None: it has no mixture. ``own`` None: nothing is added.
    """

    scores: Tensor  # (B,C) as the model gives them, without γ
    theta: Tensor | None  # (B,R,K) where each attribute was looked for
    w: Tensor | None  # (B,K) attribute weights
    e: Tensor | None  # (B,K) attribute scores
    g: Tensor | None  # (B,K) float64
    z: Tensor | None  # (C,K) float64
    h: Tensor | None  # (B,S) float64
    mixture: Tensor | None  # (C,S) float64
    own: Tensor | None  # (B,C) float64: what the method adds to a class besides (seen expert, hubness)
    class_encoder: ClassEncoder | None

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

    def described(self, att: Tensor) -> Tensor:
        """(B,N) scores of classes without training images, from their attributes att (N,K) alone.

        Raises:
            ValueError: this method cannot say.
        """
        if self.class_encoder is None or self.g is None:
            raise ValueError("this method cannot score a class from its description alone")
        z = self.class_encoder.prepare(att)
        mixture = self.class_encoder.mixture(z)
        total = self.g @ z.T
        if self.h is None or mixture is None:
            return total
        return total + self.h @ mixture.T + self.class_encoder.correction(mixture)


class Explainer:
    """Takes the scores of a trained model apart, by a copy of it in float64 on the CPU.

    The sums of 32-bit parts would not meet the score. The model is left as it is.
    """

    class_encoder: ClassEncoder | None  # turns a description into a class for this model; None where it cannot say

    def __init__(self, trained: Trained) -> None:
        space = trained.space
        self.model, self.exact = trained.model, copy.deepcopy(trained.model).cpu().double()
        exact_space = ClassSpace(
            att=space.att.cpu().double(), seen=space.seen.cpu(), unseen=space.unseen.cpu(), w2v=space.w2v.cpu()
        )
        self.class_encoder = self.exact.class_encoder(exact_space)
        self.z: Tensor | None = getattr(self.exact, "z", None) if self.class_encoder is not None else None  # (C,K)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Explanation:
        """The parts of the scores of regions x (B,R,D), of unit length."""
        a, scores = self.model.attend(x), self.model.class_scores(x)
        x = x.detach().cpu().double()
        found = self.exact.attend(x)
        g = self.exact.evidence(x, found) if self.z is not None else None
        h, mixture = (None if g is None else self.exact.seen_class_evidence(x, found)) or (None, None)
        return Explanation(
            scores=scores,
            theta=None if a is None else a.theta,
            w=None if a is None else a.w,
            e=None if a is None else a.e,
            g=g,
            z=None if g is None else self.z,
            h=h,
            mixture=mixture,
            own=None if g is None else self.exact.corrections(x, found),
            class_encoder=self.class_encoder,
        )


def explain(trained: Trained, x: Tensor) -> Explanation:
    """Take the scores of regions x (B,R,D), of unit length, apart; of many batches with one :class:`Explainer`."""
    return Explainer(trained)(x)
