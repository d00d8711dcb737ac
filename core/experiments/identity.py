"""What a run is: two runs of equal identity give equal numbers (on a CPU, with the same versions)."""

from __future__ import annotations

import ast
import functools
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import core
from core.experiments.inputs import Inputs
from core.method import epochs_of, find_method

ROOT = Path(core.__file__).resolve().parent
# Modules that cannot change a number of a run. The list names what may be left out, so that a file nobody thought of
# is counted: commands only pass on what the identity holds already, and the features have a digest of their own.
NUMBERLESS = (
    "commands",
    "reporting",
    "demo",
    "inference",
    "experiments/sweep.py",
    "experiments/engines.py",
    "experiments/planning.py",
    "experiments/statistics.py",
    "experiments/watching.py",
    "fields.py",
    "methods.py",
)


@functools.cache
def code_digest() -> str:
    """Version, and a digest of every module of core but the methods' own files and NUMBERLESS."""
    files = [p for p in sorted(ROOT.rglob("*.py")) if not _is_method(p) and not _numberless(p)]
    return f"{core.__version__}-{_sha256(files)[:12]}"


@functools.cache
def method_digest(name: str) -> str:
    """Digest of a method's file and of the method files it imports (DAZLE's attention, for most)."""
    files, waiting = set(), [find_method(name).file]
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += [p for p in _imported(path) if _is_method(p)]
    return _sha256(sorted(files))[:12]


def _is_method(path: Path) -> bool:
    return path.parent == ROOT and path.stem not in ("__init__", "method", "losses", "preparation")


def _numberless(path: Path) -> bool:
    relative = path.relative_to(ROOT).as_posix()
    return any(relative == entry or relative.startswith(f"{entry}/") for entry in NUMBERLESS)


def _imported(path: Path) -> list[Path]:
    """Files of core/ that a file names in its imports, wherever in it they stand."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    below = [n.removeprefix("core.") for n in names if n.startswith("core.")]
    return [p for n in below if (p := ROOT / f"{n.replace('.', '/')}.py").is_file()]


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update((path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run's identity."""

    dataset: str
    method: str
    seed: int
    select: str  # "val" | "last"
    epochs: int  # of the selectable phase: the most (val) or the number (last)
    recipe: dict[str, Any]
    features: dict[str, Any]  # provenance of the feature file
    features_sha256: str
    vectors_sha256: str
    split_sha256: str
    precision: str  # of the products in a training step
    gamma_splits: int  # validation splits whose γ is averaged
    code: str
    method_code: str


def run_config(
    inputs: Inputs, method: str, recipe: Any, *, seed: int, select: str = "val", epochs: int | None = None,
    precision: str = "float32", gamma_splits: int = 1,
) -> RunConfig:  # fmt: skip
    """The identity of a run of a method on inputs; ``epochs`` None: the recipe's."""
    return RunConfig(
        dataset=inputs.dataset,
        method=method,
        seed=seed,
        select=select,
        epochs=epochs_of(recipe) if epochs is None else epochs,
        recipe=asdict(recipe),
        features=dict(inputs.provenance),
        features_sha256=inputs.features_sha256,
        vectors_sha256=inputs.vectors_sha256,
        split_sha256=inputs.split_sha256,
        precision=precision,
        gamma_splits=gamma_splits if select == "val" else 1,
        code=code_digest(),
        method_code=method_digest(method),
    )
