"""What a score is made of, exactly: attributes, each of them by places where the method can say, and corrections.

    s_c = Σ_i g_i y_ci + Σ corrections_c  (+ γ, where class c is unseen)          g_i = Σ_r ev_ri
Predictions, pages and figures all take their scores and their reasons from here.

B images · R regions · K attributes · C classes
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.inference.trained import Trained

# Seen classes from which on maps are drawn. CUB, whole photographs: maps of a model of 16 of its 20 classes correlate
# 0.81 with those of all 20, maps of 10 of them 0.57 (crops, of 42 classes: 0.80 to 0.83 and 0.56 to 0.63).
MAPS_FROM = 20
LIKENESS = "like its photographs"  # the correction of classes that photographs were given of after training


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Scores of a batch and their parts; ``g`` and ``y`` None: the scores of this method do not split."""

    scores: Tensor  # (B,C) without γ
    ev: Tensor | None = None  # (B,R,K) evidence of each region; None: the method does not split over places
    g: Tensor | None = None  # (B,K) what the image shows of each attribute; minus is less than usual, or none
    y: Tensor | None = None  # (C,K) class attributes
    corrections: dict[str, Tensor]  # (B,C) each

    def attributes(self, image: int, of: int) -> Tensor:
        """(K,) what each attribute adds to the score of class ``of``."""
        assert self.g is not None and self.y is not None, "the scores of this method do not split over attributes"
        return self.g[image] * self.y[of]

    def places(self, image: int, of: int) -> Tensor:
        """(R,) what each region adds to the score of class ``of`` by all attributes."""
        assert self.ev is not None and self.y is not None, "the scores of this method do not split over places"
        return self.ev[image] @ self.y[of]


@torch.no_grad()
def explain(trained: Trained, x: Tensor) -> Explanation:
    """Score regions x (B,R,D), of unit length, and take the scores apart; added classes stand behind the run's own."""
    model = trained.model
    a = model.attend(x)
    g = model.evidence(x, a)
    if g is None:
        return Explanation(scores=model.class_scores(x), corrections={})
    y, corrections = model.class_attributes(), model.corrections(x, a)
    scores = g @ y.T + sum(corrections.values())
    for added in trained.added:
        own, place = g @ added.weights.T + added.correction, [*range(len(y))]  # place: the column of each class
        for column, number in enumerate(added.numbers, len(y)):
            place[number : number + 1] = [column]

        def put(values: Tensor, more: Tensor, place: list[int] = place) -> Tensor:
            return torch.cat([values, more], dim=1)[:, place]

        parts = {"hubness": added.correction.expand(g.shape[0], -1)}  # an encoder corrects for hubness alone
        if added.likeness is not None and (f := model.likeness(a)) is not None:
            parts[LIKENESS] = f @ added.likeness.T
            own = own + parts[LIKENESS]
            corrections.setdefault(LIKENESS, 0 * scores)
        none = torch.zeros_like(own)
        corrections = {name: put(values, parts.get(name, none)) for name, values in corrections.items()}
        y, scores = put(y.T, added.weights.T).T, put(scores, own)
    ev = None if a is None else a.ev
    return Explanation(scores=scores, ev=ev, g=g, y=y, corrections=corrections)


def why_no_maps(trained: Trained, found: Explanation) -> str:
    """A sentence for people where no map is drawn; empty where maps are."""
    method, seen = trained.config.get("method", "this method"), len(trained.space.seen)
    if found.ev is None:
        return f"The scores of {method} do not split over {'attributes' if found.g is None else 'places'}: no map."
    if seen < MAPS_FROM:
        return (
            f"No map is drawn: {seen} classes had training images, and with fewer than {MAPS_FROM} a map changes too "
            "much with which classes those are."
        )
    return ""
