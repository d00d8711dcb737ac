"""What the system does to a command: interruptions, terminals, users, full disks, names, other operating systems."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.files.errors import run_cli
from tests.helpers import ROOT, refused, run_here
from tests.messages import DRIVER, EXTRACT, FEATURES, IMAGES, NO_FEATURES, TABLES, VERIFY, base, image_names, run

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    base(tmp_path)
    return tmp_path


def apart(place: Path, script: str, *arguments: str, before: tuple[str, ...] = (), **environment: str):
    """Run a script in a process of its own."""
    command = [*before, sys.executable, str(ROOT / script), *arguments]
    more = {"cwd": place, "env": ENVIRONMENT | environment, "capture_output": True, "timeout": 120}
    return subprocess.run(command, **more)


@pytest.mark.parametrize("seed", range(2))
def test_ctrl_c_at_any_moment_is_one_line(place: Path, seed: int) -> None:
    """During imports, in the threads that decode, between epochs; to the whole group, as a terminal sends it."""
    commands = [[DRIVER, "--method", "vsmr", "--device", "cpu"], [EXTRACT, *NO_FEATURES, "--device", "cpu"]]
    script, *arguments = commands[seed % 2]
    child = subprocess.Popen(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=place,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a program that was started in the background hands on to its children that Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    maps = Path(f"/proc/{child.pid}/maps")
    while child.poll() is None and "torch" not in maps.read_text():
        time.sleep(0.01)  # Python itself starts: nothing of this repository can answer yet
    time.sleep(random.Random(seed).uniform(0, 4))
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert "Traceback" not in out + err, err
    if child.returncode and "results: " not in out and "features in " not in err:  # else it was ending anyway
        assert child.returncode == 130 and err.endswith("interrupted; run the same command again to continue\n"), err


SWALLOWED = (
    "import contextlib, os, signal\nwith contextlib.suppress(KeyboardInterrupt): os.kill(os.getpid(), signal.SIGINT)\n"
)


@pytest.mark.parametrize(
    "module",
    [
        SWALLOWED + "def main(): print('went on')",
        "def main():\n    " + SWALLOWED.replace("\n", "\n    ") + "raise AttributeError('a library in pieces')",
        "def main():\n    " + SWALLOWED.replace("\n", "\n    ") + "raise ModuleNotFoundError(name='numpy')",
        # in what Python calls when an object goes, where an exception is only printed
        "import os, signal, time\nclass Last:\n    def __del__(self): os.kill(os.getpid(), signal.SIGINT); int()\n"
        "def main():\n    Last()\n    time.sleep(5)",
    ],
)
def test_ctrl_c_that_a_library_swallows_ends_the_command_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    (tmp_path / "swallows.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "swallows", raising=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_cli("swallows") == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr() == ("", "interrupted; run the same command again to continue\n")


@pytest.mark.parametrize("encoding", ["ascii"])
def test_any_terminal_shows_help_table_and_errors(place: Path, encoding: str) -> None:
    terminal = {"PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}
    for arguments, says in (
        (run("--select", "last"), b"| T1 |"),
        (["--method", "Grün日本"], b""),
    ):
        done = apart(place, DRIVER, *arguments, **terminal)
        assert done.returncode == (2 if "Grün日本" in arguments else 0), done.stderr
        assert b"Traceback" not in done.stdout + done.stderr and says in done.stdout


def test_a_pipe_that_nobody_reads_is_no_error(place: Path) -> None:
    command = f"'{sys.executable}' '{ROOT / DRIVER}' --help | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=place, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.startswith("usage:") and not done.stderr


def test_names_that_are_no_utf_8_or_hold_a_newline(place: Path) -> None:
    name = "w\udcff and\nlines.hdf5"
    os.rename(place / FEATURES, place / name)
    done = apart(place, DRIVER, *run("--select", "last", "--features", name, "--out", f"r{name}"))
    assert done.returncode == 0, done.stderr
    (place / IMAGES / image_names()[0]).unlink()
    refused(run_here(place, EXTRACT, *NO_FEATURES[:-1], "w\udcff/new.hdf5", "--device", "cpu"))


@pytest.mark.parametrize("kilobytes", [16])
def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(place: Path, kilobytes: int) -> None:
    small = place / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(small)])
    if mounted.returncode:
        pytest.skip("a small disk is mounted as root only")
    try:
        for script, arguments in ((DRIVER, run("--out", "small/r")), (EXTRACT, [*NO_FEATURES[:-1], "small/f.hdf5"])):
            code, _, said = run_here(place, script, *arguments)
            assert code == 2 and "Traceback" not in said, said
            assert "No space left on device" in said[said.index("error: ") :]
            assert not [p for p in small.rglob("*") if p.name.endswith((".tmp", ".lock", "f.hdf5", "metrics.json"))]
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(("script", "module"), [(DRIVER, "fcntl"), (EXTRACT, "resource")])
def test_other_operating_systems_are_told_which_ones_it_runs_on(place: Path, script: str, module: str) -> None:
    arguments = ["x"] if script == VERIFY else ["--collect"] if script == TABLES else []
    program = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = [{script!r}, *{arguments!r}]\n"
        f"import runpy; runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=place, env=ENVIRONMENT, capture_output=True, text=True)
    said = done.stderr
    assert done.returncode == 2 and said.startswith("error: this program runs on Linux and macOS"), said
