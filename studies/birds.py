"""The model in the box: `vsmr` on EfficientNet-Lite0 that knows the 200 species of CUB-200-2011, and what it is worth.

    python -m studies.birds --data-root ROOT --out models/birds

ROOT/cub94 and ROOT/whole_cub are data roots of parts of CUB: birds cut out along their boxes, and whole photographs of
some of the same species. ROOT/xlsa17/data/CUB/att_splits.mat describes all species. Features that are not there yet are
extracted. Writes checkpoint.safetensors, and the table in README.md.

The split was made before the first run, and from names alone. Held out of all training, so that they are known by their
description: species with whole photographs that are unseen in the own split of either root. Of each other species:
photographs with crc32(file name) % 5 == 0; those with 1 are validation's. A photograph is on one side as crop and as
whole. γ is chosen on three class-disjoint validation splits, on whole photographs. Then a model is fitted without what
is held out, and measured; then the one that is delivered, with the same settings, on all photographs.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import core
from core.commands.parser import Parser
from core.datasets.metadata import questions_of
from core.datasets.names import read_attribute_names
from core.datasets.registry import DATASETS
from core.experiments.results import BACKBONE
from core.features.extraction import extract
from core.features.feature_file import FeatureFile
from core.features.regions import RegionFeatures
from core.features.settings import ExtractionConfig
from core.files.atomic import write_bytes
from core.files.errors import run_cli
from core.files.matfile import read_mat
from core.inference.explain import explain
from core.inference.predictor import NONE_RATE
from core.inference.sure import Sure
from core.inference.trained import CHECKPOINT, Trained, load_trained
from core.method import ClassSpace
from core.training import certainty
from core.training.checkpoint import save_checkpoint
from core.training.evaluation import spread
from core.training.folds import Fold
from core.training.loop import class_scores
from core.VSMR import VSMR, Recipe

CUB = DATASETS["CUB"]
BACKBONE_OF = {  # at these two sides a bird has about the same size in a crop and in a whole photograph
    "cub94": ExtractionConfig(backbone="efficientnet_lite0"),
    "whole_cub": ExtractionConfig(backbone="efficientnet_lite0", input_size=448, pool=2),
}
SHARPNESS = 30.0  # the higher H on these validation splits, with features of MobileNetV2
SPLITS = 3  # of validation
RESAMPLES = 2000
LARGE = 1 << 15  # numbers; what has more of them is stored in half precision
HEAD = """\
| | species, known by | photographs | right | in the first 5 | probability of the first | none of these |
|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Photographs:
    """All photographs, crops first."""

    features: RegionFeatures
    labels: np.ndarray  # (N,) numbers of the 200 species
    whole: np.ndarray  # (N,) bool
    part: np.ndarray  # (N,) crc32 of the file name, modulo 5
    held: np.ndarray  # species that are known by their description when the model is measured
    names: list[str]  # (C,) of the species
    att: np.ndarray  # (C,K)
    attributes: list[str]  # (K,)
    groups: list[str]  # (C,) the last word of a species' name: Albatross, Sparrow
    provenance: dict[str, Any]  # of the whole photographs' features


class _Joined:
    """Feature files one behind the other as one source."""

    def __init__(self, files: Sequence[FeatureFile]) -> None:
        self.files = files

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows in ascending order."""
        pieces, first = [], 0
        for file in self.files:
            own = rows[(rows >= first) & (rows < first + file.shape[0])]
            pieces.append(file.read(own - first))
            first += file.shape[0]
        return np.concatenate(pieces)


def read(root: Path) -> Photographs:
    """The photographs of both roots with the descriptions of all species."""
    mat = root / "xlsa17" / "data" / "CUB" / "att_splits.mat"
    content = read_mat(mat, ("att", "allclasses_names"))
    order = np.argsort(names := [str(np.ravel(name)[0]) for name in content["allclasses_names"]])
    names = [names[c] for c in order]
    files = [FeatureFile(extract(CUB, data_root=root / part, config=c)) for part, c in BACKBONE_OF.items()]
    of = [file.metadata for file in files]
    unseen = [{m.class_names[c] for c in m.unseen} for m in of]
    held = (unseen[0] & {*of[1].class_names}) | unseen[1]
    N, (_, D, R) = sum(file.shape[0] for file in files), files[0].shape
    return Photographs(
        features=RegionFeatures(_Joined(files), np.arange(N), (R, D)),
        labels=np.array([names.index(m.class_names[c]) for m in of for c in m.labels]),
        whole=np.repeat([False, True], [file.shape[0] for file in files]),
        part=np.array([zlib.crc32(Path(file).name.encode()) % 5 for m in of for file in m.image_files]),
        held=np.sort([names.index(name) for name in held]),
        names=[name.partition(".")[2].replace("_", " ") for name in names],
        att=np.maximum(content["att"].T[order], 0).astype(np.float32),
        groups=[re.split(r"[._]", name)[-1] for name in names],
        attributes=read_attribute_names(CUB, root / "whole_cub"),
        provenance={k: str(v) for k, v in files[1].provenance.items()} | {"regions": "x".join(map(str, files[1].grid))},
    )


def fold_of(p: Photographs, train: np.ndarray, seen: np.ndarray, unseen: np.ndarray) -> Fold:
    """Photographs (N,) bool to fit on, and those to measure on; all species are candidates."""
    train, seen, unseen = map(np.flatnonzero, (train, seen, unseen))
    classes = np.unique(p.labels[train])
    others = torch.from_numpy(np.setdiff1d(np.arange(len(p.names)), classes))
    att, seen_classes = torch.from_numpy(p.att), torch.from_numpy(classes)
    questions = torch.as_tensor(questions_of(p.attributes))
    return Fold(
        # vsmr reads no word vectors
        space=ClassSpace(att, seen_classes, others, torch.zeros(att.shape[1], 1), questions=questions),
        train_rows=train, train_labels=p.labels[train], seen_rows=seen, seen_labels=p.labels[seen],
        unseen_rows=unseen, unseen_labels=p.labels[unseen],
    )  # fmt: skip


def fit(p: Photographs, fold: Fold) -> tuple[VSMR, float]:
    """A fitted model, and the spread of its scores, in which γ and certainty are counted as in a run."""
    model = VSMR(fold.space, p.features.D, Recipe(sharpness=SHARPNESS))
    model.fit(fold.train_images(p.features))
    some = np.linspace(0, len(fold.train_rows) - 1, 1024).round().astype(int)
    return model, spread([class_scores(model, p.features, fold.train_rows[some])])


def accuracies(scores: np.ndarray, labels: np.ndarray, top: int = 1) -> np.ndarray:
    """Of each class that has a photograph here: how often its score is among the ``top`` highest."""
    right = (scores > scores[np.arange(len(labels)), labels, None]).sum(axis=1) < top
    return of_classes(right, labels)


def of_classes(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean over the photographs of each class that has one."""
    return np.array([values[labels == c].mean() for c in np.unique(labels)])


def choose(p: Photographs) -> tuple[float, dict[str, Any]]:
    """γ of the highest mean H over the validation splits, and how sure answers are at it, in spreads."""
    steps, h, kept = np.linspace(0, 4, 81), np.zeros(81), []
    left, ours = np.setdiff1d(p.labels[p.whole], p.held), ~np.isin(p.labels, p.held)
    for described in np.array_split(np.random.default_rng(0).permutation(left), SPLITS):
        out = np.isin(p.labels, described)
        of_seen = ours & ~out
        fold = fold_of(p, of_seen & (p.part > 1), p.whole & of_seen & (p.part == 1), p.whole & out & (p.part > 0))
        model, unit = fit(p, fold)
        kept.append((model, fold, unit))
        scores = [class_scores(model, p.features, rows) for rows in (fold.seen_rows, fold.unseen_rows)]
        for j, step in enumerate(steps):
            bonus = np.where(model.seen_index < 0, step * unit, 0)
            labels = fold.seen_labels, fold.unseen_labels
            s, u = (accuracies(x + bonus, y).mean() for x, y in zip(scores, labels, strict=True))
            h[j] += 2 * s * u / (s + u) / SPLITS
    gamma = float(steps[h.argmax()])
    print(f"validation: γ of {gamma:.2f} spreads, H {100 * h.max():.1f}")
    return gamma, certainty.mean(
        [certainty.measured(model, p.features, fold, gamma * unit, unit) for model, fold, unit in kept]
    )


def answers(p: Photographs, trained: Trained, rows: np.ndarray, lists: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Scores with γ (n,C), the first one's probability (n,) and whether it is none of these, as predict.py has them,
    for each of ``lists``: numbers of species that nobody described.
    """
    made: list[list[Any]] = [[] for _ in lists]
    for _, x in p.features.blocks(rows):
        found = explain(trained, x)
        for without, of in zip(lists, made, strict=True):
            offered = trained.calibrated(found.scores.numpy())
            offered[:, without] = -np.inf
            sure = Sure.of(trained, found, offered, NONE_RATE)
            assert sure.p is not None and sure.is_none is not None
            of.append((offered, sure.p.max(axis=1), sure.is_none))
    return [[np.concatenate(part) for part in zip(*of, strict=True)] for of in made]


def measured(p: Photographs, trained: Trained) -> str:
    """The table: photographs that the model was not fitted on; means over species, intervals by bootstrap of these."""
    held, rng, lines = np.isin(p.labels, p.held), np.random.default_rng(0), [HEAD]
    all_of_them = np.array([], dtype=int)
    for of, kind in (("whole", p.whole), ("crops", ~p.whole)):
        for by, own, lists in (
            ("photographs", ~held & (p.part == 0), [all_of_them]),
            ("their description alone", held, [all_of_them, p.held]),
        ):
            rows = np.flatnonzero(kind & own)
            y = p.labels[rows]
            for without, (scores, first, none) in zip(lists, answers(p, trained, rows, lists), strict=True):
                cells = [of, f"{len(np.unique(y))}, {'nothing: off the list' if len(without) else by}", f"{len(rows)}"]
                for top in (1, 5):
                    each = 100 * accuracies(scores, y, top)
                    low, high = np.percentile(rng.choice(each, (RESAMPLES, len(each))).mean(axis=1), [2.5, 97.5])
                    cells.append("" if len(without) else f"{each.mean():.1f} ({low:.1f} to {high:.1f})")
                cells += [f"{100 * of_classes(values, y).mean():.1f}" for values in (first, none)]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def fitted(p: Photographs, fold: Fold, chosen: tuple[float, dict[str, Any]]) -> Trained:
    """A model with what validation has chosen, as one that was loaded."""
    model, unit = fit(p, fold)
    return Trained(
        model=model.eval(), space=fold.space, gamma=chosen[0] * unit, classes=p.names, attributes=p.attributes,
        config={"method": "vsmr", "dataset": "CUB-200-2011", "seed": 0, "epochs": 0},
        shape=(p.features.R, p.features.D), certainty=certainty.mean([chosen[1]], unit), groups=p.groups,
        backbone={k: v for k, v in p.provenance.items() if k in BACKBONE} | {"store": "float16"},
    )  # fmt: skip


def save(trained: Trained, path: Path) -> None:
    """The checkpoint, large matrices in half precision."""
    tensors = {f"model.{name}": t.half() if t.numel() > LARGE else t for name, t in trained.model.state_dict().items()}
    tensors |= {f"space.{name}": getattr(trained.space, name) for name in ("att", "seen", "unseen", "w2v", "questions")}
    same = ("config", "gamma", "certainty", "groups", "shape", "classes", "attributes", "backbone")
    libraries = {name: version(name) for name in ("torch", "torchvision", "pillow", "numpy")}
    meta = {name: getattr(trained, name) for name in same} | {"recipe": dict(vars(trained.model.recipe))}
    save_checkpoint(path, tensors, meta | {"version": core.__version__, "libraries": libraries})


def main(argv: Sequence[str] | None = None) -> int:
    """Choose, measure, fit on everything, and write."""
    parser = Parser(__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("models/birds"))
    args = parser.parse_args(argv)
    p = read(args.data_root)
    chosen, none, held = choose(p), np.zeros(len(p.labels), dtype=bool), np.isin(p.labels, p.held)
    fold = fold_of(p, ~held & (p.part > 0), none, none)
    table = measured(p, fitted(p, fold, chosen))
    print(table, end="")
    fold = fold_of(p, ~none, none, none)
    full = fitted(p, fold, chosen)
    save(full, args.out / CHECKPOINT)
    stored, some = load_trained(args.out), np.flatnonzero(p.whole)[::4]
    a, b = (answers(p, of, some, [np.array([], dtype=int)])[0][0] for of in (full, stored))
    same = 100 * (a.argmax(axis=1) == b.argmax(axis=1)).mean()
    print(f"stored: scores differ by at most {np.abs(a - b).max():.4f}, {same:.2f} % of first classes are the same")
    card = args.out / "README.md"
    lines = re.sub(r"(?s)(<!-- measured -->\n).*?(<!-- /)", lambda m: m[1] + table + m[2], card.read_text("utf-8"))
    write_bytes(card, lines.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
