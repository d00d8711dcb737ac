"""reproduce_tables.py: jobs one after another, in processes or as an array, resuming; the summary is of run folders."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest

from core.commands.reproduce import main
from core.experiments import sweep as s
from core.experiments.ablations import ABLATIONS
from core.experiments.results import write_json
from core.files.atomic import Lock, read_json
from core.files.errors import UserError
from core.reporting.tables import all_tables, read_summary
from tests.helpers import ROOT
from tests.helpers_runs import SMALL, inputs_of
from tests.helpers_xlsa17 import tiny_features


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


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict:
    return tiny_features(tmp_path_factory.mktemp("tiny"))


def plan_of(places, out: Path, **changes) -> s.Plan:
    plan = s.Plan(datasets=("AWA2",), methods=("eszsl",), seeds=(0, 1), out=out, ablation=False, epochs=1, **places)
    return replace(plan, **changes)


def flags_of(places, out: Path, seeds: int = 2) -> list[str]:
    data = ["--data-root", str(places["data_root"]), "--features", str(places["features"]), "--w2v", str(places["w2v"])]
    which = ["--datasets", "AWA2", "--methods", "eszsl", "--seeds", str(seeds), "--no-ablation", "--device", "cpu"]
    return [*which, *data, "--out", str(out)]


def test_the_array_runs_every_job_once(places, tmp_path, capsys, monkeypatch) -> None:
    """Its lines are run by bash, as SLURM would, with SLURM's variable: one task; the other in this process."""
    monkeypatch.chdir(tmp_path)  # not where the script lies
    monkeypatch.setattr(sys, "argv", [os.path.relpath(ROOT / "reproduce_tables.py")])
    out = tmp_path / "my results"
    flags = flags_of(places, out)
    assert main(None, [*flags, "--print-sbatch"]) == 0
    (script := tmp_path / "sweep.sh").write_text(text := capsys.readouterr().out)
    (options,) = (shlex.split(line) for line in text.splitlines() if line.startswith("#SBATCH"))
    assert {"--array=0-1", "--requeue", f"--output={out}/jobs/%A_%a.log"} < {*options} and (out / "jobs").is_dir()
    subprocess.run(["bash", script], env=os.environ | {"SLURM_ARRAY_TASK_ID": "1"}, check=True, capture_output=True)
    assert [p.parent.name for p in out.rglob("metrics.json")] == ["seed1"]
    monkeypatch.setattr(sys, "argv", ["vsmr tables"])
    assert main(None, [*flags, "--print-sbatch"]) == 0 and "\nexec vsmr tables --datasets" in capsys.readouterr().out
    assert main(None, [*flags, "--task", "0"]) == 0
    assert not (out / "summary.csv").exists()  # a task writes no shared table
    assert main(None, ["--collect", "--out", str(out)]) == 0
    assert pd.read_csv(out / "summary.csv").seed.tolist() == [0, 1]
    with pytest.raises(UserError, match="there are 2 jobs"):
        main(None, [*flags, "--task", "2"])


def test_the_state_of_a_sweep(places, tmp_path, capsys) -> None:
    plan = plan_of(places, tmp_path, seeds=tuple(range(6)))
    assert s.attempt(plan, s.jobs_of(plan)[0]) is None
    (folder,) = tmp_path.rglob("eszsl")
    done = folder / "seed0" / "metrics.json"
    for seed in (1, 2, 3, 4):
        (folder / f"seed{seed}").mkdir()
    for seed in (1, 2):
        (folder / f"seed{seed}" / "log.jsonl").write_text("{}\n")
    (folder / "seed3" / "metrics.json").write_text("")
    write_json(folder / "seed4" / "metrics.json", read_json(done))  # of seed 0
    flags = [*flags_of(places, tmp_path, seeds=6), "--epochs", "1"]
    with Lock(folder / "seed1" / "run"):
        states = [state for _, state in s.status(plan)]
        assert states[:3] == ["done", "running", "begun"] and states[5] == "not begun"
        assert states[3].startswith("refused: ") and "of a run with other seed" in states[4]
        assert main(None, [*flags, "--status"]) == 0
        said = capsys.readouterr().out
    assert "   0 AWA2 eszsl seed 0" in said and "2 refused, 1 done, 1 running, 1 begun, 1 not begun" in said
    assert "of a run with other epochs" in s.status(replace(plan, epochs=2))[0][1]


def killed(plan: s.Plan, job: s.Job) -> str | None:
    """In place of a run: the last one kills its own process, once the others have ended."""
    if job.seed == 3:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    return "a fault" if job.seed == 1 else None


def test_a_process_that_is_killed_ends_in_a_sentence(places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(s, "attempt", killed)
    context = s.multiprocessing.get_context("fork")  # they need not import anything; above are fresh ones
    monkeypatch.setattr(s.multiprocessing, "get_context", lambda _: context)
    plan = plan_of(places, tmp_path, seeds=tuple(range(4)), jobs=2)
    found = {job.seed: failure for job, failure in s._in_processes(plan, s.jobs_of(plan))}
    assert found == {0: None, 1: "a fault", 2: None, 3: s.KILLED}


def test_a_failed_run_is_a_row_and_the_exit_code_is_2(places, tmp_path, capsys, monkeypatch) -> None:
    real = s.run

    def failing(config, *a, **k):
        if config.seed == 1:
            raise RuntimeError("a fault")
        real(config, *a, **k)

    monkeypatch.setattr(s, "run", failing)
    with pytest.raises(UserError, match=r"1 of 2 runs did not finish:\n  AWA2 eszsl seed 1: RuntimeError: a fault"):
        main(None, flags_of(places, tmp_path))
    assert "| eszsl" in capsys.readouterr().out  # the table of the others
