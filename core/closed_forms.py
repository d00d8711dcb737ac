"""Where vsmr looks: in which regions a question can be read, in closed form and without a single part location.

Regions that look alike (beaks, wings, twigs) are taken for one kind, and the answer to a question is looked for in the
kinds from which it can be foretold for a class that was left out. The colour of a crown can be read from heads, and
from wings and twigs only as far as it goes along with what these show. All answers to one question are looked for in
the same place: which it is can be told better from all of them than from a rare one.

N images · R regions · D channels · K attributes · G questions · S seen classes · k kinds of regions
"""

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


@torch.no_grad()
def readable_regions(images: Images, seen_index: Tensor, z: Tensor, questions: Tensor) -> Tensor:
    """(G,D), to be multiplied by a sharpness: its product with x_r is how well each question can be read from what
    region r shows.

    Kinds of regions are clusters of unit regions less their mean (spherical k-means). A kind's share q in a region is
    the softmax of 20 times the cosines with the centres. A (G,k) is how well questions can be read from the kinds
    (:func:`readability`), and P (k,D), ridge regression from regions to q, makes shares linear in x: A P.

    Args: images of training; seen_index (C,) place of a class number among the seen; z (S,K) prepared attributes of the
    seen classes; questions (K,) numbers of what the attributes are answers to, 0 to G-1.
    """
    regions = sampled_regions(images).to(z)
    mean = regions.mean(dim=0)
    regions -= mean
    centres = region_kinds(regions)
    k, D = centres.shape
    q = _shares(regions, centres)  # (n,k)
    P = torch.linalg.solve(shrunk((regions.T @ regions).double(), 0.1), (regions.T @ q).double()).T  # (k,D)
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
    A = torch.stack([readability(means[:, kind], z[chosen], questions) for kind in range(k)], dim=1)  # (G,k)
    return (A.double() @ P).to(z)


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


def readability(means: Tensor, z: Tensor, questions: Tensor) -> Tensor:
    """(G,) correlation over classes and answers of attributes z (S,K) with their ridge prediction from means (S,D),
    each class predicted by the others (leave one out, in closed form).
    """
    m, target = means.double() - means.double().mean(dim=0), z.double() - z.double().mean(dim=0)
    gram = m @ m.T
    hat = gram @ torch.linalg.inv(shrunk(gram, _RIDGE))
    own = hat.diagonal().unsqueeze(1)
    predicted = (hat @ target - own * target) / (1 - own)
    products = torch.stack([predicted * target, predicted.square(), target.square()]).sum(dim=1)  # (3,K)
    G = int(questions.max()) + 1
    both, of_predicted, of_target = products.new_zeros(3, G).index_add_(1, questions, products)
    return (both / (of_predicted * of_target).sqrt().clamp_min(1e-12)).to(z)


def shrunk(gram: Tensor, share: float) -> Tensor:
    """Gram matrix and ``share`` of its mean diagonal."""
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return gram + share * gram.diagonal().mean().clamp_min(1e-12) * eye
