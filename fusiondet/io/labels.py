"""What heads that predict per pixel are trained on and scored by: heights of buildings and footprints of a tile.

Heights come from the first of `HEIGHT_SOURCES` that a tile has, or from the one that is asked for:

- "building_height": a raster of buildings alone, 0 on the ground; its no data is unknown, wherever it is.
- "ndsm": a raster of all that stands on the ground, masked by footprints: 0 outside them. What it shows inside is taken
  as it is: sloped roofs, chimneys, and the tree above a roof too.
- "instances": the height of each building painted into its outline, flat; unknown where the building's height is.

A raster may be on another grid or in another CRS than its tile: it is warped. Inside footprints a number below the
ground by up to `GROUND_TOLERANCE_M` is noise and becomes 0; one further below, or above any building, is no height and
becomes unknown. A number that means no data counts only where the height raster itself declares it: that of the data
set is about images, where 0 is often a black border, and in heights 0 is the ground.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusiondet.buildings import TALLEST_BUILDING_M, Building, Tile
from fusiondet.errors import InputError, unknown_name
from fusiondet.files import safe_join
from fusiondet.geometry.painting import footprint_label, paint_heights
from fusiondet.io.coco import Dataset
from fusiondet.io.rasters import BandReader, PixelWindow

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

HEIGHT_SOURCES = ("building_height", "ndsm", "instances")
# Ground of a surface minus terrain is not exactly 0: gaps, moving water, terrain under bridges. Elevations are further.
GROUND_TOLERANCE_M = 3.0
# Share of the footprints' pixels without a height from which on it is worth a note.
_MANY_HOLES = 0.001


def choose_source(source: str, building_height: object, ndsm: object) -> str:
    """The one of `HEIGHT_SOURCES` that `source` means for a tile, of whose rasters the names are given or None.

    Raises:
        InputError: a `source` that is neither "auto" nor one of them.
    """
    if source not in ("auto", *HEIGHT_SOURCES):
        raise unknown_name("INPUT.HEIGHT_LABELS", source, ("auto", *HEIGHT_SOURCES))
    if source != "auto":
        return source
    return "building_height" if building_height else "ndsm" if ndsm else "instances"


def height_label(
    source: str, buildings_px: list[Building], footprint: np.ndarray, raster_m: np.ndarray | None = None
) -> np.ndarray:
    """(H, W) float32 metres above ground; 0 outside buildings, NaN where unknown. See the top of this module.

    Args:
        source: one of `HEIGHT_SOURCES`.
        buildings_px: all annotated buildings, outlines in pixels of the label.
        footprint: (H, W) bool, their pixels.
        raster_m: (H, W) numbers of the tile's raster, NaN = no data; None where there is none: a building then has no
            known height.
    """
    if source == "instances":
        raster_m = paint_heights(buildings_px, footprint.shape)
    elif raster_m is None:
        raster_m = np.full(footprint.shape, np.nan, np.float32)
    elif source == "building_height":
        return _plausible(raster_m)
    return np.where(footprint, _plausible(raster_m), np.float32(0))


def _plausible(raster_m: np.ndarray) -> np.ndarray:
    known = (raster_m >= -GROUND_TOLERANCE_M) & (raster_m <= TALLEST_BUILDING_M)
    return np.where(known, np.maximum(raster_m, 0), np.nan).astype(np.float32)


def read_heights(
    path: Path,
    shape: tuple[int, int],
    transform: Sequence[float] | None = None,
    crs: str | None = None,
    window: PixelWindow | None = None,
) -> np.ndarray:
    """(h, w) float32 metres of the height raster `path` on the grid of a tile, or in a window of it; NaN = no data.

    Args:
        shape, transform, crs: of the tile, as in `Tile`; None where unknown.
        window: (x0, y0, width, height) in pixels of the tile; None for all of it.

    Raises:
        InputError: missing or damaged; or of another size than the tile, and one of the two is not georeferenced.
    """
    x0, y0, width, height = window or (0, 0, shape[1], shape[0])
    with BandReader(path, allow_vrt=False, in_metres=True) as raster:
        grid, crs = _grid_of_tile(raster, path, shape, transform, _crs(crs))
        return raster.onto(grid * Affine.translation(x0, y0), crs, (height, width))


def _grid_of_tile(raster: BandReader, path, shape, transform, crs):
    """(transform, crs) of the tile, in the terms of a raster that lies on it pixel by pixel or is georeferenced."""
    grid = Affine(*tuple(transform)[:6]) if transform is not None else Affine.identity()
    same_size = (raster.height, raster.width) == tuple(shape)
    unplaced = grid.is_identity or raster.transform.is_identity
    half_placed = (raster.crs is None) != (crs is None) and grid.almost_equals(raster.transform)
    if same_size and (unplaced or half_placed):
        return raster.transform, raster.crs
    if unplaced:
        raise InputError(
            f"{path}: {raster.width} x {raster.height} px, but its tile has {shape[1]} x {shape[0]} px, and "
            f"{'the tile' if grid.is_identity else 'this raster'} is not georeferenced, so that nothing says where one "
            "lies in the other. Georeference both, or resample the heights to the tile's pixels."
        )
    return grid, crs


@functools.lru_cache(maxsize=64)
def _crs(text: str | None) -> CRS | None:
    try:
        return None if text is None else CRS.from_user_input(text)
    except CRSError as error:
        raise InputError(
            f"the CRS {text[:80]!r} of a tile is none ({error}). Assign the right one."
        ) from None


def tile_height_label(dataset: Dataset, tile: Tile, source: str = "auto") -> np.ndarray:
    """`height_label` of a whole tile of `dataset`.

    Raises:
        InputError: see `choose_source` and `read_heights`.
    """
    source = choose_source(source, tile.building_height_file_name, tile.ndsm_file_name)
    path, raster_m = _raster_path(dataset, tile, source), None
    if path is not None:
        raster_m = read_heights(path, (tile.height, tile.width), tile.transform, tile.crs)
    return height_label(source, tile.buildings, footprint_label(tile), raster_m)


def tallest_label_m(datasets: Sequence[Dataset], source: str = "auto", samples: int = 200) -> float:
    """The greatest height per pixel in metres; 0 where nothing stands or is known.

    Looks at all buildings whose height is known, and, where heights come from rasters, at `samples` tiles per data set,
    evenly spread.

    Raises:
        InputError: see `tile_height_label`.
    """
    tallest_m = 0.0
    for dataset in datasets:
        painted = all(
            choose_source(source, tile.building_height_file_name, tile.ndsm_file_name) == "instances"
            for tile in dataset.tiles
        )
        known_m = [b.height_m for tile in dataset.tiles for b in tile.buildings if b.height_m is not None]
        count = 0 if painted else min(samples, len(dataset.tiles))
        chosen = np.unique(np.linspace(0, len(dataset.tiles) - 1, count).round().astype(int))
        labels_m = [tile_height_label(dataset, dataset.tiles[i], source) for i in chosen]
        known_m += [float(label_m[np.isfinite(label_m)].max(initial=0.0)) for label_m in labels_m]
        tallest_m = max(tallest_m, *known_m, 0.0)
    return tallest_m


def _raster_path(dataset: Dataset, tile: Tile, source: str) -> Path | None:
    name = getattr(tile, f"{source}_file_name", None)  # there is none of "instances"
    return None if name is None else safe_join(dataset.root, name)


# ---- Are these heights? ----------------------------------------------------------------------------------

# Beyond these a number is a sentinel, an elevation or another unit.
_LOWEST_M, _HIGHEST_M = -100.0, TALLEST_BUILDING_M
_OPTION = {
    "building_height": "a building_height_file_name",
    "ndsm": "an ndsm_file_name",
    "instances": "a height_m",
}


def check_height_labels(
    datasets: Mapping[str, Dataset], source: str = "auto", samples: int = 16
) -> list[str]:
    """Look whether `height_label` has something to say about the tiles, and whether it is heights.

    Reads the rasters of `samples` tiles per data set, evenly spread over those with buildings. Elevations are found out
    by the ground beside the buildings: it lies more than `GROUND_TOLERANCE_M` off 0 in most tiles. (In a polder on the
    level of the sea it does not.)

    Args:
        datasets: name for messages -> data set.

    Returns:
        Sentences to warn with: tiles without heights; holes under footprints; rasters that disagree with the buildings.

    Raises:
        InputError: none has any height; a raster is missing, cannot be read or not be laid over its tile (see
            `read_heights`), or holds no heights: elevations, mostly negative numbers, an undeclared sentinel such as
            -9999, another unit, or nothing at all under the footprints or beside them.
    """
    if datasets and not any(_has_heights(tile, source) for d in datasets.values() for tile in d.tiles):
        raise _no_heights(datasets, source)
    notes = []
    for name, dataset in datasets.items():
        lacking = sum(bool(tile.buildings) and not _has_heights(tile, source) for tile in dataset.tiles)
        if lacking:
            notes.append(
                f"{name}: {lacking} of {len(dataset.tiles)} tiles have buildings and no height of any "
                f"(INPUT.HEIGHT_LABELS {source}): of them a height per pixel is learned on the ground alone."
            )
        notes += _check_rasters(name, _tiles_with_rasters(name, dataset, source), samples)
    return notes


def _has_heights(tile: Tile, source: str) -> bool:
    source = choose_source(source, tile.building_height_file_name, tile.ndsm_file_name)
    if source == "instances":
        return any(building.height_m is not None for building in tile.buildings)
    return getattr(tile, f"{source}_file_name") is not None


def _no_heights(datasets: Mapping[str, Dataset], source: str) -> InputError:
    tiles = [tile for dataset in datasets.values() for tile in dataset.tiles]
    others = [s for s in HEIGHT_SOURCES if any(_has_heights(tile, s) for tile in tiles)]
    lacks = _OPTION.get(source, "a raster of heights or a building of known height")
    if others:
        advice = f"Set INPUT.HEIGHT_LABELS to {' or '.join(others)}, which there are."
    else:
        advice = (
            "Make the data again with `ndsm`, with `dsm` and `dtm`, or with `height_field` (tools/prepare_dataset.py "
            "tiles), or leave DenseHeight out of MODEL.DENSE_HEADS.NAMES."
        )
    return InputError(
        f"data set {', '.join(datasets)}: no heights to learn per pixel; INPUT.HEIGHT_LABELS is {source}, and no tile "
        f"has {lacks}. {advice}"
    )


def _tiles_with_rasters(name: str, dataset: Dataset, source: str) -> list[tuple[Tile, str, Path]]:
    """(tile, its source, its raster) where there is one, all of them files."""
    found = []
    for tile in dataset.tiles:
        chosen = choose_source(source, tile.building_height_file_name, tile.ndsm_file_name)
        path = _raster_path(dataset, tile, chosen)
        found += [(tile, chosen, path)] if path is not None else []
    missing = [path for _, _, path in found if not path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]}: no such file; {len(missing)} of {len(found)} height rasters that data set {name} names are "
            "missing. Copy them to their place, or choose another source with INPUT.HEIGHT_LABELS."
        )
    return found


@dataclass
class _Look:
    """What the raster of a tile holds: finite numbers inside footprints and outside, holes = pixels inside without."""

    source: str
    path: Path
    inside_m: np.ndarray
    outside_m: np.ndarray
    holes: int
    off_m: np.ndarray  # differences from the known heights of the buildings
    known_m: np.ndarray  # and these heights

    @property
    def all_m(self) -> np.ndarray:
        return np.concatenate([self.inside_m, self.outside_m])

    @property
    def ground_m(self) -> float:
        """Above most of the ground when it is below 0, below most of it when above; NaN where none is seen."""
        if not self.outside_m.size:
            return float("nan")
        low_m, middle_m = np.percentile(self.outside_m, (10, 50))
        return float(middle_m if middle_m < 0 else max(low_m, 0))


def _look(tile: Tile, source: str, path: Path) -> _Look:
    raster_m = read_heights(path, (tile.height, tile.width), tile.transform, tile.crs)
    footprint, known = footprint_label(tile), np.isfinite(raster_m)
    painted_m = paint_heights(tile.buildings, raster_m.shape)
    both = known & np.isfinite(painted_m)
    return _Look(
        source,
        path,
        raster_m[known & footprint],
        raster_m[known & ~footprint],
        int((footprint & ~known).sum()),
        np.abs(raster_m - painted_m)[both],
        painted_m[both],
    )


def _check_rasters(name: str, tiles: list[tuple[Tile, str, Path]], samples: int) -> list[str]:
    tiles = [found for found in tiles if found[0].buildings] or tiles
    chosen = np.unique(np.linspace(0, len(tiles) - 1, min(samples, len(tiles))).round().astype(int))
    looks = [_look(*tiles[i]) for i in chosen]
    for check in (_refuse_sentinels, _refuse_elevations, _refuse_other_numbers, _refuse_nothing):
        check(looks)
    notes = []
    holes, pixels = sum(look.holes for look in looks), sum(look.holes + look.inside_m.size for look in looks)
    if holes > _MANY_HOLES * pixels:
        tiles_with = sum(look.holes > 0 for look in looks)
        share = f"{100 * holes / pixels:.{2 if holes < 0.995 * pixels else 3}g} %"
        notes.append(
            f"{name}: no height under {share} of the footprints' pixels, in {tiles_with} of "
            f"{len(looks)} tiles looked at: they are not learned from."
        )
    off_m, known_m = (
        np.concatenate([getattr(look, key) for look in looks] or [np.zeros(0)])
        for key in ("off_m", "known_m")
    )
    if off_m.size and np.median(off_m) > max(GROUND_TOLERANCE_M, 0.5 * np.median(known_m)):
        notes.append(
            f"{name}: its height rasters are off its buildings' heights by {np.median(off_m):.1f} m in the "
            f"middle, where these are {np.median(known_m):.1f} m. Which of the two is above ground, in metres?"
        )
    return notes


def _refuse_sentinels(looks: list[_Look]) -> None:
    values = np.concatenate([look.all_m for look in looks] or [np.zeros(0)])
    beyond, counts = np.unique(values[(values < _LOWEST_M) | (values > _HIGHEST_M)], return_counts=True)
    # One number or two again and again, in all tiles: elevations are many, and so are flat roofs in centimetres.
    if counts.max(initial=0) < 2 or np.sort(counts)[-2:].sum() < 0.9 * counts.sum():
        return
    number = beyond[counts.argmax()]
    first = next(look for look in looks if (look.all_m == number).any())
    raise InputError(
        f"{first.path}: {np.count_nonzero(first.all_m == number)} of its pixels are {number:.6g}, which is no height "
        f"in metres and not declared as no data. Declare it: `gdal_edit.py -a_nodata {number:.6g} FILE`, or make "
        "the data again from a raster that does. Where it is a height in another unit, make metres of it."
    )


def _refuse_elevations(looks: list[_Look]) -> None:
    seen = [look for look in looks if np.isfinite(look.ground_m)]
    high = [look for look in seen if abs(look.ground_m) > GROUND_TOLERANCE_M]
    if len(high) > len(seen) / 2:
        raise InputError(
            f"{high[0].path}: the ground beside its buildings is at {high[0].ground_m:.1f} m, and far from 0 in "
            f"{len(high)} of {len(seen)} tiles looked at. It looks like elevations: subtract the ground, that is, make "
            "the data again with `dsm` and `dtm` (tools/prepare_dataset.py tiles)."
        )


def _refuse_other_numbers(looks: list[_Look]) -> None:
    inside_m = np.concatenate([look.inside_m for look in looks] or [np.zeros(0)])
    negative, large = (
        float(np.mean(part)) if part.size else 0.0 for part in (inside_m < 0, inside_m > _HIGHEST_M)
    )
    if negative > 0.5:
        raise InputError(
            f"{looks[0].path}: {100 * negative:.0f} % of the pixels of buildings are negative in {len(looks)} tiles "
            "looked at, expected metres above ground. Was the surface subtracted from the terrain, or is it dB?"
        )
    if large > 0.01:
        raise InputError(
            f"{looks[0].path}: {100 * large:.0f} % of the pixels of buildings are above {_HIGHEST_M:.0f} in "
            f"{len(looks)} tiles looked at, expected metres above ground. Are these centimetres, or elevations?"
        )


def _refuse_nothing(looks: list[_Look]) -> None:
    if looks and any(look.holes for look in looks) and not any(look.inside_m.size for look in looks):
        raise InputError(
            f"{looks[0].path}: no number under any footprint of {len(looks)} tiles looked at. Does the raster cover "
            "the tiles, and is it in the CRS that it says?"
        )
    painted = [look for look in looks if look.source == "building_height"]
    if painted and not any(look.outside_m.size for look in painted):
        raise InputError(
            f"{painted[0].path}: no number beside any footprint of {len(painted)} tiles looked at, expected 0 on the "
            "ground. Where 0 is declared as no data: `gdal_edit.py -unsetnodata FILE`."
        )
