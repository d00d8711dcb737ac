"""A sweep as a job array of SLURM: a script for sbatch; nothing here waits for it.

Finished runs are found on disk: a task of one reads it back, and --collect makes the tables.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def sbatch_script(command: Sequence[str], tasks: int, logs: Path, options: Mapping[str, str]) -> str:
    """A job-array script: task k runs ``command --task k``. ``options`` are sbatch's own, without their dashes."""
    lines = {"job-name": "vsmr", "array": f"0-{tasks - 1}", "output": f"{logs}/%A_%a.log", "open-mode": "append"}
    lines |= {"requeue": "", "time": "24:00:00", "cpus-per-task": "4"} | dict(options)
    said = (f"#SBATCH --{key}" + (f"={shlex.quote(value)}" if value else "") for key, value in lines.items())
    return f"""\
#!/bin/bash
{chr(10).join(said)}
# a task that was preempted or failed continues where it was: submit the same script again
# follow:  {shlex.join(["python", *command])} --status     and when all are done --collect
cd {shlex.quote(str(Path.cwd()))}
exec {shlex.quote(sys.executable)} {shlex.join(command)} --task $SLURM_ARRAY_TASK_ID
"""
