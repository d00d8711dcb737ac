"""A trained model as ONNX, for programs without this one.

The head alone takes the backbone's map and does the rest: rounding as in stored features, regions of unit length, class
scores, γ. With the backbone it takes pixels, resized and cropped as the file's metadata says.
"""

import copy
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core.features.images import Normaliser
from core.features.regions import unit_regions
from core.files.atomic import atomic_path
from core.files.errors import UserError, first_line, library
from core.inference.explain import explain
from core.inference.predictor import Predictor
from core.inference.trained import Trained, grid_said

# of the largest score, of the head and with the backbone: where that rounds otherwise, so does half precision behind it
TOLERANCE = (1e-4, 1e-3)
_OPSET = 18


class Program(nn.Module):
    """Maps (B,D,h,w) of the backbone, or with it pixels (B,S,S,3) uint8, to scores (B,C) with γ, of all classes."""

    gamma: Tensor

    def __init__(self, predictor: Predictor, with_backbone: bool) -> None:
        super().__init__()
        self.trained = trained = predictor.trained
        self.model = trained.model  # as a module of its own: its weights go along
        self.store = getattr(torch, trained.backbone["store"])
        self.register_buffer("gamma", (trained.gamma * trained.gamma_shares).to(trained.device))  # (C,)
        self.network = None
        if with_backbone:  # in float32 whatever the run's features were made in: few programs have bfloat16
            self.network = copy.deepcopy(predictor.network).float()
            self.normalise = Normaliser(trained.device, torch.float32, self.network.transform)

    def forward(self, x: Tensor) -> Tensor:
        maps = x if self.network is None else self.network.maps(self.normalise(x)).float()
        return explain(self.trained, unit_regions(maps.to(self.store).flatten(2))[0].float()).scores + self.gamma


def export(predictor: Predictor, path: Path | str, *, with_backbone: bool = False) -> str:
    """Write an ONNX file; returns what was written, and how far onnxruntime's scores are from ours.

    Its input is ``pixels`` (with the backbone) or ``maps``, its output ``scores``; the metadata hold classes, sides,
    attributes, γ and the transform. The file is run by onnxruntime before it gets its name.
    """
    with library("--export", "onnx onnxscript onnxruntime"):
        import onnx
        import onnxruntime as runtime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    path, trained, rng = Path(path), predictor.trained, np.random.default_rng(0)
    if trained.beside:
        raise UserError("an ensemble on several features has no ONNX file: export its members, and take their mean")
    if with_backbone:
        side = predictor.network.input_size
        name, example = "pixels", rng.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    else:
        R, D = trained.shape
        h, w = grid_said(str(trained.backbone.get("regions", ""))) or (1, R)
        name, example = "maps", np.abs(rng.standard_normal((3, D, h, w), dtype=np.float32))
    program, inputs = Program(predictor, with_backbone).eval(), torch.from_numpy(example).to(trained.device)
    with torch.no_grad():
        ours = program(inputs).cpu().numpy()  # (3,C)
    with atomic_path(path) as temporary:
        try:
            torch.onnx.export(
                program, (inputs,), str(temporary), input_names=[name], output_names=["scores"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), dynamo=True, external_data=False,
                verbose=False, opset_version=_OPSET,
            )  # fmt: skip
        except Exception as error:  # exporters raise nearly anything
            said = f"PyTorch {torch.__version__} cannot export this model to ONNX ({first_line(error)[:300]})"
            raise UserError(f"{said}; 2.14 can: pip install 'torch>=2.14' torchvision") from error
        model = onnx.load(str(temporary))
        onnx.helper.set_model_props(model, _facts(trained, with_backbone))
        onnx.save(model, str(temporary))
        session = runtime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        theirs = [session.run(["scores"], {name: example[:count]})[0] for count in (len(example), 1)]
        worst = max(float(np.abs(scores - ours[: len(scores)]).max()) for scores in theirs)
        said = f"onnxruntime's scores differ by at most {worst:.1e} (largest score {np.abs(ours).max():.3g})"
        if not worst <= TOLERANCE[with_backbone] * np.abs(ours).max():
            raise UserError(f"{said}, too much: {path} is not written")
    return f"{path}: {name} {list(example.shape[1:])} to scores of {ours.shape[1]} classes; {said}"


def _facts(trained: Trained, with_backbone: bool) -> dict[str, str]:
    """What a user of the file must know."""
    seen = set(trained.space.seen.tolist())
    pixels = "RGB uint8, resized and cropped by the backbone's transform; mean and std are applied inside"
    return {
        "classes": json.dumps(trained.classes, ensure_ascii=False),
        "sides": json.dumps(["seen" if c in seen else "unseen" for c in range(len(trained.classes))]),
        "attributes": json.dumps(trained.attributes, ensure_ascii=False),
        "gamma": repr(trained.gamma),
        "method": str(trained.config["method"]),
        "backbone": json.dumps(trained.backbone),
        "input": pixels if with_backbone else "the backbone's map as it is, before any normalisation",
    }
