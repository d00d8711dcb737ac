"""CLIP: the class whose text is nearest to the image, without any training. Methods ``clip`` and ``clip-attributes``.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
    s_c = <x, t_c>   x (E,) the unit image embedding, t_c the unit text embedding of "a photo of a <name of c>."
``clip-attributes`` averages prompts that name the class and one of its attributes each, as S. Menon and C. Vondrick,
"Visual Classification via Description from Large Language Models", ICLR 2023, do with descriptions:
    s_c = 1/|P_c| Σ_{p in P_c} <x, t_p>
It is what a user would take instead of a zero-shot method, and no zero-shot result: what its pretraining saw of the
unseen classes, pictures with their names, is unknown. It is scored like every other method, γ chosen on validation.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from core.files.errors import UserError
from core.method import ClassSpace, Method, ZeroShotModel, hp, method


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Nothing is learned; the two methods differ in their prompts."""

    attributes: bool = hp(False, "prompts name attributes too", flag=False)


def text_of(space: ClassSpace, R: int, D: int, *, attributes: bool) -> Tensor:
    """(C,E) text embeddings of the classes: of their names, or of names with attributes."""
    if space.text is None or space.text.shape[2] != D or R != 1:
        raise UserError(
            "these features hold no text embeddings of the classes, which this method needs: extract both at once with "
            "--backbone open_clip:MODEL/PRETRAINED (such as ViT-B-16/openai), and name them with --features"
        )
    return space.text[:, int(attributes)]


class CLIP(ZeroShotModel):
    def __init__(self, space: ClassSpace, R: int, D: int, recipe: Recipe) -> None:
        super().__init__()
        self.text = nn.Buffer(text_of(space, R, D, attributes=recipe.attributes))  # (C,E)

    def class_scores(self, x: Tensor) -> Tensor:
        """(B,C) for the one region of x (B,1,D), the unit image embedding."""
        return F.normalize(x[:, 0], dim=1) @ self.text.T


@method("clip-attributes", recipes={"*": Recipe(attributes=True)}, needs_text=True)
@method("clip", recipes={"*": Recipe()}, needs_text=True)
def build(recipe: Recipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    return Method(model=CLIP(space, *shape, recipe), phases=[])
