"""SLURM's commands as far as a sweep uses them, for tests where there is no SLURM: tasks are processes of this machine.

What a real one of one node said and did is what these imitate (docs/scale.md): names of tasks, variables, `squeue`'s
columns, and that a task which ended is no longer in the queue.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scontrol")
JOB = "7"


def install(folder: Path, monkeypatch) -> Path:
    """Put the commands first in PATH; returns the folder of their state."""
    state = folder / "state"
    state.mkdir(parents=True)
    for name in COMMANDS:
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    return state


def begin(state: Path, task: str) -> None:
    """Start a task of the array, and note its process."""
    names = {"SLURM_JOB_ID": str(100 + int(task)), "SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": task}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    script = str(state / "script.sh")
    process = subprocess.Popen(["bash", script], env=os.environ | names, start_new_session=True, **quiet)
    (state / f"{task}.pid").write_text(str(process.pid))


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def main(command: str, arguments: list[str]) -> int:
    state = Path(os.environ["FAKE_SLURM"])
    if command == "sbatch":
        if (state / "refuse").exists():
            sys.stderr.write("sbatch: error: Batch job submission failed: Invalid partition name specified\n")
            return 1
        text = Path(arguments[0]).read_text()
        (state / "script.sh").write_text(text)
        for task in range(int(re.search(r"--array=0-(\d+)", text)[1]) + 1):
            begin(state, str(task))
        sys.stdout.write(f"Submitted batch job {JOB}" + "\n")
    elif command == "srun":
        numbers = {"%A": JOB, "%a": os.environ["SLURM_ARRAY_TASK_ID"], "%t": "0"}
        words = [re.sub("%[Aat]", lambda found: numbers[found[0]], word) for word in arguments]
        out, err = (words[words.index(flag) + 1] for flag in ("--output", "--error"))
        with open(out, "a") as stdout, open(err, "a") as stderr:
            return subprocess.run(words[words.index("--error") + 2 :], stdout=stdout, stderr=stderr).returncode
    elif command == "squeue":
        if (state / "held").exists():
            sys.stdout.write((state / "held").read_text() + "\n")
            return 0
        for path in state.glob("*.pid"):
            if alive(path.read_text()):
                sys.stdout.write(f"{JOB}_{path.stem}|RUNNING|None" + "\n")
    elif command == "sacct":
        sys.stderr.write("Slurm accounting storage is disabled\n")
        return 1
    elif command == "scontrol":
        begin(state, arguments[1].partition("_")[2])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], sys.argv[2:]))
