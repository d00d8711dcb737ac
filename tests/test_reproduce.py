"""reproduce_tables.py: jobs in processes or one after another, resuming, summary.csv from the run folders alone."""

import json
from dataclasses import asdict, replace

import pandas as pd
import pytest

from core.commands.reproduce import main
from core.experiments import sweep as s
from core.experiments.ablations import ABLATIONS
from core.files.errors import UserError
from core.reporting.tables import all_tables, read_summary
from tests.helpers_runs import SMALL, inputs_of


@pytest.fixture
def toy_plan(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(s, "_inputs", lambda *a, **k: inputs_of(toy))
    small = dict(SMALL)
    small |= {"eszsl-prepared": SMALL["eszsl"], "dazle-prepared": SMALL["dazle"]}
    real = s.with_settings

    def smaller(recipe, changes):
        name = next(n for n, m in s.methods().items() if m.recipe("TOY") == recipe)
        return real(recipe, small[name] | changes)

    monkeypatch.setattr(s, "with_settings", smaller)
    methods = ("vsmr", "dazle", "vsmr-staged", "eszsl", "eszsl-prepared")
    return s.Plan(datasets=("TOY",), methods=methods, seeds=(0, 1), out=tmp_path / "results", epochs=5)


def swept(plan):
    assert s.sweep(plan) == []
    return s.collect(plan.out)


def test_everything_runs_once_and_the_tables_say_what_is_what(toy_plan, monkeypatch, capsys):
    path = swept(toy_plan)
    first = path.read_bytes()
    table = read_summary(path)
    assert len(table) == 2 * (5 + len(ABLATIONS))
    plain = table[table.ablation == ""]
    assert plain[["T1", "U", "S", "H", "AUSUC", "val_AUSUC", "test_H"]].notna().all().all()
    assert table[table.ablation != ""]["T1"].isna().all()  # validation only

    def forbidden(*a, **k):
        raise AssertionError("a finished run was repeated")

    monkeypatch.setattr("core.experiments.run.train", forbidden)
    assert swept(toy_plan).read_bytes() == first
    text = all_tables(table)
    for words in ("**vsmr", "SELECTED ON TEST", "PUBLISHED PROCEDURE", "no whitening", "sign-flip", "optimistic"):
        assert words in text
    assert "CUT OFF" in text and "5 of its 20 epochs" in text  # of dazle
    assert main(None, ["--collect", "--out", str(toy_plan.out)]) == 0
    printed = capsys.readouterr().out
    assert "minus, over classes" in printed  # from the scores in the run folders
    assert (toy_plan.out / "tables.md").read_text().strip() == printed.strip()


def test_the_summary_is_a_function_of_the_run_folders(toy_plan):
    plan = replace(toy_plan, methods=("eszsl",), ablation=False)
    path = swept(plan)
    content = path.read_bytes()
    path.write_text(path.read_text().replace(",0.", ",0.9"))  # an edited summary never becomes a table
    assert main(None, ["--collect", "--out", str(plan.out)]) == 0
    assert path.read_bytes() == content
    (damaged,) = plan.out.rglob("seed1/metrics.json")
    damaged.write_text(damaged.read_text().replace('"T1": 0', '"T1": 1', 1))
    with pytest.raises(UserError, match="damaged or was changed by hand"):
        s.collect(plan.out)
    with pytest.raises(UserError, match="--docs goes with --board"):
        main(None, ["--docs", str(path.parent), "--collect", "--out", str(plan.out)])
    with pytest.raises(UserError, match="no finished run below"):  # an old summary is no table
        s.collect(path.parent / "empty")


def test_other_data_never_share_a_folder_a_row_or_a_mean(toy_plan, toy, monkeypatch):
    plan = replace(toy_plan, methods=("eszsl",), ablation=False)
    swept(plan)
    others = [{f"{of}_sha256": "other"} for of in ("features", "vectors", "split")]
    for changes in (*others, {"provenance": {"backbone": "toy", "regions": "14x14", "name": "toy"}}):
        monkeypatch.setattr(s, "_inputs", lambda *a, changes=changes, **k: replace(inputs_of(toy), **changes))
        swept(plan)
    table = read_summary(plan.out / "summary.csv")
    assert len(table) == 10 and table.folder.nunique() == 10
    assert [line for line in all_tables(table).splitlines() if line.startswith("| eszsl | ") and "| 2 |" in line]


def test_a_job_is_the_run_that_the_plan_names(toy, tmp_path, monkeypatch):
    """The data set's own recipe, the plan's epochs and precision, the job's seed, an ablation's change."""
    asked = []
    inputs = replace(inputs_of(toy), dataset="SUN")
    monkeypatch.setattr(s, "_inputs", lambda *a, **k: inputs)
    monkeypatch.setattr(s, "run", lambda config, i, out, **k: asked.append((config, out, k)))
    job = s.Job(dataset="SUN", method="dazle", seed=4)
    recipe = asdict(s.find_method("dazle").recipe("SUN"))
    for changes, epochs in (({"precision": "bfloat16"}, 100), ({"epochs": 7}, 7)):
        plan = s.Plan(datasets=("SUN",), out=tmp_path, **changes)
        s.attempt(plan, job)
        config, out, options = asked.pop()
        assert (config.method, config.seed, config.select, config.recipe) == ("dazle", 4, "val", recipe)
        assert (config.epochs, config.precision) == (epochs, changes.get("precision", "float32"))
        assert options == {"ablation": None}
        assert out == tmp_path / "SUN" / inputs.variant / "dazle" / "seed4"
    whole = s.find_method("vsmr").recipe("SUN")
    for ablation, changes in ABLATIONS.items():
        s.attempt(plan, replace(job, method="vsmr", ablation=ablation))
        config, out, options = asked.pop()
        assert options["ablation"] == ablation and config.epochs == 7
        assert config.recipe == asdict(whole) | changes
        assert out.parts[-3] == "ablation" and ablation.split()[0] in out.parts[-2]


def test_seeds_in_processes_give_the_same_rows(tmp_path):
    """The real thing, in two processes, on files: its rows are those of one process but for the times."""
    from tests.helpers_xlsa17 import tiny_features  # a feature file and vectors on disk

    frames = []
    for jobs in (1, 2):
        plan = s.Plan(
            datasets=("AWA2",), methods=("eszsl", "vsmr"), seeds=(0, 1), out=tmp_path / str(jobs), ablation=False,
            jobs=jobs, epochs=1, **tiny_features(tmp_path / f"data{jobs}"),
        )  # fmt: skip
        frames.append(read_summary(swept(plan)))
    same = [c for c in frames[0] if c not in ("seconds", "folder", "threads")]
    pd.testing.assert_frame_equal(frames[0][same], frames[1][same])


def test_a_board_has_every_feature_file_and_its_cheapest_method_first(tmp_path):
    """By the processor seconds of its rows; what nobody measured comes last."""
    for method, seconds in (("eszsl", 9.0), ("sae", 3.0)):
        row = tmp_path / "board" / "CUB" / "x" / method / "seed0.json"
        row.parent.mkdir(parents=True)
        row.write_text(json.dumps({"processor_seconds": seconds}))
    (tmp_path / "CUB").mkdir()
    for backbone in ("a", "b"):
        (tmp_path / "CUB" / f"feature_map_{backbone}_CUB.hdf5").touch()
    where = {"datasets": ("CUB",), "seeds": (0,), "data_root": tmp_path, "board": tmp_path / "board"}
    jobs = s.jobs_of(s.Plan(methods=("gda", "eszsl", "sae"), **where))
    assert [f"{job}" for job in jobs] == [f"CUB {f}_CUB {m} seed 0" for m in ("sae", "eszsl", "gda") for f in "ab"]
