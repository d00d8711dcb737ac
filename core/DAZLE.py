"""DAZLE's classifier; the attention it scores regions by, which other methods share, is core/attention.py.

D. Huynh, E. Elhamifar, "Fine-Grained Generalized Zero-Shot Learning via Dense Attribute-Based Attention", CVPR 2020.

How to read it. With θ, the attribute scores e_i and the attribute weights w_i of core/attention.py:
    class score      s_c = Σ_i w_i e_i z_ci            z: L2-normalised class attributes
    loss             cross-entropy(s) + λ_cal·(-log mean_b Σ_{c unseen} softmax(s + m)[b,c]),  m: +1 unseen, -1 seen

B images · R regions · D channels · K attributes · C classes · V word-vector size
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.attention import AttributeClassifier, DenseAttention
from core.method import AttentionOutput, Batches, ClassSpace, Losses, Method, Phase, hp, method


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """DAZLE's settings, those of its released training scripts."""

    lr: float = hp(1e-4, "learning rate of RMSprop", above=0)
    weight_decay: float = hp(1e-4, "weight decay", at_least=0)
    momentum: float = hp(0.9, "momentum of RMSprop", at_least=0, below=1)
    epochs: int = hp(20, "most epochs", at_least=0)
    batch_size: int = hp(50, "images in a step", at_least=1)
    balanced: bool = hp(False, "batches of one image of each of as many classes (on), or of any images (off)")
    lambda_cal: float = hp(0.1, "weight of the self-calibration loss", at_least=0)
    normalize_vectors: bool = hp(False, "keep word vectors at unit length while they are learned")
    use_w: bool = hp(True, "weight attribute scores by w")
    prepared: bool = hp(False, "class attributes as vsmr takes them (core/preparation.py)", flag=False)


class DAZLE(AttributeClassifier):
    def __init__(self, space: ClassSpace, D: int, recipe: Recipe) -> None:
        super().__init__(space, prepared=recipe.prepared)
        self.recipe = recipe
        self.attention = DenseAttention(space.w2v, D, normalize_vectors=recipe.normalize_vectors)

    def attend(self, x: Tensor) -> AttentionOutput:
        """θ, w and e of x (B,R,D)."""
        return self.attention(x)

    def evidence(self, x: Tensor, a: AttentionOutput | None) -> Tensor:
        """w∘e (B,K)."""
        assert a is not None and a.e is not None
        return a.w * a.e if self.recipe.use_w else a.e

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy of s over all classes + λ self-calibration of s + m; y (B,) class numbers."""
        ce, cal = self.classification_losses(self.class_scores(x), y)
        return {"loss": ce + self.recipe.lambda_cal * cal, "ce": ce, "cal": cal}


# the numbers of the released scripts of AWA2, CUB and SUN; the synthetic set's were chosen on its validation classes
RECIPES = {
    "*": Recipe(),
    "AWA2": Recipe(momentum=0.0, balanced=True, normalize_vectors=True),
    "SUN": Recipe(epochs=100, balanced=True, use_w=False),
    "DEMO": Recipe(lr=5e-4, balanced=True),
}
_DEVIATIONS = (
    "chosen on validation and calibrated by γ where the authors use m alone; batches of CUB take every image once an "
    "epoch where the authors draw each batch afresh"
)


@method("dazle-prepared", recipes={name: replace(recipe, prepared=True) for name, recipe in RECIPES.items()})
@method("dazle", recipes=RECIPES, deviations=_DEVIATIONS)
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    model = DAZLE(space, shape[1], recipe)
    optimizer = torch.optim.RMSprop(
        model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
    )
    batches = Batches(recipe.batch_size, balanced=recipe.balanced)
    phase = Phase(name="attention", loss=model.loss, optimizer=optimizer, batches=batches, epochs=epochs)
    return Method(model=model, phases=[phase])
