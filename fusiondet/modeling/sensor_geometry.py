"""What is known about sun and sensors, turned into evidence for a height: is a shadow of 10 m there?

A building of height h leaves marks whose direction and length follow from angles that metadata state: the sun's shadow
ends h / tan(elevation) behind the wall away from the sun; in SAR the roof appears h / tan(incidence) in front of the
wall that faces the sensor, and the radar shadow ends h * tan(incidence) behind the other one. Features are sampled
along these directions at the distances of candidate heights, so that the mark of one height is always in one place of
the profile, whatever the geometry: the head reads off what it would otherwise have to learn for every pair of angles.

Legend: R regions of the whole batch, L parallel lines across a building, K candidate heights, C channels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


def columns_of(modality: str) -> list[int]:
    """Columns of `sensor` that explain pixels of `modality` alone."""
    return [fact.column for fact in FACTS.values() if fact.modality == modality]


def check_facts(facts: Sequence[str], modalities: Sequence[str]) -> None:
    """InputError when MODEL.ROI_HEIGHT_HEAD.GEOMETRY names what is no fact, or one twice, or one that nothing shows.

    A network that does not see SAR could use an incidence only to recognise the acquisition, and so learn its heights
    by heart; that would look like skill on tiles of the same acquisition and be none.
    """
    key = "MODEL.ROI_HEIGHT_HEAD.GEOMETRY"
    for fact in facts:
        if str(fact) not in FACTS:
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


# The roof leans from the footprint, so `lean` has nothing to show where outlines are those of roofs.
MARKS = {
    "sun_shadow": Mark("sun_azimuth", -1, "sun_elevation", torch.reciprocal),
    "layover": Mark("look_azimuth", -1, "incidence", torch.reciprocal),
    "radar_shadow": Mark("look_azimuth", 1, "incidence", torch.clone),
    "lean": Mark("view_azimuth", -1, "off_nadir", torch.clone),
}

# Candidate heights, metres: the wall itself, then equal steps of the log height.
HEIGHTS_M = (0.0, *torch.logspace(math.log10(1.5), math.log10(90.0), 31).tolist())
# Parallel lines across a building, and steps along each in search of its edge.
_LINES, _MARCH_STEPS = 8, 48
# Level light would reach to infinity.
_STEEPEST_DEG = 89.0


class Evidence(NamedTuple):
    """What geometry tells about R regions.

    Attributes:
        vector: (R, `GeometryBranch.out_channels`) the facts, and the votes of each mark for the candidate heights.
        log_height: (R,) by how much the votes of all marks together move the log height off its prior.
    """

    vector: Tensor
    log_height: Tensor


class GeometryBranch(nn.Module):
    """Facts of an image, and how far its pixels agree with each candidate height where the marks of that would lie.

    Every mark votes for candidate heights; votes are log likelihoods, so those of independent marks add up. Unknown
    facts have an embedding of their own, and a mark whose place they would tell has learned votes instead.

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
        self.out_channels = 2 * len(self.facts) + len(HEIGHTS_M) * len(self.marks)
        self.unknown_facts = nn.Parameter(torch.randn(len(self.facts), 2))
        if self.marks:
            self.reduce = nn.Conv2d(in_channels, dim, 1)
            self.readers = nn.ModuleDict({name: _ProfileReader(dim) for name in self.marks})
            self.unknown_votes = nn.Parameter(torch.zeros(len(self.marks), len(HEIGHTS_M)))

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

    def forward(self, features: Tensor, boxes: list[Boxes], masks: Tensor, sensor: Tensor) -> Evidence:
        """Evidence of R regions, which may be none.

        Args:
            features: (N, C, H, W) at `stride`. boxes: per image, pixels. masks: (R, 1, M, M) in the frame of each box.
            sensor: (R, len(SENSOR_FIELDS)), NaN = unknown.
        """
        embedding = self._embedding(sensor)
        if not self.marks:
            return Evidence(embedding, embedding.new_zeros(len(embedding)))
        xyxy, lengths = torch.cat([b.tensor for b in boxes]), [len(b) for b in boxes]
        reduced, votes = self.reduce(features), []
        for name, unknown in zip(self.marks, self.unknown_votes):
            place = mark_place(MARKS[name], sensor)
            origins, hit = far_edges(masks, xyxy, place.direction, _LINES)
            profile = sample_profiles(reduced, self.stride, origins, place.direction, place.reach_px, lengths)
            found = self.readers[name](profile, hit).float()
            votes.append(torch.where(place.known[:, None], found, unknown))
        log_heights = features.new_tensor(HEIGHTS_M).float().clamp(min=1.0).log()
        expected = (torch.stack(votes).sum(0).softmax(1) * log_heights).sum(1)
        return Evidence(torch.cat([embedding, *votes], dim=1), expected - log_heights.mean())

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
    """Votes (R, K) from profiles (R, dim, L, K): what is seen on each line, averaged over those that hit."""

    def __init__(self, dim: int):
        super().__init__()
        along = {"kernel_size": (1, 3), "padding": (0, 1)}
        self.lines = nn.Sequential(
            nn.Conv2d(dim, dim, **along), nn.ReLU(), nn.Conv2d(dim, dim, **along), nn.ReLU()
        )
        self.vote = nn.Conv1d(dim, 1, 3, padding=1)
        # Nobody has an opinion yet, so that the untrained head predicts its prior.
        nn.init.normal_(self.vote.weight, std=0.01)
        nn.init.zeros_(self.vote.bias)

    def forward(self, profile: Tensor, hit: Tensor) -> Tensor:
        weight = hit[:, None, :, None].to(profile.dtype)
        seen = (self.lines(profile) * weight).sum(2) / weight.sum(2).clamp(min=1.0)
        return self.vote(seen)[:, 0]


class Place(NamedTuple):
    """Where a mark lies for each region.

    Attributes:
        direction: (R, 2) unit vectors in image axes, x right, y down, north up.
        reach_px: (R, K) distance of each candidate height from the building's edge, pixels.
        known: (R,) False where a fact is missing, and the other two mean nothing.
    """

    direction: Tensor
    reach_px: Tensor
    known: Tensor


def mark_place(mark: Mark, sensor: Tensor) -> Place:
    """Where `mark` lies, from `sensor` (R, len(SENSOR_FIELDS)); finite also where facts are NaN."""
    azimuth, tilt, gsd_m = (sensor[:, FACTS[f].column] for f in (mark.azimuth, mark.tilt, "gsd"))
    known = torch.isfinite(azimuth) & torch.isfinite(tilt) & torch.isfinite(gsd_m)
    azimuth = torch.deg2rad(torch.where(known, azimuth, 0.0))
    tilt = torch.deg2rad(torch.where(known, tilt, 45.0).clamp(90 - _STEEPEST_DEG, _STEEPEST_DEG))
    direction = mark.side * torch.stack([torch.sin(azimuth), -torch.cos(azimuth)], dim=1)
    reach_m = mark.reach(torch.tan(tilt))[:, None] * sensor.new_tensor(HEIGHTS_M)
    return Place(direction, reach_m / torch.where(known, gsd_m, 1.0)[:, None], known)


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
    low, high = _width(masks[:, 0] > 0.5, size * across)
    steps = (torch.arange(lines, device=masks.device) + 0.5) / lines
    lateral = (low[:, None] + (high - low)[:, None] * steps)[..., None] * across[:, None]
    # A little longer than the diagonal of the box: the last step of every line is outside.
    march = torch.linspace(-1.05, 1.05, _MARCH_STEPS, device=masks.device) * size.norm(dim=1)[:, None] / 2
    points = lateral[:, :, None] + march[:, None, :, None] * direction[:, None, None]
    values = F.grid_sample(masks, 2 * points / size[:, None, None], align_corners=False)[:, 0]
    along, hit = _last_exit(values, march)
    return centre[:, None] + lateral + along[..., None] * direction[:, None], hit


def _width(inside: Tensor, across_px: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) least and greatest offset of the cells `inside` (R, M, M) of a box; 0 without any.

    Args:
        across_px: (R, 2) width and height of the box, each times the unit vector along which offsets count.
    """
    side = inside.shape[-1]
    cells = (torch.arange(side, device=inside.device) + 0.5) / side - 0.5
    x, y = (across_px[:, :, None] * cells).unbind(1)
    offset = x[:, None, :] + y[:, :, None]
    low = offset.masked_fill(~inside, torch.inf).flatten(1).amin(1)
    high = offset.masked_fill(~inside, -torch.inf).flatten(1).amax(1)
    empty = low > high
    return low.masked_fill(empty, 0.0), high.masked_fill(empty, 0.0)


def _last_exit(values: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """(R, L) where `values` (R, L, T), seen at places `at` (R, T), fall below one half for the last time.

    Interpolated between the two places; the second result is False where they never were above, and the first then
    means nothing.
    """
    above = values > 0.5
    last = (above * torch.arange(1, values.shape[2] + 1, device=values.device)).amax(2) - 1
    index = last.clamp(0, values.shape[2] - 2)[..., None]
    before, behind = values.gather(2, index)[..., 0], values.gather(2, index + 1)[..., 0]
    part = ((before - 0.5) / (before - behind).clamp(min=1e-6)).clamp(0, 1)
    return at.gather(1, index[..., 0]) + part * (at[:, 1] - at[:, 0])[:, None], last >= 0


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
