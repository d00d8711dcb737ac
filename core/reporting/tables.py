"""Every Markdown table: rows of summary.csv in, one a run; a line a method out; what is no equal stands apart.

A table holds runs on one data set, split, feature file and vectors; runs of a line differ in their seed alone.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.experiments.ablations import ABLATIONS, WHOLE
from core.experiments.statistics import RESAMPLED, Interval, paired
from core.files.errors import UserError
from core.methods import PREPARED
from core.reporting.related_work import related_work

OURS = "vsmr"  # the method that the others are compared with
METRICS = ["T1", "U", "S", "H", "AUSUC"]
# features made alike serve for one table of the board (core.experiments.board); elsewhere a table has one file of them
DIGESTS = {"features_made": "features", "vectors_sha256": "vectors", "split_sha256": "split"}
TABLE = ["dataset", "backbone", "regions", "input_size", "features", *DIGESTS]  # equal within a table
# what a label says of columns in which a method's lines differ
_SAID = {"method_code": "method code", "gamma_splits": "γ splits"} | {c: c for c in ("code", "precision", "torch")}
LINE = ["method", "recipe", "most_epochs", "validated", "cut_off", *_SAID]  # equal within a line, seeds apart
_TEXT = [*TABLE, "method", "method_code", "recipe", "precision", "cut_off", "ablation", "notes", "deviations", "how"]
_TEXT += ["features_sha256", "code", "pretraining_saw_unseen", "finetuned", "device", "torch"]
_NUMBERS = ["configurations", *(p + metric for p in ("", "val_", "test_", "published_") for metric in METRICS)]
_NUMBERS += ["gamma", "H_gamma0", "H_best", "seed", "epochs", "most_epochs", "recipe_epochs", "gamma_splits", "seconds"]
_NUMBERS.append("ECE")

LEGEND = """\
T1: accuracy on images of unseen classes, among unseen classes only. U and S: accuracy on images of unseen and
of seen classes, among all classes. H: their harmonic mean, 2US/(U+S). All are means over classes of per-class
top-1 accuracy in percent, mean ± standard deviation over seeds. γ is added to the scores of unseen classes."""
AUSUC = "AUSUC: area under the curve of S over U as γ runs through all values (calibrated stacking), exact, in percent."
_CHOSEN = f"""\
Inductive. Epochs, γ and thresholds are chosen on a class-disjoint validation split inside trainval (seed
k has split k); the test sets are read once. {AUSUC}"""
_OPTIMISTIC = "Validation splits (what was chosen on, so optimistic):"
CUT_OFF = "CUT OFF: fewer epochs than the published recipe; not comparable as an equal:"
ENSEMBLE = "ENSEMBLES of finished runs (mean of standardised scores), some on other features too; not comparable:"
_ON_TEST = "SELECTED ON TEST (epoch and γ), what most repositories print; not comparable with the above:"
_PUBLISHED = "PUBLISHED PROCEDURE: transductive (unlabelled test images), plain sample average; not comparable:"
_BESIDE = """\
Beside the published procedures: selection on validation rather than on test, γ validated rather than the\
 margin alone, one model for T1 and H."""
_BY_SEED = """\
Paired over seeds, 95 % intervals (t): they cover seeds and their validation splits, not the draw of test
classes. With n seeds p cannot be below 2^(1-n): {least:.3g} for {seeds}."""
_BY_CLASS = """\
Paired bootstrap over test classes, unseen and seen drawn apart, 95 % intervals; U, S and H at the γ of
the highest H, chosen anew in every draw for either method."""

# rows of the method compared with, rows of the other (the same seeds) -> metric -> difference
OverClasses = Callable[[pd.DataFrame, pd.DataFrame], Mapping[str, Interval]]


def read_summary(path: Path) -> pd.DataFrame:
    """The rows of a summary.csv, :func:`prepared`."""
    return prepared(pd.read_csv(path, dtype=str, keep_default_na=False))


def prepared(rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows with every column that a table asks for: texts are "" and numbers NaN where they are missing."""
    frame = pd.DataFrame(rows)
    frame = frame.reindex(columns=[*dict.fromkeys([*frame.columns, *_TEXT, *_NUMBERS])])
    frame[_TEXT] = frame[_TEXT].map(_text)
    frame[_NUMBERS] = frame[_NUMBERS].apply(pd.to_numeric)
    frame["features_made"] = frame.features_made.where(frame.features_made != "", frame.features_sha256)
    return frame.assign(validated=frame.val_AUSUC.notna())


def _text(value: Any) -> str:
    said = f"{value:g}" if isinstance(value, float) else str(value)
    return "" if pd.isna(value) else " ".join(said.split())  # one line, whatever a name holds


def tables_of(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows split into groups that may share a table, in the order of their first rows."""
    return [part for _, part in frame.groupby(TABLE, sort=False)]


def with_lines(part: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table by seed, with the number, label and remarks of the line that each belongs to."""
    line = part.groupby(LINE, sort=False, dropna=False).ngroup()
    part = part.assign(line=line, label="", remarks="").sort_values("seed", kind="stable")
    for row in part[part.duplicated(["line", "seed"])].itertuples():
        raise UserError(f"{row.dataset}, {row.method}: seed {row.seed:.0f} is there twice; one of its folders must go")
    several = part.groupby("method")[[*_SAID]].nunique() > 1
    for number, runs in part.groupby("line"):
        first = runs.iloc[0]
        says = [f"{key}={value}" for key, value in json.loads(first.recipe or "{}").items()]
        says += [f"{name} {_text(first[c]) or 'unknown'}" for c, name in _SAID.items() if several.loc[first.method, c]]
        if 0 < first.recipe_epochs < first.most_epochs:  # fewer are said by its remark; closed forms have none
            says.append(f"{first.most_epochs:g} epochs, recipe {first.recipe_epochs:g}")
        label = first.method + (f" ({', '.join(says)})" if says else "")
        part.loc[part.line == number, ["label", "remarks"]] = label, _remarks(runs)
    return part


def _remarks(runs: pd.DataFrame) -> str:
    """What must be known wherever the line of these runs is printed."""
    first, gammas = runs.iloc[0], ", ".join(dict.fromkeys(f"{gamma:.3g}" for gamma in runs.gamma))
    said = {f"pretraining saw unseen classes: {v}": True for v in sorted({*runs.pretraining_saw_unseen} - {"", "no"})}
    said["backbone fine-tuned"] = "true" in {*runs.finetuned.str.lower()}
    said["given vsmr's preparation"] = first.method.endswith(PREPARED)
    said[f"nothing validated (--select last): γ = {gammas}, the method's own"] = not first.validated
    said[f"γ: mean over {first.gamma_splits:g} validation splits a seed"] = first.gamma_splits > 1
    said[f"cut off: {first.cut_off}"] = bool(first.cut_off)
    return "; ".join(words for words, true in said.items() if true)


def all_tables(rows: pd.DataFrame | Iterable[Mapping[str, Any]], over_classes: OverClasses | None = None) -> str:
    """The tables of all rows, data set by data set; ``over_classes`` adds intervals over the draw of test classes."""
    groups = tables_of(prepared(rows))
    return "\n\n".join([LEGEND, *("\n".join(_dataset_table(part, groups, over_classes)) for part in groups)]) + "\n"


def _dataset_table(part: pd.DataFrame, groups: Sequence[pd.DataFrame], over_classes: OverClasses | None) -> list[str]:
    runs = with_lines(part[part.ablation == ""])
    notes = list(dict.fromkeys(note.rstrip(".") for text in part.notes for note in text.split(" | ") if note))
    full, cut = runs[runs.cut_off == ""], runs[runs.cut_off != ""]
    ensembles = full.method.str.contains("+", regex=False)
    several, full = full[ensembles], full[~ensembles]
    lines = [f"### {heading(part)}{telling(part, groups)}", "", *(f"Note: {note}." for note in notes)]
    if len(runs):
        lines += [*[""] * bool(notes), _CHOSEN]
        lines += _metrics(full, "", "method, test sets")
        lines += related_work(part.dataset.iloc[0], part.backbone.iloc[0], notes)
        lines += _comparison(full, "", over_classes)
        lines += _metrics(full, "val_", "method, validation", _OPTIMISTIC)
        lines += _comparison(full, "val_", None)
        lines += _metrics(several, "", "runs, test sets", ENSEMBLE)
        lines += _metrics(cut, "", "method, test sets", CUT_OFF)
        lines += _metrics(cut, "val_", "method, validation", CUT_OFF)
        lines += _metrics(runs, "test_", "method, selected on test", _ON_TEST)
        lines += _metrics(runs, "published_", "method, published procedure", _PUBLISHED)
    for found, ablated in part[part.ablation != ""].groupby(["code", "torch"]):
        said = [f"{c} {v}" for c, v in zip(("code", "torch"), found, strict=True) if part[c].nunique() > 1]
        lines += _ablation(ablated, f" ({', '.join(said)})" if said else "")
    lines.append("")
    if len(runs):
        own = [(own.label.iloc[0], own) for _, own in runs.groupby("line")]
        seconds = ", ".join(f"{label} {own.seconds.median():.0f}" for label, own in own)
        epochs = ", ".join(f"{label} {own.most_epochs.max():.0f} ({values_of(own.epochs)})" for label, own in own)
        lines += [f"Seconds a run (choose, refit, test; median): {seconds}."]
        lines += [f"Most epochs offered to the selection (and chosen): {epochs}.", _BESIDE]
    for method, said in part[part.deviations != ""].groupby("method").deviations:
        lines.append(f"{method} differs from the published method: {values_of(said)}.")
    found = digests(part)
    codes = part[part.method_code != ""].groupby("method").method_code.unique()
    found += ["method code " + ", ".join(f"{m} {'/'.join(c)}" for m, c in codes.items())] * bool(len(codes))
    found += [f"precision {values_of(part.precision)}"] * bool(part.precision.any())
    return [*lines, f"Digests: {'; '.join(found)}. torch {values_of(part.torch)}, {values_of(part.device)}."]


def _metrics(runs: pd.DataFrame, prefix: str, header: str, title: str = "") -> list[str]:
    """A line a method, best first, of the seeds that have such numbers; columns that hold nothing are left out."""
    columns = {k: prefix + k for k in METRICS}
    runs = runs[runs[[*columns.values()]].notna().any(axis=1)]
    columns |= {} if prefix else {"H, γ = 0": "H_gamma0", "H, best γ (chosen on test)": "H_best", "ECE": "ECE"}
    columns = {k: c for k, c in columns.items() if runs[c].notna().any()}
    if not columns:
        return []
    rows = []
    for _, own in runs.groupby("line"):
        first, tried = own.iloc[0], own.configurations.max()
        row = {header: f"**{first.label}**" if first.method == OURS else first.label}
        row |= {name: mean_of(own[c]) for name, c in columns.items()}
        if runs.configurations.notna().any():
            row["configurations tried"] = "-" if np.isnan(tried) else f"{tried:.0f}"
        rows.append(row | {"seeds": len(own)} | ({"remarks": first.remarks} if runs.remarks.any() else {}))
    last = columns[[k for k in METRICS if k in columns][-1]]
    order = (-runs.groupby("line")[last].mean()).argsort(kind="stable")
    return ["", *[title, ""] * bool(title), *markdown([rows[i] for i in order])]


def ours_among(runs: pd.DataFrame) -> pd.DataFrame | None:
    """Runs of the line that the others are compared with; None: there is none, or several and none is as published."""
    ours = runs[runs.method == OURS]
    if ours.line.nunique() > 1:
        ours = ours[(ours.label == OURS) & ours.validated]
    return ours if ours.line.nunique() == 1 else None


def _comparison(runs: pd.DataFrame, prefix: str, over_classes: OverClasses | None) -> list[str]:
    """Our method against every other: paired over the seeds that both have, and over classes; the strongest first."""
    if runs[runs.method == OURS].code.nunique() > 1:  # each with what was run by the same code
        return [line for _, own in runs.groupby("code") for line in _comparison(own, prefix, over_classes)]
    if (ours := ours_among(runs)) is None:
        return []
    columns = {k: prefix + k for k in ("T1", "H", "AUSUC")} | ({} if prefix else {"H, best γ": "H_best"})
    columns = {k: c for k, c in columns.items() if ours[c].notna().all()}
    if not columns:
        return []
    last = [k for k in METRICS if k in columns][-1]
    label, by_seed, by_class = ours.label.iloc[0], [], []
    others = [own for line, own in runs.groupby("line") if line != ours.line.iloc[0]]
    for own in sorted(others, key=lambda own: -own[columns[last]].mean()):
        a, b = (side[side.seed.isin({*ours.seed} & {*own.seed})] for side in (ours, own))
        if b.empty or b[[*columns.values()]].isna().any(axis=None):  # no seed in common, or numbers missing
            continue
        name = own.label.iloc[0] + (f" ({own.remarks.iloc[0]})" if own.remarks.iloc[0] else "")
        if over_classes:
            drawn = over_classes(a, b)
            by_class.append({f"{label} minus, over classes": name} | {k: _difference(drawn[k], 100) for k in RESAMPLED})
        if len(a) > 1:
            found = {k: paired(100 * a[c], 100 * b[c]) for k, c in columns.items()}
            row = {f"{label} minus{' (validation)' if prefix else ''}": name}
            row |= {k: _difference(d) for k, (d, _) in found.items()}
            by_seed.append(row | {f"sign-flip p of {last}": f"{found[last][1]:.3f}", "seeds": len(a)})
    seeds = max((row["seeds"] for row in by_seed), default=0)
    lines = ["", *markdown(by_seed), "", _BY_SEED.format(least=2.0 ** (1 - seeds), seeds=seeds)] if by_seed else []
    return lines + (["", *markdown(by_class), "", _BY_CLASS] if by_class else [])


def _ablation(part: pd.DataFrame, of: str) -> list[str]:
    """The whole method and what is left without one ingredient, on validation splits, paired with the whole."""
    if not (part.ablation == WHOLE).any():
        return []
    runs_of = {str(name): with_lines(runs) for name, runs in part.groupby("ablation", sort=False)}
    whole, rows = runs_of[WHOLE], []
    for name in sorted(runs_of, key=lambda name: [*ABLATIONS, name].index(name)):
        mine = runs_of[name]
        if mine.line.nunique() > 1:
            kinds = f"ablation {name!r} of {part.dataset.iloc[0]}: its seeds are runs of {' and of '.join(mine.label)}"
            raise UserError(f"{kinds}: they have no mean; give either a folder of its own with --out")
        row = {"": name} | {k: mean_of(mine[f"val_{k}"]) for k in ("T1", "H", "AUSUC")}
        row |= dict.fromkeys(("difference", "95 % interval", "95 %"), "")
        a, b = (100 * side.val_AUSUC[side.seed.isin({*mine.seed} & {*whole.seed})] for side in (mine, whole))
        if name != WHOLE and len(a) > 1:
            d, _ = paired(a, b)
            row |= {"difference": f"{d.mean:+.1f}", "95 % interval": f"{d.low:+.1f} to {d.high:+.1f}"}
            row["95 %"] = "significant" if d.significant else "not significant"
        rows.append(row)
    title = f"Ablation on validation splits{of} (no test image is read); difference of AUSUC to the whole, paired over"
    return ["", f"{title} seeds:", "", *markdown(rows)]


def heading(part: pd.DataFrame) -> str:
    first = part.iloc[0]
    # what extraction added to the name of the features (a layer, a mirror image) where there is more than the backbone
    variant = first.features if first.features != first.backbone else ""
    shown = [first.backbone or "unknown", first.regions, first.input_size and f"{first.input_size} px", variant]
    return f"{first.dataset}, features {', '.join(filter(None, shown))}"


def telling(part: pd.DataFrame, groups: Sequence[pd.DataFrame]) -> str:
    """What tells a table from the others of its data set, where the heading alone does not."""
    alike = [other for other in groups if other.dataset.iloc[0] == part.dataset.iloc[0]]
    if [heading(other) for other in alike].count(heading(part)) < 2:
        return ""
    differ = [c for c in DIGESTS if len({other[c].iloc[0] for other in alike}) > 1]
    return f" ({', '.join(f'{DIGESTS[c]} {part[c].iloc[0][:12]}' for c in differ)})"


def digests(part: pd.DataFrame) -> list[str]:
    """Of the features, vectors, split and code of a table's runs."""
    columns = {"features_sha256": "features", "vectors_sha256": "vectors", "split_sha256": "split"}
    return [*(f"{name} {values_of(part[c].str[:16])}" for c, name in columns.items()), f"code {values_of(part.code)}"]


def values_of(values: pd.Series) -> str:
    return ", ".join(_text(v) for v in sorted({*values.dropna()} - {""})) or "unknown"


def mean_of(values: pd.Series) -> str:
    """Mean ± standard deviation of shares, in percent."""
    v = 100 * values.dropna()
    return "-" if v.empty else f"{v.mean():.1f}" + (f" ± {v.std():.1f}" if len(v) > 1 else "")


def _difference(d: Interval, scale: float = 1.0) -> str:
    verdict = "" if d.significant else ", not significant"
    return f"{scale * d.mean:+.1f} ({scale * d.low:+.1f} to {scale * d.high:+.1f}){verdict}"


def markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows with the same columns; no text can leave its cell."""
    lines = [[*rows[0]], *([str(cell) for cell in row.values()] for row in rows)]
    lines = [[f" {cell} ".replace("|", "\\|") if cell else " " for cell in line] for line in lines]
    return [f"|{'|'.join(line)}|" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]]]
