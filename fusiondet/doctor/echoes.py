"""Does the SAR picture lie on the optical one, and does the antenna look where the annotations say?

Layover moves roofs towards the sensor, so that a plain correlation of edges would find a shift along the look
direction in any picture. Here the outlines are turned into what the radar would see of them: roofs where they appear,
walls between roof and foot, the bright line of the double bounce at the foot of walls that face the sensor, and the
radar shadow behind. What remains between that and the picture is registration. Across the look direction it needs
neither heights nor incidence; along it it does, so that it counts for less where these are unknown. Chance is what
the picture and the outlines of another tile have in common. Evidence is pooled over the tiles of a file, of an
acquisition, and of a split.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace

from fusiondet.buildings import SensorGeometry, Tile
from fusiondet.doctor.edges import correlation, edge_points, middle, peak_px, splat
from fusiondet.doctor.findings import MAX_CASES, Case, Finding, counted
from fusiondet.doctor.registration import (
    FILE_OFF_PX,
    FILES_OFF_SHARE,
    REACH_PX,
    LabelCheck,
    acquisitions,
    is_single_peak,
)
from fusiondet.doctor.samples import Sample
from fusiondet.geometry.painting import paint_heights
from fusiondet.geometry.shadows import shadow_mask

import cv2
import numpy as np
from shapely.affinity import translate

SAR_SHIFT, LOOK = "SAR against pictures", "look direction"
# Shorter shifts are what heights and resampling leave: where heights and incidence are known, and where not.
_OFF_PX, _OFF_UNKNOWN_PX = 2.5, 5.0
# How much better than chance a fit must be to count.
_CLEAR = 1.5
# A shift must fit better than none by this factor: six pixels do by 1.2 and more, single tiles wander by less.
# Where the look direction has to be guessed, other ones, mixed in, make more of that.
_BETTER, _BETTER_GUESSED = 1.08, 1.15
# One file alone wanders by more.
_BETTER_FILE, _BETTER_FILE_GUESSED = 1.25, 1.4
# The opposite look direction fits better than the recorded one by this factor: then the record is wrong.
_OPPOSITE = 1.12
# Share of the acquisitions that has to be off, so that one that wanders by chance is not taken for a fault.
_SHARE_OFF = 0.15
# Where the annotations do not say: usual numbers.
_USUAL_INCIDENCE_DEG, _USUAL_HEIGHT_M = 38.0, 8.0
_LOOKS_DEG = tuple(range(0, 360, 45))
_WALL_STEPS = 8


@dataclass
class _Echo:
    """One tile: how its picture fits its own outlines, and those of the tile before.

    Attributes:
        look_deg: in image axes; None when unknown. heights_known: of most buildings, and the incidence, too.
        surfaces: (2, ...) for the recorded look and the opposite one, or (8, ...) for _LOOKS_DEG where it is unknown.
        chance: as `surfaces`; None for the first tile.
    """

    case: Case
    sensor: SensorGeometry
    look_deg: float | None
    heights_known: bool
    gsd_m: float
    surfaces: np.ndarray
    chance: np.ndarray | None


@dataclass(frozen=True, eq=False)
class _Group:
    """What some tiles say together: shift (right, down) in pixels, their common look if any, the tiles."""

    split: str
    is_split: bool
    shift_px: np.ndarray
    look_deg: float | None
    off: bool
    echoes: tuple[_Echo, ...]

    @property
    def length_px(self) -> float:
        return float(np.hypot(*self.shift_px))

    @property
    def along_across_px(self) -> tuple[float, float] | None:
        """The shift along the look direction and to the right of it; None where there is no common one."""
        if self.look_deg is None:
            return None
        away = _away(self.look_deg)
        return float(self.shift_px @ away), float(self.shift_px @ np.array([-away[1], away[0]]))


@dataclass
class EchoCheck:
    """Shifts between SAR and optical pictures, over samples that are added one by one."""

    echoes: list[_Echo] = field(default_factory=list)
    _previous: list[np.ndarray] | None = None

    def add(self, sample: Sample) -> None:
        """Look at one tile."""
        tile = sample.tile
        if sample.image is None or not len(sample.sar) or not np.isfinite(sample.sar).any():
            return
        if not tile.buildings or not math.isfinite(tile.gsd_m):
            return
        sensor = tile.sensor.in_image_axes(tile.transform)
        look_deg = sensor.sar_look_azimuth_deg
        picture = middle(_flat(sample.sar.mean(axis=0)))  # no data is the same in all polarisations
        looks = _LOOKS_DEG if look_deg is None else (look_deg, look_deg + 180)
        tile = replace(
            tile, sensor=sensor, buildings=[_on_the_ground(b, sensor, tile.gsd_m) for b in tile.buildings]
        )
        models = [middle(_flat(expected_echo(tile, look))) for look in looks]
        alike = self._previous is not None and [m.shape for m in self._previous] == [m.shape for m in models]
        chance = _fit(picture, self._previous) if alike else None
        self._previous = models
        known = sum(b.height_m is not None for b in tile.buildings) > 0.5 * len(tile.buildings)
        self.echoes.append(
            _Echo(
                Case(sample.split, tile.file_name),
                sample.tile.sensor,
                look_deg,
                known and sensor.sar_incidence_deg is not None,
                tile.gsd_m,
                _fit(picture, models),
                chance,
            )
        )

    def findings(self, labels: LabelCheck) -> list[Finding]:
        """What the samples say; `labels` of the same samples: what the outlines are off the optical picture."""
        if not self.echoes:
            return [Finding(SAR_SHIFT, "n/a", "Needs a SAR picture with buildings and a GSD.")]
        turned = labels.turned_splits()
        told = [echo for echo in self.echoes if echo.case.split not in turned]
        if not told:
            return [Finding(SAR_SHIFT, "n/a", "Outlines are turned or mirrored: mend them first.")]
        strips = acquisitions([(echo.case.split, echo.sensor) for echo in told])
        strips = [[told[i] for i in indexes] for _, indexes in strips]
        splits = defaultdict(list)
        for echo in told:
            splits[echo.case.split].append(echo)
        look, opposite = _look(strips)
        against = {echo.case for strip in opposite for echo in strip}
        groups = [_group(strip, False, labels) for strip in strips]
        groups += [_group(split, True, labels) for split in splits.values()]
        groups = [g for g in groups if g is not None and not any(echo.case in against for echo in g.echoes)]
        files = defaultdict(list)
        for echo in told:
            if echo.case not in against:
                files[echo.case].append(echo)
        alone = [
            group for echoes in files.values() if (group := _file_group(echoes, told, labels)) is not None
        ]
        return [*look, _shift_finding(groups, alone)]


def _look(strips: list[list[_Echo]]) -> tuple[list[Finding], list[list[_Echo]]]:
    """What is to be said about recorded look directions, if any; acquisitions that look from the other side."""
    known = [strip for strip in strips if strip[0].look_deg is not None]
    if not known:
        return [], []
    opposite = []
    for strip in known:
        pooled = _pooled(strip)
        if pooled is None:
            continue
        recorded, other = pooled[0].max(axis=(1, 2))
        if other > _OPPOSITE * recorded and other > _CLEAR * pooled[1]:
            opposite.append(strip)
    numbers = {"acquisitions": len(known), "opposite": len(opposite)}
    if len(opposite) < max(1, _SHARE_OFF * len(known)):
        detail = f"Shadows and layover of {counted(len(known), 'acquisition')} do not speak against it."
        return [Finding(LOOK, "ok", detail, "", numbers)], opposite
    cases = tuple(echo.case for strip in opposite for echo in strip)[:MAX_CASES]
    detail = (
        f"{len(opposite)} of {counted(len(known), 'acquisition')} look from the other side than recorded."
    )
    remedy = (
        "sar_look_azimuth_deg is the direction from the sensor to the ground, clockwise from grid north: correct the "
        "records, and where pictures were turned by 180°, turn their angles, too."
    )
    return [Finding(LOOK, "FAIL", detail, remedy, numbers, cases)], opposite


def _pooled(echoes: list[_Echo], others: list[_Echo] = ()) -> tuple[np.ndarray, float] | None:
    """Mean surfaces of some tiles, and the height of a peak by chance; None where there is nothing to compare with.

    Args:
        others: tiles that tell what chance does, too: few tell too little of it.
    """
    if len({echo.surfaces.shape for echo in echoes}) > 1:
        return None
    chances = [echo.chance for echo in others or echoes if echo.chance is not None]
    chances = [chance for chance in chances if chance.shape == echoes[0].surfaces.shape]
    if not chances:
        return None
    noise = float(np.mean(chances, axis=0).max()) * math.sqrt(len(chances) / len(echoes))
    return np.mean([echo.surfaces for echo in echoes], axis=0), noise


def _group(echoes: list[_Echo], is_split: bool, labels: LabelCheck) -> _Group | None:
    """What `echoes` say together; None where they say nothing clear."""
    pooled = _pooled(echoes)
    if pooled is None:
        return None
    first = echoes[0]
    better = _BETTER if first.look_deg is not None else _BETTER_GUESSED
    return _told(echoes, is_split, *pooled, labels.shift_px(first.case.split, first.sensor), better)


def _file_group(echoes: list[_Echo], others: list[_Echo], labels: LabelCheck) -> _Group | None:
    """What the samples of one file say alone; None where that is not clear, by stricter rules than for many."""
    pooled = _pooled(echoes, others)
    if pooled is None:
        return None
    surfaces, _ = pooled
    first = echoes[0]
    known = first.look_deg is not None
    if not is_single_peak(_best(surfaces[:1] if known else surfaces)):
        return None
    optical = labels.shift_px(first.case.split, first.sensor, first.case.image)
    group = _told(echoes, False, *pooled, optical, _BETTER_FILE if known else _BETTER_FILE_GUESSED)
    return group and replace(group, off=group.off and group.length_px >= FILE_OFF_PX)


def _best(surfaces: np.ndarray) -> np.ndarray:
    return surfaces[np.unravel_index(int(surfaces.argmax()), surfaces.shape)[0]]


def _told(
    echoes: list[_Echo],
    is_split: bool,
    surfaces: np.ndarray,
    noise: float,
    optical: np.ndarray,
    better: float,
) -> _Group | None:
    """The shift that pooled surfaces tell; None where they tell nothing clear.

    Args:
        noise: height of a peak by chance. optical: (2,) shift of the optical pictures against the outlines.
        better: a shift must fit better than none by this factor.
    """
    first = echoes[0]
    if first.look_deg is not None:
        surfaces = surfaces[:1]
    best = _best(surfaces)
    peak = np.array(peak_px(best))
    if best.max() < _CLEAR * noise or np.abs(peak).max() == REACH_PX:
        return None
    # Where the optical sensor looks aslant, its picture of roofs lies off the ground, and rightly so.
    optical = np.zeros(2) if first.sensor.view_off_nadir_deg else optical
    column, row = (optical + REACH_PX).astype(int)
    # Of any look, where it is unknown: a wrong one can be made up for by a shift.
    unshifted = surfaces[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].max()
    shift = peak - optical if best.max() >= better * unshifted else np.zeros(2)
    looks = [echo.look_deg for echo in echoes]
    one_look = None not in looks and all(abs((a - looks[0] + 180) % 360 - 180) < 20 for a in looks)
    group = _Group(first.case.split, is_split, shift, looks[0] if one_look else None, False, tuple(echoes))
    return replace(group, off=_is_off(group))


def _is_off(group: _Group) -> bool:
    """Whether a shift is more than what heights and incidence, as far as they are known, account for."""
    known = all(echo.heights_known for echo in group.echoes)
    if group.along_across_px is None:
        sure = known and None not in [echo.look_deg for echo in group.echoes]
        return group.length_px >= (_OFF_PX if sure else _OFF_UNKNOWN_PX)
    along, across = group.along_across_px
    return math.hypot(across / _OFF_PX, along / (_OFF_PX if known else _OFF_UNKNOWN_PX)) >= 1


def _shift_finding(groups: list[_Group], files: list[_Group]) -> Finding:
    """One finding of what acquisitions and splits say (`groups`), and single files (`files`)."""
    strips = [group for group in groups if not group.is_split]
    strips_off, files_off = ([group for group in some if group.off] for some in (strips, files))
    numbers: dict = {
        "acquisitions": len(strips),
        "acquisitions_off": len(strips_off),
        "files": len(files),
        "files_off": len(files_off),
    }
    if not groups and not files:
        detail = "SAR pictures have too little in common with what a radar would see of the outlines to tell."
        return Finding(SAR_SHIFT, "n/a", detail, "Look at some tiles: tools/visualize.py.", numbers)
    for group in groups:
        if group.is_split:
            along_across = group.along_across_px or (None, None)
            numbers[group.split] = {
                "right_px": group.shift_px[0],
                "down_px": group.shift_px[1],
                **dict(zip(("along_look_px", "across_look_px"), along_across, strict=True)),
                "tiles": len(group.echoes),
            }
    # Pooled over acquisitions that are each off in another direction, a split has no shift of its own.
    told = {group.split for group in strips}
    judged = [group for group in groups if not (group.is_split and group.split in told)]
    off = [group for group in judged if group.off]
    many = bool(strips_off) and len(strips_off) >= _SHARE_OFF * len(strips)
    together = many or any(group.is_split for group in off)
    # Files are named where they are off alone.
    named = off or judged if together or not files_off else files_off
    worst = max(named or files, key=lambda group: group.length_px)
    numbers["worst_px"] = worst.length_px
    detail = _shift_text(worst, worst in files)
    if strips:
        detail += f"; {len(strips_off)} of {counted(len(strips), 'acquisition')} off"
    if files_off:
        detail += f"; {len(files_off)} of {counted(len(files), 'file')} off"
    if not together and not files_off:
        return Finding(SAR_SHIFT, "ok", f"At most {detail}.", "", numbers)
    remedy = (
        "Register the SAR pictures again (terrain correction with a surface of the right datum, then a shift per "
        "acquisition), and make the data again; fusion learns little from pictures that do not lie on each other."
    )
    serious = together or len(files_off) >= max(1, FILES_OFF_SHARE * len(files))
    # Without the look direction it was guessed along with the shift.
    verdict = "FAIL" if serious and worst.echoes[0].look_deg is not None else "warn"
    shown = [worst] if together else sorted(files_off, key=lambda group: -group.length_px)
    cases = dict.fromkeys(echo.case for group in shown for echo in group.echoes)
    return Finding(SAR_SHIFT, verdict, f"{detail}.", remedy, numbers, tuple(cases)[:MAX_CASES])


def _shift_text(worst: _Group, is_file: bool) -> str:
    echo = worst.echoes[0]
    where = worst.split if worst.is_split else f"an acquisition of {worst.split}"
    where = echo.case.image if is_file else where
    right, down = worst.shift_px
    text = (
        f"{worst.length_px:.0f} px ({worst.length_px * echo.gsd_m:.1f} m) off in {where}: {right:+.0f} px right, "
        f"{down:+.0f} px down of where outlines and optical pictures put it"
    )
    if worst.along_across_px is None:
        return text
    along, across = worst.along_across_px
    return f"{text} ({across:+.0f} px across, {along:+.0f} px along the look direction)"


def _away(look_deg: float) -> np.ndarray:
    """(2,) unit vector (right, down) of a look direction in image axes."""
    return np.array([math.sin(math.radians(look_deg)), -math.cos(math.radians(look_deg))])


def _on_the_ground(building, sensor: SensorGeometry, gsd_m: float):
    """`building` with its footprint instead of a roof that the optical sensor, looking aslant, sees elsewhere."""
    leans, azimuth_deg = sensor.view_off_nadir_deg, sensor.view_azimuth_deg
    if building.outline != "roof" or not leans or azimuth_deg is None or building.height_m is None:
        return building
    x, y = _away(azimuth_deg) * (building.height_m * math.tan(math.radians(leans)) / gsd_m)
    return replace(building, polygon=translate(building.polygon, x, y))


def expected_echo(tile: Tile, look_deg: float) -> np.ndarray:
    """(H, W) float32 dB, up to a constant: what a radar sees of the annotated buildings on level ground.

    Args:
        tile: with the incidence of its sensor, or a usual one where it is unknown. Buildings of unknown height get the
            median of the known ones, or a usual height.
        look_deg: direction the antenna looks, clockwise from the upper edge.
    """
    height, width = tile.height, tile.width
    incidence = math.radians(tile.sensor.sar_incidence_deg or _USUAL_INCIDENCE_DEG)
    lean_px = 1 / math.tan(incidence) / tile.gsd_m  # how far a metre of height moves towards the sensor
    known = [b.height_m for b in tile.buildings if b.height_m is not None]
    usual_m = float(np.median(known)) if known else _USUAL_HEIGHT_M
    buildings = [replace(b, height_m=usual_m if b.height_m is None else b.height_m) for b in tile.buildings]
    away = _away(look_deg)
    z = np.nan_to_num(paint_heights(buildings, (height, width)))
    shadow = shadow_mask(z, look_deg + 180, 90 - math.degrees(incidence), tile.gsd_m)
    rows, columns = np.nonzero((z > 0) & ~shadow)
    roofs = np.stack([columns, rows], axis=1) + 0.5 - away * (z[rows, columns] * lean_px)[:, None]
    power = ((z == 0) & ~shadow) * 1.0
    power += splat(roofs, np.full(len(roofs), 1.5), height, width)
    edges = edge_points([b.polygon for b in buildings], width, height)
    facing = np.maximum(-(edges.outward @ away), 0)
    wall_m = np.array([b.height_m for b in buildings])[edges.building]
    wall = edges.length * facing * wall_m * (0.5 * math.tan(incidence) / tile.gsd_m)
    for i in range(_WALL_STEPS):
        at = edges.xy - away * (wall_m * lean_px * (i + 0.5) / _WALL_STEPS)[:, None]
        power += splat(at, wall / _WALL_STEPS, height, width)
    # The double bounce is seen within some degrees of the wall's normal.
    power += splat(edges.xy, 8 * edges.length * np.where(facing > 0.9, facing, 0), height, width)
    return 10 * np.log10(cv2.GaussianBlur(power.astype(np.float32), (0, 0), 1.0) + 0.05)


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
