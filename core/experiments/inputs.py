"""What every run on a data set needs: found under the data root, checked against each other, loaded, and digested."""

import contextlib
import hashlib
import json
import logging
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from core.datasets import paths
from core.datasets.metadata import Metadata, questions_of
from core.datasets.names import read_attribute_names
from core.datasets.own import Choices, check_images, feature_pattern, read_folder
from core.datasets.registry import DATASETS, OWN, DataSet
from core.datasets.vectors import load_attribute_vectors
from core.datasets.xlsa17 import read_metadata
from core.features.devices import resolve_device
from core.features.feature_file import FeatureFile
from core.features.images import look_at
from core.features.regions import RegionFeatures
from core.features.settings import extraction_command
from core.files.atomic import read_json, sha256_file
from core.files.errors import UserError
from core.files.kinds import missing

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Data of a run, and the digests that tell it from every other."""

    dataset: str
    metadata: Metadata
    w2v: np.ndarray  # (K,V)
    features: RegionFeatures
    provenance: dict[str, str]  # of the feature file
    features_sha256: str
    vectors_sha256: str
    split_sha256: str
    attribute_names: list[str] = field(default_factory=list)  # (K,)

    @property
    def variant(self) -> str:
        """Folder name of everything made from these data."""
        return variant_of(self.provenance, self.features_sha256, self.vectors_sha256, self.split_sha256)


def variant_of(provenance: dict[str, str], *digests: str) -> str:
    """Backbone, image side and pooling, grid, digest of features, vectors and split."""
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    size, pool = provenance.get("input_size", "224"), provenance.get("pool", "1")
    how = f"{f'-{size}px' * (size != '224')}{f'-pool{pool}' * (pool != '1')}"
    return f"{provenance['name']}{how}-{provenance['regions']}-{digest[:8]}"


def split_digest(m: Metadata) -> str:
    """SHA-256 of all that is trained and measured on: labels, attributes, class names and every split."""
    digest = hashlib.sha256(json.dumps(m.class_names).encode())
    for values in (m.labels, m.att, m.trainval_loc, m.test_seen_loc, m.test_unseen_loc, m.train_loc, m.val_loc):
        digest.update(f"{values.dtype}{values.shape}".encode() + values.tobytes())
    if m.class_text is not None:
        digest.update(b"class text" + m.class_text.tobytes())
    return digest.hexdigest()


def find_features(dataset: DataSet, data_root: Path, given: Path | None, own: Metadata | None = None) -> Path:
    """The feature file to use: the one named, else the data root's; of a folder of one's ``own`` that of its images."""
    if given is not None and given.is_file():
        return given
    pattern = given or paths.feature_file(data_root, dataset, "*")
    if not given:
        pattern = feature_pattern(data_root, own) if own else pattern
        found = sorted(pattern.parent.glob(pattern.name))
        if (usual := paths.feature_file(data_root, dataset)) in found:
            return usual
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"several feature files: {', '.join(map(str, found))}. Choose one with --features.")
    command = extraction_command(dataset, data_root, **{"features" if own else "out": given})
    raise UserError(f"{missing(pattern, 'feature file')}. Make one, or end one that was begun, with: {command}")


def _vectors(
    dataset: DataSet, root: Path, given: Path | None, file: FeatureFile, K: int
) -> tuple[np.ndarray, Path | None]:
    """Attribute vectors (K,V): the flag's, else the data root's, else those in the feature file; one-hot for OWN."""
    if dataset.name == OWN.name:
        return (load_attribute_vectors(given, K), given) if given else (np.eye(K, dtype=np.float32), None)
    path = given or paths.vectors_file(root, dataset)
    command = f"python extract_feature/extract_attribute_w2v_{dataset.source}.py"
    command += "" if root == paths.DEFAULT_ROOT else f" --data-root {shlex.quote(str(root))}"
    if given or path.is_file():
        return load_attribute_vectors(path, K), path
    if file.w2v_att is not None:
        return np.asarray(file.w2v_att, dtype=np.float32), None
    raise UserError(f"no attribute vectors at {path}; make them with: {command}, or name a file with --w2v")


def _attribute_names(dataset: DataSet, root: Path, vectors: Path | None, K: int) -> list[str]:
    """(K,) names, from beside the vectors or from the data set's own files; numbers where neither has them."""
    beside = vectors.with_suffix(".json") if vectors else None
    names = read_json(beside).get("names") if beside and beside.is_file() else None
    if not names:
        with contextlib.suppress(UserError):
            names = read_attribute_names(dataset, root)
    return [str(name) for name in names] if names and len(names) == K else [f"attribute {k + 1}" for k in range(K)]


def load_inputs(
    dataset_name: str, *, data_root: Path | None = None, features: Path | None = None, w2v: Path | None = None,
    device: str = "cpu", test: bool = True, own: Choices | None = None, budget: int | None = None,
) -> Inputs:  # fmt: skip
    """Find, check and load a data set's features and vectors; ``test=False`` leaves the test images out.

    Args:
        data_root: decides what is read; None: data/, where a feature file named by ``features`` may stand alone.
        own: how a folder of one's own is split; None: as its files say.
        budget: bytes of features that are held in memory (None: as many as are free allow); 0 reads none of them now.
    """
    dataset, root = DATASETS[dataset_name], data_root or paths.DEFAULT_ROOT
    if dataset.name == OWN.name:
        looked = look_at(root, features or paths.feature_file(root, dataset))
        metadata = read_folder(root, own or Choices(), looked)
        path = find_features(dataset, root, features, metadata)
        file = FeatureFile(path)
        check_images(path, file.metadata.image_files, file.metadata.image_sha256, root, metadata)
    else:
        path, of_root = find_features(dataset, root, features), None
        file = FeatureFile(path)
        if data_root or not features or (root / "xlsa17").is_dir():
            of_root = read_metadata(root, DATASETS[dataset.source])
            file.check_belongs(of_root, paths.xlsa17_folder(root, dataset) / "att_splits.mat")
        metadata = file.to_metadata(dataset, of_root)
    K = metadata.att.shape[1]
    array, vectors = _vectors(dataset, root, w2v, file, K)
    if dataset.caveat:
        metadata.notes[:] = [dataset.caveat]  # one note says it all
    rows = metadata.trainval_loc
    if test:
        rows = np.concatenate([rows, metadata.test_seen_loc, metadata.test_unseen_loc])
    _, D, R = file.shape
    provenance = {k: str(v) for k, v in file.provenance.items()}
    provenance |= {"regions": "x".join(map(str, file.grid)), "name": provenance.get("backbone", "unknown")}
    place = {name: c for c, name in enumerate(file.class_names or [])}
    # (C,2,E) of the file's classes, of which CUB50 has a part; a folder's classes without images have no text there
    if file.class_text is not None and place.keys() >= {*metadata.class_names}:
        metadata.class_text = file.class_text[[place[name] for name in metadata.class_names]]
    if provenance.get("finetuned") == "true":
        of = f"{provenance.get('finetuned_dataset')}, {provenance.get('finetuned_fold')}"
        metadata.notes.append(f"backbone fine-tuned on images of seen classes ({of})")
    names = metadata.attribute_names or _attribute_names(dataset, root, vectors, K)
    metadata.questions = questions_of(names)
    log.info("%s: %d images, features %s (%s regions)", dataset.name, len(metadata.labels), path, provenance["regions"])
    return Inputs(
        dataset=dataset.name, metadata=metadata, w2v=array, provenance=provenance,
        features=RegionFeatures(file, rows, (R, D), resolve_device(device), budget), features_sha256=file.digest(),
        vectors_sha256=sha256_file(vectors) if vectors else hashlib.sha256(array.tobytes()).hexdigest(),
        split_sha256=split_digest(metadata),
        attribute_names=names,
    )  # fmt: skip
