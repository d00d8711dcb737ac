"""How sure the answers to a batch of images are: probabilities, none of these, and the group where the class is unsure.

B images · C classes
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from core.inference.explain import Explanation
from core.inference.trained import Trained
from core.training.certainty import best_rival, none_of_these, probabilities

NONE_RATE = 0.1  # of photographs of a model's classes that may be called none of these
UNSURE = 0.5  # probability of the first class below which the group is the answer


@dataclass(frozen=True, kw_only=True)
class Sure:
    """Of a run without validation all is None."""

    p: np.ndarray | None = None  # (B,C)
    is_none: np.ndarray | None = None  # (B,)
    level: float | None = None  # core/training/certainty.py
    groups: list[str]  # (C,)

    @classmethod
    def of(cls, trained: Trained, found: Explanation, offered: np.ndarray, none_rate: float) -> Self:
        """Args: offered: scores (B,C) with γ, -inf where a class is no candidate."""
        groups = [*trained.groups, *[""] * (offered.shape[1] - len(trained.groups))]
        if not trained.certainty:
            return cls(groups=groups)
        unseen = trained.space.unseen.cpu().numpy()
        p, is_none = probabilities(trained.certainty, offered, unseen), None
        if none_rate:
            top = offered.argmax(axis=1)
            measures = [found.scores.cpu().numpy()[np.arange(len(top)), top]]
            if (rival := rival_of(trained, found)) is not None:
                measures.append(measures[0] - rival)
            is_none = none_of_these(trained.certainty, measures, np.isin(top, unseen).astype(int), none_rate)
        return cls(p=p, is_none=is_none, level=trained.certainty.get("level"), groups=groups)

    def likely(self, image: int) -> list[int] | None:
        """Class numbers, the likeliest first, among which the right one is 9 times in 10."""
        if self.p is None or self.level is None:
            return None
        order = np.argsort(-self.p[image], kind="stable")
        p = self.p[image][order]
        return [int(c) for c in order[p.cumsum() - p <= self.level]]

    def group(self, image: int) -> tuple[str, float] | None:
        """The group of the highest summed probability, where no class is likelier than not."""
        if self.p is None or self.p[image].max() >= UNSURE:
            return None
        sums: dict[str, float] = {}
        for name, p in zip(self.groups, self.p[image].tolist(), strict=True):
            sums[name] = sums.get(name, 0.0) + p
        sums.pop("", None)
        return max(sums.items(), key=lambda item: item[1]) if sums else None


def rival_of(trained: Trained, found: Explanation) -> np.ndarray | None:
    """(B,) the best score of a virtual rival, without γ."""
    return None if found.g is None or trained.rivals is None else best_rival(found.g, trained.rivals)
