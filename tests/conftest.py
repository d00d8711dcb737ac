"""Fixtures of several test modules. What is no fixture is in helpers.py."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.datasets.xlsa17 import read_mat_files
from core.DAZLE import ClassSpace
from tests import helpers_xlsa17 as xlsa17
from tests.helpers import (
    TOY,
    C,
    K,
    V,
    extraction,
    run_here,
    toy_mats,
    weights_file,
    word_vectors,
)
from tests.helpers_predict import Made
from tests.helpers_xlsa17 import PARTS, Drawn, Maker

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the drawn data sets comes first and together, so that one worker makes them and not every one."""
    items.sort(key=lambda item: "made" not in item.fixturenames)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def cheap_weights() -> Iterator[None]:
    """Random weights of large networks repeat a block of 65,537 numbers: half of such tests' time is drawing them."""

    def tiled(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def drawn(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            flat, block = self.detach().view(-1) if self.is_contiguous() else self.detach(), 65_537
            if flat.ndim != 1 or len(flat) <= block:
                return draw(self, *args, **kwargs)
            draw(flat[:block], *args, **kwargs)
            for start in range(block, len(flat), block):
                flat[start : start + block] = flat[: min(block, len(flat) - start)]
            return self

        return drawn

    with pytest.MonkeyPatch.context() as patch:
        for name in ("uniform_", "normal_"):
            patch.setattr(Tensor, name, tiled(getattr(Tensor, name)))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared real data are not beside the repository")
    return SHARED


@pytest.fixture
def toy(tmp_path):
    return read_mat_files(*toy_mats(tmp_path / "toy"), TOY)


@pytest.fixture
def space() -> ClassSpace:
    """Four seen and three unseen classes in float64, for comparison with textbook forms."""
    g = torch.Generator().manual_seed(0)
    att = torch.rand(C, K, generator=g, dtype=torch.float64) * (torch.rand(C, K, generator=g) > 0.4)
    att[:, 0] += 0.1
    return ClassSpace(att, torch.tensor([0, 1, 3, 5]), torch.tensor([2, 4, 6]), torch.randn(K, V, generator=g))


@pytest.fixture(scope="session")
def glove(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of every word in the drawn attribute names, in GloVe's format."""
    return xlsa17.write_glove(tmp_path_factory.mktemp("glove") / "glove.small.300d.txt")


@pytest.fixture(scope="session")
def made(glove: Path, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """A data set drawn, with vectors and features made by the repository's scripts, once a session: its folder."""
    done: dict[str, tuple[Path, Drawn]] = {}

    def make(name: str) -> tuple[Path, Drawn]:
        if name not in done:
            place, part = tmp_path_factory.mktemp(name), PARTS[name]
            drawn = xlsa17.draw(place / "data", name, part.images, cub50=part.cub50)
            xlsa17.paint(drawn)
            weights = weights_file(place, part.backbone)
            options = ["--backbone", part.backbone, "--weights", weights, "--input-size", part.input_size]
            for script, flags in ((word_vectors(name), ["--source", glove]), (extraction(name), options)):
                code, _, err = run_here(place, script, *map(str, flags))
                assert code == 0, err
            done[name] = place, drawn
        return done[name]

    return make


@pytest.fixture(scope="session")
def there(made: Maker) -> Made:
    """Runs of every method on a drawn AWA2, each trained when a test first asks for it."""
    place, _ = made("AWA2")
    (weights,) = place.glob("*.safetensors")
    return Made(place, weights)


@pytest.fixture
def photo(there: Made) -> Path:
    return there.tested()[1][0]
