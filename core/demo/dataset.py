"""The demo data set: birds drawn here, so that the whole pipeline runs without a download.

A class is a signature: one value for each of fifteen traits (colour of the wing, shape of the bill ...). Each
(trait, value) is an attribute, named as in CUB, and belongs to one part of the bird. Unseen classes are new
combinations of values that seen classes show; they come in look-alike pairs, so global colour alone does not tell
them apart. Pose, articulation, scale, position, individual colour, background, light and occlusion vary by image.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from tqdm import tqdm

from core.datasets.metadata import class_disjoint_split
from core.datasets.registry import DEMO
from core.demo.drawing import PARTS, Signature, draw_creature
from core.files.atomic import fsync_folder, sha256_file
from core.files.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 1  # raise it when the drawing changes, so that older renderings are redone
MARKER = "rendering.json"  # written last; holds the parameters and the checksums of the split files
TEST_SHARE = 0.2  # of a seen class's images

# trait -> (part that shows it, values); attribute names are has_<trait>::<value>
TRAITS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bill_shape": ("bill", ("dagger", "hooked", "cone", "curved")),
    "bill_color": ("bill", ("black", "yellow", "red")),
    "crown_color": ("crown", ("red", "blue", "yellow", "black", "white")),
    "head_pattern": ("crown", ("crested", "plain")),
    "throat_color": ("throat", ("white", "black", "yellow", "red")),
    "back_color": ("back", ("brown", "grey", "green", "blue", "black")),
    "wing_color": ("wing", ("brown", "grey", "red", "blue", "green", "yellow")),
    "wing_pattern": ("wing", ("solid", "striped", "spotted")),
    "breast_color": ("breast", ("red", "yellow", "white", "blue", "brown")),
    "breast_pattern": ("breast", ("solid", "striped", "spotted")),
    "belly_color": ("belly", ("white", "yellow", "grey", "orange")),
    "tail_shape": ("tail", ("forked", "rounded", "pointed")),
    "tail_color": ("tail", ("black", "red", "blue", "white")),
    "leg_color": ("leg", ("orange", "grey", "yellow")),
    "leg_length": ("leg", ("short", "long")),
}
SIBLING_CHANGES = 5  # traits in which the second unseen class of a pair differs from the first


def attribute_names() -> list[str]:
    """The K attribute names, in the order of ``att``'s columns."""
    return [f"has_{trait}::{value}" for trait, (_, values) in TRAITS.items() for value in values]


def attribute_parts() -> list[str]:
    """The part that shows each attribute, (K,)."""
    return [part for part, values in TRAITS.values() for _ in values]


def draw_signatures(seen: int, unseen: int, rng: np.random.Generator) -> tuple[list[Signature], list[Signature]]:
    """Signatures of the seen and the unseen classes.

    Every value is spread evenly over the seen classes; an unseen class uses only values of at least two seen classes.
    """
    columns = {}
    for trait, (_, values) in TRAITS.items():
        columns[trait] = [values[i] for i in rng.permutation(np.resize(rng.permutation(len(values)), seen))]
    known = [{trait: column[c] for trait, column in columns.items()} for c in range(seen)]
    allowed = {
        trait: sorted(v for v in set(column) if column.count(v) >= 2) or [max(sorted(set(column)), key=column.count)]
        for trait, column in columns.items()
    }
    new: list[Signature] = []
    for _ in range(1000 * unseen):
        if len(new) == unseen:
            break
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
    if len(new) < unseen:
        raise UserError(f"{seen} seen classes do not allow {unseen} new combinations; ask for more seen classes")
    return known, new


def signature_strengths(signatures: list[Signature], rng: np.random.Generator) -> np.ndarray:
    """Class attributes in percent, (C,K) float64, with the scatter of human annotators around present and absent."""
    present = np.array([[s[t] == v for t, (_, values) in TRAITS.items() for v in values] for s in signatures])
    yes = rng.uniform(65.0, 98.0, present.shape)
    no = 25.0 * rng.random(present.shape) ** 3
    return np.where(present, yes, no)


def render_demo(
    data_root: Path | str,
    seed: int = 0,
    images_per_class: int = 50,
    seen: int = 24,
    unseen: int = 8,
    workers: int | None = None,
) -> Path:
    """Draw the demo data set under ``data_root`` in CUB's layout with xlsa17's .mat files; returns its folder.

    The result depends only on the arguments (not on ``workers``). A complete rendering with the same
    arguments is kept; one with others is replaced. Nothing appears under a final name before it is complete.

    Raises:
        UserError: sizes too small to split, a folder in the way that was not drawn here, or the disk refuses.
    """
    if seen < 4 or unseen < 1 or images_per_class < 2:
        raise UserError("the demo needs at least 4 seen classes, 1 unseen class and 2 images per class")
    data_root = Path(data_root)
    folder, mats = data_root / DEMO.folders[0], data_root / "xlsa17" / "data" / DEMO.name
    wanted = {"format": FORMAT, "seed": seed, "images_per_class": images_per_class, "seen": seen, "unseen": unseen}
    if _is_complete(folder, mats, wanted):
        log.info("the demo data set is already in %s", folder)
        return folder
    if folder.exists() and not (folder / MARKER).is_file():
        raise UserError(f"{folder} exists but was not drawn by this program (no {MARKER}). Move it away first.")
    try:
        data_root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".demo.", dir=data_root, ignore_cleanup_errors=True) as temporary:
            _write(Path(temporary), wanted, workers)
            if not _is_complete(folder, mats, wanted):  # else another process was faster
                for old in (folder, mats):
                    shutil.rmtree(old, ignore_errors=True)
                for part, final in (("mats", mats), ("images", folder)):
                    final.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(Path(temporary, part), final)
                    fsync_folder(final.parent)
    except OSError as error:
        raise UserError(f"cannot draw the demo data set under {data_root}: {error.strerror or error}.") from error
    return folder


def _is_complete(folder: Path, mats: Path, wanted: dict[str, int]) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text())
        if marker["parameters"] != wanted or any(sha256_file(mats / n) != h for n, h in marker["sha256"].items()):
            return False
        names = [line.split()[1] for line in (folder / "images.txt").read_text().splitlines()]
        return len(names) == marker["images"] and all((folder / "images" / n).is_file() for n in names)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return False


def _write(target: Path, wanted: dict[str, int], workers: int | None) -> None:
    """Everything, below ``target``: images/ becomes the data set's folder, mats/ xlsa17's."""
    seed, per_class, seen, unseen = (wanted[k] for k in ("seed", "images_per_class", "seen", "unseen"))
    rng = np.random.default_rng([seed, FORMAT])
    known, new = draw_signatures(seen, unseen, rng)
    order = rng.permutation(seen + unseen)  # class c has signature order[c]: unseen classes lie anywhere
    signatures = [(known + new)[i] for i in order]
    is_seen = order < seen
    names = [
        f"{c + 1:03d}.{s['crown_color'].title()}_crowned_{s['wing_color'].title()}wing"
        for c, s in enumerate(signatures)
    ]
    strengths = signature_strengths(signatures, rng)  # (C,K)
    labels = np.repeat(np.arange(len(names)), per_class)
    files = [f"{names[c]}/{names[c].split('.')[1]}_{i % per_class + 1:04d}.jpg" for i, c in enumerate(labels)]

    root = target / "images"
    for name in names:
        (root / "images" / name).mkdir(parents=True)
    log.info("demo: drawing %d images of %d classes", len(files), len(names))
    jobs = [(seed, i, signatures[labels[i]], str(root / "images" / files[i])) for i in range(len(files))]
    locs = np.stack(list(tqdm(_map_jobs(jobs, workers), total=len(jobs), desc="drawing", disable=None)))  # (N,P,3)
    _write_tables(root, names, labels, files, strengths, locs)

    splits = _splits(labels, is_seen, per_class, rng)
    (target / "mats").mkdir()
    original = strengths.T  # (K,C)
    paths = np.array([f"/drawn/by/seed/{seed}/{DEMO.anchor}/images/{f}" for f in files], dtype=object)[:, None]
    mats = {
        "res101.mat": {"labels": (labels + 1.0)[:, None], "image_files": paths},
        "att_splits.mat": {
            "att": original / np.linalg.norm(original, axis=0),
            "original_att": original,
            "allclasses_names": np.array(names, dtype=object)[:, None],
            **{key: (loc + 1.0)[:, None] for key, loc in splits.items()},
        },
    }
    checksums = {name: _write_mat(target / "mats" / name, content) for name, content in mats.items()}
    (root / MARKER).write_text(json.dumps({"parameters": wanted, "images": len(files), "sha256": checksums}, indent=1))


def _splits(labels: np.ndarray, is_seen: np.ndarray, per_class: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    held = max(1, round(TEST_SHARE * per_class))
    test_seen = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:held] for c in np.flatnonzero(is_seen)])
    trainval = np.setdiff1d(np.flatnonzero(is_seen[labels]), test_seen)
    train, val = class_disjoint_split(labels, trainval, DEMO.val_share, seed=int(rng.integers(2**31)))
    return {
        "trainval_loc": trainval,
        "train_loc": train,
        "val_loc": val,
        "test_seen_loc": np.sort(test_seen),
        "test_unseen_loc": np.flatnonzero(~is_seen[labels]),
    }


def _write_tables(
    root: Path, names: list[str], labels: np.ndarray, files: list[str], strengths: np.ndarray, locs: np.ndarray
) -> None:
    """CUB's text files; every id counts from 1."""

    def table(path: str, rows: Iterable[str]) -> None:
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text("".join(f"{row}\n" for row in rows))

    table("images.txt", (f"{i} {f}" for i, f in enumerate(files, 1)))
    table("classes.txt", (f"{i} {n}" for i, n in enumerate(names, 1)))
    table("image_class_labels.txt", (f"{i} {c + 1}" for i, c in enumerate(labels, 1)))
    table("attributes.txt", (f"{i} {a}" for i, a in enumerate(attribute_names(), 1)))
    table("attribute_parts.txt", (f"{i} {PARTS.index(p) + 1} {p}" for i, p in enumerate(attribute_parts(), 1)))
    table("class_attribute_labels_continuous.txt", (" ".join(f"{v:.4f}" for v in row) for row in strengths))
    table("parts/parts.txt", (f"{i} {p}" for i, p in enumerate(PARTS, 1)))
    rows = (f"{i} {p} {x:.1f} {y:.1f} {v:.0f}" for i, loc in enumerate(locs, 1) for p, (x, y, v) in enumerate(loc, 1))
    table("parts/part_locs.txt", rows)


def _write_mat(path: Path, content: dict[str, Any]) -> str:
    """Write a .mat file without the date that scipy puts in its header, so that equal content is equal bytes."""
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, content, do_compression=True)
    raw = b"MATLAB 5.0 MAT-file, demo data set".ljust(116) + buffer.getvalue()[116:]
    path.write_bytes(raw)
    return hashlib.sha256(raw).hexdigest()


Job = tuple[int, int, Signature, str]


def _draw_job(job: Job) -> np.ndarray:
    seed, index, signature, path = job
    drawing = draw_creature(signature, np.random.default_rng([seed, FORMAT, index]))
    drawing.image.save(path, quality=92)
    return drawing.part_locs


def _map_jobs(jobs: list[Job], workers: int | None) -> Iterator[np.ndarray]:
    """The jobs' results in order; in several processes where a plain fork is safe, else in this one."""
    count = min(workers or len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1, 8)
    if count < 2 or len(jobs) < 200:
        yield from map(_draw_job, jobs)
        return
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(_draw_job, jobs, chunksize=25)
