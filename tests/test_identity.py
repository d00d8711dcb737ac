"""A run is what it says it is: what can change a number changes its digest, nothing else does, and nothing is mixed."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from core.experiments import identity
from core.experiments.identity import ROOT, code_digest, method_digest, run_config
from core.experiments.inputs import split_digest
from core.files.atomic import sha256_file
from core.methods import find_method, methods
from tests.helpers_runs import inputs_of

COUNTED = (
    *("method.py", "preparation.py", "training/loop.py", "training/folds.py", "training/evaluation.py"),
    *("experiments/run.py", "experiments/inputs.py", "experiments/results.py", "features/regions.py"),
    *("features/feature_file.py", "datasets/metadata.py", "datasets/own.py", "datasets/xlsa17.py"),
    *("datasets/vectors.py", "datasets/registry.py"),
)
NOT_COUNTED = (
    *("datasets/download.py", "features/extraction.py", "features/finetune.py", "experiments/sweep.py"),
    *("experiments/statistics.py", "experiments/watching.py", "files/errors.py"),
)


@pytest.fixture
def changed(monkeypatch):
    """changed(file) -> digests of the code and of every method with a comment added to that file of core/."""
    caches = [f for f in vars(identity).values() if hasattr(f, "cache_clear")]

    def forget():
        for cached in caches:
            cached.cache_clear()

    def digests(file=None):
        forget()
        with monkeypatch.context() as patch:
            if file:
                path = ROOT / file
                patch.setitem(identity.SOURCES, path, identity.SOURCES[path] + b"\n# changed\n")
            return code_digest(), {name: method_digest(name) for name in methods()}

    yield digests
    forget()


def test_a_change_of_any_module_that_can_change_a_number_changes_the_digest(changed):
    of_any = identity._imported_from(ROOT / "experiments/run.py")
    of_one = of_any.union(*(identity._imported_from(m.file) for m in methods().values()))
    assert {ROOT / file for file in COUNTED} <= of_any
    assert not {ROOT / file for file in NOT_COUNTED} & of_one
    assert not {path.relative_to(ROOT).parts[0] for path in of_one} & {"commands", "reporting", "inference", "demo"}
    assert changed("training/loop.py")[0] != changed()[0]
    assert changed("experiments/sweep.py") == changed()


def test_a_methods_digest_is_of_its_file_and_of_those_it_imports(changed):
    code, own = changed()
    for file, among in {"VSMR.py": {"vsmr"}, "ESZSL.py": {"eszsl"}, "attention.py": {"dazle"}}.items():
        now_code, now = changed(file)
        differ = {name for name in own if now[name] != own[name]}
        assert now_code == code and among <= differ
        assert file == "attention.py" or "dazle" not in differ


def test_the_digest_is_of_the_code_as_it_was_imported(changed, monkeypatch):
    """A file that is edited while a run goes on is not what the run ran."""
    before = changed()
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"edited = True")
    monkeypatch.setattr(Path, "read_text", lambda self, *a: "edited = True")
    assert changed() == before


def differing(a, b):
    return {key for key, value in asdict(a).items() if value != asdict(b)[key]}


def test_each_part_of_a_runs_identity_is_its_own(toy):
    """What is changed is what differs, and nothing else stands for it."""
    inputs, known = inputs_of(toy), find_method("dazle")
    recipe = known.recipe("*")
    before = run_config(inputs, "dazle", recipe, seed=0)
    provenance, names = inputs.provenance | {"input_size": "448"}, [*inputs.attribute_names[:-1], "corrected"]
    of_inputs = [
        *((key, {key: "other"}) for key in ("features_sha256", "vectors_sha256", "split_sha256", "dataset")),
        ("features", {"provenance": provenance}),
        ("names_sha256", {"attribute_names": names}),
        ("names_sha256", {"metadata": replace(toy, class_names=[*toy.class_names[:-1], "corrected"])}),
    ]
    for key, changes in of_inputs:
        assert differing(before, run_config(replace(inputs, **changes), "dazle", recipe, seed=0)) == {key}
    for changes in ({"seed": 1}, {"select": "last"}, {"epochs": 3}, {"precision": "bfloat16"}, {"gamma_splits": 3}):
        changed = run_config(inputs, "dazle", recipe, **({"seed": 0} | changes))
        assert differing(before, changed) == set(changes)
    changed = run_config(inputs, "dazle", replace(recipe, lambda_cal=0.2), seed=0)
    assert differing(before, changed) == {"recipe"} and changed.recipe["lambda_cal"] == 0.2
    assert differing(before, run_config(inputs, "dazle-prepared", recipe, seed=0)) == {"method"}  # of one file


def test_digests_are_those_of_what_was_read(there):
    inputs, vectors = there.inputs, there.place / "w2v" / "AWA2_attribute.pkl"
    found = inputs.features_sha256, inputs.vectors_sha256, inputs.split_sha256
    assert found == (inputs.features.source.digest(), sha256_file(vectors), split_digest(inputs.metadata))


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
