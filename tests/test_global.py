"""Class tokens beside the maps: the libraries' own, covered by every checksum, kept by whatever rewrites the file."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from core.commands.convert import main as convert_command
from core.datasets.registry import CUB, DEMO
from core.features import identity
from core.features.backbones import build_backbone
from core.features.extraction import estimate, extract
from core.features.feature_file import FeatureFile, verify
from core.features.settings import ExtractionConfig, default_out, extraction_command, recorded_config
from core.features.shards import Shard
from core.features.writer import Writer
from core.files.errors import UserError
from tests.helpers_features import SHAPE, content, make_data, maps
from tests.helpers_features import write as write_plain

needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
pytestmark = pytest.mark.usefixtures("cheap_weights")
ROWS, G = np.arange(60), 12
KEPT = ExtractionConfig(
    backbone="vit_b_32", weights="random", device="cpu", batch_size=4, input_size=64, keep_global=True
)


def tokens(n: int = 60) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((n, G)).astype(np.float16)


def write(path: Path, **other: Any) -> Path:
    with Writer(path, content(**{"global": "class token"} | other), SHAPE, global_width=G) as writer:
        writer.write(ROWS, maps(), tokens())
        return writer.finish()


def test_the_class_token_is_torchvisions_own_and_of_both_views() -> None:
    backbone = build_backbone("vit_b_32", "random", keep_global=True).double()
    assert backbone.global_width == 768 and backbone.record()["global"] == "class token"
    net: Any = backbone.network
    images = torch.randn(1, 3, 224, 224, dtype=torch.float64)

    def own(images: torch.Tensor) -> torch.Tensor:  # as its forward has it, before the head
        with torch.inference_mode():
            x = net._process_input(images)
            return net.encoder(torch.cat([net.class_token, x], dim=1))[:, 0]

    grid, token = backbone.with_global(images)
    assert torch.equal(token, own(images)) and torch.equal(grid, backbone(images))
    backbone.flip = True
    torch.testing.assert_close(backbone.with_global(images)[1], (own(images) + own(images.flip(3))) / 2)
    plain = build_backbone("vit_b_32", "random")
    assert plain.global_width == 0 and "global" not in plain.record()


@needs_timm
@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch14_reg4_dinov2.lvd142m",
        "deit_tiny_distilled_patch16_224",
        "cait_xxs24_224",
    ],
)
def test_the_class_token_is_timms_own(name: str) -> None:
    """Before register and distillation tokens."""
    size = 98 if "patch14" in name else 224
    backbone = build_backbone(f"timm:{name}", "random", input_size=size, keep_global=True)
    net = copy.deepcopy(backbone.network).double()
    images = torch.randn(1, 3, size, size, dtype=torch.float64)
    with torch.inference_mode():
        expected = net.forward_features(images)  # type: ignore[operator]
    found = backbone.double().with_global(images)[1]
    assert torch.equal(found, expected[:, 0])
    if hasattr(net, "forward_head") and getattr(net, "global_pool", "") == "token" and "distilled" not in name:
        assert torch.equal(found, net.forward_head(expected, pre_logits=True))  # type: ignore[operator]


@pytest.mark.parametrize(
    "name",
    ["resnet18", "swin_t", "demo"]
    + [pytest.param(f"timm:{n}", marks=needs_timm) for n in ("vit_base_patch16_siglip_224", "convnext_atto")],
)
def test_a_network_without_class_token_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"--keep-global: {name} has no class token"):
        build_backbone(name, "random", keep_global=True)


def test_it_is_written_read_and_covered_by_the_checksums(tmp_path: Path) -> None:
    path = write(tmp_path / "f.hdf5")
    with FeatureFile(path) as file:
        np.testing.assert_array_equal(file.global_features, tokens())
        assert file.global_features.dtype == np.float16
        np.testing.assert_array_equal(file.read(ROWS), maps().reshape(60, 8, 49))
        digest = file.digest()
    with h5py.File(path) as handle:
        assert handle["global"].shape == (60, G)
        at = handle["global"].id.get_offset()
    verify(path)
    with FeatureFile(write_plain(tmp_path / "plain.hdf5")) as file:
        assert file.global_features is None and file.digest() != digest
    with open(path, "r+b") as raw:
        raw.seek(at + 5)
        raw.write(b"\x7b")
    with pytest.raises(UserError, match="changed after it was finished"):
        FeatureFile(path)


def test_a_file_without_it_has_the_bytes_it_always_had(tmp_path: Path) -> None:
    with h5py.File(write_plain(tmp_path / "f.hdf5")) as file:
        assert {"global", "global_crc32"}.isdisjoint(file) and file.attrs["format_version"] == 3


@pytest.mark.parametrize("lost", ["global", "feature_map"])
def test_a_row_is_done_when_map_and_token_are(tmp_path: Path, lost: str) -> None:
    path, given = tmp_path / "f.hdf5", content(**{"global": "class token"})
    with Writer(path, given, SHAPE, global_width=G) as writer:
        writer.write(ROWS[:20], maps()[:20], tokens()[:20])
        writer.flush()
        place = writer._places[["feature_map", "global"].index(lost)]
        os.pwrite(writer._data, b"\0" * 8, place.base + 7 * place.row_bytes)
    with Writer(path, given, SHAPE, global_width=G) as writer:
        assert writer.done.sum() == 19 and not writer.done[7]
        with pytest.raises(ValueError, match="class-token"):
            writer.write(ROWS, maps())
        with pytest.raises(UserError, match="row 7 are NaN"):
            writer.write(ROWS[7:8], maps()[7:8], np.full((1, G), np.nan))
        writer.write(ROWS[7:8], maps()[7:8], tokens()[7:8])
        writer.write(ROWS[20:], maps()[20:], tokens()[20:])
        writer.finish()
    (tmp_path / "other").mkdir()
    assert path.read_bytes() == write(tmp_path / "other" / "f.hdf5").read_bytes()


def test_a_partial_file_without_tokens_is_of_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "f.hdf5"
    with Writer(path, content(), SHAPE) as writer:
        writer.write(ROWS[:20], maps()[:20])
    with pytest.raises(UserError, match="global: None there, 'class token' now"):
        write(path)


def test_conversion_keeps_it(tmp_path: Path) -> None:
    source, out = write(tmp_path / "theirs.hdf5"), tmp_path / "f.hdf5"
    assert convert_command([str(source), str(out), "--layout", "ndhw", "--store", "float32"]) == 0
    with FeatureFile(out) as file:
        np.testing.assert_array_equal(file.global_features, tokens().astype(np.float32))
        assert file.provenance["global"] == "class token"
    with h5py.File(tmp_path / "other.hdf5", "w") as file, h5py.File(source) as handle:
        for key in handle:
            file[key] = handle[key][()] if key != "global" else handle[key][()][:5]
    with pytest.raises(UserError, match=r"global is \(5, 12\) float16"):
        convert_command([str(tmp_path / "other.hdf5"), str(tmp_path / "g.hdf5"), "--layout", "ndhw"])


def test_extraction_keeps_it_in_one_pass_and_in_shards(tmp_path: Path) -> None:
    root = make_data(tmp_path / "data", 18)
    single = extract(DEMO, data_root=root, out=tmp_path / "single.hdf5", config=KEPT)
    for index in (1, 0):
        merged = extract(DEMO, data_root=root, out=tmp_path / "f.hdf5", config=KEPT, shard=Shard(index, 2))
    assert merged.read_bytes() == single.read_bytes()
    plain = extract(DEMO, data_root=root, out=tmp_path / "plain.hdf5", config=replace(KEPT, keep_global=False))
    rows = np.arange(18)
    with FeatureFile(single) as file, FeatureFile(plain) as other:
        np.testing.assert_array_equal(file.read(rows), other.read(rows))
        assert file.global_features.shape == (18, 768) and len(np.unique(file.global_features[:, 0])) > 9
        commands = [
            identity.extraction_command(f.path, f.provenance | {"dataset": "CUB"}, "float16") for f in (file, other)
        ]
        assert ["--keep-global" in command for command in commands] == [True, False]
        assert recorded_config(file.provenance).keep_global and not recorded_config(other.provenance).keep_global
    assert estimate(DEMO, data_root=root, config=KEPT).row_bytes == 2 * (768 * 4 + 768)
    assert "global" in default_out(root, DEMO, KEPT).name
    assert "--keep-global" in extraction_command(CUB, config=KEPT)
