"""Command line of reproduce_tables.py: run what is missing, rebuild summary.csv, write tables and figures."""

from __future__ import annotations

import sys
from argparse import BooleanOptionalAction
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from core.commands import flags
from core.commands.parser import Parser, from_flags, whole
from core.datasets.registry import DATASETS
from core.files.errors import UserError
from core.methods import methods


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
    p.add_argument("--slurm-OPTION", metavar="=VALUE", help="any option of sbatch, such as --slurm-partition=gpu")
    p.add_argument("--print-sbatch", action="store_true", help="run nothing: print a job-array script for sbatch")
    p.add_argument("--task", type=whole(0), help="run this one of the jobs alone and write no table (job arrays)")
    p.add_argument("--status", action="store_true", help="run nothing: which runs are done, running, failed, not begun")
    p.add_argument("--epochs", type=whole(0), help="most epochs of every method (each recipe's own)")
    for flag, said in (("--ablation", "the ablation of vsmr"), ("--diagnostics", "rows labelled 'selected on test'")):
        p.add_argument(flag, action=BooleanOptionalAction, default=True, help=f"{said} (yes)")
    p.add_argument("--collect", action="store_true", help="run nothing: tables of the finished runs below OUT")
    board = Path("results/board")
    said = f"every method on every feature file, cheapest first; a file a run in this folder ({board})"
    p.add_argument("--board", nargs="?", const=board, type=Path, help=said)
    said = "run nothing but the ensemble of finished runs, or of methods seed by seed: the mean of standardised scores"
    p.add_argument("--ensemble", nargs="+", type=Path, metavar="FOLDER", help=said)
    p.add_argument("--docs", type=Path, help="also write the tables and their CSV to this folder (no)")
    return p


def main(description: str | None = None, argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    of_slurm = [w for w in words if w.startswith("--slurm-") and "=" in w]
    words, sbatch = [w for w in words if w not in of_slurm], dict(w[len("--slurm-") :].split("=", 1) for w in of_slurm)
    args = parser(description).parse_args(words)
    datasets = ["DEMO"] if args.demo else args.datasets
    if len(datasets) > 1 and (args.features or args.w2v):
        raise UserError("--features and --w2v name one file; give a single data set with --datasets")
    if sbatch and not args.print_sbatch:
        raise UserError(f"--slurm-{next(iter(sbatch))} is for SLURM: add --print-sbatch | sbatch")
    # what parsing and --help do not need: pandas, scipy and matplotlib take seconds
    import torch

    from core.experiments.board import collect_board
    from core.experiments.ensemble import ensembles
    from core.experiments.slurm import sbatch_script
    from core.experiments.sweep import Plan, attempt, collect, jobs_of, status, sweep
    from core.features.devices import resolve_device
    from core.reporting.board import write_board
    from core.reporting.report import write_report

    if args.demo and not args.collect:
        from core.commands.demo import prepare_demo

        prepare_demo(args.data_root or Path("data"))
    named = {"datasets": tuple(datasets), "methods": tuple(args.methods), "seeds": flags.seeds_of(args)}
    plan = from_flags(Plan, args, devices=(args.device,), **named)
    if args.print_sbatch:
        command = ["reproduce_tables.py", *(w for w in words if w != "--print-sbatch")]
        logs = args.out / "jobs" / "slurm"
        logs.mkdir(parents=True, exist_ok=True)  # sbatch makes none, and without it a task has no log
        sys.stdout.write(sbatch_script(command, len(jobs_of(plan)), logs, sbatch))
    elif args.task is not None:
        if args.task >= len(jobs := jobs_of(plan)):
            raise UserError(f"--task {args.task}: there are {len(jobs)} jobs, 0 to {len(jobs) - 1}")
        if failure := attempt(plan, jobs[args.task], args.device):
            raise UserError(f"{jobs[args.task]}: {failure}")
    elif args.status:
        states = status(plan)
        counts = Counter(state.partition(":")[0] for _, state in states)
        lines = [*(f"{job!s:<48} {state}" for job, state in states)]
        lines += [", ".join(f"{count} {state}" for state, count in counts.most_common())]
        sys.stdout.write("\n".join(lines) + "\n")
    else:
        failures = []
        if args.ensemble:
            ensembles(args.ensemble, args.out, args.data_root, args.w2v)
        elif not args.collect:
            device = resolve_device(args.device)
            every = device.type == "cuda" and device.index is None  # without a number: every GPU there is
            devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if every else [str(device)]
            failures = sweep(replace(plan, devices=tuple(devices)))
        collect(args.out)
        if args.board:
            collect_board(args.out, args.board)
            if args.docs:
                write_board(args.board, args.docs, args.docs.parent / "images" / "accuracy_seconds.png")
        sys.stdout.write("\n" + write_report(args.out, args.docs))
        if failures:  # the others are in the tables
            said = f"{len(failures)} of {len(jobs_of(plan))} runs did not finish:"
            raise UserError("\n  ".join([said, *failures]))
    return 0
