"""The demo's backbone: a small network whose weights come from nowhere but the demo's own training classes
(studies/demo_backbone.py).
"""

from pathlib import Path

import torch
from torch import nn

D = 128  # channels of the feature map
WEIGHTS = Path(__file__).with_name("backbone.safetensors")


class DemoBackbone(nn.Module):
    """RGB images in [0,1], (B,3,112,112) -> feature map (B,D,7,7), non-negative. It normalises its input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential()
        # (B,48,28,28), (B,64,14,14), (B,96,14,14), (B,D,7,7) twice; large maps are what costs time on a CPU
        for ins, outs, kernel, stride in ((3, 48, 6, 4), (48, 64, 3, 2), (64, 96, 3, 1), (96, D, 3, 2), (D, D, 3, 1)):
            convolution = nn.Conv2d(ins, outs, kernel, stride, 1, bias=False)
            self.body.append(nn.Sequential(convolution, nn.BatchNorm2d(outs), nn.ReLU(inplace=True)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.body((images - 0.5) / 0.25)
        return features
