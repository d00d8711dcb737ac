"""A sweep as a job array of SLURM, submitted through submitit or printed as a script; nothing here waits for it.

Finished runs are found on disk: the same command submits what is not done yet, and --collect makes the tables.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.experiments.sweep import Job, Plan, attempt, status
from core.files.errors import UserError, library

USUAL = {"requeue": "", "time": "24:00:00"}  # of sbatch's options, where none are given


class Task:
    """What submitit runs on a node. Where it is preempted it is queued again, and the run goes on from its state."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __call__(self, job: Job) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        if failure := attempt(self.plan, job, self.plan.devices[0]):
            raise RuntimeError(failure)

    def checkpoint(self, job: Job) -> Any:
        """Called by submitit before the time is over or the node is taken."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, job)


def submit(plan: Plan, options: Mapping[str, str]) -> str:
    """Submit what is not done yet as one job array; says how to follow it. ``options`` are sbatch's own."""
    with library("--engine slurm", "submitit"):
        import submitit
    jobs = [job for job, state in status(plan) if state not in ("done", "running")]
    if not jobs:
        return "every run is done or running; --collect makes the tables of those that are done\n"
    folder = (plan.out / "jobs" / "slurm").absolute()
    more = {key: value or True for key, value in (USUAL | dict(options)).items()}
    try:
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(job_name="vsmr", time=24 * 60, additional_parameters=more)
        array = executor.map_array(Task(plan), jobs)[0].job_id.partition("_")[0]
    except Exception as error:  # submitit's own kinds, and the system's
        said = (str(error).strip() or repr(error)).splitlines()[-1]
        raise UserError(f"SLURM did not take the job array: {said}") from error
    return f"job array {array} of {len(jobs)} runs, logs in {folder}; --status shows them, --collect makes the tables\n"


def sbatch_script(command: Sequence[str], tasks: int, logs: Path, options: Mapping[str, str]) -> str:
    """A job-array script: task k runs ``command --task k``. ``options`` are sbatch's own, without their dashes."""
    lines = {"job-name": "vsmr", "array": f"0-{tasks - 1}", "output": f"{logs}/%A_%a.log", "open-mode": "append"}
    lines |= USUAL | {"cpus-per-task": "4"} | dict(options)
    said = (f"#SBATCH --{key}" + (f"={shlex.quote(value)}" if value else "") for key, value in lines.items())
    return f"""\
#!/bin/bash
{chr(10).join(said)}
# a task that was preempted or failed continues where it was: submit the same script again
# submit:  mkdir -p {shlex.quote(str(logs))} && sbatch THIS_FILE
# then:    {shlex.join(["python", *command])} --status     and when all are done --collect
cd {shlex.quote(str(Path.cwd()))}
exec {shlex.quote(sys.executable)} {shlex.join(command)} --task $SLURM_ARRAY_TASK_ID
"""
