"""The command line and the course of events that all drivers share."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.datasets.attributes import load_attribute_vectors
from core.datasets.registry import CUB50, DATASETS, DataSet
from core.datasets.xlsa17 import Metadata, find_xlsa17
from core.experiments.run import RunConfig, run
from core.features.feature_file import FeatureFile
from core.features.regions import RegionFeatures
from core.files.atomic import read_json, sha256_file, write_bytes
from core.files.errors import UserError
from core.recipes import METHODS, STEP, most_epochs, recipe_of
from core.reporting.run_attention import draw_attention
from core.reporting.tables import table
from core.training.loop import PRECISIONS

log = logging.getLogger(__name__)

# what --help says of each hyper-parameter
_HELP = {
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "momentum": "momentum of RMSprop",
    "lambda_cal": "weight of the self-calibration loss",
    "balanced": "draw classes, then images (1) or images uniformly (0)",
    "normalize_vectors": "keep word vectors at unit length while they are learned (1) or not (0)",
    "use_w": "weight attribute scores by w (1) or not (0)",
    "lambda_distill": "weight of the mutual distillation loss",
    "lambda_reg": "weight of the attribute regression loss",
    "fusion": "share of the first branch in the prediction",
    "seen_only": "cross-entropy over seen classes (1) or over all (0)",
    "subtract_geometry": "encoder's geometry bias is taken off the products (1) or its logarithm added (0)",
    "feed_forward": "hidden width of the transformer's feed-forward parts",
    "dropout": "dropout while training",
    "alpha": "scale of the cosines, s1 and s2",
    "beta": "share of s2 in the score s1 + β s2",
    "ridge": "penalty of the ridge regression E, in mean eigenvalues",
    "width": "width of the whitened visual space (vsmr) or of the transformer",
    "shrinkage": "shrinkage r of the whitening, in mean eigenvalues",
    "mean_share": "share of the plain mean in the pooling; the rest is the saliency ρ",
    "root_attributes": "square root of class attributes (ablation switch)",
    "centre_attributes": "mean of the seen classes taken from class attributes (ablation switch)",
    "root_features": "signed square root of pooled features (ablation switch)",
    "whiten": "whitening; 0 rotates only (ablation switch)",
    "closed_start": "W1 from ESZSL's closed form; 0 starts at N(0,1) (ablation switch)",
    "ridge_encoder": "E by ridge regression; 0 learns a linear E by gradient (ablation switch)",
    "loss_semantic": "CE(s1) in the loss (ablation switch)",
    "loss_visual": "CE(s2) in the loss (ablation switch)",
    "regularise_x": "ESZSL's γ (default None: chosen on validation)",
    "regularise_z": "ESZSL's λ (default None: chosen on validation)",
    "predictor_lr": "stage 0: learning rate",
    "predictor_epochs": "stage 0: epochs",
    "threshold": "stage 0: probability from which an attribute counts as present (default None: chosen on validation)",
    "visual_momentum": "stage 1: momentum of RMSprop",
    "train_vectors": "stage 1: learn the word vectors (1) or not (0)",
    "hidden": "stage 3: hidden units of E and D",
    "semantic_lr": "stage 3: learning rate",
    "semantic_epochs": "stage 3: epochs",
    "neighbours": "stage 5 (transductive, diagnostic): test features per unseen prototype",
    "classes_per_batch": "stage 1: classes in a batch",
    "images_per_class": "stage 1: images of each class in a batch",
}
_APART = ("epochs", "batch_size", "visual_iterations", "prepared")  # have flags of their own, or are a method


def parser(dataset: str, description: str | None) -> argparse.ArgumentParser:
    """All flags of a driver; defaults of hyper-parameters are the recipe's."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = DATASETS[dataset].source
    p.add_argument("--method", choices=METHODS, default=METHODS[0], help=f"default {METHODS[0]}")
    p.add_argument("--seeds", type=int, default=1, help="number of seeds, 0 to N-1; the table gives mean ± std (1)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda if there is one")
    p.add_argument(
        "--precision",
        choices=(*PRECISIONS,),
        default="float32",
        help="of the products in a training step; bfloat16 is faster where the processor has it (float32)",
    )
    p.add_argument("--data-root", type=Path, default=Path("data"), help="holds xlsa17/ and the images (data)")
    p.add_argument("--features", type=Path, help=f"feature file (the one data/{source}/feature_map_*_{source}.hdf5)")
    p.add_argument("--w2v", type=Path, help=f"attribute vectors (w2v/{source}_attribute.pkl)")
    p.add_argument(
        "--select",
        choices=("val", "last"),
        default="val",
        help="val: epochs, γ and thresholds from a "
        "class-disjoint validation split, then refit; last: the recipe's epochs, the method's own γ (val)",
    )
    p.add_argument(
        "--epochs",
        type=int,
        help=f"most epochs (val) or epochs (last) of the main phase; vsmr-staged: {STEP} iterations each (recipe's)",
    )
    p.add_argument("--batch-size", type=int, help="images per step (the recipe's)")
    p.add_argument("--out", type=Path, default=Path("results"), help="results go to OUT/<data set>/<method>/seed<k>/")
    p.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="continue an unfinished run and read back a finished one; --no-resume starts anew (default: resume)",
    )
    p.add_argument(
        "--diagnostics",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also print the row labelled 'selected on test'; it costs one evaluation an epoch (default: yes)",
    )
    if dataset == "CUB":
        p.add_argument(
            "--split",
            choices=("ps", "cub50"),
            default="ps",
            help="ps: proposed split, 150+50 classes; cub50: the authors' 40+10 subset (ps)",
        )
    known: dict[str, list[str]] = {}
    kinds: dict[str, type] = {}
    for method in METHODS:
        recipe = recipe_of(method, dataset)
        for f in fields(recipe):
            value = getattr(recipe, f.name)
            if f.name not in _APART:
                known.setdefault(f.name, []).append(f"{method}: {value}")
                kinds[f.name] = float if value is None else type(value)
    group = p.add_argument_group("hyper-parameters (default: the recipe's)")
    for name, defaults in known.items():
        kind: Callable[[str], Any] = (lambda s: bool(int(s))) if kinds[name] is bool else kinds[name]
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"{_HELP[name]} ({'; '.join(defaults)})")
    return p


def extraction_command(dataset: DataSet) -> str:
    """The command that makes a data set's features."""
    if dataset.name == "DEMO":
        return "python DEMO_ours.py"
    return f"python extract_feature/extract_feature_map_ResNet_101_{dataset.source}.py"


def find_features(dataset: DataSet, given: Path | None) -> Path:
    """The feature file to use.

    Raises:
        UserError: none or several; says where we looked and the command that makes one, or continues one.
    """
    command = extraction_command(dataset)
    if given is not None:
        if given.is_file():
            return given
        raise UserError(f"no feature file at {given}. {_unfinished([given])}Make one with: {command} --out {given}")
    folder = Path("data") / dataset.source
    usual = folder / dataset.feature_file()
    found = sorted(folder.glob(f"feature_map_*_{dataset.source}.hdf5"))
    if usual in found:
        return usual
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"several feature files: {', '.join(map(str, found))}. Choose one with --features.")
    begun = [p.with_suffix("") for p in folder.glob(f"feature_map_*_{dataset.source}.hdf5.partial")]
    raise UserError(
        f"no feature file; looked for {folder}/feature_map_*_{dataset.source}.hdf5. {_unfinished(begun)}"
        f"Make one with: {command}"
    )


def _unfinished(finals: list[Path]) -> str:
    begun = [str(p) for final in finals if (p := final.with_name(final.name + ".partial")).is_file()]
    if not begun:
        return ""
    return f"There is an unfinished {begun[0]}: run the command that began it again, and it continues. "


def find_vectors(dataset: DataSet, given: Path | None, file: FeatureFile, K: int) -> tuple[np.ndarray, Path | None]:
    """Attribute vectors (K,V): the flag's, else w2v/, else those inside the feature file."""
    path = given or Path("w2v") / f"{dataset.source}_attribute.pkl"
    if given or path.is_file():
        return load_attribute_vectors(path, K), path
    inside = file.w2v_att
    if inside is not None:
        return np.asarray(inside, dtype=np.float32), None
    raise UserError(
        f"no attribute vectors: not at {path} and not in the feature file. "
        f"Make them with: python extract_feature/extract_attribute_w2v_{dataset.source}.py"
    )


def check_same_split(file: FeatureFile, path: Path, data_root: Path, dataset: DataSet) -> None:
    """Refuse a feature file that was made from another att_splits.mat than the one under ``data_root``, if any."""
    recorded = file.provenance.get("split_sha256")
    try:
        splits = find_xlsa17(data_root, dataset) / "att_splits.mat"
    except UserError:
        return  # training needs the feature file only
    if recorded is not None and str(recorded) != sha256_file(splits):
        raise UserError(
            f"{path} was made from another split file than {splits}. Choose the right one with --features or "
            "--data-root, or extract the features again."
        )


def names_beside(vectors: Path | None) -> list[str] | None:
    """Attribute names recorded in the sidecar of a vector file, if there is one."""
    sidecar = vectors.with_suffix(".json") if vectors else None
    if sidecar is None or not sidecar.is_file():
        return None
    record = read_json(sidecar)
    names = record.get("names") if isinstance(record, dict) else None
    return [str(n) for n in names] if isinstance(names, list) and names else None


def device_of(name: str) -> str:
    """'auto' resolved; a missing GPU is said."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch sees no GPU; use --device cpu or install a CUDA build of torch")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


@dataclass(frozen=True)
class Inputs:
    """What every run on a data set needs."""

    metadata: Metadata
    w2v: np.ndarray
    features: RegionFeatures
    provenance: dict[str, Any]  # of the feature file
    vectors: Path | None  # None: they came from inside the feature file
    vectors_sha256: str


def load_inputs(
    dataset: DataSet, data_root: Path, features: Path | None, w2v: Path | None, device: str, test: bool = True
) -> Inputs:
    """Find, check and load a data set's features and vectors; ``test=False`` leaves the test images out."""
    path = find_features(dataset, features)
    with _naming(f"Make it anew with: {extraction_command(dataset)} --out {path}"):
        file = FeatureFile(path)
        metadata = file.to_metadata(dataset)
    array, vectors = find_vectors(dataset, w2v, file, metadata.att.shape[1])
    _, D, R = file.shape
    check_same_split(file, path, data_root, dataset)
    if dataset.caveat:
        metadata.notes.append(dataset.caveat)
    log.info(
        "%s: %d classes, %d images, features %s (%d regions, %d channels)",
        dataset.name,
        len(metadata.class_names),
        len(metadata.labels),
        path,
        R,
        D,
    )
    rows = metadata.trainval_loc
    if test:
        rows = np.concatenate([rows, metadata.test_seen_loc, metadata.test_unseen_loc])
    provenance = {k: str(v) for k, v in file.provenance.items()}
    provenance |= {"regions": f"{R} regions", "file_sha256": sha256_file(path)}
    digest = sha256_file(vectors) if vectors else "in the feature file"
    with _naming(f"Make it anew with: {extraction_command(dataset)} --out {path}"):
        regions = RegionFeatures(file, rows, (R, D), device)
    return Inputs(metadata, array, regions, provenance, vectors, digest)


@contextlib.contextmanager
def _naming(remedy: str) -> Iterator[None]:
    """Add the command that mends it to an error about the feature file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}. {remedy}") from error


def drive(dataset_name: str, description: str | None, argv: Sequence[str] | None = None) -> int:
    """Parse, load, train every seed, print the table."""
    args = parser(dataset_name, description).parse_args(argv)
    dataset = CUB50 if getattr(args, "split", "ps") == "cub50" else DATASETS[dataset_name]
    if args.seeds < 1:
        raise UserError(f"--seeds {args.seeds}: at least one")
    device = device_of(args.device)

    inputs = load_inputs(dataset, args.data_root, args.features, args.w2v, device)
    metadata, w2v, features = inputs.metadata, inputs.w2v, inputs.features
    for note in metadata.notes:
        log.info("note: %s", note)

    recipe = recipe_of(args.method, dataset.name)
    names = {f.name for f in fields(recipe)}
    given = {n: v for n, v in vars(args).items() if n in names and n not in ("epochs",) and v is not None}
    ignored = [n for n in (*_HELP, "batch_size") if getattr(args, n, None) is not None and n not in names]
    if ignored:
        raise UserError(f"--{ignored[0].replace('_', '-')} is no setting of {args.method}")
    recipe = replace(recipe, **given)
    epochs = most_epochs(recipe) if args.epochs is None else args.epochs

    results = []
    for seed in range(args.seeds):
        config = RunConfig(
            dataset=dataset.name,
            method=args.method,
            seed=seed,
            select=args.select,
            epochs=epochs,
            recipe={f.name: getattr(recipe, f.name) for f in fields(recipe)},
            features=inputs.provenance,
            vectors_sha256=inputs.vectors_sha256,
            precision=args.precision,
        )
        folder = args.out / dataset.name / args.method / f"seed{seed}"
        results.append(run(config, recipe, metadata, w2v, features, folder, args.resume, args.diagnostics))
    text = table(dataset.name, results)
    write_bytes(args.out / dataset.name / args.method / "table.md", (text + "\n").encode())
    sys.stdout.write("\n" + text + "\n")
    figure = args.out / dataset.name / args.method / "attention.png"
    attribute_names = names_beside(inputs.vectors)
    try:
        draw_attention(
            results[0]["config"],
            figure.parent / "seed0",
            metadata,
            w2v,
            features,
            args.data_root,
            figure,
            attribute_names,
        )
        sys.stdout.write(f"\nattention figure: {figure}\n")
    except UserError as error:
        log.info("no attention figure: %s", error)
    return 0


def demo(argv: Sequence[str] | None = None, description: str | None = None) -> int:
    """Render, train the small backbone, extract and make vectors where missing; then as every driver."""
    args = parser("DEMO", description).parse_args(argv)
    from core.demo.setup import prepare_demo

    prepare_demo(args.data_root)
    return drive("DEMO", description, argv)
