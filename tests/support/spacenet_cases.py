"""Small SpaceNet challenges made from a seed: true outlines and proposals of a few tiles, as pixels and as WKT.

`published_scores.json` beside this file holds what the published evaluator says of them.
"""

from dataclasses import dataclass, field

import numpy as np
from shapely import wkt
from shapely.affinity import rotate, translate
from shapely.geometry import MultiPolygon, Polygon, box
from shapely.geometry.base import BaseGeometry

SIZE = 128


@dataclass
class Challenge:
    """Per tile: true outlines, and (outline, confidence) of proposals in the order of their file."""

    truth: dict[str, list[BaseGeometry]] = field(default_factory=dict)
    proposals: dict[str, list[tuple[BaseGeometry, float]]] = field(default_factory=dict)
    min_area_px: float = 80.0

    def sorted_proposals(self, tile: str) -> list[BaseGeometry]:
        """Outlines of a tile by descending confidence, ties in the order of the file."""
        return [p for p, _ in sorted(self.proposals.get(tile, []), key=lambda pair: -pair[1])]


def _written(polygon: BaseGeometry) -> BaseGeometry:
    """As it comes back from the WKT that both sides read."""
    return wkt.loads(wkt.dumps(polygon, rounding_precision=3))


def _random(seed: int, tiles: int = 3, decimals: int = 4) -> Challenge:
    rng, made = np.random.RandomState(seed), Challenge()
    for tile in (f"AOI_9_Town_img{n}" for n in range(1, tiles + 1)):
        made.truth[tile], made.proposals[tile] = [], []
        for x, y in ((x, y) for x in range(4, 120, 24) for y in range(4, 120, 24)):
            if rng.rand() < 0.3:
                continue
            w, h = rng.randint(6, 20, 2).tolist()
            house = rotate(box(x, y, x + w, y + h), 60 * rng.rand())
            made.truth[tile].append(_written(house))
            for _ in range(rng.randint(0, 3)):
                moved = translate(rotate(house, 10 * rng.randn()), *(3 * rng.randn(2)))
                made.proposals[tile].append((_written(moved), round(rng.rand(), decimals)))
        for _ in range(4):
            x, y = rng.randint(0, 110, 2).tolist()
            made.proposals[tile].append((box(x, y, x + 12, y + 9), round(rng.rand(), decimals)))
    return made


def _touching() -> Challenge:
    """A terrace whose proposals lie across the shared walls, and one on two houses that is half of each."""
    houses = [box(10 * k, 0, 10 * k + 10, 20) for k in range(5)]
    made = Challenge({"t": houses}, {"t": []})
    made.proposals["t"] = [(box(10 * k + 3, 0, 10 * k + 13, 20), 0.9 - 0.1 * k) for k in range(4)]
    made.proposals["t"].append((box(0, 0, 20, 20), 0.95))
    return made


def _overlapping_truth() -> Challenge:
    """Truths that overlap: a proposal takes the one it fits best, the next one what is left."""
    truth = [box(0, 0, 20, 20), box(2, 0, 22, 20), box(4, 0, 24, 20)]
    return Challenge(
        {"t": truth}, {"t": [(box(1, 0, 21, 20), 0.9), (box(2, 0, 22, 20), 0.8), (truth[0], 0.7)]}
    )


def _equal_overlaps() -> Challenge:
    """Two truths with the same IoU: the earlier one goes, and the next proposal, which fits only that, is wrong."""
    truth = [box(0, 0, 20, 20), box(4, 0, 24, 20)]
    return Challenge({"t": truth}, {"t": [(box(2, 0, 22, 20), 0.9), (box(0, 0, 11, 20), 0.8)]})


def _exactly_one_half() -> Challenge:
    truth = [box(0, 0, 20, 20), box(40, 0, 60, 20), box(80, 0, 100, 21)]
    found = [box(0, 0, 20, 10), box(40, 0, 80, 20), box(80, 0, 100, 11)]
    return Challenge({"t": truth}, {"t": [(p, 0.5) for p in found]})


def _of_area(*sides: tuple[int, int]) -> list[Polygon]:
    return [box(20 * k, 0, 20 * k + w, h) for k, (w, h) in enumerate(sides)]


def _small(min_area_px: float) -> Challenge:
    """Areas of 79, 80, 81 and 20 px²: a truth needs as much as the least area, a proposal more."""
    outlines = _of_area((1, 79), (8, 10), (9, 9), (4, 5))
    return Challenge({"t": outlines}, {"t": [(p, 0.5) for p in outlines]}, min_area_px)


def _small_truth_beside() -> Challenge:
    """A large proposal on a truth that is too small to count is wrong."""
    return Challenge({"t": [box(0, 0, 8, 9)]}, {"t": [(box(0, 0, 9, 9), 0.5)]})


def _holes() -> Challenge:
    ring = Polygon(box(0, 0, 30, 30).exterior, [box(5, 5, 25, 25).exterior])
    return Challenge({"t": [ring, box(50, 0, 70, 20)]}, {"t": [(box(0, 0, 30, 30), 0.5), (ring, 0.4)]})


def _parts() -> Challenge:
    two = MultiPolygon([box(0, 0, 10, 20), box(15, 0, 25, 20)])
    return Challenge({"t": [two, box(50, 0, 70, 20)]}, {"t": [(box(0, 0, 25, 20), 0.5), (two, 0.4)]})


def _nested() -> Challenge:
    found = [(box(0, 0, 40, 40), 0.9), (box(5, 5, 35, 35), 0.8), (box(10, 10, 30, 30), 0.7)]
    return Challenge({"t": [box(5, 5, 35, 35)]}, {"t": found})


def _twice() -> Challenge:
    made = _random(21)
    made.proposals = {tile: pairs * 2 for tile, pairs in made.proposals.items()}
    return made


def _without(what: str, seed: int) -> Challenge:
    made = _random(seed)
    tile = next(iter(made.truth))
    getattr(made, what)[tile] = []
    return made


def _shared_corner() -> Challenge:
    return Challenge(
        {"t": [box(0, 0, 20, 20)]}, {"t": [(box(20, 20, 40, 40), 0.9), (box(0, 0, 20, 20), 0.1)]}
    )


def _nothing_right() -> Challenge:
    return Challenge({"t": [box(0, 0, 20, 20)]}, {"t": [(box(60, 60, 80, 80), 0.9)]})


CASES = {
    **{f"random_{seed}": (lambda seed=seed: _random(seed)) for seed in range(1, 9)},
    "ties": lambda: _random(11, decimals=1),
    "all_tied": lambda: _random(12, decimals=0),
    "touching": _touching,
    "overlapping_truth": _overlapping_truth,
    "equal_overlaps": _equal_overlaps,
    "exactly_one_half": _exactly_one_half,
    "small_80": lambda: _small(80.0),
    "small_20": lambda: _small(20.0),
    "small_0": lambda: _small(0.0),
    "small_truth_beside": _small_truth_beside,
    "holes": _holes,
    "parts": _parts,
    "nested": _nested,
    "everything_twice": _twice,
    "tile_without_truth": lambda: _without("truth", 22),
    "tile_without_proposals": lambda: _without("proposals", 23),
    "shared_corner": _shared_corner,
    "nothing_right": _nothing_right,
    "no_proposals": lambda: Challenge({"t": [box(0, 0, 20, 20)]}, {"t": []}),
    "no_truth": lambda: Challenge({"t": []}, {"t": [(box(0, 0, 20, 20), 0.5)]}),
    "nothing_at_all": lambda: Challenge({"t": []}, {"t": []}),
}
