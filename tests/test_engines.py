"""Engines of a sweep: one job killed and one failing among others, preemption, job arrays by script, and its state."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from core.commands.reproduce import main
from core.experiments import engines, sweep
from core.experiments.engines import KILLED, LocalEngine, SlurmEngine, Task, sbatch_script
from core.files.atomic import Lock
from core.files.errors import UserError
from core.reporting.rows import read_summary
from tests.helpers_jobs import work
from tests.helpers_xlsa17 import tiny_features

JOBS = ["good", "killed", "failing", "raising", "other", "last"]


def outcomes(engine) -> dict[str, str | None]:
    engine.submit(JOBS)
    results = list(engine.results())
    assert len(results) == len(JOBS)
    return {r.job: r.failure for r in results}


def test_processes_outlive_one_that_is_killed(tmp_path, monkeypatch) -> None:
    fork = multiprocessing.get_context("fork")  # they need not import anything; test_reproduce.py has fresh ones
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: fork)
    found = outcomes(LocalEngine(partial(work, tmp_path), 2, ("cpu", "other")))
    assert [found[job] for job in ("good", "other", "last")] == [None] * 3
    assert found["killed"] == KILLED and found["failing"] == "no luck" and found["raising"] == "RuntimeError: a fault"
    assert (tmp_path / "good").read_text().splitlines()[0] == "cpu"
    assert (tmp_path / "killed").read_text().splitlines() == ["other", "other"]  # once among others, once alone


def test_submitit_with_one_task_killed_and_one_failing(tmp_path) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    engine = SlurmEngine(partial(work, tmp_path), tmp_path / "slurm", cluster="local", processes=3, seconds=0.05)
    found = outcomes(engine)
    assert [found[job] for job in ("good", "other", "last")] == [None] * 3
    assert found["failing"] == "no luck"
    assert KILLED in found["killed"] and "RuntimeError: a fault" in found["raising"]
    for job in ("killed", "raising"):
        assert Path(found[job].partition("(log: ")[2].rstrip(")")).is_file()


def test_a_preempted_task_is_submitted_again(tmp_path) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    engine = SlurmEngine(partial(work, tmp_path), tmp_path / "slurm", cluster="local", seconds=0.05)
    engine.submit(["slow"])
    results = engine.results()
    job = engine._executor.submit(engine._task, "slow")
    engine._waiting.clear()
    engine._begun.append(("slow", job))
    deadline = time.time() + 60
    while not (tmp_path / "slow").exists() and time.time() < deadline:
        time.sleep(0.05)
    os.kill(int(children(job._process.pid)[0]), signal.SIGUSR2)
    (outcome,) = results
    assert outcome.failure is None
    assert len((tmp_path / "slow").read_text().splitlines()) == 2


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_what_is_missing_or_unknown_is_said(tmp_path, monkeypatch) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    with pytest.raises(UserError, match="--slurm: submitit does not take"):
        SlurmEngine(work, tmp_path, {"slurm_nonsense": 1}, cluster="local")
    assert Task(work, "cpu").checkpoint("job")._timeout_countdown is not None

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(engines.importlib, "import_module", missing)
    with pytest.raises(UserError, match="pip install submitit"):
        SlurmEngine(work, tmp_path)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict:
    return tiny_features(tmp_path_factory.mktemp("tiny"))


def plan_of(places, out: Path, **changes) -> sweep.Plan:
    plan = sweep.Plan(datasets=("AWA2",), methods=("eszsl",), seeds=(0, 1), out=out, ablation=False, epochs=1, **places)
    return replace(plan, **changes)


def test_a_sweep_through_submitit_has_the_rows_of_one_process(places, tmp_path, monkeypatch) -> None:
    submitit = pytest.importorskip("submitit", reason="submitit is not installed")
    # where there is a SLURM the suite leaves it alone
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: -1))
    first = read_summary(sweep.sweep(plan_of(places, tmp_path / "one")))
    slurm = plan_of(places, tmp_path / "two", engine="slurm", jobs=2, devices=("auto",))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    broken = tmp_path / "two" / first.folder[1] / "metrics.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{}")
    with pytest.raises(sweep.FailedRuns, match=r"1 of 2 runs did not finish:\n  AWA2 eszsl seed 1: .*damaged"):
        sweep.sweep(slurm)
    states = {job.seed: state for job, state, _ in sweep.status(slurm)}
    assert states[0] == "done" and states[1].startswith("failed: ")
    broken.unlink()
    second = read_summary(sweep.sweep(slurm))
    same = [c for c in first if c not in ("seconds", "folder")]
    assert first[same].equals(second[same])
    assert [state for _, state, _ in sweep.status(slurm)] == ["done", "done"]


def test_the_state_of_a_sweep(places, tmp_path, capsys) -> None:
    plan = plan_of(places, tmp_path, seeds=(0, 1, 2, 3))
    for seed in (0, 1):
        folder = tmp_path / "AWA2" / "anything" / "eszsl" / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text("{}\n")
    lock = Lock(tmp_path / "AWA2" / "anything" / "eszsl" / "seed0" / "run")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "AWA2-eszsl-seed2.failed").write_text("no luck")
    assert [state for _, state, _ in sweep.status(plan)] == ["running", "interrupted", "failed: no luck", "not begun"]
    flags = ["--datasets", "AWA2", "--methods", "eszsl", "--seeds", "4", "--no-ablation", "--out", str(tmp_path)]
    assert main(None, [*flags, "--status"]) == 0
    said = capsys.readouterr().out
    assert "AWA2 eszsl seed 0" in said and "1 running" in said and "seed1/log.jsonl" in said
    lock.release()
    assert sweep.status(plan)[0][1] == "interrupted"


def flags_of(places, out: Path) -> list[str]:
    data = ["--data-root", str(places["data_root"]), "--features", str(places["features"]), "--w2v", str(places["w2v"])]
    return [*data, "--out", str(out)]


def test_the_script_runs_every_job_once(places, tmp_path, capsys) -> None:
    """Its lines are run by bash, as SLURM would, with SLURM's variable: one task; the other in this process."""
    flags = ["--datasets", "AWA2", "--methods", "eszsl", "--seeds", "2", "--no-ablation", *flags_of(places, tmp_path)]
    slurm = ["--slurm-partition", "gpu", "--slurm-gpus=1", "--slurm", "constraint=a100", "--engine", "slurm"]
    assert main(None, [*flags, *slurm, "--print-sbatch"]) == 0
    script = capsys.readouterr().out
    for line in ("--array=0-1", "--partition=gpu", "--gpus-per-node=1", "--constraint=a100", "--requeue"):
        assert f"#SBATCH {line}\n" in script
    path = tmp_path / "sweep.sh"
    path.write_text(script)
    done = subprocess.run(
        ["bash", str(path)], env=os.environ | {"SLURM_ARRAY_TASK_ID": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [p.parent.name for p in tmp_path.rglob("metrics.json")] == ["seed1"]
    assert main(None, [*flags, "--task", "0"]) == 0
    assert not (tmp_path / "summary.csv").exists()  # a task writes no shared table
    assert main(None, ["--collect", "--out", str(tmp_path)]) == 0
    assert read_summary(tmp_path / "summary.csv").seed.tolist() == [0, 1]
    with pytest.raises(UserError, match="there are 2 jobs"):
        main(None, [*flags, "--task", "2"])


def test_a_script_is_quoted() -> None:
    script = sbatch_script(["reproduce_tables.py", "--out", "my results"], 3, Path("my results/jobs"), {"time": "1:00"})
    assert "--out 'my results' --task $SLURM_ARRAY_TASK_ID" in script and "#SBATCH --time=1:00\n" in script


def test_a_failed_run_is_a_row_and_the_exit_code_is_2(places, tmp_path, capsys, monkeypatch) -> None:
    real = sweep.execute

    def failing(plan, job, device):
        if job.seed == 1:
            raise RuntimeError("a fault")
        real(plan, job, device)

    monkeypatch.setattr(sweep, "execute", failing)
    flags = ["--datasets", "AWA2", "--methods", "eszsl", "--seeds", "2", "--no-ablation", *flags_of(places, tmp_path)]
    with pytest.raises(UserError, match="AWA2 eszsl seed 1: RuntimeError: a fault"):
        main(None, flags)
    assert "eszsl" in capsys.readouterr().out  # the table of the others


def test_a_plan_has_an_estimate(places, tmp_path, capsys) -> None:
    flags = ["--datasets", "AWA2", "--methods", "eszsl", "vsmr", "--seeds", "2", *flags_of(places, tmp_path)]
    assert main(None, [*flags, "--plan"]) == 0
    said = capsys.readouterr().out
    assert (
        "| AWA2 | eszsl | 2 |" in said and "| AWA2 | vsmr (ablations) |" in said and "hours one after another" in said
    )
    assert not list(tmp_path.iterdir())
