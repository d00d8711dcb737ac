"""The command line of reproduce_tables.py."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import pandas as pd

from core.commands.train import device_of
from core.datasets.registry import DATASETS
from core.experiments.sweep import Plan, reproduce
from core.files.atomic import write_bytes
from core.files.errors import UserError
from core.recipes import METHODS
from core.reporting.figures import calibration_figure, per_class_figure
from core.reporting.tables import BEGIN, all_tables, insert_tables, read_summary

log = logging.getLogger(__name__)


def parser(description: str | None) -> argparse.ArgumentParser:
    """All flags."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--datasets", nargs="+", choices=[*DATASETS], default=["AWA2", "CUB", "SUN"], help="(AWA2 CUB SUN)")
    p.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="(all)")
    p.add_argument("--seeds", type=int, default=5, help="seeds 0 to N-1; seed k has validation split k (5)")
    p.add_argument("--demo", action="store_true", help="the drawn data set instead, made where missing")
    p.add_argument("--data-root", type=Path, default=Path("data"), help="holds xlsa17/ and the images (data)")
    p.add_argument("--features", type=Path, help="feature file, with a single data set (data/DS/feature_map_*_DS.hdf5)")
    p.add_argument("--w2v", type=Path, help="attribute vectors, with a single data set (w2v/DS_attribute.pkl)")
    p.add_argument("--out", type=Path, default=Path("results"), help="(results)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="cuda: every GPU there is (auto)")
    p.add_argument("--jobs", type=int, default=1, help="runs at a time; each holds its data set's features (1)")
    p.add_argument("--together", type=int, default=1, help="seeds of a method trained in lockstep, for a GPU (1)")
    p.add_argument("--epochs", type=int, help="most epochs of any method (each recipe's own)")
    p.add_argument("--no-ablation", action="store_true", help="leave the ablation of vsmr out")
    p.add_argument("--no-diagnostics", action="store_true", help="leave out what is labelled 'selected on test'")
    p.add_argument("--tables-only", action="store_true", help="write the tables from the CSV, run nothing")
    p.add_argument("--readme", type=Path, help="file whose marked part the tables replace, such as README.md (none)")
    return p


def main(description: str | None = None, argv: list[str] | None = None) -> int:
    """Run what is missing and write the tables."""
    args = parser(description).parse_args(argv)
    datasets = ["DEMO"] if args.demo else args.datasets
    if len(datasets) > 1 and (args.features or args.w2v):
        raise UserError("--features and --w2v name one file; give a single data set with --datasets")
    if min(args.seeds, args.jobs, args.together) < 1:
        raise UserError("--seeds, --jobs and --together: at least one")
    plan = Plan(
        tuple(datasets),
        tuple(args.methods),
        args.seeds,
        args.data_root,
        args.features,
        args.w2v,
        args.out,
        device_of(args.device),
        args.jobs,
        not args.no_ablation,
        not args.no_diagnostics,
        args.together,
        args.epochs,
    )
    if args.demo and not args.tables_only:
        from core.demo.setup import prepare_demo

        prepare_demo(args.data_root)
    summary = args.out / "summary.csv"
    if not args.tables_only:
        reproduce(plan)
    if not summary.is_file():
        raise UserError(f"no {summary}; run without --tables-only first")
    frame = read_summary(summary)
    tables = all_tables(frame)
    write_bytes(args.out / "tables.md", tables.encode())
    if args.readme:
        text = args.readme.read_text()
        if BEGIN not in text:
            raise UserError(f"{args.readme} lacks the line {BEGIN}, which says where the tables go")
        write_bytes(args.readme, insert_tables(text, tables).encode())
    _figures(args.out, frame)
    sys.stdout.write("\n" + tables)
    return 0


def _figures(out: Path, frame: pd.DataFrame) -> None:
    """Calibration curves and per-class accuracies, where the run folders are still there."""
    plain = frame[frame.ablation == ""]
    for (dataset, backbone), part in plain.groupby(["dataset", "backbone"]):
        runs = {
            str(m): [out / str(dataset) / str(m) / f"seed{s}" for s in sorted(part[part.method == m].seed)]
            for m in part.groupby("method").AUSUC.mean().sort_values(ascending=False).index
        }
        runs = {m: fs for m, fs in runs.items() if all((f / "curve.csv").is_file() for f in fs)}
        if not runs:
            log.info("no run folders of %s under %s: no figures drawn", dataset, out)
            continue
        calibration_figure(runs, out / f"calibration_{dataset}.png", f"{dataset}, {backbone}, seed 0")
        others = [m for m in runs if m != "vsmr"]
        if "vsmr" in runs and others:
            title = f"{dataset}, {backbone}: unseen classes, mean of {len(runs['vsmr'])} seeds"
            against = "dazle" if "dazle" in others else others[0]
            per_class_figure(runs, out / f"per_class_{dataset}.png", title, against)
