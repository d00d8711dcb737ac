"""The one command of an installation, and what commands do to the process they run in."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.commands.main import COMMANDS, dispatch, main
from core.files import memory
from core.files.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def test_the_entry_point_is_there_and_its_commands_have_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    module, _, name = scripts["vsmr"].partition(":")
    assert getattr(import_module(module), name) is main
    for words, said in ((["--help"], [*COMMANDS]), (["predict", "--help"], ["usage: vsmr predict", "--add-classes"])):
        monkeypatch.setattr(sys, "argv", ["vsmr", *words])
        with pytest.raises(SystemExit):
            main()
        printed = capsys.readouterr().out
        assert all(word in printed for word in said)


@pytest.mark.parametrize(
    ("typed", "where", "first"),
    [
        ("own --method dazle", "own", []),
        ("predict --method dazle", "predict", []),
        ("tables --method dazle", "reproduce", []),
        ("train CUB --method dazle", "train", ["CUB"]),
        ("extract SUN --method dazle", "extract", ["SUN"]),
        ("demo --method dazle", "train", ["DEMO"]),
    ],
)
def test_a_word_calls_the_main_of_its_script(
    typed: str, where: str, first: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where another main is called, it leaves nothing here
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(sys, "argv", ["vsmr"])
    monkeypatch.setattr(import_module(f"core.commands.{where}"), "main", lambda *given: calls.append(given) or 7)
    word = typed.split()[0]
    assert dispatch(typed.split()) == 7
    assert calls == [(*first, COMMANDS[word], ["--method", "dazle"])]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("", "command; vsmr --help lists"),
        ("train", "dataset; vsmr train --help lists"),
        ("predict", "run, images; vsmr predict --help lists"),
        ("train CUB --methd x", "--methd x; vsmr train CUB --method vsmr --help lists"),
    ],
)
def test_an_error_names_the_command_that_was_typed(typed: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/vsmr"])
    with pytest.raises(UserError, match=says):
        dispatch(typed.split())


FAULTS = """
import ctypes, resource, sys
from core.files.memory import keep_memory
if sys.argv[1] == "keep" and not keep_memory():
    sys.exit(3)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def work(size=60 << 20):  # more than glibc keeps by itself
    piece = libc.malloc(size)
    ctypes.memset(piece, 1, size)
    libc.free(piece)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_large_pieces_of_memory_are_kept() -> None:
    ended = {
        how: subprocess.run([sys.executable, "-c", FAULTS, how], cwd=ROOT, capture_output=True, text=True)
        for how in ("keep", "usual")
    }
    if ended["keep"].returncode == 3:
        pytest.skip("another C library")
    faults = {how: int(result.stdout) for how, result in ended.items()}
    assert faults["usual"] > 1000 and faults["keep"] < faults["usual"] / 20, faults


def test_an_old_glibc_keeps_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(mallopt=lambda setting, value: setting == -1 or value <= 32 << 20)
    monkeypatch.setattr(memory, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: old)
    assert memory.keep_memory()
