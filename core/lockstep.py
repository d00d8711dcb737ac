"""Runs as coroutines that ask for one minibatch step at a time, and the driver that does it, for one run or several.

Small models leave a GPU idle between kernels, so S seeds that take their steps together cost far less than S times one.
A run yields a :class:`Step` and goes on when its gradients are there. Steps of equal shape are done as one: the models'
parameters become views of common tensors with a new first dimension S, one vectorised forward and backward pass serves
all, and each run's own optimizer moves its own views. Runs need not be in the same epoch, nor train on as many images.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

Losses = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Losses]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One minibatch: the gradients of ``loss(x, y)["loss"]`` are wanted in the parameters of ``model``."""

    model: nn.Module
    loss: Loss  # a method of ``model``
    x: Tensor  # (B,R,D), or (B,D)
    y: Tensor  # (B,)
    low: torch.dtype | None  # of the products; None: float32

    def stackable(self) -> Any:
        """Steps of which this is equal can be done as one; None: this one only alone."""
        shapes = _shapes(self.model)
        return shapes and (shapes, getattr(self.loss, "__name__", ""), tuple(self.x.shape), self.low)


_SHAPES: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()  # asked for in every step


def _shapes(model: nn.Module) -> Any:
    """Equal for models that can be stacked; None for one that cannot."""
    if model not in _SHAPES:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        alone = getattr(model, "steps_alone", False) or draws(model)
        shapes = tuple((name, tuple(t.shape), t.requires_grad) for name, t in tensors.items())
        _SHAPES[model] = None if alone else (type(model), shapes)
    return _SHAPES[model]


def draws(model: nn.Module) -> bool:
    """Whether the model draws random numbers while it is trained."""
    return any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())


Run = Generator[Step, Losses, T]


def drive(runs: Sequence[Run[T]]) -> list[T]:
    """Advance all runs to their ends and return their results, in order; an error in one ends all.

    Torch's random numbers are as before afterwards, so that a run may seed them (dropout).
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        return _drive(runs)


def alone(coroutine: Callable[P, Run[T]]) -> Callable[P, T]:
    """The same as a plain function: drives one run to its end."""

    @functools.wraps(coroutine)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return drive([coroutine(*args, **kwargs)])[0]

    return call


def _drive(runs: Sequence[Run[T]]) -> list[T]:
    results: dict[int, T] = {}
    waiting: dict[int, Step] = {}
    stacks: dict[int, Stack] = {}  # the one each run's model is in now

    def stack_of(numbers: list[int], models: list[nn.Module]) -> Stack | None:
        if len(models) == 1:
            return None
        found = stacks.get(numbers[0])
        if not found or not found.holds(models) or any(stacks.get(number) is not found for number in numbers):
            found = Stack(models)
            stacks.update(dict.fromkeys(numbers, found))
        return found

    def advance(number: int, losses: Losses | None) -> None:
        try:
            waiting[number] = runs[number].send(losses) if losses else next(runs[number])
        except StopIteration as end:
            results[number] = end.value
            stacks.pop(number, None)

    try:
        for number in range(len(runs)):
            advance(number, None)
        while waiting:
            groups: dict[Any, list[int]] = defaultdict(list)
            for number, step in waiting.items():
                key = step.stackable() if len(runs) > 1 else None
                groups[number if key is None else key].append(number)
            for numbers in map(sorted, groups.values()):  # in the stack's order, however they came
                steps = [waiting.pop(number) for number in numbers]
                stack = stack_of(numbers, [step.model for step in steps])
                for number, losses in zip(numbers, gradients(steps, stack), strict=True):
                    advance(number, losses)
    finally:
        for run in runs:
            run.close()  # releases what an unfinished run holds
    return [results[number] for number in range(len(runs))]


class Stack:
    """Models of equal shape, whose parameters and buffers it makes views of common tensors (S, ...)."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._models = list(models)
        names = [name for name, _ in models[0].named_parameters()]
        self._parameters = [[m.get_parameter(name) for m in models] for name in names]
        self.parameters = {
            f"model.{name}": _common(own).requires_grad_(own[0].requires_grad)
            for name, own in zip(names, self._parameters, strict=True)
        }
        names = [name for name, _ in models[0].named_buffers()]
        self.buffers = {f"model.{name}": _common([m.get_buffer(name) for m in models]) for name in names}

    def holds(self, models: Sequence[nn.Module]) -> bool:
        """Whether it is of these models, in this order."""
        return len(models) == len(self._models) and all(a is b for a, b in zip(models, self._models, strict=True))

    def hand_out(self) -> None:
        """Give each model its share of the gradients."""
        for own, stacked in zip(self._parameters, self.parameters.values(), strict=True):
            shares = [None] * len(own) if stacked.grad is None else stacked.grad.unbind()
            stacked.grad = None
            for parameter, share in zip(own, shares, strict=True):
                parameter.grad = share


@torch.no_grad()
def _common(tensors: list[Any]) -> Tensor:
    """(S, ...) of equal tensors, which from now on are views of it."""
    stacked = torch.stack(tensors)
    for tensor, share in zip(tensors, stacked, strict=True):
        tensor.data = share
    return stacked


class _LossOf(nn.Module):
    """What functional_call calls: the loss of a model whose tensors it has replaced."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor) -> Losses:
        return self.loss(x, y)


def _precision(step: Step) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if step.low is None else torch.autocast(step.x.device.type, step.low)


def gradients(steps: Sequence[Step], stack: Stack | None = None) -> list[Losses]:
    """Leave each step's gradients in its model's parameters; returns the detached losses of each.

    Args: stack: of the steps' models, in their order (None: made here where there are several).
    """
    first = steps[0]
    if len(steps) == 1:
        with _precision(first):
            losses = first.loss(first.x, first.y)
        losses["loss"].backward()
        return [{key: value.detach() for key, value in losses.items()}]
    stack = stack or Stack([step.model for step in steps])
    holder = _LossOf(first.model, first.loss)

    def one(parameters: Losses, buffers: Losses, x: Tensor, y: Tensor) -> Losses:
        return functional_call(holder, (parameters, buffers), (x, y))

    x, y = torch.stack([step.x for step in steps]), torch.stack([step.y for step in steps])  # (S,B,R,D), (S,B)
    with _precision(first):
        losses = vmap(one)(stack.parameters, stack.buffers, x, y)
    losses["loss"].sum().backward()
    stack.hand_out()
    shares = {key: value.detach().unbind() for key, value in losses.items()}
    return [{key: share[s] for key, share in shares.items()} for s in range(len(steps))]
