"""Checks of what the annotation files say: counts, density, sizes, outlines. No raster is opened."""

import math
from collections import Counter

from fusiondet.doctor.findings import MAX_CASES, Case, Finding, counted, percent
from fusiondet.doctor.split_source import Split
from fusiondet.errors import InputError
from fusiondet.io.coco import checked_rings

import numpy as np
import shapely
from shapely.geometry import Polygon

# What COCO's evaluation and Detectron2's inference keep per image unless they are told otherwise.
DEFAULT_MAX_DETECTIONS = 100
# Room for false ones: a detector that may only answer as often as there are buildings pays for every false alarm.
_HEADROOM = 1.25
# Side of the smallest anchor of configs/Base-FusionRCNN-FPN.yaml.
SMALLEST_ANCHOR_PX = 16
# Smaller outlines have no pixel to learn from.
TINY_PX = 4.0
# An outline may stand over the border by this much: rounding.
_BORDER_PX = 1.0


def check_annotations(splits: list[Split], max_detections: int = DEFAULT_MAX_DETECTIONS) -> list[Finding]:
    """All checks of this module over the splits that can be read; the first says which can not."""
    readable = [split for split in splits if split.dataset is not None]
    return [
        _files(splits),
        _counts(readable),
        _density(readable, max_detections),
        _sizes(readable),
        _outlines(readable),
        _kinds(readable),
        _names_and_ids(readable),
    ]


def _files(splits: list[Split]) -> Finding:
    broken = [split for split in splits if split.dataset is None]
    numbers = {
        "files": [split.path.name for split in splits],
        "unreadable": {s.name: s.error for s in broken},
    }
    if broken:
        return Finding(
            "annotation files",
            "FAIL",
            f"{len(broken)} of {counted(len(splits), 'file')} cannot be read: {broken[0].error}",
            "Repair or remove it; its split takes no part in the other checks.",
            numbers,
        )
    return Finding("annotation files", "ok", ", ".join(s.path.name for s in splits), "", numbers)


def _counts(splits: list[Split]) -> Finding:
    numbers, words, bad, notes = {}, [], [], []
    for split in splits:
        tiles = split.dataset.tiles
        buildings = sum(len(tile.buildings) for tile in tiles)
        empty = sum(not tile.buildings for tile in tiles)
        numbers[split.name] = {"images": len(tiles), "buildings": buildings, "empty_images": empty}
        said = f"{split.name}: {counted(len(tiles), 'image')} with {counted(buildings, 'building')}, {empty} empty"
        mapped = sum(tile.class_file_name is not None for tile in tiles)
        if mapped:
            numbers[split.name]["images_with_classes"] = mapped
            said += f", {mapped} with a class of each pixel"
        words.append(said)
        if not buildings:
            # Classes of pixels are labels, too.
            bad += [] if mapped else [split.name]
        elif empty > 0.9 * len(tiles):
            notes.append(split.name)
    detail = "; ".join(words) + "."
    if bad:
        remedy = f"{', '.join(bad)} has no building at all: check that its labels were found and lie on its images."
        return Finding("images and buildings", "FAIL", detail, remedy, numbers)
    if notes:
        remedy = f"More than 90 % of the images of {', '.join(notes)} are empty: are labels missing?"
        return Finding("images and buildings", "warn", detail, remedy, numbers)
    return Finding("images and buildings", "ok", detail, "", numbers)


def _density(splits: list[Split], max_detections: int) -> Finding:
    name = "density"
    tiles = [(len(tile.buildings), split.name, tile) for split in splits for tile in split.dataset.tiles]
    if not tiles:
        return Finding(name, "n/a", "There is no image.")
    counts = np.array([n for n, _, _ in tiles])
    most = int(counts.max())
    over = int((counts > max_detections).sum())
    needed = int(math.ceil(_HEADROOM * most / 50) * 50)
    numbers = {
        "max_detections": max_detections,
        "mean_per_image": counts.mean(),
        "median_per_image": np.median(counts),
        "p95_per_image": np.percentile(counts, 95),
        "most_per_image": most,
        "images_above_max_detections": over,
        "suggested_max_detections": max(needed, DEFAULT_MAX_DETECTIONS),
    }
    detail = (
        f"{counts.mean():.1f} buildings per image in the mean, {most} in the densest; "
        f"{over} of {counted(len(counts), 'image')} above {max_detections} detections."
    )
    if not over:
        return Finding(name, "ok", detail, "", numbers)
    worst = sorted(tiles, key=lambda t: -t[0])[:MAX_CASES]
    cases = tuple(Case(split, tile.file_name, f"{n} buildings") for n, split, tile in worst)
    remedy = (
        f"Set TEST.DETECTIONS_PER_IMAGE to {needed} (Detectron2 and COCO's evaluation keep 100 unless told "
        "otherwise: the rest counts as missed), or cut smaller tiles."
    )
    return Finding(name, "warn", detail, remedy, numbers, cases)


def _sizes(splits: list[Split]) -> Finding:
    name, sides, areas_m2, cases = "sizes of buildings", [], [], []
    for split in splits:
        for tile in split.dataset.tiles:
            if not tile.buildings:
                continue
            area_px = shapely.area([b.polygon for b in tile.buildings])
            sides.append(np.sqrt(area_px))
            areas_m2.append(area_px * tile.gsd_m**2)
            small = int((area_px < TINY_PX).sum())
            if small:
                cases.append((small, Case(split.name, tile.file_name, f"{small} below {TINY_PX:g} px²")))
    if not sides:
        return Finding(name, "n/a", "There is no building.")
    side, area_m2 = np.concatenate(sides), np.concatenate(areas_m2)
    area_m2 = area_m2[np.isfinite(area_m2)]
    low, middle, high = np.percentile(side, (5, 50, 95))
    below = float(np.mean(side < SMALLEST_ANCHOR_PX / 2))
    tiny = int((side**2 < TINY_PX).sum())
    numbers = {
        "side_px": {"p5": low, "median": middle, "p95": high},
        "area_m2": dict(zip(("p5", "median", "p95"), np.percentile(area_m2, (5, 50, 95))))
        if area_m2.size
        else None,
        "share_below_half_smallest_anchor": below,
        "smallest_anchor_px": SMALLEST_ANCHOR_PX,
        "tiny": tiny,
    }
    metres = f", {np.median(area_m2):.0f} m² in the middle" if area_m2.size else ", GSD unknown"
    detail = (
        f"√area {low:.0f} to {high:.0f} px (5 to 95 %){metres}; {percent(below)} below {SMALLEST_ANCHOR_PX // 2} px, "
        f"half the smallest anchor; {tiny} below {TINY_PX:g} px²."
    )
    shown = tuple(case for _, case in sorted(cases, key=lambda c: -c[0])[:MAX_CASES])
    if area_m2.size and not 5 <= np.median(area_m2) <= 20000:
        remedy = "Buildings of this size are unusual: is gsd_m right, and are outlines in pixels?"
        return Finding(name, "warn", detail, remedy, numbers, shown)
    if below > 0.2:
        remedy = (
            "Small buildings will be missed: resample to a finer GSD (`gsd`) or add a smaller anchor "
            "(MODEL.ANCHOR_GENERATOR.SIZES)."
        )
        return Finding(name, "warn", detail, remedy, numbers, shown)
    if tiny > 0.02 * len(side):
        remedy = "Drop slivers: make the data again with a larger `min_area_m2`."
        return Finding(name, "warn", detail, remedy, numbers, shown)
    return Finding(name, "ok", detail, "", numbers)


def _outlines(splits: list[Split]) -> Finding:
    """Rings as they stand in the file: `read_coco` repairs them silently."""
    faults: Counter = Counter()
    per_image: dict[tuple[str, object], Counter] = {}
    total = 0
    for split in splits:
        sizes = {image["id"]: (image["width"], image["height"]) for image in split.document["images"]}
        seen: set = set()
        for annotation in split.document["annotations"]:
            total += 1
            found = _faults(annotation, sizes[annotation["image_id"]])
            key = _outline_key(annotation)
            if key in seen:
                found.add("drawn twice")
            seen.add(key)
            faults.update(found)
            if found:
                per_image.setdefault((split.name, annotation["image_id"]), Counter()).update(found)
    numbers = {"outlines": total, "faults": dict(faults)}
    if not faults:
        return Finding("outlines", "ok", f"All {total} are valid and inside their images.", "", numbers)
    words = ", ".join(f"{n} {what}" for what, n in faults.most_common())
    share = max(faults.values()) / total
    remedy = (
        "Self-intersections and rings of fewer than 3 corners are repaired or dropped on reading; outlines outside "
        "the image or drawn twice are not: clip and deduplicate, or make the data again with tools/prepare_dataset.py."
    )
    serious = (faults["outside the image"] + faults["drawn twice"]) / total > 0.02
    names = {(s.name, image["id"]): image["file_name"] for s in splits for image in s.document["images"]}
    worst = sorted(per_image.items(), key=lambda item: -sum(item[1].values()))[:MAX_CASES]
    cases = tuple(
        Case(key[0], names[key], ", ".join(f"{n} {what}" for what, n in found.items()))
        for key, found in worst
    )
    verdict = "FAIL" if serious else "warn"
    return Finding("outlines", verdict, f"of {total}: {words} ({percent(share)}).", remedy, numbers, cases)


def _faults(annotation: dict, size: tuple[int, int]) -> set[str]:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        return set()
    width, height = size
    try:
        rings = checked_rings(segmentation)
    except InputError:
        return {"not numbers"}
    found = set()
    if not rings:
        found.add("without a ring")
    for ring in rings:
        if len(ring) < 6:
            found.add("with fewer than 3 corners")
            continue
        xy = np.reshape(ring, (-1, 2))
        polygon = Polygon(xy)
        if not polygon.is_valid:
            found.add("crossing themselves")
        elif polygon.area < 1e-9:
            found.add("without area")
        if (xy < -_BORDER_PX).any() or (xy > np.array([width, height]) + _BORDER_PX).any():
            found.add("outside the image")
    return found


def _outline_key(annotation: dict) -> tuple:
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        return annotation["image_id"], str(segmentation.get("counts"))
    return annotation["image_id"], str(segmentation)


def _kinds(splits: list[Split]) -> Finding:
    kinds: Counter = Counter()
    multi = 0
    for split in splits:
        for annotation in split.document["annotations"]:
            segmentation = annotation["segmentation"]
            rle = isinstance(segmentation, dict)
            kinds["crowd" if annotation.get("iscrowd") else "RLE" if rle else "polygons"] += 1
            multi += not rle and len(segmentation) > 1 and isinstance(segmentation[0], list)
    exact = sum(bool(a.get("outline_px")) for s in splits for a in s.document["annotations"])
    numbers = {**kinds, "of_several_parts": multi, "RLE_with_exact_outline": exact}
    detail = (
        ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()) or "none"
    ) + f"; {multi} of several parts."
    if kinds["crowd"]:
        remedy = "iscrowd regions are left out of training and ignored in scores: make sure that is meant."
        return Finding("kinds of outlines", "warn", detail, remedy, numbers)
    if kinds["polygons"] and kinds["RLE"] > exact:
        remedy = (
            "Polygons and RLE are mixed: train with INPUT.MASK_FORMAT bitmask; RLE outlines are stair-cased."
        )
        return Finding("kinds of outlines", "warn", detail, remedy, numbers)
    return Finding("kinds of outlines", "ok", detail, "", numbers)


def _names_and_ids(splits: list[Split]) -> Finding:
    """The same raster in two splits; the same name twice in one. A window of a raster counts as a raster of its own."""
    where: dict[tuple, list[tuple[str, str]]] = {}
    for split in splits:
        for tile in split.dataset.tiles:
            root = split.dataset.root
            key = (str(root / tile.file_name), getattr(tile, "window", None))
            where.setdefault(key, []).append((split.name, tile.file_name))
    across = {k: v for k, v in where.items() if len({s for s, _ in v}) > 1}
    within = {k: v for k, v in where.items() if len(v) > len({s for s, _ in v})}
    numbers = {"names_in_two_splits": len(across), "names_twice_in_a_split": len(within)}
    if across:
        cases = tuple(Case(*v[0], f"also in {v[-1][0]}") for v in list(across.values())[:MAX_CASES])
        return Finding(
            "file names",
            "FAIL",
            f"{counted(len(across), 'image')} stand in more than one split: what is learned is also what is scored.",
            "Remove them from all splits but one, and split by blocks of ground (`split`).",
            numbers,
            cases,
        )
    if within:
        cases = tuple(Case(*v[0]) for v in list(within.values())[:MAX_CASES])
        detail = f"{counted(len(within), 'image')} stand twice in one split."
        return Finding("file names", "warn", detail, "List every image once.", numbers, cases)
    return Finding("file names", "ok", "Every image stands in one split, once.", "", numbers)
