"""Folders import in one direction, files stay short, and library code leaves alone what belongs to the program."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.helpers import ROOT

FILES = sorted((ROOT / "core").rglob("*.py"))
LONGEST = 300  # lines, but for core/VSMR.py
SHARED = {"method", "fields", "preparation", "closed_forms", "attention", "scaling", "DAZLE", "CLIP", "files"}
GLOBAL = re.compile(  # calls that change a state of the whole program
    r"print|(matplotlib|mpl)\.use|(plt|pyplot)\.\w+|torch\.set_default_\w+|torch\.cuda\.set_device|random\.seed"
    r"|(np|numpy)\.random\.(seed|set_state)|torch\.use_deterministic_algorithms|torch\.(manual_)?seed"
)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imported(code: ast.AST) -> Iterator[str]:
    """Modules of core, without "core.", that are imported anywhere in a file."""
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            yield from (a.name[5:] for a in node.names if a.name.startswith("core."))
        elif isinstance(node, ast.ImportFrom) and node.module == "core":
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("core."):
            yield node.module[5:]


def room(name: str) -> str:
    """The folder of a module of core; what lies beside the folders is a method or what methods share."""
    return name.split(".")[0] if (ROOT / "core" / name.split(".")[0]).is_dir() else "methods"


def of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "core").with_suffix("").parts)


def test_folders_import_in_one_direction() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        if of(path) != "__init__":
            here = room(of(path))
            graph.setdefault(here, set()).update({room(name) for name in imported(tree(path))} - {here})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None
    assert not [here for here, used in graph.items() if "commands" in used]


def test_a_method_imports_what_methods_share_and_nothing_else() -> None:
    methods = [p for p in FILES if p.parent.name == "core" and p.stem not in SHARED | {"__init__", "methods"}]
    found = {f"{p.name}: {n}" for p in methods for n in imported(tree(p)) if n.split(".")[0] not in SHARED}
    assert not found


def test_files_are_short() -> None:
    lengths = {of(p): len(p.read_text("utf-8").splitlines()) for p in FILES if of(p) != "VSMR"}
    assert not {name: n for name, n in lengths.items() if n > LONGEST}


def test_library_code_leaves_alone_what_belongs_to_the_program() -> None:
    found = [
        f"{of(p)}: {what}" for p in FILES for what in taken(tree(p)) if not (what == "sys.argv" and "commands" in of(p))
    ]
    assert not found
    assert {*taken(ast.parse("print(1)\nsys.argv\nimport matplotlib.pyplot\nnp.random.seed(0)"))} >= {
        "print",
        "sys.argv",
    }


def taken(code: ast.Module) -> Iterator[str]:
    """What a file does to output, flags and states that all of a program shares."""
    forks = [n for n in ast.walk(code) if isinstance(n, ast.With) and "fork_rng" in ast.unparse(n.items[0])]
    inside = {inner for fork in forks for inner in ast.walk(fork)}
    for node in ast.walk(code):
        if isinstance(node, ast.Call) and GLOBAL.fullmatch(ast.unparse(node.func)) and node not in inside:
            yield ast.unparse(node.func)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.argv":
            yield "sys.argv"
        elif isinstance(node, ast.Import | ast.ImportFrom) and "pyplot" in ast.unparse(node):
            yield "pyplot"
