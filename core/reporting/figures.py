"""Figures of results: calibration curves, reliability, and accuracy against seconds."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import LogLocator

from core.experiments.results import read_result, read_scores
from core.experiments.statistics import Interval
from core.reporting.canvas import canvas, printable, style, wrapped
from core.reporting.tables import OURS
from core.training.evaluation import CalibrationCurve, curve_from_compact, reliability


class Outcome(NamedTuple):
    """What figures show of a run's test images."""

    curve: CalibrationCurve
    chosen: tuple[float, float]  # (U, S) at the run's γ
    reliability: np.ndarray | None = None  # (bins,3) of core.training.evaluation; None: the run has no probabilities


def read_outcome(run: Path) -> Outcome:
    """Of a finished run's folder; a file that is not what the run wrote is refused."""
    scores, standard = read_scores(run), read_result(run / "metrics.json")["standard"]
    bins = reliability(scores, standard["gamma"]) if "confidence" in scores else None
    return Outcome(curve_from_compact(scores), (standard["U"], standard["S"]), bins)


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
            radii = np.stack([_along_rays(run.curve, angles) for run in runs[method]])
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


def _along_rays(curve: CalibrationCurve, angles: np.ndarray) -> np.ndarray:
    """Distance from the origin at which each ray meets the curve, which starts on one axis and ends on the other."""
    u = np.concatenate([[0.0], curve.U, curve.U[-1:]])
    s = np.concatenate([curve.S[:1], curve.S, [0.0]])
    at = np.arctan2(s, u)[::-1]  # ascending: the curve falls as it goes right
    x, y = (np.interp(angles, at, values[::-1]) for values in (u, s))
    return np.hypot(x, y)


def reliability_figure(runs: Mapping[str, Sequence[Outcome]], out: Path, title: str) -> None:
    """Share of right answers over the probability that was said, by tenths, mean over seeds; dots grow with how many
    images lie there. Methods without probabilities are left out.
    """
    with canvas(out, 6.4, 4.4) as (figure, axes):
        axis = axes[0, 0]
        axis.plot([0, 100], [0, 100], color="0.7", linewidth=0.9)
        for number, method in enumerate(sorted(runs, key=lambda name: not is_ours(name))):
            if found := [run.reliability for run in runs[method] if run.reliability is not None]:
                share, said, right = np.mean(found, axis=0).T
                there, look = share > 0, style(number)
                axis.plot(100 * said[there], 100 * right[there], label=wrapped(method, 30), **look | {"marker": ""})
                axis.scatter(100 * said[there], 100 * right[there], 240 * share[there], look["color"], zorder=3)
        axis.set(xlabel="probability said (%)", ylabel="right answers (%)", xlim=(0, 100), ylim=(0, 100))
        figure.suptitle(wrapped(title, 80), fontsize=10)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1))


def seconds_figure(panels: Mapping[str, Mapping[str, tuple[float, Interval]]], out: Path) -> None:
    """AUSUC (95 % over classes) against processor seconds of a run, a panel a table; names stand in a column beside."""
    with canvas(out, 10.5, 3.9 * len(panels), rows=max(1, len(panels))) as (_, axes):
        for axis, (title, points) in zip(axes[:, 0], panels.items(), strict=False):
            lowest, highest = (100 * pick(i.mean for _, i in points.values()) for pick in (min, max))
            gap, y = (highest - lowest + 8) / (len(points) + 1), highest + 4
            most = max(seconds for seconds, _ in points.values())
            for name, (seconds, area) in sorted(points.items(), key=lambda item: -item[1][1].mean):
                colour, y = "#D55E00" if "+" in name else "#0072B2" if is_ours(name) else "0.35", y - gap
                axis.plot([seconds] * 2, [100 * area.low, 100 * area.high], color=colour, linewidth=0.8, alpha=0.6)
                axis.plot(seconds, 100 * area.mean, "o", color=colour, markersize=6, zorder=3)
                axis.plot([seconds, 1.6 * most], [100 * area.mean, y], color="0.8", linewidth=0.6, zorder=1)
                said = f"{printable(name)}  {100 * area.mean:.1f}"
                axis.text(1.7 * most, y, said, color=colour, fontsize=7.5, va="center", clip_on=False)
            axis.set(xscale="log", ylabel="AUSUC (%)", xlabel="processor seconds of a run: choose, refit, test")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
            axis.set_title(printable(title, 100), fontsize=9)
            axis.grid(color="0.92", linewidth=0.6)
