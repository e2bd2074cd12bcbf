"""Do outlines lie on what the pictures show: the right way round, unshifted, and the SAR picture with them?

Outlines against the optical picture. Along an outline the picture changes across it. So the gradient, with its
direction (up to its sign), is correlated with the outlines' normals: over shifts, and over the eight ways in which a
square can be turned and mirrored. Wrong ways fit about as badly as each other, which tells how much chance does.

Outlines against the SAR picture. Layover moves roofs towards the sensor, so that a plain correlation of edges would
find a shift along the look direction in any picture. Here the outlines are turned into what the radar would see of
them: roofs where they appear, walls between roof and foot, the bright line of the double bounce at the foot of walls
that face the sensor, and the radar shadow behind. What remains between that and the picture is registration. Across
the look direction it needs neither heights nor incidence; along it it does, so that it counts for less where these
are unknown. Chance is what the picture and the outlines of another tile have in common.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from fusiondet.buildings import SensorGeometry, Tile
from fusiondet.data.synthetic.optical import shadow_mask
from fusiondet.doctor.findings import MAX_CASES, Case, Finding, counted
from fusiondet.doctor.outlines import correlation, edge_points, peak_px, splat
from fusiondet.doctor.samples import Sample
from fusiondet.export.rasters import paint_heights

import cv2
import numpy as np

REACH_PX = 20
# The middle of larger tiles is looked at.
_MAX_SIDE_PX = 512
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
# Shifts of SAR: below is what heights and resampling leave.
_SAR_PX, _SAR_UNKNOWN_PX = 2.5, 5.0
_CLEAR_SAR = 1.5
# A shift must fit better than none by this factor: six pixels do by 1.2 and more, single tiles wander by less.
_BETTER = 1.08
# Where the annotations do not say: usual numbers.
_USUAL_INCIDENCE_DEG, _USUAL_HEIGHT_M = 38.0, 8.0
_LOOKS_DEG = tuple(range(0, 360, 45))


# ---- outlines against the optical picture ---------------------------------------------------------------------


@dataclass
class LabelCheck:
    """Flips and shifts of the outlines, over samples that are added one by one."""

    samples: list[tuple[Case, SensorGeometry, float]] = field(default_factory=list)
    surfaces: list[np.ndarray] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        """Look at one tile."""
        if sample.image is None or not len(sample.optical) or len(sample.tile.buildings) < 1:
            return
        gradient, normals = _middle(_gradient(sample.optical)), _middle(_normals(sample.tile))
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

    def shift_px(self, split: str) -> np.ndarray:
        """(2,) shift of the picture against the outlines of a split, (right, down); zeros where it cannot be told."""
        indexes = self._by_split().get(split, [])
        if not indexes:
            return np.zeros(2)
        way, clear, surfaces = _best_way(self._pooled(indexes))
        return np.array(peak_px(surfaces[0])) if clear and way == 0 else np.zeros(2)

    def _flips(self) -> Finding:
        name = "orientation of the outlines"
        if not self.samples:
            return Finding(name, "n/a", "Needs an optical picture with buildings.")
        numbers, turned, unclear = {}, [], []
        for split, indexes in self._by_split().items():
            way, clear, surfaces = _best_way(self._pooled(indexes))
            peaks = np.nanmax(surfaces, axis=(1, 2)) if np.isfinite(surfaces).any() else np.zeros(8)
            numbers[split] = {
                "best": WAYS[way],
                "clear": clear,
                "fit": dict(zip(WAYS, peaks.tolist(), strict=True)),
            }
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
        found, numbers = {}, {}
        for key, indexes in [*groups.items(), *self._acquisitions()]:
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

    def _acquisitions(self) -> list[tuple[tuple, list[int]]]:
        return _acquisitions([(case.split, sensor) for case, sensor, _ in self.samples])


def _acquisitions(samples: list[tuple[str, SensorGeometry]]) -> list[tuple[tuple, list[int]]]:
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
    peaks = np.array([np.nanmax(s) if np.isfinite(s).any() else -np.inf for s in surfaces])
    best, second = np.argsort(peaks)[[-1, -2]]
    return int(best), bool(peaks[best] > clear * max(peaks[second], 1e-9)), surfaces


def _gradient(optical: np.ndarray) -> np.ndarray:
    """(H, W) complex: strength of the gradient, squashed, with twice its angle; 0 at and beside no data."""
    known = np.isfinite(optical).all(axis=0)
    grey = np.where(known, optical.mean(axis=0, where=known[None] & np.ones(optical.shape, bool)), 0).astype(
        np.float32
    )
    grey = cv2.GaussianBlur(np.nan_to_num(grey), (0, 0), 0.8)
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


def _middle(array: np.ndarray) -> np.ndarray:
    """The middle of an (H, W) array, at most _MAX_SIDE_PX a side: turning keeps it in place."""
    top, left = (max(0, (n - _MAX_SIDE_PX) // 2) for n in array.shape)
    return array[top : array.shape[0] - top, left : array.shape[1] - left]


# ---- outlines against the SAR picture -------------------------------------------------------------------------


@dataclass
class _Echo:
    """One tile: its case and facts, how its picture fits its own outlines, and those of the tile before."""

    case: Case
    sensor: SensorGeometry
    look_deg: float | None  # in image axes
    heights_known: bool
    gsd_m: float
    surfaces: np.ndarray  # (1, ...) of its look, or one per look of _LOOKS_DEG where it is unknown
    chance: np.ndarray | None


@dataclass
class RadarShiftCheck:
    """Shifts between SAR and outlines, over samples that are added one by one."""

    echoes: list[_Echo] = field(default_factory=list)
    _previous: list[np.ndarray] | None = None

    def add(self, sample: Sample) -> None:
        """Look at one tile."""
        if sample.image is None or not len(sample.sar) or not np.isfinite(sample.sar).any():
            return
        tile = sample.tile
        if not tile.buildings or not math.isfinite(tile.gsd_m):
            return
        sensor = tile.sensor.in_image_axes(tile.transform)
        look_deg = sensor.sar_look_azimuth_deg
        picture = _flat(np.nanmean(sample.sar, axis=0) if len(sample.sar) > 1 else sample.sar[0])
        looks = (look_deg,) if look_deg is not None else _LOOKS_DEG
        models = [_middle(_flat(expected_echo(tile, look, sensor.sar_incidence_deg))) for look in looks]
        picture = _middle(picture)
        chance = None
        if self._previous is not None and self._previous[0].shape == picture.shape:
            chance = _fit(picture, self._previous)
        self._previous = models
        known = sum(b.height_m is not None for b in tile.buildings)
        self.echoes.append(
            _Echo(
                Case(sample.split, tile.file_name),
                tile.sensor,
                look_deg,
                known > 0.5 * len(tile.buildings) and sensor.sar_incidence_deg is not None,
                tile.gsd_m,
                _fit(picture, models),
                chance,
            )
        )

    def findings(self, labels: LabelCheck) -> list[Finding]:
        """What the samples say; `labels` of the same samples: what the outlines are off the optical picture."""
        name = "SAR against pictures"
        if not self.echoes:
            return [Finding(name, "n/a", "Needs a SAR picture with buildings and a GSD.")]
        groups: dict = defaultdict(list)
        for i, echo in enumerate(self.echoes):
            groups[echo.case.split].append(i)
        splits = set(groups)
        samples = [(echo.case.split, echo.sensor) for echo in self.echoes]
        shifts = {}
        for key, indexes in [*groups.items(), *_acquisitions(samples)]:
            shift = self._shift(indexes, labels.shift_px(self.echoes[indexes[0]].case.split))
            if shift is not None:
                shifts[key] = (shift, indexes)
        return [self._finding(name, shifts, splits)]

    def _shift(self, indexes: list[int], optical_px: np.ndarray) -> np.ndarray | None:
        """(2,) shift of the picture against the optical one, which is `optical_px` off the outlines; pooled.

        None where it is not clear; zeros where the place of no shift fits about as well.
        """
        echoes = [self.echoes[i] for i in indexes]
        if len({echo.surfaces.shape for echo in echoes}) > 1:
            return None
        chances = [
            echo.chance
            for echo in echoes
            if echo.chance is not None and echo.chance.shape == echo.surfaces.shape
        ]
        if not chances:
            return None
        surfaces, chance = np.mean([e.surfaces for e in echoes], axis=0), np.mean(chances, axis=0)
        noise = chance.max() * math.sqrt(len(chances) / len(echoes))
        best = surfaces[np.unravel_index(surfaces.argmax(), surfaces.shape)[0]]
        right, down = peak_px(best)
        if best.max() < _CLEAR_SAR * noise or max(abs(right), abs(down)) == REACH_PX:
            return None
        column, row = (optical_px + REACH_PX).astype(int)
        unshifted = best[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].max()
        if best.max() < _BETTER * unshifted:
            return np.zeros(2)
        return np.array([right, down]) - optical_px

    def _is_off(self, shift: np.ndarray, indexes: list[int]) -> bool:
        """Whether a shift is more than heights and incidence, as far as they are known, account for."""
        echo = self.echoes[indexes[0]]
        if echo.look_deg is None:
            return bool(np.hypot(*shift) >= _SAR_UNKNOWN_PX)
        along, across = _along_across(shift, echo.look_deg)
        limit = _SAR_PX if all(self.echoes[i].heights_known for i in indexes) else _SAR_UNKNOWN_PX
        return bool(np.hypot(across / _SAR_PX, along / limit) >= 1)

    def _finding(self, name: str, shifts: dict, splits: set[str]) -> Finding:
        numbers: dict = {}
        for key, (shift, indexes) in shifts.items():
            if key in splits:
                look = self.echoes[indexes[0]].look_deg
                facts = {"right_px": shift[0], "down_px": shift[1], "tiles": len(indexes)}
                if look is not None:
                    facts |= dict(
                        zip(("along_look_px", "across_look_px"), _along_across(shift, look), strict=True)
                    )
                numbers[key] = facts
        strips = [key for key in shifts if key not in splits]
        off = [key for key, (shift, indexes) in shifts.items() if self._is_off(shift, indexes)]
        strips_off = [key for key in off if key not in splits]
        numbers |= {"acquisitions": len(strips), "acquisitions_off": len(strips_off)}
        if not shifts:
            detail = (
                "The pictures have too little in common with what a radar would see of the outlines to tell."
            )
            return Finding(name, "n/a", detail, "Look at some tiles: tools/visualize.py.", numbers)
        lengths = {key: float(np.hypot(*shift)) for key, (shift, _) in shifts.items()}
        worst = max(off or lengths, key=lengths.get)
        shift, indexes = shifts[worst]
        echo = self.echoes[indexes[0]]
        where = worst if worst in splits else f"an acquisition of {echo.case.split}"
        detail = (
            f"{lengths[worst]:.0f} px ({lengths[worst] * echo.gsd_m:.1f} m) off in {where}: {shift[0]:+.0f} px "
            f"right, {shift[1]:+.0f} px down of the optical picture"
        )
        if echo.look_deg is not None:
            along, across = _along_across(shift, echo.look_deg)
            detail += f" ({across:+.0f} px across, {along:+.0f} px along the look direction)"
        if strips:
            detail += f"; {len(strips_off)} of {counted(len(strips), 'acquisition')} off"
        spread = bool(strips_off) and len(strips_off) >= 0.15 * len(strips)
        if not (spread or any(key in splits for key in off)):
            return Finding(name, "ok", f"At most {detail}.", "", numbers)
        cases = tuple(self.echoes[i].case for i in indexes[:MAX_CASES])
        remedy = (
            "Register the SAR pictures again (terrain correction with a surface of the right datum, then a shift per "
            "acquisition), and make the data again; fusion learns little from pictures that do not lie on each other."
        )
        sure = echo.look_deg is not None
        return Finding(name, "FAIL" if sure else "warn", f"{detail}.", remedy, numbers, cases)


def _along_across(shift_px: np.ndarray, look_deg: float) -> tuple[float, float]:
    """(right, down) in pixels, as parts along the look direction and to the right of it."""
    away = _away(look_deg)
    return float(shift_px @ away), float(shift_px @ np.array([-away[1], away[0]]))


def _away(look_deg: float) -> np.ndarray:
    """(2,) unit vector (right, down) of a look direction in image axes."""
    return np.array([math.sin(math.radians(look_deg)), -math.cos(math.radians(look_deg))])


def expected_echo(tile: Tile, look_deg: float, incidence_deg: float | None) -> np.ndarray:
    """(H, W) float32 dB, up to a constant: what a radar sees of the annotated buildings on level ground.

    Args:
        look_deg: direction the antenna looks, clockwise from the upper edge. incidence_deg: None: a usual one.
            Buildings of unknown height get the median of the known ones, or a usual height.
    """
    height, width = tile.height, tile.width
    incidence = math.radians(incidence_deg or _USUAL_INCIDENCE_DEG)
    lean_px = 1 / math.tan(incidence) / tile.gsd_m  # how far a metre of height moves towards the sensor
    known = [b.height_m for b in tile.buildings if b.height_m is not None]
    usual_m = float(np.median(known)) if known else _USUAL_HEIGHT_M
    heights_m = np.array([b.height_m if b.height_m is not None else usual_m for b in tile.buildings])
    away = _away(look_deg)
    z = np.nan_to_num(_painted(tile, heights_m))
    shadow = shadow_mask(z, look_deg + 180, 90 - math.degrees(incidence), tile.gsd_m)
    rows, columns = np.nonzero((z > 0) & ~shadow)
    roofs = np.stack([columns, rows], axis=1) + 0.5 - away * (z[rows, columns] * lean_px)[:, None]
    power = ((z == 0) & ~shadow) * 1.0
    power += splat(roofs, np.full(len(roofs), 1.5), height, width)
    edges = edge_points([b.polygon for b in tile.buildings], width, height)
    facing = np.maximum(-(edges.outward @ away), 0)
    wall_m = heights_m[edges.building]
    wall = edges.length * facing * wall_m * (0.5 * math.tan(incidence) / tile.gsd_m)
    steps = 8
    for i in range(steps):
        at = edges.xy - away * (wall_m * lean_px * (i + 0.5) / steps)[:, None]
        power += splat(at, wall / steps, height, width)
    # The double bounce is seen within some degrees of the wall's normal.
    power += splat(edges.xy, 8 * edges.length * np.where(facing > 0.9, facing, 0), height, width)
    return 10 * np.log10(cv2.GaussianBlur(power.astype(np.float32), (0, 0), 1.0) + 0.05)


def _painted(tile: Tile, heights_m: np.ndarray) -> np.ndarray:
    from dataclasses import replace

    buildings = [replace(b, height_m=float(h)) for b, h in zip(tile.buildings, heights_m, strict=True)]
    return paint_heights(buildings, (tile.height, tile.width))


def _flat(db: np.ndarray) -> np.ndarray:
    """(H, W) dB less its local mean, in its own spread and cut off, so that no corner reflector outweighs the rest."""
    known = np.isfinite(db)
    values, size = np.where(known, db, 0).astype(np.float32), (41, 41)
    share = np.maximum(cv2.blur(known.astype(np.float32), size), 1e-3)
    values = np.where(known, values - cv2.blur(values, size) / share, 0)
    return np.clip(values / (values.std() + 1e-6), -2.5, 2.5)


def _fit(picture: np.ndarray, models: list[np.ndarray]) -> np.ndarray:
    """Correlation coefficients of the picture with each model over shifts."""
    scale = [float(np.sqrt((picture**2).sum() * (model**2).sum())) or 1.0 for model in models]
    return correlation(picture, models, REACH_PX) / np.array(scale)[:, None, None]
