"""A run is what it says it is: every module that can change a number changes the digest, and nothing is mixed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import core
from core.experiments.identity import NUMBERLESS, code_digest, run_config
from core.experiments.inputs import split_digest
from core.method import find_method
from tests.helpers_runs import inputs_of

ROOT = Path(core.__file__).resolve().parent
FILES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py"))
COUNTED = [f for f in FILES if not any(f == d or f.startswith(f"{d}/") for d in NUMBERLESS)]
METHOD_FILES = [
    f for f in COUNTED if "/" not in f and f not in ("__init__.py", "method.py", "losses.py", "preparation.py")
]
LEFT_OUT = {"commands", "reporting", "demo", "inference"}  # folders, and files of experiments/
LEFT_OUT_FILES = {f"experiments/{name}.py" for name in ("sweep", "engines", "planning", "statistics", "watching")}
LEFT_OUT_FILES |= {"fields.py", "methods.py"}
SCRIPT = """
import functools, json, sys
from core.experiments import identity as i
from core.method import methods
of_text = functools.cache(lambda path, text: imported(path))  # parsing what did not change takes seconds
imported, i._imported = i._imported, lambda path: of_text(path, path.read_text())
for line in sys.stdin:
    path, text = json.loads(line)
    before = open(path).read()
    open(path, "w").write(before + text)
    i.code_digest.cache_clear()
    i.method_digest.cache_clear()
    print(json.dumps([i.code_digest(), {m: i.method_digest(m) for m in methods()}]))
    open(path, "w").write(before)
"""


@pytest.fixture(scope="module")
def digests(tmp_path_factory):
    """Digests of a copy of core/ with one comment added to each of its files in turn: {file: (code, {method: ...})}."""
    import json

    place = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT, place / "core", ignore=shutil.ignore_patterns("__pycache__"))
    changes = [("core/__init__.py", "")] + [(f"core/{f}", "\n# changed\n") for f in FILES]
    lines = "\n".join(json.dumps(c) for c in changes)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=place, input=lines, capture_output=True, text=True, check=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(["", *FILES], found, strict=True))


def test_a_change_of_any_module_that_can_change_a_number_changes_the_digest(digests):
    code, own = digests[""]
    for file in COUNTED:
        changed_code, changed_own = digests[file]
        if file in METHOD_FILES:
            assert changed_code == code and changed_own != own, file
        else:
            assert changed_code != code, file
    assert {"training/loop.py", "training/folds.py", "training/evaluation.py", "experiments/run.py", "method.py",
            "features/regions.py", "datasets/xlsa17.py", "preparation.py", "losses.py"} <= set(COUNTED)  # fmt: skip


def test_a_methods_digest_is_of_its_file_and_of_those_it_imports(digests):
    _, own = digests[""]
    changed = {file: {m for m in own if digests[file][1][m] != own[m]} for file in METHOD_FILES}
    assert changed["VSMR.py"] == {"vsmr"} and changed["ESZSL.py"] == {"eszsl", "eszsl-prepared"}
    assert changed["DAZLE.py"] == {"dazle", "dazle-prepared"}
    assert changed["attention.py"] >= {"dazle", "dazle-prepared", "vsmr", "vsmr-staged"}


def test_what_cannot_change_a_number_is_a_short_list_of_what_there_is(digests):
    assert set(NUMBERLESS) <= LEFT_OUT | LEFT_OUT_FILES  # what else is left out must be thought about here too
    assert code_digest().startswith(f"{core.__version__}-")
    for entry in NUMBERLESS:
        assert (ROOT / entry).exists(), entry
    for file in set(FILES) - set(COUNTED):
        assert digests[file] == digests[""], file


def differing(a, b):
    one, two = asdict(a), asdict(b)
    return {key for key in one if one[key] != two[key]}


def test_each_part_of_a_runs_identity_is_its_own(toy):
    """What is changed is what differs, and nothing else stands for it."""
    inputs, known = inputs_of(toy), find_method("dazle")
    recipe = known.recipe("*")
    before = run_config(inputs, "dazle", recipe, seed=0)
    for key in ("features_sha256", "vectors_sha256", "split_sha256", "dataset"):
        changed = run_config(replace(inputs, **{key: "other"}), "dazle", recipe, seed=0)
        assert differing(before, changed) == {key} and asdict(changed)[key] == "other"
    changed = run_config(inputs, "dazle", recipe, seed=0, gamma_splits=3)
    assert differing(before, changed) == {"gamma_splits"} and changed.gamma_splits == 3
    for pixels in ("224", "448"):
        provenance = inputs.provenance | {"input_size": pixels}
        changed = run_config(replace(inputs, provenance=provenance), "dazle", recipe, seed=0)
        assert differing(before, changed) == {"features"}
    for changes in ({"seed": 1}, {"select": "last"}, {"epochs": 3}, {"precision": "bfloat16"}):
        changed = run_config(inputs, "dazle", recipe, **({"seed": 0} | changes))
        assert differing(before, changed) == set(changes)
    changed = run_config(inputs, "dazle", replace(recipe, lambda_cal=0.2), seed=0)
    assert differing(before, changed) == {"recipe"} and changed.recipe["lambda_cal"] == 0.2
    assert differing(before, run_config(inputs, "dazle-prepared", recipe, seed=0)) == {"method"}  # of one file


def test_the_digest_of_a_split_is_of_all_that_is_trained_and_measured_on(toy):
    texts = np.zeros((9, 2, 4), dtype=np.float32)
    changes = {"class_names": toy.class_names[::-1], "att": toy.att + 0.5, "class_text": texts}
    for key in ("labels", "trainval_loc", "test_seen_loc", "test_unseen_loc", "train_loc", "val_loc"):
        changes[key] = getattr(toy, key)[::-1].copy()
    found = {key: split_digest(replace(toy, **{key: value})) for key, value in changes.items()}
    found["moved"] = split_digest(replace(toy, train_loc=toy.val_loc, val_loc=toy.train_loc))
    found["texts"] = split_digest(replace(toy, class_text=texts + 1))
    assert len({*found.values(), split_digest(toy)}) == len(found) + 1
    assert split_digest(replace(toy, notes=["another note"])) == split_digest(toy)
