"""Bias-aware learner: a network into attribute space under a low temperature. Method ``bias-aware``.

W. Thong, C. Snoek, "Bias-Awareness for Zero-Shot Learning the Seen and Unseen", BMVC 2020. The equations and numbers
are those of the released code, which tests/golden/ holds.
    f = L3 relu(L2 drop(relu(L1 x)))          x: mean-pooled, each channel scaled to [0,1] by the training images
    s_c = cos(f, z_c) / 0.05                  loss = cross-entropy over seen classes
Without images of unseen classes, generated ones in the paper, its entropy terms do not apply, and the temperature is
all the bias-awareness there is. SGD with Nesterov's momentum; epoch e of E has the learning rate
lr/2 (1 + cos(πe/E)), so the last one has none.

B images · D channels · K attributes · C classes (S seen)
"""

from dataclasses import dataclass
from math import cos, pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.method import AttentionOutput, AttributeModel, Batches, ClassSpace, Losses, Method, Phase, hp, method
from core.scaling import Scaling


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The released settings for CUB and SUN."""

    lr: float = hp(0.01, "learning rate of SGD", above=0)
    weight_decay: float = hp(5e-5, "weight decay", at_least=0)
    momentum: float = hp(0.9, "Nesterov's momentum", at_least=0, below=1)
    hidden: int = hp(1024, "width of the second layer, half that of the first", at_least=1)
    dropout: float = hp(0.5, "dropout after the first layer", at_least=0, below=1)
    temperature: float = hp(0.05, "what cosines are divided by", above=0)
    batch_size: int = hp(64, "images in a step", at_least=1)
    epochs: int = hp(15, "most epochs", at_least=0)


class BiasAware(AttributeModel):
    uses_pooled_features = True

    def __init__(self, space: ClassSpace, D: int, recipe: Recipe) -> None:
        super().__init__(space)
        self.temperature, h, K = recipe.temperature, recipe.hidden, space.att.shape[1]
        self.scaling = Scaling("range", space.att, D)
        self.network = nn.Sequential(
            *(nn.Linear(D, 2 * h), nn.ReLU(), nn.Dropout(recipe.dropout), nn.Linear(2 * h, h), nn.ReLU()),
            nn.Linear(h, K),
        )

    def embedding(self, pooled: Tensor) -> Tensor:
        """f (B,K) of pooled features (B,D)."""
        return self.network(self.scaling(pooled))

    def evidence(self, x: Tensor, a: AttentionOutput | None) -> Tensor:
        """f at unit length over the temperature (B,K), of regions x (B,R,D)."""
        return F.normalize(self.embedding(x.mean(dim=1)), dim=1) / self.temperature

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the seen classes, of pooled features x (B,D)."""
        scores = F.normalize(self.embedding(x), dim=1) @ self.z[self.seen].T / self.temperature
        return {"loss": F.cross_entropy(scores, self.place[y])}


@method(
    "bias-aware",
    recipes={"*": Recipe()},
    deviations="seen images only: no generated features, so no entropy terms; γ on scores, from validation classes, in "
    "place of γ on posteriors chosen on the test images",
)
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    model = BiasAware(space, shape[1], recipe)
    lr, momentum, decay = recipe.lr, recipe.momentum, recipe.weight_decay
    parameters, nesterov = model.parameters(), momentum > 0
    phase = Phase(
        name="embedding",
        loss=model.loss,
        optimizer=torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay),
        batches=Batches(recipe.batch_size),
        epochs=epochs,
        pooled=True,
        lr_at=lambda epoch: lr / 2 * (1 + cos(pi * (int(epoch) + 1) / max(epochs, 1))),
    )
    return Method(model=model, phases=[phase], begin=lambda images: model.scaling.fit(images.pooled()))
