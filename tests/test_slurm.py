"""A sweep as a job array, in processes, and what it says of itself."""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from core.commands.reproduce import main
from core.experiments import sweep as s
from core.experiments.results import write_json
from core.files.atomic import Lock, read_json
from core.files.errors import UserError
from tests.helpers import ROOT
from tests.helpers_xlsa17 import tiny_features


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
    context = s.multiprocessing.get_context("fork")  # they need not import anything; test_reproduce.py has fresh ones
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
