"""What a run is: two runs of equal identity give equal numbers (on a CPU, with the same versions)."""

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
RUN = ROOT / "experiments/run.py"  # a run is what it imports, directly or not
# Of that these cannot change a number: they word errors, write files, or make what has a digest of its own (features,
# vectors, names). A file nobody thought of is counted.
NUMBERLESS = (
    *("files/errors.py", "files/atomic.py", "files/kinds.py", "features/settings.py", "features/weights.py"),
    *("datasets/names.py", "fields.py", "methods.py"),
)


@functools.cache
def code_digest() -> str:
    """Version, and a digest of the modules that a run of any method passes through."""
    return f"{core.__version__}-{_sha256(_imported_from(RUN))}"


@functools.cache
def method_digest(name: str, file: Path | None = None) -> str:
    """Digest of a method's (or an ensemble's) file and of what it imports besides the code of any run."""
    return _sha256(_imported_from(file or find_method(name).file) - _imported_from(RUN))


def _source(path: Path) -> bytes:
    return SOURCES[path] if path in SOURCES else path.read_bytes()  # a method may lie outside of core/


def _imported_from(start: Path) -> set[Path]:
    """The file, and every file of core/ that it imports, directly or not, wherever in a file the import stands."""
    found, waiting = set[Path](), {start}
    while waiting:
        found.add(path := waiting.pop())
        names: set[str] = set()
        for node in ast.walk(ast.parse(_source(path))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names |= {*module, *(".".join([*module, alias.name]) for alias in node.names)}
        imported = {ROOT.parent / f"{name.replace('.', '/')}.py" for name in names} & SOURCES.keys()
        waiting |= imported - found - {ROOT / name for name in NUMBERLESS}
    return found


def _sha256(files: set[Path]) -> str:
    named = {path.relative_to(ROOT).as_posix() if path in SOURCES else path.name: path for path in sorted(files)}
    return hashlib.sha256(b"".join(name.encode() + _source(path) for name, path in named.items())).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
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
    return RunConfig(
        dataset=inputs.dataset, method=method, seed=seed, select=select, recipe=asdict(recipe), precision=precision,
        epochs=epochs_of(recipe) if epochs is None else epochs, features=dict(inputs.provenance),
        features_sha256=inputs.features_sha256, vectors_sha256=inputs.vectors_sha256, split_sha256=inputs.split_sha256,
        names_sha256=hashlib.sha256(names.encode()).hexdigest(), code=code_digest(), method_code=method_digest(method),
        gamma_splits=gamma_splits if select == "val" else 1,
    )  # fmt: skip
