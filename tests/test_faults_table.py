"""docs/faults.md names a test for every promise; each of them exists."""

from __future__ import annotations

import ast
import re

from tests.helpers import ROOT


def test_every_test_that_the_table_of_promises_names_exists() -> None:
    text = (ROOT / "docs" / "faults.md").read_text("utf-8")
    named = re.findall(r"(test_\w+\.py)::(test_\w+)", text)
    assert len(named) > 60
    for file in {file for file, _ in named}:
        tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        lost = {name for where, name in named if where == file} - there
        assert not lost, f"docs/faults.md names {sorted(lost)}, which tests/{file} lacks"


def test_every_row_of_the_table_names_a_test_and_every_fault_has_a_row() -> None:
    text = (ROOT / "docs" / "faults.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "held by" not in line]
    assert rows and all("::test_" in line for line in rows)
    numbers = {int(n) for n in re.findall(r"^\| (\d+) \|", text, re.M)} | {23, 27}
    assert numbers == set(range(1, 29))
