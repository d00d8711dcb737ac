"""Small intact files of every kind that is read, for fuzz_readers.py to mutate; the same bytes each time."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import scipy.sparse
import torch
from gensim.models import KeyedVectors, Word2Vec
from PIL import Image
from torch import nn

from core.datasets.metadata import Metadata
from core.datasets.registry import DataSet
from core.features import writer as feature_writer

TOY = DataSet(name="TOY", anchor="toy", val_share=0.34)


def metadata() -> Metadata:
    """Four classes of five images, the last one unseen."""
    labels = np.repeat(np.arange(4), 5)
    seen = np.flatnonzero(labels < 3)
    trainval, att = np.setdiff1d(seen, seen[::5]), np.eye(4, 6, dtype=np.float32)
    names = [f"images/ä {i}.png" for i in range(20)]
    splits = (trainval, seen[::5], np.flatnonzero(labels == 3), trainval[:8], trainval[8:])
    return Metadata("TOY", names, labels, ["a", "b", "c", "d"], att, att, *splits, "0" * 64)


def mats(folder: Path, compress: bool) -> tuple[bytes, bytes]:
    """res101.mat and att_splits.mat."""
    m = metadata()
    files = np.array([[f"/x/toy/{name}"] for name in m.image_files], dtype=object)
    names = np.array([[name] for name in m.class_names], dtype=object)
    first, second = io.BytesIO(), io.BytesIO()
    scipy.io.savemat(first, {"labels": m.labels[:, None] + 1, "image_files": files}, do_compression=compress)
    locs = {key: getattr(m, key)[:, None] + 1 for key in ("trainval_loc", "test_seen_loc", "test_unseen_loc")}
    locs |= {"train_loc": m.train_loc[:, None] + 1.0, "val_loc": np.uint8(m.val_loc[:, None] + 1)}
    content = {"att": m.att.T, "original_att": m.att.T, "allclasses_names": names, **locs}
    scipy.io.savemat(second, content, do_compression=compress)
    comment = b"MATLAB 5.0 MAT-file".ljust(116)  # with the time of day otherwise
    return comment + first.getvalue()[116:], comment + second.getvalue()[116:]


def odd_mats() -> list[bytes]:
    """att_splits.mat as other programs write it: sparse attributes, nested cells, names as text, a struct beside."""
    m, made = metadata(), []
    locs = {key: getattr(m, key)[:, None] + 1 for key in ("trainval_loc", "test_seen_loc", "test_unseen_loc")}
    nested = np.empty((4, 1), dtype=object)
    for i, name in enumerate(m.class_names):
        nested[i, 0] = np.array([[name]], dtype=object)
    for att, written in ((scipy.sparse.csc_matrix(m.att.T), nested), (m.att, np.array(m.class_names)[:, None])):
        out = io.BytesIO()
        scipy.io.savemat(out, {"att": att, "allclasses_names": written, "info": {"by": "x"}, **locs})
        made.append(b"MATLAB 5.0 MAT-file".ljust(116) + out.getvalue()[116:])
    return made


def hdf5s(folder: Path) -> tuple[bytes, bytes]:
    """A feature file, and one in DAZLE's layout."""
    m, maps = metadata(), np.random.default_rng(0).random((20, 2, 2, 2)).astype(np.float16)
    content = feature_writer.FeatureFileMetadata(m, {"dataset": "TOY", "input_size": 64}, np.ones((6, 3), np.float32))
    with feature_writer.Writer(folder / "new.hdf5", content, (2, 2, 2)) as writer:
        writer.write(np.arange(20), maps)
        new = writer.finish().read_bytes()
    with h5py.File(folder / "old.hdf5", "w") as file:
        file.create_dataset("feature_map", data=maps.astype(np.float32), compression="gzip")
        for key, values in content.arrays().items():
            text = values.dtype == object
            file.create_dataset(key, data=values, dtype=h5py.string_dtype() if text else None, compression="gzip")
    return new, (folder / "old.hdf5").read_bytes()


def archives() -> list[bytes]:
    """A tar.gz, a plain tar with a long name, and a zip."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        for name in ("top/a.jpg", "top/" + "long" * 40):
            info = tarfile.TarInfo(name)
            info.size = 300
            t.addfile(info, io.BytesIO(bytes(range(100)) * 3))
    made = [gzip.compress(out.getvalue(), mtime=0), out.getvalue()]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, content in (("top/a.jpg", bytes(range(100)) * 3), ("top/b.txt", b"b")):
            z.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return [*made, out.getvalue()]


def images() -> list[bytes]:
    """Every format that is decoded, in several modes."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))
    forms = [("JPEG", m) for m in ("RGB", "L", "CMYK")] + [("PNG", m) for m in ("RGB", "P", "LA", "RGBA", "I;16", "1")]
    forms += [("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "CMYK"), ("TIFF", "F"), ("WEBP", "RGB")]
    forms += [("PPM", "RGB")]
    made = []
    for form, mode in forms:
        out = io.BytesIO()
        image = Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40)) if mode == "I;16" else noise
        more: dict[str, Any] = {"save_all": True, "append_images": [noise.convert(mode)]} if form == "GIF" else {}
        (image if mode == "I;16" else image.convert(mode)).save(out, form, **more)
        made.append(out.getvalue())
    tiled = io.BytesIO()
    noise.save(tiled, "TIFF", compression="tiff_lzw")
    return [*made, tiled.getvalue()]


def network() -> nn.Module:
    """Few weights, for reading them is what counts; a number that is not a float among them."""
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2))


def weights() -> list[bytes]:
    """Both of PyTorch's formats, as published files wrap them; tensors of every kind; a pickle that asks for memory."""
    shapes = {k: v.shape for k, v in network().state_dict().items() if v.is_floating_point()}
    parts = torch.linspace(0.1, 1, sum(s.numel() for s in shapes.values())).split([s.numel() for s in shapes.values()])
    plain = {k: part.view(shape) for (k, shape), part in zip(shapes.items(), parts, strict=True)}
    wrapped = {"state_dict": {f"module.{k}": v for k, v in plain.items()}, "epoch": 3, "best": [0.5]}
    made = []
    for state in (plain, wrapped):
        out = io.BytesIO()
        torch.save(state, out, _use_new_zipfile_serialization=False)
        # the address of the storage, of which there is one for that reason, is another one each time
        made.append(re.sub(rb"\d{13,16}", lambda found: b"7" * len(found[0]), out.getvalue()))
    kinds = [plain["0.bias"].to_sparse(), torch.ones(2, device="meta"), torch.ones(2, dtype=torch.complex64)]
    kinds += [torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), torch.ones(2).to(torch.float8_e5m2)]
    kinds += [torch.ones(1).expand(2), torch.ones(1).expand(1 << 40), torch.tensor([1e300, 1], dtype=torch.float64)]
    more = [{k: nn.Parameter(v.half()) for k, v in plain.items()}, {**plain, "1.num_batches_tracked": torch.tensor(3)}]
    for state in (plain, wrapped, *more, *({**plain, "0.bias": kind} for kind in kinds)):
        out = io.BytesIO()
        torch.save(state, out)
        made.append(out.getvalue())
    hostile = io.BytesIO()
    with zipfile.ZipFile(out) as old, zipfile.ZipFile(hostile, "w") as new:
        for entry in old.infolist():  # with its date, which is the same each time
            call = b"\x80\x02cbuiltins\nbytearray\n(J\0\0\0\x20tR."
            new.writestr(entry, call if entry.filename.endswith("data.pkl") else old.read(entry))
    return [*made, hostile.getvalue()]


def word_vectors(folder: Path) -> dict[str, list[bytes]]:
    """GloVe's, fastText's and word2vec's text, word2vec's binary form, gensim's pickles and a zip, by suffix."""
    made: dict[str, list[bytes]] = {}
    for size in (300, 2):
        kv = KeyedVectors(size)
        kv.lifecycle_events = None  # they hold the time of day
        kv.add_vectors(["red", "ä", "new", "world"], np.random.default_rng(0).random((4, size)).astype(np.float32))
        for suffix, options in {
            ".txt": [{"binary": False, "write_header": False}, {"binary": False}],
            ".bin": [{"binary": True}],
        }.items():
            for option in options:
                kv.save_word2vec_format(str(folder / "w"), **option)
                made.setdefault(suffix, []).append((folder / "w").read_bytes())
        kv.save(str(folder / "w"), separately=[])
        made.setdefault(".kv", []).append((folder / "w").read_bytes())
    made[".vec"] = made[".txt"][1::2]
    model = Word2Vec(vector_size=2, min_count=1, workers=1, seed=1)
    model.build_vocab([["red", "new", "world"]])
    model.lifecycle_events = None
    model.wv.lifecycle_events = None
    model.save(str(folder / "w"), separately=[])
    made[".model"] = [(folder / "w").read_bytes()]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("glove.txt"), made[".txt"][0])
    made[".zip"] = [packed.getvalue()]
    body = made[".txt"][1].split(b"\n", 1)[1]
    made[".txt"] *= 2  # so that not most of it is refused as it is
    made[".txt"] += [header + body for header in (b"99999999 0\n", b"-1 -300\n", b"4 2\n", b"999999999999 300\n")]
    made[".bin"] += [b"99999999 0\n" + made[".bin"][0], b"red 1e99 nan inf\n"]
    return made
