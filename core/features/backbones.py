"""Frozen convolutional backbones: image in, last spatial map out."""

from __future__ import annotations

import hashlib
import importlib
import mmap
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from core.files.atomic import sha256_file
from core.files.errors import UserError

DEFAULT_WEIGHTS = "IMAGENET1K_V1"  # what DAZLE and its relatives used; torchvision's DEFAULT is V2, other features
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of torchvision's weights
DEMO = "demo"
RANDOM_SEED = 0
_LARGEST = 8 << 30  # bytes of a weights file
_OLD_PICKLES = 5  # in a file of PyTorch's old format, before the numbers
# What a state dict is made of; PyTorch's own list has calls more, which set aside any amount of memory (bytearray).
_PARTS = re.compile(
    r"collections (OrderedDict|Counter)|torch (Size|device|\w+Storage|[a-z]\w*)|torch\._utils _rebuild_\w+"
    r"|torch\.storage \w+|torch\.nn\.parameter Parameter|torch\.serialization _get_layout"
)


class FrozenBackbone(nn.Module):
    """A network in eval mode without gradients that returns the output of one of its modules."""

    def __init__(self, name: str, network: nn.Module, weights: str, sha256: str, input_size: int) -> None:
        """Args: weights is their name for the record; input_size the image side it was made for, in pixels."""
        super().__init__()
        self.name, self.weights, self.sha256, self.input_size = name, weights, sha256, input_size
        self.network = network.eval().requires_grad_(False)
        self.layer, self.shape = _last_map(self.network, input_size)  # shape (D,h,w) at input_size
        self._map: Tensor | None = None
        self.network.get_submodule(self.layer).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._map = output

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Stays in eval mode: it is frozen."""
        return super().train(False)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) normalised images to (B,D,h,w)."""
        self.network(images)
        result, self._map = self._map, None
        assert result is not None
        return result


def build_backbone(name: str, weights: str | Path = DEFAULT_WEIGHTS) -> FrozenBackbone:
    """A torchvision classification CNN, or "demo", the repository's own small network.

    Args:
        weights: a torchvision weights name, a .safetensors or .pth file, or "random" (seeded; for tests).

    Raises:
        UserError: unknown names, unreadable files, keys or shapes that do not fit.
    """
    choice = str(weights)
    if name == DEMO:
        network: nn.Module = importlib.import_module("core.demo.backbone").DemoBackbone()
        input_size = 112
    else:
        network, input_size = _torchvision(name, choice), 224
    if choice.endswith((".safetensors", ".pth", ".pt")):
        _load_into(network, Path(choice))
        if name == DEMO:  # it was trained on [0,1]; extraction feeds every backbone ImageNet's normalisation
            network = nn.Sequential(_ToUnitRange(), network)
        return FrozenBackbone(name, network, Path(choice).name, sha256_file(choice), input_size)
    if name == DEMO and choice != "random":
        raise UserError("the demo backbone needs --weights <file>.safetensors (or random)")
    return FrozenBackbone(name, network, choice, _state_sha256(network), input_size)


class _ToUnitRange(nn.Module):
    """Undoes the ImageNet normalisation: (B,3,h,w) back to [0,1]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        mean: Any = self.mean
        std: Any = self.std
        unit: Tensor = images * std + mean
        return unit


def file_form(name: str) -> str:
    """A backbone's name as feature files carry it: resnet101 -> ResNet_101 (DAZLE's), others as they are."""
    match = re.fullmatch(r"resnet(\d+)", name)
    return f"ResNet_{match[1]}" if match else name


def _torchvision(name: str, weights: str) -> nn.Module:
    models = torchvision.models.list_models(module=torchvision.models)
    if name not in models or name.startswith("vit_"):
        near = [m for m in models if m[:4] == name[:4] and not m.startswith("vit_")]
        raise UserError(
            f"no CNN {name!r} in torchvision {torchvision.__version__}; "
            + (f"near it: {', '.join(near)}" if near else "try resnet101")
        )
    is_file = weights.endswith((".safetensors", ".pth", ".pt"))
    if is_file and not Path(weights).is_file():
        raise UserError(f"no weights file at {weights}")
    if is_file or weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            return torchvision.models.get_model(name, weights=None)
    known = {w.name: w for w in torchvision.models.get_model_weights(name)}
    if weights not in known:
        raise UserError(
            f"no weights {weights!r} for {name}: choose {', '.join(known)}, random, or a .safetensors or .pth file"
        )
    try:
        return torchvision.models.get_model(name, weights=known[weights])
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the weights {weights} of {name} could not be fetched ({error}). Download {known[weights].url} elsewhere "
            "and name the file with --weights"
        ) from error


def _load_into(network: nn.Module, path: Path) -> None:
    state = _read_state(path)
    own = network.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    shapes = [f"{k} {tuple(state[k].shape)}, needs {tuple(own[k].shape)}" for k in own if k in state]
    shapes = [s for s, k in zip(shapes, (k for k in own if k in state), strict=True) if state[k].shape != own[k].shape]
    if missing or extra or shapes:
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
            if keys
        ]
        raise UserError(f"{path} does not fit the network: {'; '.join(parts)}")
    odd = [k for k, v in state.items() if not _is_plain(v)]
    if odd:
        raise UserError(f"{path}: sparse, quantized or complex weights, or none at all, in {', '.join(odd[:3])}")
    # as they will be stored: a float64 may be too large
    bad = [k for k, v in state.items() if not torch.isfinite(v.to(own[k].dtype)).all()]
    if bad:
        raise UserError(f"{path}: NaN or infinity in {', '.join(bad[:3])}")
    network.load_state_dict(state, strict=False)


def _is_plain(value: Tensor) -> bool:
    """Whether it can be copied into a network's parameter; a meta tensor has no numbers."""
    dense = value.layout == torch.strided and not value.is_quantized and not value.is_nested
    return dense and not value.is_complex() and value.device.type == "cpu"


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"no weights file at {path}")
    if (size := path.stat().st_size) > _LARGEST:
        raise UserError(f"{path} has {size} bytes; no weights file of more than {_LARGEST} is read")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_pickles(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about its own formats, and about damaged ones
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable weights file ({reason})") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} holds no state dict (names to tensors)")
    return {str(k).removeprefix("module."): v for k, v in state.items()}


def _check_pickles(path: Path) -> None:
    """Refuse a .pth file that would take much more memory than it has bytes.

    Raises:
        ValueError: its pickle calls something that no state dict needs, or its parts are compressed or overlap.
    """
    with open(path, "rb") as handle:
        if handle.read(4) != b"PK\x03\x04":  # as PyTorch tells its two formats apart
            # a file sets aside as many bytes as it is asked for, a map gives what is there
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                for _ in range(_OLD_PICKLES):
                    _check_calls(mapped)
            return
        with zipfile.ZipFile(handle) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
                raise ValueError("compressed, which PyTorch's files are not")
            if sum(e.file_size for e in entries) > path.stat().st_size:
                raise ValueError("parts of it overlap")
            for entry in entries:
                if entry.filename.endswith("data.pkl"):
                    with archive.open(entry) as part:
                        _check_calls(part)


def _check_calls(stream: Any) -> None:
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name in ("GLOBAL", "INST") and not _PARTS.fullmatch(str(argument)):
            raise ValueError(f"it asks for {argument}, which is not part of a state dict; not loaded")


def _state_sha256(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _last_map(network: nn.Module, input_size: int) -> tuple[str, tuple[int, int, int]]:
    """Name and output shape (D,h,w) of the last module with a spatial output; adaptive pooling does not count."""
    seen: list[tuple[str, tuple[int, int, int]]] = []
    names = {module: name for name, module in network.named_modules()}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        pooled = isinstance(module, nn.AdaptiveAvgPool2d)
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] > 1 and not pooled:
            seen.append((names[module], (output.shape[1], output.shape[2], output.shape[3])))

    handles = [module.register_forward_hook(note) for module in names]
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, input_size, input_size))
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise UserError("this network has no spatial output; choose a CNN such as resnet101")
    return seen[-1]
