"""What a user sees of every command: help, flags and words that do not exist; and what commands do to their process."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.commands import train
from core.commands.main import COMMANDS, dispatch, main
from core.files import memory
from core.files.errors import UserError
from tests.helpers import ROOT, run_here

SCRIPTS = sorted(
    str(p.relative_to(ROOT)) for folder in (".", "extract_feature", "data") for p in (ROOT / folder).glob("*.py")
)
HEAVY = {"scipy", "matplotlib", "gensim"}  # not for a help text; pandas is within the bound
# what a script cannot do without, said so that it fails at once where a flag is wrongly taken
NEEDED = {"data/get_data.py": ["CUB"], "finetune.py": ["CUB"], "OWN_ours.py": ["--data-root", "x"]}
# Every --help in one process: exit code, what is loaded after PyTorch, by which script, seconds of processor, the text.
_HELP = """
import contextlib, io, json, runpy, sys, time
scripts, heavy = json.loads(sys.argv[1])
import torch
report = {"torch": time.process_time()}
known = {h for h in heavy if h in sys.modules}
for script in scripts:
    sys.argv, started, out = [script, "--help"], time.process_time(), io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(script, run_name="__main__")
            code = "no exit"
        except SystemExit as end:
            code = end.code
    loaded = {h for h in heavy if h in sys.modules} - known
    known |= loaded
    report[script] = [code or 0, sorted(loaded), time.process_time() - started, out.getvalue()]
import core.experiments.run, core.features.extraction, core.inference.predictor, core.reporting.tables
report["run"] = sorted({"torchvision", "scipy.stats", "matplotlib"} & set(sys.modules))
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def helps() -> dict:
    done = subprocess.run(
        [sys.executable, "-c", _HELP, json.dumps([SCRIPTS, sorted(HEAVY)])],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_on_a_feature_file_waits_for_no_library_that_it_does_not_need(helps: dict) -> None:
    """torchvision takes as long as PyTorch itself."""
    assert helps["run"] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_answered_at_once(helps: dict, script: str) -> None:
    """A heavy package that an earlier script has loaded is put down to that one alone."""
    code, heavy, seconds, text = helps[script]
    assert (code, heavy) == (0, []) and "usage: " in text
    assert seconds < max(1.5, 2 * helps["torch"])  # beyond the import of PyTorch, on a busy machine too


def test_what_messages_of_the_extraction_advise_is_a_flag_of_a_folder_of_ones_own_too(helps: dict) -> None:
    assert {"--dtype", "--store", "--features"} <= {*re.findall(r"--[a-z-]+", helps["OWN_ours.py"][3])}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_shortened_flag_is_refused_in_one_sentence(helps: dict, tmp_path: Path, script: str) -> None:
    """Else --seed 3 would be three seeds, and a flag that is added later would change what a command means."""
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", helps[script][3]))
    # of a number or a file first, which --x is not: where it is taken, it fails at once and not after an hour
    flag = next(f for f in ("--seeds", "--batch-size", "--jobs", "--data-root", *sorted(known)) if f in known)[:-2]
    code, out, err = run_here(tmp_path, script, *NEEDED.get(script, []), flag, "x")
    assert flag not in known and code == 2 and not out, (code, err)
    assert re.fullmatch(r"error: [^\n]+\n", err) and re.search(rf"{flag}(?![\w-])", err), err  # no usage
    assert not list(tmp_path.iterdir())


def test_help_explains_the_flags_of_the_method_that_is_named(capsys):
    def shown(*argv):
        with pytest.raises(SystemExit):
            train.main("CUB", "CUB", [*argv, "--help"])
        return capsys.readouterr().out

    dazle, vsmr, staged = shown("--method", "dazle"), shown(), shown("--method=vsmr-staged", "--split", "cub50")
    for text in (dazle, vsmr, staged):
        assert all(flag in text for flag in ("--method", "--select", "--split"))
    assert "learning rate of RMSprop (0.0001; above 0)" in dazle and "--hubness" not in dazle
    assert "--hubness" in vsmr and "--lambda-cal" not in vsmr
    assert "chosen on validation (0.45; at" in " ".join(staged.split())  # of the data set that --split names


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
