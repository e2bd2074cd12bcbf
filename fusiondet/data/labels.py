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
from collections.abc import Iterable, Sequence
from pathlib import Path

from fusiondet.buildings import TALLEST_BUILDING_M, Building, Tile
from fusiondet.data.coco import Dataset
from fusiondet.data.imagery import BandReader, PixelWindow
from fusiondet.errors import InputError, unknown_name
from fusiondet.files import safe_join

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import rasterize

HEIGHT_SOURCES = ("building_height", "ndsm", "instances")
# Ground of a surface minus terrain is not exactly 0: gaps, moving water, terrain under bridges. Elevations are further.
GROUND_TOLERANCE_M = 3.0


def choose_source(source: str, building_height: object, ndsm: object) -> str:
    """The one of `HEIGHT_SOURCES` that "auto" means for a tile whose rasters' names are given, None where it has none.

    Raises:
        InputError: a `source` that is neither "auto" nor one of them.
    """
    if source not in ("auto", *HEIGHT_SOURCES):
        raise unknown_name("INPUT.HEIGHT_LABELS", source, ("auto", *HEIGHT_SOURCES))
    if source != "auto":
        return source
    return "building_height" if building_height else "ndsm" if ndsm else "instances"


def footprint_mask(outlines_px: Iterable, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: pixels whose centre lies in any of the outlines; None among them is none."""
    shapes = [(outline, 1) for outline in outlines_px if outline is not None]
    if not shapes:
        return np.zeros(shape, bool)
    return rasterize(shapes, shape, fill=0, dtype="uint8").astype(bool)


def footprint_label(tile: Tile) -> np.ndarray:
    """(H, W) bool: pixels whose centre lies in an annotated outline of `tile`."""
    return footprint_mask([building.polygon for building in tile.buildings], (tile.height, tile.width))


def height_label(
    source: str, buildings_px: Sequence[Building], shape: tuple[int, int], raster_m: np.ndarray | None = None
) -> np.ndarray:
    """(H, W) float32 metres above ground; 0 outside buildings, NaN where unknown. See the top of this module.

    Args:
        source: one of `HEIGHT_SOURCES`.
        buildings_px: all annotated buildings, outlines in pixels of the label.
        raster_m: (H, W) numbers of the tile's raster, NaN = no data; None where there is none: a building then has no
            known height.
    """
    footprint = footprint_mask([building.polygon for building in buildings_px], shape)
    if source == "instances":
        # Drags in all that writes vector layers, which the workers of a loader otherwise do without.
        from fusiondet.export.rasters import paint_heights

        raster_m = paint_heights(buildings_px, shape)
    elif raster_m is None:
        raster_m = np.full(shape, np.nan, np.float32)
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
    """(h, w) float32 numbers of the height raster `path` on the grid of a tile, or in a window of it; NaN = no data.

    Args:
        shape, transform, crs: of the tile, as in `Tile`; None where unknown.
        window: (x0, y0, width, height) in pixels of the tile; None for all of it.

    Raises:
        InputError: missing or damaged; or of another size than the tile, and one of the two is not georeferenced.
    """
    x0, y0, width, height = window or (0, 0, shape[1], shape[0])
    with BandReader(path, allow_vrt=False) as raster:
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
    shape, path = (tile.height, tile.width), _raster_path(dataset, tile, source)
    raster_m = None if path is None else read_heights(path, shape, tile.transform, tile.crs)
    return height_label(source, tile.buildings, shape, raster_m)


def _raster_path(dataset: Dataset, tile: Tile, source: str) -> Path | None:
    name = getattr(tile, f"{source}_file_name", None)  # there is none of "instances"
    return None if name is None else safe_join(dataset.root, name)
