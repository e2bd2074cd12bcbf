"""The annotation files of a data set: found, read, and looked at before anything is repaired."""

import json
from dataclasses import dataclass
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.files import read_json
from fusiondet.io.coco import Dataset, read_coco


@dataclass
class Split:
    """One annotation file.

    Attributes:
        name: of the split, from its file.
        path: the file.
        document: its JSON as it is; {} when it is none.
        dataset: what `read_coco` makes of it; None when it refuses, and `error` then says why.
    """

    name: str
    path: Path
    document: dict
    dataset: Dataset | None
    error: str | None = None


def read_splits(path: Path) -> list[Split]:
    """The splits of the data set `path`: a folder with `annotations/*.json`, or one COCO file.

    Raises:
        InputError: there is no such folder or file, it has no annotations (the message names a folder above or below
            that has), or none of them can be read.
    """
    splits = [_read(file) for file in annotation_files(path)]
    if all(split.dataset is None for split in splits):
        raise InputError(splits[0].error)
    return splits


def annotation_files(path: Path) -> list[Path]:
    """The annotation files of the data set `path`; errors are those of `read_splits`."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.exists():
        raise InputError(f"{path}: no such folder or file.")
    files = _annotations_in(path)
    if files:
        return files
    near = [folder for folder in _neighbours(path) if _annotations_in(folder)]
    hint = f" Did you mean {near[0]}?" if near else " Make one with tools/prepare_dataset.py."
    raise InputError(f"{path}: holds no annotations/*.json, so it is no data set.{hint}")


def _annotations_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("annotations/*.json") if p.is_file())


def _neighbours(path: Path) -> list[Path]:
    """Folders one and two levels up and down, nearest first."""
    path = path.absolute()
    below = [sorted(p for p in path.glob(depth) if p.is_dir()) for depth in ("*", "*/*")]
    return [*path.parents[:1], *below[0], *path.parents[1:2], *below[1]]


def _read(path: Path) -> Split:
    try:
        dataset, error = read_coco(path), None
    except InputError as found:
        dataset, error = None, str(found)
    try:
        document = read_json(path)
    except (InputError, json.JSONDecodeError):
        document = {}
    return Split(path.stem, path, document if isinstance(document, dict) else {}, dataset, error)
