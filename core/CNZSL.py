"""CNZSL: a network from attributes to class prototypes that normalises over classes. Method ``cnzsl``.

I. Skorokhodov, M. Elhoseiny, "Class Normalization for (Continual)? Generalized Zero-Shot Learning", ICLR 2021. The
equations and numbers are those of the notebook the authors released, which tests/golden/ holds.
    a_c  = √K z_c
    p_c  = relu(L3 · cs(relu(cs(L2 · relu(L1 a_c)))))         class prototype (D,)
    cs(h) = (h - mean) / (var + 1e-5)                          over the classes that are passed, a unit at a time
    s_c  = 25 cos(x, p_c)
    loss = cross-entropy over seen classes
The division is by the variance; the paper writes the deviation, which is another network. In training the mean and the
(unbiased) variance are of the seen classes, which pass together; at test they are the running values, 0.9 old + 0.1 new
at every step.

Trained by Adam, the learning rate a tenth after 25 epochs. x is the mean-pooled feature.

B images · D channels · K attributes · C classes (S seen) · h width
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.method import Batches, ClassSpace, Losses, Method, Phase, ZeroShotModel, hp, method


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The notebook's settings, one for all data sets."""

    lr: float = hp(5e-4, "learning rate of Adam", above=0)
    weight_decay: float = hp(1e-4, "weight decay", at_least=0)
    hidden: int = hp(1024, "width of the network", at_least=1)
    scale: float = hp(25.0, "scale of the cosines", above=0)
    batch_size: int = hp(256, "images in a step", at_least=1)
    epochs: int = hp(50, "most epochs", at_least=0)
    lr_drop: int = hp(25, "epochs after which the learning rate is a tenth", at_least=0)


class ClassNorm(nn.Module):
    """cs: standardises units over classes, with running values for evaluation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(width))
        self.var = nn.Buffer(torch.ones(width))

    def forward(self, h: Tensor) -> Tensor:
        """h (n,width) of n classes."""
        if not self.training:
            return (h - self.mean) / (self.var + 1e-5)
        mean, var = h.mean(dim=0), h.var(dim=0)
        with torch.no_grad():
            self.mean.lerp_(mean, 0.1)
            self.var.lerp_(var, 0.1)
        return (h - mean) / (var + 1e-5)


class CNZSL(ZeroShotModel):
    uses_pooled_features = True

    def __init__(self, space: ClassSpace, D: int, recipe: Recipe) -> None:
        super().__init__()
        self.scale, h, K = recipe.scale, recipe.hidden, space.att.shape[1]
        self.network = nn.Sequential(
            *(nn.Linear(K, h), nn.ReLU(), nn.Linear(h, h), ClassNorm(h), nn.ReLU(), ClassNorm(h)),
            *(nn.Linear(h, D), nn.ReLU()),
        )
        bound = (3 / (h * D)) ** 0.5  # variance 1/(hD)
        last = self.network[6]
        assert isinstance(last, nn.Linear)
        nn.init.uniform_(last.weight, -bound, bound)
        self.attributes = nn.Buffer(K**0.5 * space.z)  # (C,K)
        self.seen = nn.Buffer(space.seen)
        self.place = nn.Buffer(space.seen_index)  # (C,)

    def _scores(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """(B,n) of pooled features (B,D) with some classes (n,K)."""
        return self.scale * F.normalize(pooled, dim=1) @ F.normalize(self.network(classes), dim=1).T

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) for regions x (B,R,D)."""
        return self._scores(x.mean(dim=1), self.attributes)

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the seen classes, of pooled features x (B,D)."""
        return {"loss": F.cross_entropy(self._scores(x, self.attributes[self.seen]), self.place[y])}


@method(
    "cnzsl",
    recipes={"*": Recipe()},
    deviations="γ from validation in place of 0.95 times the scores of seen classes; epochs chosen on validation "
    "classes; as the code has it, units are divided by their variance (paper: deviation)",
)
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    model = CNZSL(space, shape[1], recipe)
    phase = Phase(
        name="prototypes",
        loss=model.loss,
        optimizer=torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay),
        batches=Batches(recipe.batch_size),
        epochs=epochs,
        pooled=True,
        lr_at=lambda epoch: recipe.lr * (1.0 if epoch < recipe.lr_drop else 0.1),
    )
    return Method(model=model, phases=[phase])
