"""Command line of OWN_ours.py: look at the folder, extract, train every seed, print the table."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from core.commands import flags
from core.commands.parser import Parser, from_flags, whole
from core.commands.train import run_seeds
from core.datasets import paths
from core.datasets.metadata import Metadata
from core.datasets.own import Choices, feature_pattern, read_folder
from core.datasets.registry import OWN
from core.datasets.vectors import FORMATS, MODELS, attribute_vectors, source_record, write_attribute_vectors
from core.datasets.words import NAME as WORDS
from core.datasets.words import sheet_from_words
from core.features.settings import BATCH_SIZE, ExtractionConfig, default_out
from core.fields import add_fields
from core.files.atomic import read_json
from core.files.errors import UserError
from core.files.memory import keep_memory
from core.methods import find_method

log = logging.getLogger(__name__)
NONE = "none"


def parser(description: str | None, argv: Sequence[str] | None = ()) -> Parser:
    p, _ = flags.method_first(description, OWN.name, argv)
    flags.add_seeds(p, 1)
    data = p.add_argument_group("data")
    data.add_argument("--data-root", type=Path, required=True, help="the folder with images/ and attributes.csv")
    unseen = data.add_mutually_exclusive_group()
    said = "classes that are not trained on; none: all are, and only S is measured"
    unseen.add_argument("--unseen", nargs="+", default=[], metavar="CLASS", help=said)
    share = "share of the classes with images that is drawn instead; 0: none (unseen.txt, else 0.2)"
    unseen.add_argument("--unseen-share", type=float, help=share)
    data.add_argument("--split-seed", type=whole(0), default=0, help="of everything that is drawn for the split (0)")
    vectors = f"word vectors of the attributes: none (one-hot: names mean nothing), {' or '.join(MODELS)} (through "
    vectors += f"gensim), a file of word vectors ({FORMATS}), or ready ones (K,V) as .npy or .pkl (none)"
    data.add_argument("--vectors", default=NONE, metavar="NONE_NAME_OR_FILE", help=vectors)
    data.add_argument("--features", type=Path, help="feature file to read, or make (ROOT/OWN/feature_map_*_OWN.hdf5)")
    group = p.add_argument_group("features", "used where the feature file is not there yet")
    add_fields(group, ExtractionConfig(), without=("batch_size", "device"))
    said = f"images per forward pass ({BATCH_SIZE})"
    group.add_argument("--image-batch-size", type=whole(1), default=BATCH_SIZE, help=said)
    flags.add_device(p)
    flags.add_run(p, None, gamma_splits=5)
    return p


def main(description: str | None = None, argv: Sequence[str] | None = None) -> int:
    args = parser(description, argv).parse_args(argv)
    keep_memory()
    root: Path = args.data_root
    if args.unseen_share is not None and not 0 <= args.unseen_share < 1:
        raise UserError(f"--unseen-share {args.unseen_share:g}: must be from 0 to below 1")
    if args.unseen == [NONE]:
        args.unseen, args.unseen_share = [], 0.0
    args.out = args.out or root / "results"
    recipe = from_flags(find_method(args.method).recipe_type, args)
    drawn = {"unseen_share": args.unseen_share, "seed": args.split_seed}
    choices = Choices(unseen=tuple(args.unseen), validation=args.select == "val", **drawn)
    log.info("1 of 3: the folder %s", root)
    if sheet_from_words(root):
        log.info("%s was made from %s: look at it, and correct it", root / "attributes.csv", root / WORDS)
    from core.features.images import look_at  # takes seconds, which --help does not need

    m = read_folder(root, choices, look_at(root, args.features or paths.feature_file(root, OWN)))
    log.info("%d classes by %d attributes: %d seen, %d unseen", *m.att.shape, len(m.seen), len(m.unseen))
    parts = map(len, (m.labels, m.trainval_loc, m.test_seen_loc, m.test_unseen_loc))
    log.info("%d images, %d for training, %d + %d for test", *parts)
    for note in m.notes:
        log.info("note: %s", note)
    path = paths.vectors_file(root, OWN)
    vectors = _vectors(args.vectors, args.features.with_name(path.name) if args.features else path, m)
    log.info("2 of 3: region features")
    features = _features(args, root, m)

    from core.experiments.inputs import load_inputs

    log.info("3 of 3: training %s", args.method)
    inputs = load_inputs(OWN.name, data_root=root, features=features, w2v=vectors, device=args.device, own=choices)
    return run_seeds(args, inputs, recipe, root)


def _vectors(source: str, path: Path, m: Metadata) -> Path | None:
    """The file of the attributes' vectors, made at ``path`` where it is not there; None for one-hot ones."""
    if source.lower() == NONE:
        log.info("note: no word vectors (--vectors none): one-hot, so attribute names mean nothing to the model")
        return None
    sidecar = path.with_suffix(".json")
    record = read_json(sidecar) if path.is_file() and sidecar.is_file() else {}
    made_from = source_record(source) | {"names": m.attribute_names}
    if any(record.get(key) != value for key, value in made_from.items()):
        write_attribute_vectors(path, attribute_vectors(source, m.attribute_names), source)
        log.info("word vectors in %s", path)
    return path


def _features(args: argparse.Namespace, root: Path, m: Metadata) -> Path:
    """The feature file of these images, made or continued where it is not finished."""
    if args.features is not None and args.features.is_file():
        return Path(args.features)
    from core.features.extraction import extract

    config = from_flags(ExtractionConfig, args, batch_size=args.image_batch_size)
    usual = default_out(root, OWN, config).stem.removeprefix("feature_map_").removesuffix(f"_{OWN.name}")
    out = args.features or feature_pattern(root, m, usual)
    return extract(OWN, data_root=root, out=out, config=config)
