"""Extraction: backbones, every kind of image file, bad images, kill -9, and the real pipeline on a tiny data set."""

from __future__ import annotations

import os
import pickle
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

from core.commands.extract import main
from core.commands.parser import DEVICE
from core.datasets.registry import CUB, DEMO
from core.datasets.xlsa17 import read_metadata
from core.features.backbones import Backbone, build_backbone, file_form
from core.features.devices import NAMES, resolve_device
from core.features.extraction import extract
from core.features.feature_file import FeatureFile
from core.features.images import Normaliser, load_image
from core.features.settings import ExtractionConfig
from core.features.shards import Shard
from core.files.errors import UserError
from core.files.progress import Progress
from tests.helpers import forked
from tests.helpers_features import TINY, make_data

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
KILLS = int(os.environ.get("KILLS", "3"))  # 30 by night


def torchvisions(path: Path, size: int) -> np.ndarray:
    steps = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    return np.asarray(steps(Image.open(path).convert("RGB")))


def test_layer4_is_torchvisions() -> None:
    backbone = build_backbone("resnet101", "random")
    assert (backbone.layer, backbone.shape, file_form("resnet101")) == ("layer4", (2048, 7, 7), "ResNet_101")
    net = torchvision.models.resnet101(weights=None).eval()
    net.load_state_dict(backbone.network.state_dict())
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        expected = net.layer4(net.layer3(net.layer2(net.layer1(x))))
    assert torch.equal(backbone(images), expected)
    assert not backbone.train().training and not any(p.requires_grad for p in backbone.parameters())


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = build_backbone("squeezenet1_1", "random").network.state_dict()
    save_file(state, path)
    assert build_backbone("squeezenet1_1", path).weights == "w.safetensors"
    state["stranger"] = state.pop("features.0.bias")
    save_file(state, path)
    with pytest.raises(UserError, match=r"1 missing \(features.0.bias\); 1 unknown \(stranger\)"):
        build_backbone("squeezenet1_1", path)
    path.write_bytes(b"junk")
    with pytest.raises(UserError, match="not a readable weights file"):
        build_backbone("squeezenet1_1", path)
    (tmp_path / "w.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")  # a hostile pickle
    with pytest.raises(UserError, match="not a readable weights file"):
        build_backbone("squeezenet1_1", tmp_path / "w.pth")
    for name, weights in (("resnet1001", "random"), ("squeezenet1_1", "IMAGENET9"), ("squeezenet1_1", "no.pth")):
        with pytest.raises(UserError):
            build_backbone(name, weights)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_is_read_as_torchvision_does(tmp_path: Path, mode: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    noise.convert(mode).save(path)
    got = load_image(path, 32)
    assert got.shape == (32, 32, 3) and got.dtype == np.uint8
    np.testing.assert_array_equal(got, torchvisions(path, 32))


def test_palette_transparency_exif_and_16_bit(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    noise.convert("P").save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert load_image(tmp_path / "a.png", 32).shape == (32, 32, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.save(tmp_path / "e.jpg", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "e.jpg", 32), torchvisions(tmp_path / "e.jpg", 32))
    grey = np.full((40, 40), 32896, dtype=np.uint16)  # 128 * 257
    for name in ("g.png", "g.tif"):
        Image.fromarray(grey).save(tmp_path / name)
        assert (load_image(tmp_path / name, 32) == 128).all()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_and_bomb_images_are_value_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(path)
    good = path.read_bytes()
    for damaged in (good[: len(good) // 2], b"", b"<html>not found</html>"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError):
            load_image(path, 32)
    path.write_bytes(good)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    with pytest.raises(ValueError, match="8100|90x90"):
        load_image(path, 32)
    Image.new("RGB", (1, 3000)).save(path)
    with pytest.raises(ValueError, match="too narrow"):
        load_image(path, 32)


def test_bad_images_are_listed_and_a_rerun_continues(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    clean = extract(DEMO, data_root=data, out=tmp_path / "clean.hdf5", config=TINY)
    images = data / "DEMO" / "DEMO_creatures" / "images"
    kept = {name: (images / name).read_bytes() for name in ("005.png", "020.png")}
    (images / "005.png").write_bytes(kept["005.png"][:300])
    (images / "020.png").unlink()
    out = tmp_path / "f.hdf5"
    with pytest.raises(UserError, match="2 of 36 images") as caught:
        extract(DEMO, data_root=data, out=out, config=TINY)
    assert "005.png" in str(caught.value) and "020.png" in str(caught.value) and not out.exists()
    report = tmp_path / "f.hdf5.rows-0-36.bad_images.txt"
    assert len(report.read_text().splitlines()) == 2
    for name, content in kept.items():
        (images / name).write_bytes(content)
    assert extract(DEMO, data_root=data, out=out, config=TINY) == out
    assert out.read_bytes() == clean.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.hdf5", "data", "f.hdf5"]
    assert extract(DEMO, data_root=data, out=out, config=TINY) == out  # already there
    with pytest.raises(UserError, match="other settings.*input_size"):
        extract(DEMO, data_root=data, out=out, config=replace(TINY, input_size=96))


def test_no_image_at_all_is_said_at_once(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    for path in (data / "DEMO" / "DEMO_creatures" / "images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="none of the 36 images"):
        extract(DEMO, data_root=data, out=tmp_path / "f.hdf5", config=TINY)


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
    assert extract(DEMO, data_root=data, out=out, config=TINY) == out
    assert out.read_bytes() == clean.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.hdf5", "data", "f.hdf5"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs real photographs in ../shared/data")
def test_mobilenet_on_real_photographs(tmp_path: Path) -> None:
    weights = SHARED / "weights" / "mobilenet_v2_imagenet1k.safetensors"
    data, out = SHARED / "mini_cub", tmp_path / "f.hdf5"
    config = ExtractionConfig(backbone="mobilenet_v2", weights=str(weights), device="cpu", batch_size=8)
    partial = extract(CUB, data_root=data, out=out, config=config, limit=8)
    assert partial.suffix == ".npy" and not out.exists()
    files = read_metadata(data, CUB).image_files[:8]
    steps = transforms.Compose(
        [
            transforms.Resize(224),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    folder = data / "CUB" / "CUB_200_2011"
    paths = [folder / f if (folder / f).is_file() else folder / "images" / f for f in files]
    x = torch.stack([steps(Image.open(p).convert("RGB")) for p in paths])
    backbone = build_backbone("mobilenet_v2", weights)
    assert backbone.layer == "features"
    expected = backbone(x).numpy()
    got = np.load(partial)["maps"][:8].astype(np.float32)
    np.testing.assert_allclose(got, expected, atol=5e-3, rtol=2e-3)


def test_to_metadata_of_another_data_set_is_refused(tmp_path: Path) -> None:
    out = extract(DEMO, data_root=make_data(tmp_path / "data"), out=tmp_path / "f.hdf5", config=TINY)
    with FeatureFile(out) as file:
        assert file.shape[0] == 36 and os.path.samefile(file.path, out)
        assert len(file.to_metadata(DEMO).class_names) == 6
        with pytest.raises(UserError, match="features of DEMO"):
            file.to_metadata(replace(DEMO, name="OTHER", source="OTHER"))


def test_a_limit_is_what_the_progress_counts_and_changes_no_byte(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, out = make_data(tmp_path / "data"), tmp_path / "f.hdf5"
    clean = extract(DEMO, data_root=data, out=tmp_path / "clean.hdf5", config=TINY)
    caplog.set_level("INFO")
    caplog.clear()
    assert extract(DEMO, data_root=data, out=out, config=TINY, limit=6).suffix == ".npy"  # a batch and a half
    assert "6 of 6 images" in caplog.text and "of 36" not in caplog.text
    assert extract(DEMO, data_root=data, out=out, config=TINY) == out
    assert out.read_bytes() == clean.read_bytes()


def test_a_dry_run_says_rows_bytes_and_time_and_writes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_data(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    flags = ["--data-root", str(data), "--backbone", "squeezenet1_1", "--weights", "random", "--device", "CPU"]
    caplog.set_level("INFO")
    assert main("DEMO", None, [*flags, "--input-size", "64", "--batch-size", "4", "--dry-run"]) == 0
    assert "36 rows, 332 kB" in caplog.text and "images/s" in caplog.text
    assert "layer features: 512 x 3x3 an image at 64 pixels" in caplog.text
    assert sorted(tmp_path.rglob("*")) == before


def test_by_default_the_data_root_holds_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_data(tmp_path / "mine")
    made = extract(DEMO, data_root=data, config=replace(TINY, input_size=96, pool=5, flip=True))
    assert made == data / "DEMO" / "feature_map_squeezenet1_1_96px_pool5_flip_DEMO.hdf5"
    with FeatureFile(made) as file:
        assert file.shape == (36, 512, 1)
        said = {k: file.provenance[k] for k in ("pool", "flip", "input_size", "layer", "pretraining_saw_unseen")}
    assert said == {
        "pool": 5, "flip": "average of both views", "input_size": 96, "layer": "features",
        "pretraining_saw_unseen": "no",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "value"),
    [("batch_size", 0), ("batch_size", -5), ("workers", 0), ("input_size", 8), ("pool", 0), ("dtype", "int8"),
     ("store", "float64"), ("pretraining_saw_unseen", "no")],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_their_flag(flag: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^--{flag.replace('_', '-')} "):
        ExtractionConfig(**{flag: value})


def test_flags_are_not_abbreviated(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unrecognized arguments: --batch"):
        main("DEMO", None, ["--batch", "4"])
    with pytest.raises(UserError, match="--limit: '-1' is not a whole number of at least 1"):
        main("DEMO", None, ["--limit", "-1"])


def test_devices_by_any_name() -> None:
    assert resolve_device("CPU") == resolve_device(" cpu ") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    for name in ("foo", "cuda:x", "gpu:1", "cuda:-1", ""):
        with pytest.raises(UserError, match="choose auto, cpu"):
            resolve_device(name)
    if not torch.cuda.is_available():
        for name in ("cuda", "CUDA:1", "gpu", "mps"):
            with pytest.raises(UserError, match="sees no .*use --device cpu"):
                resolve_device(name)
    with pytest.raises(UserError, match=f"^--device '': choose {NAMES}$"):
        resolve_device("")


def test_every_command_names_the_same_devices() -> None:
    folder = ROOT / "core" / "commands"
    helps = [line for path in folder.glob("*.py") for line in path.read_text().splitlines() if '"--device"' in line]
    given = [line for line in helps if "help=" in line]
    assert len(given) == 4 and all("help=DEVICE" in line for line in given) and DEVICE.startswith(NAMES)


def test_too_large_a_batch_is_told_from_other_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = make_data(tmp_path / "data"), tmp_path / "f.hdf5"
    clean = extract(DEMO, data_root=data, out=tmp_path / "clean.hdf5", config=TINY)
    real = Normaliser.__call__

    def full(self: Normaliser, pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > 4:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return real(self, pixels)

    monkeypatch.setattr(Normaliser, "__call__", full)
    with pytest.raises(UserError, match=r"--image-batch-size 8\): .* --image-batch-size 4 or --dtype bfloat16"):
        extract(DEMO, data_root=data, out=out, config=replace(TINY, batch_size=8))
    assert (
        extract(DEMO, data_root=data, out=out, config=TINY) == out
    )  # the batch size is recorded: nothing is in the way
    assert out.read_bytes() == clean.read_bytes()
    out.unlink()
    monkeypatch.setattr(Normaliser, "__call__", lambda self, pixels: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        extract(DEMO, data_root=data, out=out, config=TINY)


def test_upper_case_suffixes_are_found(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    clean = extract(DEMO, data_root=data, out=tmp_path / "clean.hdf5", config=TINY)
    for path in (data / "DEMO" / "DEMO_creatures" / "images").iterdir():
        path.rename(path.with_suffix(".PNG"))
    out = extract(DEMO, data_root=data, out=tmp_path / "f.hdf5", config=TINY)
    assert out.read_bytes() == clean.read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>gone</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"\0\0\0\x20ftypavif", "an AVIF image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (b"", "empty"),
        (b"\xff\xd8\xff", "no image, or a damaged one"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=f"^it is {said}.*what is read: JPEG") as caught:
        load_image(tmp_path / "a.jpg", 32)
    assert "0x" not in str(caught.value)


def test_another_transform_is_applied_as_torchvision_does(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    noise.save(tmp_path / "a.png")
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = transforms.Compose([transforms.Resize(40, bicubic), transforms.CenterCrop(32)])
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", 32, 40, "bicubic"), np.asarray(steps(noise)))


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
    extract(DEMO, data_root=data, out=out, config=begun, limit=16)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    now = replace(begun, weights=str(tmp_path / "b.safetensors"), batch_size=8)
    assert extract(DEMO, data_root=data, out=out, config=now) == out
    assert extract(DEMO, data_root=data, out=tmp_path / "clean.hdf5", config=now).read_bytes() == clean
    with FeatureFile(out) as file:
        assert file.provenance["torch_version"] == "9.9.9"
    for other in (replace(now, flip=True), replace(now, store="float32"), replace(now, pretraining_saw_unseen="yes")):
        with pytest.raises(UserError, match="exists and was made with other settings") as caught:
            extract(DEMO, data_root=data, out=out, config=other)
        assert "rm " not in str(caught.value)


@pytest.mark.parametrize("limit", [[], ["--limit", "8"]])
def test_word_vectors_made_meanwhile_change_nothing(tmp_path: Path, limit: list[str]) -> None:
    data, out = make_data(tmp_path / "data"), tmp_path / "f.hdf5"
    flags = ["--data-root", str(data), "--out", str(out), "--backbone", "squeezenet1_1", "--weights", "random"]
    flags += ["--input-size", "64", "--batch-size", "4", "--device", "cpu"]
    assert main("DEMO", None, [*flags, *limit]) == 0
    (data / "w2v").mkdir()
    (data / "w2v" / "DEMO_attribute.pkl").write_bytes(pickle.dumps(np.ones((5, 3), np.float32)))
    assert main("DEMO", None, flags) == 0
    with FeatureFile(out) as file:
        assert file.shape == (36, 512, 9)


def test_texts_of_the_classes_are_stored_beside_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, text = make_data(tmp_path / "data"), np.random.default_rng(0).random((6, 2, 4)).astype(np.float32)
    plain = extract(DEMO, data_root=data, out=tmp_path / "plain.hdf5", config=TINY)
    monkeypatch.setattr(Backbone, "class_text", lambda self, metadata: text[: len(metadata.class_names)])
    for index in (1, 0):
        made = extract(DEMO, data_root=data, out=tmp_path / "f.hdf5", config=TINY, shard=Shard(index, 2))
    with FeatureFile(made) as file, FeatureFile(plain) as without:
        np.testing.assert_array_equal(file.class_text, text)
        assert without.class_text is None and without.digest() != file.digest()
    text += 1  # new prompts
    with pytest.raises(UserError, match="class_text is not the same"):
        extract(DEMO, data_root=data, out=made, config=TINY)


def test_a_redirected_log_has_a_line_for_each_tenth(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    with Progress(1000, "f.hdf5", "image", 500) as bar:
        for _ in range(500):
            bar.update()
    assert [r.message.split(",")[0] for r in caplog.records] == [f"f.hdf5: {n}00 of 1000 images" for n in range(6, 11)]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress(1000, "f.hdf5", "image") as bar:
        bar.update(1000)
    assert "1000/1000" in capsys.readouterr().err
