"""What a user of whole photographs should extract: variants of one backbone, compared on validation splits alone.

    python -m benchmarks.whole_photographs --data-root ../shared/data/whole_cub --work FOLDER \\
        --weights ../shared/data/weights/mobilenet_v2_imagenet1k.safetensors --w2v ../shared/data/w2v/CUB_attribute.pkl

Add --plan first: it measures a batch of every variant, says what is there already and what is left, and runs nothing.
Extracts what is missing in FOLDER and lets each method be chosen on each split (seed k has validation split k; no test
image is scored). Every run is written when it ends, with its identity, and the table is made anew of all runs that
FOLDER holds: interrupted, the same command goes on, and other variants, methods or splits add to it. --epochs cuts a
trained method off, which the table says: dazle's 20 epochs cost more than all else together.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from core.datasets.registry import CUB
from core.experiments.identity import run_config
from core.experiments.inputs import load_inputs
from core.experiments.results import read_result
from core.experiments.run import validate
from core.experiments.statistics import paired
from core.features.extraction import estimate, extract
from core.features.settings import ExtractionConfig
from core.files.atomic import read_json, write_bytes
from core.files.errors import UserError, run_cli
from core.method import epochs_of, find_method

METHODS = ("vsmr", "eszsl-prepared", "dazle")
BASE = "224"  # what every variant is compared with
VARIANTS: dict[str, dict[str, Any]] = {
    BASE: {},
    "448": {"input_size": 448},
    "448 pool 2": {"input_size": 448, "pool": 2},
    "224 flip": {"flip": True},
    "224 two layers": {"layers": ("features.13",)},
    "448 pool 2 flip": {"input_size": 448, "pool": 2, "flip": True},
}


def config_of(args: argparse.Namespace, variant: str) -> ExtractionConfig:
    """The variant's extraction, in bfloat16 arithmetic."""
    return ExtractionConfig(
        backbone=args.backbone, weights=args.weights, dtype="bfloat16", device=args.device, **VARIANTS[variant]
    )


def feature_file(work: Path, variant: str) -> Path:
    """Where a variant's features lie."""
    return work / f"{variant.replace(' ', '_')}.hdf5"


def epochs_for(args: argparse.Namespace, method: str) -> int:
    """Epochs of a method: its recipe's, or fewer where --epochs cuts it off."""
    own = epochs_of(find_method(method).recipe("CUB"))
    return own if args.epochs is None else min(args.epochs, own)


def run_folder(args: argparse.Namespace, variant: str, method: str, seed: int) -> Path:
    """A run's folder; runs that are cut off lie apart."""
    epochs, own = epochs_for(args, method), epochs_of(find_method(method).recipe("CUB"))
    name = method if epochs == own else f"{method}-{epochs}-epochs"
    return args.work / "runs" / feature_file(args.work, variant).stem / name / f"seed{seed}"


@contextlib.contextmanager
def costing(path: Path) -> Iterator[dict[str, Any]]:
    """Add the CPU seconds of the block to those in a JSON file, which an interrupted block has begun."""
    known: dict[str, Any] = dict(read_json(path)) if path.is_file() else {}
    started = time.process_time()
    try:
        yield known
    finally:
        known["cpu_seconds"] = known.get("cpu_seconds", 0.0) + time.process_time() - started
        write_bytes(path, json.dumps(known).encode())


def measure(args: argparse.Namespace) -> pd.DataFrame:
    """Run what is missing, variant by variant; the table is written after every run."""
    for variant in args.variants:
        out = feature_file(args.work, variant)
        work = functools.partial(extract, CUB, data_root=args.data_root, out=out)
        if out.is_file():
            work(config=config_of(args, variant))  # refuses a file of other settings
        else:
            with costing(out.with_suffix(".cost.json")) as cost:
                work(config=config_of(args, variant))
                cost["bytes"] = out.stat().st_size
        inputs = load_inputs("CUB", data_root=args.data_root, features=out, w2v=args.w2v, test=False)
        for method in args.methods:
            for seed in range(args.splits):
                folder, recipe = run_folder(args, variant, method, seed), find_method(method).recipe("CUB")
                run = run_config(inputs, method, recipe, seed=seed, epochs=epochs_for(args, method))
                with costing(folder / "cost.json"):
                    validate(run, inputs, folder)
                write_table(args.work)
        del inputs  # before the next variant's features are held
    return write_table(args.work)


def collect(work: Path) -> pd.DataFrame:
    """One row a finished run below FOLDER: AUSUC and H in %, and what it cost.

    Raises:
        UserError: a damaged result, or runs of other code, splits or vectors, which no difference may be taken of.
    """
    rows = []
    identities: dict[str, tuple[str, Path]] = {}
    for path in sorted((work / "runs").glob("*/*/seed*/validation.json")):
        result = read_result(path)
        config, best = result["config"], result["chosen"]["validation"]
        for what in ("code", "split_sha256", "vectors_sha256"):
            other = identities.setdefault(what, (config[what], path))
            if other[0] != config[what]:
                raise UserError(f"{path} and {other[1]} differ in {what}; take another --work, or delete the older one")
        method, variant = config["method"], path.parents[2].name.replace("_", " ")
        own = epochs_of(find_method(method).recipe("CUB"))
        cut = "" if config["epochs"] == own else f", cut off at {config['epochs']} of {own} epochs"
        features = feature_file(work, variant)
        cost = features.with_suffix(".cost.json")  # none where a file of the same settings was put there
        extraction = read_json(cost) if cost.is_file() else {"bytes": features.stat().st_size, "cpu_seconds": math.nan}
        rows.append(
            {"method": method + cut, "variant": variant, "split": config["seed"]}
            | {"regions": config["features"]["regions"], "bytes": extraction["bytes"]}
            | {"extraction_cpu_seconds": extraction["cpu_seconds"]}
            | {"run_cpu_seconds": read_json(path.with_name("cost.json"))["cpu_seconds"]}
            | {name: 100 * best[name] for name in ("AUSUC", "H")}
        )  # fmt: skip
    known = list(VARIANTS)
    return pd.DataFrame(sorted(rows, key=lambda r: (r["method"] != "vsmr", r["method"], known.index(r["variant"]))))


def table(rows: pd.DataFrame) -> str:
    """One line a method and variant; differences from 224 are paired over the splits that both have."""
    head = ["method", "variant", "splits", "regions", "MB", "extraction, CPU s", "a run, CPU s"]
    head += ["AUSUC", f"against {BASE}", "H", f"against {BASE}"]
    lines = [head, ["---"] * len(head)]
    for method, own in rows.groupby("method", sort=False):
        base = own[own.variant == BASE].set_index("split")
        for variant, some in own.groupby("variant", sort=False):
            found, first = some.set_index("split"), some.iloc[0]
            both = sorted({*found.index} & {*base.index}) if variant != BASE else []
            cells = [str(method), str(variant), f"{len(found)}", str(first.regions), f"{first.bytes / 1e6:.0f}"]
            known = not math.isnan(first.extraction_cpu_seconds)
            cells += [f"{first.extraction_cpu_seconds:.0f}" if known else "", f"{found.run_cpu_seconds.mean():.0f}"]
            for name in ("AUSUC", "H"):
                against = ""
                if len(both) == 1:
                    against = f"{found.loc[both[0], name] - base.loc[both[0], name]:+.1f}"
                elif both:
                    d = paired(found.loc[both, name], base.loc[both, name])
                    against = f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]"
                cells += [f"{found[name].mean():.1f}", against]
            lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_table(work: Path) -> pd.DataFrame:
    """FOLDER/whole_photographs.csv and .md, of every finished run."""
    rows = collect(work)
    write_bytes(work / "whole_photographs.csv", rows.to_csv(index=False, float_format="%.6g").encode())
    write_bytes(work / "whole_photographs.md", (table(rows) + "\n").encode())
    return rows


def plan(args: argparse.Namespace) -> str:
    """What the command would still do, and what that costs, as far as it is known."""
    lines, taken = [], {path.parent: read_json(path)["cpu_seconds"] for path in args.work.rglob("seed*/cost.json")}
    for variant in args.variants:
        there = feature_file(args.work, variant).is_file()
        said = "extracted" if there else str(estimate(CUB, data_root=args.data_root, config=config_of(args, variant)))
        lines.append(f"{variant}: {said}")
        for method in args.methods:
            folders = [run_folder(args, variant, method, seed) for seed in range(args.splits)]
            left = [folder for folder in folders if not (folder / "validation.json").is_file()]
            known = [taken[f] for f in taken if f not in left and f.parent.name == folders[0].parent.name]
            cost = (
                f"about {sum(known) / len(known) * len(left) / 60:.1f} CPU minutes" if known else "time not known yet"
            )
            lines.append(
                f"  {folders[0].parent.name}: {len(left)} of {len(folders)} runs left" + f", {cost}" * bool(left)
            )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure, and write FOLDER/whole_photographs.md."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data-root", type=Path, required=True)
    p.add_argument("--work", type=Path, required=True, help="features, runs and the table")
    p.add_argument("--w2v", type=Path)
    p.add_argument("--backbone", default="mobilenet_v2")
    p.add_argument("--weights")
    p.add_argument("--device", default="auto")
    p.add_argument("--variants", nargs="+", choices=[*VARIANTS], default=[*VARIANTS])
    p.add_argument("--methods", nargs="+", default=[*METHODS])
    p.add_argument("--splits", type=int, default=5)
    p.add_argument("--epochs", type=int, help="most epochs; fewer than a recipe's are named in the table")
    p.add_argument("--plan", action="store_true", help="say what is left and what it costs; run nothing")
    args = p.parse_args(argv)
    if args.plan:
        print(plan(args))
        return 0
    logging.getLogger().setLevel(logging.WARNING)
    print(table(measure(args)))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
