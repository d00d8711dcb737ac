"""Every Markdown table: rows of summary.csv in, one a run; a line a method out; what is no equal stands apart.

A table holds runs on one data set, split, feature file, vectors and code; a line is the mean over runs that differ in
nothing but their seed. Where there are several tables, each has its digests below.
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
from core.reporting.rows import DIGESTS, METRICS, OURS, Entry, entries_of, prepared, tables_of

LEGEND = (
    "T1: accuracy on images of unseen classes, among unseen classes only. U and S: accuracy on images of unseen and\n"
    "of seen classes, among all classes. H: their harmonic mean, 2US/(U+S). All are means over classes of per-class\n"
    "top-1 accuracy in percent, mean ± standard deviation over seeds. γ is added to the scores of unseen classes."
)
AUSUC = "AUSUC: area under the curve of S over U as γ runs through all values (calibrated stacking), exact, in percent."
_CUT_OFF = "CUT OFF: fewer epochs than the published recipe; not comparable as an equal:"
_ON_TEST = "SELECTED ON TEST (epoch and γ), what most repositories print; not comparable with the above:"
_PUBLISHED = "PUBLISHED PROCEDURE: transductive (unlabelled test images), plain sample average; not comparable:"
_VALIDATION = "Validation splits (what was chosen on, so optimistic):"

# rows of the method compared with, rows of the other (the same seeds) -> metric -> difference; None: no stored scores
OverClasses = Callable[[pd.DataFrame, pd.DataFrame], Mapping[str, Interval] | None]


def all_tables(rows: pd.DataFrame | Iterable[Mapping[str, Any]], over_classes: OverClasses | None = None) -> str:
    """The tables of all rows, data set by data set; ``over_classes`` adds intervals over the draw of test classes."""
    groups = tables_of(prepared(rows))
    texts = [LEGEND, *("\n".join(_dataset_table(part, groups, over_classes)) for part in groups)]
    return "\n\n".join(texts) + "\n"


def _dataset_table(part: pd.DataFrame, groups: Sequence[pd.DataFrame], over_classes: OverClasses | None) -> list[str]:
    entries = entries_of(part[part.ablation == ""])
    full, cut = [e for e in entries if not e.cut_off], [e for e in entries if e.cut_off]
    notes = _notes(part)
    lines = [
        f"### {_heading(part)}{telling(part, groups)}",
        "",
        *(f"Note: {note}." for note in notes),
        *[""] * bool(notes),
    ]
    if entries:
        lines += [
            "Inductive. Epochs, γ and thresholds are chosen on a class-disjoint validation split inside trainval (seed",
            f"k has split k); the test sets are read once. {AUSUC}",
        ]
        lines += _metrics(full, "", "method, test sets", "")
        lines += _related(part)
        lines += comparison(full, "", over_classes)
        lines += _metrics(full, "val_", "method, validation", _VALIDATION)
        lines += comparison(full, "val_", None)
        lines += _metrics(cut, "", "method, test sets", _CUT_OFF)
        lines += _metrics(cut, "val_", "method, validation", _CUT_OFF)
        lines += _metrics(entries, "test_", "method, selected on test", _ON_TEST)
        lines += _metrics(entries, "published_", "method, published procedure", _PUBLISHED)
    for version, runs in part[part.ablation != ""].groupby("torch"):
        lines += _ablation(runs, f" (torch {version})" if part.torch.nunique() > 1 else "")
    lines.append("")
    if entries:
        seconds = ", ".join(f"{e.label} {e.runs.seconds.median():.0f}" for e in entries)
        epochs = [f"{e.label} {e.runs.most_epochs.max():.0f} ({_values(e.runs.epochs)})" for e in entries]
        lines += [
            f"Seconds a run (choose, refit, test; median): {seconds}.",
            f"Most epochs offered to the selection (and chosen): {', '.join(epochs)}.",
            "Beside the published procedures: selection on validation rather than on test, γ validated rather than the"
            " margin alone, one model for T1 and H.",
        ]
    for method, runs in part[part.deviations != ""].groupby("method"):
        lines.append(f"{_escape(str(method))} differs from the published method: {_escape(_values(runs.deviations))}.")
    return [*lines, _digests(part)]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table that a driver prints of the seeds of one method (rows of core/experiments/results.py)."""
    groups, texts = tables_of(prepared(rows)), []
    for part in groups:
        entries = entries_of(part)
        full, cut = [e for e in entries if not e.cut_off], [e for e in entries if e.cut_off]
        labels = ", ".join(e.label for e in entries)
        lines = [f"## {_heading(part)}: {labels}{telling(part, groups)}", "", AUSUC]
        lines += _metrics(full, "", "method, test sets, inductive", "", bold=entries[0].method)
        lines += _metrics(cut, "", "method, test sets, inductive", _CUT_OFF)
        lines += _metrics(entries, "test_", "method", _ON_TEST.partition(",")[0] + ": not comparable:")
        lines += _metrics(entries, "published_", "method", _PUBLISHED)
        lines += _related(part)
        for e in entries:
            epochs, gammas = ", ".join(f"{v:.0f}" for v in e.runs.epochs), ", ".join(f"{v:.3g}" for v in e.runs.gamma)
            lines += ["", f"{e.label}: epochs {epochs}; γ {gammas}; chosen: {e.runs.how.iloc[0] or 'unknown'}."]
            lines += [f"Time a seed: {e.runs.seconds.mean():.0f} s on {_values(e.runs.device)}."]
        lines += [f"note: {note}." for note in _notes(part)]
        texts.append("\n".join([*lines, "", LEGEND, "", _digests(part)]))
    return "\n\n".join(texts)


def _metrics(entries: Sequence[Entry], prefix: str, header: str, title: str, bold: str = OURS) -> list[str]:
    """A line an entry, best first; entries without these columns are left out, as are columns that no entry has."""
    measured = {e: e.runs[e.runs[[prefix + k for k in METRICS]].notna().any(axis=1)] for e in entries}
    measured = {e: runs for e, runs in measured.items() if len(runs)}  # the seeds that have such numbers
    columns = {k: prefix + k for k in METRICS}
    if not prefix:
        columns |= {"H, γ = 0": "H_gamma0", "H, best γ (chosen on test)": "H_best"}
    columns = {k: c for k, c in columns.items() if any(runs[c].notna().any() for runs in measured.values())}
    if not columns:
        return []
    last = prefix + [k for k in METRICS if k in columns][-1]
    tried = any(runs.configurations.notna().any() for runs in measured.values())
    remarks = any(e.remarks for e in measured)
    rows = []
    for e in sorted(measured, key=lambda e: -measured[e][last].mean()):
        runs, most = measured[e], measured[e].configurations.max()
        cells = {name: _mean(runs[c]) for name, c in columns.items()}
        cells |= {"configurations tried": "-" if np.isnan(most) else f"{most:.0f}"} if tried else {}
        cells |= {"seeds": str(len(runs))} | ({"remarks": e.remarks} if remarks else {})
        rows.append((e.label, cells, e.method == bold))
    lines = _markdown(header, rows)
    return ["", *[title, ""] * bool(title), *lines]


def _related(part: pd.DataFrame) -> list[str]:
    """Published rows where the data set is the benchmark itself, and why they do not compare."""
    dataset, backbone = part.dataset.iloc[0], part.backbone.iloc[0]
    if dataset not in RELATED_WORK:
        return []
    if any(note.startswith("a subset of") for note in _notes(part)):
        return ["", f"Published rows of {dataset} are not shown: these are not all of its classes and images."]
    why = "Published by others: selected on test where the source says so, and from the authors' own runs."
    if backbone.lower() not in ("resnet101", "resnet_101"):
        why = f"Published by others, on other features than {backbone or 'unknown ones'}: they do not compare."
    return ["", why, "", *related_work_table(dataset)]


def ours_among(entries: Sequence[Entry]) -> Entry | None:
    """The entry that the others are compared with; None where there is none, or several and none is as published."""
    ours = [e for e in entries if e.method == OURS]
    if len(ours) > 1:
        ours = [e for e in ours if e.label == OURS]
    if len(ours) > 1:
        ours = [e for e in ours if e.runs.validated.all()]
    return ours[0] if len(ours) == 1 else None


def comparison(entries: Sequence[Entry], prefix: str, over_classes: OverClasses | None) -> list[str]:
    """Our method against every other: paired over the seeds that both have, and over classes; the strongest first."""
    if (ours := ours_among(entries)) is None:
        return []
    mine = ours.runs.set_index("seed", drop=False)
    columns = {k: prefix + k for k in ("T1", "H", "AUSUC")} | ({} if prefix else {"H, best γ": "H_best"})
    columns = {k: c for k, c in columns.items() if mine[c].notna().all()}
    if not (keys := [k for k in METRICS if k in columns]):
        return []
    last, seeds, by_seed, by_class = keys[-1], 0, [], []
    for e in sorted(entries, key=lambda e: -e.runs[columns[last]].mean()):
        other = e.runs.set_index("seed", drop=False)
        shared = mine.index.intersection(other.index)
        if e is ours or other.loc[shared, [*columns.values()]].isna().any(axis=None):
            continue
        name = e.label + (f" ({e.remarks})" if e.remarks else "")
        if over_classes and (drawn := over_classes(mine.loc[shared], other.loc[shared])):
            by_class.append((name, {k: _difference(drawn[k], 100) for k in RESAMPLED}, False))
        if len(shared) > 1:
            found = {k: paired(100 * mine.loc[shared, c], 100 * other.loc[shared, c]) for k, c in columns.items()}
            cells = {k: _difference(d) for k, d in found.items()}
            cells |= {f"sign-flip p of {last}": f"{found[last].p:.3f}", "seeds": str(len(shared))}
            by_seed.append((name, cells, False))
            seeds = max(seeds, len(shared))
    lines = []
    if by_seed:
        lines += ["", *_markdown(f"{ours.label} minus{' (validation)' if prefix else ''}", by_seed), ""]
        lines += [
            "Paired over seeds, 95 % intervals (t): they cover seeds and their validation splits, not the draw of test"
        ]
        lines += [f"classes. With n seeds p cannot be below 2^(1-n): {2.0 ** (1 - seeds):.3g} for {seeds}."]
    if by_class:
        lines += ["", *_markdown(f"{ours.label} minus, over classes", by_class), ""]
        lines += [
            "Paired bootstrap over test classes, unseen and seen drawn apart, 95 % intervals; U, S and H at the γ of"
        ]
        lines += ["the highest H, chosen anew in every draw for either method."]
    return lines


def _ablation(part: pd.DataFrame, of: str) -> list[str]:
    """The whole method and what is left without one ingredient, on validation splits, paired with the whole."""
    if not (part.ablation == WHOLE).any():
        return []
    of_name = {str(name): entries_of(runs) for name, runs in part.groupby("ablation", sort=False)}
    for name, found in of_name.items():
        if len(found) > 1:
            kinds = " and of ".join(e.label for e in found)
            raise UserError(
                f"ablation {name!r} of {part.dataset.iloc[0]}: its seeds are runs of {kinds}: they have no mean; give "
                "either a folder of its own with --out"
            )
    whole, rows = of_name[WHOLE][0].runs.set_index("seed"), []
    for name in [*(n for n in ABLATIONS if n in of_name), *(n for n in of_name if n not in ABLATIONS)]:
        mine = of_name[name][0].runs.set_index("seed")
        cells = {k: _mean(mine[f"val_{k}"]) for k in ("T1", "H", "AUSUC")}
        cells |= {"difference": "", "95 % interval": "", "95 %": ""}
        shared = whole.index.intersection(mine.index)
        if name != WHOLE and len(shared) > 1:
            d = paired(100 * mine.loc[shared, "val_AUSUC"], 100 * whole.loc[shared, "val_AUSUC"])
            verdict = "significant" if d.significant else "not significant"
            cells |= {
                "difference": f"{d.mean:+.1f}",
                "95 % interval": f"{d.low:+.1f} to {d.high:+.1f}",
                "95 %": verdict,
            }
        rows.append((name, cells, False))
    title = f"Ablation on validation splits{of} (no test image is read); difference of AUSUC to the whole, paired over"
    title += " seeds:"
    return ["", title, "", *_markdown("", rows)]


def _digests(part: pd.DataFrame) -> str:
    values = {c: part[c].iloc[0] or "unknown" for c in DIGESTS}
    found = [f"{name} {values[c][:16] if c.endswith('sha256') else values[c]}" for c, name in DIGESTS.items()]
    codes = part[part.method_code != ""].groupby("method").method_code.unique()
    found += ["method code " + ", ".join(f"{m} {'/'.join(c)}" for m, c in codes.items())] * bool(len(codes))
    found += [f"precision {_values(part.precision)}"] * bool(part.precision.any())
    return f"Digests: {'; '.join(found)}. torch {_values(part.torch)}, {_values(part.device)}."


def _heading(part: pd.DataFrame) -> str:
    first = part.iloc[0]
    size = f"{first.input_size} px" if first.input_size else ""
    # what extraction added to the name of the features (a layer, a mirror image) where there is more than the backbone
    variant = first.features if first.features != first.backbone else ""
    shown = [v for v in (first.backbone or "unknown", first.regions, size, variant) if v]
    return _escape(f"{first.dataset}, features {', '.join(shown)}")


def telling(part: pd.DataFrame, groups: Sequence[pd.DataFrame]) -> str:
    """What tells a table from the others of its data set, where the heading alone does not."""
    alike = [other for other in groups if other.dataset.iloc[0] == part.dataset.iloc[0]]
    if [_heading(other) for other in alike].count(_heading(part)) < 2:
        return ""
    differ = [c for c in DIGESTS if len({other[c].iloc[0] for other in alike}) > 1]
    return f" ({', '.join(f'{DIGESTS[c]} {part[c].iloc[0][:12]}' for c in differ)})"


def _notes(part: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(note.rstrip(".") for text in part.notes for note in text.split(" | ") if note))


def _values(values: pd.Series) -> str:
    unique = sorted({v for v in values.dropna() if v != ""})
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in unique) or "unknown"


def _mean(values: pd.Series) -> str:
    """Mean ± standard deviation of shares, in percent."""
    v = 100 * values.dropna()
    if v.empty:
        return "-"
    return f"{v.mean():.1f}" + (f" ± {v.std():.1f}" if len(v) > 1 else "")


def _difference(d: Interval, scale: float = 1.0) -> str:
    verdict = "" if d.significant else ", not significant"
    return f"{scale * d.mean:+.1f} ({scale * d.low:+.1f} to {scale * d.high:+.1f}){verdict}"


def _markdown(header: str, rows: Sequence[tuple[str, Mapping[str, str], bool]]) -> list[str]:
    """Rows of a name, its cells and whether it is bold; all have the same columns."""
    lines = [[header, *rows[0][1]]]
    for name, cells, bold in rows:
        lines.append([f"**{_escape(name)}**" if bold else _escape(name), *map(_escape, cells.values())])
    text = ["|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines]
    return [text[0], "|---" * len(lines[0]) + "|", *text[1:]]


def _escape(text: str) -> str:
    """Text that cannot leave its cell."""
    return text.replace("|", "\\|")
