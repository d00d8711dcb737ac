"""A small model with everything a trained one has, images for its page, and names nobody should have."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from core.inference.page import Item
from core.inference.trained import Trained
from core.method import ClassSpace, with_settings
from core.methods import find_method

D, R, B = 24, 9, 6

CERTAINTY = {  # as of a validation on which answers had from -20 to 30 points
    "gammas": [0.0, 1.0, 20.0], "U": [0.2, 0.5, 0.9], "S": [0.9, 0.6, 0.1], "temperature": [1.5, 3.0],
    "ranks": [[[float(v) for v in range(-20, 31)]] * 2] * 2, "lowest": [[n / 50 for n in range(51)]] * 2,
}  # fmt: skip

HOSTILE = [
    "</script><script>window.broken=1</script>",
    "<img src=x onerror='window.broken=1'>",
    "\"'`;window.broken=1//\\",
    "\u202egnorw\u202c \u05d0\u05d1",
    "x" * 300,
    "a\u2028b\u2029c\x00\x1b[31m\ud800",
    "../../../etc/passwd",
    "=HYPERLINK(1)",
    "__proto__",
    "${window.broken=1}",
    "]]> --> &lt;b&gt;",
]


class Shown:
    """Images as a method's hooks see them, in blocks of a few."""

    def __init__(self, x, labels, block=7, norm=1.0):
        self.x, self.labels, self.block, self.norm = x, labels, block, norm

    def pooled(self):
        return self.x.mean(dim=1)

    def blocks(self):
        yield from zip(self.x.split(self.block), self.labels.split(self.block), strict=True)

    def region_norm(self):
        return self.norm


def made(name="vsmr", names=None, n=12, **settings):
    """A model over 7 seen and 4 unseen classes, and images of each class."""
    g = torch.Generator().manual_seed(0)
    att = (
        torch.rand(11, 7, generator=g, dtype=torch.float64) - 0.2
    )  # a few below 0, as descriptions of one's own may be
    asked = torch.tensor([0, 0, 1, 1, 1, -1, -1])  # two questions, two attributes that stand alone
    space = ClassSpace(att, torch.arange(7), torch.arange(7, 11), torch.randn(7, 5, generator=g), questions=asked)
    trained = trained_on(space, name, **settings)
    trained.model.float()
    attributes = ["has_bill_color::red", "belly color: blue", *trained.attributes[2:]]
    vars(trained).update(classes=names or trained.classes, attributes=(names or attributes)[:7])
    vars(trained).update(space=replace(space, att=att.float()))
    rng = np.random.default_rng(0)
    x = regions(torch.float32)
    items = [
        Item(
            picture=rng.integers(0, 255, (64, 64, 3), dtype=np.uint8),
            x=x[i % len(x)].roll(i, 0),
            truth=i % 11 if i % 5 else None,
            name=names[i % 11] if names else f"image {i}",
        )
        for i in range(n)
    ]
    return trained, items


def trained_on(space: ClassSpace, name: str = "vsmr", **settings) -> Trained:
    """A model with everything a trained one has: means, whitening, attention that differs between regions."""
    registered = find_method(name)
    recipe = with_settings(registered.recipe("*"), settings)
    model = registered.build(recipe, space, (R, D), 0, 1).model
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    if name == "vsmr":
        y = space.seen[torch.arange(60) % len(space.seen)]
        signal = space.att.float() @ torch.randn(space.att.shape[1], D, generator=g)
        x = signal[y].unsqueeze(1) + torch.randn(60, R, D, generator=g)
        model.double().fit(Shown(F.normalize(x, dim=2).double(), y))
    return Trained(
        model=model.double().eval(),
        space=space,
        gamma=0.7,
        certainty=CERTAINTY,
        classes=[f"class {c}" for c in range(len(space.att))],
        attributes=[f"attribute {k}" for k in range(space.att.shape[1])],
        config={"method": name, "dataset": "TOY", "seed": 0, "epochs": 1},
        shape=(R, D),
    )


def regions(dtype=torch.float64):
    g = torch.Generator().manual_seed(2)
    return F.normalize(torch.randn(B, R, D, generator=g), dim=2).to(dtype)
