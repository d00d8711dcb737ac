"""Figures of results: calibration curves, accuracy and confusion of unseen classes, paired differences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.experiments.results import read_result, read_scores
from core.experiments.statistics import Interval
from core.inference.names import shown_classes
from core.reporting.canvas import canvas, printable, style, wrapped
from core.reporting.tables import OURS
from core.training.checkpoint import load_checkpoint
from core.training.evaluation import curve_from_compact, predictions


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run made of its test images."""

    U: np.ndarray  # (T+1,) ascending: the curve of seen over unseen accuracy, shares
    S: np.ndarray  # (T+1,) descending
    chosen: tuple[float, float]  # (U, S) at the run's γ
    images: pd.DataFrame  # a row an image at that γ: its class and the predicted one, whether either is seen


def read_outcome(run: Path) -> Outcome:
    """Of a finished run's folder; a file that is not what the run wrote is refused."""
    scores, standard = read_scores(run), read_result(run / "metrics.json")["standard"]
    curve, predicted = curve_from_compact(scores), predictions(scores, standard["gamma"])
    names = np.array(load_checkpoint(run / "checkpoint.safetensors")[1]["classes"], dtype=object)
    images = {"class": names[scores["labels"]], "predicted": names[predicted]}
    images |= {"seen": scores["side"] == 0, "predicted_seen": predicted == scores["best_seen"]}
    return Outcome(U=curve.U, S=curve.S, chosen=(standard["U"], standard["S"]), images=pd.DataFrame(images))


def is_ours(label: str) -> bool:
    """Whether a label is our method's, drawn first and thickest: ``vsmr``, also with more (``vsmr (lr=0.0006)``)."""
    return re.match(rf"{OURS}(?![\w-])", label) is not None


def calibration_figure(runs: Mapping[str, Sequence[Outcome]], out: Path, title: str) -> None:
    """Seen over unseen accuracy as γ varies, method by method: mean and deviation over seeds along rays, chosen γ."""
    angles = np.linspace(0, np.pi / 2, 361)
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (361,2)
    with canvas(out, 7.4, 5.4) as (figure, axes):
        axis = axes[0, 0]
        for h in (20, 40, 60, 80):
            u = np.geomspace(100 * h / (200 - h), 100, 400)  # from where S is 100
            axis.plot(u, h * u / (2 * u - h), color="0.85", linewidth=0.8, zorder=1)
            blank = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # breaks the line
            axis.text(95, h * 95 / (190 - h), f"H {h}", fontsize=6.5, color="0.4", bbox=blank, ha="center", va="center")
        for number, method in enumerate(sorted(runs, key=lambda name: not is_ours(name))):
            radii = np.stack([_along_rays(run, angles) for run in runs[method]])
            mean, chosen = radii.mean(axis=0), 100 * np.array([run.chosen for run in runs[method]])
            look = style(number) | {"linewidth": 2.4 if is_ours(method) else 1.3}
            marker, colour = look.pop("marker"), look["color"]
            axis.plot(*(100 * mean[:, None] * rays).T, zorder=3, **look)
            if len(radii) > 1:
                spread = radii.std(axis=0, ddof=1)
                outer, inner = (100 * (mean + sign * spread)[:, None] * rays for sign in (1, -1))
                axis.fill(*np.concatenate([outer, inner[::-1]]).T, color=colour, alpha=0.15, linewidth=0)
            axis.plot(*chosen.T, marker, color=colour, markersize=4, alpha=0.45, linestyle="none", zorder=4)
            axis.plot(*chosen.mean(axis=0), marker, color=colour, markersize=9, markeredgecolor="white", zorder=5)
            axis.plot([], [], markersize=7, marker=marker, **look, label=wrapped(method, 30))
        axis.set(xlabel="U, unseen classes (%)", ylabel="S, seen classes (%)", xlim=(0, 100), ylim=(0, 100))
        axis.set_aspect("equal")
        figure.suptitle(wrapped(title, 80), fontsize=10)
        several = max(map(len, runs.values())) > 1
        marks = "marker: γ as chosen" + "\nsmall: each seed\nband: ± 1 standard deviation" * several
        axis.legend(title=marks, fontsize=8, title_fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1))


def _along_rays(curve: Outcome, angles: np.ndarray) -> np.ndarray:
    """Distance from the origin at which each ray meets the curve, which starts on one axis and ends on the other."""
    u = np.concatenate([[0.0], curve.U, curve.U[-1:]])
    s = np.concatenate([curve.S[:1], curve.S, [0.0]])
    at = np.arctan2(s, u)[::-1]  # ascending: the curve falls as it goes right
    x, y = (np.interp(angles, at, values[::-1]) for values in (u, s))
    return np.hypot(x, y)


def per_class_figure(
    ours: Sequence[Outcome], other: Sequence[Outcome], *, names: tuple[str, str], out: Path, title: str
) -> None:
    """Accuracy of each unseen class, mean over seeds: one method (bars) against another (dots), best class first.

    Each at the γ it was measured with, and a larger γ buys one side with the other: the legend says S beside it.
    """
    mine, others = (
        f"{name} (S {100 * _accuracies(runs, seen=True).mean():.0f} %)"
        for name, runs in zip(names, (ours, other), strict=True)
    )
    unseen = _accuracies(ours, seen=False).sort_values(kind="stable")
    order = list(unseen.index)
    a, b = (100 * values.to_numpy() for values in (unseen, _accuracies(other, seen=False).reindex(order)))
    a, b = (np.append(values, np.nanmean(values)) for values in (a, b))
    at = np.append(np.arange(len(order)), len(order) + 0.6)  # the mean stands apart, on top
    with canvas(out, 6.4, 1.3 + 0.17 * len(order)) as (figure, axes):
        axis = axes[0, 0]
        axis.barh(at, a, color="#9ecae1", edgecolor="#0072B2", linewidth=0.6, height=0.72, label=wrapped(mine, 44))
        axis.hlines(at, np.minimum(a, b), np.maximum(a, b), color="0.35", linewidth=0.7)
        look = {"color": "#D55E00", "markersize": 4.2, "markeredgecolor": "white", "clip_on": False}  # whole at 0 too
        axis.plot(b, at, "D", label=wrapped(others, 44), **look)
        axis.set(xlim=(0, 102), ylim=(-0.7, len(order) + 1.3))
        ticks = [*_named(order).values(), "mean of classes"]
        _bars(figure, axis, at, ticks, "accuracy among all classes, each method at its γ (%)", title)


def _accuracies(runs: Sequence[Outcome], seen: bool) -> pd.Series:
    """Share of right answers by class of a side, mean over runs."""
    images = (run.images[run.images.seen == seen] for run in runs)
    right = [i.eval("right = `class` == predicted").groupby("class").right.mean() for i in images]
    return pd.concat(right, axis=1).mean(axis=1)


def _named(names: Iterable[str]) -> dict[str, str]:
    """Classes as a figure names them, each once; those that would read alike keep their numbers."""
    classes = [str(name) for name in dict.fromkeys(names)]
    return {name: printable(shown, 32) for name, shown in zip(classes, shown_classes(classes), strict=True)}


def _bars(figure: Any, axis: Any, at: np.ndarray, ticks: Sequence[str], label: str, title: str) -> None:
    axis.set_yticks(at, ticks, fontsize=6.5)
    axis.set_xlabel(label, fontsize=8.5)
    axis.tick_params(axis="x", labelsize=7.5)
    axis.grid(axis="x", color="0.9", linewidth=0.6)
    figure.suptitle(wrapped(title, 84), fontsize=9)  # over names and bars: the names take half the width
    handles, labels = axis.get_legend_handles_labels()  # lines come first there, and the bars are what is read
    figure.legend(handles[::-1], labels[::-1], fontsize=7.5, loc="outside lower right", ncols=3)


def confusion_figure(runs: Sequence[Outcome], out: Path, title: str, most: int = 25) -> None:
    """The commonest mistakes as shares of an unseen class's images: bars are means over seeds, dots the seeds."""
    pairs = confused(runs, most)
    taken_seen = pairs.index.get_level_values("predicted_seen").to_numpy(dtype=bool)
    at = np.arange(len(pairs))[::-1]
    with canvas(out, 7.0, 1.3 + 0.19 * max(len(pairs), 1)) as (figure, axes):
        axis = axes[0, 0]
        for side, colour, hatch in ((False, "#9ecae1", ""), (True, "#f6c9a0", "////")):
            here = taken_seen == side
            bars = {"color": colour, "edgecolor": "0.35", "linewidth": 0.6, "height": 0.74, "hatch": hatch}
            bars["label"] = f"taken for {'a seen' if side else 'another unseen'} class"
            axis.barh(at[here], 100 * pairs.mean(axis=1).to_numpy()[here], **bars)
        look = {"markersize": 4, "markeredgecolor": "white", "markeredgewidth": 0.5, "clip_on": False, "zorder": 3}
        for number in range(len(runs) if len(runs) > 1 else 0):
            axis.plot(100 * pairs.iloc[:, number], at, "ok", label="_" if number else "each seed", **look)
        named = _named([name for true, predicted, _ in pairs.index for name in (true, predicted)])
        axis.set(xlim=(0, None), ylim=(-0.7, len(pairs) - 0.3))
        ticks = [f"{named[true]} → {named[predicted]}" for true, predicted, _ in pairs.index]
        _bars(figure, axis, at, ticks, "images of the class on the left (%)", title)


def confused(runs: Sequence[Outcome], most: int) -> pd.DataFrame:
    """Shares of the commonest mistakes (unseen class, class taken for it, whether that is seen) by run, worst first."""
    shares = []
    for run in runs:
        images = run.images[~run.images.seen]
        count = images.groupby(["class", "predicted", "predicted_seen"]).size()
        shares.append(count / images.groupby("class").size().reindex(count.index, level="class"))
    pairs = pd.concat(shares, axis=1).fillna(0.0)  # a pair that a seed lacks did not occur there
    pairs = pairs[pairs.index.get_level_values("class") != pairs.index.get_level_values("predicted")]
    return pairs.iloc[np.argsort(-pairs.mean(axis=1).to_numpy(), kind="stable")[:most]]


def forest_figure(differences: Mapping[str, Mapping[str, Interval]], out: Path, *, title: str, paired: str) -> None:
    """Our differences in points to other methods, by metric; filled where the 95 % interval excludes 0."""
    methods, metrics = list(differences), list(next(iter(differences.values())))
    at = np.arange(len(methods))[::-1]
    size = 1.9 + 2.1 * len(metrics), 1.3 + 0.32 * len(methods)
    with canvas(out, *size, columns=len(metrics), sharex=True, sharey=True) as (figure, axes):
        for axis, metric in zip(axes[0], metrics, strict=True):
            axis.axvline(0, color="0.4", linewidth=0.9)
            for y, method in zip(at, methods, strict=True):
                d = differences[method][metric]
                axis.hlines(y, d.low, d.high, color="#0072B2", linewidth=1.6)
                fill = "#0072B2" if d.significant else "white"
                axis.plot([d.mean], [y], "s", markersize=6, markerfacecolor=fill, markeredgecolor="#0072B2")
                place = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 6.5}
                axis.annotate(f"{d.mean:+.1f}", (d.mean, y), **place)
            axis.set_title(printable(metric), fontsize=9)
            axis.set_xlabel("percentage points", fontsize=8)
            axis.set_ylim(-0.6, len(methods) - 0.3)
            axis.grid(axis="x", color="0.9", linewidth=0.6)
        axes[0, 0].set_yticks(at, [printable(m, 36) for m in methods], fontsize=8)
        note = f"{OURS} minus each, {printable(paired)}; 95 % intervals, hollow: not significant"
        figure.suptitle(f"{wrapped(title, 80)}\n{note}", fontsize=9)
