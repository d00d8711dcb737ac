"""Devices by the names that users give them."""

from __future__ import annotations

import torch

from core.files.errors import UserError


def resolve_device(name: str) -> torch.device:
    """auto, cpu, gpu, cuda, cuda:1 or mps, in any case, as a device; auto: a GPU where there is one.

    Raises:
        UserError: no such device here.
    """
    low = name.lower()
    if low == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    low = "cuda" if low == "gpu" else low
    kind, _, number = low.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not (kind == "cuda" and number.isdigit())):
        raise UserError(f"--device {name}: choose auto, cpu, cuda, cuda:0, cuda:1, ... or mps")
    if kind == "cuda" and (not torch.cuda.is_available() or int(number or 0) >= torch.cuda.device_count()):
        raise UserError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: torch sees no such device; use --device cpu")
    return torch.device(low)
