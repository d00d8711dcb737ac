"""Tables and figures of runs: what may share a row, what stands apart, which labels are printed; made-up numbers."""

import json
from pathlib import Path

import pandas as pd
import pytest

from core.experiments.results import row_of
from core.experiments.statistics import Interval
from core.files.errors import UserError
from core.reporting import report
from core.reporting.report import pair_of, published, write_report
from core.reporting.tables import AUSUC, DIGESTS, LEGEND, TABLE, all_tables, prepared, read_summary
from tests.helpers_reporting import METRICS, row, run_left

NOT_VALIDATED = {f"val_{k}": None for k in METRICS}


def lines_with(text, *words):
    return [line for line in text.splitlines() if all(w in line for w in words)]


def two_methods(**changes):
    return [row(m, s, up, **changes) for m, up in (("vsmr", 0.1), ("dazle", 0.0)) for s in range(3)]


def left(out, rows):
    """OUT as a sweep leaves it: summary.csv, and of every row a run folder with what figures read."""
    for number, one in enumerate(rows):
        one["folder"] = f"runs/{number}"
        run_left(out / one["folder"], one, right=one["method"] == "vsmr")
    prepared(rows).to_csv(out / "summary.csv", index=False)
    return out


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: file's stem -> labels of what the figure was given, and its title."""
    found = {}
    draw = lambda runs, out, title: found.update({out.stem: (list(runs), title)})  # noqa: E731
    monkeypatch.setattr(report, "calibration_figure", draw)
    return found


def test_the_docs_show_what_the_csv_says():
    docs = Path(__file__).parent.parent / "docs"
    written = pd.read_csv(docs / "results_over_classes.csv").set_index(["pair", "metric"])

    def over_classes(*both):
        rows = written.loc[pair_of(*both)]
        return {r.Index: Interval(mean=r.mean_, low=r.low, high=r.high) for r in rows.itertuples()}

    assert (docs / "results.md").read_text() == published(all_tables(read_summary(docs / "results.csv"), over_classes))


def test_a_table_by_hand():
    text = all_tables(two_methods())
    assert text.count(LEGEND) == 1 and text.count(AUSUC) == 1
    (line, _) = lines_with(text, "| **vsmr** |")
    # T1 .7 + .1 + (0, .01, .02): mean 81.0, deviation 1.0; then H at γ 0 and at the best γ
    cells = [c.strip() for c in line.split("|")[1:-1]]
    means = ["81.0 ± 1.0", "61.0 ± 1.0", "71.0 ± 1.0", "66.0 ± 1.0", "51.0 ± 1.0", "31.0 ± 0.0", "58.0 ± 0.0"]
    assert cells == ["**vsmr**", *means, "3", "3"]
    assert lines_with(text, "| dazle | +10.0 (+10.0 to +10.0)", "| 0.250 | 3 |")
    assert "| vsmr minus |" in text and "vsmr less" not in text
    assert "Digests: features f1; vectors v1; split s1; code c1; method code" in text


@pytest.mark.parametrize("column", [*TABLE[1:], "features_sha256"])
def test_runs_on_different_things_share_no_table_no_mean_and_no_figure(tmp_path, drawn, column):
    rows = [row("vsmr", s, 0.1) for s in range(3)] + [row("vsmr", s, 0.1, T1=0.1) | {column: "other"} for s in range(3)]
    text = all_tables(rows)
    headings = lines_with(text, "### CUB")
    assert len(headings) == len(set(headings)) == 2 and len(lines_with(text, "Digests:")) == 2
    assert len(lines_with(text, "| **vsmr** | 81.0 ± 1.0 |")) == 3  # twice validation, once test
    assert len(lines_with(text, "| **vsmr** | 10.0 ± 0.0 |")) == 1
    write_report(left(tmp_path, rows))
    titles = [title for _, title in drawn.values()]
    assert len(titles) == 2
    assert column not in DIGESTS or titles[0] != titles[1]  # the name is a digest, so the title says what differs


def test_what_is_no_equal_stands_under_its_own_heading():
    cut = {"cut_off": "20 of 200 epochs", "test_H": 0.9, "test_T1": 0.95}
    rows = two_methods() + [row("transzero", s, 0.9, **cut) for s in range(2)]
    text = all_tables(rows + [row("vsmr-staged", s, published_T1=0.99, published_H=0.98) for s in (0, 1)])
    headings = ["method, test sets", "as published", "CUT OFF", "SELECTED ON TEST", "PUBLISHED PROC"]
    assert [text.index(words) for words in headings] == sorted(text.index(words) for words in headings)
    standard, rest = text[: text.index("CUT OFF")], text[text.index("CUT OFF") :]
    assert "transzero |" not in standard and "99.0" not in text[: text.index("PUBLISHED PROC")]
    assert len(lines_with(rest, "| transzero |", "cut off: 20 of 200 epochs", "±")) == 3  # test, validation, on test
    assert lines_with(rest[rest.index("SELECTED ON TEST") :], "| transzero | 95.0 ± 0.0 |")
    assert lines_with(rest[rest.index("PUBLISHED PROC") :], "| vsmr-staged | 99.0 ± 0.0 |")
    assert not lines_with(text, "| transzero", " to ") and lines_with(text, "| dazle |", " to ")


def test_runs_without_a_common_seed_are_tabled_and_not_compared(tmp_path):
    text = write_report(left(tmp_path, [row(seed=0), row("dazle", 1), row("msdn", 0)]))
    assert lines_with(text, "| dazle |") and not lines_with(text, "| dazle", " to ")
    assert lines_with(text, "| msdn", " to ")


def test_runs_of_two_codes_are_compared_each_with_their_own_and_so_are_ablations():
    both = [*two_methods(), *two_methods(code="c2", T1=0.9)]
    both += [row("vsmr", s, ablation=a, code=f"c{1 + s // 3}") for s in range(6) for a in ("vsmr", "no hubness")]
    text = all_tables(both)
    for code in ("c1", "c2"):
        after = text[text.index(f"| vsmr (code {code}) minus |") :]
        assert after[after.index("| dazle") :].startswith(f"| dazle (code {code}) | +")
        after = text[text.index(f"Ablation on validation splits (code {code})") :]
        assert lines_with(after, "| no hubness |", "| +0.0 to +0.0 |")


def test_labels_are_printed_wherever_the_row_is():
    rows = two_methods(pretraining_saw_unseen="unknown", finetuned=True, test_T1=0.8, test_H=0.7)
    text = all_tables(rows)
    shown = [line for line in lines_with(text, "| dazle") if "seconds" not in line.lower()]
    assert len(shown) == 5  # test, validation, selected on test, both comparisons
    for line in shown:
        assert "pretraining saw unseen classes: unknown" in line and "backbone fine-tuned" in line
    assert "pretraining" not in all_tables(two_methods())
    assert lines_with(all_tables([row("eszsl-prepared")]), "| eszsl-prepared |", "given vsmr's preparation")


def test_published_rows_only_where_the_data_set_is_the_benchmark():
    assert "| TransZero | 76.8 |" in all_tables([row()]) and "| DAZLE | 59.3 |" in all_tables([row(dataset="SUN")])
    assert "they do not compare" not in all_tables([row()])
    assert "on other features than mobilenet_v2: they do not compare" in all_tables([row(backbone="mobilenet_v2")])
    subset = all_tables([row(notes="drawn with seed 0 | a subset of CUB, numbers do not compare: seen 55")])
    assert "TransZero" not in subset and "not shown: these are not all of its classes" in subset
    assert "Note: drawn with seed 0." in subset
    assert "TransZero" not in all_tables([row(dataset="CUB50")])


def test_runs_that_differ_in_what_they_may_be_compared_with_share_no_mean():
    rows = [row(seed=s) for s in (0, 1)] + [row("dazle", s, -0.1) for s in (0, 1)]
    text = all_tables(rows + [row(seed=s, up=0.1, **NOT_VALIDATED) for s in (2, 3)])
    assert lines_with(text, "| **vsmr** | 70.5 ± 0.7 |") and lines_with(text, "| 82.5 ± 0.7 |", "nothing validated")
    assert lines_with(text, "| dazle | +10.0 (+10.0 to +10.0)", "| 2 |")  # the validated are what others stand against


def test_a_seed_that_is_there_twice_is_refused_and_hostile_names_stay_in_their_cell():
    with pytest.raises(UserError, match="vsmr: seed 0 is there twice"):
        all_tables([row(), row(T1=0.1)])
    text = all_tables([row(dataset="a|b\n| c", method="x|y\nz", notes="n|m")])
    assert lines_with(text, "| x\\|y z |")
    assert not [line for line in text.splitlines() if line.startswith(("| c", "z"))]


def test_ablation_by_hand():
    rows = [row(seed=s, up=u, ablation=a) for a, u in (("vsmr", 0), ("no whitening", -0.05)) for s in range(3)]
    rows += [row(seed=s, ablation="E by gradient", val_AUSUC=0.4 + 0.01 * s + 0.1 * (-1) ** s) for s in range(3)]
    text = all_tables(rows)
    assert lines_with(text, "| no whitening | 66.0 ± 1.0 |", "| -5.0 | -5.0 to -5.0 | significant |")
    assert lines_with(text, "| E by gradient |", "| +3.3 |", "| not significant |") and "test sets |" not in text


def result(select="val", gamma=0.5, **config):
    """A run's metrics.json."""
    chosen = {"epochs": 4, "how": "fixed (--select last)", "recipe": {"hubness": 0.15}, "configurations": 6}
    if select == "val":
        chosen |= {"validation": {k: v / 2 for k, v in METRICS.items()}, "how": "class-disjoint validation split"}
    made = {"dataset": "CUB", "method": "vsmr", "seed": 0, "select": select, "epochs": 5, "precision": "float32"}
    made |= {"code": "c1", "method_code": "m1", "features_sha256": "ab" * 32, "split_sha256": "s1", "gamma_splits": 1}
    made |= {"vectors_sha256": "v1", "recipe": {"alpha": 20}}
    return {
        "config": made | {"features": {"backbone": "mobilenet_v2", "regions": "49 regions"}} | config,
        "chosen": chosen,
        "standard": METRICS | {"gamma": gamma, "H_gamma0": 0.338},
        "selected_on_test": METRICS | {"H": 0.64},
        "published_procedure": {"T1": 0.9},
        "processor_seconds": 3.0,
        "environment": {"device": "cpu", "torch": "2", "threads": 3},
        "notes": ["one", "a note"],
    }


def test_a_row_of_the_summary_says_what_the_run_says():
    found = row_of(result())
    assert {k: found[k] for k in METRICS} == METRICS
    assert {k: found[f"val_{k}"] for k in METRICS} == {k: v / 2 for k, v in METRICS.items()}
    assert {k: found[f"test_{k}"] for k in METRICS} == METRICS | {"H": 0.64} and found["published_T1"] == 0.9
    assert json.loads(found["recipe"]) == {"alpha": 20} and json.loads(found["chosen"]) == {"hubness": 0.15}
    same = {"seed": 0, "most_epochs": 5, "epochs": 4, "configurations": 6, "notes": "one | a note", "cut_off": ""}
    same |= {"pretraining_saw_unseen": "unknown", "backbone": "mobilenet_v2", "precision": "float32", "threads": 3}
    same |= {"features_sha256": "ab" * 32, "vectors_sha256": "v1", "split_sha256": "s1", "code": "c1"}
    same |= {"method_code": "m1", "deviations": "", "select": "val", "torch": "2", "device": "cpu", "seconds": 3.0}
    assert {k: found[k] for k in same} == same


@pytest.mark.parametrize(
    ("method", "epochs", "cut"),
    [("dazle", 4, "4 of its 20 epochs"), ("dazle", 20, ""), ("dazle", 40, ""), ("vsmr-staged", 2, "2 of its 4 epochs")],
)
def test_a_row_says_which_part_of_the_recipes_epochs_was_offered(method, epochs, cut):
    """Fewer than the recipe's are cut off, more are another row; that validation chose few of all is no cut."""
    features = {"pretraining_saw_unseen": "yes", "finetuned": "true", "input_size": "448"}
    found = row_of(result(epochs=epochs, method=method, recipe={}, features=features))
    assert (found["most_epochs"], found["cut_off"]) == (epochs, cut) and found["deviations"]
    assert {k: found[k] for k in features} == features


def test_the_table_of_a_runs_row():
    text = all_tables([row_of(result())])
    assert lines_with(text, "| **vsmr (alpha=20)** |", "| 55.0 | 40.0 | 33.8 |")
    assert "Note: a note." in text and "on other features than mobilenet_v2" in text
    text = all_tables([row_of(result("last", 0.0))])
    assert lines_with(text, "| **vsmr (alpha=20)** |", "nothing validated (--select last): γ = 0, the method's own")


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({"recipe": json.dumps({"alpha": 30})}, ("vsmr", "vsmr (alpha=30)")),
        ({"code": "cx"}, ("vsmr (code c1)", "vsmr (code cx)")),
        ({"method_code": "mx"}, ("vsmr (method code m-vsmr)", "vsmr (method code mx)")),
        ({"precision": "bfloat16"}, ("vsmr (precision float32)", "vsmr (precision bfloat16)")),
        ({"most_epochs": 40}, ("vsmr", "vsmr (40 epochs, recipe 20)")),
        ({"gamma_splits": 5}, ("vsmr (γ splits 1)", "vsmr (γ splits 5)")),
        ({"torch": "3"}, ("vsmr (torch 2)", "vsmr (torch 3)")),
    ],
)
def test_a_method_of_two_kinds_has_two_rows(changes, labels):
    text = all_tables([row(seed=s) for s in range(2)] + [row(seed=s, up=0.2, **changes) for s in range(2)])
    for label, mean in zip(labels, ("70.5", "90.5"), strict=True):
        assert len(lines_with(text, f"| **{label}** | {mean} ± 0.7 |")) == 2, text


def test_an_ablation_of_two_codes_is_refused_and_of_two_versions_of_torch_is_two():
    names = ("vsmr", "no whitening")
    with pytest.raises(UserError, match=r"'vsmr' of CUB: its seeds are runs of vsmr \(method code vsmr0\) and"):
        all_tables([row(seed=s, ablation=a, method_code=f"{a}{s}") for a in names for s in range(2)])
    text = all_tables(
        [row(seed=s, ablation=a, torch=t, up=float(t) / 10) for a in names for t in "12" for s in range(2)]
    )
    said = [line.partition(" (no")[0] for line in lines_with(text, "Ablation on")]
    assert said == [f"Ablation on validation splits (torch {t})" for t in "12"]
    assert len(lines_with(text, "| vsmr | 80.5 ± 0.7 |")) == len(lines_with(text, "| vsmr | 90.5 ± 0.7 |")) == 1


def test_the_p_value_is_that_of_the_measure_it_names():
    """AUSUC is ahead, behind, ahead by the same: all signs are as far from 0. T1 is ahead everywhere: 2 of 8."""
    ours = [row(seed=s, AUSUC=0.5, T1=0.9) for s in (0, 1, 2)]
    other = [row("dazle", s, AUSUC=0.5 + 0.1 * (-1) ** s, T1=0.7) for s in (0, 1, 2)]
    text = all_tables([*ours, *other])
    assert lines_with(text, "| dazle | +20.0 (+20.0 to +20.0)", "| 1.000 | 3 |")
    assert "sign-flip p of AUSUC" in text and "0.25 for 3." in text


def test_seeds_are_paired_by_their_number():
    """The second and third seed of ours are the first two of the other; the files are in any order."""
    asked = []

    def over_classes(ours, other):
        asked.append((list(ours.seed), list(other.seed), set(other.method)))
        return {k: Interval(mean=0.02, low=-0.01, high=0.05) for k in METRICS}

    ours = [row(seed=s, up=s / 10) for s in (2, 0, 1)]
    other = [row("dazle", s, up=s / 10 - 0.05) for s in (3, 1, 2)]
    text = all_tables([*ours, *other], over_classes)
    assert lines_with(text, "| dazle | +5.0 (+5.0 to +5.0)", "| 2 |") and "0.5 for 2." in text
    assert asked == [([1, 2], [1, 2], {"dazle"})]
    assert lines_with(text, "| dazle | +2.0 (-1.0 to +5.0), not significant |") and "bootstrap over test" in text
    ablated = [row(seed=s, up=s / 10, ablation="vsmr") for s in (2, 0, 1)]
    ablated += [row(seed=s, up=s / 10 - 0.05, ablation="no whitening") for s in (3, 1, 2)]
    assert lines_with(all_tables(ablated), "| no whitening |", "| -5.0 | -5.0 to -5.0 | significant |")


def test_a_row_counts_the_seeds_that_have_its_numbers():
    rows = [row(seed=s, configurations=s + 3, **({"test_H": 0.6, "test_T1": 0.7} if s else {})) for s in range(3)]
    text = all_tables(rows)
    assert len(lines_with(text, "| **vsmr** |", "| 5 | 3 |")) == 2  # most configurations, seeds
    assert lines_with(text[text.index("SELECTED ON TEST") :], "| **vsmr** | 70.0 ± 0.0 | 60.0 ± 0.0 | 5 | 2 |")


def test_a_figures_name_is_a_files_and_what_is_no_equal_says_so(tmp_path, drawn):
    where = {"dataset": "../a|b", "backbone": "timm:vit/b 16", "regions": "7x7"}
    rows = [row("vsmr", s, 0.1, **where) for s in range(3)]
    rows += [row("dazle", s, **where) for s in range(2)] + [row("eszsl", s, -0.1, **where) for s in range(3)]
    rows += [row("transzero", s, 0.3, cut_off="20 of its 200 epochs", **where) for s in range(3)]
    rows += [row("msdn", s, -0.2, **NOT_VALIDATED, **where) for s in range(3)]
    write_report(left(tmp_path, rows))
    ((name, (labels, _)),) = drawn.items()
    told = ["transzero; cut off: 20 of its 200 epochs", "vsmr", "dazle; 2 seeds", "eszsl", "msdn; nothing validated"]
    assert labels == told and name.startswith("calibration_..-a-b_timm-vit-b-16_7x7_")


def test_what_is_drawn_and_resampled_is_what_the_runs_wrote(tmp_path):
    """Ours is right everywhere, the other nowhere; another run's scores under a run's name are refused."""
    rows = [row(m, s, recipe='{"lr": 0.0006}' if m == "vsmr" else "{}") for m in ("vsmr", "dazle") for s in (0, 1)]
    assert lines_with(write_report(left(tmp_path, rows)), "| dazle | +100.0 (+100.0 to +100.0)")
    assert [f.name.partition("_CUB")[0] for f in (tmp_path / "figures").glob("*.png")] == ["calibration"]
    (tmp_path / "runs/2/scores.npz").write_bytes((tmp_path / "runs/0/scores.npz").read_bytes())
    with pytest.raises(UserError, match=r"runs.2.scores\.npz is missing or not what the run wrote"):
        write_report(tmp_path)
