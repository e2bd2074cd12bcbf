"""Checks of where tiles lie: CRS, pixel size, orientation, and ground that two splits share."""

import math
from collections import Counter

from fusiondet.doctor.findings import MAX_CASES, Case, Finding, counted
from fusiondet.doctor.split_source import Split
from fusiondet.errors import InputError
from fusiondet.io.crs import transformer
from fusiondet.io.grids import metric_crs

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import ProjError

# Shared ground below this share of a tile is rounding between neighbours.
_ROUNDING = 1e-3
# A network learns one GSD; inference refuses rasters further from it than this without resampling.
_GSD_RATIO = 1.25


def check_ground(splits: list[Split]) -> list[Finding]:
    """All checks of this module."""
    tiles = [(split.name, tile) for split in splits for tile in split.dataset.tiles]
    return [_crs(tiles), _orientation(tiles), _gsd(tiles), _leak(tiles)]


def _is_placed(tile) -> bool:
    return tile.crs is not None and tile.transform is not None and not Affine(*tile.transform[:6]).is_identity


def _crs(tiles) -> Finding:
    counts = Counter(tile.crs for _, tile in tiles)
    bad, geographic = [], []
    for text in counts:
        if text is None:
            continue
        try:
            if CRS.from_user_input(text).is_geographic:
                geographic.append(text)
        except ProjError:
            bad.append(text)
    numbers = {"crs": {text or "none": n for text, n in counts.items()}, "geographic": geographic}
    words = ", ".join(f"{(text or 'none')[:40]} ({n})" for text, n in counts.most_common(4))
    if bad:
        remedy = "Assign a CRS that PROJ knows, e.g. EPSG:n; export and the check for shared ground need it."
        return Finding("CRS", "FAIL", f"{bad[0][:60]!r} is none.", remedy, numbers)
    if counts[None] == len(tiles):
        remedy = "Fine for training. Export to a map and the check for shared ground between splits are not possible."
        return Finding("CRS", "warn", "No tile has one.", remedy, numbers)
    if counts[None]:
        return Finding("CRS", "warn", words, f"{counted(counts[None], 'tile')} lack one: add it.", numbers)
    if len(counts) > 1:
        remedy = "Fine where cities or UTM zones differ; one city should have one CRS."
        verdict = "ok" if not geographic else "warn"
        return Finding(
            "CRS", verdict, f"{len(counts)} of them: {words}", remedy if verdict != "ok" else "", numbers
        )
    if geographic:
        detail = f"{words} is in degrees, so that pixels are not square on the ground."
        remedy = (
            "Works; where shapes and angles matter (regular outlines, look directions) warp to the UTM zone "
            "first."
        )
        return Finding("CRS", "warn", detail, remedy, numbers)
    return Finding("CRS", "ok", words, "", numbers)


def _orientation(tiles) -> Finding:
    placed = [
        (split, tile, Affine(*tile.transform[:6])) for split, tile in tiles if tile.transform is not None
    ]
    if not placed:
        return Finding("orientation", "n/a", "No tile has a transform.")
    turned, mirrored, oblong = [], [], []
    for split, tile, t in placed:
        if t.is_identity:
            continue
        right, down = math.hypot(t.a, t.d), math.hypot(t.b, t.e)
        if t.determinant > 0:
            mirrored.append((split, tile))
        elif abs(t.d) > 1e-3 * right or abs(t.b) > 1e-3 * down or t.a < 0:
            turned.append((split, tile))
        metres = tile.crs is not None and _is_projected(tile.crs)
        if metres and max(right, down) > 1.02 * min(right, down):
            oblong.append((split, tile))
    numbers = {"south_up_or_mirrored": len(mirrored), "rotated": len(turned), "not_square": len(oblong)}
    if not (mirrored or turned or oblong):
        return Finding("orientation", "ok", "All tiles are north-up with square pixels.", "", numbers)
    cases = tuple(Case(s, t.file_name) for s, t in (mirrored + turned + oblong)[:MAX_CASES])
    detail = (
        f"of {counted(len(placed), 'tile')}: {len(mirrored)} south-up or mirrored, {len(turned)} rotated, "
        f"{len(oblong)} with oblong pixels."
    )
    remedy = (
        "Sensor angles are turned into the image's axes by the transform, so it must be that of the pixels as "
        "stored. Warp to a north-up grid with square pixels (gdalwarp, or prepare_dataset.py tiles with `gsd`) to be "
        "safe."
    )
    return Finding("orientation", "warn", detail, remedy, numbers, cases)


def _is_projected(crs: str) -> bool:
    try:
        return CRS.from_user_input(crs).is_projected
    except ProjError:
        return False


def _gsd(tiles) -> Finding:
    gsd_m = np.array([tile.gsd_m for _, tile in tiles], float)
    known = gsd_m[np.isfinite(gsd_m)]
    if not known.size:
        remedy = (
            "Record gsd_m: context windows of the height head and checks of the GSD at inference need metres."
        )
        return Finding("GSD", "warn", "No tile has one.", remedy, {"known": 0})
    low, high = float(known.min()), float(known.max())
    numbers = {
        "known": known.size,
        "tiles": len(tiles),
        "min_m": low,
        "median_m": np.median(known),
        "max_m": high,
    }
    detail = f"{low:.3g} m" if high < 1.01 * low else f"{low:.3g} to {high:.3g} m"
    if known.size < gsd_m.size:
        detail += f", unknown for {counted(gsd_m.size - known.size, 'tile')}"
        return Finding("GSD", "warn", f"{detail}.", "Record gsd_m for all tiles.", numbers)
    if high > _GSD_RATIO * low:
        order = np.argsort(gsd_m)
        cases = tuple(Case(tiles[i][0], tiles[i][1].file_name, f"{gsd_m[i]:.3g} m") for i in order[[0, -1]])
        remedy = "Resample to one GSD (`gsd`), or train with scale augmentation that covers the range."
        return Finding("GSD", "warn", f"{detail}.", remedy, numbers, cases)
    return Finding("GSD", "ok", f"{detail}.", "", numbers)


def _leak(tiles) -> Finding:
    name = "ground shared between splits"
    if len({split for split, _ in tiles}) < 2:
        return Finding(name, "n/a", "There is one split only.")
    placed = [(split, tile) for split, tile in tiles if _is_placed(tile)]
    if not placed:
        return Finding(name, "n/a", "No tile is georeferenced; copies are looked for in the pixels.")
    try:
        outlines = _grounds([tile for _, tile in placed])
    except (InputError, ProjError) as error:
        return Finding(name, "n/a", f"Tiles cannot be laid on one map: {error}")
    shared = _overlaps(outlines, [split for split, _ in placed])
    area_m2 = sum(area for _, _, area in shared)
    involved = {i for a, b, _ in shared for i in (a, b)}
    numbers = {
        "tiles_looked_at": len(placed),
        "pairs": len(shared),
        "tiles_involved": len(involved),
        "shared_m2": area_m2,
    }
    if not shared:
        left = len(tiles) - len(placed)
        rest = f" ({counted(left, 'tile')} without georeference not looked at)" if left else ""
        return Finding(name, "ok", f"None: 0 m² in {counted(len(placed), 'tile')}{rest}.", "", numbers)
    worst = sorted(shared, key=lambda pair: -pair[2])[:MAX_CASES]
    cases = tuple(
        Case(
            placed[a][0],
            placed[a][1].file_name,
            f"{area:.0f} m² also in {placed[b][0]}: {placed[b][1].file_name}",
        )
        for a, b, area in worst
    )
    detail = f"{area_m2:.0f} m² in {counted(len(shared), 'pair')} of tiles, {counted(len(involved), 'tile')} in all."
    remedy = (
        "Scores on ground that was trained on say nothing: split by blocks of ground (prepare_dataset.py "
        "does it with `split`), or drop the training tiles that reach into the other splits."
    )
    return Finding(name, "FAIL", detail, remedy, numbers, cases)


def _grounds(tiles) -> np.ndarray:
    """(N,) outlines of the tiles on the ground, in one CRS in metres."""
    first = tiles[0]
    common = metric_crs(first.crs, *(Affine(*first.transform[:6]) * (first.width / 2, first.height / 2)))
    rings = np.empty((len(tiles), 5, 2))
    for i, tile in enumerate(tiles):
        corners = [(0, 0), (tile.width, 0), (tile.width, tile.height), (0, tile.height), (0, 0)]
        rings[i] = [Affine(*tile.transform[:6]) * corner for corner in corners]
    for crs in {tile.crs for tile in tiles} - {common}:
        chosen = [i for i, tile in enumerate(tiles) if tile.crs == crs]
        convert = transformer(crs, common)
        x, y = convert.transform(rings[chosen][..., 0], rings[chosen][..., 1])
        rings[chosen] = np.stack([x, y], axis=-1)
    rings[~np.isfinite(rings).all(axis=(1, 2))] = 0  # no place on that map: no ground to share
    return shapely.polygons(rings)


def _overlaps(outlines: np.ndarray, splits: list[str]) -> list[tuple[int, int, float]]:
    """(a, b, area) of tiles of different splits that share more ground than rounding makes."""
    _, number = np.unique(splits, return_inverse=True)
    left, right = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    wanted = (left < right) & (number[left] != number[right])
    left, right = left[wanted], right[wanted]
    area = shapely.area(shapely.intersection(outlines[left], outlines[right]))
    large = area > _ROUNDING * np.minimum(shapely.area(outlines[left]), shapely.area(outlines[right]))
    return list(zip(left[large].tolist(), right[large].tolist(), area[large].tolist(), strict=True))
