"""What a user sees of every command: help, flags that do not exist, and data that do not fit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.commands.train import main
from core.files.errors import UserError
from tests.helpers import ROOT, run_here

SCRIPTS = sorted(
    str(p.relative_to(ROOT)) for folder in (".", "extract_feature", "data") for p in (ROOT / folder).glob("*.py")
)
HEAVY = {"pandas", "scipy", "matplotlib", "gensim"}  # not for a help text
# what a script cannot do without, said so that it fails at once where a flag is wrongly taken
NEEDED = {
    "data/get_data.py": ["CUB", "--archive", "nowhere.tgz"],
    "finetune.py": ["CUB"],
}
# Every --help in one process: what is loaded after PyTorch, by which script, and the seconds of processor it took.
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
    report[script] = [code or 0, sorted(loaded), time.process_time() - started, "usage: " in out.getvalue()]
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
def test_help_loads_no_heavy_package(helps: dict, script: str) -> None:
    """One that an earlier script has loaded is put down to that one alone."""
    assert helps[script][1] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_answered_at_once(helps: dict, script: str) -> None:
    code, _, seconds, printed = helps[script]
    assert code == 0 and printed
    assert seconds < max(1.5, 2 * helps["torch"])  # beyond the import of PyTorch, on a busy machine too


def refused_in_one_sentence(place: Path, script: str, flag: str, *arguments: str) -> None:
    """Exit code 2 and one line that begins with the reason and names the flag; no usage, nothing written."""
    code, out, err = run_here(place, script, *NEEDED.get(script, []), flag, *arguments)
    assert code == 2, (code, err)
    assert not out
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert re.search(rf"{flag}(?![\w-])", err) and "usage:" not in err, err
    assert not list(place.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_is_refused_in_one_sentence(tmp_path: Path, script: str) -> None:
    refused_in_one_sentence(tmp_path, script, "--no-such-flag", "1")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_shortened_flag_is_refused_in_one_sentence(tmp_path: Path, script: str) -> None:
    """Else --seed 3 would be three seeds, and a flag that is added later would change what a command means."""
    known = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", run_here(tmp_path, script, "--help")[1]))
    # of a number or a file first, which --x is not: where it is taken, it fails at once and not after an hour
    full = next(f for f in ("--seeds", "--batch-size", "--jobs", "--data-root", *sorted(known)) if f in known)
    short = full[:-2]
    assert short not in known
    refused_in_one_sentence(tmp_path, script, short, "x")


@pytest.mark.parametrize(("name", "source"), [("AWA2", "AWA2"), ("CUB", "CUB"), ("SUN", "SUN")])
def test_a_root_without_the_data_set_says_what_was_looked_for(tmp_path, monkeypatch, name, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"holds no {source}.*See data/{source}\.md"):
        main(name, None, [])


def test_help_explains_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main("CUB", "CUB", ["--help"])
    text = capsys.readouterr().out
    for flag in ("--method", "--select", "--split", "--lambda-cal", "--predictor-lr", "--neighbours"):
        assert flag in text
    groups = text.split("hyper-parameters by method")[1].split("\n\n")
    by_method = {g.strip().split(":")[0]: g for g in groups[1:]}
    assert "learning rate of RMSprop (0.0001; above 0)" in by_method["dazle"]
    assert "--beta" in by_method["vsmr"] and "--beta" not in by_method["dazle"]
