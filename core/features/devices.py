"""Which device a command runs on, by any name a user would type."""

from typing import TYPE_CHECKING

from core.files.errors import UserError

if TYPE_CHECKING:
    import torch

NAMES = "auto, cpu, gpu, cuda, cuda:0, cuda:1, ..., or mps"


def resolve_device(name: str) -> "torch.device":
    """The device of that name: auto (cuda where there is one, else cpu), cpu, gpu, cuda, cuda:N or mps, in any case."""
    import torch  # takes seconds, which --help does not need

    cuda, mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    there = ["cpu", *["cuda"] * bool(cuda), *(f"cuda:{i}" for i in range(cuda)), *["mps"] * mps]
    other = {"auto": "cuda" if cuda else "cpu", "gpu": "cuda" if cuda else "mps"}
    wanted = other.get(name.strip().lower(), name.strip().lower())
    if wanted not in there:
        raise UserError(f"--device {name}: this PyTorch sees no such device; choose auto, {', '.join(there)}")
    return torch.device(wanted)
