"""Command line of reproduce_tables.py: run what is missing, rebuild summary.csv, write tables and figures."""

import shlex
import sys
from argparse import BooleanOptionalAction
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from core.commands import flags
from core.commands.parser import Parser, from_flags, whole
from core.datasets.registry import DATASETS
from core.files.errors import UserError
from core.methods import methods

_SBATCH = """\
#!/bin/bash
#SBATCH --array=0-{last} --requeue --open-mode=append --job-name=vsmr --output={logs}/%A_%a.log
# a task that was preempted or failed goes on where it was: submit the same again. --status says what is missing,
# --collect makes the tables
cd {here}
exec {command} --task $SLURM_ARRAY_TASK_ID
"""


def parser(description: str | None) -> Parser:
    p = Parser(description)
    p.add_argument("--datasets", nargs="+", choices=[*DATASETS], default=["AWA2", "CUB", "SUN"], help="(AWA2 CUB SUN)")
    usual = [name for name, m in methods().items() if not m.needs_text]
    p.add_argument("--methods", nargs="+", choices=[*methods()], default=usual, help="(all but clip's)")
    flags.add_seeds(p, 10)
    flags.add_data(p, "DS")
    flags.add_device(p)
    p.add_argument("--out", type=Path, default=Path("results"), help="(results)")
    p.add_argument("--jobs", type=whole(1), default=1, help="processes; each holds its data set's features (1)")
    said = "run nothing: print a job array, for `| sbatch --partition=... --gpus=1` and any other option of sbatch's"
    p.add_argument("--print-sbatch", action="store_true", help=said)
    p.add_argument("--task", type=whole(0), help="run this one of --status's jobs alone, no table (job arrays)")
    p.add_argument("--status", action="store_true", help="run nothing: which runs are done, running, not begun")
    p.add_argument("--epochs", type=whole(0), help="most epochs of every method (each recipe's own)")
    p.add_argument("--ablation", action=BooleanOptionalAction, default=True, help="the ablation of vsmr too (yes)")
    p.add_argument("--collect", action="store_true", help="run nothing: tables of the finished runs below OUT")
    board = Path("results/board")
    said = f"every method on every feature file, cheapest first; a file a run in this folder ({board})"
    p.add_argument("--board", nargs="?", const=board, type=Path, help=said)
    said = "run nothing but the ensemble of finished runs, or of methods seed by seed: the mean of standardised scores"
    p.add_argument("--ensemble", nargs="+", type=Path, metavar="FOLDER", help=said)
    p.add_argument("--docs", type=Path, help="with --board: also write its pages and tables to this folder (no)")
    return p


def main(description: str | None = None, argv: Sequence[str] | None = None) -> int:
    args = parser(description).parse_args(argv)
    if len(args.datasets) > 1 and (args.features or args.w2v):
        raise UserError("--features and --w2v name one file; give a single data set with --datasets")
    if args.docs and not args.board:
        raise UserError("--docs goes with --board: its pages are made from the board's rows")
    # what parsing and --help do not need: pandas, scipy and matplotlib take seconds
    from core.experiments.board import collect_board, seconds_of_methods
    from core.experiments.ensemble import ensembles
    from core.experiments.sweep import Plan, attempt, collect, jobs_of, status, sweep
    from core.reporting.board import write_board
    from core.reporting.report import write_report, write_results

    if "DEMO" in args.datasets and not args.collect:
        from core.commands.demo import prepare_demo

        prepare_demo(args.data_root or Path("data"))
    named = {"datasets": tuple(args.datasets), "methods": tuple(args.methods), "seeds": flags.seeds_of(args)}
    plan = from_flags(Plan, args, **named)
    if args.print_sbatch:
        typed = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--print-sbatch"]
        (logs := args.out / "jobs").mkdir(parents=True, exist_ok=True)  # sbatch makes none: a task would have no log
        program = sys.argv[0].split() if sys.argv[0] == "vsmr tables" else [sys.executable, sys.argv[0]]
        command = shlex.join([*program, *typed])
        there = {"last": len(jobs_of(plan)) - 1, "logs": shlex.quote(str(logs)), "here": shlex.quote(str(Path.cwd()))}
        sys.stdout.write(_SBATCH.format(command=command, **there))
    elif args.task is not None:
        if args.task >= len(jobs := jobs_of(plan)):
            raise UserError(f"--task {args.task}: there are {len(jobs)} jobs, 0 to {len(jobs) - 1}")
        if failure := attempt(plan, jobs[args.task]):
            raise UserError(f"{jobs[args.task]}: {failure}")
    elif args.status:
        states = status(plan)
        counts = Counter(state.partition(":")[0] for _, state in states)
        lines = [f"{number:>4} {job!s:<48} {state}" for number, (job, state) in enumerate(states)]
        lines += [", ".join(f"{count} {state}" for state, count in counts.most_common())]
        if args.board:
            took = seconds_of_methods(args.board)
            missing = [job.method for job, state in states if state != "done"]
            hours = sum(took.get(method, 0.0) for method in missing) / 3600
            unknown = ", ".join(sorted({*missing} - took.keys())) or "exception"
            lines += [f"some {hours:.1f} processor hours by the board's rows, without {unknown}"]
        sys.stdout.write("\n".join(lines) + "\n")
    else:
        failures = []
        if args.ensemble:
            ensembles(args.ensemble, args.out, args.data_root, args.w2v)
        elif not args.collect:
            failures = sweep(plan)
        collect(args.out)
        if args.board:
            collect_board(args.out, args.board)
            if args.docs:
                write_board(args.board, args.docs, args.docs.parent / "images" / "accuracy_seconds.png")
                write_results(args.board, args.out, args.docs)
        sys.stdout.write("\n" + write_report(args.out))
        if failures:  # the others are in the tables
            said = f"{len(failures)} of {len(jobs_of(plan))} runs did not finish:"
            raise UserError("\n  ".join([said, *failures]))
    return 0
