"""The pages hang together: mkdocs builds them strictly, the data sets' pages say the same in the same places."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import core
from core.datasets.download import SOURCES
from core.datasets.registry import DATASETS
from tests.helpers import ROOT


def test_the_pages_build_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    pages = {p.stem for p in (ROOT / "docs").glob("*.md")} - {"README"}
    assert pages <= {p.parent.name for p in (tmp_path / "site").rglob("index.html")}


def test_the_data_sets_pages_have_one_shape_and_their_counts_archives_layout_and_commands() -> None:
    ends = set()
    for name in ("AWA2", "CUB", "SUN"):
        text, counts = (ROOT / "data" / f"{name}.md").read_text("utf-8"), DATASETS[name].counts
        assert counts is not None
        first = " ".join(text.split("\n\n")[1].split())
        assert str(counts.images) in first and f"{counts.attributes} attributes" in first
        assert re.search(rf"\b{counts.seen + counts.unseen} ", first)
        assert all(f"`{archive.url.rsplit('/', 1)[1]}`" in first for archive in SOURCES[name])
        assert all((archive.md5 or "No checksum is published") in first for archive in SOURCES[name])
        assert "into `data/archives/` first" in text
        assert f"data/xlsa17/data/{name}/{{res101,att_splits}}.mat" in text
        scripts = re.findall(r"`python (extract_feature/\S+\.py)`", text)
        assert len(scripts) == 2 and all(name in script and (ROOT / script).is_file() for script in scripts)
        assert re.findall(r"^- (\w+):", text, re.MULTILINE) == ["Page", "Terms", "Citation"]
        assert f"python data/get_data.py {name}\npython data/get_data.py xlsa17\n" in text
        ends.add(text.strip().split("\n\n")[-1])
    assert len(ends) == 1, "what was not checked is said in the same words"


def test_one_version_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert core.__version__ == version
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)[1] == version
    assert re.search(r"^## (\d\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)[1] == version


def bounds(lines: list[str]) -> dict[str, str]:
    """Package and lowest version of each requirement."""
    plain = [re.sub(r"\s|#.*|;.*|\[.*\]", "", line) for line in lines]
    return dict(re.split(">=|==", line) for line in plain if line and not line.startswith("-"))


def test_lowest_versions_are_the_same_wherever_they_stand() -> None:
    """requirements.txt and the extras; requirements-dev.txt repeats the extras; constraints-lowest.txt pins all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    needed = bounds((ROOT / "requirements.txt").read_text("utf-8").splitlines())
    optional = project["project"]["optional-dependencies"]  # [export] needs a newer torch, so it is tested apart
    extras = bounds([line for name, lines in optional.items() if name != "export" for line in lines])
    development = bounds((ROOT / "requirements-dev.txt").read_text("utf-8").splitlines())
    pinned = bounds((ROOT / "constraints-lowest.txt").read_text("utf-8").splitlines())
    assert {name: extras[name] for name in extras if name in development}.items() <= development.items()
    assert pinned == needed | {name: extras[name] for name in extras if name in development}
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    made_with = bounds((ROOT / "constraints.txt").read_text("utf-8").splitlines())
    assert needed.keys() | (extras.keys() & development.keys()) <= made_with.keys()
