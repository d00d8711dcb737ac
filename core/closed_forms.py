"""What vsmr starts from: both maps of the attention in closed form, pulled back onto the attributes' word vectors.

W1 says how much of an attribute is in a region (ESZSL). W2 says in which regions an attribute is looked for, and is
found without a single part location: regions that look alike (beaks, wings, twigs) are taken for one kind, and an
attribute is looked for in the kinds from which its value can be foretold for a class that was left out. The colour of a
crown can be read from heads, and from wings and twigs only as far as it goes along with what these show.

N images · R regions · D channels · K attributes · S seen classes · V word-vector size · k kinds of regions
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.method import Images

KINDS = 16  # of regions
_SAMPLE = 30_000  # regions that k-means sees, at most
_ROUNDS = 15  # of k-means
_SHARPNESS = 20.0  # of the share of a region in a kind, per unit of cosine
_CLASSES = 1024  # that readability is judged on, at most: its cost grows with their cube
_RIDGE = 0.3  # of the regression that readability is judged by, in mean diagonals of its Gram matrix
_PULL_BACK = 0.1  # ridge of the maps' pull-back onto word vectors; rows of v have unit length


def closed_form_W1(u: Tensor, index: Tensor, z: Tensor, v: Tensor) -> Tensor:
    """(V,D): ESZSL's bilinear map from centred pooled features u (N,D) to attributes, pulled back onto word vectors.

    ESZSL (Romera-Paredes and Torr, ICML 2015) has W (D,K) = (uᵀu + γI)^-1 uᵀ Y z (zᵀz + λI)^-1 in closed form, Y (N,S)
    being +1 for an image's own class and -1 else. v_iᵀ W1 x scores attribute i.

    Args: index (N,) class of each image, 0 to S-1; z (S,K); v (K,V).
    """
    u, z = u.double(), z.double()
    own = torch.zeros(len(z), u.shape[1], dtype=u.dtype, device=u.device).index_add_(0, index, u)  # (S,D)
    right = (2 * own - u.sum(dim=0)).T @ z  # uᵀ Y z
    W = torch.linalg.solve(_shrunk(u.T @ u, 10), right) @ torch.linalg.inv(z.T @ z + _eye(z.T))  # (D,K)
    return _pulled_back(W.T, v)


@torch.no_grad()
def closed_form_W2(images: Images, seen_index: Tensor, z: Tensor, v: Tensor) -> Tensor:
    """(V,D), to be multiplied by a sharpness: v_iᵀ W2 x_r is how well attribute i can be read from what region r shows.

    Kinds of regions are clusters of unit regions less their mean (spherical k-means). A kind's share q in a region is
    the softmax of 20 times the cosines with the centres. A (K,k) is how well attributes can be read from the kinds
    (:func:`readability`). P (k,D), ridge regression from regions to q, makes shares linear in x, and W2 is the ridge
    solution of v W2 = A P.

    Args: images of training; seen_index (C,) place of a class number among the seen; z (S,K) prepared attributes of the
    seen classes; v (K,V).
    """
    regions = sampled_regions(images).to(z)
    mean = regions.mean(dim=0)
    regions -= mean
    centres = region_kinds(regions)
    k, D = centres.shape
    q = _shares(regions, centres)  # (n,k)
    P = torch.linalg.solve(_shrunk((regions.T @ regions).double(), 0.1), (regions.T @ q).double()).T  # (k,D)
    del regions
    chosen = torch.linspace(0, len(z) - 1, min(len(z), _CLASSES), dtype=torch.float64).round().long().to(z.device)
    place = torch.full((len(z),), -1, dtype=torch.long, device=z.device)
    place[chosen] = torch.arange(len(chosen), device=z.device)
    sums, counts = z.new_zeros(len(chosen), k, D), z.new_zeros(len(chosen))
    for x, y in images.blocks():
        index = place[seen_index[y]]
        x, index = x[index >= 0].to(z), index[index >= 0]
        q = _shares(x - mean, centres)  # (n,R,k)
        shown = q.transpose(1, 2) @ x / q.sum(dim=1).clamp_min(1e-6).unsqueeze(2)  # (n,k,D)
        sums.index_add_(0, index, shown)
        counts.index_add_(0, index, torch.ones_like(index, dtype=counts.dtype))
    means = sums / counts.clamp_min(1).view(-1, 1, 1)
    A = torch.stack([readability(means[:, kind], z[chosen]) for kind in range(k)], dim=1)  # (K,k)
    return _pulled_back(A.double() @ P, v)


def sampled_regions(images: Images) -> Tensor:
    """Some 30,000 regions (n,D): as many from every image, or one from each of that many images.

    They are drawn by a generator of its own: the same images give the same regions, in blocks of any size.
    """
    N, before = len(images.labels), 0
    step = -(-N // _SAMPLE)
    drawn: Tensor | None = None  # filled in place: pieces that stay between blocks that go would scatter the memory
    for x, _ in images.blocks():
        _, R, D = x.shape
        if drawn is None:
            random = torch.rand(-(-N // step), R, generator=torch.Generator().manual_seed(0))
            picks = random.topk(max(1, min(R, _SAMPLE // N)), dim=1).indices.to(x.device)
            drawn = x.new_empty(*picks.shape, D)
        own = x[-before % step :: step]
        first = -(-before // step)
        here = slice(first, first + len(own))
        torch.gather(own, 1, picks[here].unsqueeze(2).expand(-1, -1, D), out=drawn[here])
        before += len(x)
    assert drawn is not None
    return drawn.flatten(0, 1)


def region_kinds(regions: Tensor) -> Tensor:
    """(k,D) unit centres of spherical k-means over centred regions (n,D); one that loses all its regions stays."""
    rng = torch.Generator().manual_seed(0)
    regions = F.normalize(regions, dim=1)
    centres = regions[torch.randperm(len(regions), generator=rng)[:KINDS].to(regions.device)]
    for _ in range(_ROUNDS):
        nearest = (regions @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, regions)
        filled = torch.bincount(nearest, minlength=len(centres)).unsqueeze(1) > 0
        centres = F.normalize(torch.where(filled, sums, centres), dim=1)
    return centres


def _shares(x: Tensor, centres: Tensor) -> Tensor:
    """q (...,k) of centred regions x (...,D)."""
    return (F.normalize(x, dim=-1) @ centres.T * _SHARPNESS).softmax(dim=-1)


def readability(means: Tensor, z: Tensor) -> Tensor:
    """(K,) correlation over classes of attributes z (S,K) with their ridge prediction from means (S,D), each class
    predicted by the others (leave one out, in closed form).
    """
    m, target = means.double() - means.double().mean(dim=0), z.double() - z.double().mean(dim=0)
    gram = m @ m.T
    hat = gram @ torch.linalg.inv(_shrunk(gram, _RIDGE))
    own = hat.diagonal().unsqueeze(1)
    predicted = (hat @ target - own * target) / (1 - own)
    return ((predicted * target).sum(dim=0) / (predicted.norm(dim=0) * target.norm(dim=0)).clamp_min(1e-12)).to(z)


def _pulled_back(maps: Tensor, v: Tensor) -> Tensor:
    """(V,·): ridge solution W of v W = maps (K,·)."""
    v = v.double()
    return torch.linalg.solve(v.T @ v + _PULL_BACK * _eye(v.T), v.T @ maps.double()).float()


def _shrunk(gram: Tensor, share: float) -> Tensor:
    """Gram matrix and ``share`` of its mean diagonal."""
    return gram + share * gram.diagonal().mean().clamp_min(1e-12) * _eye(gram)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)
