"""README's commands, literally: run here on drawn photographs, or matched to the test or workflow that runs them."""

import contextlib
import glob
import io
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from core.demo.drawing import draw_creature
from core.features import trunks
from tests.helpers import ROOT, drawn_folder, run_here

TEXT = (ROOT / "README.md").read_text("utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if not kind
    for line in block.splitlines()
    if re.match(r"(python|pip|make|vsmr)\b", line)
]
OWN = [line for line in COMMANDS if "my_birds" in line]
# Where a command is run that downloads, installs or takes minutes; and what it answers in an empty folder, once it has
# understood every flag. A new command of README must be run here or stand here.
WORKFLOW = ".github/workflows/tests.yml"
DRIVER, LACKS = "tests/test_drivers.py::test_a_driver_runs_to_the_end", "no feature file at"
ELSEWHERE: dict[str, tuple[str, str]] = {
    "make demo": (WORKFLOW, ""),
    "make test": (WORKFLOW, ""),
    "pip install -r requirements.txt && pip install -e .": (WORKFLOW, ""),
    "python data/get_data.py CUB": ("tests/test_download.py::test_get_from_archives_and_again", "CUB_200_2011.tgz"),
    "python data/get_data.py xlsa17": ("tests/test_download.py::test_get_from_archives_and_again", "xlsa17.zip"),
    "python extract_feature/extract_attribute_w2v_CUB.py": ("tests/conftest.py::made", "CUB"),
    "python extract_feature/extract_feature_map_ResNet_101_CUB.py": ("tests/conftest.py::made", "xlsa17/data/CUB"),
    "python CUB50_ours.py --seeds 5": (DRIVER, LACKS),
    'pip install -e ".[birds]"': (WORKFLOW, ""),
    "vsmr predict birds photo.jpg": (WORKFLOW, ""),
    "vsmr predict birds photo.jpg --explain page": (WORKFLOW, ""),
    "python reproduce_tables.py --datasets CUB --jobs 2": (
        "tests/test_reproduce.py::test_everything_runs_once_and_the_tables_say_what_is_what",
        LACKS,
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """README's my_birds, photo.jpg, folder/ and more.csv, drawn."""
    place = tmp_path_factory.mktemp("readme")
    signatures, more = drawn_folder(place / "my_birds")
    (place / "more.csv").write_text(more)
    (place / "folder").mkdir()
    draw_creature(signatures[5], np.random.default_rng(9)).save(place / "folder" / "a.jpg")
    shutil.copy(place / "folder" / "a.jpg", place / "photo.jpg")
    return place


@pytest.fixture
def small_network(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ResNet-18 of random weights stands for ResNet-101 with ImageNet's, which are a download of 170 MB."""
    real, weights = torchvision.models.get_model, place / "weights.safetensors"
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, **options: real("resnet18", **options))
    if not weights.exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            save_file(real("resnet18", weights=None).state_dict(), weights)
    monkeypatch.setattr(trunks, "fetch_cached", lambda url: weights)


def words_of(line: str, place: Path) -> list[str]:
    """A command's words as a shell hands them over: wildcards are expanded."""
    with contextlib.chdir(place):
        return [name for word in shlex.split(line) for name in (sorted(glob.glob(word)) or [word])]


def test_ones_own_photographs_from_the_folder_to_the_answers(place: Path, small_network: None) -> None:
    printed = {}
    for line in OWN:
        python, script, *arguments = words_of(line, place)
        assert python == "python"
        code, out, err = run_here(place, script, *arguments)
        assert code == 0, (line, err)
        printed[line] = out + err
    assert "| **vsmr**" in printed[OWN[0]]
    table = pd.read_csv(place / "predictions.csv")
    assert table["image"].tolist() == ["photo.jpg", "folder/a.jpg"] and table["class_5"].notna().all()
    assert (place / "page" / "index.html").is_file()
    assert "added: creature 6 (description)" in printed[next(line for line in OWN if "more.csv" in line)]

    (block,) = [block for kind, block in BLOCKS if kind == "python"]
    out = io.StringIO()
    with contextlib.chdir(place), contextlib.redirect_stdout(out):
        exec(block, {})
    name, shape = out.getvalue().splitlines()
    attributes = len((place / "more.csv").read_text().splitlines()[0].split(",")) - 1
    assert name.startswith(f"{table['class'][0]} ")
    assert shape == f"torch.Size([1, 49, {attributes}])"


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_run_somewhere(tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if line in OWN:
        return  # above
    assert line in ELSEWHERE, f"nothing runs README's {line!r}: run it in this file or name what does"
    where, answer = ELSEWHERE[line]
    file, _, name = where.partition("::")
    text = (ROOT / file).read_text("utf-8")
    assert (f"def {name}(" if name else line) in text
    if not name:
        return
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    _, script, *arguments = shlex.split(line)
    code, out, err = run_here(tmp_path, script, *arguments)
    assert code == 2 and answer in err, (out, err)


def test_no_command_is_listed_that_readme_no_longer_has() -> None:
    assert ELSEWHERE.keys() <= set(COMMANDS)


def test_it_is_short_its_pictures_and_links_are_there_and_its_terms_are_explained() -> None:
    assert len(TEXT.splitlines()) <= 120
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    files = re.findall(r"`((?:[\w.]+/)*\w[\w.-]*\.(?:md|py|cff|txt))`", TEXT)
    assert len(links) > 15 and not [name for name in (*links, *files) if not (ROOT / name).exists()]
    explained = TEXT.index("In percent, means over classes: **T1**")
    for term in ("T1", "U", "S", "H", "AUSUC"):
        first = re.search(rf"(?<![\w`/-]){term}(?![\w/-])", TEXT)
        assert first and first.start() > explained and TEXT[first.start() - 2 : first.end() + 2] == f"**{term}**", term


def test_its_table_is_that_of_the_results() -> None:
    table = TEXT[TEXT.index("<!-- results -->") : TEXT.index("<!-- /results -->")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if " ± " in line]
    assert len(rows) >= 4
    measured = [line for line in RESULTS.splitlines() if line.startswith("| ")]
    for _, method, t1, h, ausuc, ahead in rows:
        name = method.split("`")[1]
        own = [
            line
            for line in measured
            if re.match(rf"\| (\*\*)?{re.escape(name)}(\*\*)? \|", line) and f" {t1} |" in line
        ]
        assert any(f"| {h} | {ausuc} |" in line for line in own), (name, t1, h, ausuc)
        if ahead:
            assert any(line.startswith(f"| {name} (") and line.endswith(f" {ahead} |") for line in measured), ahead
        if seeds := re.search(r"\((\d) seeds\)", method):
            assert any(f"| {seeds[1]} |" in line for line in own)
