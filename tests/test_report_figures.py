"""Which figures stand beside the tables: none is missing in silence, none is another's, no weaker run is an equal."""

import json
import logging

import pandas as pd
import pytest

from core.experiments.statistics import Interval
from core.files.errors import UserError
from core.inference.names import shown_class, shown_classes
from core.reporting import report
from core.reporting.figures import is_ours
from core.reporting.report import OverClassesTable, best_equal, figure_name, write_report
from core.reporting.rows import METRICS, TABLE, entries_of, prepared, tables_of
from core.reporting.tables import ours_among
from tests.helpers_reporting import row, run_left


def left(out, rows):
    """OUT as a sweep leaves it: summary.csv, and of every row a run folder with what figures read."""
    for number, one in enumerate(rows):
        one["folder"] = f"runs/{number}"
        run_left(out / one["folder"], one, right=one["method"] == "vsmr")
    prepared(rows).to_csv(out / "summary.csv", index=False)
    return out


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn, by kind: file's stem -> what the figure was given."""
    found = {"calibration": {}, "per_class": {}, "confusion": {}}

    def calibration(runs, out, title):
        found["calibration"][out.stem] = (list(runs), title)

    def per_class(ours, other, *, names, out, title):
        found["per_class"][out.stem] = (ours, other, names, title)

    def confusion(runs, out, title):
        found["confusion"][out.stem] = (runs, title)

    for name, stand_in in (("calibration", calibration), ("per_class", per_class), ("confusion", confusion)):
        monkeypatch.setattr(report, f"{name}_figure", stand_in)
    return found


@pytest.mark.parametrize("recipe", ["{}", json.dumps({"lr": 0.0006})])
def test_no_figure_is_missing_where_the_label_carries_settings(tmp_path, recipe):
    """With the real figures: two kinds of each, by class and by confusion, whatever vsmr's row is called."""
    rows = [row(m, s, recipe=recipe if m == "vsmr" else "{}") for m in ("vsmr", "dazle") for s in (0, 1)]
    write_report(left(tmp_path, rows))
    made = sorted(f.name.partition("_CUB")[0] for f in (tmp_path / "figures").glob("*.png"))
    assert made == ["calibration", "confusion", "forest", "per_class"]


def test_each_of_several_rows_has_its_figures_and_the_missing_comparison_is_told(tmp_path, drawn, caplog):
    rows = [row(recipe=json.dumps({"lr": lr})) for lr in (0.1, 0.2)] + [row("dazle")]
    with caplog.at_level(logging.WARNING):
        write_report(left(tmp_path, rows))
    assert len(drawn["confusion"]) == len(drawn["per_class"]) == 2
    says = {names for *_, names, _ in drawn["per_class"].values()}
    assert says == {("vsmr (lr=0.1)", "dazle"), ("vsmr (lr=0.2)", "dazle")}
    assert "several rows of vsmr" in caplog.text


def test_a_label_with_settings_is_ours_and_a_variant_is_not():
    assert all(map(is_ours, ("vsmr", "vsmr (lr=0.1)", "vsmr; 2 seeds")))
    assert not any(map(is_ours, ("vsmr-staged", "vsmr2", "dazle", "vsmr-staged (lr=1)", "the vsmr")))


@pytest.mark.parametrize("column", TABLE)
def test_two_tables_never_share_a_figure(tmp_path, drawn, column):
    rows = [row("vsmr", s) for s in (0, 1)] + [row("vsmr", s) | {column: "other"} for s in (0, 1)]
    write_report(left(tmp_path, rows))
    assert all(len(figures) == 2 for kind, figures in drawn.items() if kind != "per_class")
    titles = [title for _, title in drawn["calibration"].values()]
    if column in ("code", "split_sha256", "vectors_sha256", "features_sha256"):
        assert titles[0] != titles[1]  # the name is a digest, so the title says what differs


def test_a_figures_name_is_a_files_name(tmp_path):
    strange = prepared([row(dataset="../a|b", backbone="timm:vit/b 16", regions="7x7")])
    name = figure_name(strange)
    assert name.startswith("..-a-b_timm-vit-b-16_7x7_") and "/" not in name
    assert (
        len({figure_name(part) for part in tables_of(prepared([row(), row(code="c2"), row(split_sha256="s2")]))}) == 3
    )


def test_what_is_no_equal_says_so_and_is_not_chosen(tmp_path, drawn):
    rows = [row("vsmr", s, 0.1) for s in range(3)]
    rows += [row("dazle", s) for s in range(2)] + [row("eszsl", s, -0.1) for s in range(3)]
    rows += [row("transzero", s, 0.3, cut_off="20 of its 200 epochs") for s in range(3)]
    rows += [row("msdn", s, -0.2, **{f"val_{m}": None for m in ("T1", "U", "S", "H", "AUSUC")}) for s in range(3)]
    write_report(left(tmp_path, rows))
    ((ours, other, names, _),) = drawn["per_class"].values()
    assert names == ("vsmr", "dazle; 2 seeds") and len(ours) == 3 and len(other) == 2
    ((labels, _),) = drawn["calibration"].values()
    told = ["transzero; cut off: 20 of its 200 epochs", "vsmr", "dazle; 2 seeds", "eszsl", "msdn; nothing validated"]
    assert labels == told
    entries = entries_of(prepared([r for r in rows if r["method"] == "transzero"]))
    assert best_equal(entries).cut_off  # nothing else is there, and its label says it
    assert best_equal([]) is None


def test_the_same_method_with_and_without_validation_are_two(tmp_path, drawn):
    none = {f"val_{m}": None for m in ("T1", "U", "S", "H", "AUSUC")}
    rows = [row("vsmr", 0), row("vsmr", 0, 0.2, **none), row("dazle", 0)]
    write_report(left(tmp_path, rows))
    ((labels, _),) = drawn["calibration"].values()
    assert sorted(labels) == ["dazle", "vsmr", "vsmr; nothing validated"]
    assert len(drawn["confusion"]) == 2
    assert ours_among(entries_of(prepared(rows))).runs.validated.all()


def test_a_file_that_its_run_did_not_write_is_refused(tmp_path):
    """Another run's scores under a run's name, and a number that was changed in summary.csv."""
    rows = [row(m, s, up) for m, up in (("vsmr", 0.1), ("dazle", 0.0)) for s in (0, 1)]
    summary = left(tmp_path, rows) / "summary.csv"
    text = summary.read_text()
    write_report(tmp_path)
    frame = pd.read_csv(summary)
    frame.loc[0, "T1"] += 0.01
    frame.to_csv(summary, index=False)
    with pytest.raises(UserError, match=r"says other numbers of seed 0 of vsmr .*--collect"):
        write_report(tmp_path)
    summary.write_text(text)
    (tmp_path / "runs/2/scores.npz").write_bytes((tmp_path / "runs/0/scores.npz").read_bytes())
    with pytest.raises(UserError, match=r"runs.2.scores\.npz is not what the run wrote"):
        write_report(tmp_path)


def test_intervals_over_classes_are_ours_minus_the_other_and_made_anew_where_the_scores_are(tmp_path):
    one, two = row(folder="ours"), row("dazle", folder="other")
    run_left(tmp_path / "ours", one)  # right everywhere
    run_left(tmp_path / "other", two, right=False)
    written = tmp_path / "over_classes.csv"
    old = [f"ours minus other,{metric},0.5,0.4,0.6" for metric in METRICS]
    written.write_text("\n".join(["pair,metric,mean_,low,high", *old, "gone minus other,T1,0,0,0"]))
    pairs = prepared([one]), prepared([two])
    known, there = OverClassesTable(written), OverClassesTable(written, tmp_path)
    assert known(*pairs)["T1"] == Interval(mean=0.5, low=0.4, high=0.6)  # as written, where there are no run folders
    assert there(*pairs)["T1"] == there(*pairs)["S"] == Interval(mean=1.0, low=1.0, high=1.0)
    there.write(written)
    assert "gone" not in written.read_text() and OverClassesTable(written)(*pairs) == there(*pairs)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("110.Geococcyx", "Geococcyx"),
        ("009.Brewer_Blackbird", "Brewer Blackbird"),
        ("grizzly+bear", "grizzly bear"),
        ("access_road", "access road"),
        ("car_interior_backseat", "car interior backseat"),
        # part of the name: no CUB number, signs at an end, a number alone
        ("12.thing", "12.thing"),
        ("1234.thing", "1234.thing"),
        ("110.5", "110.5"),
        ("C++", "C++"),
        ("_hidden_", "_hidden_"),
        ("110", "110"),
        ("110.", "110."),
        ("", ""),
        ("鳥_犬", "鳥 犬"),
    ],
)
def test_class_names_as_a_person_reads_them(name, shown):
    assert shown_class(name) == shown
    assert shown_class(shown) == shown


def test_classes_that_would_read_alike_keep_their_numbers() -> None:
    names = ["001.Red_wing", "002.Red_wing", "003.Blue_wing", "red+wing"]
    assert shown_classes(names) == ["001.Red wing", "002.Red wing", "Blue wing", "red wing"]
