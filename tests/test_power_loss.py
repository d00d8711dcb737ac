"""Power cuts: a few of those that `make nightly` makes, where this machine can mount an image."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import power_loss

ROOT = Path(__file__).parent.parent
REASON = power_loss.refusal()


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_power_cuts_end_bit_identical_and_leave_nothing_mounted(tmp_path):
    command = [sys.executable, "fuzz/power_loss.py", "--times", "1", "--keep", str(tmp_path / "kept")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1 cuts     1 bit-identical    0 findings") == 2
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith("torchinductor")]  # PyTorch's own cache
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert str(tmp_path) not in subprocess.run(["losetup", "-a"], capture_output=True, text=True).stdout


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_what_was_not_fsynced_is_missing_after_a_cut(tmp_path):
    """Else the cuts would prove nothing."""
    image, held = power_loss.empty_image(tmp_path / "a.img"), tmp_path / "held.img"
    with power_loss.mounted(image, power_loss.MODES[0]) as place:
        for name in ("durable", "lost"):
            with open(place / name, "wb") as handle:
                handle.write(name.encode())
                handle.flush()
                if name == "durable":
                    os.fsync(handle.fileno())
        power_loss.copy(image, held)
    with power_loss.mounted(held) as place:
        assert (place / "durable").read_bytes() == b"durable"
        assert not (place / "lost").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.img", "held.img"]


def test_without_root_it_is_refused():
    script = (
        "import os, sys; os.geteuid = lambda: 1; sys.argv[1:] = []; from fuzz.power_loss import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "needs root" in done.stderr
