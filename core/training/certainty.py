"""How sure an answer is, read off the validation fold: probabilities, "none of these", and what γ trades.

All of it is kept in spreads of the scores, as γ is, so that it carries over to the model that is refitted on more
classes (core.training.evaluation.spread). Answers that name a class with training images and answers that name one
without have temperatures and thresholds of their own, for their scores are made of other things.

An answer is "none of these" where its score is low, or hardly ahead of classes that nobody described: 600 virtual
rivals, mixed attribute by attribute from pairs of seen classes. Either is counted as its rank among the answers to the
validation images, and the lower rank decides. Low scores tell what is no such thing at all, rivals tell a class of the
same kind that is missing; a method that cannot score a description has the scores alone.

n images · C classes · K attributes
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from torch import Tensor

from core.features.regions import RegionFeatures
from core.method import ClassSpace, ZeroShotModel
from core.training.evaluation import calibrated, class_weights, curve_from_compact, sample
from core.training.folds import Fold

RIVALS = 600
LEVELS = np.linspace(0, 1, 51)  # of the quantiles that are kept
_GAMMAS = np.linspace(-2, 6, 41)  # in spreads
HELD = 0.9  # share of the validation images whose class is among the likely ones
_PLAIN = ("U", "S", "lowest", "level")  # no scores: in no unit


@torch.no_grad()
def measured(model: ZeroShotModel, features: RegionFeatures, fold: Fold, gamma: float, unit: float) -> dict[str, Any]:
    """What a model's answers at γ to the fold's images are worth, in spreads (``unit``); of two lists the first is of
    answers that name a seen class.
    """
    rivals = encoded_rivals(model, fold.space)
    parts, labels = list[tuple[np.ndarray, np.ndarray | None]](), []
    for rows, y in ((fold.seen_rows, fold.seen_labels), (fold.unseen_rows, fold.unseen_labels)):
        some = sample(len(rows))
        pieces = features.means(rows[some]) if model.uses_pooled_features else features.blocks(rows[some])
        parts += [_scores(model, x, rivals) for _, x in pieces]
        labels.append(y[some])
    y, side = np.concatenate(labels), np.repeat([0, 1], [*map(len, labels)])
    seen, unseen = fold.space.seen.numpy(), fold.space.unseen.numpy()
    scores = np.concatenate([s for s, _ in parts]) / unit
    best = [of[scores[:, of].argmax(axis=1)] for of in (seen, unseen)]
    top = [scores[np.arange(len(y)), one] for one in best]
    arrays = {"labels": y, "side": side, "best_seen": best[0], "best_unseen": best[1], "margin": top[0] - top[1]}
    U, S = zip(*map(curve_from_compact(arrays).at, _GAMMAS), strict=True)
    weight = class_weights(y, side)  # every class of a side the same, and both sides, as in H
    offered = calibrated(scores, seen, unseen, gamma / unit)  # (n,C)
    named = np.isin(offered.argmax(axis=1), unseen).astype(int)  # of which side the class is that an answer names
    found = [np.where(named == 1, top[1], top[0])]
    against = [r / unit for _, r in parts if r is not None]
    found += [found[0] - np.concatenate(against)] if against else []
    of_side = [named == s if (named == s).any() else named >= 0 for s in (0, 1)]
    tables = [[np.quantile(values[some], LEVELS).tolist() for some in of_side] for values in found]
    lowest = ranks(tables, found, named)
    temperature = [_temperature(offered[some], y[some], weight[some]) for some in of_side]
    p = probabilities({"temperature": temperature}, offered, unseen)
    return {
        "gammas": _GAMMAS.tolist(),
        "U": U,
        "S": S,
        "temperature": temperature,
        "level": level(p, y, weight),
        "ranks": tables,
        "lowest": [np.quantile(lowest[some], LEVELS).tolist() for some in of_side],
    }


def mean(several: Sequence[Mapping[str, Any]], unit: float = 1.0) -> dict[str, Any]:
    """What several folds say, averaged; scores times ``unit``."""
    return {
        key: (np.mean([one[key] for one in several], axis=0) * (1.0 if key in _PLAIN else unit)).tolist()
        for key in several[0]
    }


def _temperature(scores: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """By which scores (n,C) are divided so that their softmax gives the labels the highest likelihood."""

    def loss(log_t: float) -> float:
        p = softmax(scores / np.exp(log_t), axis=1)[np.arange(len(y)), y]
        return float(-(weight * np.log(np.maximum(p, 1e-12))).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-6, 3), method="bounded").x))


def probabilities(certainty: Mapping[str, Any], offered: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """(n,C) probabilities of the classes offered, from scores with γ; ``unseen``: class numbers."""
    side = np.isin(offered.argmax(axis=1), unseen).astype(int)
    return np.asarray(softmax(offered / np.array(certainty["temperature"])[side, None], axis=1))


def level(p: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """What the probabilities p (n,C) of likelier classes sum to at most, for :data:`HELD` of the images by weight."""
    before = (p * (p > p[np.arange(len(y)), y][:, None])).sum(axis=1)
    order = before.argsort()
    return float(before[order][np.searchsorted(weight[order].cumsum(), HELD * weight.sum())])


def confidence(certainty: Mapping[str, Any], gamma: float, space: ClassSpace, scores: np.ndarray) -> np.ndarray:
    """(n,) the probability of the class that each of the scores (n,C) names at γ."""
    seen, unseen = space.seen.numpy(), space.unseen.numpy()
    return probabilities(certainty, calibrated(scores, seen, unseen, gamma), unseen).max(axis=1).astype(np.float32)


def ranks(tables: Sequence[Any], found: Sequence[np.ndarray], side: np.ndarray) -> np.ndarray:
    """(n,) the lowest rank from 0 to 1 that each answer has among those of validation, by ``side`` (0 seen, 1 unseen).

    Args: found: of each answer its score without γ and, where there are rivals, what it is ahead of them, (n,) each.
    """
    lowest = np.ones(len(side))
    for table, values in zip(tables, found, strict=False):
        own = [np.interp(values, quantiles, LEVELS) for quantiles in table]
        lowest = np.minimum(lowest, np.where(side == 1, own[1], own[0]))
    return lowest


def none_of_these(
    certainty: Mapping[str, Any], found: Sequence[np.ndarray], side: np.ndarray, rate: float
) -> np.ndarray:
    """(n,) where an answer is worse than all but the share ``rate`` of the answers to validation images."""
    least = np.array([np.interp(rate, LEVELS, quantiles) for quantiles in certainty["lowest"]])
    return np.asarray((ranks(certainty["ranks"], found, side) < least[side]) & (rate > 0))


def encoded_rivals(model: ZeroShotModel, space: ClassSpace) -> tuple[Tensor, Tensor] | None:
    """Class attributes (V,K) and corrections (V,) of the virtual rivals; None where no description can be scored."""
    device = next(iter(model.state_dict().values())).device
    encoder = model.class_encoder(replace(space, att=space.att.to(device), seen=space.seen.to(device)))
    if encoder is None:
        return None
    generator, att = torch.Generator().manual_seed(0), space.att[space.seen].cpu()
    one = torch.randint(len(att), (RIVALS,), generator=generator)
    other = (one + torch.randint(1, max(len(att), 2), (RIVALS,), generator=generator)) % len(att)
    mixed = torch.where(torch.rand(RIVALS, att.shape[1], generator=generator) < 0.5, att[one], att[other])
    return encoder.encode(mixed.to(device))


def best_rival(g: Tensor, rivals: tuple[Tensor, Tensor]) -> np.ndarray:
    """(n,) the best score of a virtual rival for images of evidence g (n,K), without γ."""
    weights, correction = rivals
    return np.asarray((g @ weights.T + correction).amax(dim=1).cpu().numpy())


def _scores(
    model: ZeroShotModel, x: Tensor, rivals: tuple[Tensor, Tensor] | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (n,C) of regions x (n,R,D) and (n,) those of the best rival; one look at the image does for both."""
    a = model.attend(x)
    g = model.evidence(x, a)
    if g is None:
        return model.class_scores(x).cpu().numpy(), None
    scores = g @ model.class_attributes().T + sum(model.corrections(x, a).values())
    return scores.cpu().numpy(), None if rivals is None else best_rival(g, rivals)
