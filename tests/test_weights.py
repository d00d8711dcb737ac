"""Weights files as training scripts leave them: the trunk is taken, the head is not, another trunk is refused."""

import argparse
import hashlib
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
    wrong = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}  # what is not to be taken
    lightning = {f"model.backbone.{k}": v for k, v in headless.items()} | {"model.head.weight": torch.zeros(2, 2)}
    options = argparse.Namespace(lr=0.1)
    return {
        "another head": ("w.pth", {**headless, "fc.0.weight": torch.zeros(40, 512), "fc.2.bias": torch.zeros(40)}),
        "200 classes": ("w.pth", {**state, "fc.weight": torch.zeros(200, 512), "fc.bias": torch.zeros(200)}),
        "DataParallel of a compiled one": ("w.pt", {f"module._orig_mod.{k}": v for k, v in state.items()}),
        "torchvision's": ("m.pth", {"model": state, "optimizer": {"state": {}}, "epoch": 1, "args": options}),
        "torchvision's EMA": ("m.pth", {"model": wrong, "model_ema": parallel | {"n_averaged": torch.tensor(5)}}),
        "DINO's": ("m.pth", {"student": wrong, "teacher": state}),
        "timm's EMA": ("m.pth.tar", {"state_dict": wrong, "state_dict_ema": state}),
        "Lightning": ("m.ckpt", {"state_dict": lightning, "global_step": 1}),
    }


@pytest.mark.parametrize("form", forms({}))
def test_a_trunk_is_taken_however_it_is_wrapped(form: str, state: dict, tmp_path: Path) -> None:
    name, content = forms(state)[form]
    torch.save(content, tmp_path / name)
    got = build_backbone("resnet18", tmp_path / name).network.state_dict()
    assert all(torch.equal(got[k], v) for k, v in state.items() if not k.startswith("fc."))


def test_another_trunk_is_refused_with_its_first_keys(state: dict, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    with pytest.raises(UserError, match=r"\d+ tensors are missing, .*\(layer1.2.bn1.bias, .*--backbone"):
        build_backbone("resnet34", path)
    save_file({**state, "more": torch.zeros(1), "conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    with pytest.raises(UserError, match=r"2 tensors .*\(conv1.weight, more\)"):
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
    assert "state_dict()" in str(said.value) and "weights_only" not in str(said.value)
    assert not Path("CODE_RAN").exists()


def test_weights_of_torchvision_are_downloaded_once_and_their_hash_compared(state, tmp_path: Path, monkeypatch) -> None:
    """By torch.hub, here from a file beside."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    torch.save(state, tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()[:8]
    there, other = tmp_path / f"w-{digest}.pth", tmp_path / "w-00000000.pth"
    there.write_bytes((tmp_path / "w.pth").read_bytes())
    (tmp_path / "w.pth").rename(other)
    cached = fetch_cached(there.as_uri())
    assert cached.read_bytes() == there.read_bytes()
    there.unlink()
    assert fetch_cached(there.as_uri()) == cached
    for address, said in ((other.as_uri(), "invalid hash value"), ("file:/nowhere/x-1.pth", "No such file")):
        with pytest.raises(UserError, match=rf"could not be made .*{said}.*Offline\? Download its {address}"):
            fetch_cached(address)
