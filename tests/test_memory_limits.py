"""Memory that a container, a job or the system leaves is seen before features are held in it."""

from pathlib import Path

import pytest
import torch

from core.features.regions import free_bytes, held_bytes


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
        ({"proc/self/cgroup": "0::/", f"{V2}/memory.max": 3 * GiB, f"{V2}/memory.current": GiB}, 2),
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
        ({"proc/self/cgroup": "0::/", f"{V2}/memory.max": GiB, f"{V2}/memory.current": 2 * GiB}, 0),
    ],
)
def test_the_memory_limit_of_a_container_or_job_is_seen(tmp_path: Path, files: dict[str, object], gib: float) -> None:
    assert free_bytes(torch.device("cpu"), tree(tmp_path, HOST | files)) == int(gib * GiB)


def test_features_leave_memory_for_what_is_done_with_them() -> None:
    assert [held_bytes(free) / GiB for free in (40 * GiB, 5 * GiB, 2 * GiB, GiB, 0)] == pytest.approx([8, 3, 1, 0, 0])
