"""What a user of whole photographs should extract: variants of one backbone, compared on validation splits alone.

    python -m benchmarks.whole_photographs --data-root ../shared/data/whole_cub --work FOLDER \\
        --weights ../shared/data/weights/mobilenet_v2_imagenet1k.safetensors --w2v ../shared/data/w2v/CUB_attribute.pkl

Extracts what is missing in FOLDER (an interrupted run is continued), lets each method be chosen on each split (seed k
has validation split k; no test image is read), and prints AUSUC and H of every variant with the 95 % interval of its
difference from 224 pixels, paired over the splits.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from core.datasets.registry import CUB
from core.experiments.identity import run_config
from core.experiments.inputs import load_inputs
from core.experiments.run import validate
from core.experiments.statistics import paired
from core.features.extraction import extract
from core.features.settings import ExtractionConfig
from core.files.atomic import write_bytes
from core.files.errors import run_cli
from core.method import epochs_of, find_method

METHODS = ("vsmr", "eszsl-prepared", "dazle")
VARIANTS: dict[str, dict[str, Any]] = {
    "224": {},
    "224 flip": {"flip": True},
    "224 two layers": {"layers": ("features.13",)},
    "448": {"input_size": 448},
    "448 pool 2": {"input_size": 448, "pool": 2},
}


def measure(args: argparse.Namespace) -> pd.DataFrame:
    """AUSUC and H (%) of every variant, method and split."""
    rows = []
    for variant in args.variants:
        config = ExtractionConfig(
            backbone=args.backbone, weights=args.weights, dtype="bfloat16", device=args.device, **VARIANTS[variant]
        )
        out = args.work / f"{variant.replace(' ', '_')}.hdf5"
        features = (
            out if out.is_file() else extract(CUB, data_root=args.data_root, out=out, config=config, w2v=args.w2v)
        )
        inputs = load_inputs("CUB", data_root=args.data_root, features=features, w2v=args.w2v, test=False)
        for method in args.methods:
            recipe = find_method(method).recipe("CUB")
            epochs = epochs_of(recipe) if args.epochs is None else min(args.epochs, epochs_of(recipe))
            for seed in range(args.splits):
                run = run_config(inputs, method, recipe, seed=seed, epochs=epochs)
                found = validate(run, inputs, args.work / "runs" / out.stem / method / f"seed{seed}")
                best = found["chosen"]["validation"]
                rows.append(
                    {"variant": variant, "method": method, "split": seed, "bytes": out.stat().st_size}
                    | {name: 100 * best[name] for name in ("AUSUC", "H")}
                )
    return pd.DataFrame(rows)


def table(rows: pd.DataFrame) -> str:
    """One line a method and variant."""
    lines = ["| method | variant | MB | AUSUC | against 224 | H | against 224 |", "|---|---|---|---|---|---|---|"]
    for method, own in rows.groupby("method", sort=False):
        base = own[own.variant == "224"].sort_values("split")
        for variant, found in own.groupby("variant", sort=False):
            found, cells = found.sort_values("split"), []
            for name in ("AUSUC", "H"):
                cells.append(f"{found[name].mean():.1f}")
                if variant == "224" or len(found) < 2 or len(base) != len(found):
                    cells.append("")
                else:
                    d = paired(found[name], base[name])
                    cells.append(f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]")
            lines.append(f"| {method} | {variant} | {found.bytes.iloc[0] / 1e6:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure and write FOLDER/whole_photographs.md."""
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
    p.add_argument("--epochs", type=int, help="most epochs, for a quick look (each recipe's own)")
    args = p.parse_args(argv)
    logging.getLogger().setLevel(logging.WARNING)
    rows = measure(args)
    rows.to_csv(args.work / "whole_photographs.csv", index=False, float_format="%.6g")
    text = table(rows)
    write_bytes(args.work / "whole_photographs.md", (text + "\n").encode())
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
