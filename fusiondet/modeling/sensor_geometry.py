"""What is known about sun and sensors, turned into evidence for a height: is a shadow of 10 m there?

A building of height h leaves marks whose direction and length follow from angles that metadata state: the sun's shadow
ends h / tan(elevation) behind the wall away from the sun; in SAR the roof appears h / tan(incidence) in front of the
wall that faces the sensor, and the radar shadow ends h * tan(incidence) behind the other one. Features are sampled along
these directions at the distances of candidate heights, so that the mark of one height is always in one place of the
profile, whatever the geometry: the head reads off what it would otherwise have to learn for every pair of angles.

Legend: R regions of the whole batch, L parallel lines across a building, K candidate heights, C channels.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fusiondet.errors import InputError, unknown_name

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from torch import Tensor, nn

# Columns of the `sensor` that heads are given: ground sampling distance, then the fields of
# fusiondet.buildings.SensorGeometry.
SENSOR_FIELDS = (
    "gsd_m",
    "sun_azimuth_deg",
    "sun_elevation_deg",
    "sar_look_azimuth_deg",
    "sar_incidence_deg",
    "view_azimuth_deg",
    "view_off_nadir_deg",
)


@dataclass(frozen=True)
class Fact:
    """A column of `sensor`, and the modality whose pixels it explains; "" for any."""

    field: str
    modality: str

    @property
    def column(self) -> int:
        """Index in SENSOR_FIELDS."""
        return SENSOR_FIELDS.index(self.field)


# By their names in MODEL.ROI_HEIGHT_HEAD.GEOMETRY.
FACTS = {
    "gsd": Fact("gsd_m", ""),
    "sun_elevation": Fact("sun_elevation_deg", "optical"),
    "sun_azimuth": Fact("sun_azimuth_deg", "optical"),
    "incidence": Fact("sar_incidence_deg", "sar"),
    "look_azimuth": Fact("sar_look_azimuth_deg", "sar"),
    "off_nadir": Fact("view_off_nadir_deg", "optical"),
    "view_azimuth": Fact("view_azimuth_deg", "optical"),
}


def check_facts(facts: Sequence[str], modalities: Sequence[str]) -> None:
    """InputError when MODEL.ROI_HEIGHT_HEAD.GEOMETRY names what is no fact, or one twice, or one that nothing shows.

    A network that does not see SAR could use an incidence only to recognise the acquisition, and so learn its heights
    by heart; that would look like skill on tiles of the same acquisition and be none.
    """
    key = "MODEL.ROI_HEIGHT_HEAD.GEOMETRY"
    for fact in facts:
        if fact not in FACTS:
            raise unknown_name(f"{key} entry", fact, FACTS)
    if len(set(facts)) < len(facts):
        raise InputError(f"{key} {list(facts)} names a fact twice.")
    idle = [fact for fact in facts if FACTS[fact].modality not in ("", *modalities)]
    if idle:
        raise InputError(
            f"{key} names {', '.join(idle)}, but INPUT.MODALITIES {list(modalities)} shows nothing of it. Set it to "
            f"{[fact for fact in facts if fact not in idle]}."
        )


@dataclass(frozen=True)
class Mark:
    """Where a height shows: `side` * (direction of `azimuth`), at `reach`(tan of `tilt`) metres per metre of height."""

    azimuth: str
    side: int
    tilt: str
    reach: Callable[[Tensor], Tensor]


MARKS = {
    "sun_shadow": Mark("sun_azimuth", -1, "sun_elevation", torch.reciprocal),
    "layover": Mark("look_azimuth", -1, "incidence", torch.reciprocal),
    "radar_shadow": Mark("look_azimuth", 1, "incidence", torch.clone),
    "lean": Mark("view_azimuth", -1, "off_nadir", torch.clone),
}

# Candidate heights, metres: equal steps of the log height, behind the wall itself.
_HEIGHTS_M = (0.0, *torch.logspace(math.log10(1.5), math.log10(90.0), 31).tolist())
_LINES = 8
_MARCH_STEPS = 48
# Level light would reach to infinity.
_STEEPEST_DEG = 89.0


class GeometryBranch(nn.Module):
    """A vector of evidence per region from the facts of its image and from profiles along the marks they place.

    Unknown facts have an embedding of their own, and so has a mark whose place they would tell.

    Attributes:
        marks: those whose two angles are among the facts.
        out_channels: length of the vector.
    """

    def __init__(self, facts: list[str], in_channels: int, stride: int, dropout: float = 0.0, dim: int = 32):
        """Args:
        facts: of FACTS. in_channels, stride: of the feature map. dropout: probability that training hides a fact of
            an image. dim: channels of a profile.
        """
        super().__init__()
        self.facts, self.stride, self.dropout = list(facts), stride, dropout
        self.marks = [name for name, mark in MARKS.items() if {mark.azimuth, mark.tilt} <= set(facts)]
        self.unknown_facts = nn.Parameter(torch.zeros(len(facts), 2))
        nn.init.normal_(self.unknown_facts)
        self.reduce = nn.Conv2d(in_channels, dim, 1)
        self.readers = nn.ModuleDict({name: _ProfileReader(dim) for name in self.marks})
        self.out_channels = 2 * len(facts) + sum(r.out_channels for r in self.readers.values())

    def hide(self, sensor: Tensor, lengths: list[int]) -> Tensor:
        """`sensor` (R, len(SENSOR_FIELDS)) as training shows it: facts of an image become NaN at random.

        Args:
            lengths: regions per image.
        """
        if not self.training or self.dropout == 0:
            return sensor
        # Drawn on the CPU, whose generator the trainer seeds, so that a resumed run hides the same.
        hidden = torch.zeros(len(lengths), len(SENSOR_FIELDS), dtype=torch.bool)
        for fact in self.facts:
            hidden[:, FACTS[fact].column] = torch.rand(len(lengths)) < self.dropout
        rows = hidden.repeat_interleave(torch.tensor(lengths), dim=0).to(sensor.device)
        return sensor.masked_fill(rows, torch.nan)

    def forward(self, features: Tensor, boxes: list[Boxes], masks: Tensor, sensor: Tensor):
        """Args:
            features: (N, C, H, W) at `stride`. boxes: per image, pixels. masks: (R, 1, M, M) in the frame of each box.
            sensor: (R, len(SENSOR_FIELDS)), NaN = unknown.

        Returns:
            (R, out_channels).
        """
        parts, shift = [self._embedding(sensor)], 0.0
        reduced = self.reduce(features)
        for name in self.marks:
            direction, reach_px, known = mark_place(MARKS[name], sensor)
            origins, hit = far_edges(masks, torch.cat([b.tensor for b in boxes]), direction, _LINES)
            profile = sample_profiles(
                reduced, self.stride, origins, direction, reach_px, [len(b) for b in boxes]
            )
            vector, one = self.readers[name](profile, hit, known)
            parts.append(vector.float())
            shift = shift + one.float()
        return torch.cat(parts, dim=1), shift

    def _embedding(self, sensor: Tensor) -> Tensor:
        """(R, 2 * facts): (sin, cos) of angles, (log, 1) of the GSD; what was learned for unknown ones."""
        pairs = []
        for fact, unknown in zip(self.facts, self.unknown_facts):
            value = sensor[:, FACTS[fact].column]
            known, value = torch.isfinite(value), torch.nan_to_num(value, nan=1.0)
            if fact == "gsd":
                pair = torch.stack([value.clamp(min=1e-3).log(), torch.ones_like(value)], dim=1)
            else:
                pair = torch.stack([torch.sin(torch.deg2rad(value)), torch.cos(torch.deg2rad(value))], dim=1)
            pairs.append(torch.where(known[:, None], pair, unknown))
        return torch.cat(pairs, dim=1)


class _ProfileReader(nn.Module):
    def __init__(self, dim: int, kept: int = 8):
        super().__init__()
        along = {"kernel_size": (1, 3), "padding": (0, 1)}
        self.lines = nn.Sequential(
            nn.Conv2d(dim, dim, **along), nn.ReLU(), nn.Conv2d(dim, dim, **along), nn.ReLU()
        )
        self.whole = nn.Conv1d(dim, kept, 3, padding=1)
        self.score = nn.Conv1d(dim, 1, 3, padding=1)
        self.gain = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("log_heights", torch.tensor(_HEIGHTS_M).clamp(min=1.0).log())
        self.out_channels = kept * len(_HEIGHTS_M)
        self.unknown = nn.Parameter(torch.randn(self.out_channels) * 0.1)

    def forward(self, profile, hit, known):
        weight = hit[:, None, :, None].to(profile.dtype)
        x = (self.lines(profile) * weight).sum(2) / weight.sum(2).clamp(min=1.0)
        vector = F.relu(self.whole(x)).flatten(1)
        shift = 0 * vector[:, 0]
        if "B" in os.environ.get("VARIANT", ""):
            p = self.score(x)[:, 0].float().softmax(1)
            shift = self.gain * ((p * self.log_heights).sum(1) - math.log(9.0))
            shift = torch.where(known, shift, torch.zeros_like(shift))
        return torch.where(known[:, None], vector, self.unknown.to(vector.dtype)), shift


def mark_place(mark: Mark, sensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where `mark` lies for each region, from `sensor` (R, len(SENSOR_FIELDS)).

    Returns:
        direction (R, 2) unit vector in image axes, x right, y down, north up; reach_px (R, K) distance of each
        candidate height, pixels; known (R,) False where a fact is missing, and the other two mean nothing.
    """
    azimuth, tilt, gsd_m = (sensor[:, FACTS[f].column] for f in (mark.azimuth, mark.tilt, "gsd"))
    known = torch.isfinite(azimuth) & torch.isfinite(tilt) & torch.isfinite(gsd_m)
    azimuth = torch.deg2rad(torch.where(known, azimuth, 0.0))
    tilt = torch.deg2rad(torch.where(known, tilt, 45.0).clamp(90 - _STEEPEST_DEG, _STEEPEST_DEG))
    direction = mark.side * torch.stack([torch.sin(azimuth), -torch.cos(azimuth)], dim=1)
    metres = mark.reach(torch.tan(tilt))[:, None] * sensor.new_tensor(_HEIGHTS_M)
    return direction, metres / torch.where(known, gsd_m, 1.0)[:, None], known


def far_edges(masks: Tensor, xyxy: Tensor, direction: Tensor, lines: int) -> tuple[Tensor, Tensor]:
    """Where `lines` parallels to `direction` leave a building for the last time.

    Args:
        masks: (R, 1, M, M) probabilities in the frame of `xyxy` (R, 4); the edge is at half their maximum.
        direction: (R, 2) unit vectors.

    Returns:
        origins (R, lines, 2) pixels, spread evenly over the width of the building; hit (R, lines) False where the line
        misses the building and its origin means nothing.
    """
    masks = masks.float() / masks.float().flatten(1).amax(1).clamp(min=1e-6)[:, None, None, None]
    centre, size = (xyxy[:, :2] + xyxy[:, 2:]) / 2, (xyxy[:, 2:] - xyxy[:, :2]).clamp(min=1e-3)
    across = torch.stack([-direction[:, 1], direction[:, 0]], dim=1)
    # Extent of the building across the direction, from the cells of its mask.
    side = masks.shape[-1]
    cells = (torch.arange(side, device=masks.device) + 0.5) / side - 0.5
    offset = (cells[None, None, :] * (size * across)[:, 0, None, None]) + (
        cells[None, :, None] * (size * across)[:, 1, None, None]
    )
    inside = masks[:, 0] > 0.5
    low = offset.masked_fill(~inside, torch.inf).flatten(1).amin(1)
    high = offset.masked_fill(~inside, -torch.inf).flatten(1).amax(1)
    empty = low > high
    low, high = low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)
    steps = (torch.arange(lines, device=masks.device) + 0.5) / lines
    lateral = low[:, None] + (high - low)[:, None] * steps
    # March along each line across the whole box.
    radius = size.norm(dim=1) / 2 * 1.05
    t = torch.linspace(-1, 1, _MARCH_STEPS, device=masks.device) * radius[:, None]
    points = (
        lateral[:, :, None, None] * across[:, None, None] + t[:, None, :, None] * direction[:, None, None]
    )
    values = F.grid_sample(masks, 2 * points / size[:, None, None], align_corners=False)[:, 0]
    within = values > 0.5
    last = (within * torch.arange(1, _MARCH_STEPS + 1, device=masks.device)).amax(2)
    hit = last > 0
    last = (last - 1).clamp(0, _MARCH_STEPS - 2)[:, :, None]
    before, behind = values.gather(2, last)[..., 0], values.gather(2, last + 1)[..., 0]
    part = ((before - 0.5) / (before - behind).clamp(min=1e-6)).clamp(0, 1)
    along = t.gather(1, last[..., 0]) + part * (t[:, 1] - t[:, 0])[:, None]
    origins = centre[:, None] + lateral[..., None] * across[:, None] + along[..., None] * direction[:, None]
    return origins, hit


def sample_profiles(
    features: Tensor, stride: int, origins: Tensor, direction: Tensor, reach_px: Tensor, lengths: list[int]
) -> Tensor:
    """Features at `reach_px` (R, K) along `direction` (R, 2) from `origins` (R, L, 2); float32 whatever the autocast.

    Args:
        features: (N, C, H, W) at `stride`; cell (j, i) is centred at pixel (j + 0.5) * stride.
        lengths: how many of the R regions are in each image.

    Returns:
        (R, C, L, K), bilinear; 0 outside the map.
    """
    points = origins[:, :, None] + direction[:, None, None] * reach_px[:, None, :, None]
    extent = points.new_tensor([features.shape[3], features.shape[2]]) * stride
    with torch.autocast(features.device.type, enabled=False):
        grids = (2 * points.float() / extent - 1).split(lengths)
        sampled = [
            F.grid_sample(one[None].float(), grid.flatten(0, 1)[None], align_corners=False)[0]
            for one, grid in zip(features, grids)
        ]
    flat = torch.cat(sampled, dim=1)
    return flat.reshape(flat.shape[0], -1, *points.shape[1:3]).transpose(0, 1)
