"""What a run is: two runs of equal identity give equal numbers (on a CPU, with the same versions)."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import core
from core.experiments.inputs import Inputs
from core.method import epochs_of
from core.methods import find_method

ROOT = Path(core.__file__).resolve().parent
# Read once, beside the import of the code itself: a file that is edited while a run goes on is not what the run ran.
SOURCES = {path: path.read_bytes() for path in sorted(ROOT.rglob("*.py"))}
# A run is what experiments/run.py imports, directly or not. Of that these cannot change a number: they word errors,
# write files, or make what has a digest of its own (features, vectors, names). A file nobody thought of is counted.
NUMBERLESS = (
    *("files/errors.py", "files/atomic.py", "files/kinds.py", "features/settings.py", "features/finetuned.py"),
    *("datasets/names.py", "datasets/text_vectors.py", "fields.py", "methods.py"),
)


@functools.cache
def code_digest() -> str:
    """Version, and a digest of the modules that a run of any method passes through."""
    return f"{core.__version__}-{_sha256(_imported_from(ROOT / 'experiments/run.py'))}"


@functools.cache
def method_digest(name: str) -> str:
    """Digest of a method's file and of what it imports (DAZLE's attention, for most) besides the code of any run."""
    return _sha256(_imported_from(find_method(name).file) - _imported_from(ROOT / "experiments/run.py"))


@functools.cache
def _imported_from(start: Path) -> frozenset[Path]:
    """The file, and every file of core/ that it imports, directly or not, wherever in a file the import stands."""
    found: set[Path] = set()
    waiting = [start]
    while waiting:
        if (path := waiting.pop()) in found | {ROOT / name for name in NUMBERLESS}:
            continue
        found.add(path)
        names: set[str] = set()
        for node in ast.walk(ast.parse(SOURCES[path] if path in SOURCES else path.read_bytes())):
            if isinstance(node, ast.ImportFrom):
                names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        waiting += {ROOT.parent / f"{name.replace('.', '/')}.py" for name in names} & SOURCES.keys()
    return frozenset(found)


def _sha256(files: frozenset[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update((path.relative_to(ROOT).as_posix() if path in SOURCES else path.name).encode())
        digest.update(SOURCES[path] if path in SOURCES else path.read_bytes())
    return digest.hexdigest()[:12]


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
    names_sha256: str  # of attributes and classes: what reasons, pages and descriptions say
    precision: str  # of the products in a training step
    gamma_splits: int  # validation splits whose γ is averaged
    code: str
    method_code: str


def run_config(
    inputs: Inputs, method: str, recipe: Any, *, seed: int, select: str = "val", epochs: int | None = None,
    precision: str = "float32", gamma_splits: int = 1,
) -> RunConfig:  # fmt: skip
    """The identity of a run of a method on inputs; ``epochs`` None: the recipe's."""
    names = json.dumps([inputs.metadata.class_names, inputs.attribute_names])
    digests = {name: getattr(inputs, name) for name in ("features_sha256", "vectors_sha256", "split_sha256")}
    return RunConfig(
        dataset=inputs.dataset,
        method=method,
        seed=seed,
        select=select,
        epochs=epochs_of(recipe) if epochs is None else epochs,
        recipe=asdict(recipe),
        features=dict(inputs.provenance),
        **digests,
        names_sha256=hashlib.sha256(names.encode()).hexdigest(),
        precision=precision,
        gamma_splits=gamma_splits if select == "val" else 1,
        code=code_digest(),
        method_code=method_digest(method),
    )
