"""The board: rows that say what their runs found, and forged ones refused by what is false in them."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from core.commands.verify import main as verify
from core.datasets.xlsa17 import read_mat_files
from core.experiments.ablations import WHOLE
from core.experiments.board import BOARD, _stamps, arrays_of, collect_board, read_board
from core.experiments.results import read_scores, seal
from core.experiments.run import run
from core.experiments.sweep import collect
from core.files.errors import UserError
from core.reporting.board import write_board
from core.reporting.report import write_results
from core.training.evaluation import curve_from_compact
from tests.helpers import ROOT, TOY, toy_mats
from tests.helpers_runs import config_of, inputs_of


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Two seeds of a closed form on the toy, and their rows."""
    place = tmp_path_factory.mktemp("board")
    inputs = inputs_of(read_mat_files(*toy_mats(place / "toy"), TOY))
    for seed in (0, 1):
        config = config_of("eszsl", inputs, seed)
        run(config, inputs, place / "out" / "TOY" / inputs.variant / "eszsl" / f"seed{seed}")
    assert collect_board(place / "out", place / "board") == 2
    return place


@pytest.fixture
def board(ran, tmp_path):
    return shutil.copytree(ran / "board", tmp_path / "board")


def test_a_row_holds_the_curve_of_its_run_and_no_machine(ran, capsys):
    for path, row in zip(sorted((ran / "out").rglob("metrics.json")), read_board(ran / "board"), strict=True):
        curve, own = curve_from_compact(arrays_of(row)), curve_from_compact(read_scores(path.parent))
        np.testing.assert_allclose([curve.U, curve.S], [own.U, own.S], atol=1e-12)
        assert "machine" not in json.dumps(row) and str(ran) not in json.dumps(row)
    assert verify(["--board", str(ran / "board")]) == 0 and "2 checked, nothing wrong" in capsys.readouterr().out


def test_the_page_says_what_the_rows_say(ran, board, tmp_path):
    """Best first, with rank, interval and choice; an ensemble and what was cut off stand apart; names stay in cells."""
    write_board(board, tmp_path, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()  # of one method there is nothing to compare
    (path,) = board.rglob("seed1.json")
    first, known = json.loads(path.read_text()), json.loads((board / "digests.json").read_text())
    for method, code in (("dazle", "m1"), ("eszsl+x|y", "m2")):
        row = json.loads(path.read_text())
        row["config"] |= {"method": method, "method_code": code}
        (to := path.parents[1] / method).mkdir()
        (to / "seed1.json").write_text(json.dumps(seal(row)))
        known["method code"].append(f"{method} {code}")
    (board / "digests.json").write_text(json.dumps(known))
    write_board(board, tmp_path, tmp_path / "f.png")
    text = (tmp_path / "board.md").read_text()
    area = f"{100 * first['standard']['AUSUC']:.1f}"
    equals, cut_off, ensemble = (text.index(w) for w in ("| eszsl |", "| dazle |", "| eszsl+x\\|y |"))
    assert equals < text.index("\nCUT OFF") < cut_off and text.index("\nENSEMBLES") < ensemble
    (line,) = [line for line in text.splitlines() if "| dazle |" in line]
    assert line.startswith(f"| | dazle | {area} (") and "cut off: 2 of its 20 epochs" in line and "| 49 | 1 |" in line
    assert f"regularise_x {first['chosen']['recipe']['regularise_x']:.3g}" in line
    assert (tmp_path / "f.png").is_file()


def test_rows_of_two_processors_share_a_table_and_of_two_backbones_do_not(board, tmp_path):
    """Features made alike differ in their last bits; both digests are said."""
    (path,) = board.rglob("seed1.json")
    row, known = json.loads(path.read_text()), json.loads((board / "digests.json").read_text())
    row["config"]["features_sha256"] = "ab" * 32
    row["config"]["features"] |= {"torch_version": "9", "device": "cuda"}
    kind = "features and their provenance"
    known[kind].append(_stamps(row)[kind])
    (board / "digests.json").write_text(json.dumps(known))
    path.write_text(json.dumps(seal(row)))
    write_board(board, tmp_path, tmp_path / "none.png")
    text = (tmp_path / "board.md").read_text()
    assert text.count("\n## ") == 1 and "ab" * 8 in text and "| eszsl | " in text and "| 2 |" in text
    row["config"]["features"]["weights_sha256"] = "other"
    path.write_text(json.dumps(seal(row)))
    with pytest.raises(UserError, match=r"seed1.json: .*it belongs to TOY/toy-3x3-.*/eszsl/seed1.json"):
        read_board(board)


def test_results_are_those_of_the_rows_and_of_the_ablations(ran, board, tmp_path):
    """As the runs themselves say, but for what a row does not keep (H without γ)."""
    out = shutil.copytree(ran / "out", tmp_path / "out")
    inputs = inputs_of(read_mat_files(*toy_mats(tmp_path / "toy"), TOY))
    for seed in (0, 1):
        run(config_of("sae", inputs, seed), inputs, out / "TOY" / inputs.variant / "sae" / f"seed{seed}")
    ablation = out / "TOY" / inputs.variant / "vsmr" / "ablation" / "vsmr" / "seed0"
    run(config_of("vsmr", inputs), inputs, ablation, ablation=WHOLE)
    collect_board(out, board)
    collect(out)
    write_results(board, out, tmp_path / "docs")
    own, found = pd.read_csv(out / "summary.csv"), pd.read_csv(tmp_path / "docs" / "results.csv")
    of = [frame.sort_values(["ablation", "method", "seed"], na_position="first") for frame in (own, found)]
    for column in ("T1", "U", "S", "H", "AUSUC", "H_best", "gamma", "val_AUSUC", "epochs", "seconds"):
        np.testing.assert_allclose(*(frame[column] for frame in of), rtol=1e-5, err_msg=column)
    intervals = pd.read_csv(tmp_path / "docs" / "results_over_classes.csv")
    text = (tmp_path / "docs" / "results.md").read_text()
    assert "Ablation on validation splits" in text and "| **vsmr** |" not in text and intervals.empty  # nothing of ours


def test_the_boards_page_is_that_of_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("core.reporting.board.seconds_figure", lambda *_: None)
    write_board(ROOT / BOARD, tmp_path, tmp_path / "f.png")
    assert (tmp_path / "board.md").read_text() == (ROOT / "docs" / "board.md").read_text()


def best_on_test(row):
    """γ as a choice on the test images leaves it, and the numbers that follow."""
    from core.training.evaluation import metrics_from_compact

    curve = curve_from_compact(arrays_of(row))
    row["passed"] = int(np.searchsorted(curve.thresholds, curve.best(), side="right"))
    row["between"] = [0.25, 0.5]
    found = metrics_from_compact(arrays_of(row), row["passed"] - 0.5)
    row["standard"] |= {k: getattr(found, k) for k in ("U", "S", "H")} | {"gamma": 0.375}


def config(**changes):
    return lambda row: row["config"].update(changes)


def standard(key):
    return lambda row: row["standard"].update({key: row["standard"][key] + 0.01})


FORGED = {
    "a digit, checksum left": (lambda r: r["standard"].update(T1=0.99), "checksum"),
    "T1": (standard("T1"), "T1 is"),
    "AUSUC": (standard("AUSUC"), "AUSUC is"),
    "not a number": (lambda r: r["standard"].update(S=float("nan")), "S is nan"),
    "accuracy of a class": (lambda r: r["classes"]["unseen"]["class7"].__setitem__(1, 0.123), "accuracies of classes"),
    "another split": (config(split_sha256="ff" * 32), "unknown split"),
    "more classes": (lambda r: r["classes"]["unseen"].update(new=[4, 0.0]), "unknown split with these classes"),
    "more right than there are": (lambda r: r.update(right=r["right"] + " 0" * 9), "no row of the board"),
    "γ moved": (lambda r: r.update(between=[1e9, 2e9]), "γ does not lie"),
    "γ chosen on test": (best_on_test, "chosen on test"),
    "another way to choose": (lambda r: r["chosen"].update(how="epoch of the highest test H"), "unknown way to choose"),
    "settings chosen on test": (lambda r: r["chosen"]["recipe"].update(regularise_x=7.0), "settings are not those"),
    "better validation": (lambda r: r["chosen"]["validation"].update(AUSUC=1.0), "validation is not what"),
    "fewer settings tried": (lambda r: r["chosen"].update(configurations=1), "validation is not what"),
    "better γ of validation": (lambda r: r["chosen"].update(gamma_in_spreads=9.0), "γ is not that of validation"),
    "a foreign code": (config(code="0.3.0-ffffffffffff"), "unknown code"),
    "a foreign method": (config(method_code="ffffffffffff"), "unknown method code"),
    "what pretraining saw": (lambda r: r["config"]["features"].update(pretraining_saw_unseen="no"), "provenance"),
    "foreign vectors": (config(vectors_sha256="ee"), "unknown vectors"),
    "of another method": (config(method="vsmr"), "it belongs to TOY/toy-3x3-.*/vsmr/seed1.json"),
    "another seed's split": (lambda r: r["chosen"].update(split=0), "chosen on validation split 0"),
    "no time": (lambda r: r.update(processor_seconds=0), "out of range"),
    "a key too many": (lambda r: r.update(machine="x86"), "machine missing or unknown"),
    "another kind": (lambda r: r.update(chosen=[]), "no row of the board"),
}  # fmt: skip


@pytest.mark.parametrize(("forge", "said"), FORGED.values(), ids=FORGED)
def test_a_forged_row_is_refused_by_what_is_false_in_it(board, forge, said):
    (path,) = board.rglob("seed1.json")
    row = json.loads(path.read_text())
    forge(row)
    path.write_text(json.dumps(row if said == "checksum" else seal(row)))
    with pytest.raises(UserError, match=rf"seed1.json: .*({said})"):
        read_board(board)


def test_a_copied_seed_is_refused(board):
    (path,) = board.rglob("seed0.json")
    row = json.loads(path.read_text())
    row["config"]["seed"] = row["chosen"]["split"] = 1
    path.with_name("seed1.json").write_text(json.dumps(seal(row)))
    with pytest.raises(UserError, match=r"seed1.json: its validation is that of seed0.json: a copied seed"):
        read_board(board)
