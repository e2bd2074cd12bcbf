"""Do outlines lie on what the optical pictures show, the right way round and unshifted?

Along an outline the picture changes across it. So the gradient, with its direction (up to its sign), is correlated
with the outlines' normals: over shifts, and over the eight ways in which a square can be turned and mirrored. Wrong
ways fit about as badly as each other, which tells how much chance does. Evidence is pooled over tiles.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from fusiondet.buildings import SensorGeometry, Tile
from fusiondet.doctor.edges import correlation, edge_points, middle, peak_px, splat
from fusiondet.doctor.findings import MAX_CASES, Case, Finding, counted
from fusiondet.doctor.samples import Sample

import cv2
import numpy as np

REACH_PX = 20
# In the order of np.rot90 by 0, 90, 180, 270 degrees, then the same after a mirror left-right.
WAYS = (
    "as they are",
    "turned by 90° to the left",
    "turned by 180°",
    "turned by 90° to the right",
    "mirrored left-right",
    "mirrored on the diagonal",
    "mirrored top-bottom",
    "mirrored on the other diagonal",
)
# How much better than chance a fit must be to count: pooled over many tiles, and of one tile alone.
_CLEAR, _CLEAR_TILE = 2.5, 2.0
# Shifts of outlines against the picture.
_LABEL_WARN_PX, _LABEL_FAIL_PX = 2.0, 4.0


@dataclass
class LabelCheck:
    """Flips and shifts of the outlines, over samples that are added one by one."""

    samples: list[tuple[Case, SensorGeometry, float]] = field(default_factory=list)
    surfaces: list[np.ndarray] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Look at one tile."""
        if sample.image is None or not len(sample.optical) or len(sample.tile.buildings) < 1:
            return
        gradient, normals = middle(_gradient(sample.optical)), middle(_normals(sample.tile))
        energy = float(np.sqrt((np.abs(normals) ** 2).sum() * (np.abs(gradient) ** 2).mean()))
        if not energy > 0:
            return
        found = (
            correlation(gradient, [_turned(normals, way) for way in _ways(normals.shape)], REACH_PX) / energy
        )
        surfaces = np.full((8, *found.shape[1:]), np.nan, np.float32)
        surfaces[_ways(normals.shape)] = found
        self.surfaces.append(surfaces)
        case = Case(sample.split, sample.tile.file_name)
        self.samples.append((case, sample.tile.sensor, sample.tile.gsd_m))

    def findings(self) -> list[Finding]:
        """What the samples say."""
        return [self._flips(), self._shift()]

    def _pooled(self, indexes) -> np.ndarray:
        """(8, ...) mean surfaces of some samples; NaN for ways that none of them allows."""
        chosen = np.array([self.surfaces[i] for i in indexes])
        n = np.isfinite(chosen[:, :, :1, :1]).sum(axis=0)
        return np.where(n > 0, np.nansum(chosen, axis=0) / np.sqrt(np.maximum(n, 1)), np.nan)

    def _by_split(self) -> dict[str, list[int]]:
        groups = defaultdict(list)
        for i, (case, _, _) in enumerate(self.samples):
            groups[case.split].append(i)
        return groups

    def shift_px(self, split: str, sensor: SensorGeometry) -> np.ndarray:
        """(2,) shift of the pictures of an acquisition against its outlines, (right, down).

        That of the whole split where the acquisition alone does not tell; zeros where neither does.
        """
        whole = self._by_split().get(split, [])
        for indexes in ([i for i in whole if self.samples[i][1] == sensor], whole):
            if indexes:
                way, clear, surfaces = _best_way(self._pooled(indexes))
                if clear and way == 0:
                    return np.array(peak_px(surfaces[0]))
        return np.zeros(2)

    def turned_splits(self) -> set[str]:
        """Splits whose outlines fit turned or mirrored: nothing else can be told by them."""
        best = {split: _best_way(self._pooled(indexes)) for split, indexes in self._by_split().items()}
        return {split for split, (way, clear, _) in best.items() if clear and way}

    def _flips(self) -> Finding:
        name = "orientation of the outlines"
        if not self.samples:
            return Finding(name, "n/a", "Needs an optical picture with buildings.")
        numbers, turned, unclear = {}, [], []
        for split, indexes in self._by_split().items():
            way, clear, surfaces = _best_way(self._pooled(indexes))
            fit = {name: float(s.max()) for name, s in zip(WAYS, surfaces, strict=True)}  # NaN: not square
            numbers[split] = {"best": WAYS[way], "clear": clear, "fit": fit}
            if not clear:
                unclear.append(split)
            elif way:
                turned.append(f"{split} fits when {WAYS[way]}")
        odd = [(i, *_best_way(s, _CLEAR_TILE)[:2]) for i, s in enumerate(self.surfaces)]
        odd = [(i, way) for i, way, clear in odd if clear and way]
        numbers["turned_tiles"], numbers["tiles"] = len(odd), len(self.samples)
        cases = tuple(
            Case(self.samples[i][0].split, self.samples[i][0].image, f"fits {WAYS[way]}")
            for i, way in odd[:MAX_CASES]
        )
        remedy = (
            "Outlines were made for pictures that were stored the other way round: mirror or turn them, or the "
            "pictures, and the georeference with these. A y axis that points up is the usual cause."
        )
        if turned or len(odd) >= max(2, 0.03 * len(self.samples)):
            detail = "; ".join(
                [*turned, f"{len(odd)} of {counted(len(self.samples), 'tile')} fit turned or mirrored"]
            )
            return Finding(name, "FAIL", f"{detail}.", remedy, numbers, cases)
        if len(unclear) == len(self._by_split()):
            detail = (
                "Outlines and gradients have too little in common to tell (small, few, or wrong outlines)."
            )
            return Finding(name, "n/a", detail, "Look at some tiles: tools/visualize.py.", numbers)
        return Finding(name, "ok", "Outlines fit the pictures best as they are.", "", numbers)

    def _shift(self) -> Finding:
        name = "outlines against pictures"
        if not self.samples:
            return Finding(name, "n/a", "Needs an optical picture with buildings.")
        groups = self._by_split()
        strips = acquisitions([(case.split, sensor) for case, sensor, _ in self.samples])
        found, numbers = {}, {}
        for key, indexes in [*groups.items(), *strips]:
            way, clear, surfaces = _best_way(self._pooled(indexes))
            if clear and way == 0:
                found[key] = (np.array(peak_px(surfaces[0])), indexes)
        for key, (shift, indexes) in found.items():
            if key in groups:
                numbers[key] = {"right_px": shift[0], "down_px": shift[1], "tiles": len(indexes)}
        if not found:
            return Finding(
                name, "n/a", "Outlines and gradients have too little in common to tell.", "", numbers
            )
        off = {key: float(np.hypot(*shift)) for key, (shift, _) in found.items()}
        strips = [key for key in found if key not in groups]
        bad = [key for key in strips if off[key] >= _LABEL_FAIL_PX]
        worst = max(off, key=off.get)
        numbers |= {"acquisitions": len(strips), "acquisitions_off": len(bad), "worst_px": off[worst]}
        shift, indexes = found[worst]
        gsd_m = self.samples[indexes[0]][2]
        metres = f" ({off[worst] * gsd_m:.1f} m)" if math.isfinite(gsd_m) else ""
        where = worst if worst in groups else f"an acquisition of {self.samples[indexes[0]][0].split}"
        detail = (
            f"At most {off[worst]:.0f} px{metres} off, in {where}: what is seen lies {shift[0]:+.0f} px right and "
            f"{shift[1]:+.0f} px down of the outlines."
        )
        if off[worst] < _LABEL_WARN_PX:
            return Finding(name, "ok", detail, "", numbers)
        cases = tuple(self.samples[i][0] for i in indexes[:MAX_CASES])
        leaning = any(self.samples[i][1].view_off_nadir_deg for i in indexes)
        remedy = (
            "The picture leans (view_off_nadir_deg): roofs lie off the footprints. Use roof outlines, or expect this."
            if leaning
            else "Shift the labels, or georeference the pictures again: outlines of another survey can be metres off."
        )
        serious = max((off[key] for key in groups if key in off), default=0) >= _LABEL_FAIL_PX or (
            len(bad) >= max(1, 0.1 * len(strips))
        )
        verdict = "FAIL" if serious and not leaning else "warn"
        return Finding(name, verdict, detail, remedy, numbers, cases)


def acquisitions(samples: list[tuple[str, SensorGeometry]]) -> list[tuple[tuple, list[int]]]:
    """Samples of one split under the same sun and sensors, which were taken in one go; none where no angle is known."""
    groups = defaultdict(list)
    for i, (split, sensor) in enumerate(samples):
        angles = tuple(sensor.to_dict().values())
        if any(angle is not None for angle in angles):
            groups[split, angles].append(i)
    return list(groups.items())


def _ways(shape: tuple[int, int]) -> list[int]:
    """Indexes into WAYS that keep the shape."""
    return list(range(8)) if shape[0] == shape[1] else [0, 2, 4, 6]


def _turned(normals: np.ndarray, way: int) -> np.ndarray:
    """The raster of squared normals of the outlines turned and mirrored as a whole: positions and directions."""
    if way >= 4:
        normals = np.conj(normals[:, ::-1])
    return np.rot90(normals, way % 4) * (-1) ** (way % 2)


def _best_way(surfaces: np.ndarray, clear: float = _CLEAR) -> tuple[int, bool, np.ndarray]:
    """The way that fits best, whether by much more than all others, and the surfaces."""
    if not np.isfinite(surfaces).any():
        return 0, False, surfaces
    peaks = np.array([s.max() if np.isfinite(s).all() else -np.inf for s in surfaces])
    best, second = np.argsort(peaks)[[-1, -2]]
    return int(best), bool(peaks[best] > clear * max(peaks[second], 1e-9)), surfaces


def _gradient(optical: np.ndarray) -> np.ndarray:
    """(H, W) complex: strength of the gradient, squashed, with twice its angle; 0 at and beside no data."""
    known = np.isfinite(optical).all(axis=0)
    grey = np.where(known, np.where(known, optical, 0).mean(axis=0), 0).astype(np.float32)
    grey = cv2.GaussianBlur(grey, (0, 0), 0.8)
    right, down = (cv2.Sobel(grey, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
    inside = cv2.erode(known.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    strength = np.hypot(right, down)
    if not inside.any() or not strength[inside].any():
        return np.zeros(grey.shape, np.complex64)
    high = np.percentile(strength[inside], 90) + 1e-9
    scale = 1 / np.maximum(strength, 1e-9) / np.maximum(strength, high)
    return np.where(inside, (right + 1j * down) ** 2 * scale, 0).astype(np.complex64)


def _normals(tile: Tile) -> np.ndarray:
    """(H, W) complex: length of outline in each pixel, with twice the angle of its normal."""
    edges = edge_points([b.polygon for b in tile.buildings], tile.width, tile.height)
    squared = (edges.outward[:, 0] + 1j * edges.outward[:, 1]) ** 2
    return splat(edges.xy, squared * edges.length, tile.height, tile.width)
