"""The contract of a method: what a model owes the harness, and how a file under core/ makes itself known.

A method is one file. It holds the equations (its docstring), the model (a :class:`ZeroShotModel`), the recipe (a
dataclass of :func:`hp` fields, where every default stands once) and a function under :func:`method` that puts them
together. Flags, help texts, ranges and their messages come from the fields (core/fields.py); core/methods.py names the
files. docs/adding.md shows the smallest one.

B images · R regions · D channels · K attributes · C classes (S seen + U unseen) · V word-vector size
"""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.datasets.registry import DATASETS
from core.fields import hp as hp  # part of the contract, as with_settings is
from core.fields import with_settings as with_settings
from core.files.errors import UserError
from core.preparation import ClassEncoder, prepared_attributes

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class ClassSpace:
    """The classes a model knows: all that may be known about unseen classes is their attributes."""

    att: Tensor  # (C,K) class attributes
    seen: Tensor  # (S,) class numbers with training images
    unseen: Tensor  # (U,) class numbers without
    w2v: Tensor  # (K,V) attribute word vectors
    text: Tensor | None = None  # (C,2,E) class text embeddings: of names, of names with attributes; None: not made
    questions: Tensor | None = None  # (K,) what each attribute answers, -1: what no other does; None: none is known

    @property
    def z(self) -> Tensor:
        """(C,K) class attributes with rows of unit length."""
        return F.normalize(self.att, dim=1)

    @property
    def seen_index(self) -> Tensor:
        """(C,) place of a seen class among the seen ones, -1 of an unseen one."""
        index = torch.full((len(self.att),), -1, dtype=torch.long, device=self.seen.device)
        index[self.seen] = torch.arange(len(self.seen), device=self.seen.device)
        return index


class Images(Protocol):
    """Images of one part of a fold, always in the same order, on the model's device."""

    @property
    def labels(self) -> Tensor: ...  # (N,) class numbers

    def pooled(self) -> Tensor:
        """(N,D) mean of each image's unit regions."""

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """x (n,R,D) unit regions and y (n,) labels of all images, a block at a time."""

    def region_norm(self) -> float:
        """Mean length of the regions before they were made unit vectors."""


@dataclass(frozen=True)
class AttentionOutput:
    """What the attention found in a batch."""

    theta: Tensor  # (B,R,K) region weights, sum to 1 over R
    w: Tensor  # (B,K) attribute weights in (0,1)
    e: Tensor | None  # (B,K) attribute scores
    ev: Tensor | None = None  # (B,R,K) evidence: its sum over regions is the model's evidence, each a part of the score


class ZeroShotModel(nn.Module, ABC):
    """Scores classes it has no training image of. All state that must survive a checkpoint is a parameter or a buffer.

    ``gamma`` is the model's own calibration, added to the scores of unseen classes where none was validated
    (``--select last``): DAZLE's margin of +1 and -1 is 2, a model without one has 0. With ``uses_pooled_features``
    scores depend on regions through their mean alone; evaluation gives that as the one region, and reads an image once
    for all settings.
    """

    gamma: float = 0.0
    uses_pooled_features: bool = False
    z: Tensor  # (C,K) class attributes as the model takes them

    @abstractmethod
    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) scores of regions x (B,R,D), without any margin between seen and unseen classes."""

    def attend(self, x: Tensor) -> AttentionOutput | None:
        """Where each attribute was looked for; None for a model without attention over regions."""
        return None

    def evidence(self, x: Tensor, a: AttentionOutput | None) -> Tensor | None:
        """g (B,K) from what :meth:`attend` found: Σ_i g_i z_ci is what attributes add to class c; None: no split."""
        return None

    def class_attributes(self) -> Tensor:
        """z (C,K) that :meth:`evidence` is multiplied with."""
        return self.z

    def corrections(self, x: Tensor, a: AttentionOutput | None) -> dict[str, Tensor]:
        """(B,C) each, by name: what class scores hold besides their attributes."""
        return {}

    def class_encoder(self, space: ClassSpace) -> ClassEncoder | None:
        """What scores classes described anew; None where scores do not split."""
        return None

    def likeness(self, a: AttentionOutput | None) -> Tensor | None:
        """(B,d), whose product with the unit mean of a class's photographs is what these say; None: nothing."""
        return None


class AttributeModel(ZeroShotModel):
    """Class scores are what an image says of attributes times the class's: s_c = Σ_i :meth:`evidence`_i z_ci."""

    def __init__(self, space: ClassSpace, *, prepared: bool = False) -> None:
        super().__init__()
        self.prepared = prepared  # class attributes as vsmr takes them
        z = space.z if not prepared else prepared_attributes(space.att, space.seen, questions=space.questions)
        self.z = nn.Buffer(z)  # (C,K)
        self.seen = nn.Buffer(space.seen)
        self.place = nn.Buffer(space.seen_index)  # (C,)

    def class_scores(self, x: Tensor) -> Tensor:
        g = self.evidence(x, self.attend(x))
        assert g is not None
        return g @ self.z.T

    def class_encoder(self, space: ClassSpace) -> ClassEncoder | None:
        own = self.prepared
        return ClassEncoder.of(space.att, space.seen, root=own, centre=own, questions=space.questions)


@dataclass(frozen=True)
class Batches:
    """How rows are drawn. An epoch is ``steps`` batches; None: as many as cover the images ``passes`` times."""

    size: int
    passes: int = 1
    balanced: bool = False  # one image of each of ``size`` different classes; else every image once an epoch
    steps: int | None = None
    classes: int | None = None  # with per_class: batches of that many classes x images (drawn with replacement)
    per_class: int = 0

    def count(self, images: int) -> int:
        """Batches in an epoch over that many training images."""
        return self.steps or self.passes * -(-images // self.size)

    def epoch(self, labels: np.ndarray, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """Positions in ``labels`` of each batch of one epoch."""
        steps = self.count(len(labels))
        if self.classes is None and not self.balanced:
            for _ in range(self.passes):
                order = generator.permutation(len(labels))
                for step in range(steps // self.passes):
                    yield order[step * self.size : (step + 1) * self.size]
            return
        grouped = np.argsort(labels, kind="stable")
        present, starts, counts = np.unique(labels[grouped], return_index=True, return_counts=True)
        for _ in range(steps):
            drawn = generator.permutation(len(present))[: self.classes or self.size]
            if self.classes is not None:
                drawn = np.repeat(drawn, self.per_class)
            yield grouped[starts[drawn] + (generator.random(len(drawn)) * counts[drawn]).astype(np.int64)]


@dataclass(kw_only=True)
class Phase:
    name: str
    # of a batch x (B,R,D) with class numbers y (B,): "loss" is minimised, other scalars are logged; usually the model's
    loss: Callable[[Tensor, Tensor], Losses]
    optimizer: torch.optim.Optimizer
    others: tuple[torch.optim.Optimizer, ...] = ()  # of several players: loss then makes the steps of all itself
    batches: Batches
    epochs: int  # as planned: a learning-rate schedule runs over all of them, even where validation stops earlier
    selectable: bool = True  # validation chooses how many of its epochs are run, 0 included
    pooled: bool = False  # the loss takes (B,D) means instead of (B,R,D) regions
    lr_at: Callable[[float], float] | None = None  # learning rate after that many epochs (a fraction within one)
    after_epoch: Callable[[], object] | None = None
    # called with the training images when the phase begins, or is taken up again: what it is trained on in their place,
    # x (M,·) and class numbers (M,); it must follow from the weights, the images and a generator of its own
    made: Callable[[Images], tuple[Tensor, Tensor]] | None = None


@dataclass(kw_only=True)
class Method:
    """A model, how it is trained, and its hooks. Hooks are never told about test images, ``diagnose`` excepted.

    begin(training images)        once before the first step, on a model in training mode. A resumed run skips it: what
                                  it computes must be in the model's state_dict.
    finish(training images)       before every evaluation, in evaluation mode (class prototypes and the like); the same
                                  weights must always give the same result.
    grid, set_params              settings (fields of the recipe) that validation chooses among without training again.
    tune(unseen-class images)     before an evaluation on the validation fold: returns fields of the recipe chosen from
                                  validation images of classes that were not trained on, and applies them.
    diagnose(seen, unseen)        a procedure on the test images that is printed under its own label, never as a result.
    """

    model: ZeroShotModel
    phases: list[Phase]
    begin: Callable[[Images], object] | None = None
    finish: Callable[[Images], object] | None = None
    grid: tuple[dict[str, float], ...] = ()
    set_params: Callable[[dict[str, float]], object] | None = None
    tune: Callable[[Images], dict[str, float]] | None = None
    diagnose: Callable[[Images, Images], dict[str, float]] | None = None


Build = Callable[[Any, ClassSpace, tuple[int, int], int, int], Method]


@dataclass(frozen=True, kw_only=True)
class Registered:
    name: str
    recipes: Mapping[str, Any]  # by data set; "*" serves all others
    build: Build
    file: Path
    deviations: str = ""  # from what was published, for the footer of its tables
    needs_text: bool = False  # takes class text embeddings, and features of the model that made them

    @property
    def recipe_type(self) -> type[Any]:
        return type(self.recipes["*"])

    def recipe(self, dataset: str) -> Any:
        return self.recipes.get(dataset, self.recipes["*"])


def epochs_of(recipe: Any) -> int:
    """Epochs of the phase whose length validation chooses, as the recipe plans it; 0 for a closed form."""
    return int(getattr(recipe, "epochs", 0))


REGISTRY: dict[str, Registered] = {}


def method(name: str, *, recipes: Mapping[str, Any], **about: Any) -> Callable[[Build], Build]:
    """Register ``build(recipe, space, shape (R,D), seed, epochs) -> Method`` under a name, with its ``recipes`` by data
    set ("*" serves all others) and what else :class:`Registered` holds.

    Whatever it draws comes from torch's own numbers, begun with the seed; the caller's stay as they were. Refused is
    what would put other numbers under a name: one that another method has, a recipe for a data set that is not there.
    """

    def register(build: Build) -> Build:
        file, known = Path(inspect.getfile(build)).resolve(), REGISTRY.get(name)
        if known is not None and (known.file, known.build.__qualname__) != (file, build.__qualname__):
            raise UserError(f"{file}: {known.file} has a method {name!r} already; choose another name")
        if strangers := recipes.keys() - DATASETS.keys() - {"*"}:
            raise UserError(f"{file}: {name!r} has a recipe for {min(strangers)!r}, which is no registered data set")

        @functools.wraps(build)
        def seeded(recipe: Any, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return build(recipe, space, shape, seed, epochs)

        REGISTRY[name] = Registered(name=name, recipes=dict(recipes), build=seeded, file=file, **about)
        return build

    return register
