"""A sweep as a job array (through submitit, or as a script for sbatch), in processes, and what it says of itself.

There is no SLURM where the tests run: an `sbatch` of a few lines takes the place of the real one and keeps the script.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from core.commands.reproduce import main
from core.experiments import sweep as s
from core.experiments.results import seal, write_json
from core.experiments.slurm import Task
from core.files.atomic import Lock, read_json
from core.files.errors import UserError
from tests.helpers_xlsa17 import tiny_features

SBATCH = """#!/bin/sh
[ -e {refuse} ] && { echo 'sbatch: error: Invalid partition name specified' >&2; exit 1; }
cp "$1" {script}; echo 'Submitted batch job 7'
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict:
    return tiny_features(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Folder of an imitated SLURM: what was submitted is in its script.sh; while `refuse` is there nothing is taken."""
    pytest.importorskip("submitit", reason="submitit is not installed")
    folder = tmp_path / "slurm"
    folder.mkdir()
    text = SBATCH.replace("{refuse}", str(folder / "refuse")).replace("{script}", str(folder / "script.sh"))
    for name, content in (("sbatch", text), ("srun", "#!/bin/sh\n"), ("sacct", "#!/bin/sh\nexit 1\n")):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def plan_of(places, out: Path, **changes) -> s.Plan:
    plan = s.Plan(datasets=("AWA2",), methods=("eszsl",), seeds=(0, 1), out=out, ablation=False, epochs=1, **places)
    return replace(plan, **changes)


def flags_of(places, out: Path, seeds: int = 2) -> list[str]:
    data = ["--data-root", str(places["data_root"]), "--features", str(places["features"]), "--w2v", str(places["w2v"])]
    which = ["--datasets", "AWA2", "--methods", "eszsl", "--seeds", str(seeds), "--no-ablation", "--device", "cpu"]
    return [*which, *data, "--out", str(out)]


def test_an_array_is_submitted_of_what_is_not_done_and_the_command_returns(places, slurm, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    flags = flags_of(places, out, seeds=3)
    assert main(None, [*flags, "--task", "1"]) == 0
    flags += ["--engine", "slurm"]
    more = ["--slurm-partition=gpu", "--slurm-time=1-12", "--slurm-constraint=a100", "--slurm-exclusive="]
    assert main(None, [*flags, *more]) == 0
    said = capsys.readouterr().out
    assert "job array 7 of 2 runs" in said and "--collect" in said
    script = (slurm / "script.sh").read_text()
    for option in ("array=0-1%2", "partition=gpu", "time=1-12", "constraint=a100", "exclusive", "requeue"):
        assert f"#SBATCH --{option}\n" in script
    code = "import submitit, sys; [submitit.core.utils.DelayedSubmission.load(p).result() for p in sys.argv[1:]]"
    pickled = [str(path) for path in out.rglob("*.pkl")]
    subprocess.run([sys.executable, "-c", code, *pickled], check=True, capture_output=True)  # as nodes would
    assert {p.parent.name for p in out.rglob("metrics.json")} == {"seed0", "seed1", "seed2"}
    assert main(None, flags) == 0
    assert "every run is done" in capsys.readouterr().out
    assert Task(plan_of(places, out)).checkpoint("job")._timeout_countdown is not None  # queued again by submitit


def test_what_is_missing_or_refused_is_said(places, slurm, tmp_path, monkeypatch) -> None:
    flags = [*flags_of(places, tmp_path / "out"), "--slurm-partition=gpu"]
    with pytest.raises(UserError, match="add --engine slurm"):
        main(None, flags)
    (slurm / "refuse").touch()
    with pytest.raises(UserError, match="SLURM did not take the job array: .*Invalid partition name"):
        main(None, [*flags, "--engine", "slurm"])
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="pip install submitit"):
        main(None, [*flags, "--engine", "slurm"])
    plan = plan_of(places, tmp_path, features=tmp_path / "none.hdf5", devices=("cpu",))
    with pytest.raises(RuntimeError, match="no feature file"):
        Task(plan)(s.Job(dataset="AWA2", method="eszsl", seed=0))
    assert "no feature file" in (tmp_path / "jobs" / "AWA2-eszsl-seed0.failed").read_text()


def test_the_script_runs_every_job_once(places, tmp_path, capsys) -> None:
    """Its lines are run by bash, as SLURM would, with SLURM's variable: one task; the other in this process."""
    out = tmp_path / "my results"
    flags = flags_of(places, out)
    slurm = ["--slurm-partition=gpu", "--slurm-comment=two words", "--engine", "slurm"]
    assert main(None, [*flags, *slurm, "--print-sbatch"]) == 0
    script = capsys.readouterr().out
    words = [shlex.split(line.removeprefix("#SBATCH ")) for line in script.splitlines() if line.startswith("#SBATCH")]
    for option in ("array=0-1", "partition=gpu", "comment=two words", "requeue"):
        assert [f"--{option}"] in words  # as sbatch reads them
    (tmp_path / "sweep.sh").write_text(script)
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "1"}
    subprocess.run(["bash", str(tmp_path / "sweep.sh")], env=environment, check=True, capture_output=True)
    assert [p.parent.name for p in out.rglob("metrics.json")] == ["seed1"]
    assert main(None, [*flags, "--task", "0"]) == 0
    assert not (out / "summary.csv").exists()  # a task writes no shared table
    assert main(None, ["--collect", "--out", str(out)]) == 0
    assert pd.read_csv(out / "summary.csv").seed.tolist() == [0, 1]
    with pytest.raises(UserError, match="there are 2 jobs"):
        main(None, [*flags, "--task", "2"])


def test_the_state_of_a_sweep(places, tmp_path, capsys) -> None:
    plan = plan_of(places, tmp_path, seeds=tuple(range(7)))
    assert s.attempt(plan, s.jobs_of(plan)[0], "cpu") is None
    (folder,) = tmp_path.rglob("eszsl")
    done = folder / "seed0" / "metrics.json"
    for seed in (1, 2):
        (folder / f"seed{seed}").mkdir()
        (folder / f"seed{seed}" / "log.jsonl").write_text("{}\n")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "AWA2-eszsl-seed3.failed").write_text("no luck")
    for seed in (4, 5):
        (folder / f"seed{seed}").mkdir()
    (folder / "seed4" / "metrics.json").write_text("")
    write_json(folder / "seed5" / "metrics.json", seal(read_json(done)))  # of seed 0
    flags = [*flags_of(places, tmp_path, seeds=7), "--epochs", "1"]
    with Lock(folder / "seed1" / "run"):
        states = [state for _, state in s.status(plan)]
        assert states[:4] == ["done", "running", "interrupted", "failed: no luck"]
        assert states[4].startswith("failed: ") and "not readable JSON" in states[4]
        assert states[5].endswith("is of other settings or code") and states[6] == "not begun"
        assert main(None, [*flags, "--status"]) == 0
        said = capsys.readouterr().out
    assert "AWA2 eszsl seed 0" in said and "3 failed, 1 done, 1 running, 1 interrupted, 1 not begun" in said
    assert s.status(plan)[1][1] == "interrupted"
    assert s.status(replace(plan, epochs=2))[0][1].endswith("is of other settings or code")


def killed(plan: s.Plan, job: s.Job, device: str) -> str | None:
    """In place of a run: one kills its own process, one fails."""
    with open(plan.out / f"seed{job.seed}", "a") as handle:
        handle.write(f"{device}\n")
    if job.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "no luck" if job.seed == 2 else None


def test_processes_outlive_one_that_is_killed(places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(s, "attempt", killed)
    context = s.multiprocessing.get_context("fork")  # they need not import anything; test_reproduce.py has fresh ones
    monkeypatch.setattr(s.multiprocessing, "get_context", lambda _: context)
    plan = plan_of(places, tmp_path, seeds=tuple(range(6)), jobs=2, devices=("cpu", "other"))
    found = {job.seed: failure for job, failure in s._in_processes(plan, s.jobs_of(plan))}
    assert found == {0: None, 1: s.KILLED, 2: "no luck", 3: None, 4: None, 5: None}
    assert {(tmp_path / f"seed{k}").read_text().splitlines()[0] for k in (0, 2, 4)} == {"cpu"}
    assert len((tmp_path / "seed1").read_text().splitlines()) == 2  # once among others, once alone
    assert (tmp_path / "jobs" / "AWA2-eszsl-seed1.failed").read_text() == s.KILLED


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
