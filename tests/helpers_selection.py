"""A made-up data set whose images carry their class, their row and how hard they are in their features."""

from dataclasses import dataclass

import numpy as np
import torch

from core.datasets.metadata import Metadata
from core.method import Batches, Method, Phase, ZeroShotModel, hp
from core.training.folds import final_fold, validation_fold
from tests.helpers import metadata_of

SEEN, UNSEEN, EACH = 12, 6, 40  # classes and images of each
C, DIGITS = SEEN + UNSEEN, 3
D = C + DIGITS + 1  # class, row, difficulty
W2V = np.eye(C, dtype=np.float32)


def metadata() -> Metadata:
    """12 + 6 classes of 40 images: 30 trainval and 10 test images of a seen class, one attribute a class."""
    return metadata_of(SEEN, UNSEEN, EACH, np.eye(C), val=4, every=4)


class Source:
    """(n,D,1) maps: 1 at the class, the row in three digits to base 10, and how hard the image is."""

    def __init__(self, m: Metadata) -> None:
        N = len(m.labels)
        hard = np.zeros(N)
        for fold in (validation_fold(m, W2V, 0), final_fold(m, W2V)):
            for rows, labels in ((fold.seen_rows, fold.seen_labels), (fold.unseen_rows, fold.unseen_labels)):
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


def decode(x: torch.Tensor) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """Class one-hot (n,C), rows (n,) and difficulty (n,) of regions x (n,1,D) or pooled (n,D)."""
    x = x.reshape(len(x), -1)
    x = x / x[:, :C].amax(dim=1, keepdim=True)
    digits = (x[:, C : C + DIGITS] * 10).round().long().numpy()
    return x[:, :C].round(), digits @ 10 ** np.arange(DIGITS), x[:, -1]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the scripted model is told."""

    epochs: int = hp(4, "most epochs", at_least=0)
    setting: float = hp(0.0, "a setting that the grid offers", at_least=0)
    tuned: float = hp(-1.0, "what the hook tune chose")


# share of images of (seen, unseen) classes that are right after each epoch, on the validation and on the final fold.
# AUSUC is their product: on validation highest after epoch 1, where H (2), T1 and U (4), S (3) and the last epoch (4)
# say otherwise
VALIDATION = [(0.2, 0.2), (0.5, 0.9), (0.66, 0.66), (1.0, 0.3), (0.4, 1.0)]
FINAL = [(0.1, 0.1), (0.6, 0.4), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0)]
# by number of classes and epoch, how much higher seen classes score: γ is needed, another after each epoch and fold
LEAD = {8 + 4: (2.5, 1.5, 2.0, 3.5, 4.0), C: (3.0,) * 5}


class Scripted(ZeroShotModel):
    """Right on the share of images that the script says."""

    gamma = 0.25

    def __init__(self, space, recipe, shown) -> None:
        super().__init__()
        self.recipe, self.shown, self.drift, self.late = recipe, shown, lambda epoch: 0.0, 0  # late: in the script
        self.shift = max(0.0, recipe.tuned)  # what a setting adds to the scores of seen classes
        self.weight = torch.ones(1, D)
        self.dummy = torch.nn.Parameter(torch.zeros(()))
        self.att, self.seen, self.unseen = map(torch.nn.Buffer, (space.att, space.seen, space.unseen))
        self.epoch = torch.nn.Buffer(torch.zeros((), dtype=torch.long))
        self.setting = torch.nn.Buffer(torch.tensor(float(recipe.setting)))

    def loss(self, x, y):
        _, rows, _ = decode(x)
        assert self.training
        self.shown.setdefault("trained", set()).update(rows.tolist())
        step = rows.tolist(), float(torch.rand(())), (self.weight @ x[:1, 0].T).dtype
        self.shown.setdefault("steps", []).append(step)
        return {"loss": self.dummy + 1}  # its gradient is 1: after training it is minus the sum of the rates

    def class_scores(self, x):
        onehot, rows, hard = decode(x)
        self.shown.setdefault("scored", set()).update(rows.tolist())
        s = onehot @ self.att.T  # 1 at the own class
        is_seen = torch.zeros(len(self.att), dtype=torch.bool).index_fill(0, self.seen, True)
        own_seen = s @ is_seen.float() > 0
        script = torch.tensor(FINAL if len(self.att) == C else VALIDATION)
        right = hard < torch.where(own_seen, *script[int(self.epoch) - self.late])
        shifted = s.clone()  # a wrong image gets the next class of its own side
        shifted[:, self.seen] = s[:, self.seen].roll(1, dims=1)
        shifted[:, self.unseen] = s[:, self.unseen].roll(1, dims=1)
        s = torch.where(right[:, None], s, shifted)
        s[:, self.seen] += LEAD[len(self.att)][int(self.epoch)] + self.drift(int(self.epoch)) + self.shift
        return s


def registered(shown, **hooks):
    """A build of the scripted method; what it and its hooks are shown is collected in ``shown``."""

    def build(recipe, space, shape, seed, epochs):
        shown["model"] = model = Scripted(space, recipe, shown)
        for key, value in (("built", recipe), ("seeds", seed)):
            shown.setdefault(key, []).append(value)
        if "drift" in shown:
            model.drift = lambda epoch: shown["drift"](seed, epoch)
            model.late = int(seed > 0)  # what split 0 has after epoch 1, others have an epoch later
        optimizer, rates = torch.optim.SGD(model.parameters(), lr=1.0), shown.setdefault("rates", [])

        def loss(x, y):
            rates.append(optimizer.param_groups[0]["lr"])
            return model.loss(x, y)

        phase = Phase(
            name="scripted", loss=loss, optimizer=optimizer, batches=Batches(30), epochs=epochs,
            lr_at=lambda done: 1 - done / (epochs + 1), after_epoch=lambda: model.epoch.add_(1),
        )  # fmt: skip
        return Method(model=model, phases=[phase], **{k: v(model, shown) for k, v in hooks.items()})

    return build
