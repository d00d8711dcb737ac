"""The contract of a method: what a model owes the harness, and how a file under core/ makes itself known.

A method is one file. It holds the equations (its docstring), the model (a :class:`ZeroShotModel`), the recipe (a
dataclass of :func:`hp` fields, where every default stands once) and a function under :func:`method` that puts them
together. Flags, help texts, ranges and their messages come from the fields. docs/adding.md shows the smallest one.

B images · R regions · D channels · K attributes · C classes (S seen + U unseen) · V word-vector size
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.datasets.registry import DATASETS
from core.files.errors import UserError
from core.preparation import Describer

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class ClassSpace:
    """The classes a model knows: all that may be known about unseen classes is their attributes."""

    att: Tensor  # (C,K) class attributes
    seen: Tensor  # (S,) class numbers with training images
    unseen: Tensor  # (U,) class numbers without
    w2v: Tensor  # (K,V) attribute word vectors
    text: Tensor | None = None  # (C,2,E) class text embeddings: of names, of names with attributes; None: not made

    @property
    def z(self) -> Tensor:
        """(C,K) class attributes with rows of unit length."""
        return F.normalize(self.att, dim=1)


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


class ZeroShotModel(nn.Module, ABC):
    """Scores classes it has no training image of. All state that must survive a checkpoint is a parameter or a buffer.

    ``gamma`` is the model's own calibration, added to the scores of unseen classes where none was validated
    (``--select last``): DAZLE's margin of +1 and -1 is 2, a model without one has 0. ``of_means``: scores depend on
    regions through their mean alone; evaluation gives that as the one region, and reads an image once for all settings.
    """

    gamma: float = 0.0
    of_means: bool = False

    @abstractmethod
    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) scores of regions x (B,R,D), without any margin between seen and unseen classes."""

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Scalars of a batch x (B,R,D) with class numbers y (B,): "loss" is minimised, the others are logged."""
        raise NotImplementedError(f"{type(self).__name__} is not trained by gradient")

    def attend(self, x: Tensor) -> AttentionOutput | None:
        """Where each attribute was looked for; None for a model without attention over regions."""
        return None

    def evidence(self, x: Tensor, a: AttentionOutput | None) -> Tensor | None:
        """g (B,K) from what :meth:`attend` found: Σ_i g_i z_ci is what attributes add to class c; None: no split."""
        return None

    def resemblance(self, x: Tensor, a: AttentionOutput | None) -> tuple[Tensor, Tensor] | None:
        """h (B,S) and mixture (C,S): Σ_s h_s mixture_cs is what seen classes add to class c; None: nothing."""
        return None

    def corrections(self, x: Tensor, a: AttentionOutput | None) -> Tensor | None:
        """(B,C) what class scores hold besides these two parts; None: nothing."""
        return None

    def describer(self, space: ClassSpace) -> Describer | None:
        """What gives classes described anew the z and mixture of the two parts; None where scores do not split."""
        return None

    def describe_classes(self, classes: Tensor) -> None:
        """Fill what the model keeps of classes (A,) that were added after training, from their attributes alone."""


@dataclass(frozen=True)
class Batches:
    """How rows are drawn. An epoch is ``steps`` batches (None: as many as cover the training images once)."""

    size: int
    balanced: bool = False  # one image of each of ``size`` different classes; else every image once an epoch
    steps: int | None = None
    classes: int | None = None  # with per_class: batches of that many classes x images (drawn with replacement)
    per_class: int = 0

    def count(self, images: int) -> int:
        """Batches in an epoch over that many training images."""
        return self.steps or -(-images // self.size)

    def epoch(self, labels: np.ndarray, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """Positions in ``labels`` of each batch of one epoch."""
        steps = self.count(len(labels))
        if self.classes is None and not self.balanced:
            order = generator.permutation(len(labels))
            for step in range(steps):
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
    """One stretch of training."""

    name: str
    loss: Callable[[Tensor, Tensor], Losses]  # usually the model's
    optimizer: torch.optim.Optimizer
    batches: Batches
    epochs: int  # as planned: a learning-rate schedule runs over all of them, even where validation stops earlier
    selectable: bool = True  # validation chooses how many of its epochs are run, 0 included
    pooled: bool = False  # the loss takes (B,D) means instead of (B,R,D) regions
    lr_at: Callable[[float], float] | None = None  # learning rate after that many epochs (a fraction within one)
    after_epoch: Callable[[], None] | None = None
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
    begin: Callable[[Images], None] | None = None
    finish: Callable[[Images], None] | None = None
    grid: tuple[dict[str, float], ...] = ()
    set_params: Callable[[dict[str, float]], None] | None = None
    tune: Callable[[Images], dict[str, float]] | None = None
    diagnose: Callable[[Images, Images], dict[str, float]] | None = None


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Build a model from ``seed`` without touching the caller's random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def hp(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    within: tuple[float, float] | None = None,
    flag: bool = True,
) -> Any:
    """A field of a recipe: its default, its help text and the range it must lie in. ``flag`` False: it has no flag."""
    metadata = {"help": help, "above": above, "at_least": at_least, "below": below, "within": within, "flag": flag}
    return field(default=default, metadata=metadata)


def flag_of(name: str) -> str:
    """weight_decay -> --weight-decay"""
    return f"--{name.replace('_', '-')}"


def range_of(f: Field[Any]) -> str:
    """The range of a field in words; empty where any value of its type will do."""
    m, words = f.metadata, []
    if m.get("within") is not None:
        words.append(f"between {m['within'][0]:g} and {m['within'][1]:g}")
    for key, word in (("above", "above"), ("at_least", "at least"), ("below", "below")):
        if m.get(key) is not None:
            words.append(f"{word} {m[key]:g}")
    return " and ".join(words)


def check_value(f: Field[Any], value: Any) -> None:
    """Refuse a value outside its field's range.

    Raises:
        UserError: with the flag, the value and the range.
    """
    if value is None or isinstance(value, bool | str):
        return
    low, high = (m := f.metadata).get("within") or (-math.inf, math.inf)
    inside = math.isfinite(value) and low <= value <= high and (m.get("at_least") is None or value >= m["at_least"])
    inside = inside and (m.get("above") is None or value > m["above"])
    inside = inside and (m.get("below") is None or value < m["below"])
    if not inside:
        raise UserError(f"{flag_of(f.name)} {value}: {f.metadata['help']} must be {range_of(f) or 'a finite number'}")


def parse_value(recipe: type[Any], name: str, text: str) -> Any:
    """What a user typed for a field of a recipe, in its type and range.

    Raises:
        UserError: with the flag, the text and what was expected.
    """
    hint = typing.get_type_hints(recipe)[name]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    (kind,) = (o for o in options if o is not type(None))
    optional = len(options) > 1
    if optional and text.lower() == "none":
        return None
    if kind is bool:
        known = dict.fromkeys(("1", "on", "true", "yes"), True) | dict.fromkeys(("0", "off", "false", "no"), False)
        if text.lower() not in known:
            raise UserError(f"{flag_of(name)} {text}: on or off is needed")
        return known[text.lower()]
    try:
        value = kind(text)
    except ValueError:
        word = ("a whole number" if kind is int else "a number") + " is needed" + (" (or none)" if optional else "")
        raise UserError(f"{flag_of(name)} {text}: {word}") from None
    check_value(next(f for f in fields(recipe) if f.name == name), value)
    return value


Build = Callable[[Any, ClassSpace, tuple[int, int], int, int], Method]


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A method as the harness knows it."""

    name: str
    recipes: Mapping[str, Any]  # by data set; "*" serves all others
    build: Build
    file: Path
    deviations: str = ""  # from what was published, for the footer of its tables
    given_preparation: bool = False  # a baseline that is given vsmr's inputs
    needs_text: bool = False  # takes class text embeddings, and features of the model that made them

    @property
    def recipe_type(self) -> type[Any]:
        return type(self.recipes["*"])

    def recipe(self, dataset: str) -> Any:
        """The settings on a data set."""
        return self.recipes.get(dataset, self.recipes["*"])


def epochs_of(recipe: Any) -> int:
    """Epochs of the phase whose length validation chooses, as the recipe plans it; 0 for a closed form."""
    return int(getattr(recipe, "epochs", 0))


_REGISTRY: dict[str, Registered] = {}


def method(
    name: str,
    *,
    recipes: Mapping[str, Any],
    deviations: str = "",
    given_preparation: bool = False,
    needs_text: bool = False,
) -> Callable[[Build], Build]:
    """Register ``build(recipe, space, shape (R,D), seed, epochs) -> Method`` under a name.

    Args:
        recipes: data set -> recipe; "*" is needed, it serves data sets nobody has heard of.
        deviations: where the method differs from what was published; printed below its tables.
        given_preparation: it is a baseline that is given vsmr's inputs (core/preparation.py).
        needs_text: it takes ``space.text``; it is run where it is named, not where all methods are.

    Raises:
        UserError: at import, with the file: another method has the name, no recipe for "*", a recipe for a data set
            that is not registered, recipes of several types, a field without :func:`hp`, a default out of its range.
    """

    def register(build: Build) -> Build:
        file = Path(inspect.getfile(build)).resolve()
        where = f"{file}, method {name!r}"
        known = _REGISTRY.get(name)
        if known is not None and (known.file, known.build.__qualname__) != (file, build.__qualname__):
            raise UserError(f"{where}: {known.file} has a method of that name already; choose another name")
        if "*" not in recipes:
            raise UserError(f'{where}: recipes lacks "*", the recipe for data sets that are not named')
        if strangers := [d for d in recipes if d != "*" and d not in DATASETS]:
            raise UserError(f"{where}: a recipe for {strangers[0]!r}, which is no registered data set")
        if len({type(r) for r in recipes.values()}) != 1 or not is_dataclass(recipes["*"]):
            raise UserError(f"{where}: the recipes must be of one dataclass")
        for dataset, recipe in recipes.items():
            for f in fields(recipe):
                if "help" not in f.metadata or f.default is MISSING:
                    raise UserError(f"{where}: the field {f.name!r} of {type(recipe).__name__} must be made with hp()")
                try:
                    check_value(f, getattr(recipe, f.name))
                except UserError as error:
                    raise UserError(f"{where}, recipe of {dataset}: {error}") from None
        _REGISTRY[name] = Registered(
            name=name,
            recipes=dict(recipes),
            build=build,
            file=file,
            deviations=deviations,
            given_preparation=given_preparation,
            needs_text=needs_text,
        )
        return build

    return register


def methods() -> dict[str, Registered]:
    """Every method by name, the headline first. Each file directly under core/ is imported, which registers it.

    Raises:
        UserError: a file there defines a model and registers no method.
    """
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem == "__init__":
            continue
        module = importlib.import_module(f"core.{path.stem}")
        own = [o for o in vars(module).values() if inspect.isclass(o) and o.__module__ == module.__name__]
        models = [o for o in own if issubclass(o, ZeroShotModel) and not inspect.isabstract(o)]
        if models and all(r.file != path.resolve() for r in _REGISTRY.values()):
            raise UserError(f"{path} defines a model but registers no method: put @method(...) above its build")
    order = sorted(_REGISTRY, key=lambda name: (name != "vsmr", _REGISTRY[name].given_preparation, name))
    return {name: _REGISTRY[name] for name in order}


def find_method(name: str) -> Registered:
    """The method of that name.

    Raises:
        UserError: there is none; names those there are.
    """
    known = methods()
    if name not in known:
        raise UserError(f"no method {name!r}; there are {', '.join(known)}")
    return known[name]


def with_settings(recipe: Any, settings: Mapping[str, Any]) -> Any:
    """The recipe with some fields replaced, each within its range."""
    for f in fields(recipe):
        if f.name in settings:
            check_value(f, settings[f.name])
    return replace(recipe, **settings)
