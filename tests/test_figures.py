"""Figures: drawn without pyplot, equal bytes for equal input, names that no font holds. How they look was looked at."""

import itertools
import sys
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from core.experiments.statistics import Interval
from core.files.errors import UserError
from core.reporting import attention
from core.reporting.attention import attention_figure, best_median_worst, grid_of, margins_of, panel_of
from core.reporting.canvas import MISSING, printable, wrapped
from core.reporting.figures import (
    Curve,
    _along_rays,
    _confused,
    calibration_figure,
    confusion_figure,
    draw_per_class,
    forest_figure,
    growth_figure,
    learning_curves_figure,
    per_class_figure,
    read_curve,
)

HOSTILE = ["鳥 $\\frac{", "_hidden\nb\u202e", "x" * 300 + "%&#{}~^\\"]


def curve_of(seed):
    rng = np.random.default_rng(seed)
    u, s = np.sort(rng.random(8)) * 0.7, np.sort(rng.random(8))[::-1] * 0.8
    return Curve(U=np.append(0, u), S=np.append(0.85, np.append(s[:-1], 0)), chosen=(u[4], s[4]))


def panels_of(names):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    theta = rng.dirichlet(np.ones(12), 6).T  # (R,K)
    given = {"theta": theta, "contributions": rng.normal(size=6), "names": [*names, *names], "grid": (3, 4)}
    return [panel_of(picture, **given, true=names[0], predicted=names[i], says="best") for i in (0, 1)]


def run_of(folder, confusion, seen):
    """The folder of a run that confused classes so: (class, predicted, images)."""
    folder.mkdir(exist_ok=True)
    frame = pd.DataFrame(confusion, columns=["class", "predicted", "images"])
    frame.to_csv(folder / "confusion.csv", index=False)
    names = sorted(set(frame["class"]) | set(seen))
    sides = ["seen" if name in seen else "unseen" for name in names]
    pd.DataFrame({"class": names, "side": sides}).to_csv(folder / "per_class.csv", index=False)
    return folder


def draw_all(folder, names=HOSTILE):
    interval = Interval(mean=1.0, low=-1.0, high=2.0)
    shares = pd.Series(np.linspace(0.1, 1, len(names)), names)
    frame = pd.DataFrame(
        [{"method": m, "n": n, "AUSUC": 0.4, "seed": s} for m in names for n in (5, 9) for s in (0, 1)]
    )
    calibration_figure({m: [curve_of(i), curve_of(i + 1)] for i, m in enumerate(names)}, folder / "a.png", names[0])
    draw_per_class(shares, shares[::-1], names=("vsmr", names[0]), out=folder / "b.png", title=names[0])
    forest_figure(
        {m: {"T1": interval, "H": interval} for m in names}, folder / "c.png", title=names[0], paired=names[1]
    )
    learning_curves_figure(frame, folder / "d.png", x="n", title=names[0])
    growth_figure({n: {n: ((10, 100), (1.0, 9.0))} for n in names[:2]}, folder / "e.png")
    attention_figure(panels_of(names), folder / "f.png", title=names[0])
    run_of(folder.parent / "run", [(names[0], names[1], 2), (names[1], names[1], 1)], seen=names[2:])
    confusion_figure([folder.parent / "run"] * 2, folder / "g.png", title=names[0])


def test_titles_of_attention_end_before_the_next_column(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(attention, "save", lambda figure, out: drawn.append(figure))
    names = [f"{colour}_crowned_Brownwing_of_the_north" for colour in ("Black", "Red", "Yellow")]
    attention_figure(panels_of(names), tmp_path)
    (figure,) = drawn
    figure.draw_without_rendering()
    titled = [axis for axis in figure.axes if axis.get_title(loc="left")]  # row by row
    pairs = [
        (a, b) for a, b in itertools.pairwise(titled) if a.get_subplotspec().rowspan == b.get_subplotspec().rowspan
    ]
    assert len(pairs) == len(titled) - 2  # of two photographs
    for axis, following in pairs:
        assert axis._left_title.get_window_extent().x1 < following.get_window_extent().x0


def test_every_figure_repeats_to_the_byte_and_bears_any_name(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing, an axis that collapses
        draw_all(tmp_path / "one")
        draw_all(tmp_path / "two")
    files = sorted((tmp_path / "one").iterdir())
    assert [f.name for f in files] == [f"{letter}.{kind}" for letter in "abcdefg" for kind in ("pdf", "png")]
    for file in files:
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert min(image.size) > 200 and not image.info.get("Software")
        else:
            assert b"CreationDate" not in file.read_bytes()


def test_the_callers_matplotlib_is_left_alone(tmp_path):
    """Neither pyplot nor a backend is loaded for a figure, and settings of the caller change neither it nor them."""
    draw_all(tmp_path / "plain")
    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red", "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        draw_all(tmp_path / "loud")
        assert dict(matplotlib.rcParams) == before
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "loud" / file.name).read_bytes(), file.name


def test_no_pyplot_is_imported():
    import subprocess

    code = "import sys, core.reporting.figures, core.reporting.attention; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_that_a_font_lacks_are_replaced_where_one_sees_it():
    assert printable("Černá γ ± ü") == "Černá γ ± ü"
    assert printable("鳥犬") == MISSING * 2
    assert printable("a\n\u202eb") == f"a{MISSING}{MISSING}b"
    assert printable("5 $ or 6 $") == r"5 \$ or 6 \$"
    assert printable("x" * 50, 10) == "x" * 9 + "…"


def test_a_long_text_is_wrapped_and_no_formula_appears_at_a_break():
    assert wrapped("vsmr takes unseen classes for", 12) == "vsmr takes\nunseen\nclasses for"
    lines = wrapped("$" * 99, 9).split("\n")
    assert len(lines) == 3 and all(line.replace(r"\$", "").strip("…") == "" for line in lines)


def test_accuracy_by_class_says_what_is_left_of_the_seen_ones(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("core.reporting.figures.draw_per_class", lambda *_, names, **__: given.append(names))
    for method, s in (("a", 0.5), ("b", 0.9)):
        (tmp_path / method).mkdir()
        table = pd.DataFrame(
            {"class": ["u", "s", "t"], "side": ["unseen", "seen", "seen"], "accuracy": [0.1, s, s - 0.2]}
        )
        table.to_csv(tmp_path / method / "per_class.csv")
    per_class_figure([tmp_path / "a"], [tmp_path / "b"], names=("vsmr", "dazle"), out=tmp_path / "p.png", title="t")
    assert given == [("vsmr (S 40 %)", "dazle (S 80 %)")]


def test_rays_meet_the_curve_where_it_is():
    # S 0.8 until U 0.6, then straight down
    curve = Curve(U=np.array([0.0, 0.6, 0.6]), S=np.array([0.8, 0.8, 0.0]))
    found = _along_rays(curve, np.array([0.0, np.arctan2(0.8, 0.6), np.pi / 2]))
    assert found == pytest.approx([0.6, 1.0, 0.8])


def test_figures_read_what_a_run_left(tmp_path):
    for method in ("vsmr", "dazle"):
        folder = tmp_path / method
        folder.mkdir()
        pd.DataFrame({"gamma": [-1, 0], "U": [0.0, 0.5], "S": [0.9, 0.0]}).to_csv(folder / "curve.csv")
        (folder / "metrics.json").write_text('{"standard": {"U": 0.4, "S": 0.3}}')
        table = pd.DataFrame(
            {"class": ["a", "b", "c"], "side": ["unseen", "unseen", "seen"], "accuracy": [0.2, 0.4, 1.0]}
        )
        table.to_csv(folder / "per_class.csv")
    assert read_curve(tmp_path / "vsmr").chosen == (0.4, 0.3)
    runs = {m: [tmp_path / m] for m in ("vsmr", "dazle")}
    calibration_figure(runs, tmp_path / "c.png", "t")
    per_class_figure(*runs.values(), names=("vsmr", "dazle"), out=tmp_path / "p.png", title="t")
    assert (tmp_path / "c.png").stat().st_size > 0 and (tmp_path / "p.pdf").stat().st_size > 0


def test_confused_pairs_by_hand(tmp_path):
    one = run_of(tmp_path / "a", [("1", "1", 5), ("1", "2", 3), ("1", "9", 2), ("2", "2", 4), ("9", "1", 7)], ["9"])
    two = run_of(tmp_path / "b", [("1", "1", 5), ("1", "2", 5), ("2", "2", 3), ("2", "9", 1), ("9", "9", 7)], ["9"])
    pairs, seen = _confused([one, two], 9)
    assert seen == {"9"}  # a name, not a number
    shares = {pair: list(row) for pair, row in zip(pairs.index, pairs.to_numpy(), strict=True)}
    assert shares == {("1", "2"): [0.3, 0.5], ("2", "9"): [0.0, 0.25], ("1", "9"): [0.2, 0.0]}
    assert list(shares) == [("1", "2"), ("2", "9"), ("1", "9")]
    assert list(_confused([one, two], 1)[0].index) == [("1", "2")]
    with pytest.raises(UserError, match=r"c.confusion\.csv cannot be read .*repeat the run"):
        confusion_figure([one, tmp_path / "c"], tmp_path / "c.png", "t")


def test_figures_tell_classes_apart_that_read_alike(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("core.reporting.figures.save", lambda figure, out: drawn.append(figure))
    run = run_of(tmp_path / "a", [("001.Tern", "002.Tern", 5), ("003.Gull", "001.Tern", 1)], ["002.Tern"])
    confusion_figure([run], tmp_path / "c.png", "t")
    accuracies = pd.Series({"001.Tern": 0.2, "002.Tern": 0.4, "003.Gull": 0.6})
    draw_per_class(accuracies, accuracies, names=("a", "b"), out=tmp_path / "p.png", title="t")
    texts = [[t.get_text() for t in figure.axes[0].get_yticklabels()] for figure in drawn]
    assert sorted(texts[0]) == ["001.Tern → 002.Tern", "Gull → 001.Tern"]
    assert texts[1] == ["001.Tern", "002.Tern", "Gull", "mean of classes"]


def test_a_run_without_mistakes_has_a_figure(tmp_path):
    run = run_of(tmp_path / "a", [("1", "1", 5), ("9", "9", 1)], ["9"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an axis that collapses
        confusion_figure([run], tmp_path / "c.png", "t")
    assert (tmp_path / "c.pdf").stat().st_size > 0


def test_growth_is_relative_and_its_ticks_can_be_read(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("core.reporting.figures.save", lambda figure, out: drawn.append(figure))
    sizes = (10_000, 100_000, 500_000, 1_000_000)  # the last two lie too close for labels of their own
    curves = {"images": {"a": (sizes, (3.0, 30.0, 120.0, 240.0))}}
    growth_figure(curves | {kind: {"a": (sizes[:2], (1.0, 2.0))} for kind in "bcd"}, tmp_path / "g.png")
    figure = drawn[0]
    figure.draw_without_rendering()
    panel = figure.axes[0]
    assert [line.get_ydata().tolist() for line in panel.lines] == [[1, 10, 50, 100], [1, 10, 40, 80]]
    for axis, along in ((panel.xaxis, "x"), (panel.yaxis, "y")):
        ticks = [tick.label1 for tick in axis.get_major_ticks() if tick.label1.get_text()]
        low, high = axis.get_view_interval()
        places = [t.get_window_extent() for t in ticks if low <= t.get_position()["xy".index(along)] <= high]
        ends = [(getattr(box, f"{along}0"), getattr(box, f"{along}1")) for box in places]
        assert len(ends) >= 4 and all(a[1] < b[0] for a, b in itertools.pairwise(ends)), along
    assert "100k" in [tick.label1.get_text() for tick in panel.xaxis.get_major_ticks()]


def test_ticks_of_learning_curves_do_not_touch(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("core.reporting.figures.save", lambda figure, out: drawn.append(figure))
    sizes = (275, 550, 1100, 1180, 1187)  # the last three lie too close for labels of their own
    frame = pd.DataFrame([{"method": "vsmr", "n": n, "AUSUC": 0.4, "split": 0} for n in sizes])
    learning_curves_figure(frame, tmp_path / "l.png", x="n", title="t")
    drawn[0].draw_without_rendering()
    labels = [tick.label1 for tick in drawn[0].axes[0].xaxis.get_major_ticks() if tick.label1.get_text()]
    assert [label.get_text() for label in labels] == ["275", "550", "1,187"]
    ends = [(box.x0, box.x1) for box in (label.get_window_extent() for label in labels)]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))


def test_the_rule_that_picks_images():
    assert best_median_worst(np.array([0.0, 3.0, -2.0, 1.0, 1.0])) == {"best": 1, "median": 4, "worst": 2}
    assert best_median_worst(np.array([5.0])) == {"best": 0, "median": 0, "worst": 0}
    scores = np.array([[1.0, 3.0, 2.5], [1.0, 3.0, 2.5]])
    assert margins_of(scores, np.array([1, 0])).tolist() == [0.5, -2.0]
    assert scores[0, 1] == 3.0  # as it was


def test_a_panel_shows_the_highest_contributions_on_a_grid_that_need_not_be_square():
    theta = np.zeros((6, 3))
    theta[4, 2] = 1.0  # row 1, column 1 of 2 x 3
    given = {"theta": theta, "contributions": np.array([0.1, -9.0, 0.5]), "names": ["a", "b", "c"], "attributes": 2}
    panel = panel_of(np.zeros((4, 4, 3), np.uint8), **given, true="x", predicted="y", says="best", grid=(2, 3))
    assert panel.attributes == ["c", "a"] and panel.contributions.tolist() == [0.5, 0.1]
    assert panel.theta.shape == (2, 2, 3) and panel.theta[0, 1, 1] == 1.0
    with pytest.raises(UserError, match="6 regions do not form a grid of 2 x 2"):
        grid_of(6)
