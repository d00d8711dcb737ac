"""Command line of reproduce_tables.py: run what is missing, rebuild summary.csv, write tables and figures."""

from __future__ import annotations

import sys
from argparse import BooleanOptionalAction
from collections.abc import Sequence
from pathlib import Path

from core.commands import flags
from core.commands.parser import Parser, whole
from core.datasets.registry import DATASETS
from core.files.errors import UserError
from core.method import methods


def parser(description: str | None) -> Parser:
    """All flags."""
    p = Parser(description)
    p.add_argument("--datasets", nargs="+", choices=[*DATASETS], default=["AWA2", "CUB", "SUN"], help="(AWA2 CUB SUN)")
    usual = [name for name, m in methods().items() if not m.needs_text]
    p.add_argument("--methods", nargs="+", choices=[*methods()], default=usual, help="(all but clip's)")
    p.add_argument("--demo", action="store_true", help="the synthetic data set instead, made where missing")
    flags.add_seeds(p, 5)
    flags.add_data(p, "DS")
    flags.add_device(p)
    p.add_argument("--out", type=Path, default=Path("results"), help="(results)")
    p.add_argument("--jobs", type=whole(1), default=1, help="processes; each holds its data set's features (1)")
    p.add_argument("--epochs", type=whole(0), help="most epochs of every method (each recipe's own)")
    p.add_argument("--ablation", action=BooleanOptionalAction, default=True, help="the ablation of vsmr (yes)")
    p.add_argument(
        "--diagnostics", action=BooleanOptionalAction, default=True, help="the rows labelled 'selected on test' (yes)"
    )
    p.add_argument("--collect", action="store_true", help="run nothing: rebuild OUT/summary.csv from the run folders")
    p.add_argument("--tables-only", action="store_true", help="run nothing: write the tables from OUT/summary.csv")
    return p


def main(description: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the tables."""
    args = parser(description).parse_args(argv)
    datasets = ["DEMO"] if args.demo else args.datasets
    if len(datasets) > 1 and (args.features or args.w2v):
        raise UserError("--features and --w2v name one file; give a single data set with --datasets")
    from core.experiments.sweep import Plan, collect, sweep
    from core.reporting.report import write_report

    summary = args.out / "summary.csv"
    if args.collect:
        collect(args.out)
    elif not args.tables_only:
        if args.demo:
            from core.demo.setup import prepare_demo

            prepare_demo(args.data_root or Path("data"))
        plan = Plan(
            datasets=tuple(datasets),
            methods=tuple(args.methods),
            seeds=flags.seeds_of(args),
            data_root=args.data_root,
            features=args.features,
            w2v=args.w2v,
            out=args.out,
            devices=_devices(args.device),
            jobs=args.jobs,
            ablation=args.ablation,
            diagnostics=args.diagnostics,
            epochs=args.epochs,
            precision=args.precision,
        )
        sweep(plan)
    if not summary.is_file():
        raise UserError(f"no {summary}; run without --tables-only first, or rebuild it from run folders with --collect")
    sys.stdout.write("\n" + write_report(args.out))
    return 0


def _devices(name: str) -> tuple[str, ...]:
    """cuda without a number: every GPU there is."""
    import torch

    from core.features.devices import resolve_device

    device = resolve_device(name)
    if device.type == "cuda" and device.index is None:
        return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    return (str(device),)
