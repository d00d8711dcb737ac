"""What every benchmark shares: rows of the table, interleaved timing, peak memory, problems of a shape."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference import ReferenceDAZLE
from core.DAZLE import DAZLE
from core.method import ClassSpace, Method, epochs_of
from core.methods import find_method
from core.training.folds import Fold

ROOT = Path(__file__).resolve().parent.parent
Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table; empty where a column does not apply."""

    what: str
    reference: str = ""
    ours: str = ""
    ratio: str = ""
    memory: str = ""


@dataclass(frozen=True)
class Shape:
    """A training problem of a data set's size."""

    name: str
    K: int
    C: int
    unseen: int
    B: int = 50
    R: int = 49
    D: int = 2048
    V: int = 300

    def __str__(self) -> str:
        return f"{self.name} K={self.K} C={self.C} R={self.R}"


SHAPES = {s.name: s for s in (Shape("CUB", 312, 200, 50), Shape("AWA2", 85, 50, 10), Shape("SUN", 102, 717, 72))}
TRIAL = {name: replace(shape, B=8, R=9, D=64, V=16) for name, shape in SHAPES.items()}


def fold_of(shape: Shape, images: int = 0) -> Fold:
    """Random classes of a shape; ``images`` training rows, none to measure on."""
    rng = np.random.default_rng(0)
    seen = np.arange(shape.C - shape.unseen)
    space = ClassSpace(
        torch.from_numpy(rng.random((shape.C, shape.K), dtype=np.float32)),
        torch.from_numpy(seen),
        torch.arange(len(seen), shape.C),
        torch.from_numpy(rng.standard_normal((shape.K, shape.V), dtype=np.float32)),
    )
    none = np.empty(0, dtype=np.int64)
    return Fold(
        space=space,
        train_rows=np.arange(images),
        train_labels=rng.integers(len(seen), size=images),
        seen_rows=none,
        seen_labels=none,
        unseen_rows=none,
        unseen_labels=none,
    )


class DrawnImages:
    """Two random images of every seen class, for what a method computes before its first step.

    The regions of an image are all alike: none of this is timed.
    """

    def __init__(self, shape: Shape, device: str = "cpu") -> None:
        self.shape = shape
        self.labels = torch.arange(shape.C - shape.unseen, device=device).repeat(2)  # (N,)
        means = torch.randn(len(self.labels), shape.D, generator=torch.Generator().manual_seed(2))
        self._means = F.normalize(means, dim=1).to(device)  # (N,D)

    def pooled(self) -> Tensor:
        return self._means

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        for means, y in zip(self._means.split(self.shape.B), self.labels.split(self.shape.B), strict=True):
            yield means.unsqueeze(1).expand(-1, self.shape.R, -1), y

    def region_norm(self) -> float:
        return 1.0


def batch_of(shape: Shape, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """x (B,R,D) of unit regions and y (B,) seen classes."""
    generator = torch.Generator().manual_seed(1)
    x = F.normalize(torch.randn(shape.B, shape.R, shape.D, generator=generator), dim=2)
    y = torch.randint(shape.C - shape.unseen, (shape.B,), generator=generator)
    return x.to(device), y.to(device)


def our_method(shape: Shape, device: str = "cpu", method: str = "dazle", seed: int = 0) -> Method:
    """core's model with the optimiser its recipe for CUB gives it, ready for its first step."""
    registered = find_method(method)
    recipe = registered.recipe("CUB")
    made = registered.build(recipe, fold_of(shape).space, (shape.R, shape.D), seed, epochs_of(recipe))
    made.model.to(device)
    if made.begin:
        made.begin(DrawnImages(shape, device))
    return made


def step_of(
    form: str,
    shape: Shape,
    device: str = "cpu",
    autocast: torch.dtype | None = None,
    warm_optimizer: bool = False,
) -> Callable[[], Tensor]:
    """One training step (forward, loss, backward, optimiser) of a method or of the "reference", on a fixed batch.

    The reference is the textbook form of "dazle", its parameters a copy. With ``warm_optimizer`` the optimiser's state
    is allocated before the first step.
    """
    method = our_method(shape, device, "dazle" if form == "reference" else form)
    model, phase = method.model, method.phases[0]
    loss, optimizer = phase.loss, phase.optimizer
    if form == "reference":
        assert isinstance(model, DAZLE)
        recipe = model.recipe
        reference = ReferenceDAZLE(model).to(device)
        loss = reference.loss
        optimizer = torch.optim.RMSprop(
            reference.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
        )
    if warm_optimizer:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    x, y = batch_of(shape, device)
    kind = torch.device(device).type

    def step() -> Tensor:
        with torch.autocast(kind, autocast or torch.bfloat16, enabled=autocast is not None):
            value = loss(x, y)["loss"]
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def interleaved(works: Mapping[str, Work], repeats: int, wait: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Median seconds of each, run A B A B ... after two rounds of warm-up; ``wait`` ends asynchronous work."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 2):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            wait()
            if turn >= 2:
                taken[name].append(time.perf_counter() - started)
    return {name: median(times) for name, times in taken.items()}


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    return any(flag in _cpu("flags", "Features").split() for flag in ("avx512_bf16", "amx_bf16", "bf16"))


class PeakMemory:
    """Bytes by which the resident memory of this process rose above its start, at most, within the block (Linux)."""

    rise = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.rise = _status("VmHWM") - self._before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


# glibc otherwise keeps freed tensors for reuse, and what a step adds would depend on what was freed before it
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def in_fresh_process(module: str, *flags: object, environment: Mapping[str, str] | None = None) -> str:
    """Last line that ``python -m benchmarks.<module> flags`` prints; ``environment`` is added to this one's."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, flags)]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=ROOT, env=variables, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip().splitlines()[-1]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds * 1e3:.0f} ms"


def megabytes(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


def against(what: str, reference: float, ours: float, memory: str = "") -> Row:
    """A row of two times in seconds; the ratio is how many times faster ours is."""
    return Row(what, milliseconds(reference), milliseconds(ours), f"{reference / ours:.2f}x", memory)


def markdown(rows: Sequence[Row]) -> str:
    """The rows as one Markdown table."""
    names = [field.name for field in fields(Row)]
    lines = [names, ["---"] * len(names), *(list(asdict(row).values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def environment() -> str:
    """Hardware and versions, one line."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return (
        f"{_cpu('model name', 'CPU implementer')}, {torch.get_num_threads()} threads, {memory:.0f} GiB, {gpu}; "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"torchvision {version('torchvision')}, NumPy {np.__version__}"
    )


def _cpu(*keys: str) -> str:
    """First /proc/cpuinfo entry of one of these names."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in keys:
            return value.strip()
    return "unknown CPU"


def lacks_gpu(device: str) -> bool:
    """Whether there is nothing to measure here, which is said: a GPU was asked for and none is there."""
    lacks = device.startswith("cuda") and not torch.cuda.is_available()
    if lacks:
        print("no GPU: this PyTorch sees no CUDA device, so there is nothing to measure here")
    return lacks


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--trial", action="store_true", help="tiny sizes: does it run? The figures mean nothing")
    return made


def report(rows: Sequence[Row]) -> int:
    """Print the table, and the machine it was measured on."""
    print(markdown(rows), f"\n\n{environment()}", sep="")
    return 0
