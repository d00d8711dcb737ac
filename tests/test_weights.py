"""Weights files as training scripts leave them: the trunk is taken, the head is not, another trunk is refused."""

from __future__ import annotations

import argparse
import hashlib
import logging
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from core.features.backbones import build_backbone
from core.features.weights import fetch_cached
from core.files.errors import UserError


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return torchvision.models.resnet18().state_dict()


def forms(state: dict[str, torch.Tensor]) -> dict[str, tuple[str, object]]:
    headless = {k: v for k, v in state.items() if not k.startswith("fc.")}
    parallel = {f"module.{k}": v for k, v in state.items()}
    own = {**headless, "fc.0.weight": torch.zeros(40, 512), "fc.2.bias": torch.zeros(40)}
    wrong = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}  # what is not to be taken
    lightning = {f"model.backbone.{k}": v for k, v in headless.items()} | {"model.head.weight": torch.zeros(2, 2)}
    options = argparse.Namespace(lr=0.1)
    return {
        "plain": ("w.pth", state),
        "no head": ("w.pth", headless),
        "another head": ("w.pth", own),
        "200 classes": ("w.pth", {**state, "fc.weight": torch.zeros(200, 512), "fc.bias": torch.zeros(200)}),
        "DataParallel": ("w.pth", parallel),
        "DataParallel of a compiled one": ("w.pt", {f"module._orig_mod.{k}": v for k, v in state.items()}),
        "imagenet example": ("m.pth.tar", {"epoch": 3, "arch": "resnet18", "state_dict": parallel, "best": 0.5}),
        "torchvision's": ("m.pth", {"model": state, "optimizer": {"state": {}}, "epoch": 1, "args": options}),
        "torchvision's EMA": ("m.pth", {"model": wrong, "model_ema": parallel | {"n_averaged": torch.tensor(5)}}),
        "timm's EMA": ("m.pth.tar", {"state_dict": wrong, "state_dict_ema": state}),
        "model_state_dict": ("m.pt", {"model_state_dict": state, "optimizer_state_dict": {}}),
        "Lightning": ("m.ckpt", {"state_dict": lightning, "global_step": 1}),
    }


@pytest.mark.parametrize("form", forms({}))
def test_a_trunk_is_taken_however_it_is_wrapped(
    form: str, state: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, content = forms(state)[form]
    torch.save(content, tmp_path / name)
    caplog.set_level(logging.INFO)
    network = build_backbone("resnet18", tmp_path / name).network
    got = network.state_dict()
    assert all(torch.equal(got[k], v) for k, v in state.items() if not k.startswith("fc."))
    if form == "torchvision's EMA":
        assert "the weights under 'model_ema' are taken" in caplog.text


def test_another_trunk_is_refused_with_its_first_keys(state: dict, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    with pytest.raises(UserError, match=r"\d+ missing \(layer1.2.bn1.bias"):
        build_backbone("resnet34", path)
    save_file(torchvision.models.resnet34().state_dict(), path)
    with pytest.raises(UserError, match=r"\d+ unknown \(layer1.2.bn1.bias, .*--backbone"):
        build_backbone("resnet18", path)
    save_file({**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    with pytest.raises(UserError, match=r"1 of another shape \(conv1.weight\)"):
        build_backbone("resnet18", path)


class Runs:
    def __reduce__(self) -> tuple:
        return open, ("CODE_RAN", "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_with_code_run_nothing_and_are_refused_in_our_words(tmp_path: Path, monkeypatch, zipped: bool) -> None:
    """PyTorch's own text says to load the file with weights_only=False, which runs what the file likes."""
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": Runs()}, "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"w\.pth is not a readable weights file") as said:
        build_backbone("resnet18", "w.pth")
    assert "weights_only" not in str(said.value) and not Path("CODE_RAN").exists()


def test_weights_that_are_not_plain_finite_numbers_are_refused(state: dict, tmp_path: Path) -> None:
    path, bias = tmp_path / "w.pth", state["layer4.1.bn2.bias"]
    for odd in (bias.to_sparse(), bias.to("meta")):
        torch.save({**state, "layer4.1.bn2.bias": odd}, path)
        with pytest.raises(UserError, match="sparse"):
            build_backbone("resnet18", path)
    torch.save({**state, "layer4.1.bn2.bias": bias.double() + 1e300}, path)
    with pytest.raises(UserError, match="infinity in layer4.1.bn2.bias"):
        build_backbone("resnet18", path)


def test_what_lies_in_torchs_cache_is_compared_with_the_hash_in_its_name(
    state: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    for content in (b"", b"<!DOCTYPE html><html></html>", b"x" * 99):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is not what its name says.*rm "):
            build_backbone("resnet18")


def test_a_right_file_in_torchs_cache_is_taken(state: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "w.pth"
    torch.save(state, path)
    url = f"https://example.org/w-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    place = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    place.parent.mkdir(parents=True)
    path.rename(place)
    assert fetch_cached(url) == place
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(UserError, match=r"not be fetched \(no network\)\. Download https://example.org/v-.* elsewhere"):
        fetch_cached("https://example.org/v-00000000.pth")
