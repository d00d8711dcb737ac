"""What every benchmark shares: rows of the table, interleaved timing, peak memory, problems and photographs of a size.

B images · R regions · D channels · K attributes · C classes · V word-vector size
"""

from __future__ import annotations

import gc
import io
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import scipy.io
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from core.datasets.registry import DEMO
from core.DAZLE import DAZLE
from core.method import ClassSpace, Method, epochs_of
from core.methods import find_method

ROOT = Path(__file__).resolve().parent.parent
Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One line of the table; empty where a column does not apply."""

    what: str
    reference: str = ""
    ours: str = ""
    ratio: str = ""
    memory: str = ""


@dataclass(frozen=True)
class Shape:
    """A training problem of a data set's size."""

    name: str
    K: int
    C: int
    unseen: int
    B: int = 50
    R: int = 49
    D: int = 2048
    V: int = 300

    def __str__(self) -> str:
        return f"{self.name} K={self.K} C={self.C} R={self.R}"


SHAPES = {s.name: s for s in (Shape("CUB", 312, 200, 50), Shape("AWA2", 85, 50, 10), Shape("SUN", 102, 717, 72))}


def space_of(shape: Shape) -> ClassSpace:
    """Random classes of a shape."""
    rng, seen = np.random.default_rng(0), shape.C - shape.unseen
    att = torch.from_numpy(rng.random((shape.C, shape.K), dtype=np.float32))
    vectors = torch.from_numpy(rng.standard_normal((shape.K, shape.V), dtype=np.float32))
    return ClassSpace(att, torch.arange(seen), torch.arange(seen, shape.C), vectors)


class DrawnImages:
    """Two random images of every seen class, for what a method computes before its first step, which is not timed."""

    def __init__(self, shape: Shape, device: str = "cpu") -> None:
        self.shape = shape
        self.labels = torch.arange(shape.C - shape.unseen, device=device).repeat(2)  # (N,)
        means = torch.randn(len(self.labels), shape.D, generator=torch.Generator().manual_seed(2))
        self._means = F.normalize(means, dim=1).to(device)  # (N,D)

    def pooled(self) -> Tensor:
        return self._means

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        for means, y in zip(self._means.split(self.shape.B), self.labels.split(self.shape.B), strict=True):
            yield means.unsqueeze(1).expand(-1, self.shape.R, -1), y

    def region_norm(self) -> float:
        return 1.0


class ReferenceDAZLE(nn.Module):
    """DAZLE's step as its equations are written, each by one einsum over V, W and x; parameters are core's, copied.

    What the original computes and never uses is left out, and the class scores are contracted at once.
    """

    def __init__(self, model: DAZLE) -> None:
        super().__init__()
        a = model.attention
        assert a.W1 is not None and model.recipe.use_w and not a.normalize_vectors
        # v (K,V); W1, W2 and W3 (V,D)
        self.v, self.W1, self.W2, self.W3 = (nn.Parameter(w.detach().clone()) for w in (a.v, a.W1, a.W2, a.W3))
        self.lambda_cal, self.z, self.unseen = model.recipe.lambda_cal, model.z, model.unseen
        self.margin = -torch.ones(len(self.z), device=self.z.device)  # (C,) m: +1 unseen, -1 seen
        self.margin[self.unseen] = 1

    def loss(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of s over all classes + λ self-calibration of s + m; x (B,R,D) of unit regions, y (B,)."""
        S = torch.einsum("kv,vd,brd->bkr", self.v, self.W1, x)
        theta = torch.einsum("kv,vd,brd->bkr", self.v, self.W2, x).softmax(dim=2)
        h = torch.einsum("bkr,brd->bkd", theta, x)
        e = torch.einsum("bkr,bkr->bk", theta, S)
        w = torch.sigmoid(torch.einsum("kv,vd,bkd->bk", self.v, self.W3, h))
        s = torch.einsum("bk,bk,ck->bc", w, e, self.z)
        cal = -torch.log((s + self.margin).softmax(dim=1)[:, self.unseen].sum(dim=1).mean())
        return {"loss": F.cross_entropy(s, y) + self.lambda_cal * cal}


def our_method(shape: Shape, device: str = "cpu", method: str = "dazle") -> Method:
    """core's model with the optimiser its recipe for CUB gives it, ready for its first step."""
    registered = find_method(method)
    recipe = registered.recipe("CUB")
    made = registered.build(recipe, space_of(shape), (shape.R, shape.D), 0, epochs_of(recipe))
    made.model.to(device)
    if made.begin:
        made.begin(DrawnImages(shape, device))
    return made


def step_of(
    form: str, shape: Shape, device: str = "cpu", autocast: torch.dtype | None = None, warm_optimizer: bool = False
) -> Callable[[], Tensor]:
    """One training step (forward, loss, backward, optimiser) of a method or of the "reference", on a fixed batch.

    The reference is the textbook form of "dazle", its parameters a copy. With ``warm_optimizer`` the optimiser's state
    is allocated before the first step.
    """
    method = our_method(shape, device, "dazle" if form == "reference" else form)
    model, loss, optimizer = method.model, method.phases[0].loss, method.phases[0].optimizer
    if form == "reference":
        assert isinstance(model, DAZLE)
        reference, r = ReferenceDAZLE(model).to(device), model.recipe
        loss, parameters = reference.loss, reference.parameters()
        optimizer = torch.optim.RMSprop(parameters, lr=r.lr, weight_decay=r.weight_decay, momentum=r.momentum)
    if warm_optimizer:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    generator = torch.Generator().manual_seed(1)
    x = F.normalize(torch.randn(shape.B, shape.R, shape.D, generator=generator), dim=2).to(device)  # (B,R,D)
    y = torch.randint(shape.C - shape.unseen, (shape.B,), generator=generator).to(device)

    def step() -> Tensor:
        with torch.autocast(torch.device(device).type, autocast or torch.bfloat16, enabled=autocast is not None):
            value = loss(x, y)["loss"]
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def make_images(root: Path, n: int, width: int = 500, height: int = 375) -> Path:
    """n JPEG files of a photograph's size (hard links to 64 different ones) and xlsa17's two .mat files.

    Of six classes in turn 4 and 5 are unseen, and a third of the images of the seen ones is held out; n from 24 on.
    """
    folder, mats = root / DEMO.folders[0], root / "xlsa17" / "data" / DEMO.source
    (folder / "images").mkdir(parents=True)
    mats.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"images/{i:06}.jpg" for i in range(n)]
    for i, name in enumerate(names):
        if i >= 64:
            os.link(folder / names[i % 64], folder / name)
            continue
        pixels = np.zeros((height, width, 3), dtype=np.float32)
        for scale in (4, 16, 64, 256):  # detail at every scale, as photographs have: about 100 kB at 500x375
            coarse = Image.fromarray(rng.integers(0, 256, (scale, scale, 3), dtype=np.uint8))
            pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / scale**0.5
        pixels = (pixels - pixels.min()) * (255 / np.ptp(pixels))
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=90)
        (folder / name).write_bytes(buffer.getvalue())
    labels = np.arange(n) % 6
    seen = np.flatnonzero(labels < 4)
    held = seen[np.arange(len(seen)) // 4 % 3 == 0]
    rows = {"trainval_loc": np.setdiff1d(seen, held), "test_seen_loc": held}
    splits = {key: own[:, None] + 1 for key, own in (rows | {"test_unseen_loc": np.flatnonzero(labels >= 4)}).items()}
    files = np.array([[f"/{DEMO.anchor}/{name}"] for name in names], dtype=object)
    scipy.io.savemat(mats / "res101.mat", {"labels": labels[:, None] + 1, "image_files": files})
    classes = np.array([[f"class{c}"] for c in range(6)], dtype=object)
    scipy.io.savemat(mats / "att_splits.mat", {"att": rng.random((5, 6)), "allclasses_names": classes, **splits})
    return root


def interleaved(works: Mapping[str, Work], repeats: int, wait: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Median seconds of each, run A B A B ... after two rounds of warm-up; ``wait`` ends asynchronous work."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 2):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            wait()
            if turn >= 2:
                taken[name].append(time.perf_counter() - started)
    return {name: median(times) for name, times in taken.items()}


class PeakMemory:
    """Bytes by which the resident memory of this process rose above its start, at most, within the block (Linux)."""

    rise = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        self._before = self._bytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.rise = self._bytes("VmHWM") - self._before

    def _bytes(self, key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def in_fresh_process(module: str, *flags: object) -> str:
    """Last line that ``python -m benchmarks.<module> flags`` prints."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, flags)]
    # glibc otherwise keeps freed tensors for reuse, and what a step adds would depend on what was freed before it
    variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, cwd=ROOT, env=variables, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip().splitlines()[-1]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds * 1e3:.0f} ms"


def megabytes(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"


def against(what: str, reference: float, ours: float, memory: str = "") -> Row:
    """A row of two times in seconds; the ratio is how many times faster ours is."""
    return Row(what, milliseconds(reference), milliseconds(ours), f"{reference / ours:.2f}x", memory)


def report(rows: Sequence[Row]) -> int:
    """Print the rows as a Markdown table, and the machine they were measured on."""
    names = [field.name for field in fields(Row)]
    for line in (names, ["---"] * len(names), *(asdict(row).values() for row in rows)):
        print(f"| {' | '.join(line)} |")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    print(
        f"\n{cpu_says('model name', 'CPU implementer')}, {torch.get_num_threads()} threads, {memory:.0f} GiB, {gpu}; "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"torchvision {version('torchvision')}, NumPy {np.__version__}"
    )
    return 0


def cpu_says(*keys: str) -> str:
    """First /proc/cpuinfo entry of one of these names."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() in keys), "unknown CPU")
