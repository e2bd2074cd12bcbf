"""Which file goes with which: rasters, masks and label files of the same place, told by their names."""

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.io.rasters import open_raster


def expand(patterns: Sequence[str], suffixes: tuple[str, ...], parameter: str) -> list[Path]:
    """Files of paths, folders (those with one of `suffixes` in it) and patterns with * and ?, sorted, each once.

    Raises:
        InputError: a word that stands for no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = [p for p in path.iterdir() if p.suffix.lower() in suffixes]
        elif path.is_file():
            files = [path]
        else:
            files = [Path(name) for name in glob.glob(str(pattern), recursive=True) if Path(name).is_file()]
        # "._name.tif" is what macOS puts beside a file, not the file.
        files = [p for p in files if not p.name.startswith(".")]
        if not files:
            raise InputError(
                f"`{parameter}={pattern}`: no such file, and no {' or '.join(suffixes)} file is found there."
            )
        found.update(dict.fromkeys(sorted(files)))
    return list(found)


def first_band_count(images: list[Path]) -> tuple[Path, int]:
    """(file, number of its bands) of the first of `images` that is a raster; the others are named where they are read.

    Raises:
        InputError: none of them is.
    """
    for path in images:
        try:
            with open_raster(path, allow_vrt=True) as raster:
                return path, raster.count
        except InputError:
            if path == images[-1]:
                raise
    raise ValueError("no images")


def pair(base: list[Path], others: list[Path], kind: str, notes: list[str]) -> list[Path | None]:
    """The one of `others` that goes with each of `base`: the only one, else by name, else by order (noted).

    Args:
        kind: what `others` are, for messages, e.g. "SAR raster".

    Raises:
        InputError: neither one for all nor one for each.
    """
    if not others:
        return [None] * len(base)
    if len(others) == 1:
        return others * len(base)
    if len(others) != len(base):
        raise InputError(f"{len(others)} {kind}s for {len(base)} images: pass one for all, or one for each.")
    named = pair_by_name(base, others)
    if named is None:
        notes.append(f"{kind}s are paired with the images in the order given: their names do not tell.")
    return named or others


def pair_by_name(base: list[Path], others: list[Path]) -> list[Path] | None:
    """Each of `base`'s partner among `others`, by the parts of the names in which the files of a list differ.

    None when the names do not tell, as for lists of different length.
    """
    ours, theirs = distinct_parts(base), distinct_parts(others)
    if len(set(theirs)) != len(theirs) or set(ours) != set(theirs):
        return None
    return [others[theirs.index(key)] for key in ours]


def group_by_band(paths: list[Path], bands: Sequence[str]) -> list[list[Path]]:
    """`paths` as images: one file each, or, where every name holds that of a band, one file for each band.

    Args:
        bands: names as they stand in the file names, between other characters than letters and digits.

    Returns:
        For each image its files, in the order of `bands`; images in the order of their first files.

    Raises:
        InputError: an image lacks the file of a band, or has two of it.
    """
    single = [[path] for path in paths]
    if len(bands) < 2 or len(paths) < 2:
        return single
    wanted = {name.lower(): name for name in bands}
    images: dict[tuple, dict[str, Path]] = {}
    for path in paths:
        parts = [part for part in re.split(r"[^0-9A-Za-z]+", path.stem.lower()) if part]
        named = [part for part in parts if part in wanted]
        if len(named) != 1:
            return single
        files = images.setdefault((path.parent, *(part for part in parts if part != named[0])), {})
        if named[0] in files:
            raise InputError(f"{path} and {files[named[0]]} are both band {wanted[named[0]]} of one image.")
        files[named[0]] = path
    for files in images.values():
        for name in wanted:
            if name not in files:
                there = ", ".join(map(str, files.values()))
                raise InputError(
                    f"no file of band {wanted[name]} beside {there}. Pass one for each of {', '.join(bands)}."
                )
    return [[files[name] for name in wanted] for files in images.values()]


def distinct_parts(paths: list[Path]) -> list[frozenset[str]]:
    """Of each name the parts (letters and digits in a row, lower case) that not all names have."""
    parts = [frozenset(re.split(r"[^0-9A-Za-z]+", p.stem.lower())) for p in paths]
    common = frozenset.intersection(*parts) if parts else frozenset()
    return [p - common for p in parts]


def unique_stems(paths: list[Path]) -> list[str]:
    """Names for files made from `paths`, without characters that need quoting; numbered where they would be equal."""
    stems = [re.sub(r"[^0-9A-Za-z._-]", "_", p.stem) for p in paths]
    return stems if len(set(stems)) == len(stems) else [f"{i:04d}_{stem}" for i, stem in enumerate(stems)]
