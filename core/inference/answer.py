"""What a model says of one picture. Without torch: ``import core`` has these names at once."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """A class and its score with γ."""

    name: str
    side: str  # "seen" | "unseen"
    score: float
    probability: float | None = None  # among the classes offered; None: the run was not validated, and cannot say


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of one image; ``error`` is why it cannot, and the rest is empty then."""

    image: str  # its path; of a picture in memory "image" and its number among those that were given
    classes: tuple[ClassScore, ...] = ()  # best first
    margin: float | None = None  # by how much the first is ahead of the second; None: there was one candidate
    none: bool | None = None  # whether it is none of these classes; None: the run cannot say, or was not asked
    likely: tuple[str, ...] | None = None  # classes among which it is 9 times in 10; None: the run cannot say
    group: tuple[str, float] | None = None  # where the class is unsure: the likeliest group, and its probability
    attributes: tuple[tuple[str, float], ...] = ()  # what spoke most for the first class, in words, and its points
    against: tuple[tuple[str, float], ...] = ()  # and what most against it
    error: str = ""

    @property
    def name(self) -> str:
        return self.classes[0].name if self.classes else ""
