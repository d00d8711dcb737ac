"""The demo data set: birds drawn here, so that the whole pipeline runs without a download.

A class is a signature: one value for each of fifteen traits. Each (trait, value) is an attribute, named as in CUB.
Unseen classes are new combinations of values that seen classes show; they come in look-alike pairs, so global colour
alone does not tell them apart.
"""

import io
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import scipy.io
from tqdm import tqdm

from core.datasets.metadata import class_disjoint_split
from core.datasets.registry import DEMO
from core.demo.drawing import Signature, draw_creature
from core.files.errors import UserError

FORMAT = 1  # raise it when the drawing changes, so that older renderings are redone
MARKER = "rendering.json"  # written last; holds the parameters
TEST_SHARE = 0.2  # of a seen class's images

# trait -> values; attribute names are has_<trait>::<value>
TRAITS: dict[str, tuple[str, ...]] = {
    "bill_shape": ("dagger", "hooked", "cone", "curved"),
    "bill_color": ("black", "yellow", "red"),
    "crown_color": ("red", "blue", "yellow", "black", "white"),
    "head_pattern": ("crested", "plain"),
    "throat_color": ("white", "black", "yellow", "red"),
    "back_color": ("brown", "grey", "green", "blue", "black"),
    "wing_color": ("brown", "grey", "red", "blue", "green", "yellow"),
    "wing_pattern": ("solid", "striped", "spotted"),
    "breast_color": ("red", "yellow", "white", "blue", "brown"),
    "breast_pattern": ("solid", "striped", "spotted"),
    "belly_color": ("white", "yellow", "grey", "orange"),
    "tail_shape": ("forked", "rounded", "pointed"),
    "tail_color": ("black", "red", "blue", "white"),
    "leg_color": ("orange", "grey", "yellow"),
    "leg_length": ("short", "long"),
}
SIBLING_CHANGES = 5  # traits in which the second unseen class of a pair differs from the first


def draw_signatures(seen: int, unseen: int, rng: np.random.Generator) -> tuple[list[Signature], list[Signature]]:
    """Signatures of the seen classes, values spread evenly, and of the unseen ones, of values of two seen classes."""
    columns = {
        trait: [values[i] for i in rng.permutation(np.resize(rng.permutation(len(values)), seen))]
        for trait, values in TRAITS.items()
    }
    known = [{trait: column[c] for trait, column in columns.items()} for c in range(seen)]
    allowed = {trait: [v for v in sorted({*column}) if column.count(v) >= 2] for trait, column in columns.items()}
    new: list[Signature] = []
    while len(new) < unseen:
        if len(new) % 2:  # a look-alike of the one before
            candidate = dict(new[-1])
            changed = [str(t) for t in rng.choice([t for t in TRAITS if len(allowed[t]) > 1], SIBLING_CHANGES, False)]
        else:
            candidate, changed = {}, list(TRAITS)
        for trait in changed:
            others = [v for v in allowed[trait] if v != candidate.get(trait)]
            candidate[trait] = others[rng.integers(len(others))]
        if candidate not in known and candidate not in new:
            new.append(candidate)
    return known, new


def render_demo(data_root: Path, seed: int = 0, images_per_class: int = 50, seen: int = 24, unseen: int = 8) -> None:
    """Draw the demo data set under ``data_root`` in CUB's layout with xlsa17's .mat files.

    A complete rendering with the same arguments is kept; one with others is replaced. Nothing appears under a final
    name before it is complete.
    """
    folder, mats = data_root / DEMO.folders[0], data_root / "xlsa17" / "data" / DEMO.name
    wanted = {"format": FORMAT, "seed": seed, "images_per_class": images_per_class, "seen": seen, "unseen": unseen}
    marker = folder / MARKER
    if folder.exists() and not marker.is_file():
        raise UserError(f"{folder} exists but was not drawn by this program (no {MARKER}). Move it away first.")
    if marker.is_file() and mats.is_dir() and marker.read_text() == json.dumps(wanted):
        return
    data_root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".demo.", dir=data_root, ignore_cleanup_errors=True) as temporary:
        target = Path(temporary)
        _write(target, seed, images_per_class, seen, unseen)
        (target / "images" / MARKER).write_text(json.dumps(wanted))
        for part, final in (("mats", mats), ("images", folder)):
            shutil.rmtree(final, ignore_errors=True)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(target / part, final)


def _write(target: Path, seed: int, per_class: int, seen: int, unseen: int) -> None:
    """Everything, below ``target``: images/ becomes the data set's folder, mats/ xlsa17's."""
    rng = np.random.default_rng([seed, FORMAT])
    known, new = draw_signatures(seen, unseen, rng)
    order = rng.permutation(seen + unseen)  # class c has signature order[c]: unseen classes lie anywhere
    signatures = [(known + new)[i] for i in order]
    words = [f"{s['crown_color'].title()}_crowned_{s['wing_color'].title()}wing" for s in signatures]
    names = [f"{c:03d}.{word}" for c, word in enumerate(words, 1)]
    # attributes in percent, (C,K), with the scatter of human annotators around present and absent
    present = np.array([[s[t] == v for t, values in TRAITS.items() for v in values] for s in signatures])
    strengths = np.where(present, rng.uniform(65.0, 98.0, present.shape), 25.0 * rng.random(present.shape) ** 3)
    labels = np.repeat(np.arange(len(names)), per_class)
    files = [f"{names[c]}/{words[c]}_{i % per_class + 1:04d}.jpg" for i, c in enumerate(labels)]

    root = target / "images"
    for name in names:
        (root / "images" / name).mkdir(parents=True)
    jobs = [(seed, i, signatures[labels[i]], root / "images" / file) for i, file in enumerate(files)]
    forks = sys.platform == "linux" and len(jobs) >= 200  # where a plain fork is safe, and worth it
    pool: Executor = ProcessPoolExecutor(8, get_context("fork")) if forks else ThreadPoolExecutor(1)
    with pool:
        list(tqdm(pool.map(_draw, jobs, chunksize=25), total=len(jobs), desc="drawing", disable=None))
    attributes = [f"has_{trait}::{value}" for trait, values in TRAITS.items() for value in values]  # (K,)
    (root / "attributes.txt").write_text("".join(f"{k} {name}\n" for k, name in enumerate(attributes, 1)))

    is_seen, held = order < seen, max(1, round(TEST_SHARE * per_class))
    test_seen = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:held] for c in np.flatnonzero(is_seen)])
    trainval = np.setdiff1d(np.flatnonzero(is_seen[labels]), test_seen)
    train, val = class_disjoint_split(labels, trainval, DEMO.val_share, seed=int(rng.integers(2**31)))
    paths = [f"/drawn/by/seed/{seed}/{DEMO.anchor}/images/{file}" for file in files]
    (target / "mats").mkdir()
    _write_mat(target / "mats" / "res101.mat", labels=labels + 1.0, image_files=np.array(paths, dtype=object))
    _write_mat(
        target / "mats" / "att_splits.mat",
        att=strengths.T / np.linalg.norm(strengths.T, axis=0),  # (K,C)
        original_att=strengths.T,
        allclasses_names=np.array(names, dtype=object),
        trainval_loc=trainval + 1.0,
        train_loc=train + 1.0,
        val_loc=val + 1.0,
        test_seen_loc=np.sort(test_seen) + 1.0,
        test_unseen_loc=np.flatnonzero(~is_seen[labels]) + 1.0,
    )


def _write_mat(path: Path, **content: np.ndarray) -> None:
    """Write columns and matrices without the date that scipy puts in its header: equal content is equal bytes."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, content, do_compression=True, oned_as="column")
    path.write_bytes(b"MATLAB 5.0 MAT-file, demo data set".ljust(116) + buffer.getvalue()[116:])


def _draw(job: tuple[int, int, Signature, Path]) -> None:
    """One file of the image of that number."""
    seed, number, signature, path = job
    draw_creature(signature, np.random.default_rng([seed, FORMAT, number])).save(path, quality=92)
