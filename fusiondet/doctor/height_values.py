"""Checks of heights: of the buildings' attribute by its statistics, of rasters by the ground beside buildings."""

from collections import Counter

from fusiondet.buildings import TALLEST_BUILDING_M
from fusiondet.doctor.findings import MAX_CASES, Case, Finding, counted, percent
from fusiondet.doctor.split_source import Split
from fusiondet.errors import InputError
from fusiondet.io.labels import check_height_labels

import numpy as np

BINS_M = (0, 2.5, 5, 7.5, 10, 15, 20, 30, 50, 100, TALLEST_BUILDING_M)
# Fewer buildings of known height than this say nothing about the rest.
_ENOUGH = 20
# Garages, sheds and one-storey houses are lower than this everywhere; ground that was not subtracted lifts them.
_LOW_M = 8.0
_VERY_LOW_M = 12.0
# Buildings of a house's size, square metres, are rarely higher than this many times the side of a square of their area:
# half of them are below 0.8 in towns, and below 1.2 among towers. In feet the same are below 2.5 and 3.9.
_HOUSE_M2, _SLENDER = (40.0, 400.0), 1.7
_FOOT_M = 0.3048
# Standard deviation of the log heights of the buildings of one tile, below which they are nearly the same number.
_NARROW = 0.32


def check_heights(splits: list[Split], samples: int = 16) -> list[Finding]:
    """All checks of this module; of rasters, `samples` tiles per split are read."""
    return [_attribute(splits), _elevations(splits), _datum(splits), _rasters(splits, samples)]


def _known(tile) -> np.ndarray:
    return np.array([b.height_m for b in tile.buildings if b.height_m is not None], float)


def _attribute(splits: list[Split]) -> Finding:
    name = "heights of buildings"
    buildings = [b for s in splits for t in s.dataset.tiles for b in t.buildings]
    heights_m = np.array([b.height_m for b in buildings if b.height_m is not None], float)
    if not buildings:
        return Finding(name, "n/a", "There is no building.")
    unknown = 1 - len(heights_m) / len(buildings)
    numbers = {
        "buildings": len(buildings),
        "unknown": len(buildings) - len(heights_m),
        "unknown_share": unknown,
    }
    if not heights_m.size:
        detail = f"None of {counted(len(buildings), 'building')} has one."
        remedy = "Detection and masks can be trained, heights can not: add `height_field`, `ndsm` or `dsm` with `dtm`."
        return Finding(name, "warn", detail, remedy, numbers)
    counts, _ = np.histogram(heights_m, BINS_M)
    # Above what stands anywhere but in a few cities, or so low that it is no building.
    tall, flat = int((heights_m > 300).sum()), int((heights_m < 1).sum())
    numbers |= {
        "histogram_edges_m": BINS_M,
        "histogram": counts,
        "percentiles_m": dict(zip(("p1", "p50", "p99"), np.percentile(heights_m, (1, 50, 99)))),
        "above_300_m": tall,
        "below_1_m": flat,
    }
    low, middle, high = np.percentile(heights_m, (5, 50, 95))
    detail = (
        f"{low:.1f} to {high:.1f} m (5 to 95 %), {middle:.1f} m in the middle; unknown {percent(unknown)}; {flat} "
        f"below 1 m, {tall} above 300 m."
    )
    cases = _tallest(splits, above_m=300)
    if middle > 100:
        remedy = (
            "No city is like this: other units (feet, cm), or elevations. Convert to metres above ground."
        )
        return Finding(name, "FAIL", detail, remedy, numbers, cases)
    slender, houses_m = _slenderness(splits)
    numbers["height_over_side_of_houses"] = slender
    if houses_m.size >= _ENOUGH and slender > _SLENDER:
        house_m = float(np.median(houses_m))
        detail += (
            f" Of {houses_m.size} houses half are above {house_m:.1f} m, {slender:.1f} times as high as wide."
        )
        remedy = (
            f"Are these feet (then they are {house_m * _FOOT_M:.1f} m) or elevations? Make the data again in metres "
            "above ground. If these really are towers, all is well."
        )
        return Finding(name, "warn", detail, remedy, numbers, _tallest(splits))
    if tall > max(2, 0.001 * len(heights_m)) or flat > 0.02 * len(heights_m):
        remedy = "Look at these buildings: sentinels, masts, or zero-like heights that should be null?"
        return Finding(name, "warn", detail, remedy, numbers, cases)
    if unknown > 0.5:
        remedy = "Only buildings of known height train the height head; check the join between outlines and heights."
        return Finding(name, "warn", detail, remedy, numbers)
    return Finding(name, "ok", detail, "", numbers)


def _slenderness(splits: list[Split]) -> tuple[float, np.ndarray]:
    """Median of height over the side of a square of the same area, of buildings of a house's size; their heights."""
    houses = [
        (building.height_m, area_m2)
        for split in splits
        for tile in split.dataset.tiles
        for building in tile.buildings
        if building.height_m is not None
        and _HOUSE_M2[0] <= (area_m2 := building.polygon.area * tile.gsd_m**2) <= _HOUSE_M2[1]
    ]
    heights_m, areas_m2 = np.array(houses, float).reshape(-1, 2).T
    return (float(np.median(heights_m / np.sqrt(areas_m2))) if houses else float("nan")), heights_m


def _tallest(splits: list[Split], above_m: float = 0.0) -> tuple[Case, ...]:
    """The tiles with the tallest buildings, those above a height alone."""
    highest = [
        (_known(tile).max(), Case(split.name, tile.file_name, f"{_known(tile).max():.0f} m"))
        for split in splits
        for tile in split.dataset.tiles
        if _known(tile).size
    ]
    highest = sorted((pair for pair in highest if pair[0] > above_m), key=lambda pair: -pair[0])
    return tuple(case for _, case in highest[:MAX_CASES])


def _elevations(splits: list[Split]) -> Finding:
    """Ground that was not subtracted lifts all buildings of a place by the same number: the low ones are missing,
    and neighbours differ by little against what they are.
    """
    name = "heights, not elevations"
    worst: Finding | None = None
    all_numbers = {}
    for split in splits:
        per_tile = [(tile, _known(tile)) for tile in split.dataset.tiles]
        heights_m = np.concatenate([h for _, h in per_tile] or [np.zeros(0)])
        if heights_m.size < _ENOUGH:
            continue
        low = float(np.percentile(heights_m, 5))
        spreads = [(np.std(np.log(h), ddof=1), h.size) for _, h in per_tile if h.size >= 3]
        spread = (
            float(np.sqrt(np.average([s**2 for s, _ in spreads], weights=[n for _, n in spreads])))
            if spreads
            else np.nan
        )
        all_numbers[split.name] = {
            "p5_m": low,
            "spread_of_log_within_tiles": spread,
            "buildings": heights_m.size,
        }
        lifted = low > _LOW_M and (spread < _NARROW or low > 3 * _VERY_LOW_M)
        if not lifted and low <= _VERY_LOW_M:
            continue
        detail = (
            f"{split.name}: 95 % of the buildings are above {low:.1f} m, and heights within a tile differ by "
            f"{percent(np.expm1(spread)) if np.isfinite(spread) else 'an unknown share'}."
        )
        cases = tuple(
            Case(split.name, t.file_name, f"lowest building {h.min():.1f} m")
            for t, h in sorted((p for p in per_tile if p[1].size), key=lambda p: -p[1].min())[:MAX_CASES]
        )
        remedy = (
            "This is what elevations look like: subtract the ground (`ground_field`, or `dsm` with `dtm`). If there "
            "really is no low building, all is well."
        )
        if worst is None or (lifted and worst.verdict != "FAIL"):
            worst = Finding(name, "FAIL" if lifted else "warn", detail, remedy, all_numbers, cases)
    if worst is not None:
        return worst
    if not all_numbers:
        return Finding(name, "n/a", f"Fewer than {_ENOUGH} buildings of known height in every split.")
    lows = ", ".join(f"{n['p5_m']:.1f} m" for n in all_numbers.values())
    detail = f"Low buildings are there (5 % below {lows}). Elevations of a ground near 0 would not show."
    return Finding(name, "ok", detail, "", all_numbers)


def _datum(splits: list[Split]) -> Finding:
    known = [b for s in splits for t in s.dataset.tiles for b in t.buildings if b.height_m is not None]
    counts = Counter(b.height_datum or "not stated" for b in known)
    sources = Counter(b.height_source or "not stated" for b in known)
    stats = Counter(b.height_stat or "not stated" for b in known)
    numbers = {"datum": counts, "source": sources, "statistic": stats}
    if not known:
        return Finding("datum of heights", "n/a", "No height is known.", "", numbers)
    detail = "; ".join(
        f"{what}: {', '.join(f'{name} ({n})' for name, n in c.most_common(3))}"
        for what, c in (("datum", counts), ("source", sources), ("statistic", stats))
    )
    if counts["ground"] < len(known):
        remedy = 'Make sure heights are above ground, then say so (`height_datum="ground"`), or subtract the ground.'
        return Finding("datum of heights", "warn", detail, remedy, numbers)
    if len(stats) > 1 or len(sources) > 1:
        remedy = "A ridge is metres above a median: use one statistic of one source where you can."
        return Finding("datum of heights", "warn", detail, remedy, numbers)
    return Finding("datum of heights", "ok", detail, "", numbers)


def _rasters(splits: list[Split], samples: int) -> Finding:
    """What a training would say about them, before it starts."""
    name = "height rasters"
    datasets = {s.name: s.dataset for s in splits}
    notes, looked, errors = [], [], []
    for source, key in (("building_height", "building_height_file_name"), ("ndsm", "ndsm_file_name")):
        some = {n: d for n, d in datasets.items() if any(getattr(t, key) is not None for t in d.tiles)}
        for split, dataset in some.items():
            looked.append(f"{source} of {split}")
            try:
                notes += check_height_labels({split: dataset}, source, samples)
            except InputError as error:
                errors.append(str(error))
    numbers = {"looked_at": looked, "notes": notes, "errors": errors}
    if errors:
        return Finding(
            name, "FAIL", " ".join(errors[:2]), "See what it says; a training refuses them.", numbers
        )
    if not looked:
        return Finding(name, "n/a", "There is none.", "", numbers)
    if notes:
        return Finding(
            name, "warn", " ".join(notes[:2]), "Fill the holes, or say which of the two is right.", numbers
        )
    return Finding(name, "ok", f"{', '.join(looked)}: heights above ground.", "", numbers)
