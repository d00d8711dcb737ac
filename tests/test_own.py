"""A folder of one's own, from photographs and a sheet to a table: what is read, what is refused, what is measured."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from core.datasets.own import Choices, Photograph, check_images, feature_pattern, find_images, read_folder, stand_in
from core.datasets.sheets import read_attributes
from core.features import images
from core.features.feature_file import FeatureFile
from core.files.errors import UserError
from core.inference.trained import find_run, load_trained
from core.training.checkpoint import load_checkpoint, save_checkpoint
from core.training.folds import final_fold, validation_fold
from tests.helpers import drawn_folder, refused, run_here
from tests.test_images import HEIC

SHEET = "class,red,blue,long\na,1,0,0.5\nb,0,1,0.25\nc,1,1,-2\nd,0,0,3\ne,1,0,1\nf,.5,1e0,0\n"
CREATURES = ("--backbone", "resnet18", "--weights", "random", "--input-size", "64", "--device", "cpu")


def folder(place: Path, sheet: str | bytes = SHEET, images: str = "aaaaabbbbbcccccdddddeee", **files: str) -> Path:
    """A folder with an empty file for each letter of ``images``: nothing here decodes them."""
    for i, name in enumerate(images):
        path = place / "images" / name / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (place / "attributes.csv").write_bytes(sheet.encode() if isinstance(sheet, str) else sheet)
    for name, text in files.items():
        (place / name.replace("_", ".")).write_text(text)
    return place


def looks(root: Path) -> dict[str, Photograph]:
    """As if each file were a photograph of its own."""
    return {file: Photograph(file) for files in find_images(root)[0].values() for file in files}


@pytest.fixture(scope="module")
def creatures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six drawn classes, the last of them described only."""
    drawn_folder(root := tmp_path_factory.mktemp("creatures"))
    return root


def test_from_a_folder_to_a_table_and_back(creatures: Path, tmp_path: Path) -> None:
    root = shutil.copytree(creatures, tmp_path / "mine")
    command = (tmp_path, "OWN_ours.py", "--data-root", root, *CREATURES)
    code, out, err = run_here(*command)
    assert code == 0, err
    (table,) = root.rglob("table.md")
    assert "1 class without images ('creature 5')" in table.read_text() and "| as published |" not in out
    assert {p.name for p in tmp_path.iterdir()} == {"mine"}  # nothing beside the data root
    chosen = json.loads((table.parent / "seed0" / "metrics.json").read_text())["chosen"]
    assert len(chosen["gammas"]) == 5 and "γ: mean over 5 validation splits a seed" in out
    trained = load_trained(table.parent / "seed0")
    assert trained.classes[5] == "creature 5" and 5 in trained.space.unseen.tolist()
    assert trained.attributes[0] == "red crown_color"
    assert "creature 5" not in (table.parent / "seed0" / "per_class.csv").read_text()

    use, run = load_trained(find_run(root)), load_trained(table.parent / "seed0")  # every photograph, the same settings
    assert (len(use.space.seen), use.space.unseen.tolist(), len(run.space.seen)) == (5, [5], 4)
    assert use.model.recipe == run.model.recipe and use.gamma != run.gamma
    assert (
        "for use, in\nuse/, was fitted with the same settings on all 20 photographs of 5 classes" in table.read_text()
    )

    (features,) = (root / "OWN").glob("feature_map_ResNet_18_64px_*_OWN.hdf5")
    made, used = features.stat().st_mtime_ns, find_run(root) / "checkpoint.safetensors"
    tensors, meta = load_checkpoint(used)
    save_checkpoint(used, tensors, meta | {"made_from": meta["made_from"] | {"chosen": {}}, "gamma": 99.0})
    code, _, err = run_here(*command)
    assert code == 0 and "finished earlier" in err and "is complete already" in err
    assert load_checkpoint(used)[1]["gamma"] == use.gamma  # what was made of other choices is made anew
    sheet = root / "attributes.csv"
    sheet.write_text(sheet.read_text().replace(",0\n", ",-0.5\n"))  # features do not depend on it
    code, _, err = run_here(*command[:-2], "--method", "eszsl")
    assert code == 0, err
    assert features.stat().st_mtime_ns == made and len(list((root / "OWN").glob("*.hdf5"))) == 1

    code, out, err = run_here(*command, "--unseen", "none")
    assert code == 0, err
    assert "| method, test sets | S |" in out and "so T1, U, H and AUSUC could not be measured" in out

    image = root / "images" / "creature 0" / "0.jpg"  # mended, with a copy of another and one that is damaged
    image.write_bytes(image.read_bytes() + b"\0")
    shutil.copy(image.with_name("1.jpg"), image.with_name("1 (1).jpg"))
    (root / "images" / "creature 1" / "bad.jpg").write_bytes(b"nothing")
    code, _, err = run_here(*command, "--select", "last")
    assert code == 0 and "1 images cannot be read and are left out: 'creature 1/bad.jpg: it is no image" in err, err
    assert "20 of 21 images are as in an earlier file" in err and features.stat().st_mtime_ns == made
    (new,) = {*(root / "OWN").glob("*.hdf5")} - {features}
    with FeatureFile(features) as before, FeatureFile(new) as now:
        place = {digest: row for row, digest in enumerate(before.metadata.image_sha256)}
        rows = np.array([place.get(digest, -1) for digest in now.metadata.image_sha256])
        assert (rows < 0).sum() == 1 and "creature 1/bad.jpg" not in now.metadata.image_files
        assert np.array_equal(now.read(np.flatnonzero(rows >= 0)), before.read(rows[rows >= 0]))
        assert not np.array_equal(now.read(np.flatnonzero(rows < 0)), 0 * now.read(np.array([0])))


def test_vectors_of_ones_own_and_nothing_is_written_below_the_root(creatures: Path, tmp_path: Path) -> None:
    """Everything that is written goes where the flags say, the copy of the vectors too."""
    K = len(read_attributes(creatures / "attributes.csv").attributes)
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(K, 7)))
    flags = ("--data-root", creatures, *CREATURES, "--vectors", tmp_path / "v.npy", "--gamma-splits", "1")
    before = sorted(creatures.rglob("*"))
    flags = (*flags, "--method", "dazle", "--features", tmp_path / "f" / "f.hdf5", "--out", tmp_path / "r")
    code, _, err = run_here(tmp_path, "OWN_ours.py", *flags)
    assert code == 0, err
    assert sorted(creatures.rglob("*")) == before and (tmp_path / "f" / "OWN_attribute.pkl").is_file()
    (run,) = (tmp_path / "r").rglob("seed0")
    assert load_trained(run).space.w2v.shape == (K, 7)
    np.save(tmp_path / "v.npy", np.ones((K + 1, 7)))
    refused(run_here(tmp_path, "OWN_ours.py", *flags), "v.npy", f"({K}, V)")


def test_what_is_missing(tmp_path: Path) -> None:
    (folder(tmp_path) / "attributes.csv").unlink()
    refused(run_here(tmp_path, "OWN_ours.py", "--data-root", tmp_path), "attributes.csv", "docs/own-data.md")
    folder(tmp_path, images="")
    shutil.rmtree(tmp_path / "images")
    refused(run_here(tmp_path, "OWN_ours.py", "--data-root", tmp_path), f"no image {tmp_path / 'images'}/<class>/*.jpg")


@pytest.mark.parametrize(
    ("images", "files", "choices", "says"),
    [
        ("aaabbb", {}, {"validation": False}, "2 seen classes with as many images each and 1 unseen class"),
        ("abbbcccdddeee", {}, {"unseen": ("e",)}, "fewer images: 'a'"),
        ("aaabbbcccddd", {}, {"unseen": ("E",)}, "--unseen: attributes.csv has no class 'E'"),
        ("aaabbbcccddd", {}, {"unseen": ("e",)}, "are 4 and 0"),  # e has no images: nothing to measure on
        ("aaabbbcccddd", {"unseen_txt": "a\n\nq\n"}, {}, "unseen.txt: attributes.csv has no class 'q'"),
        ("aaabbbcccddd", {"unseen_txt": "a", "splits_csv": "image,split\na/0.jpg,val\n"}, {}, "unseen.txt, --unseen"),
        ("aaabbbcccddd", {"splits_csv": "class,split\na,seen\n"}, {}, "a header image,... is needed"),
        *(
            ("aaabbbcccddd", {"splits_csv": f"image,split\na/1.jpg,val\n{line}\n"}, {}, "line 3, 'a/")
            for line in ("a/0.jpg,test", "a/1.jpg,val", "a/9.jpg,val")
        ),
        ("aaabbbcccxxx", {}, {}, "no row for the folders 'x'. Add it"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, images: str, files: dict, choices: dict, says: str) -> None:
    with pytest.raises(UserError) as error:
        read_folder(folder(tmp_path, images=images, **files), Choices(**choices))
    assert says in str(error.value)


def test_photographs_are_those_that_predict_reads_and_the_rest_is_counted(tmp_path: Path) -> None:
    root = folder(tmp_path, images="aaabbbcccddd")
    blanks = "at 3.04\u202fPM \U0001f468\u200d\U0001f469.png"  # blanks and joiners of any language may stand in names
    for name in ("x.jfif", "y.JPE", "z.NEF", "film.mp4", ".DS_Store", blanks):
        (root / "images" / "a" / name).touch()
    (root / "images" / "a ").mkdir()  # the same class: a blank at the end
    (root / "images" / "a " / "0.png").touch()
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "3.png").touch()
    (root / "images" / "a" / "more").symlink_to(tmp_path / "disk")
    images, notes = find_images(root)
    plain = [f"a/{n}" for n in ("0.jpg", "1.jpg", "2.jpg", "more/3.png", "x.jfif", "y.JPE")]
    assert images["a"] == sorted(["a /0.png", f"a/{blanks}", *plain])
    assert notes == ["2 files below images/ are no photographs and are passed over: 'a/film.mp4', 'a/z.NEF'"]
    for name, why in ((b"b/\xff.jpg", "is not UTF-8"), (b"b/x\ny.jpg", "holds control characters")):
        (root / "images" / os.fsdecode(name)).touch()
        with pytest.raises(UserError, match=f"rename .*: its name .*{why}"):
            find_images(root)
        (root / "images" / os.fsdecode(name)).unlink()


def test_what_is_drawn_is_drawn_by_seed_and_a_class_without_images_is_measured_nowhere(tmp_path: Path) -> None:
    root = folder(tmp_path, images="aaaaaaaaaabbbbbcccccdddddeee")
    (root / "images" / "f").mkdir()
    m = read_folder(root)
    assert len(m.unseen) == 1 and m.candidates.tolist() == [5]
    assert m.notes[0] == "1 class without images ('f'): offered in every prediction, in no accuracy"
    assert len(m.val_loc) and not np.intersect1d(m.labels[m.val_loc], m.labels[m.train_loc]).size
    assert np.array_equal(m.att, read_attributes(root / "attributes.csv").values)  # -2 and all
    again = read_folder(root)
    assert all(np.array_equal(getattr(m, k), getattr(again, k)) for k in ("trainval_loc", "test_seen_loc", "val_loc"))
    assert len({tuple(read_folder(root, Choices(seed=s)).unseen.tolist()) for s in range(8)}) > 1
    assert len(read_folder(root, Choices(unseen_share=0.4)).unseen) == 2
    named = read_folder(root, Choices(unseen=("b", "f")))
    assert named.unseen.tolist() == [1] and named.candidates.tolist() == [5]
    held = np.bincount(named.labels[named.test_seen_loc], minlength=6)
    assert held.tolist() == [2, 0, 1, 1, 1, 0]  # a fifth of each, at least one
    seeds = [read_folder(root, Choices(unseen=("b",), seed=s)) for s in range(8)]
    for part in ("test_seen_loc", "val_loc"):
        assert len({tuple(getattr(m, part).tolist()) for m in seeds}) > 1
    assert len({tuple(np.unique(m.labels[m.val_loc])) for m in seeds}) > 1
    (root / "unseen.txt").write_text("\ufeffc\r\n")
    assert read_folder(root).unseen.tolist() == [2]

    fold = final_fold(named, np.eye(3, dtype=np.float32))
    assert fold.space.unseen.tolist() == [1, 5] and fold.candidates.tolist() == [5]
    # neither b nor f enters what is chosen
    assert len(validation_fold(named, np.eye(3, dtype=np.float32)).space.att) == 4


def test_splits_csv(tmp_path: Path) -> None:
    lines = ["image,split"]
    for i, name in enumerate("aaaaabbbbbcccccdddddeee"):
        side = "test_unseen" if name in "de" else "test_seen" if i % 5 == 0 else "val" if name == "c" else "train"
        lines += [f"images\\{name}\\{i}.jpg,{side}"] if i != 22 else []
    m = read_folder(folder(tmp_path, splits_csv="\n".join(lines)))
    assert m.test_seen_loc.tolist() == [0, 5, 10] and m.unseen.tolist() == [3, 4] and len(m.test_unseen_loc) == 7
    assert m.val_loc.tolist() == [11, 12, 13, 14] and len(m.trainval_loc) == 12
    assert any("1 images are not in it" in note for note in m.notes)
    damaged = read_folder(tmp_path, looked=looks(tmp_path) | {"a/1.jpg": Photograph("", "it is empty")})
    assert "a/1.jpg" not in damaged.image_files and len(damaged.trainval_loc) == 11


def test_odd_sheets_are_named(tmp_path: Path) -> None:
    sheet = "class,x,y,same,grams\na,1,1,1,3\nb,1,1,1,3\nc,0,0,1,84\nd,0.5,0.5,1,1\ne,-1,0,1,2\n"
    notes = " | ".join(read_folder(folder(tmp_path, sheet), Choices(unseen=("a",))).notes)
    for said in ("'a', 'b' have identical", "tell none apart (same)", "'grams' are more than 10 times", "negative"):
        assert said in notes


def test_features_depend_on_the_images_alone(tmp_path: Path) -> None:
    root = folder(tmp_path, images="abbbcccdddeeefff")
    m = stand_in(root, looked := looks(root))
    m.check("the stand-in")
    again = read_folder(root, Choices(unseen=("a",)), looked)
    assert m.image_files == again.image_files and feature_pattern(root, again) == (before := feature_pattern(root, m))
    for digests in (m.image_sha256, []):  # files of before have none
        check_images(root / "f", m.image_files, digests, root, again)
    mended = looked | {"b/1.jpg": Photograph("mended")}
    with pytest.raises(UserError, match="made of other images .*'b/1.jpg'"):
        check_images(root / "f", m.image_files, m.image_sha256, root, stand_in(root, mended))
    assert feature_pattern(root, stand_in(root, mended)) != before
    (root / "images" / "a" / "new.webp").touch()
    assert feature_pattern(root, stand_in(root, looks(root))) != before


def test_copies_never_stand_on_both_sides(tmp_path: Path) -> None:
    root = folder(tmp_path, images="a" * 20 + "bbbbcccdddeee")
    looked = looks(root) | {f"a/{i}.jpg": Photograph(f"copied {i // 2}") for i in range(20)}
    for seed in range(5):
        m = read_folder(root, Choices(unseen=("e",), seed=seed), looked)
        sides = [{m.image_sha256[row] for row in loc} for loc in (m.trainval_loc, m.test_seen_loc)]
        assert not sides[0] & sides[1] and len(m.trainval_loc) + len(m.test_seen_loc) == 30
    assert any("images are copies of test images" in note for note in m.notes)
    m = read_folder(root, Choices(unseen=("e",)), looked | {"e/31.jpg": looked["b/20.jpg"]})  # whose is it?
    assert not {"e/31.jpg", "b/20.jpg"} & {*m.image_files}
    assert "2 images lie in the folders of two classes and are left out: 'b/20.jpg', 'e/31.jpg'" in m.notes


def test_a_photograph_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, opened, real = folder(tmp_path, images="ab"), [], images.open_image
    Image.new("RGBA", (9, 9)).save(root / "images" / "a" / "x.png")
    (root / "images" / "b" / "link.jpg").symlink_to("nowhere")
    (root / "images" / "a" / "0.jpg").write_bytes(b"first")
    monkeypatch.setattr(images, "open_image", lambda *a, **k: opened.append(1) or real(*a, **k))
    for times in (3, 0):
        looked = images.look_at(root, root / "OWN" / "f.hdf5")
        assert len(opened) == times
        digest = hashlib.sha256((root / "images/a/x.png").read_bytes()).hexdigest()
        assert looked["a/x.png"].sha256 == digest and not looked["a/x.png"].error
        assert "empty" in looked["b/1.jpg"].error and "No such file" in looked["b/link.jpg"].error
        opened.clear()
    (root / "images" / "a" / "0.jpg").write_bytes(b"other")  # as large
    os.utime(root / "images" / "a" / "0.jpg", ns=(1, 1))
    (root / "images" / "a" / "x.png").unlink()
    assert {*images.look_at(root, root / "OWN" / "f.hdf5")} == {"a/0.jpg", "b/1.jpg", "b/link.jpg"}
    assert len(opened) == 1
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (root / "images" / "a" / "y.heic").write_bytes(HEIC)
    with pytest.raises(UserError, match="HEIC needs pillow-heif.*pip install pillow-heif"):
        images.look_at(root, root / "OWN" / "f.hdf5")


def test_what_the_system_refuses_once_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, images="a")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", Mock(side_effect=PermissionError(13, "denied")))
        assert images.look_at(root, root / "f.hdf5")["a/0.jpg"].error == "denied"
    assert "empty" in images.look_at(root, root / "f.hdf5")["a/0.jpg"].error  # chmod changes neither size nor time
