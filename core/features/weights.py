"""Weights files: read without running what is in them, and fitted to a network whose head may be another.

Understood are state dicts and training checkpoints that hold one, under the names that training scripts use, with or
without the prefixes of DataParallel, torch.compile, EMA or a wrapping module.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from core.files.errors import UserError, first_line, is_out_of_memory
from core.files.kinds import missing, unreadable

SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".bin")
# where training scripts keep the state dict; an averaged one is what they evaluate, so it comes first
_CONTAINERS = (
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema", "teacher"),
    *("state_dict", "model_state_dict", "model"),
)
# what follows the trunk in torchvision, timm and the training scripts of others
HEADS = (
    *("fc", "head", "heads", "head_dist", "classifier", "AuxLogits", "aux1", "aux2"),
    *("last_linear", "fc_norm", "attn_pool"),
)
_NOT_LEARNED = ("num_batches_tracked", "n_averaged", "position_ids", "attn_mask")  # some versions store them, some not
# as torchvision's own loader does: the files of densenet are older than the rule against dots in module names
_DENSE_LAYER = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


def is_weights_file(weights: str) -> bool:
    """Whether a --weights value names a file rather than weights that a library knows."""
    return weights.lower().endswith(SUFFIXES)


def read_state(path: Path) -> dict[str, Tensor]:
    """Names to tensors of a .safetensors file, a state dict or a training checkpoint; nothing in it is run."""
    if not path.is_file():
        raise UserError(missing(path, "weights file"))
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        content = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), content)
        return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    except Exception as error:  # a damaged file raises nearly anything
        if is_out_of_memory(error):
            raise
        # PyTorch's own text advises to let the file run what it likes
        raise unreadable(path, "weights file", "torch.save(model.state_dict(), FILE) makes one") from error


def load_weights(network: nn.Module, weights: str | None) -> None:
    """Fit a weights file to a network; heads, the file's and the network's, are left alone. Other names fit nothing."""
    if weights is None or not is_weights_file(weights):
        return
    own = _trunk(network.state_dict())
    state = _trunk(_without_prefix(list(own), read_state(Path(weights))))
    found = {
        "missing": sorted(own.keys() - state.keys()),
        "unknown": sorted(state.keys() - own.keys()),
        "of another shape": [k for k in own if k in state and state[k].shape != own[k].shape],
    }
    said = [f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in found.items() if keys]
    if said:
        raise UserError(f"{weights} does not fit the network: {'; '.join(said)}. Is it of another --backbone?")
    network.load_state_dict(state, strict=False)


def _trunk(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k.split(".")[0] not in HEADS and not k.endswith(_NOT_LEARNED)}


def _without_prefix(names: list[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state dict that has most of a network's names, without the prefix they have there."""
    prefixes = {key[: -len(names[0])] for key in state if key == names[0] or key.endswith("." + names[0])} or {""}
    best = max(sorted(prefixes, key=len), key=lambda p: sum(p + name in state for name in names))
    taken = {k.removeprefix(best): v for k, v in state.items() if k.startswith(best)}
    return {_DENSE_LAYER.sub(r"\1\2", k): v for k, v in taken.items()}


@contextlib.contextmanager
def from_hub(backbone: str, file: str) -> Iterator[None]:
    """Around what fetches weights, where nearly anything may be raised; ``file`` is what can be fetched by hand."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{backbone} could not be made with its weights ({first_line(error)}). Offline? Download its {file} "
            f"elsewhere and name it: --weights {Path(file).name}"
        ) from error


def fetch_cached(url: str) -> Path:
    """The file of torch's cache that a weights address stands for; if it is not there, it is downloaded and checked."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not path.exists():
        with from_hub(path.stem, url):
            torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    return path


def state_sha256(network: nn.Module) -> str:
    """SHA-256 of a network's names and numbers."""
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
