"""Command line of reproduce_tables.py: run what is missing, rebuild summary.csv, write tables and figures."""

from __future__ import annotations

import logging
import sys
from argparse import BooleanOptionalAction, Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.commands import flags
from core.commands.parser import Parser, from_flags, whole
from core.datasets.registry import DATASETS
from core.files.errors import UserError
from core.methods import methods

if TYPE_CHECKING:
    from core.experiments.sweep import Plan

log = logging.getLogger(__name__)
_SLURM = ("partition", "time", "gpus", "mem", "account", "qos")  # flags of their own


def parser(description: str | None) -> Parser:
    p = Parser(description)
    p.add_argument("--datasets", nargs="+", choices=[*DATASETS], default=["AWA2", "CUB", "SUN"], help="(AWA2 CUB SUN)")
    usual = [name for name, m in methods().items() if not m.needs_text]
    p.add_argument("--methods", nargs="+", choices=[*methods()], default=usual, help="(all but clip's)")
    p.add_argument("--demo", action="store_true", help="the synthetic data set instead, made where missing")
    flags.add_seeds(p, 10)
    flags.add_data(p, "DS")
    flags.add_device(p)
    p.add_argument("--out", type=Path, default=Path("results"), help="(results)")
    p.add_argument("--jobs", type=whole(1), default=1, help="processes; each holds its data set's features (1)")
    p.add_argument("--engine", choices=("local", "slurm"), default="local", help="slurm: submit a job array (local)")
    for name in _SLURM:
        p.add_argument(f"--slurm-{name}", metavar="VALUE", help="of each task, as sbatch takes it")
    p.add_argument(
        "--slurm", action="append", default=[], metavar="KEY=VALUE", help="another option of sbatch; may be repeated"
    )
    p.add_argument("--print-sbatch", action="store_true", help="run nothing: print a job-array script")
    p.add_argument("--task", type=whole(0), help="run this one of the jobs alone and write no table (job arrays)")
    p.add_argument("--status", action="store_true", help="run nothing: which runs are done, running, failed, not begun")
    p.add_argument("--epochs", type=whole(0), help="most epochs of every method (each recipe's own)")
    p.add_argument("--ablation", action=BooleanOptionalAction, default=True, help="the ablation of vsmr (yes)")
    p.add_argument(
        "--diagnostics", action=BooleanOptionalAction, default=True, help="the rows labelled 'selected on test' (yes)"
    )
    p.add_argument("--collect", action="store_true", help="run nothing: tables of the finished runs below OUT")
    p.add_argument("--docs", type=Path, help="also write the tables and their CSV to this folder (no)")
    return p


def main(description: str | None = None, argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser(description).parse_args(argv)
    datasets = ["DEMO"] if args.demo else args.datasets
    if len(datasets) > 1 and (args.features or args.w2v):
        raise UserError("--features and --w2v name one file; give a single data set with --datasets")
    if args.engine == "local" and not args.print_sbatch and (given := [w for w in argv if w.startswith("--slurm")]):
        raise UserError(f"{given[0]} says where SLURM runs a task, and this would run here: add --engine slurm")
    from core.experiments.slurm import submit
    from core.experiments.sweep import FailedRuns, Plan, collect, sweep
    from core.reporting.report import write_report

    failed = None
    if args.collect:
        collect(args.out)
    else:
        if args.demo:
            from core.commands.demo import prepare_demo

            prepare_demo(args.data_root or Path("data"))
        # of SLURM's nodes only they know which devices there are
        devices = _devices(args.device) if args.engine == "local" else (args.device,)
        named = {"datasets": tuple(datasets), "methods": tuple(args.methods), "seeds": flags.seeds_of(args)}
        plan = from_flags(Plan, args, devices=devices, **named)
        if args.print_sbatch or args.status or args.task is not None:
            return _instead(plan, args, argv)
        if args.engine == "slurm":
            sys.stdout.write(submit(plan, _sbatch_options(args)))
            return 0
        try:
            sweep(plan)
        except FailedRuns as error:  # a line of the report; the others are in the tables
            failed = error
    sys.stdout.write("\n" + write_report(args.out, args.docs))
    if failed is not None:
        raise failed
    return 0


def _instead(plan: Plan, args: Namespace, argv: Sequence[str]) -> int:
    """What --print-sbatch, --status and --task do in place of the sweep."""
    from core.experiments.slurm import sbatch_script
    from core.experiments.sweep import attempt, jobs_of, status

    jobs = jobs_of(plan)
    if args.task is not None:
        if args.task >= len(jobs):
            raise UserError(f"--task {args.task}: there are {len(jobs)} jobs, 0 to {len(jobs) - 1}")
        log.info("task %d: %s", args.task, jobs[args.task])
        if failure := attempt(plan, jobs[args.task], plan.devices[0]):
            raise UserError(f"{jobs[args.task]}: {failure}")
    elif args.print_sbatch:
        command = ["reproduce_tables.py", *_without_slurm(argv)]
        sys.stdout.write(sbatch_script(command, len(jobs), args.out / "jobs" / "slurm", _sbatch_options(args)))
    else:
        states = status(plan)
        for job, state, where in states:
            sys.stdout.write(f"{job!s:<48} {state}{f' ({where})' if where else ''}\n")
        counts = Counter(state.partition(":")[0] for _, state, _ in states)
        sys.stdout.write(", ".join(f"{count} {state}" for state, count in counts.most_common()) + "\n")
    return 0


def _sbatch_options(args: Namespace) -> dict[str, str]:
    """The --slurm flags as sbatch names them."""
    if wrong := [pair for pair in args.slurm if "=" not in pair.strip("=")]:
        raise UserError(f"--slurm {wrong[0]}: KEY=VALUE is needed, such as --slurm constraint=a100")
    given = {"gpus-per-node" if name == "gpus" else name: getattr(args, f"slurm_{name}") for name in _SLURM}
    return {k: v for k, v in given.items() if v is not None} | dict(pair.split("=", 1) for pair in args.slurm)


def _without_slurm(argv: Sequence[str]) -> list[str]:
    """The flags that a task repeats: all but those that are about SLURM."""
    kept, skip = [], False
    for word in argv:
        if skip or word == "--print-sbatch":
            skip = False
        elif word.startswith(("--slurm", "--engine")):
            skip = "=" not in word
        else:
            kept.append(word)
    return kept


def _devices(name: str) -> tuple[str, ...]:
    """cuda without a number: every GPU there is."""
    import torch

    from core.features.devices import resolve_device

    device = resolve_device(name)
    if device.type == "cuda" and device.index is None:
        return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    return (str(device),)
