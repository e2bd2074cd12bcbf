"""Do outlines lie on what the optical pictures show, the right way round and unshifted?

Along an outline the picture changes across it. So the gradient, with its direction (up to its sign), is correlated
with the outlines' normals: over shifts, and over the eight ways in which a square can be turned and mirrored. Wrong
ways fit about as badly as each other, which tells how much chance does. Evidence is pooled over the tiles of a file, of
an acquisition and of a split: a file that is shifted alone does not show in its split.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

from fusiondet.buildings import SensorGeometry, Tile
from fusiondet.doctor.edges import correlation, edge_points, middle, peak_px, splat
from fusiondet.doctor.findings import MAX_CASES, Case, Finding, counted
from fusiondet.doctor.samples import Sample
from fusiondet.errors import InputError
from fusiondet.files import safe_join
from fusiondet.io.labels import read_heights

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
# A peak of one file must be this much higher than what lies farther from it: rows of houses fit at several shifts.
_CLEAR_PEAK, _PEAK_PX = 1.2, 5
# Shifts of outlines against the picture.
_LABEL_WARN_PX, _LABEL_FAIL_PX = 2.0, 4.0
# One file alone wanders by more: shadows beside its buildings have edges, too.
FILE_OFF_PX = 6.0
# Share of the files that tell a shift which may be off before the data set fails.
FILES_OFF_SHARE = 0.03


def optical_picture(sample: Sample) -> np.ndarray | None:
    """(C, H, W) optical bands of a sample, None where it has none."""
    return None if sample.image is None or not len(sample.optical) else sample.optical


def height_picture(sample: Sample) -> np.ndarray | None:
    """(1, H, W) heights of a sample's raster, None where it has none that can be laid over it."""
    tile = sample.tile
    name = tile.ndsm_file_name or tile.building_height_file_name
    if name is None:
        return None
    try:
        path = safe_join(sample.dataset.root, name)
        return read_heights(path, (tile.height, tile.width), tile.transform, tile.crs)[None]
    except InputError:
        return None  # another check names it


@dataclass
class LabelCheck:
    """Flips and shifts of the outlines, over samples that are added one by one.

    Attributes:
        name: of the finding about shifts. picture: returns what the outlines are compared with, None for none.
        samples, surfaces: what was added.
    """

    name: str = "outlines against pictures"
    picture: Callable[[Sample], np.ndarray | None] = optical_picture
    samples: list[tuple[Case, SensorGeometry, float]] = field(default_factory=list)
    surfaces: list[np.ndarray] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Look at one tile."""
        picture = self.picture(sample) if sample.tile.buildings else None
        if picture is None:
            return
        gradient, normals = middle(_gradient(picture)), middle(_normals(sample.tile))
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
        return [self._flips(), self.shift_finding()]

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

    def shift_px(self, split: str, sensor: SensorGeometry, image: str | None = None) -> np.ndarray:
        """(2,) shift of the pictures of an acquisition, or of one `image`, against its outlines, (right, down).

        That of the acquisition where the image alone does not tell, of the whole split where the acquisition does not;
        zeros where none does.
        """
        if (split, image) in (files := self.file_shifts):
            return files[split, image][0]
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

    @cached_property
    def file_shifts(self) -> dict[tuple[str, str], tuple[np.ndarray, list[int]]]:
        """(split, file) -> (right, down) shift of its picture in pixels, and its samples, where they tell it alone.

        Of the samples added before it is asked for.
        """
        files = defaultdict(list)
        for i, (case, _, _) in enumerate(self.samples):
            files[case.split, case.image].append(i)
        found = {}
        for key, indexes in files.items():
            way, clear, surfaces = _best_way(self._pooled(indexes), _CLEAR_TILE)
            if clear and way == 0 and is_single_peak(surfaces[0]):
                found[key] = np.array(peak_px(surfaces[0])), indexes
        return found

    def shift_finding(self) -> Finding:
        """What the samples say about shifts."""
        name = self.name
        if not self.samples:
            return Finding(name, "n/a", "Needs a picture with buildings: optical, or of heights.")
        groups, files = self._by_split(), self.file_shifts
        strips = acquisitions([(case.split, sensor) for case, sensor, _ in self.samples])
        found, numbers = {}, {}
        for key, indexes in [*groups.items(), *strips]:
            way, clear, surfaces = _best_way(self._pooled(indexes))
            if clear and way == 0:
                found[key] = (np.array(peak_px(surfaces[0])), indexes)
        for key, (shift, indexes) in found.items():
            if key in groups:
                numbers[key] = {"right_px": shift[0], "down_px": shift[1], "tiles": len(indexes)}
        if not found and not files:
            return Finding(
                name, "n/a", "Outlines and gradients have too little in common to tell.", "", numbers
            )
        off_px = {key: float(np.hypot(*shift)) for key, (shift, _) in found.items()}
        strips = [key for key in found if key not in groups]
        bad = [key for key in strips if off_px[key] >= _LABEL_FAIL_PX]
        bad_files = [key for key, (shift, _) in files.items() if np.hypot(*shift) >= FILE_OFF_PX]
        found |= {key: files[key] for key in bad_files or ([] if found else files)}
        numbers |= {
            "acquisitions": len(strips),
            "acquisitions_off": len(bad),
            "files": len(files),
            "files_off": len(bad_files),
        }
        serious = (
            any(off_px[key] >= _LABEL_FAIL_PX for key in groups if key in off_px)
            or len(bad) >= max(1, 0.1 * len(strips))
            or len(bad_files) >= max(1, FILES_OFF_SHARE * len(files))
        )
        return self._worst_shift(name, found, bad_files, serious, numbers)

    def _worst_shift(self, name: str, found: dict, bad_files: list, serious: bool, numbers: dict) -> Finding:
        """Name the worst of `found`, key of a split, acquisition or file -> (shift, samples)."""
        off_px = {key: float(np.hypot(*shift)) for key, (shift, _) in found.items()}
        # Where a whole split or acquisition is off, it is named instead of one of its files.
        worst = max(off_px, key=lambda key: off_px[key] - _LABEL_WARN_PX * (key in bad_files))
        (shift, indexes), worst_px = found[worst], off_px[worst]
        numbers["worst_px"] = worst_px
        (case, _, gsd_m), is_split = self.samples[indexes[0]], isinstance(worst, str)
        metres = f" ({worst_px * gsd_m:.1f} m)" if math.isfinite(gsd_m) else ""
        where = worst if is_split else f"an acquisition of {case.split}"
        where = worst[1] if isinstance(worst[1], str) and not is_split else where
        detail = (
            f"{'At most' if worst_px < _LABEL_WARN_PX else 'Up to'} {worst_px:.0f} px{metres} off, in {where}: what is "
            f"seen lies {shift[0]:+.0f} px right and {shift[1]:+.0f} px down of the outlines."
        )
        if bad_files:
            detail += f" {len(bad_files)} of {counted(numbers['files'], 'file')} are off."
        if worst_px < _LABEL_WARN_PX:
            return Finding(name, "ok", detail, "", numbers)
        bad_files = sorted(bad_files, key=lambda key: -float(np.hypot(*found[key][0])))
        cases = [case for key in bad_files for case in self._cases(*found[key])]
        cases += [c for c in self._cases(shift, indexes) if c not in cases] if not bad_files else []
        leaning = any(self.samples[i][1].view_off_nadir_deg for i in indexes)
        remedy = (
            "The picture leans (view_off_nadir_deg): roofs lie off the footprints. Use roof outlines, or expect this."
            if leaning
            else "Shift the labels, or georeference the pictures again: outlines of another survey can be metres off."
        )
        verdict = "FAIL" if serious and not leaning else "warn"
        return Finding(name, verdict, detail, remedy, numbers, tuple(cases[:MAX_CASES]))

    def _cases(self, shift: np.ndarray, indexes: list[int]) -> list[Case]:
        """Tiles that show a shift, each file once."""
        note = f"{shift[0]:+.0f} px right, {shift[1]:+.0f} px down"
        return list(dict.fromkeys(replace(self.samples[i][0], note=note) for i in indexes))


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


def is_single_peak(surface: np.ndarray) -> bool:
    """Whether the highest peak of a surface is inside of it, and nothing farther from it is nearly as high."""
    row, column = np.unravel_index(int(surface.argmax()), surface.shape)
    if not (0 < row < len(surface) - 1 and 0 < column < len(surface) - 1):
        return False
    rest = surface.copy()
    rest[max(row - _PEAK_PX, 0) : row + _PEAK_PX + 1, max(column - _PEAK_PX, 0) : column + _PEAK_PX + 1] = 0
    return bool(surface[row, column] > _CLEAR_PEAK * rest.max())


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
