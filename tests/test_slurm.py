"""Sweeps under SLURM: job arrays by submitit's SLURM executor against commands that imitate SLURM's (fake_slurm.py)."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from core.commands.reproduce import main
from core.experiments.engines import SlurmEngine, minutes_of, sbatch_script, slurm_queue
from core.files.errors import UserError
from tests import fake_slurm
from tests.helpers_jobs import work

pytest.importorskip("submitit", reason="submitit is not installed")
JOBS = ["good", "killed", "failing", "raising", "other"]


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    return fake_slurm.install(tmp_path / "bin", monkeypatch)


def engine_of(tmp_path: Path, **parameters) -> SlurmEngine:
    return SlurmEngine(partial(work, tmp_path), tmp_path / "slurm", parameters, seconds=0.05, queue_seconds=0.3)


def test_an_array_with_one_task_killed_and_one_failing_where_slurm_keeps_no_accounts(slurm, tmp_path) -> None:
    engine = engine_of(tmp_path, slurm_partition="gpu", slurm_time=minutes_of("1:30:00"))
    engine.submit(JOBS)
    found = {r.job: r for r in engine.results()}
    assert [found[job].failure for job in ("good", "other")] == [None, None]
    assert found["failing"].failure == "no luck" and "RuntimeError: a fault" in found["raising"].failure
    assert found["killed"].failure.startswith("SLURM ended its task; the same command continues it (log: ")
    assert found["killed"].log.is_file()
    script = (slurm / "script.sh").read_text()
    for line in ("--array=0-4%5", "--time=90", "--partition=gpu", "--requeue", "--signal=USR2@90"):
        assert f"#SBATCH {line}\n" in script


def test_a_preempted_task_is_queued_again(slurm, tmp_path) -> None:
    engine = engine_of(tmp_path, slurm_time=minutes_of("30:00"))
    engine.submit(["slow", "good"])
    deadline = time.time() + 60
    while not (tmp_path / "slow").exists() and time.time() < deadline:
        time.sleep(0.05)
    first = (slurm / "0.pid").read_text()
    pids = [p.name for p in Path("/proc").iterdir() if p.name.isdecimal() and of_task(p, first)]
    os.kill(int(max(pids, key=int)), signal.SIGUSR2)  # SLURM sends it to what srun started
    assert {r.job: r.failure for r in engine.results()} == {"slow": None, "good": None}
    assert len((tmp_path / "slow").read_text().splitlines()) == 2
    assert (slurm / "0.pid").read_text() != first


def of_task(process: Path, session: str) -> bool:
    try:
        is_python = (
            "submitit.core._submit" in (process / "cmdline").read_text()
            and "fake_slurm" not in (process / "cmdline").read_text()
        )
        return is_python and (process / "stat").read_text().rpartition(")")[2].split()[3] == session
    except OSError:
        return False


def test_what_slurm_refuses_and_what_it_does_not_begin_is_said(slurm, tmp_path, caplog) -> None:
    (slurm / "refuse").touch()
    with pytest.raises(UserError, match="SLURM did not take the job array: .*Invalid partition name"):
        engine_of(tmp_path).submit(JOBS)
    (slurm / "held").write_text("7_0|PENDING|PartitionTimeLimit\n7_1|PENDING|Priority\n7_2|RUNNING|None")
    assert slurm_queue() == {"7_0": "PartitionTimeLimit", "7_1": "Priority", "7_2": ""}
    (slurm / "refuse").unlink()
    engine = engine_of(tmp_path)
    engine.submit(["good", "other"])
    done = []
    for outcome in engine.results():
        done.append(outcome.job)
        if len(done) == 1:
            (slurm / "held").unlink()
    assert sorted(done) == ["good", "other"]
    assert "SLURM has 1 tasks waiting: PartitionTimeLimit; the partition allows less time" in caplog.text
    assert "Priority" not in caplog.text


def test_runs_that_slurm_has_are_not_submitted_twice(slurm, tmp_path) -> None:
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "7_jobs.json").write_text(json.dumps({"7_0": "good", "7_1": "other"}))
    (slurm / "held").write_text("7_1|PENDING|Priority")
    with pytest.raises(UserError, match=r"SLURM still has 1 of these runs.*\(task 7_1: other\).*scancel 7"):
        engine_of(tmp_path).submit(["good", "other"])
    engine = engine_of(tmp_path)
    engine.submit(["good", "last"])  # the task of "good" has ended
    (slurm / "held").unlink()
    assert sorted(r.job for r in engine.results()) == ["good", "last"]


def test_an_interrupted_command_says_that_slurm_goes_on(slurm, tmp_path, caplog, monkeypatch) -> None:
    engine = engine_of(tmp_path)
    engine.submit(["good", "other"])

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("core.experiments.engines.time.sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(engine.results())
    assert "job array 7 goes on without this command" in caplog.text and "`scancel 7`" in caplog.text
    list(engine.results())


def test_without_slurm_it_is_said_that_this_machine_works(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = engine_of(tmp_path)
    assert "no SLURM here" in caplog.text
    engine.submit(["good"])
    assert [r.failure for r in engine.results()] == [None]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("30:01", 31), ("1:30:00", 90), ("1-12", 2160), ("1-12:30", 2190), ("1-0:0:1", 1441), (" 5 ", 5)],
)
def test_a_time_limit_is_in_minutes(text, minutes) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "1h", "1-", "-5", "1:2:3:4", "UNLIMITED"])
def test_what_is_no_time_limit_is_refused(text) -> None:
    with pytest.raises(UserError, match="--slurm-time .*such as 2:00:00"):
        minutes_of(text)


def test_flags_of_slurm_without_slurm_are_refused(tmp_path) -> None:
    flags = ["--datasets", "SUN", "--out", str(tmp_path), "--device", "cpu"]
    with pytest.raises(UserError, match="--slurm-partition .* add --engine slurm"):
        main(None, [*flags, "--slurm-partition", "gpu"])
    with pytest.raises(UserError, match="submitit does not take"):
        main(None, [*flags, "--engine", "slurm", "--slurm", "cpus_per_task=two"])


def test_a_script_with_a_space_in_its_place_is_one_that_sbatch_reads(tmp_path) -> None:
    script = sbatch_script(["reproduce_tables.py"], 3, Path("my results/jobs"), {"comment": "two words"})
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    words = [shlex.split(line) for line in directives]  # as sbatch reads them
    assert ["--output=my results/jobs/%A_%a.log"] in words and ["--comment=two words"] in words
    assert all(len(parts) == 1 for parts in words)
    path = tmp_path / "sweep.sh"
    path.write_text(script)
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
