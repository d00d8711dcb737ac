"""Who may import whom, how long a file may be, and what library code leaves alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 400  # lines
CONTRACT = {"core.method", "core.losses", "core.preparation"}  # the other files beside the methods
MAY_IMPORT = CONTRACT | {"core.closed_forms", "core.DAZLE", "core.files"}  # of a method
GLOBAL = re.compile(  # calls that change a state of the whole program
    r"(matplotlib|mpl)\.use|(plt|pyplot)\.\w+|torch\.set_default_\w+|torch\.cuda\.set_device|random\.seed"
    r"|(np|numpy)\.random\.(seed|set_state)|torch\.use_deterministic_algorithms"
)


def modules() -> dict[str, Path]:
    """Name and file of every module of core."""
    found = {}
    for path in sorted((ROOT / "core").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
METHODS = sorted(m for m in MODULES if m.count(".") == 1 and MODULES[m].name != "__init__.py" and m not in CONTRACT)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imported(name: str) -> Iterator[tuple[str, int]]:
    """Modules of core (and the line) that a module imports: anywhere in it, and named in a string, as for importlib."""
    path = MODULES[name]
    yield from imports_of(tree(path), name if path.name == "__init__.py" else name.rpartition(".")[0])


def imports_of(code: ast.Module, package: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:  # the name may be a module itself
                whole = f"{source}.{alias.name}"
                yield (whole if whole in MODULES or source == "tests" else source), node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            known = node.value.partition(":")[0]  # "core.demo.backbone:DemoBackbone"
            if known in MODULES and known != "core":
                yield known, node.lineno


def inside(name: str, *rooms: str) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


def crossings(importers: list[str], *forbidden: str, allowed: tuple[str, ...] = ()) -> list[str]:
    """Lines of ``importers`` that import one of the ``forbidden`` rooms and none that is ``allowed``."""
    found = [
        f"{MODULES[name].relative_to(ROOT)}:{line} imports {used}"
        for name in importers
        for used, line in imported(name)
        if inside(used, *forbidden) and not inside(used, *allowed)
    ]
    return list(dict.fromkeys(found))


def room(*names: str) -> list[str]:
    return [m for m in MODULES if inside(m, *names)]


def outside(*names: str) -> list[str]:
    return [m for m in MODULES if not inside(m, *names)]


RULES = {
    "methods import the contract, what methods share, and files": lambda: crossings(
        METHODS, "core", allowed=tuple(MAY_IMPORT)
    ),
    "what methods share imports files and the list of data sets": lambda: crossings(
        sorted(CONTRACT & MODULES.keys()), "core", allowed=(*MAY_IMPORT, "core.datasets.registry")
    ),
    "data sets and features do not know training": lambda: crossings(
        room("core.datasets", "core.features"), "core.training", "core.experiments"
    ),
    "training does not know experiments": lambda: crossings(room("core.training"), "core.experiments"),
    "only commands and the backbones know the demo": lambda: crossings(
        outside("core.demo", "core.commands", "core.features.trunks"), "core.demo"
    ),
    "nobody knows the commands": lambda: crossings(outside("core.commands"), "core.commands"),
}


@pytest.mark.parametrize("rule", RULES)
def test_imports(rule: str) -> None:
    found = RULES[rule]()
    assert not found, "\n".join([f"{rule}:", *found])


def test_every_way_of_importing_is_seen() -> None:
    code = """
import core.demo.dataset as a
from core import demo
from ..demo import drawing
from . import run
def later():
    from core.demo.backbone import DemoBackbone
    importlib.import_module("core.demo.setup")
"""
    found = {name for name, _ in imports_of(ast.parse(code), "core.experiments")}
    assert found >= {f"core.demo.{m}" for m in ("dataset", "drawing", "backbone", "setup")} | {"core.demo"}
    assert "core.experiments.run" in found


def test_there_is_no_file_that_is_too_long() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in MODULES.values()}
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST}


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute access, else an empty text."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""


def uses(code: ast.Module) -> Iterator[tuple[str, int]]:
    """What library code must leave alone, with its line: output, flags, and states that all of a program shares."""
    forked = {
        inner
        for node in ast.walk(code)
        if isinstance(node, ast.With) and any("fork_rng" in ast.unparse(item) for item in node.items)
        for inner in ast.walk(node)
    }
    for node in ast.walk(code):
        name = dotted(node.func) if isinstance(node, ast.Call) else dotted(node)
        if isinstance(node, ast.Call) and name == "print":
            yield "print", node.lineno
        elif isinstance(node, ast.Attribute) and name in ("sys.argv", "matplotlib.pyplot"):
            yield name, node.lineno
        elif isinstance(node, ast.Import | ast.ImportFrom):
            whole = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                whole = [f"{node.module}.{alias}" for alias in whole]
            yield from ((w, node.lineno) for w in whole if w in ("matplotlib.pyplot", "sys.argv"))
        elif isinstance(node, ast.Call) and (
            GLOBAL.fullmatch(name) or (name in ("torch.manual_seed", "torch.seed") and node not in forked)
        ):
            yield name, node.lineno
        elif isinstance(node, ast.Name) and node.id == "__all__":
            yield "__all__", node.lineno


def test_library_code_leaves_alone_what_belongs_to_the_program() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {what}"
        for name, path in MODULES.items()
        for what, line in uses(tree(path))
        if not (what == "sys.argv" and inside(name, "core.commands"))  # a command is what reads it
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "print(1)",
        "a = sys.argv[1:]",
        "matplotlib.use('Agg')",
        "import matplotlib.pyplot as plt",
        "from matplotlib import pyplot",
        "plt.figure()",
        "torch.manual_seed(0)",
        "np.random.seed(0)",
        "__all__ = []",
    ],
)
def test_what_belongs_to_the_program_is_seen(line: str) -> None:
    assert list(uses(ast.parse(line)))
    assert not list(uses(ast.parse("with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)")))


def test_no_test_module_imports_another() -> None:
    """What two of them need is in tests/helpers*.py, a fixture in conftest.py."""
    found = []
    for path in sorted((ROOT / "tests").glob("*.py")):
        for name, line in imports_of(tree(path), "tests"):
            last = name.removeprefix("tests.")
            if name.startswith("tests.") and (last.startswith("test_") or last == "conftest"):
                found.append(f"{path.name}:{line} imports {name}")
        lines = enumerate(path.read_text("utf-8").splitlines(), 1)
        found += [f"{path.name}:{n} {line.strip()}" for n, line in lines if re.search(r"# noqa: (F401|F811)", line)]
    assert not found, "\n".join(dict.fromkeys(found))
