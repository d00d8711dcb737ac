"""A run in TensorBoard while it goes on (extra `tensorboard`): loss, and what validation says of each epoch."""

from pathlib import Path
from typing import Any

from core.files.errors import library


class Board:
    """Event files in OUT/tensorboard. The test sets' numbers are not in them: those are read when all is chosen."""

    def __init__(self, out: Path) -> None:
        with library(f"--tensorboard ({out / 'log.jsonl'} does not)", "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._writer: Any = SummaryWriter(str(out / "tensorboard"))

    def __call__(self, fold: str, row: dict[str, Any]) -> None:
        """One row of the history of a fold ("validation" or "refit")."""
        for key, value in row.items():
            if isinstance(value, int | float) and key != "epoch" and not key.startswith("selected_on_test"):
                self._writer.add_scalar(f"{fold}/{key.removeprefix('val_')}", value, row["epoch"])
        self._writer.flush()
