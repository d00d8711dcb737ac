"""Extraction-sized work in a loop: memory, file handles, threads and files on disk must not grow.

    python fuzz/soak.py --minutes 120

One round extracts a few hundred tiny images (with one bad image first: the run is refused, mended and continued),
verifies and reads the feature file in random batches, and saves and loads a checkpoint. Every --every seconds a line is
written; exit code 1 if anything grew after the warm-up.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import scipy.io
import torch
from PIL import Image

from core.datasets.registry import DEMO
from core.features.extraction import extract
from core.features.feature_file import FeatureFile, verify
from core.features.regions import RegionFeatures
from core.features.settings import ExtractionConfig
from core.files.errors import UserError
from core.training.checkpoint import load_checkpoint, save_checkpoint

IMAGES = 240
WARM_UP = 20  # rounds after which allocators have what they keep
WINDOW = 10  # rounds compared: the most of those that end the warm-up with the least of the last
GROWTH = 16 << 20  # bytes of resident memory that count as noise
OPTIONS = ExtractionConfig(backbone="squeezenet1_1", weights="random", device="cpu", batch_size=16, input_size=64)


def make_data(root: Path) -> Path:
    """Six classes of tiny noise images in the demo's layout."""
    rng = np.random.default_rng(0)
    folder, mats = root / "DEMO" / "DEMO_creatures", root / "xlsa17" / "data" / "DEMO"
    folder.mkdir(parents=True)
    mats.mkdir(parents=True)
    names = [f"{i:03}.png" for i in range(IMAGES)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(folder / name)
    labels = np.repeat(np.arange(6), IMAGES // 6)
    seen = np.flatnonzero(labels < 4)
    files = np.array([[f"/x/DEMO_creatures/{name}"] for name in names], dtype=object)
    locs = {"trainval_loc": np.setdiff1d(seen, seen[::3]), "test_seen_loc": seen[::3]}
    locs |= {"test_unseen_loc": np.flatnonzero(labels >= 4)}
    scipy.io.savemat(mats / "res101.mat", {"labels": labels[:, None] + 1, "image_files": files})
    content = {"att": rng.random((5, 6)), "allclasses_names": np.array([[c] for c in "abcdef"], dtype=object)}
    scipy.io.savemat(mats / "att_splits.mat", content | {key: loc[:, None] + 1 for key, loc in locs.items()})
    return folder


def one_round(root: Path, folder: Path, number: int) -> None:
    """Everything once; the folder is afterwards as it was before."""
    out = root / "f.hdf5"
    bad = folder / f"{number % IMAGES:03}.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:99])
    try:
        extract(DEMO, data_root=root, out=out, config=OPTIONS)
    except UserError:
        bad.write_bytes(good)
    extract(DEMO, data_root=root, out=out, config=OPTIONS)
    verify(out)
    rng = np.random.default_rng(number)
    with FeatureFile(out) as file:
        n, d, r = file.shape
        for budget in (0, 1 << 30):
            features = RegionFeatures(file, np.arange(n), (r, d), budget=budget)
            for _ in range(10):
                features.batch(rng.integers(0, n, 32))
    save_checkpoint(root / "c.safetensors", {"x": torch.ones(1000)}, {"round": number})
    if load_checkpoint(root / "c.safetensors")[1] != {"round": number}:
        raise AssertionError("another checkpoint was read")
    out.unlink()


def usage(root: Path) -> dict[str, int]:
    """Resident bytes, open file handles, threads, and files here and in the folder of temporary files."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    files = sum(len(found) for _, _, found in os.walk(root))
    ours = [p for p in Path(tempfile.gettempdir()).iterdir() if p.stat().st_uid == os.getuid()]
    handles = len(os.listdir("/proc/self/fd"))
    return {"memory": resident, "handles": handles, "threads": threading.active_count(), "files": files + len(ours)}


def main() -> int:
    """Loop for --minutes."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=120, help="default: %(default)s")
    p.add_argument("--every", type=float, default=60, help="seconds between two lines (default: %(default)s)")
    a = p.parse_args()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as own:
        tempfile.tempdir = own  # what others put into the common folder is not ours to count
        root = Path(own) / "work"
        folder = make_data(root)
        started, said, rounds = time.time(), 0.0, 0
        used: list[dict[str, int]] = []
        while time.time() - started < 60 * a.minutes or rounds < WARM_UP + WINDOW:
            one_round(root, folder, rounds)
            rounds += 1
            used.append(usage(root))
            if time.time() - said > a.every:
                said = time.time()
                sys.stdout.write(f"{said - started:6.0f} s  round {rounds:5}  {used[-1]}\n")
                sys.stdout.flush()
    before, after = used[WARM_UP - WINDOW : WARM_UP], used[-WINDOW:]
    grown = {key: min(u[key] for u in after) - max(u[key] for u in before) for key in used[0]}
    bad = [key for key, more in grown.items() if more > (GROWTH if key == "memory" else 0)]
    sys.stdout.write(f"{rounds} rounds, {rounds * IMAGES} rows written; growth since round {WARM_UP}: {grown}\n")
    sys.stdout.write(f"GREW: {', '.join(bad)}\n" if bad else "nothing grew\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
