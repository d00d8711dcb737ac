"""Extraction: backbones, every kind of image file, bad images, kill -9, and the real pipeline on a tiny data set."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

from core.datasets.registry import DEMO, OWN
from core.features.backbones import Backbone, build_backbone
from core.features.devices import resolve_device
from core.features.extraction import extract
from core.features.feature_file import FeatureFile
from core.features.images import load_image
from core.features.settings import ExtractionConfig
from core.files.errors import UserError
from core.files.progress import Progress
from tests.helpers import forked
from tests.helpers_features import TINY, make_data

KILLS = int(os.environ.get("KILLS", "3"))  # 30 by night


def torchvisions(path: Path, size: int, resize: int | None = None) -> np.ndarray:
    steps = transforms.Compose([transforms.Resize(resize or size), transforms.CenterCrop(size)])
    return np.asarray(steps(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_is_read_as_torchvision_does(tmp_path: Path, mode: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    noise.convert(mode).save(path)
    for resize in (None, 40):
        got = load_image(path, 32, resize)
        assert got.shape == (32, 32, 3) and got.dtype == np.uint8
        np.testing.assert_array_equal(got, torchvisions(path, 32, resize))


def test_pixels_are_as_the_backbone_wants_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mean, std, given = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), []
    network = build_backbone(TINY.backbone, TINY.weights, input_size=64)
    network.transform = replace(network.transform, resize=80, interpolation="bicubic", mean=mean, std=std)
    network.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0][0].clone()))
    monkeypatch.setattr("core.features.extraction.build_backbone", lambda *_, **__: network)
    extract(DEMO, data_root=make_data(tmp_path), out=tmp_path / "f.hdf5", config=TINY)
    pixels = load_image(tmp_path / "DEMO/DEMO_creatures/images/000.png", 64, 80, "bicubic")
    np.testing.assert_allclose(given[0].permute(1, 2, 0), (pixels / 255 - mean) / std, atol=1e-5)


def test_killed_and_restarted_equals_one_run(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 150)
    clean = extract(DEMO, data_root=data, out=tmp_path / "clean.hdf5", config=TINY)
    out = tmp_path / "f.hdf5"
    work = partial(extract, DEMO, data_root=data, out=out, config=TINY)

    def written() -> list[tuple[int, int]]:
        return [(p.stat().st_size, p.stat().st_mtime_ns) for p in tmp_path.glob("f.hdf5.rows-*") if p.exists()]

    rng = np.random.default_rng(0)
    killed = 0
    for kill in range(KILLS):
        before = written()
        process = forked(work)
        with suppress(FileNotFoundError):  # renamed just now
            while process.is_alive() and written() == before:
                time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.06) * (kill > 0))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if out.exists():  # it was quicker: once more from the start
            assert out.read_bytes() == clean.read_bytes()
            out.unlink()
    assert killed
    (tmp_path / ".f.hdf5.rows-0-150.json.1.tmp").touch()  # as a kill between writing and renaming leaves it
    assert extract(DEMO, data_root=data, out=out, config=TINY) == out
    assert out.read_bytes() == clean.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.hdf5", "data", "f.hdf5"]


def test_by_default_the_data_root_holds_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_data(tmp_path / "mine")
    made = extract(DEMO, data_root=data, config=replace(TINY, input_size=96, pool=5))
    assert made == data / "DEMO" / "feature_map_squeezenet1_1_96px_pool5_DEMO.hdf5"
    with FeatureFile(made) as file:
        assert file.shape == (36, 512, 1)
        said = {k: file.provenance[k] for k in ("pool", "flip", "input_size", "layer", "pretraining_saw_unseen")}
    assert said == {"pool": 5, "flip": "no", "input_size": 96, "layer": "features", "pretraining_saw_unseen": "no"}
    with pytest.raises(UserError, match="^--pretraining-saw-unseen "):
        ExtractionConfig(pretraining_saw_unseen="no")


def test_devices_by_any_name() -> None:
    assert resolve_device("CPU") == resolve_device(" cpu ") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    for name in ("foo", "cuda:x", "gpu:1", "cuda:99", ""):
        with pytest.raises(UserError, match="sees no such device; choose auto, cpu"):
            resolve_device(name)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_features_are_those_of_a_plain_loop_to_the_bit(tmp_path: Path, name: str) -> None:
    """Of the same arithmetic: one batch after the other, the whole network, a hook on the last stage."""
    data = make_data(tmp_path / "data", 24)
    config = ExtractionConfig(backbone=name, weights="random", device="cpu", batch_size=4, store="float32")
    out = extract(DEMO, data_root=data, out=tmp_path / "f.hdf5", config=config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.get_model(name).eval().to(memory_format=torch.channels_last)
    kept: list[torch.Tensor] = []
    stage = net.layer4 if name == "resnet18" else net.features
    stage.register_forward_hook(lambda module, inputs, output: kept.append(output))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    paths = sorted((data / "DEMO" / "DEMO_creatures" / "images").iterdir())
    for start in range(0, 24, 4):
        pixels = torch.stack([torch.tensor(torchvisions(p, 224)) for p in paths[start : start + 4]])
        with torch.inference_mode():
            net(pixels.permute(0, 3, 1, 2).float() * (1 / (255 * std)) + -mean / std)
    with FeatureFile(out) as file:
        got = file.read(np.arange(24))
    np.testing.assert_array_equal(got, torch.cat(kept).flatten(2).numpy())


def test_what_makes_no_other_features_refuses_no_finished_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of PyTorch, another batch size, a renamed weights file: finished, begun, and in shards."""
    data, out = make_data(tmp_path / "data"), tmp_path / "f.hdf5"
    for name in ("a.safetensors", "b.safetensors"):
        save_file(build_backbone("squeezenet1_1", "random").network.state_dict(), tmp_path / name)
    begun = replace(TINY, weights=str(tmp_path / "a.safetensors"))
    clean = extract(DEMO, data_root=data, out=tmp_path / "clean.hdf5", config=begun).read_bytes()
    extract(DEMO, data_root=data, out=out, config=begun, shard=(0, 2))
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    now = replace(begun, weights=str(tmp_path / "b.safetensors"), batch_size=8)
    assert extract(DEMO, data_root=data, out=out, config=now) == out
    assert extract(DEMO, data_root=data, out=tmp_path / "clean.hdf5", config=now).read_bytes() == clean
    with FeatureFile(out) as file:
        assert file.provenance["torch_version"] == "9.9.9"
    for other in (replace(now, pool=3), replace(now, store="float32"), replace(now, pretraining_saw_unseen="yes")):
        with pytest.raises(UserError, match="is of other settings or images") as caught:
            extract(DEMO, data_root=data, out=out, config=other)
        assert "rm " not in str(caught.value)


def test_features_are_taken_over_from_files_of_the_same_settings_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng, out = np.random.default_rng(0), tmp_path / "OWN"
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    caplog.set_level("INFO")
    made = {}
    for name, config in (("one", TINY), ("other", replace(TINY, pool=3)), ("again", TINY)):
        caplog.clear()
        with FeatureFile(extract(OWN, data_root=tmp_path, out=out / f"{name}.hdf5", config=config)) as file:
            made[name] = file.digest()
        assert ("4 of 4 images are as in an earlier file" in caplog.text) == (name == "again")
    assert made["one"] == made["again"] != made["other"]


def test_texts_of_the_classes_are_stored_beside_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, text = make_data(tmp_path / "data"), np.random.default_rng(0).random((6, 2, 4)).astype(np.float32)
    monkeypatch.setattr(Backbone, "class_text", lambda self, metadata: text[: len(metadata.class_names)])
    for index in (1, 0):
        made = extract(DEMO, data_root=data, out=tmp_path / "f.hdf5", config=TINY, shard=(index, 2))
    with FeatureFile(made) as file:
        np.testing.assert_array_equal(file.class_text, text)
    text += 1  # new prompts
    with pytest.raises(UserError, match="class_text: .* there"):
        extract(DEMO, data_root=data, out=made, config=TINY)


def test_a_redirected_log_has_a_line_for_each_tenth(caplog: pytest.LogCaptureFixture, capsys) -> None:
    caplog.set_level("INFO")
    with Progress(1000, "f.hdf5", "image") as bar:
        for _ in range(1000):
            bar.update(1)
    assert [r.message.split(",")[0] for r in caplog.records] == [f"f.hdf5: {n}00 of 1000 images" for n in range(1, 11)]
    assert capsys.readouterr().err == ""
