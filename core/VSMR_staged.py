"""VSMR as published, stage by stage: method ``vsmr-staged``.

Y. Zhang, T. Chen, K. Yu, X. Hu, "Zero-shot learning with visual-semantic mutual reinforcement for image recognition",
Journal of Electronic Imaging 33(5) 053041, 2024; losses and gradients of the authors' code are in tests/golden/.
Reading order is the order of the stages; A are the class attributes as they are, a = 1[A > 0]:
    0 attribute predictor     p[b] = σ(linear(pooled feature of image b)), BCE against a of its class; 1[p > threshold]
                              stands for a at test time
    1 visual transfer         θ_ri = softmax over r of v_i^T W2 x_r     w_i = a_i σ(Σ_r θ_ri v_i^T W3 x_r)
                              f = Σ_r ρ_r x_r, ρ_r = Σ_i w_i θ_ri       p_c: mean of f over the batch's images of c
                              L_PS = (Σ_{b,c} cos(f_b,p_c) - Σ_b cos(f_b,p_{y_b})) / Σ_b cos(f_b,p_{y_b})
                              L_PP = 1/(2 C_B) Σ_{c≠c'} cos(p_c,p_c')   C_B classes in the batch; loss L_PS + L_PP
    2 seen visual prototypes  P_c = mean of f over the class's training images
    3 semantic transfer       0.1 MSE(E(A_c), P_c) + MSE(D(E(A_c)), A_c) over the seen classes, E and D with one hidden
                              layer each
    4 prediction              cosine of f with P (seen) and E(A) (unseen)
    5 transductive            an unseen prototype plus its nearest test features: :func:`published_procedure`, printed
                              under its own label and never a result

The predictor's input is the average-pooled output of the network there, and the mean of unit regions times the mean
length of the training images' regions here: of the same scale, so that the published learning rates hold, but without
the differences in length between regions. The log of the authors' CUB50 script does not show L_PP; here it is in the
loss.

B images · R regions · D channels · K attributes · C classes (S seen) · V word-vector size
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.attention import DenseAttention
from core.method import AttentionOutput, Batches, ClassSpace, Images, Losses, Method, Phase, ZeroShotModel, hp, method

STEP = 10  # iterations in one "epoch" of the visual phase, the grain of its selection
THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 20))  # of the predicted mask, where it is chosen on validation
_WEIGHT_DECAY = 1e-4  # of stages 0 and 1
_VISUAL_LR = 1e-4
_CLASSES_PER_STEP = 10  # of stage 3


@dataclass(frozen=True, kw_only=True)
class StagedRecipe:
    """The published numbers of one data set, by stage."""

    predictor_lr: float = hp(1e-5, "learning rate of the attribute predictor (stage 0)", above=0)
    predictor_epochs: int = hp(20, "epochs of the attribute predictor (stage 0)", at_least=0)
    threshold: float | None = hp(0.45, "of the predicted mask; none: chosen on validation", at_least=0, at_most=1)
    visual_momentum: float = hp(0.9, "momentum of RMSprop (stage 1)", at_least=0, below=1)
    visual_iterations: int = hp(40, f"most steps of stage 1, {STEP} to an epoch", at_least=1)
    train_vectors: bool = hp(False, "learn word vectors (stage 1)")
    normalize_vectors: bool = hp(False, "keep word vectors at unit length while they are learned")
    hidden: int = hp(1024, "hidden width of E and D (stage 3)", at_least=1)
    semantic_lr: float = hp(8e-4, "learning rate of E and D (stage 3)", above=0)
    semantic_epochs: int = hp(200, "epochs of E and D (stage 3)", at_least=0)
    neighbours: int = hp(10, "test images added to an unseen prototype (stage 5, diagnostic only)", at_least=1)
    classes_per_batch: int = hp(40, "classes in a step (stage 1)", at_least=1)
    images_per_class: int = hp(50, "images of each (stage 1)", at_least=1)

    @property
    def epochs(self) -> int:
        """Epochs of stage 1, the phase whose length validation chooses."""
        return max(1, self.visual_iterations // STEP)


class VSMRStaged(ZeroShotModel):
    """The five published stages; training them is the loop's, :meth:`fit_prototypes` stages 2 and 3."""

    gamma = 0.0  # no calibration was published

    def __init__(self, space: ClassSpace, D: int, recipe: StagedRecipe, seed: int) -> None:
        super().__init__()
        K = space.att.shape[1]
        self.recipe = recipe
        self.seed = seed
        self.predictor = nn.Linear(D, K)
        learned = {"train_vectors": recipe.train_vectors, "normalize_vectors": recipe.normalize_vectors}
        self.attention = DenseAttention(space.w2v, D, scores=False, **learned)
        self.E = nn.Sequential(nn.Linear(K, recipe.hidden), nn.ReLU(), nn.Linear(recipe.hidden, D))
        self.D = nn.Sequential(nn.Linear(D, recipe.hidden), nn.ReLU(), nn.Linear(recipe.hidden, K))
        self.A = nn.Buffer(space.att)
        self.presence = nn.Buffer((space.att > 0).float())  # (C,K)
        self.seen = nn.Buffer(space.seen)
        self.unseen = nn.Buffer(space.unseen)
        self.prototypes = nn.Buffer(torch.zeros(len(space.att), D))  # (C,D)
        self.threshold = nn.Buffer(torch.tensor(0.5 if recipe.threshold is None else recipe.threshold))
        self.region_norm = nn.Buffer(torch.ones(()))  # of the training images, before regions were unit vectors

    def presence_logits(self, pooled: Tensor) -> Tensor:
        """(B,K) of pooled unit regions (B,D)."""
        return self.predictor(pooled * self.region_norm)

    def predictor_loss(self, pooled: Tensor, y: Tensor) -> Losses:
        """Stage 0: BCE of the attributes of the image's class; pooled (B,D)."""
        return {"loss": F.binary_cross_entropy_with_logits(self.presence_logits(pooled), self.presence[y])}

    def predicted_mask(self, x: Tensor) -> Tensor:
        """(B,K) of 0 and 1 from the image alone."""
        return (torch.sigmoid(self.presence_logits(x.mean(dim=1))) > self.threshold).to(x.dtype)

    def attend(self, x: Tensor) -> AttentionOutput:
        """θ, and w masked as it is at test time, of x (B,R,D)."""
        a: AttentionOutput = self.attention(x)
        return AttentionOutput(a.theta, a.w * self.predicted_mask(x), None)

    def image_features(self, x: Tensor, mask: Tensor) -> Tensor:
        """f[b] = Σ_r ρ[b,r] x[b,r] with the attention masked to the attributes in ``mask`` (B,K): (B,D)."""
        a = self.attention(x)
        # the mask multiplies both θ and w; being binary, it matters once, and σ is the same wherever it is 1
        rho = torch.einsum("brk,bk->br", a.theta, a.w * mask)  # (B,R)
        return torch.bmm(rho.unsqueeze(1), x).squeeze(1)

    def visual_loss(self, x: Tensor, y: Tensor) -> Losses:
        """Stage 1: L_PS + L_PP over the classes in the batch."""
        return visual_losses(self.image_features(x, self.presence[y]), y)

    def semantic_loss(self, classes: Tensor, targets: Tensor) -> Tensor:
        """Stage 3: 0.1 MSE(E(A_c), P_c) + MSE(D(E(A_c)), A_c) of some classes, for targets P (C,D)."""
        A = self.A[classes]
        visual = self.E(A)
        return 0.1 * F.mse_loss(visual, targets[classes]) + F.mse_loss(self.D(visual), A)

    @torch.no_grad()
    def mean_features(self, blocks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Stage 2: P (C,D) from blocks of regions (n,R,D) and their classes (n,); 0 for a class without images."""
        total, count = torch.zeros_like(self.prototypes), torch.zeros_like(self.prototypes[:, 0])
        for x, y in blocks:
            total.index_add_(0, y, self.image_features(x, self.presence[y]).to(total.dtype))
            count.index_add_(0, y, torch.ones_like(y, dtype=count.dtype))
        return total / count.clamp_min(1).unsqueeze(1)

    def fit_prototypes(self, targets: Tensor) -> None:
        """Stage 3 from the seen classes' P (C,D), and the prototypes of stage 4; the run's seed decides the start."""
        r = self.recipe
        generator = torch.Generator().manual_seed(self.seed)
        for layer in (*self.E, *self.D):
            if isinstance(layer, nn.Linear):  # torch's own default initialisation, from our generator
                bound = layer.in_features**-0.5
                for parameter in (layer.weight, layer.bias):
                    values = torch.rand(parameter.shape, generator=generator) * 2 * bound - bound
                    parameter.data.copy_(values)
        optimizer = torch.optim.Adam([*self.E.parameters(), *self.D.parameters()], lr=r.semantic_lr)
        with torch.enable_grad():
            for _ in range(r.semantic_epochs):
                for batch in self.seen.split(_CLASSES_PER_STEP):  # in the order of the class numbers, as the authors do
                    loss = self.semantic_loss(batch, targets)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
        with torch.no_grad():
            self.prototypes.copy_(targets)
            self.prototypes[self.unseen] = self.E(self.A[self.unseen])

    def class_scores(self, x: Tensor) -> Tensor:
        """Stage 4: cosine of f (predicted mask) with every class prototype: (B,C)."""
        f = self.image_features(x, self.predicted_mask(x))
        return F.normalize(f, dim=1) @ F.normalize(self.prototypes, dim=1).T

    @torch.no_grad()
    def best_threshold(self, pooled: Tensor, y: Tensor) -> float:
        """The threshold whose masks have the highest mean F1, for pooled (N,D) and classes (N,)."""
        p, truth = torch.sigmoid(self.presence_logits(pooled)), self.presence[y]  # (N,K)
        scores = []
        for t in THRESHOLDS:
            mask = (p > t).float()
            hit = (mask * truth).sum(dim=1)
            scores.append((2 * hit / (mask.sum(dim=1) + truth.sum(dim=1)).clamp_min(1)).mean().item())
        return THRESHOLDS[int(np.argmax(scores))]


def visual_losses(f: Tensor, y: Tensor) -> Losses:
    """L_PS and L_PP of VSMR for image features f (B,D) of classes y (B,)."""
    classes, index = y.unique(return_inverse=True)
    C_B = len(classes)
    sums = torch.zeros(C_B, f.shape[1], dtype=f.dtype, device=f.device).index_add(0, index, f)
    p = F.normalize(sums, dim=1)  # (C_B,D); a mean and a sum have the same direction
    cos = F.normalize(f, dim=1) @ p.T  # (B,C_B)
    own = cos.gather(1, index.unsqueeze(1)).sum()
    ps = (cos.sum() - own) / own
    between = p @ p.T
    pp = (between.sum() - between.diagonal().sum()) / (2 * C_B)
    return {"loss": ps + pp, "L_PS": ps, "L_PP": pp}


@torch.no_grad()
def published_procedure(model: VSMRStaged, seen: Images, unseen: Images) -> dict[str, float]:
    """Stage 5 as the authors report it: TRANSDUCTIVE, and a plain average over images instead of classes.

    To each unseen prototype the features of the k unlabelled test images of unseen classes nearest to it (cosine) are
    added. Diagnostic only: it uses the test images to make the model, so it does not compare with inductive rows.
    """

    def features(images: Images) -> Tensor:
        return torch.cat([model.image_features(x, model.predicted_mask(x)) for x, _ in images.blocks()])

    f_unseen, f_seen = features(unseen), features(seen)  # (N,D)
    directions = F.normalize(f_unseen, dim=1)
    k = min(model.recipe.neighbours, len(f_unseen))
    prototypes = model.prototypes.clone()  # (C,D)
    nearest = (F.normalize(prototypes[model.unseen], dim=1) @ directions.T).topk(k, dim=1).indices  # (U,k)
    prototypes[model.unseen] += f_unseen[nearest].sum(dim=1).to(prototypes.dtype)
    prototypes = F.normalize(prototypes, dim=1)

    def accuracy(f: Tensor, y: Tensor, classes: Tensor) -> float:
        """Share of images (N,D) whose best of ``classes`` is their own."""
        best = (F.normalize(f, dim=1) @ prototypes[classes].T).argmax(dim=1)
        return (classes[best] == y).float().mean().item()

    every = torch.cat([model.seen, model.unseen])
    t1 = accuracy(f_unseen, unseen.labels, model.unseen)
    u, s = accuracy(f_unseen, unseen.labels, every), accuracy(f_seen, seen.labels, every)
    return {"T1": t1, "U": u, "S": s, "H": 2 * u * s / (u + s) if u + s else 0.0}


# Published for AWA2 and CUB50. None was for CUB and SUN: CUB50's numbers, the mask's threshold chosen on validation
# (measured on photographs of CUB: of 1e-5, 1e-4 and 1e-3, CUB50's 1e-5 has the highest F1 on validation classes).
_CUB50 = StagedRecipe()
RECIPES = {
    "*": replace(_CUB50, threshold=None),
    "CUB50": _CUB50,
    "AWA2": StagedRecipe(
        predictor_lr=1e-3, predictor_epochs=10, threshold=0.5, visual_momentum=0.0, visual_iterations=470,
        train_vectors=True, normalize_vectors=True, hidden=1850, semantic_lr=1e-3, semantic_epochs=180, neighbours=30,
    ),
    "DEMO": replace(_CUB50, threshold=None, predictor_lr=1e-3, images_per_class=20, semantic_epochs=100),
}  # fmt: skip
_DEVIATIONS = (
    "epochs of stage 1 and γ are chosen on validation; the attribute predictor takes the mean of unit regions at the "
    "scale of raw ones where the authors take the mean of raw ones; no recipe was published for CUB and SUN"
)


@method("vsmr-staged", recipes=RECIPES, deviations=_DEVIATIONS)
def build(recipe: StagedRecipe, space: ClassSpace, shape: tuple[int, int], seed: int, epochs: int) -> Method:
    """Stages 0 and 1 are phases, 2 and 3 the closing, the threshold's choice and stage 5 hooks."""
    model = VSMRStaged(space, shape[1], recipe, seed)

    def rmsprop(part: nn.Module, lr: float, momentum: float) -> torch.optim.Optimizer:
        kept = [p for p in part.parameters() if p.requires_grad]
        return torch.optim.RMSprop(kept, lr=lr, weight_decay=_WEIGHT_DECAY, momentum=momentum)

    predictor = Phase(
        name="predictor",
        loss=model.predictor_loss,
        optimizer=rmsprop(model.predictor, recipe.predictor_lr, 0.9),
        batches=Batches(64),
        epochs=recipe.predictor_epochs,
        selectable=False,
        pooled=True,
    )
    classes, images = recipe.classes_per_batch, recipe.images_per_class
    visual = Phase(
        name="visual",
        loss=model.visual_loss,
        optimizer=rmsprop(model.attention, _VISUAL_LR, recipe.visual_momentum),
        batches=Batches(classes * images, steps=STEP, classes=classes, per_class=images),
        epochs=epochs,
    )

    def tune(unseen: Images) -> dict[str, float]:
        threshold = model.best_threshold(unseen.pooled(), unseen.labels)
        model.threshold.fill_(threshold)
        return {"threshold": threshold}

    return Method(
        model=model,
        phases=[predictor, visual],
        begin=lambda training: model.region_norm.fill_(training.region_norm()),
        finish=lambda training: model.fit_prototypes(model.mean_features(training.blocks())),
        tune=tune if recipe.threshold is None else None,
        diagnose=lambda seen, unseen: published_procedure(model, seen, unseen),
    )
