"""The synthetic city as a data set on disk: acquisitions, tiles, labels, and the faults that may be put on them.

An acquisition is a strip of neighbouring tiles under one sun and one radar geometry, as in real data. Strips of
different splits never share ground. Everything random is drawn from (seed, split, strip, tile), so the result depends
neither on the number of processes nor on the other splits' sizes.
"""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from fusiondet import __version__
from fusiondet.buildings import Building, SensorGeometry, Tile, clean_polygon, map_to_pixel
from fusiondet.cli import progress
from fusiondet.errors import InputError
from fusiondet.files import require_new_dir
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import CocoWriter, tile_records
from fusiondet.io.whole_tiff import whole_tiff
from fusiondet.jobs.executors import completed, open_executor
from fusiondet.jobs.hashing import file_state
from fusiondet.jobs.store import Store, clear_published
from fusiondet.synthetic.city import HEIGHT_STAT, City, CityBuilding, roof_outline
from fusiondet.synthetic.clouds import CloudLayer, cloud_cover, draw_layer, share_of
from fusiondet.synthetic.footprints import dressed, read_city, spatial_split
from fusiondet.synthetic.optical import render_optical
from fusiondet.synthetic.presets import Preset
from fusiondet.synthetic.procedural import make_city
from fusiondet.synthetic.sar import render_sar
from fusiondet.synthetic.surfaces import building_heights, margins_m, rasterize_scene, ridge_m

import cv2
import numpy as np
from affine import Affine
from shapely.affinity import translate
from shapely.geometry import box

BANDS = BandSpec(optical=("red", "green", "blue"), sar=("HH",), sar_scale="db")
# Which generator draws what; part of every random key, so that no two draws share a stream.
_GEOMETRY, _LAYOUT, _HEIGHTS, _PICTURE, _LABELS, _CLOUDS, _VIEW, _AROUND = range(8)
# Options younger than the presets: recorded where used, so that a data set without them keeps its bytes.
_OPTIONAL = ("clouds", "off_nadir_deg", "view_azimuth_deg", "outline", "shuffled_angles")


@dataclass(frozen=True)
class Faults:
    """What is wrong with the data, as in real life. Label faults are put on the split "train" alone.

    Attributes:
        sar_shift_px: SAR against optical, at most this far, or (at least, at most); one random vector per acquisition;
            in all splits.
        footprint_offset_m: all outlines of an acquisition, at most this far, one random vector.
        missing_labels, extra_labels: share of the buildings without label; labels without building per building.
        height_noise_m: standard deviation of the label heights.
        shuffled_heights: every building is labelled with the height of another one. Not a fault of real data but a
            control: what is learnt from such labels has nothing to do with the pictures.
    """

    sar_shift_px: float | tuple[float, float] = 0.0
    footprint_offset_m: float = 0.0
    missing_labels: float = 0.0
    extra_labels: float = 0.0
    height_noise_m: float = 0.0
    shuffled_heights: bool = False


@dataclass(frozen=True)
class Recipe:
    """All that determines a data set, except the number of tiles.

    Attributes:
        size_px, gsd_m: of a tile.
        height_seed: draws the heights alone; None: `seed`. Another one is the same city with other heights.
        strip_tiles: tiles per acquisition.
        min_area_m2: a building of which less than this is inside a tile has no label there.
        shadow, layover, double_bounce: effects that are rendered; `shadow` of the sun and of the radar.
        footprints: CityJSON file to take the buildings from; None: procedural.
        clouds: mean share of the optical pixels under opaque cloud, [0, 1]. With any, each tile has a cloud raster.
        off_nadir_deg, view_azimuth_deg: (low, high) of the optical sensor, degrees, conventions of `SensorGeometry`;
            one draw per acquisition. None: straight above, and nothing about it recorded.
        outline: what labels follow, "footprint" or "roof": the roof where it appears in the optical picture.
        shuffled_angles: tiles are recorded with the angles of other acquisitions. A control: what a network then still
            knows about heights, it does not know from the angles.
    """

    preset: Preset
    size_px: int = 256
    gsd_m: float = 0.5
    seed: int = 0
    height_seed: int | None = None
    strip_tiles: int = 5
    min_area_m2: float = 6.0
    shadow: bool = True
    layover: bool = True
    double_bounce: bool = True
    faults: Faults = field(default_factory=Faults)
    footprints: Path | None = None
    clouds: float = 0.0
    off_nadir_deg: tuple[float, float] | None = None
    view_azimuth_deg: tuple[float, float] = (0.0, 360.0)
    outline: str = "footprint"
    shuffled_angles: bool = False

    @property
    def tile_m(self) -> float:
        """Side of a tile in metres."""
        return self.size_px * self.gsd_m

    def rng(self, purpose: int, split: str, *index: int) -> np.random.Generator:
        """The generator for one purpose in one place."""
        seed = self.height_seed if purpose == _HEIGHTS and self.height_seed is not None else self.seed
        return np.random.default_rng([seed, purpose, *split.encode(), *index])


@dataclass(frozen=True)
class Strip:
    """An acquisition: tile bounds (x0, y0, x1, y1) in city metres, its number within the split."""

    split: str
    index: int
    tiles: tuple[tuple[float, float, float, float], ...]
    origin_map: tuple[float, float]


def write_dataset(
    recipe: Recipe, tiles: dict[str, int], out: Path, workers: int = 1, overwrite: bool = False
) -> dict:
    """Write a data set with `tiles` = {split: number of tiles} to the directory `out`, whole or not at all.

    A run that was stopped is resumed by the same call.

    Returns:
        {split: (tiles, buildings)}.

    Raises:
        InputError: see `require_new_dir` and `Store`; or angles are to be shuffled within a single acquisition.
    """
    clear_published(out)
    require_new_dir(out, "annotations", overwrite)
    few = [split for split, count in tiles.items() if count <= recipe.strip_tiles]
    if recipe.shuffled_angles and few:
        raise InputError(
            f"split {few[0]} has {tiles[few[0]]} tiles, which is one acquisition of up to {recipe.strip_tiles}: there "
            "are no other angles to shuffle it with. Make it larger."
        )
    strips = _plan(recipe, tiles)
    with Store(out, _fingerprint(recipe, tiles)) as store:
        _render(recipe, strips, store, workers)
        counts = {}
        for split in tiles:
            pieces = (store.load(_piece_name(strip)) for strip in strips if strip.split == split)
            records = [tuple(json.loads(line)) for piece in pieces for line in piece.splitlines()]
            counts[split] = _write_split(recipe, split, records, store.made)
        store.publish()
    return counts


def _fingerprint(recipe: Recipe, tiles: dict[str, int]) -> dict:
    """What the rasters and labels follow from, as plain values."""
    footprints = None if recipe.footprints is None else file_state(recipe.footprints)
    return {
        "fusiondet": __version__,
        **asdict(replace(recipe, footprints=None)),
        "footprints": footprints,
        "tiles": tiles,
    }


def _render(recipe: Recipe, strips: list[Strip], store: Store, workers: int) -> None:
    """Make the strips that are not in the store yet."""
    kinds = ("rgb", "sar", "ndsm", "building_height", *(["cloud"] if recipe.clouds else []))
    for split in {strip.split for strip in strips}:
        for kind in kinds:
            (store.made / split / kind).mkdir(parents=True, exist_ok=True)
    lacking = store.lacking([_piece_name(strip) for strip in strips])
    left = [(name, strip) for strip in strips if (name := _piece_name(strip)) in lacking]
    # Threads of OpenCV beside as many processes only get in each other's way.
    settings = {"initializer": cv2.setNumThreads, "initargs": (1,), "preload": [__name__]}
    with open_executor(min(workers, len(left)), lighter="make smaller tiles", **settings) as executor:
        pieces = completed(executor, _render_piece, (recipe, store.made), left, unit="strip")
        for name, content in progress(pieces, total=len(left), label="synthetic city", unit="strip"):
            store.save(name, content)


def _piece_name(strip: Strip) -> str:
    return f"{strip.split}-{strip.index:06d}.jsonl"


def _render_piece(recipe: Recipe, root: Path, name: str, strip: Strip) -> tuple[str, bytes]:
    """Return the name and the records of a strip, a tile per line; its rasters are written below `root`."""
    lines = [json.dumps(tile_records(tile), allow_nan=False) for tile in _render_strip(recipe, strip, root)]
    return name, "\n".join(lines).encode()


def _write_split(recipe: Recipe, split: str, records: list, root: Path) -> tuple[int, int]:
    """Write the annotation file of a split; returns how many tiles and buildings it has.

    Args:
        records: (image, annotations) of each tile, as `tile_records` returns them.
    """
    if recipe.faults.shuffled_heights and split == "train":
        _shuffle_heights(records, recipe.rng(_LABELS, "train"))
    if recipe.shuffled_angles:
        _shuffle_angles(records, recipe.strip_tiles, recipe.rng(_GEOMETRY, split))
    buildings = sum(len(annotations) for _, annotations in records)
    path = root / "annotations" / f"{split}.json"
    with CocoWriter(path, BANDS, _info(recipe, split, buildings)) as writer:
        for image, annotations in records:
            writer.add(image, annotations)
    return len(records), buildings


def _info(recipe: Recipe, split: str, buildings: int) -> dict:
    defaults = {f.name: f.default for f in fields(recipe) if f.name in _OPTIONAL}
    options = {
        k: v
        for k, v in asdict(recipe).items()
        if k not in ("preset", "footprints") and (k not in defaults or v != defaults[k])
    }
    return {
        "description": "synthetic city: rendered RGB and SAR with exact buildings and heights",
        "preset": recipe.preset.name,
        "preset_version": recipe.preset.version,
        "settings": asdict(recipe.preset),
        "options": options,
        "footprints": None if recipe.footprints is None else recipe.footprints.name,
        "height_stat": f"{HEIGHT_STAT}: area-weighted 70th percentile of the roof's height above ground",
        "label_faults_in_this_split": split == "train",
        "buildings": buildings,
    }


# --- where and when ------------------------------------------------------------------------------------------------


def _plan(recipe: Recipe, tiles: dict[str, int]) -> list[Strip]:
    """Strips of all splits."""
    if recipe.footprints is not None:
        return _plan_real(recipe, tiles)
    strips = []
    # Every strip is a row of its own, further from the next than anything reaches.
    side, row = recipe.tile_m, 0
    gap = math.ceil((side + 250) / 100) * 100
    for split, count in tiles.items():
        for index, first in enumerate(range(0, count, recipe.strip_tiles)):
            n = min(recipe.strip_tiles, count - first)
            bounds = tuple((i * side, 0.0, (i + 1) * side, side) for i in range(n))
            strips.append(Strip(split, index, bounds, (500_000.0, 5_700_000.0 - row * gap)))
            row += 1
    return strips


def _plan_real(recipe: Recipe, tiles: dict[str, int]) -> list[Strip]:
    """Strips over a real city: each split has its own ground, and passes over it as often as its tiles require."""
    city = read_city(recipe.footprints)
    ground = spatial_split(city, tiles, recipe.tile_m, recipe.rng(_LAYOUT, "", 0))
    strips = []
    for split, count in tiles.items():
        wanted = [ground[split][i % len(ground[split])] for i in range(count)]
        for index, first in enumerate(range(0, count, recipe.strip_tiles)):
            chosen = tuple(wanted[first : first + recipe.strip_tiles])
            strips.append(Strip(split, index, chosen, city.origin_map))
    return strips


def draw_sensor(preset: Preset, rng: np.random.Generator) -> SensorGeometry:
    """One acquisition geometry within the preset's ranges; degrees, rounded to 0.01."""
    look = preset.sar_look_azimuth_deg[rng.integers(len(preset.sar_look_azimuth_deg))]
    ranges = (preset.sun_azimuth_deg, preset.sun_elevation_deg, look, preset.sar_incidence_deg)
    sun_azimuth, sun_elevation, look_azimuth, incidence = (round(rng.uniform(*r), 2) for r in ranges)
    return SensorGeometry(sun_azimuth % 360, sun_elevation, look_azimuth % 360, incidence)


def _with_view(sensor: SensorGeometry, recipe: Recipe, rng: np.random.Generator) -> SensorGeometry:
    """`sensor` with the optical sensor where `recipe` wants it."""
    if recipe.off_nadir_deg is None:
        return sensor
    azimuth, off_nadir = (round(rng.uniform(*r), 2) for r in (recipe.view_azimuth_deg, recipe.off_nadir_deg))
    return replace(sensor, view_azimuth_deg=azimuth % 360, view_off_nadir_deg=off_nadir)


def _overhead(sensor: SensorGeometry) -> SensorGeometry:
    return replace(sensor, view_azimuth_deg=None, view_off_nadir_deg=None)


def _cities(recipe: Recipe, strip: Strip, sensor: SensorGeometry) -> Iterator[tuple[City, City]]:
    """The city around each tile of a strip, and with it what leans into the tile from further away.

    The first does not depend on the optical view, and so neither does anything that is made of it.
    """
    seed = (strip.split, strip.index)
    layout_rng, height_rng = (recipe.rng(kind, *seed) for kind in (_LAYOUT, _HEIGHTS))
    around_rng = recipe.rng(_AROUND, *seed)
    if recipe.footprints is not None:
        for tile in strip.tiles:
            city = read_city(recipe.footprints)
            tallest_m = max(ridge_m(b) for b in city.buildings)
            inner, outer = (_padded(tile, s, tallest_m) for s in (_overhead(sensor), sensor))
            near = dressed(city, inner, recipe.preset, layout_rng)
            yield (
                near,
                _surrounded(near, inner, outer, lambda o, c=city: dressed(c, o, recipe.preset, around_rng)),
            )
        return
    bounds = (strip.tiles[0][0], strip.tiles[0][1], strip.tiles[-1][2], strip.tiles[-1][3])
    tallest_m = 1.15 * recipe.preset.height_range_m[1]
    inner, outer = (_padded(bounds, s, tallest_m) for s in (_overhead(sensor), sensor))
    city = replace(make_city(recipe.preset, inner, layout_rng, height_rng), origin_map=strip.origin_map)
    seen = _surrounded(city, inner, outer, lambda o: make_city(recipe.preset, o, around_rng, around_rng))
    yield from itertools.repeat((city, seen), len(strip.tiles))


def _surrounded(city: City, inner, outer, make) -> City:
    """`city` of the bounds `inner`, within one that `make` makes where `outer` is wider."""
    return city if inner == outer else city.within(make(outer), inner)


def _padded(bounds, sensor: SensorGeometry, tallest_m: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = margins_m(sensor, tallest_m)
    x0, y0, x1, y1 = bounds
    return x0 - left, y0 - bottom, x1 + right, y1 + top


# --- rendering -----------------------------------------------------------------------------------------------------


def _render_strip(recipe: Recipe, strip: Strip, root: Path) -> list[Tile]:
    """Render and write the rasters of one strip; returns its tiles."""
    rng = recipe.rng(_GEOMETRY, strip.split, strip.index)
    sensor = draw_sensor(recipe.preset, rng)
    sensor = _with_view(sensor, recipe, recipe.rng(_VIEW, strip.split, strip.index))
    settings = {
        "haze": rng.uniform(*recipe.preset.haze),
        "noise": rng.uniform(*recipe.preset.optical_noise),
        "noise_floor_db": rng.uniform(*recipe.preset.noise_floor_db),
        "shift_px": _random_vector(recipe.faults.sar_shift_px, rng),
        "offset_m": _random_vector(recipe.faults.footprint_offset_m, rng),
        "clouds": _clouds(recipe, strip, sensor) if recipe.clouds else None,
    }
    cities = _cities(recipe, strip, sensor)
    return [_render_tile(recipe, strip, i, *pair, sensor, settings, root) for i, pair in enumerate(cities)]


def _clouds(recipe: Recipe, strip: Strip, sensor: SensorGeometry) -> CloudLayer:
    rng = recipe.rng(_CLOUDS, strip.split, strip.index)
    return draw_layer(share_of(strip.index, recipe.clouds), strip.tiles, sensor, rng)


def _random_vector(length: float | tuple[float, float], rng: np.random.Generator) -> tuple[float, float]:
    """A vector in any direction, at most `length` long or between both limits."""
    low, high = length if isinstance(length, tuple) else (0.0, length)
    length, angle = low + (high - low) * rng.uniform(), rng.uniform(0, 2 * math.pi)
    return length * math.cos(angle), length * math.sin(angle)


def _render_tile(
    recipe: Recipe, strip: Strip, i: int, city: City, seen: City, sensor, settings: dict, root: Path
) -> Tile:
    bounds = strip.tiles[i]
    rasters = _pictures(
        recipe, bounds, city, seen, sensor, settings, recipe.rng(_PICTURE, strip.split, strip.index, i)
    )
    local = Affine(recipe.gsd_m, 0, bounds[0], 0, -recipe.gsd_m, bounds[3])
    near = city.near(bounds) if recipe.outline == "footprint" else _roofs(seen, bounds, sensor)
    rasters["building_height"] = building_heights(near, local, (recipe.size_px, recipe.size_px))
    x0, y0 = city.origin_map
    transform = Affine(local.a, 0, x0 + local.c, 0, local.e, y0 + local.f)
    files = {kind: f"{strip.split}/{kind}/{strip.split}_{strip.index:04d}_{i:02d}.tif" for kind in rasters}
    for kind, raster in rasters.items():
        _write_raster(root / files[kind], raster, city.crs, transform)
    labels = _labels(near, local, recipe)
    if strip.split == "train":
        labels = _spoil(
            labels, recipe, settings["offset_m"], recipe.rng(_LABELS, strip.split, strip.index, i)
        )
    return Tile(
        file_name=files["rgb"],
        width=recipe.size_px,
        height=recipe.size_px,
        gsd_m=recipe.gsd_m,
        sar_file_name=files["sar"],
        ndsm_file_name=files["ndsm"],
        building_height_file_name=files["building_height"],
        cloud_file_name=files.get("cloud"),
        crs=city.crs,
        transform=tuple(transform)[:6],
        sensor=sensor,
        buildings=labels,
    )


def _pictures(
    recipe: Recipe, bounds, city: City, seen: City, sensor, settings: dict, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """What the sensors see of a tile, and the heights and clouds that they see: kind -> raster."""
    preset, size = recipe.preset, (recipe.size_px, recipe.size_px)
    scene = rasterize_scene(city, bounds, recipe.gsd_m, _overhead(sensor))
    view = scene if seen is city else rasterize_scene(seen, bounds, recipe.gsd_m, sensor, walls=False)
    layer = settings["clouds"]
    clouds = None if layer is None else cloud_cover(layer, bounds, size, scene.oversample, sensor)
    # The optical picture draws as many numbers whatever the view and the clouds: the speckle stays the same.
    rgb = render_optical(
        view, sensor, rng, preset.psf_fwhm_m, settings["haze"], settings["noise"], recipe.shadow, clouds
    )
    sar_db = render_sar(
        scene,
        sensor,
        rng,
        preset.sar_looks,
        preset.sar_resolution_m,
        settings["noise_floor_db"],
        settings["shift_px"],
        shadow=recipe.shadow,
        layover=recipe.layover,
        double_bounce=recipe.double_bounce,
    )
    ndsm = cv2.resize(scene.height_m[scene.core], size[::-1], interpolation=cv2.INTER_AREA)
    cloud = {} if clouds is None else {"cloud": np.round(255 * clouds.opacity).astype(np.uint8)}
    return {"rgb": rgb, "sar": sar_db, "ndsm": ndsm, **cloud}


def _write_raster(path: Path, raster: np.ndarray, crs: str, transform: Affine) -> None:
    """(H, W) or (H, W, 3), float32 or uint8, as a compressed GeoTIFF."""
    bands = raster[None] if raster.ndim == 2 else raster.transpose(2, 0, 1)
    profile = dict(
        driver="GTiff",
        dtype=str(raster.dtype),
        count=len(bands),
        height=bands.shape[1],
        width=bands.shape[2],
        crs=crs,
        transform=transform,
        compress="deflate",
        zlevel=1,
        predictor=2 if raster.dtype == np.uint8 else 3,
        photometric="RGB" if len(bands) == 3 else "MINISBLACK",
    )
    with whole_tiff(path, **profile) as file:
        file.write(bands)


# --- labels --------------------------------------------------------------------------------------------------------


def _labels(buildings: list[CityBuilding], local: Affine, recipe: Recipe) -> list[Building]:
    """Exact outlines in the tile's pixels, cut to it; slivers are dropped."""
    frame = box(0, 0, recipe.size_px, recipe.size_px)
    min_area_px = recipe.min_area_m2 / recipe.gsd_m**2
    labels = []
    for building in buildings:
        polygon = clean_polygon(map_to_pixel(building.footprint, local).intersection(frame))
        if polygon is not None and polygon.area >= min_area_px:
            labels.append(_label(polygon, building.height_m, building.id, recipe.outline))
    return labels


def _roofs(city: City, bounds, sensor: SensorGeometry) -> list[CityBuilding]:
    """The buildings with their roofs as footprints, where they appear in the optical picture; the tallest last."""
    azimuth, off_nadir = (
        math.radians(v or 0.0) for v in (sensor.view_azimuth_deg, sensor.view_off_nadir_deg)
    )
    lean = -math.tan(off_nadir) * math.sin(azimuth), -math.tan(off_nadir) * math.cos(azimuth)
    tallest_m = max((ridge_m(b) for b in city.buildings), default=0.0)
    near = city.near(_padded(bounds, sensor, tallest_m))
    shown = [replace(b, footprint=roof_outline(b, lean)) for b in near]
    return sorted((b for b in shown if not b.footprint.is_empty), key=lambda b: b.height_m)


def _label(polygon, height_m: float, identifier, outline: str) -> Building:
    return Building(
        polygon=polygon,
        height_m=height_m,
        height_source="synthetic",
        height_stat=HEIGHT_STAT,
        height_datum="ground",
        outline=outline,
        id=identifier,
    )


def _shuffle_heights(records: list, rng: np.random.Generator) -> None:
    annotations = [annotation for _, of_tile in records for annotation in of_tile]
    heights_m = [annotation["height_m"] for annotation in annotations]
    for annotation, i in zip(annotations, rng.permutation(len(annotations)), strict=True):
        annotation["height_m"] = heights_m[i]


def _shuffle_angles(records: list, strip_tiles: int, rng: np.random.Generator) -> None:
    """No acquisition keeps its own, where there are two."""
    sensors = [image["sensor"] for image, _ in records[::strip_tiles]]
    order = rng.permutation(len(sensors))
    given = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    for i, (image, _) in enumerate(records):
        image["sensor"] = sensors[given[i // strip_tiles]]


def _spoil(labels: list[Building], recipe: Recipe, offset_m, rng: np.random.Generator) -> list[Building]:
    """`labels` with the faults that training labels have in real life."""
    faults, size = recipe.faults, recipe.size_px
    kept = [b for b in labels if rng.random() >= faults.missing_labels]
    for _ in range(rng.binomial(max(len(labels), 1), faults.extra_labels) if faults.extra_labels else 0):
        x, y, w, h = *rng.uniform(0, size, 2), *rng.uniform(8, 20, 2) / recipe.gsd_m
        kept.append(_label(box(x, y, x + w, y + h), float(rng.uniform(3, 20)), None, recipe.outline))
    dx, dy = offset_m[0] / recipe.gsd_m, -offset_m[1] / recipe.gsd_m
    frame = box(0, 0, size, size)
    spoiled = []
    for b in kept:
        polygon = clean_polygon(translate(b.polygon, dx, dy).intersection(frame))
        if polygon is not None and polygon.area * recipe.gsd_m**2 >= recipe.min_area_m2:
            height_m = max(b.height_m + faults.height_noise_m * rng.standard_normal(), 0.5)
            spoiled.append(replace(b, polygon=polygon, height_m=height_m))
    return spoiled
