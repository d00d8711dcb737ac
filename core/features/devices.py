"""Which device a command runs on, by any name a user would type."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from core.files.errors import UserError

if TYPE_CHECKING:
    import torch

NAMES = "auto, cpu, gpu, cuda, cuda:0, cuda:1, ..., or mps"


def resolve_device(name: str) -> torch.device:
    """The device of that name: auto (cuda where there is one, else cpu), cpu, gpu, cuda, cuda:N or mps, in any case.

    Raises:
        UserError: no such name, or this PyTorch sees no such device.
    """
    import torch  # takes seconds, which --help does not need

    wanted, name = name.strip().lower(), shlex.quote(name)
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        wanted = "cuda" if cuda else "cpu"
    elif wanted == "gpu":
        if not cuda and not mps:
            raise UserError(f"--device {name}: this PyTorch sees no GPU; use --device cpu")
        wanted = "cuda" if cuda else "mps"
    if wanted in ("cpu", "cpu:0"):
        return torch.device("cpu")
    if wanted in ("mps", "mps:0"):
        if not mps:
            raise UserError(f"--device {name}: this PyTorch sees no Apple GPU; use --device cpu")
        return torch.device("mps")
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", wanted)
    if not match:
        raise UserError(f"--device {name}: choose {NAMES}")
    if not cuda:
        raise UserError(f"--device {name}: this PyTorch sees no CUDA device; use --device cpu")
    if match[1] and int(match[1]) >= (count := torch.cuda.device_count()):
        there = "one CUDA device, cuda:0" if count == 1 else f"{count} CUDA devices, cuda:0 to cuda:{count - 1}"
        raise UserError(f"--device {name}: this machine has {there}")
    return torch.device(wanted)
