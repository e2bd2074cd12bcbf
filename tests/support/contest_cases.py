"""Small contests with a submission each, made from a seed: random ones, and one for every odd rule of a scorer.

`published_scores.json` beside this file holds what the published programs say of them.
"""

import json
from pathlib import Path

from fusiondet.io.coco import encode_rle

import numpy as np
import rasterio

SIZE = 40
BUILDING = {"id": 1, "name": "building", "supercategory": "building"}


def _box(x: int, y: int, w: int, h: int) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def _mask(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = True
    return mask


def result(image_id, box, score, category_id=1) -> dict:
    """COCO result of a rectangle (x, y, w, h)."""
    rle = encode_rle(_mask(*box))
    return {"image_id": image_id, "category_id": category_id, "score": float(score), "segmentation": rle}


class Contest:
    """Truth (COCO document, true heights) and a submission (results, heights) of a few tiles of SIZE pixels."""

    def __init__(self, seed: int = 0, tiles: int = 4):
        """A random one: houses on a grid, most of them found, shifted; heights with errors of 20 %."""
        # RandomState: numpy keeps its stream the same for ever.
        self.rng = rng = np.random.RandomState(seed)
        images, annotations, self.results, self.truth, self.heights = [], [], [], {}, {}
        for image_id in range(1, tiles + 1):
            name = f"P_{image_id:04d}.tif"
            images.append({"id": image_id, "file_name": name, "width": SIZE, "height": SIZE})
            true, found = np.zeros((SIZE, SIZE), np.float32), np.zeros((SIZE, SIZE), np.float32)
            for x, y in ((x, y) for x in (1, 14, 27) for y in (1, 14, 27)):
                if rng.rand() < 0.4:
                    continue
                w, h = rng.randint(5, 12, 2).tolist()
                height_m = 3 + 12 * rng.rand()
                true[_mask(x, y, w, h)] = height_m
                annotations.append(self._annotation(len(annotations) + 1, image_id, (x, y, w, h)))
                if rng.rand() < 0.8:
                    dx, dy, dw = rng.randint(-2, 3, 3).tolist()
                    box = (x + dx, y + dy, w + dw, h)
                    found[_mask(*box)] = height_m * (1 + 0.2 * rng.randn())
                    self.results.append(result(image_id, box, round(rng.rand(), 2)))
            for _ in range(rng.randint(3)):
                box = (*rng.randint(0, 30, 2).tolist(), 6, 6)
                self.results.append(result(image_id, box, round(0.6 * rng.rand(), 2)))
            self.truth[name], self.heights[name] = true, found
        self.document = {"images": images, "annotations": annotations, "categories": [dict(BUILDING)]}

    def _annotation(self, number: int, image_id: int, box: tuple) -> dict:
        # Polygons and RLE mixed, as in the contest's files.
        segmentation = encode_rle(_mask(*box)) if number % 3 == 0 else _box(*box)
        area = float(box[2] * box[3])
        return {
            "id": number,
            "image_id": image_id,
            "category_id": 1,
            "iscrowd": 0,
            "area": area,
            "bbox": list(box),
            "segmentation": segmentation,
        }

    def crowd_of_results(self, n: int) -> None:
        """`n` results more in every tile, of random places and scores."""
        for image in self.document["images"]:
            for _ in range(n):
                box = (*self.rng.randint(0, 32, 2).tolist(), *self.rng.randint(3, 9, 2).tolist())
                self.results.append(result(image["id"], box, round(self.rng.rand(), 3)))

    def write(self, folder: Path) -> None:
        """As the scoring program wants it: ref/ with the truth, res/ with the submission."""
        for part, name, data, rasters in (
            ("ref", "buildings_only_val.json", self.document, self.truth),
            ("res", "seg_results.json", self.results, self.heights),
        ):
            (folder / part / "height").mkdir(parents=True)
            (folder / part / name).write_text(json.dumps(data))
            for tile, values in rasters.items():
                write_tif(folder / part / "height" / tile, values)


def write_tif(path: Path, values: np.ndarray, **options) -> None:
    """(H, W) as a GeoTIFF without a place, of its own dtype."""
    height, width = values.shape
    profile = {"driver": "GTiff", "count": 1, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", **profile, **options) as f:
        f.write(values, 1)


def _heights_as(change):
    def make(contest: Contest) -> None:
        contest.heights = {name: change(values) for name, values in contest.heights.items()}

    return make


def _truth_as(change):
    def make(contest: Contest) -> None:
        contest.truth = {name: change(values) for name, values in contest.truth.items()}

    return make


def _where(mask_of, value):
    return lambda values: np.where(mask_of(values), np.float32(value), values)


def _corner(values: np.ndarray) -> np.ndarray:
    return np.add.outer(np.arange(SIZE), np.arange(SIZE)) < 30


def _scores(value):
    def make(contest: Contest) -> None:
        for record in contest.results:
            record["score"] = value(record["score"])

    return make


def _many(n: int):
    return lambda contest: contest.crowd_of_results(n)


def _first_tile_only(contest: Contest) -> None:
    contest.heights = dict(list(contest.heights.items())[:1])


def _no_truth(contest: Contest) -> None:
    contest.document["annotations"] = []


def _empty_tiles(contest: Contest) -> None:
    contest.document["annotations"] = [a for a in contest.document["annotations"] if a["image_id"] > 2]


def _crowds(contest: Contest) -> None:
    for annotation in contest.document["annotations"][::3]:
        annotation["iscrowd"] = 1


def _ids_from_0(contest: Contest) -> None:
    for n, annotation in enumerate(contest.document["annotations"]):
        annotation["id"] = n


def _other_categories(contest: Contest) -> None:
    contest.document["categories"] += [{"id": 7, "name": "tank"}]
    for record in contest.results[::2]:
        record["category_id"] = 7
    contest.document["annotations"][0]["category_id"] = 7


def _backwards(contest: Contest) -> None:
    contest.document["images"].reverse()
    contest.results.reverse()
    _scores(lambda score: round(score, 1))(contest)


def _twice(contest: Contest) -> None:
    contest.results += [dict(record) for record in contest.results]


def _half_overlaps(contest: Contest) -> None:
    contest.document["annotations"] = [contest._annotation(n, n, (4, 4, 10, 8)) for n in (1, 2, 3, 4)]
    contest.results = [result(n, (4, 4, 10, 4), 0.9 - n / 10) for n in (1, 2)]
    contest.results += [result(n, (4, 4, 20, 8), 0.5 + n / 10) for n in (3, 4)]


def _touching(contest: Contest) -> None:
    rows = [(4, 4 + 8 * k, 20, 8) for k in range(4)]
    contest.document["annotations"] = [contest._annotation(n, 1, row) for n, row in enumerate(rows, 1)]
    contest.results = [result(1, (4, 6 + 8 * k, 20, 8), 0.5) for k in range(4)]


def _slanted(contest: Contest) -> None:
    """Outlines that no pixel's border follows, one of two parts, one that leaves its image."""
    for annotation in contest.document["annotations"]:
        x, y, w, h = annotation["bbox"]
        dx, dy = (contest.rng.rand(2) * 3).round(2).tolist()
        annotation["segmentation"] = [[x + dx, y, x + w, y + dy, x + w - dx, y + h, x, y + h - dy]]
    annotations = contest.document["annotations"]
    annotations[0]["segmentation"] += [[30.2, 30.7, 44.0, 31.1, 41.3, 46.9]]


def _mask_of_other_size(contest: Contest) -> None:
    mask = np.zeros((SIZE // 2, SIZE), bool)
    mask[2:8, 2:8] = True
    contest.results[0]["segmentation"] = encode_rle(mask)


def _with_boxes(contest: Contest) -> None:
    for record in contest.results:
        record["bbox"] = [0, 0, 3, 3]


def _one_pixel_right(contest: Contest) -> None:
    contest.heights = {name: np.full((SIZE, SIZE), 500, np.float32) for name in contest.heights}
    contest.truth = {name: np.zeros((SIZE, SIZE), np.float32) for name in contest.truth}
    list(contest.truth.values())[0][3, 3] = 500


def _nothing_found(contest: Contest) -> None:
    contest.results = [result(1, (0, 0, 1, 1), 0.1)]


_ZERO = _heights_as(np.zeros_like)
CASES = {
    **{f"random_{seed}": (seed, lambda contest: None) for seed in range(1, 9)},
    "zero_heights": (11, _ZERO),
    "negative_heights": (12, _heights_as(_where(_corner, -0.5))),
    "nan_in_prediction": (13, _heights_as(_where(_corner, np.nan))),
    "nan_in_truth": (14, _truth_as(_where(_corner, np.nan))),
    "nan_in_both": (
        15,
        lambda c: (_truth_as(_where(_corner, np.nan))(c), _heights_as(_where(_corner, np.nan))(c)),
    ),
    "infinite_heights": (16, _heights_as(_where(_corner, np.inf))),
    "ground_of_1_cm": (17, _truth_as(lambda v: np.maximum(v, np.float32(0.01)))),
    "sentinel_in_truth": (18, _truth_as(_where(_corner, -9999))),
    "whole_metres": (19, _heights_as(lambda v: np.round(v).astype(np.int16))),
    "bytes": (20, _heights_as(lambda v: np.round(v).clip(0, 255).astype(np.uint8))),
    "doubles": (21, _heights_as(lambda v: v.astype(np.float64) * 1.01)),
    "whole_metres_and_nan_in_truth": (
        22,
        lambda c: (
            _truth_as(_where(_corner, np.nan))(c),
            _heights_as(lambda v: np.round(v).astype(np.int32))(c),
        ),
    ),
    "one_tile_submitted": (23, _first_tile_only),
    "150_instances_a_tile": (24, _many(150)),
    "400_instances_a_tile": (25, _many(400)),
    "1100_instances_a_tile": (26, _many(1100)),
    "all_scores_equal": (27, lambda c: (_many(30)(c), _scores(lambda s: 0.5)(c))),
    "scores_of_one_decimal": (28, lambda c: (_many(30)(c), _scores(lambda s: round(s, 1))(c))),
    "empty_tiles": (29, _empty_tiles),
    "no_truth": (30, _no_truth),
    "crowds": (31, _crowds),
    "ids_from_0": (32, _ids_from_0),
    "other_categories": (33, _other_categories),
    "images_backwards": (34, _backwards),
    "everything_twice": (35, _twice),
    "overlap_of_one_half": (36, _half_overlaps),
    "touching": (37, _touching),
    "slanted_outlines": (42, _slanted),
    "mask_of_other_size": (38, _mask_of_other_size),
    "boxes_beside_masks": (39, _with_boxes),
    "one_pixel_right": (40, _one_pixel_right),
    "nothing_found": (41, _nothing_found),
}


def contest(name: str) -> Contest:
    """The case of that name."""
    seed, change = CASES[name]
    made = Contest(seed, tiles=8 if change is _one_pixel_right else 4)
    change(made)
    return made
