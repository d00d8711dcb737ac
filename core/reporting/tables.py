"""Every Markdown table: the standard rows on top, all else under its own heading.

A table is made of runs on one data set, split, feature file, vectors and code (core/reporting/rows.py); where there are
several of these, there are several tables, each with its digests below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from core.experiments.ablations import ABLATIONS, WHOLE
from core.experiments.statistics import RESAMPLED, Interval, paired
from core.files.errors import UserError
from core.reporting.related_work import RELATED_WORK, related_work_table
from core.reporting.rows import (
    DIGESTS,
    METRICS,
    OURS,
    Entry,
    as_frame,
    entries_of,
    same_runs,
    tables_of,
)

LEGEND = (
    "T1: accuracy on images of unseen classes, among unseen classes only. U and S: accuracy on images of unseen and\n"
    "of seen classes, among all classes. H: their harmonic mean, 2US/(U+S). All are means over classes of per-class\n"
    "top-1 accuracy in percent, mean ± standard deviation over seeds. γ is added to the scores of unseen classes."
)
AUSUC = "AUSUC: area under the curve of S over U as γ runs through all values (calibrated stacking), exact, in percent."
_CUT_OFF = "CUT OFF: fewer epochs than the published recipe; not comparable as an equal:"
_PUBLISHED_BACKBONES = ("resnet101", "resnet_101")

# rows of the method compared with, rows of the other (the same seeds) -> metric -> difference; None: no stored scores
OverClasses = Callable[[pd.DataFrame, pd.DataFrame], Mapping[str, Interval] | None]


def all_tables(rows: pd.DataFrame | Iterable[Mapping[str, Any]], over_classes: OverClasses | None = None) -> str:
    """The tables of all rows, data set by data set; ``over_classes`` adds intervals over the draw of test classes."""
    frame = as_frame(rows)
    groups = tables_of(frame)
    texts = [LEGEND]
    for part in groups:
        alike = [other for other in groups if other.dataset.iloc[0] == part.dataset.iloc[0]]
        texts.append("\n".join(_dataset_table(part, alike, over_classes)))
    return "\n\n".join(texts) + "\n"


def _dataset_table(part: pd.DataFrame, alike: Sequence[pd.DataFrame], over_classes: OverClasses | None) -> list[str]:
    runs = part[part.ablation == ""]
    entries = entries_of(runs)
    full = [e for e in entries if not e.cut_off]
    lines = [f"### {_heading(part)}{telling(part, alike)}", ""]
    notes = _notes(part)
    lines += [f"Note: {note}." for note in notes] + [""] * bool(notes)
    if len(runs):
        lines += [
            "Inductive. Epochs, γ and thresholds are chosen on a class-disjoint validation split inside trainval (seed",
            f"k has split k); the test sets are read once. {AUSUC}",
            *_of_all_seeds(full),
            "",
            *_metric_table(full, "", "method, test sets"),
            *_related(part),
            *_comparison(full, "", "", over_classes),
            *_section("Validation splits (what was chosen on, so optimistic):", full, "val_", "method, validation"),
            *_comparison(full, "val_", " (validation)", None),
        ]
        cut = [e for e in entries if e.cut_off]
        lines += _section(_CUT_OFF, cut, "", "method, test sets")
        lines += _section(_CUT_OFF, cut, "val_", "method, validation")
        lines += _section(
            "SELECTED ON TEST (epoch and γ), what most repositories print; not comparable with the above:",
            entries,
            "test_",
            "method, selected on test",
        )
        lines += _section(
            "PUBLISHED PROCEDURE: transductive (unlabelled test images), plain sample average; not comparable:",
            entries,
            "published_",
            "method, published procedure",
        )
    lines += _ablation_table(part[part.ablation != ""])
    lines += ["", *_footer(part, entries)]
    return lines


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table that a driver prints of the seeds of one method (rows of core/experiments/results.py)."""
    frame = as_frame(rows)
    groups, texts = tables_of(frame), []
    for part in groups:
        entries = entries_of(part)
        lines = [f"## {_heading(part)}: {', '.join(e.label for e in entries)}{telling(part, groups)}", "", AUSUC, ""]
        lines += _metric_table(
            [e for e in entries if not e.cut_off], "", "method, test sets, inductive", entries[0].method
        )
        lines += _section(
            _CUT_OFF,
            [e for e in entries if e.cut_off],
            "",
            "method, test sets, inductive",
        )
        lines += ["", *(line for e in entries for line in _calibration(e))]
        lines += _section("SELECTED ON TEST (epoch and γ): not comparable:", entries, "test_", "method")
        title = "PUBLISHED PROCEDURE: transductive, plain sample average; not comparable:"
        lines += _section(title, entries, "published_", "method")
        lines += _related(part)
        for e in entries:
            epochs, gammas = ", ".join(f"{v:.0f}" for v in e.runs.epochs), ", ".join(f"{v:.3g}" for v in e.runs.gamma)
            how = f"; chosen: {e.runs.how.iloc[0]}" if "how" in e.runs else ""
            lines += ["", f"{e.label}: epochs {epochs}; γ {gammas}{how}."]
            lines += [f"Time a seed: {e.runs.seconds.mean():.0f} s on {_values(e.runs.device)}."]
        lines += [f"note: {note}." for note in _notes(part)]
        lines += ["", LEGEND, "", _digests(part)]
        texts.append("\n".join(lines))
    return "\n\n".join(texts)


def _calibration(entry: Entry) -> list[str]:
    """H at γ = 0 and at the γ used, in one line; says so where that γ was not validated."""
    zero, best = entry.runs.H_gamma0, entry.runs.H_best
    used = f"{_mean(entry.runs.H)} at the validated γ"
    if not entry.runs.validated.all():
        gammas = ", ".join(dict.fromkeys(f"{v:.3g}" for v in entry.runs.gamma))
        used = f"{_mean(entry.runs.H)} at γ = {gammas}, the method's own (--select last validates none)"
    parts = [f"{_mean(zero)} at γ = 0"] * bool(zero.notna().any()) + [used]
    parts += [f"{_mean(best)} at the best γ of the test sets (selected on test)"] * bool(best.notna().any())
    return [f"H of {entry.label}: {'; '.join(parts)}."]


def _metric_table(entries: Sequence[Entry], prefix: str, header: str, bold: str = OURS) -> list[str]:
    """One line an entry, best first, with the columns ``prefix`` + T1 ...; entries without them are left out."""
    entries = [e for e in entries if e.runs[[prefix + k for k in METRICS]].notna().any(axis=None)]
    if not entries:
        return []
    keys = [k for k in METRICS if any(e.runs[prefix + k].notna().any() for e in entries)]
    columns = {k: prefix + k for k in keys}
    if not prefix:
        columns |= {"H, γ of all seeds": "H_all_seeds", "H, γ = 0": "H_gamma0", "H, best γ (chosen on test)": "H_best"}
    columns = {name: c for name, c in columns.items() if any(e.runs[c].notna().any() for e in entries)}
    tried = any(e.runs.configurations.notna().any() for e in entries)
    remarks = any(e.remarks for e in entries)
    names = [header, *columns, *["configurations tried"] * tried, "seeds", *["remarks"] * remarks]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for e in sorted(entries, key=lambda e: -e.runs[prefix + keys[-1]].mean()):
        cells = [f"**{_escape(e.label)}**" if e.method == bold else _escape(e.label)]
        cells += [_mean(e.runs[c]) for c in columns.values()]
        count = e.runs.configurations.max()
        cells += [("-" if np.isnan(count) else f"{count:.0f}")] * tried + [str(len(e.runs))]
        cells += [_escape(e.remarks)] * remarks
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _of_all_seeds(entries: Sequence[Entry]) -> list[str]:
    if not any(e.runs.H_all_seeds.notna().any() for e in entries):
        return []
    return [
        "H, γ of all seeds: at the mean of the γ that the validation splits of all the row's seeds have at the epoch",
        "and settings that the run has chosen.",
    ]


def _section(title: str, entries: Sequence[Entry], prefix: str, header: str) -> list[str]:
    lines = _metric_table(entries, prefix, header)
    return ["", title, "", *lines] if lines else []


def _related(part: pd.DataFrame) -> list[str]:
    """Published rows where the data set is the benchmark itself, and why they do not compare."""
    dataset, first = str(part.dataset.iloc[0]), part.iloc[0]
    if dataset not in RELATED_WORK:
        return []
    if any(note.startswith("a subset of") for note in _notes(part)):
        return ["", f"Published rows of {dataset} are not shown: these are not all of its classes and images."]
    why = "Published by others: selected on test where the source says so, and from the authors' own runs."
    if first.backbone.lower() not in _PUBLISHED_BACKBONES:
        why = f"Published by others, on other features than {first.backbone or 'unknown ones'}: they do not compare."
    return ["", why, "", *related_work_table(dataset)]


def ours_among(entries: Sequence[Entry]) -> Entry | None:
    """The entry that the others are compared with; None where there is none, or several and none is as published."""
    ours = [e for e in entries if e.method == OURS]
    if len(ours) > 1:
        ours = [e for e in ours if e.label == OURS]
    if len(ours) > 1:
        ours = [e for e in ours if e.runs.validated.all()]
    return ours[0] if len(ours) == 1 else None


def _comparison(entries: Sequence[Entry], prefix: str, where: str, over_classes: OverClasses | None) -> list[str]:
    """Our method against every other with two or more seeds in common, paired; the strongest first."""
    ours = ours_among(entries)
    if ours is None:
        return []
    mine = ours.runs.set_index("seed")
    keys = [k for k in ("T1", "H", "AUSUC") if mine[prefix + k].notna().any()]
    if not keys:
        return []
    columns = {k: prefix + k for k in keys} | ({"H, best γ": "H_best"} if not prefix else {})
    columns = {k: c for k, c in columns.items() if mine[c].notna().all()}
    lines, by_class, seeds = [], [], 0
    for e in sorted(entries, key=lambda e: -e.runs[prefix + keys[-1]].mean()):
        other = e.runs.set_index("seed")
        shared = mine.index.intersection(other.index)
        if e is ours or other.loc[shared, list(columns.values())].isna().any(axis=None):
            continue
        label = _escape(e.label + (f" ({e.remarks})" if e.remarks else ""))
        drawn = over_classes(mine.loc[shared].reset_index(), other.loc[shared].reset_index()) if over_classes else None
        if drawn:
            by_class.append(f"| {label} | " + " | ".join(_difference(drawn[k], 100) for k in RESAMPLED) + " |")
        if len(shared) < 2:
            continue
        found = {k: paired(100 * mine.loc[shared, c], 100 * other.loc[shared, c]) for k, c in columns.items()}
        cells = " | ".join(_difference(d) for d in found.values())
        lines.append(f"| {label} | {cells} | {list(found.values())[keys.index(keys[-1])].p:.3f} | {len(shared)} |")
        seeds = max(seeds, len(shared))
    if lines:
        lines = [
            "",
            f"| {ours.label} minus{where} | " + " | ".join(columns) + f" | sign-flip p of {keys[-1]} | seeds |",
            "|---" * (len(columns) + 3) + "|",
            *lines,
            "",
            "Paired over seeds, 95 % intervals (t): they cover seeds and their validation splits, not the draw of test",
            f"classes. With n seeds p cannot be below 2^(1-n): {2.0 ** (1 - seeds):.3g} for {seeds}.",
        ]
    if by_class:
        lines += [
            "",
            f"| {ours.label} minus, over classes | " + " | ".join(RESAMPLED) + " |",
            "|---" * (len(RESAMPLED) + 1) + "|",
            *by_class,
            "",
            "Paired bootstrap over test classes, unseen and seen drawn apart, 95 % intervals; U, S and H at the γ of",
            "the highest H, chosen anew in every draw for either method.",
        ]
    return lines


def _difference(d: Interval, scale: float = 1.0) -> str:
    verdict = "" if d.significant else ", not significant"
    return f"{scale * d.mean:+.1f} ({scale * d.low:+.1f} to {scale * d.high:+.1f}){verdict}"


def _ablation_table(part: pd.DataFrame) -> list[str]:
    """The whole method and what is left without one ingredient, on validation splits, paired with the whole."""
    if not (part.ablation == WHOLE).any():
        return []
    lines = [
        "",
        "Ablation on validation splits (no test image is read); difference of AUSUC to the whole, paired over seeds:",
        "",
        "| | T1 | H | AUSUC | difference | 95 % interval | 95 % |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = {str(name): runs for name, runs in part.groupby("ablation", sort=False)}
    whole = groups[WHOLE].set_index("seed")
    for name in [*(n for n in ABLATIONS if n in groups), *(n for n in groups if n not in ABLATIONS)]:
        runs = groups[name]
        same_runs(runs, f"ablation {name!r} of {runs.dataset.iloc[0]}")
        if runs.seed.duplicated().any():
            raise UserError(f"ablation {name!r} of {runs.dataset.iloc[0]}: a seed is there twice among the rows")
        mine = runs.set_index("seed")
        cells = " | ".join(_mean(mine[f"val_{k}"]) for k in ("T1", "H", "AUSUC"))
        shared = whole.index.intersection(mine.index)
        if name == WHOLE or len(shared) < 2:
            lines.append(f"| {_escape(name)} | {cells} | | | |")
            continue
        d = paired(100 * mine.loc[shared, "val_AUSUC"], 100 * whole.loc[shared, "val_AUSUC"])
        verdict = "significant" if d.significant else "not significant"
        lines.append(f"| {_escape(name)} | {cells} | {d.mean:+.1f} | {d.low:+.1f} to {d.high:+.1f} | {verdict} |")
    return lines


def _footer(part: pd.DataFrame, entries: Sequence[Entry]) -> list[str]:
    lines = []
    if entries:
        seconds = ", ".join(f"{e.label} {e.runs.seconds.median():.0f}" for e in entries)
        lines += [f"Seconds a run (choose, refit, test; median): {seconds}."]
        epochs = [f"{e.label} {e.runs.most_epochs.max():.0f} ({_values(e.runs.epochs)})" for e in entries]
        lines += [f"Most epochs offered to the selection (and chosen): {', '.join(epochs)}."]
        lines += [
            "Beside the published procedures: selection on validation rather than on test, γ validated rather than the"
            " margin alone, one model for T1 and H."
        ]
    for method, runs in part[part.deviations != ""].groupby("method"):
        lines += [f"{_escape(str(method))} differs from the published method: {_escape(_values(runs.deviations))}."]
    return [*lines, _digests(part)]


def _digests(part: pd.DataFrame) -> str:
    values = {column: str(part[column].iloc[0]) or "unknown" for column in DIGESTS}
    found = [f"{name} {values[c][:16] if c.endswith('sha256') else values[c]}" for c, name in DIGESTS.items()]
    methods = part[part.method_code != ""].groupby("method").method_code.unique()
    if len(methods):
        found += ["method code " + ", ".join(f"{m} {'/'.join(codes)}" for m, codes in methods.items())]
    found += [f"precision {_values(part.precision)}"] if part.precision.any() else []
    return f"Digests: {'; '.join(found)}. torch {_values(part.torch)}, {_values(part.device)}."


def _heading(part: pd.DataFrame) -> str:
    first = part.iloc[0]
    size = f"{first.input_size} px" if first.input_size else ""
    # what extraction added to the name of the features (a layer, a mirror image) where there is more than the backbone
    variant = first.features if first.features != first.backbone else ""
    shown = [v for v in (first.backbone or "unknown", first.regions, size, variant) if v]
    return _escape(f"{first.dataset}, features {', '.join(shown)}")


def telling(part: pd.DataFrame, alike: Sequence[pd.DataFrame]) -> str:
    """What tells a table from the others of its data set, where the heading alone does not."""
    if [_heading(other) for other in alike].count(_heading(part)) < 2:
        return ""
    shown = [
        f"{n} {part[c].iloc[0][:12] or 'unknown'}" for c, n in DIGESTS.items() if len({o[c].iloc[0] for o in alike}) > 1
    ]
    return f" ({', '.join(shown)})"


def _notes(part: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(note.rstrip(".") for text in part.notes for note in text.split(" | ") if note))


def _values(values: pd.Series) -> str:
    unique = sorted({v for v in values.dropna() if v != ""})
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in unique) or "unknown"


def _mean(values: pd.Series) -> str:
    """Mean ± standard deviation of shares, in percent."""
    v = values.dropna().to_numpy(dtype=np.float64) * 100
    if not len(v):
        return "-"
    return f"{v.mean():.1f}" + (f" ± {v.std(ddof=1):.1f}" if len(v) > 1 else "")


def _escape(text: str) -> str:
    """Text that cannot leave its cell."""
    return text.replace("|", "\\|")
