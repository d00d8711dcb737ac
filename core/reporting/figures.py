"""Figures of results: calibration curves, accuracy per class, paired differences, learning curves, growth of cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, StrMethodFormatter

from core.experiments.statistics import Interval
from core.files.atomic import read_json
from core.files.errors import UserError
from core.inference.names import shown_classes
from core.reporting.canvas import canvas, drawing, printable, save, style, wrapped
from core.reporting.rows import OURS

_NAMES = {"class": str, "predicted": str}  # classes named 1, 2, ... stay names
_LEGEND = 30  # letters in a line of a legend


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A run's curve of seen over unseen accuracy, and the point that its γ gives; shares."""

    U: np.ndarray  # (T+1,) ascending
    S: np.ndarray  # (T+1,) descending
    chosen: tuple[float, float] | None = None  # (U, S)


def read_curve(folder: Path) -> Curve:
    """The curve that a run left in its folder."""
    curve = pd.read_csv(folder / "curve.csv")
    metrics = folder / "metrics.json"
    standard = read_json(metrics).get("standard") if metrics.is_file() else None
    chosen = (standard["U"], standard["S"]) if standard else None
    return Curve(U=curve.U.to_numpy(), S=curve.S.to_numpy(), chosen=chosen)


def is_ours(label: str) -> bool:
    """Whether a label is our method's, drawn first and thickest: ``vsmr``, also with more (``vsmr (lr=0.0006)``)."""
    return re.match(rf"{OURS}(?![\w-])", label) is not None


def _ours_first(names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: not is_ours(name))


def calibration_figure(runs: Mapping[str, Sequence[Path | Curve]], out: Path, title: str) -> None:
    """Seen over unseen accuracy as γ of calibrated stacking varies: mean and band over seeds, chosen γ marked.

    The mean is taken along rays from the origin, each of which meets a curve once; the band is ± one standard
    deviation. Grey lines have equal H.

    Args:
        runs: method -> its seeds, as curves or as run folders that hold a curve.csv.
        out: the PNG; the PDF stands beside it.
    """
    angles = np.linspace(0, np.pi / 2, 361)
    with drawing():
        figure, axes = canvas(7.4, 5.4)
        axis = axes[0, 0]
        _equal_harmonic_means(axis)
        for number, method in enumerate(_ours_first(list(runs))):
            curves = [read_curve(run) if isinstance(run, Path) else run for run in runs[method]]
            radii = np.stack([_along_rays(curve, angles) for curve in curves])
            mean, spread = radii.mean(axis=0), radii.std(axis=0, ddof=1) if len(radii) > 1 else 0 * radii[0]
            look = style(number)
            marker = look.pop("marker")
            wide = 2.4 if is_ours(method) else 1.3
            x, y = (100 * mean * f(angles) for f in (np.cos, np.sin))
            axis.plot(x, y, linewidth=wide, zorder=3, **look)
            if len(radii) > 1:
                edges = [
                    (100 * (mean + s * spread)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1))
                    for s in (1, -1)
                ]
                axis.fill(*np.concatenate([edges[0], edges[1][::-1]]).T, color=look["color"], alpha=0.15, linewidth=0)
            chosen = np.array([c.chosen for c in curves if c.chosen is not None])
            if len(chosen):
                axis.plot(
                    *(100 * chosen.T), marker, color=look["color"], markersize=4, alpha=0.45, linestyle="none", zorder=4
                )
                axis.plot(
                    *(100 * chosen.mean(axis=0)),
                    marker,
                    color=look["color"],
                    markersize=9,
                    markeredgecolor="white",
                    zorder=5,
                )
            axis.plot(
                [],
                [],
                linewidth=wide,
                markersize=7,
                marker=marker if len(chosen) else "",
                **look,
                label=wrapped(method, _LEGEND),
            )
        axis.set(xlabel="U, unseen classes (%)", ylabel="S, seen classes (%)", xlim=(0, 100), ylim=(0, 100))
        figure.suptitle(wrapped(title, 80), fontsize=10)
        axis.set_aspect("equal")
        several = max(len(r) for r in runs.values()) > 1
        marks = "marker: γ as chosen\n" + ("small: each seed\nband: ± 1 standard deviation" if several else "")
        axis.legend(
            title=marks.strip(),
            fontsize=8,
            title_fontsize=7,
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(1.02, 1.0),
        ).set_alignment("left")
        save(figure, out)


def _along_rays(curve: Curve, angles: np.ndarray) -> np.ndarray:
    """Distance from the origin at which each ray meets the curve, which starts on one axis and ends on the other."""
    u = np.concatenate([[0.0], curve.U, curve.U[-1:]])
    s = np.concatenate([curve.S[:1], curve.S, [0.0]])
    at = np.arctan2(s, u)[::-1]  # ascending: the curve falls as it goes right
    x, y = (np.interp(angles, at, values[::-1]) for values in (u, s))
    return np.hypot(x, y)


def _equal_harmonic_means(axis: Any) -> None:
    for h in (20, 40, 60, 80):
        u = np.geomspace(100 * h / (200 - h), 100, 400)  # from where S is 100
        axis.plot(u, h * u / (2 * u - h), color="0.85", linewidth=0.8, zorder=1)
        at = 95
        blank = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # breaks the line
        place = {"ha": "center", "va": "center", "zorder": 1.5}
        axis.text(at, h * at / (2 * at - h), f"H {h}", fontsize=6.5, color="0.4", bbox=blank, **place)


def per_class_figure(
    ours: Sequence[Path], other: Sequence[Path], *, names: tuple[str, str], out: Path, title: str
) -> None:
    """Accuracy of each unseen class, mean over seeds: one method (bars) against another (dots), best class first.

    Each at the γ it was measured with, and a larger γ buys one side with the other: the legend says S beside it.

    Args:
        ours, other: run folders of the two methods, each with a per_class.csv.
        names: of the two in the legend, with what must be known of them.
    """
    tables = [pd.concat([_of_run(run, "per_class.csv") for run in runs]) for runs in (ours, other)]
    seen, unseen = ([t[t.side == s].groupby("class").accuracy.mean() for t in tables] for s in ("seen", "unseen"))
    mine, others = (f"{n} (S {100 * s.mean():.0f} %)" if len(s) else n for n, s in zip(names, seen, strict=True))
    draw_per_class(*unseen, names=(mine, others), out=out, title=title)


def draw_per_class(ours: pd.Series, other: pd.Series, *, names: tuple[str, str], out: Path, title: str) -> None:
    """Per-class accuracies (shares, by class name) of two methods; a line between the two shows who is ahead."""
    order = list(ours.sort_values(kind="stable").index)
    a, b = (100 * values.reindex(order).to_numpy(dtype=float) for values in (ours, other))
    a, b = (np.append(values, np.nanmean(values)) for values in (a, b))
    at = np.append(np.arange(len(order)), len(order) + 0.6)  # the mean stands apart, on top
    with drawing():
        figure, axes = canvas(6.4, 1.3 + 0.17 * len(order))
        axis = axes[0, 0]
        axis.barh(at, a, color="#9ecae1", edgecolor="#0072B2", linewidth=0.6, height=0.72, label=wrapped(names[0], 44))
        axis.hlines(at, np.minimum(a, b), np.maximum(a, b), color="0.35", linewidth=0.7)
        look = {"color": "#D55E00", "markersize": 4.2, "markeredgecolor": "white", "clip_on": False}  # whole at 0 too
        axis.plot(b, at, "D", label=wrapped(names[1], 44), **look)
        axis.axhline(len(order) - 0.2, color="0.6", linewidth=0.6)
        axis.set_yticks(at, [*_named(order).values(), "mean of classes"], fontsize=6.5)
        axis.set(xlim=(0, 102), ylim=(-0.7, len(order) + 1.3))
        axis.set_xlabel("accuracy among all classes, each method at its γ (%)", fontsize=8.5)
        axis.tick_params(axis="x", labelsize=7.5)
        figure.suptitle(wrapped(title, 84), fontsize=9)
        axis.grid(axis="x", color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
        handles, labels = axis.get_legend_handles_labels()  # the line comes first there, and the bars are what is read
        figure.legend(handles[::-1], labels[::-1], fontsize=8, loc="outside lower right", ncols=2, frameon=False)
        save(figure, out)


def confusion_figure(runs: Sequence[Path], out: Path, title: str, most: int = 25) -> None:
    """Which unseen classes are taken for which: the commonest mistakes, as shares of the class's test images.

    Bars are means over seeds, dots the seeds; hatched where the class taken for it is a seen one.

    Args:
        runs: run folders of one method, each with a confusion.csv and a per_class.csv.
        most: pairs that are shown at most.

    Raises:
        UserError: a run has no such file.
    """
    pairs, seen = _confused(runs, most)
    at = np.arange(len(pairs))[::-1]
    with drawing():
        figure, axes = canvas(7.0, 1.3 + 0.19 * max(len(pairs), 1))
        axis = axes[0, 0]
        for side, colour, hatch in ((False, "#9ecae1", ""), (True, "#f6c9a0", "////")):
            here = np.array([(predicted in seen) == side for _, predicted in pairs.index], dtype=bool)
            label = f"taken for {'a seen' if side else 'another unseen'} class"
            bars = {"color": colour, "edgecolor": "0.35", "linewidth": 0.6, "height": 0.74, "hatch": hatch}
            axis.barh(at[here], 100 * pairs.mean(axis=1).to_numpy()[here], label=label, **bars)
        if len(runs) > 1:
            for number in range(len(runs)):
                look = {
                    "markersize": 4,
                    "markeredgecolor": "white",
                    "markeredgewidth": 0.5,
                    "clip_on": False,
                    "zorder": 3,
                }
                axis.plot(100 * pairs.iloc[:, number], at, "ok", label="each seed" if number == 0 else "_", **look)
        named = _named([name for pair in pairs.index for name in pair])
        names = [f"{named[true]} → {named[predicted]}" for true, predicted in pairs.index]
        axis.set_yticks(at, names, fontsize=6.5)
        axis.set(xlim=(0, None), ylim=(-0.7, len(pairs) - 0.3))
        axis.set_xlabel("images of the class on the left (%)", fontsize=8.5)
        axis.tick_params(axis="x", labelsize=7.5)
        figure.suptitle(wrapped(title, 90), fontsize=9)  # over names and bars: the names take half the width
        axis.grid(axis="x", color="0.9", linewidth=0.6)
        axis.set_axisbelow(True)
        figure.legend(
            *axis.get_legend_handles_labels(), fontsize=7.5, loc="outside lower right", ncols=3, frameon=False
        )
        save(figure, out)


def _confused(runs: Sequence[Path], most: int) -> tuple[pd.DataFrame, set[str]]:
    """Shares of the commonest pairs (unseen class, class taken for it) in each run, worst first; the seen classes."""
    shares, seen = [], set()
    for run in runs:
        confusion, classes = (_of_run(run, name) for name in ("confusion.csv", "per_class.csv"))
        seen |= set(classes["class"][classes.side == "seen"])
        rows = confusion[~confusion["class"].isin(seen)]
        share = rows.images / rows.groupby("class").images.transform("sum")
        shares.append(share.set_axis(pd.MultiIndex.from_frame(rows[["class", "predicted"]])))
    pairs = pd.concat(shares, axis=1).fillna(0.0)  # a pair that a seed lacks did not occur there
    pairs = pairs[[true != predicted for true, predicted in pairs.index]]
    order = np.argsort(-pairs.mean(axis=1).to_numpy(), kind="stable")
    return pairs.iloc[order[:most]], seen


def _of_run(run: Path, name: str) -> pd.DataFrame:
    """A table that a run left; a class called NA or null is a class."""
    try:
        return pd.read_csv(run / name, dtype=_NAMES, keep_default_na=False)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); repeat the run") from error


def _named(names: Iterable[str]) -> dict[str, str]:
    """Classes as a figure names them, each once; those that would read alike keep their numbers."""
    classes = [str(name) for name in dict.fromkeys(names)]
    return {name: printable(shown, 32) for name, shown in zip(classes, shown_classes(classes), strict=True)}


def forest_figure(
    differences: Mapping[str, Mapping[str, Interval]], out: Path, *, title: str, paired: str, of: str = OURS
) -> None:
    """Paired differences with their 95 % intervals; filled where the interval excludes 0, hollow where not.

    Args:
        differences: other method -> metric -> difference in points, the same metrics for all.
        paired: what the differences are paired over, in words.
        of: the method from which the others are subtracted.
    """
    methods = list(differences)
    metrics = list(next(iter(differences.values())))
    at = np.arange(len(methods))[::-1]
    with drawing():
        figure, axes = canvas(
            1.9 + 2.1 * len(metrics), 1.3 + 0.32 * len(methods), 1, len(metrics), sharex=True, sharey=True
        )
        for axis, metric in zip(axes[0], metrics, strict=True):
            axis.axvline(0, color="0.4", linewidth=0.9)
            for y, method in zip(at, methods, strict=True):
                d = differences[method][metric]
                axis.hlines(y, d.low, d.high, color="#0072B2", linewidth=1.6)
                fill = "#0072B2" if d.significant else "white"
                axis.plot([d.mean], [y], "s", markersize=6, markerfacecolor=fill, markeredgecolor="#0072B2")
                label = f"{d.mean:+.1f}"
                axis.annotate(label, (d.mean, y), (0, 5), textcoords="offset points", ha="center", fontsize=6.5)
            axis.set_title(printable(metric), fontsize=9)
            axis.set_xlabel("percentage points", fontsize=8)
            axis.tick_params(labelsize=7.5)
            axis.set_ylim(-0.6, len(methods) - 0.3)
            axis.margins(x=0.08)
            axis.grid(axis="x", color="0.9", linewidth=0.6)
            axis.set_axisbelow(True)
        axes[0, 0].set_yticks(at, [printable(m, 36) for m in methods], fontsize=8)
        note = f"{printable(of)} minus each, {printable(paired)}; 95 % intervals, hollow: not significant"
        figure.suptitle(f"{wrapped(title, 80)}\n{note}", fontsize=9)
        save(figure, out)


def learning_curves_figure(
    frame: pd.DataFrame, out: Path, *, x: str, y: str = "AUSUC", title: str, label: str | None = None
) -> None:
    """A metric over the amount of training data: mean and ± one standard deviation over the rows of equal ``x``.

    Args:
        frame: columns ``method``, ``x`` (a number of seen classes or of images) and ``y`` (a share); a row a run.
        label: of the horizontal axis; the name of the column where None.
    """
    sizes = np.sort(frame[x].unique())
    with drawing():
        figure, axes = canvas(5.6, 4.0)
        axis = axes[0, 0]
        methods = _ours_first(list(frame.groupby("method")[y].mean().sort_values(ascending=False).index))
        for number, method in enumerate(methods):
            groups = frame[frame.method == method].groupby(x)[y]
            mean, spread = 100 * groups.mean(), 100 * groups.std().fillna(0)
            wide = 2.2 if is_ours(str(method)) else 1.2
            shift = 1 + 0.012 * (number - (len(methods) - 1) / 2)  # whiskers side by side
            axis.errorbar(
                mean.index * shift,
                mean,
                spread,
                label=wrapped(str(method), _LEGEND),
                linewidth=wide,
                markersize=5.5,
                markeredgecolor="white",
                capsize=2.5,
                elinewidth=0.9,
                **style(number),
            )
        axis.set_xscale("log")
        axis.set_xticks(sizes, _apart(sizes))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set(xlabel=printable(label or x, 60), ylabel=f"{y} (%)")
        figure.suptitle(wrapped(title, 64), fontsize=10)
        axis.grid(color="0.92", linewidth=0.6)
        whiskers = "whiskers: ± 1 standard\ndeviation" if frame.groupby(["method", x]).size().max() > 1 else None
        place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        axis.legend(title=whiskers, fontsize=8, title_fontsize=7, frameon=False, **place).set_alignment("left")
        save(figure, out)


def _apart(sizes: np.ndarray) -> list[str]:
    """Labels of ticks on a logarithmic axis: from the largest down, those that would touch the one before have none."""
    labels, last, room = [], np.inf, 0.11 * np.log(sizes[-1] / sizes[0])
    for size in sizes[::-1]:
        free = np.log(last / size) >= room
        labels.append(f"{size:,}" if free else "")
        last = size if free else last
    return labels[::-1]


def growth_figure(curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], out: Path) -> None:
    """How often the cost of the smallest size a larger one takes, on logarithmic axes, beside linear growth.

    Args:
        curves: kind of size (a panel each) -> kind of work -> (sizes, costs in any unit), sizes ascending.
    """
    with drawing():
        figure, axes = canvas(3.7 * len(curves), 4.0, 1, len(curves))
        for axis, (family, lines) in zip(axes[0], curves.items(), strict=True):
            sizes = sorted({size for line, _ in lines.values() for size in line})
            axis.loglog(sizes, [s / sizes[0] for s in sizes], color="0.6", linewidth=3, alpha=0.6, label="linear")
            for number, (what, (line, costs)) in enumerate(lines.items()):
                look = {"markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.5} | style(number)
                axis.loglog(line, [c / costs[0] for c in costs], label=printable(what), **look)
            for side in (axis.xaxis, axis.yaxis):  # round numbers: the sizes themselves may lie too close for labels
                side.set_major_locator(LogLocator(subs=(1, 2, 5)))
                side.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.tick_params(labelsize=7.5)
            axis.set_xlabel(printable(family, 50), fontsize=8.5)
            axis.set_ylabel("times the smallest size", fontsize=8.5)
            axis.grid(color="0.92", linewidth=0.6)
            axis.set_axisbelow(True)
            # above the panel, where no curve can pass through it
            axis.legend(fontsize=7.5, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0))
        save(figure, out)
