"""Memory that a container, a job or the system leaves is seen before features are held in it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from core.features.regions import free_bytes, held_bytes
from tests.helpers import ROOT


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(text))
    return root


GiB = 1 << 30
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
HOST = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {40 << 20} kB\n"}


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 40),
        ({"proc/meminfo": ""}, 1 << 32),
        ({"proc/self/cgroup": "0::/", f"{V2}/memory.max": 3 * GiB, f"{V2}/memory.current": GiB}, 2),
        ({"proc/self/cgroup": "0::/", f"{V2}/memory.max": "max", f"{V2}/memory.current": GiB}, 40),
        (  # a parent's limit is the tighter one; what the page cache holds can be had back
            {
                "proc/self/cgroup": "0::/slurm/job_1/step\n",
                f"{V2}/slurm/job_1/step/memory.max": "max",
                f"{V2}/slurm/job_1/memory.max": 8 * GiB,
                f"{V2}/slurm/job_1/memory.current": 7 * GiB,
                f"{V2}/slurm/job_1/memory.stat": f"anon 5\ninactive_file {4 * GiB}\n",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/a\n4:memory:/docker/abc\n0::/",
                f"{V1}/memory.limit_in_bytes": 2 * GiB,
                f"{V1}/memory.usage_in_bytes": GiB,
                f"{V1}/memory.stat": f"inactive_file 7\ntotal_inactive_file {GiB // 2}\n",
            },
            1.5,
        ),
        ({"proc/self/cgroup": "4:cpu,memory:/", f"{V1}/memory.limit_in_bytes": 9223372036854771712}, 40),
        ({"proc/self/cgroup": "0::/", f"{V2}/memory.max": GiB, f"{V2}/memory.current": 2 * GiB}, 0),
        ({"proc/self/cgroup": "junk"}, 40),
    ],
)
def test_the_memory_limit_of_a_container_or_job_is_seen(tmp_path: Path, files: dict[str, object], gib: float) -> None:
    assert free_bytes(torch.device("cpu"), tree(tmp_path, HOST | files)) == int(gib * GiB)


def test_features_leave_memory_for_what_is_done_with_them() -> None:
    assert [held_bytes(free) / GiB for free in (40 * GiB, 5 * GiB, 2 * GiB, GiB, 0)] == pytest.approx([8, 3, 1, 0, 0])


@pytest.fixture
def limited() -> Iterator[list[str]]:
    """What is put before a command so that it has 1,000 MB: a control group, version 1 or 2."""
    base, limit = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
    if not base.is_dir():
        base, limit = Path("/sys/fs/cgroup"), "memory.max"
    place = base / f"vsmr-test-{os.getpid()}"
    try:
        place.mkdir()
        (place / limit).write_text(str(1000 << 20))
    except OSError:
        with contextlib.suppress(OSError):
            place.rmdir()
        pytest.skip("needs a system that lets this user make control groups")
    yield ["bash", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', str(place)]
    place.rmdir()


def test_a_run_whose_features_do_not_fit_into_its_group_finishes(tmp_path: Path, limited: list[str]) -> None:
    """0.6 GB of features, of which six tenths of what is free would leave too little for eszsl's eigenvectors."""
    per, K, D, R = 334, 12, 2048, 49
    rng = np.random.default_rng(0)
    maps, rows = rng.random((9, D, R)).astype("f2"), np.arange(9 * per).reshape(9, per)
    with h5py.File(tmp_path / "f.hdf5", "w") as file:
        data = file.create_dataset("feature_map", (9 * per, D, R), "f2", chunks=(1, D, R))
        for c in range(9):
            data[c * per : (c + 1) * per] = maps[c]
        file["labels"], file["att"] = np.repeat(np.arange(9), per), rng.random((9, K))
        file["trainval_loc"], file["test_seen_loc"] = rows[:6, :-2].ravel(), rows[:6, -2:].ravel()
        file["test_unseen_loc"] = rows[6:, :20].ravel()
    np.save(tmp_path / "v.npy", rng.random((K, 5)))
    run = ["--method", "eszsl", "--select", "last", "--device", "cpu", "--features", "f.hdf5", "--w2v", "v.npy"]
    command = [*limited, sys.executable, str(ROOT / "AWA2_ours.py"), *run]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
