"""A made-up data set whose images carry their class, their row and how hard they are in their features."""

from __future__ import annotations

import numpy as np
import torch

from core.datasets.metadata import Metadata
from core.training.folds import final_fold, validation_fold

SEEN, UNSEEN, EACH = 12, 6, 40  # classes and images of each
C, DIGITS = SEEN + UNSEEN, 3
D = C + DIGITS + 1  # class, row, difficulty
W2V = np.eye(C, dtype=np.float32)


def metadata() -> Metadata:
    """12 + 6 classes of 40 images: 30 trainval and 10 test images of a seen class, one attribute a class."""
    rows = np.arange(C * EACH).reshape(C, EACH)
    labels = np.repeat(np.arange(C), EACH)
    train = rows[: SEEN - 4, :30].ravel()
    return Metadata(
        name="TOY",
        image_files=[f"{i}.jpg" for i in range(len(labels))],
        labels=labels,
        class_names=[f"class {c}" for c in range(C)],
        att=np.eye(C, dtype=np.float32),
        original_att=np.eye(C, dtype=np.float32),
        trainval_loc=rows[:SEEN, :30].ravel(),
        test_seen_loc=rows[:SEEN, 30:].ravel(),
        test_unseen_loc=rows[SEEN:].ravel(),
        train_loc=train,
        val_loc=rows[SEEN - 4 : SEEN, :30].ravel(),
        split_sha256="",
    )


class Source:
    """(n,D,1) maps: 1 at the class, the row in three digits to base 10, and how hard the image is."""

    def __init__(self, m: Metadata) -> None:
        N = len(m.labels)
        hard = np.zeros(N)
        v, f = validation_fold(m, W2V, 0), final_fold(m, W2V)
        for rows, labels in (
            (v.seen_rows, v.seen_labels),
            (v.unseen_rows, v.unseen_labels),
            (f.seen_rows, f.seen_labels),
            (f.unseen_rows, f.unseen_labels),
        ):
            for c in np.unique(labels):  # evenly spread within every class: a share of 0.5 is half of each class
                mine = rows[labels == c]
                hard[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
        self.maps = np.zeros((N, D, 1), dtype=np.float32)
        self.maps[np.arange(N), m.labels, 0] = 1
        for digit in range(DIGITS):
            self.maps[:, C + digit, 0] = np.arange(N) // 10**digit % 10 / 10
        self.maps[:, -1, 0] = hard

    def read(self, rows):
        return self.maps[rows]

    def prefetch(self, rows):
        pass


def decode(x: torch.Tensor) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """Class one-hot (n,C), rows (n,) and difficulty (n,) of regions x (n,1,D) or pooled (n,D)."""
    x = x.reshape(len(x), -1)
    x = x / x[:, :C].amax(dim=1, keepdim=True)
    digits = (x[:, C : C + DIGITS] * 10).round().long().numpy()
    return x[:, :C].round(), digits @ 10 ** np.arange(DIGITS), x[:, -1]
