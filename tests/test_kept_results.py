"""Benchmarks on validation splits keep every result as it comes: killed and repeated they end the same."""

import os
import signal
from dataclasses import replace

import pytest

import studies.learning_curves as curves
from core.files.errors import UserError
from studies.validation import Kept, best_on_fold, config_of
from tests.helpers import forked
from tests.helpers_runs import inputs_of

METHODS = ("vsmr", "eszsl-prepared")
SIZES = [(2, None), (3, None)]


def go(toy, out, calls=None, kill_at=None):
    """The benchmark on the toy: ``calls`` gets what is measured anew, at the ``kill_at``-th the process is killed."""
    done = []

    def counted(config, inputs, fold):
        done.append(config.method)
        if len(done) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return best_on_fold(config, inputs, fold)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "best_on_fold", counted)
        rows = curves.measure(inputs_of(toy), METHODS, SIZES, 2, out=out, epochs=1)
    if calls is not None:
        calls += done
    return rows


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_killed_and_repeated_it_ends_the_same(toy, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    everything: list[str] = []
    rows = go(toy, whole, everything)
    assert len(everything) == 8
    for kill_at in (1, 4):  # before anything is written, and three results later
        process = forked(go, toy, cut, None, kill_at)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    kept = len(list((cut / "measured").glob("*.json")))
    assert kept == 3
    rest: list[str] = []
    again = go(toy, cut, rest)
    assert len(rest) == 8 - kept
    assert again.equals(rows)
    assert files(cut) == files(whole)


def test_a_result_of_another_identity_or_a_damaged_one_is_refused(toy, tmp_path):
    inputs = inputs_of(toy)
    config = config_of("vsmr", inputs, 0, 1, "float32")
    kept = Kept(tmp_path)
    made = kept.result(config, {"classes": 3}, lambda: {"AUSUC": 0.1 + 0.2})
    assert kept.result(config, {"classes": 3}, pytest.fail) == made == {"AUSUC": 0.1 + 0.2}
    assert kept.result(config, {"classes": 4}, lambda: {"AUSUC": 1}) == {"AUSUC": 1}
    for changes in ({"code": "x"}, {"features_sha256": "x"}, {"method_code": "x"}, {"recipe": {}}, {"precision": "x"}):
        with pytest.raises(UserError, match=rf"with other {next(iter(changes))}; choose another --out"):
            kept.result(replace(config, **changes), {"classes": 3}, pytest.fail)
    with pytest.raises(UserError, match="with other benchmark_code"):
        Kept(tmp_path, __file__).result(config, {"classes": 3}, pytest.fail)
    (path,) = tmp_path.rglob("*classes3.json")
    content = path.read_text()
    for damaged in (content.replace("0.30000000000000004", "0.4"), content[:-9], "[]", "{}"):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"classes3\.json is (damaged|not readable)"):
            kept.result(config, {"classes": 3}, pytest.fail)
