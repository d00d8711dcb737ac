"""What a user sees of every command: help, flags that do not exist, and data that do not fit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.commands.train import main
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
            main("CUB", "CUB", [*argv, "--help"])
        return capsys.readouterr().out

    dazle, vsmr, staged = shown("--method", "dazle"), shown(), shown("--method=vsmr-staged", "--split", "cub50")
    for text in (dazle, vsmr, staged):
        assert all(flag in text for flag in ("--method", "--select", "--split"))
    assert "learning rate of RMSprop (0.0001; above 0)" in dazle and "--hubness" not in dazle
    assert "--hubness" in vsmr and "--lambda-cal" not in vsmr
    assert "chosen on validation (0.45; at" in " ".join(staged.split())  # of the data set that --split names
