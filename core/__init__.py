"""Zero-shot image recognition: DAZLE attention and VSMR on frozen region features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.files.errors import UserError as UserError
from core.inference.answer import Prediction as Prediction

if TYPE_CHECKING:
    from core.inference.predictor import Predictor

__version__ = "0.3.0"


def load(run: Path | str, **options: Any) -> Predictor:
    """A finished run, put to use: ``load("results/.../seed0").predict("photo.jpg")``.

    Args:
        run: the folder of one seed, or any above it that holds no other run.
        options: those of :meth:`core.inference.predictor.Predictor.load`.

    Raises:
        core.UserError: no finished run there, or its checkpoint is damaged.
    """
    from core.inference.predictor import Predictor  # imports torch, which `import core` is not to wait for

    return Predictor.load(run, **options)
