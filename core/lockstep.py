"""Runs as coroutines that ask for one minibatch step at a time, and the driver that does it, for one run or several.

Small models leave a GPU idle between kernels, so S seeds that take their steps together cost far less than S times one.
A run yields a :class:`Step` and goes on when its gradients are there. Steps of equal shape are done as one: their
parameters are stacked along a new first dimension S, one vectorised forward and backward pass serves all, and each
run's own optimizer moves its own parameters. Runs need not be in the same epoch, nor train on as many images.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

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
        if getattr(self.model, "steps_alone", False) or draws(self.model):
            return None
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        shapes = tuple((name, tuple(t.shape), t.requires_grad) for name, t in tensors.items())
        return type(self.model), getattr(self.loss, "__name__", ""), tuple(self.x.shape), self.low, shapes


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

    def advance(number: int, losses: Losses | None) -> None:
        try:
            waiting[number] = runs[number].send(losses) if losses else next(runs[number])
        except StopIteration as end:
            results[number] = end.value

    try:
        for number in range(len(runs)):
            advance(number, None)
        while waiting:
            groups: dict[Any, list[int]] = defaultdict(list)
            for number, step in waiting.items():
                key = step.stackable() if len(runs) > 1 else None
                groups[number if key is None else key].append(number)
            for numbers in groups.values():
                steps = [waiting.pop(number) for number in numbers]
                for number, losses in zip(numbers, gradients(steps), strict=True):
                    advance(number, losses)
    finally:
        for run in runs:
            run.close()  # releases what an unfinished run holds
    return [results[number] for number in range(len(runs))]


def gradients(steps: Sequence[Step]) -> list[Losses]:
    """Leave each step's gradients in its model's parameters; returns the detached losses of each."""
    first = steps[0]
    if len(steps) == 1:
        with torch.autocast(first.x.device.type, first.low, enabled=first.low is not None):
            losses = first.loss(first.x, first.y)
        losses["loss"].backward()
        return [{key: value.detach() for key, value in losses.items()}]
    models = [step.model for step in steps]
    stacked, buffers = _stacked(models)
    holder = _LossOf(first.model, first.loss)

    def one(parameters: Losses, buffers: Losses, x: Tensor, y: Tensor) -> Losses:
        return functional_call(holder, (parameters, buffers), (x, y))

    x, y = torch.stack([step.x for step in steps]), torch.stack([step.y for step in steps])  # (S,B,R,D), (S,B)
    with torch.autocast(x.device.type, first.low, enabled=first.low is not None):
        losses = vmap(one)(stacked, buffers, x, y)
    losses["loss"].sum().backward()
    written = getattr(first.model, "written_by_loss", ())
    for s, model in enumerate(models):
        for name, parameter in model.named_parameters():
            grad = stacked[f"model.{name}"].grad
            parameter.grad = None if grad is None else grad[s]
        for name in written:
            model.get_buffer(name).copy_(buffers[f"model.{name}"][s])
    return [{key: value[s].detach() for key, value in losses.items()} for s in range(len(steps))]


class _LossOf(nn.Module):
    """What functional_call calls: the loss of a model whose tensors it has replaced."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, x: Tensor, y: Tensor) -> Losses:
        return self.loss(x, y)


def _stacked(models: list[nn.Module]) -> tuple[Losses, Losses]:
    """Parameters and buffers of all models, each (S, ...) and named as in :class:`_LossOf`."""
    parameters, buffers = stack_module_state(models)
    return {f"model.{k}": v for k, v in parameters.items()}, {f"model.{k}": v for k, v in buffers.items()}
