"""Markdown tables and significance from results/summary.csv."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from core.reporting.related_work import RELATIVES

KEYS = ("T1", "U", "S", "H", "AUSUC")
PREPARED = ("dazle-prepared", "eszsl-prepared")  # baselines given vsmr's inputs; all others are as published


# name in the table -> what changes in the recipe of vsmr
ABLATIONS: dict[str, dict[str, Any]] = {
    "vsmr": {},
    "no training at all (epoch 0)": {"epochs": 0},
    "without CE(s1)": {"loss_semantic": False},
    "without CE(s2)": {"loss_visual": False},
    "ρ is the plain mean": {"mean_share": 1.0},
    "score s1 alone (β = 0)": {"beta": 0.0},
    "score s2 alone (β = 1000)": {"beta": 1000.0},
    "W1 starts at N(0,1)": {"closed_start": False},
    "E by gradient": {"ridge_encoder": False},
    "no whitening": {"whiten": False},
    "no root of features": {"root_features": False},
    "no root of attributes": {"root_attributes": False},
    "attributes not centred": {"centre_attributes": False},
}


def read_summary(path: Path) -> pd.DataFrame:
    """results/summary.csv, one row a run."""
    frame = pd.read_csv(path, dtype={"code": str, "features_sha256": str})
    for column in ("ablation", "notes", "recipe"):
        frame[column] = frame[column].astype(object).where(frame[column].notna(), "")
    return frame


@dataclass(frozen=True)
class Paired:
    """A difference paired over seeds; each seed has its own validation split."""

    mean: float
    low: float  # 95 % confidence interval (t distribution)
    high: float
    p: float  # two-sided exact sign-flip test
    n: int

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval excludes 0; with few seeds the exact test cannot go below 2^(1-n)."""
        return self.low > 0 or self.high < 0


def paired(a: np.ndarray, b: np.ndarray) -> Paired:
    """The difference a - b of values (n,) of the same seeds, n at least 2."""
    d = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    n = len(d)
    half = float(scipy.stats.t.ppf(0.975, n - 1) * d.std(ddof=1) / np.sqrt(n))
    signs = np.array(list(itertools.product([1, -1], repeat=n))) if n <= 12 else None
    if signs is None:
        p = float(scipy.stats.wilcoxon(d).pvalue)
    else:
        p = float(np.mean(np.abs(signs @ d) >= np.abs(d.sum()) - 1e-12))
    return Paired(float(d.mean()), float(d.mean()) - half, float(d.mean()) + half, p, n)


def cell(values: pd.Series) -> str:
    """Mean ± standard deviation in percent."""
    v = values.dropna().to_numpy(dtype=np.float64) * 100
    if not len(v):
        return "-"
    return f"{v.mean():.1f}" + (f" ± {v.std(ddof=1):.1f}" if len(v) > 1 else "")


def _runs(summary: pd.DataFrame, dataset: str) -> pd.DataFrame:
    part = summary[(summary.dataset == dataset) & (summary.ablation == "")]
    return part.sort_values(["method", "seed"])


def _order(part: pd.DataFrame, key: str) -> list[str]:
    """Methods by mean of ``key``, best first."""
    return [str(m) for m in part.groupby("method")[key].mean().sort_values(ascending=False).index]


def rows_table(part: pd.DataFrame, prefix: str, header: str) -> list[str]:
    """One row per method with the columns ``prefix`` + T1 ..."""
    keys = [k for k in KEYS if prefix + k in part and part[prefix + k].notna().any()]
    lines = [f"| {header} | " + " | ".join(keys) + " | seeds |", "|---" * (len(keys) + 2) + "|"]
    for method in _order(part, prefix + keys[-1]):
        mine = part[part.method == method]
        if mine[prefix + keys[0]].notna().any():
            name = f"**{method}**" if method == "vsmr" else method
            lines.append(f"| {name} | " + " | ".join(cell(mine[prefix + k]) for k in keys) + f" | {len(mine)} |")
    return lines


def comparisons(part: pd.DataFrame, prefix: str) -> list[str]:
    """vsmr against every other method with two or more seeds in common, paired; the strongest first."""
    mine = part[part.method == "vsmr"].set_index("seed")
    lines: list[str] = []
    most = 0
    for method in _order(part, prefix + "AUSUC"):
        other = part[part.method == method].set_index("seed")
        shared = mine.index.intersection(other.index)
        if method == "vsmr" or len(shared) < 2:
            continue
        cells = []
        for key in ("T1", "H", "AUSUC"):
            d = paired(100 * mine.loc[shared, prefix + key], 100 * other.loc[shared, prefix + key])
            cells.append(f"{d.mean:+.1f} ({d.low:+.1f} to {d.high:+.1f}){'' if d.beyond_noise else ', within noise'}")
        label = f"{method} (given vsmr's preparation)" if method in PREPARED else method
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {d.p:.3f} | {d.n} |")
        most = max(most, d.n)
    if not lines:
        return []
    return [
        "| vsmr less | T1 | H | AUSUC | sign-flip p of AUSUC | seeds |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
        "Paired over seeds, 95 % intervals (t): they cover seeds and their validation splits, not the draw of the test",
        f"classes. With n seeds p cannot be below 2^(1-n): {2.0 ** (1 - most):.3f} for {most}.",
    ]


def dataset_tables(summary: pd.DataFrame, dataset: str) -> str:
    """Every table of one data set as Markdown."""
    part = _runs(summary, dataset)
    first = part.iloc[0]
    lines = [f"### {dataset}, features {first.backbone}, {first.regions}", ""]
    if str(first.notes) not in ("", "nan"):
        lines += [f"Note: {note}." for note in str(first.notes).split(" | ")] + [""]
    lines += [
        "Standard protocol: inductive, per-class accuracy in percent, mean ± standard deviation over seeds; epochs, γ",
        "and thresholds chosen on a class-disjoint validation split inside trainval (seed k has split k).",
        "",
        *rows_table(part, "", "method, test sets"),
    ]
    source = "CUB" if dataset == "CUB" else dataset
    for name, t1, u, s, h, kind, where in RELATIVES.get(source, []):
        cells = " | ".join("-" if v is None else f"{v:.1f}" for v in (t1, u, s, h))
        lines.append(f"| {name} (as published; {kind}; {where}) | {cells} | - | |")
    if source in RELATIVES and first.backbone not in ("resnet101", "ResNet_101"):
        lines += [
            "",
            f"The published rows are on other features and on all classes; they do not compare with {first.backbone}.",
        ]
    lines += ["", *comparisons(part, "")]
    lines += [
        "",
        "Validation splits (what was chosen on, so optimistic):",
        "",
        *rows_table(part, "val_", "method, validation"),
    ]
    lines += ["", *comparisons(part, "val_")]
    if "test_H" in part and part.test_H.notna().any():
        lines += [
            "",
            "SELECTED ON TEST (epoch and γ), what most repositories print; not comparable with the above:",
            "",
        ]
        lines += rows_table(part[part.test_H.notna()], "test_", "method, selected on test")
    if "published_H" in part and part.published_H.notna().any():
        lines += [
            "",
            "PUBLISHED PROCEDURE: transductive (unlabelled test images), plain sample average; not comparable:",
            "",
        ]
        lines += rows_table(part[part.published_H.notna()], "published_", "method, published procedure")
    lines += ["", *ablation_table(summary, dataset)]
    seconds = part.groupby("method").seconds.median()
    lines += [
        "",
        "Seconds a run (choose, refit, test; median): " + ", ".join(f"{m} {s:.0f}" for m, s in seconds.items()) + ".",
    ]
    offered = part.groupby("method").most_epochs.max()
    lines += ["Most epochs offered to the selection: " + ", ".join(f"{m} {e:.0f}" for m, e in offered.items()) + "."]
    codes = part.groupby("code").method.unique()
    code = "; ".join(f"{c} ({', '.join(sorted(m))})" if len(codes) > 1 else str(c) for c, m in codes.items())
    lines += [f"Code {code}; features {first.features_sha256}; torch {first.torch}, {first.device}."]
    return "\n".join(lines)


def ablation_table(summary: pd.DataFrame, dataset: str) -> list[str]:
    """vsmr less one ingredient at a time, on validation splits, paired with the whole."""
    part = summary[(summary.dataset == dataset) & (summary.ablation != "")]
    whole = part[part.ablation == "vsmr"].set_index("seed")
    if whole.empty:
        return []
    lines = [
        "Ablation on the validation splits (no test image is read); difference of AUSUC to the whole, paired:",
        "",
        "| | T1 | H | AUSUC | difference | 95 % interval | |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in [n for n in ABLATIONS if (part.ablation == n).any()]:
        mine = part[part.ablation == name].set_index("seed")
        cells = " | ".join(cell(mine[f"val_{k}"]) for k in ("T1", "H", "AUSUC"))
        shared = whole.index.intersection(mine.index)
        if name == "vsmr" or len(shared) < 2:
            lines.append(f"| {name} | {cells} | | | |")
            continue
        d = paired(100 * mine.loc[shared, "val_AUSUC"], 100 * whole.loc[shared, "val_AUSUC"])
        verdict = "beyond noise" if d.beyond_noise else "within noise"
        lines.append(f"| {name} | {cells} | {d.mean:+.1f} | {d.low:+.1f} to {d.high:+.1f} | {verdict} |")
    return lines


def all_tables(summary: pd.DataFrame) -> str:
    """The tables of every data set in the CSV."""
    done = [d for d in summary.dataset.unique() if (summary[summary.dataset == d].ablation == "").any()]
    return "\n\n".join(dataset_tables(summary, str(d)) for d in done) + "\n"


BEGIN, END = "<!-- tables: written by reproduce_tables.py -->", "<!-- end of tables -->"


def insert_tables(readme: str, tables: str) -> str:
    """``readme`` with everything between the markers replaced."""
    head, found, rest = readme.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"README lacks the markers {BEGIN} and {END}")
    return f"{head}{BEGIN}\n\n{tables}\n{END}{tail}"
