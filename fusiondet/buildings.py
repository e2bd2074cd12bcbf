"""The record that every part speaks: a building with an outline, a height and a score; truth and prediction alike.

Frames. *Pixels*: (0, 0) is the outer corner of the top-left pixel, x right, y down, as in COCO and in rasterio's
transform; the sample of pixel (column j, row i) sits at (j + 1/2, i + 1/2). *Map*: the coordinates of a CRS. A
`Building` does not know its frame; its container does: a `Tile` holds buildings in its own pixels, a layer read from or
written to a GIS file holds them in the layer's CRS. `building_to_map` and `building_to_pixels` go between.

Heights are metres above ground. Unknown is None, never 0, -1 or NaN.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from fusiondet.errors import InputError

import numpy as np
import shapely
from affine import Affine
from shapely.affinity import affine_transform
from shapely.geometry.base import BaseGeometry

# Above the tallest building on earth there is no building: a larger number is a sentinel or another unit.
TALLEST_BUILDING_M = 1000.0
OUTLINES = ("footprint", "roof")
# Crossings of an outline's sides that are repaired; they are estimated from some of its sides.
_MOST_CROSSINGS, _SIDES_TRIED = 30_000, 50
# With fewer sides, there are not so many crossings.
_FEWEST_TANGLED = 250


@dataclass
class Building:
    """One building.

    Attributes:
        polygon: Polygon or MultiPolygon, valid, 2-D, with holes where the building has courtyards.
        height_m: height above ground in metres; None when unknown. For a prediction, the median.
        height_p16_m, height_p84_m: 16th and 84th percentile of the predicted height, metres; None for truth.
        score: detection confidence in [0, 1]; None for truth. Says nothing about the height.
        height_source: where the height comes from, e.g. "b3_h_dak_70p - b3_h_maaiveld", "dsm-dtm".
        height_stat: which statistic of the roof, e.g. "p70", "median", "max".
        height_datum: "ground" (above ground) or "unverified" (may be an elevation).
        outline: what `polygon` follows: "footprint" or "roof".
        id: identifier in the source, or None.
        attributes: further columns of the source, plain values.
    """

    polygon: BaseGeometry
    height_m: float | None = None
    height_p16_m: float | None = None
    height_p84_m: float | None = None
    score: float | None = None
    height_source: str | None = None
    height_stat: str | None = None
    height_datum: str | None = None
    outline: str = "footprint"
    id: str | int | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class SensorGeometry:
    """Where the sun and the sensors were. Degrees; azimuths clockwise from *grid* north; None means unknown.

    Attributes:
        sun_azimuth_deg, sun_elevation_deg: direction *to* the sun; elevation above the horizon, (0, 90].
        sar_look_azimuth_deg: direction the antenna looks, sensor -> ground.
        sar_incidence_deg: from the vertical at the target, (0, 90).
        view_azimuth_deg, view_off_nadir_deg: optical sensor seen from the ground; off-nadir from the vertical.
    """

    sun_azimuth_deg: float | None = None
    sun_elevation_deg: float | None = None
    sar_look_azimuth_deg: float | None = None
    sar_incidence_deg: float | None = None
    view_azimuth_deg: float | None = None
    view_off_nadir_deg: float | None = None

    AZIMUTHS = ("sun_azimuth_deg", "sar_look_azimuth_deg", "view_azimuth_deg")

    def to_dict(self) -> dict[str, float | None]:
        """Field name -> degrees or None, as stored in JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, d: dict | None) -> "SensorGeometry":
        """Inverse of `to_dict`; None and missing keys mean unknown; keys this version does not know are ignored."""
        d = d or {}
        return cls(**{f.name: d[f.name] for f in dataclasses.fields(cls) if d.get(f.name) is not None})

    def flipped_horizontally(self) -> "SensorGeometry":
        """Geometry of the mirrored image (left <-> right): east becomes west."""
        return self._with_azimuths(lambda azimuth: -azimuth)

    def rotated(self, angle_deg: float) -> "SensorGeometry":
        """Geometry of the image turned clockwise by `angle_deg` about its centre (what was up points right at 90)."""
        return self._with_azimuths(lambda azimuth: azimuth + angle_deg)

    def in_image_axes(self, transform) -> "SensorGeometry":
        """Geometry with azimuths clockwise from the upper edge of a raster, which need not be north-up.

        Args:
            transform: pixel -> map, Affine or its first six numbers; None: north is taken to be up.
        """
        if transform is None:
            return self
        a, b, _, d, e, _ = tuple(transform)[:6]
        right, down = np.array([a, d]) / math.hypot(a, d), np.array([b, e]) / math.hypot(b, e)

        def turned(azimuth_deg: float) -> float:
            direction = np.array([math.sin(math.radians(azimuth_deg)), math.cos(math.radians(azimuth_deg))])
            return round(math.degrees(math.atan2(direction @ right, -(direction @ down))), 9)

        return self._with_azimuths(turned)

    def _with_azimuths(self, turn) -> "SensorGeometry":
        known = {name: getattr(self, name) for name in self.AZIMUTHS}
        return dataclasses.replace(self, **{k: turn(v) % 360.0 for k, v in known.items() if v is not None})


@dataclass
class Tile:
    """One image with its buildings in pixels: what converters yield and `fusiondet.io.coco` writes.

    Attributes:
        file_name, sar_file_name, ndsm_file_name, building_height_file_name, cloud_file_name, class_file_name: relative
            to the dataset's root; all but the first may be None. `file_name` is the optical raster, or the SAR raster
            of a SAR-only dataset. The cloud raster is uint8: 0 clear to 255 hidden from the optical sensor (by cloud,
            not by its shadow). The class raster is on the grid of `file_name`, or of the tile: see
            `fusiondet.io.pixel_classes`.
        width, height: pixels.
        gsd_m: ground sampling distance, metres per pixel (geometric mean of both directions).
        crs: WKT or "EPSG:n"; None when unknown (fine for training, not for export).
        transform: pixel -> map as (a, b, c, d, e, f) of `affine.Affine`; None when unknown.
        sensor: sun and look geometry.
        buildings: outlines in this tile's pixels.
        id: integer identifier, unique in the dataset; None before writing.
        window, sar_window: (x0, y0, width, height), the part of `file_name` and of `sar_file_name` that is the tile, in
            the pixels of that raster; None: all of it. The size is the tile's: nothing is resampled.
        indexes, sar_indexes: numbers, from 1, of the dataset's bands in `file_name` and in `sar_file_name`; None: the
            first ones, in order.
    """

    file_name: str
    width: int
    height: int
    gsd_m: float
    sar_file_name: str | None = None
    ndsm_file_name: str | None = None
    building_height_file_name: str | None = None
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    sensor: SensorGeometry = field(default_factory=SensorGeometry)
    buildings: list[Building] = field(default_factory=list)
    id: int | None = None
    cloud_file_name: str | None = None
    window: tuple[int, int, int, int] | None = None
    sar_window: tuple[int, int, int, int] | None = None
    indexes: tuple[int, ...] | None = None
    sar_indexes: tuple[int, ...] | None = None
    class_file_name: str | None = None


def pixel_to_map(polygon_px: BaseGeometry, transform) -> BaseGeometry:
    """`polygon_px` in the map coordinates of `transform` (Affine, or its first six numbers (a, b, c, d, e, f))."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return affine_transform(polygon_px, (a, b, d, e, c, f))


def map_to_pixel(polygon_map: BaseGeometry, transform) -> BaseGeometry:
    """Inverse of `pixel_to_map`."""
    return pixel_to_map(polygon_map, ~Affine(*tuple(transform)[:6]))


def building_to_map(building: Building, transform) -> Building:
    """`building` of a tile, with its outline in map coordinates."""
    return dataclasses.replace(building, polygon=pixel_to_map(building.polygon, transform))


def building_to_pixels(building: Building, transform) -> Building:
    """`building` of a layer, with its outline in the pixels of a raster with that `transform`."""
    return dataclasses.replace(building, polygon=map_to_pixel(building.polygon, transform))


def clean_height_m(value: Any) -> tuple[float | None, str | None]:
    """A height above ground in metres from a raw attribute value, and why it is unknown.

    Returns:
        (height, None) or (None, reason); reason is one of "missing", "not a number", "negative", "zero", "absurd"
        (above 1000 m: a sentinel such as 9999, or another unit). Text that is a plain number is read; text with a
        unit is not guessed at.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, "missing"
    if isinstance(value, bool):
        return None, "not a number"
    try:
        height_m = float(value)
    except (TypeError, ValueError):
        return None, "not a number"
    if math.isnan(height_m):
        return None, "missing"
    if height_m == 0:
        return None, "zero"
    if height_m < 0:
        return None, "negative"
    if height_m > TALLEST_BUILDING_M:
        return None, "absurd"
    return height_m, None


def clean_polygon(geometry: BaseGeometry | None) -> BaseGeometry | None:
    """`geometry` as a valid, 2-D, non-empty Polygon or MultiPolygon; None when no area is left.

    Self-intersections are repaired with shapely's `make_valid(method="structure")`, which keeps the enclosed area;
    lines and points are dropped, and so is an outline with a coordinate that is NaN or infinite, and one that
    `is_tangled`.
    """
    if geometry is None or geometry.is_empty:
        return None
    geometry = shapely.force_2d(geometry)
    if (
        not all(map(math.isfinite, geometry.bounds))
        or not np.isfinite(shapely.get_coordinates(geometry)).all()
    ):
        return None
    if not geometry.is_valid:
        if is_tangled(geometry):
            return None
        geometry = shapely.make_valid(geometry, method="structure", keep_collapsed=False)
    parts = [p for p in _polygons(geometry) if p.area > 0]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else shapely.unary_union(parts)


def is_tangled(geometry: BaseGeometry) -> bool:
    """Whether the sides of `geometry` cross each other more than about 30 000 times, as those of no building do.

    The repair of such an outline takes minutes and gigabytes.
    """
    if shapely.get_num_coordinates(geometry) < _FEWEST_TANGLED:
        return False
    rings = [ring for polygon in _polygons(geometry) for ring in (polygon.exterior, *polygon.interiors)]
    xy, part = shapely.get_coordinates(rings, return_index=True)
    ends = np.stack([xy[:-1], xy[1:]], axis=1)[part[:-1] == part[1:]]
    sides = shapely.linestrings(ends)
    some = sides[:: max(1, len(sides) // _SIDES_TRIED)]
    # A side and its two neighbours touch.
    met = shapely.STRtree(sides).query(some, "intersects").shape[1] / len(some) - 3
    return met * len(sides) / 2 > _MOST_CROSSINGS


def _polygons(geometry: BaseGeometry) -> list:
    if geometry.geom_type == "Polygon":
        return [geometry]
    return [p for part in getattr(geometry, "geoms", ()) for p in _polygons(part)]


def validate(building: Building) -> Building:
    """`building` itself if it keeps the rules of this module.

    Raises:
        InputError: the outline is not a valid Polygon or MultiPolygon with area, a height is not in (0, 1000] m, the
            interval does not enclose the median, the score is outside [0, 1], or the outline kind is unknown.
    """
    polygon = building.polygon
    name = f"building {building.id!r}"
    if polygon is None or polygon.geom_type not in ("Polygon", "MultiPolygon") or polygon.is_empty:
        raise InputError(
            f"{name}: expected a Polygon or MultiPolygon, found {getattr(polygon, 'geom_type', None)}."
        )
    if not polygon.is_valid:
        raise InputError(f"{name}: {shapely.is_valid_reason(polygon)}. Pass it through clean_polygon first.")
    for key in ("height_m", "height_p16_m", "height_p84_m"):
        value = getattr(building, key)
        if value is not None and not 0 < value <= TALLEST_BUILDING_M:
            raise InputError(f"{name}: {key} is {value}, expected metres in (0, 1000], or None when unknown.")
    low, mid, high = building.height_p16_m, building.height_m, building.height_p84_m
    if None not in (low, mid, high) and not low <= mid <= high:
        raise InputError(f"{name}: interval [{low}, {high}] m does not enclose the median {mid} m.")
    if building.score is not None and not 0 <= building.score <= 1:
        raise InputError(f"{name}: score is {building.score}, expected [0, 1].")
    if building.outline not in OUTLINES:
        raise InputError(f"{name}: outline is {building.outline!r}, expected one of {', '.join(OUTLINES)}.")
    return building
