"""Checkpoints: one safetensors file with a checksum over all of it, written atomically, loaded without running code."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from core.files.atomic import write_bytes
from core.files.errors import UserError

_KEY = "vsmr"


def _digest(tensors: dict[str, Tensor], meta: str) -> str:
    digest = hashlib.sha256(meta.encode())
    for name, t in sorted(tensors.items()):
        digest.update(f"{name}{t.dtype}{tuple(t.shape)}".encode())
        digest.update(t.view(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return digest.hexdigest()


def save_checkpoint(path: Path | str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write named tensors and JSON-able ``meta`` to ``path``; nothing half-written ever has that name."""
    text = json.dumps(meta)
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    # one entry, since the format orders several at random and equal runs are to leave equal bytes
    header = json.dumps({"sha256": _digest(plain, text), "meta": text})
    write_bytes(path, save(plain, metadata={_KEY: header}))


def load_checkpoint(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and meta of a checkpoint, compared with its checksum."""
    try:
        # from memory: the library opens no path that is not UTF-8, and its tensors would hold the file open
        content = Path(path).read_bytes()
        header = json.loads(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"][_KEY])
        tensors = load(content)
        if _digest(tensors, header["meta"]) != header["sha256"]:
            raise ValueError("its content does not match its checksum")
        return tensors, json.loads(header["meta"])
    except FileNotFoundError as error:
        raise UserError(f"no checkpoint at {path}; the run that writes it has not ended") from error
    except Exception as error:  # safetensors raises its own kinds
        raise UserError(f"{path} is not a readable checkpoint ({error}); delete it to train again") from error
