"""The Data Fusion Contest 2023 (IEEE GRSS) -> tiles with buildings: `tools/prepare_dataset.py dfc2023`.

Data sheet. 17 cities, 512 x 512 px: RGB of SuperView-1 (published pixel 0.5 m) and Gaofen-2 (0.8 m), one band of SAR of
Gaofen-3 (1 m; polarisation, scale and look direction unpublished, stretched to 8 bits for display), in Track 2 heights
above ground (nDSM, about 2 m, of stereo images). 1773 / 579 / 605 tiles; of val and test the contest kept the labels.

- Layout: `{train,val,test}/{rgb,sar,height,merge}/NAME.tif` and `annotations/*.json`; in the wild also `dsm/`,
  `dsmnpy/*.npy`, `JSON/`, `image_id/`, no folders of splits, and only `merge/` (red, green, blue, SAR in one file).
- Track 2 labels `buildings_only_<split>.json`, Track 1 `roof_fine_<split>.json` (12 kinds of roof: all are buildings
  here). Polygons and RLE mixed; a few outlines in several parts. Outlines follow the roof, where the picture leans;
  some follow the base.
- `image_id_<split>.json` lists images without labels: such a split is for predictions alone.
- Heights: a statistic of the nDSM inside each outline. It is 0 under 7 % of the buildings, not there yet when the nDSM
  was made, perhaps: their height is unknown. The nDSM does not always lie exactly under the outlines.
- Names of training images say sensor, city and place (`GF2_Brasilia_-15.8652_-47.9337.tif`), others do not
  (`P_0000.tif`). Places next to each other overlap, so that new splits are dealt out by city.
- Licence: that of IEEE DataPort; to be accepted there.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.buildings import Building, Tile
from fusiondet.converters import conversion, reports
from fusiondet.converters.coco_index import CocoIndex, ImageRecord, read_index
from fusiondet.converters.cutting import KEPT_DTYPES, clip_labels, write_tile
from fusiondet.converters.reports import Problems, Report
from fusiondet.converters.source import Made, Place, link
from fusiondet.converters.zonal_heights import statistic, zonal_height
from fusiondet.errors import InputError, unknown_name
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from fusiondet.io.crs import raster_crs_text
from fusiondet.io.grids import gsd_m_of
from fusiondet.io.labels import check_height_labels, read_heights
from fusiondet.io.rasters import open_raster, stated_scaling
from fusiondet.io.tile_rasters import TileRaster, read_tile_image

import numpy as np
import rasterio
import shapely
from affine import Affine

SPLITS = ("train", "val", "test")
# Spellings of the folders, in lower case.
PRODUCTS = {
    "rgb": ("rgb", "opt", "optical", "images", "image"),
    "sar": ("sar",),
    "height": ("height", "heights", "ndsm", "dsm", "dsmnpy"),
    "merge": ("merge",),
}
LABEL_FOLDERS = ("annotations", "annotation", "json", "image_id", "image_ids", "labels")
LABEL_FILES = {1: "roof_fine", 2: "buildings_only"}
IMAGE_LIST = "image_id"
SUFFIXES = (".tif", ".tiff", ".png", ".jpg")
# The polarisation is unpublished.
BANDS = BandSpec(("red", "green", "blue"), ("SAR",), "stretched_uint8")
PUBLISHED_GSD_M = 0.5
_PLACED_NAME = re.compile(
    r"(?P<sensor>[A-Za-z0-9]+)_(?P<city>.+)_(?P<lat>-?\d+(\.\d+)?)_(?P<lon>-?\d+(\.\d+)?)"
)
_METRES_PER_DEGREE = 111_320.0


def sensor_and_city(name: str) -> tuple[str | None, str | None]:
    """What an image's name says: ("GF2", "Brasilia") of "GF2_Brasilia_-15.8652_-47.9337.tif"; else (None, None)."""
    found = _PLACED_NAME.fullmatch(Path(name).stem)
    return (found["sensor"], found["city"]) if found else (None, None)


def place_in_name(name: str) -> tuple[float, float] | None:
    """(latitude, longitude) in degrees that an image's name says, None where it says none."""
    found = _PLACED_NAME.fullmatch(Path(name).stem)
    return (float(found["lat"]), float(found["lon"])) if found else None


# ---- Where things are ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ContestPart:
    """A split as the archive has it.

    Attributes:
        split: its name. labels: COCO file, None where there is none.
        folders: product of PRODUCTS -> folder.
    """

    split: str
    labels: Path | None
    folders: dict[str, Path]

    @property
    def where(self) -> Path:
        """The folder that holds its products, for messages."""
        return next(iter(self.folders.values())).parent


def find_parts(root: Path, track: int | None) -> tuple[int, list[ContestPart]]:
    """(track, its splits) of an unpacked archive.

    Args:
        track: 1 or 2; None: 2 where there is something of it.

    Raises:
        InputError: `root` is no such archive (the right folder is named where it is near), or has no labels of `track`.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"`root={root}`: is no folder.")
    folders = _split_folders(root)
    if not folders:
        raise InputError(
            f"`root={root}`: expected train/rgb (or rgb) with images and annotations/*.json in it"
            f"{_suggestion(root) or '.'}"
        )
    if track is None:
        track = 1 if _has_labels(root, 1) and not _has_labels(root, 2) else 2
    parts = []
    for split, products in folders.items():
        for name in SPLITS if split is None else (split,):
            labels = _labels(root, track, name)
            if labels or split:
                parts.append(ContestPart(name, labels, products))
    if not _has_labels(root, track):
        other = (
            f" There are labels of the other track: `track={3 - track}`."
            if _has_labels(root, 3 - track)
            else ""
        )
        raise InputError(
            f"`root={root}`: no labels; expected annotations/{LABEL_FILES[track]}_train.json (or in JSON/)"
            f"{_suggestion(root) or '.'}{other}"
        )
    return track, parts


def _split_folders(root: Path) -> dict[str | None, dict[str, Path]]:
    """Split -> product -> folder; the split is None where the products lie in `root` itself."""
    found = {}
    for split, folder in (*((s, _subfolders(root).get(s)) for s in SPLITS), (None, root)):
        products = {} if folder is None else _products(folder)
        if products:
            found[split] = products
    if len(found) > 1:
        found.pop(None, None)
    return found


def _products(folder: Path) -> dict[str, Path]:
    """Product -> folder of a split; {} without any picture."""
    there = _subfolders(folder)
    found = {}
    for product, names in PRODUCTS.items():
        name = next((name for name in names if name in there), None)
        if name:
            found[product] = there[name]
    return found if "rgb" in found or "merge" in found else {}


def _subfolders(folder: Path) -> dict[str, Path]:
    try:
        return {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir()}
    except OSError:
        return {}


def _labels(root: Path, track: int, split: str) -> Path | None:
    """The labels of a split, else the list of its images."""
    there = _subfolders(root)
    folders = [there[name] for name in LABEL_FOLDERS if name in there] + [root]
    folders += [there[split]] if split in there else []
    for stem in (
        f"{LABEL_FILES[track]}_{split}",
        f"{LABEL_FILES[track]}_{split}_merge",
        f"{IMAGE_LIST}_{split}",
    ):
        for folder in folders:
            if (folder / f"{stem}.json").is_file():
                return folder / f"{stem}.json"
    return None


def _has_labels(root: Path, track: int) -> bool:
    found = [_labels(root, track, split) for split in SPLITS]
    return any(path is not None and path.name.startswith(LABEL_FILES[track]) for path in found)


def _suggestion(root: Path) -> str:
    """Text that names the folder that was meant."""
    here = root.absolute()
    below = [p for child in _subfolders(here).values() for p in (child, *_subfolders(child).values())]
    meant = [
        p
        for p in (here.parent, here.parent.parent, *below)
        if p != here and _split_folders(p) and (_has_labels(p, 1) or _has_labels(p, 2))
    ]
    return f". Did you mean {' or '.join(map(str, meant[:3]))}?" if meant else ""


# ---- The source ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ContestImage:
    """An image of the archive: number of its part, its record there, and the files that there are of it."""

    part: int
    record: ImageRecord
    files: dict[str, Path]


@dataclass
class Dfc2023:
    """The archive below `root` as a `conversion.Source`.

    Attributes:
        track, parts: see `find_parts`.
        zonal: statistic of the nDSM inside an outline. outline: what the outlines follow.
        gsd_m: sensor -> metres per pixel, "" for the other ones; for rasters without georeference.
        holdout: cities that make "val"; all others make "train". by_city: splits are to be dealt out by city.
        cut: copy the pixels.
    """

    root: Path
    track: int
    parts: list[ContestPart]
    zonal: str = "median"
    outline: str = "roof"
    gsd_m: dict[str, float] = field(default_factory=lambda: {"": PUBLISHED_GSD_M})
    holdout: list[str] = field(default_factory=list)
    by_city: bool = False
    cut: bool = False
    bands: BandSpec = BANDS
    nodata: float | None = None
    _images: list[ContestImage] = field(default_factory=list)
    _indexes: list[CocoIndex | None] = field(default_factory=list)
    _unlabelled: list[str] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        """Settle the bands."""
        statistic(self.zonal)
        if not any({"sar", "merge"} & part.folders.keys() for part in self.parts):
            self.bands = BandSpec(BANDS.optical)

    def files(self) -> Iterable[Path]:
        """Labels and rasters."""
        for part in self.parts:
            if part.labels:
                yield part.labels
            for folder in part.folders.values():
                yield from (p for p in sorted(folder.iterdir()) if p.suffix.lower() in (*SUFFIXES, ".npy"))

    def places(self, problems: Problems) -> list[Place]:
        """Images that the labels list and that there are, in the order of the labels."""
        self._images, self._indexes, self._notes, self._unlabelled = [], [], [], []
        for number, part in enumerate(self.parts):
            index = None
            if part.labels is not None:
                index = read_index(part.labels, problems, not part.labels.name.startswith(IMAGE_LIST))
            self._indexes.append(index)
            if index is None:
                self._notes.append(
                    f"{part.split}: left out. There is no {LABEL_FILES[self.track]}_{part.split}.json, nor an "
                    f"{IMAGE_LIST}_{part.split}.json with the numbers of its images."
                )
                continue
            self._find(number, part, index, problems)
            if not index.annotation_count:
                self._unlabelled.append(part.split)
                self._notes.append(
                    f"{part.split}: has no labels. Its tiles are not empty, they are for predictions alone."
                )
        self._report_unlisted(problems)
        if self.holdout or self.by_city:
            return self._places_by_city()
        self._report_shared_ground(problems)
        return [self._place(n, split=self.parts[i.part].split) for n, i in enumerate(self._images)]

    def _find(self, number: int, part: ContestPart, index: CocoIndex, problems: Problems) -> None:
        """Append the images of a part."""
        there = {product: _by_key(folder) for product, folder in part.folders.items()}
        has_heights = any("height" in other.folders for other in self.parts)
        if self.bands.sar and not {"sar", "merge"} & there.keys():
            problems.add("splits without SAR", f"{part.where}: has no folder sar; its tiles are RGB alone.")
        if has_heights and "height" not in there:
            self._notes.append(f"{part.split}: has no folder height (or dsm): its heights are unknown.")
        for record in index.images:
            key = _key(record.name)
            files = {product: paths[key] for product, paths in there.items() if key in paths}
            if not {"rgb", "merge"} & files.keys():
                problems.add(
                    "labels without an image",
                    f"{part.labels}: lists {record.name}, but there is no such image in "
                    f"{part.folders.get('rgb') or part.folders['merge']}.",
                )
                continue
            for product, instead, kind in (
                ("sar", "merge", "tiles without SAR"),
                ("height", "height", "tiles without a height raster"),
            ):
                if product in there and not {product, instead} & files.keys():
                    problems.add(kind, f"{part.folders[product]}: has no {record.name}.")
            self._images.append(ContestImage(number, record, files))

    def _report_unlisted(self, problems: Problems) -> None:
        """Name images that no labels list: whether there are buildings on them is unknown, so they are left out."""
        listed: dict[Path, set[str]] = {}
        for part, index in zip(self.parts, self._indexes, strict=True):
            if index is not None:
                folder = part.folders.get("rgb") or part.folders["merge"]
                listed.setdefault(folder, set()).update(_key(record.name) for record in index.images)
        for folder, keys in listed.items():
            for key, path in _by_key(folder).items():
                if key not in keys:
                    problems.add("images without labels", f"{path}: no labels list it. It is left out.")

    def _report_shared_ground(self, problems: Problems) -> None:
        """Name tiles of one split that lie on those of an earlier one, as their names say: some splits are drawn so."""
        numbers, outlines = [], []
        for number, image in enumerate(self._images):
            place = place_in_name(image.record.name)
            if place is not None:
                lat, lon = place
                side = self._gsd_of(sensor_and_city(image.record.name)[0]) / _METRES_PER_DEGREE
                # Names are rounded to 11 m: neighbours that seem to overlap by less are none.
                down, across = (0.45 * pixels * side for pixels in (image.record.height, image.record.width))
                across /= max(math.cos(math.radians(lat)), 0.01)
                numbers.append(number)
                outlines.append(shapely.box(lon - across, lat - down, lon + across, lat + down))
        touching: dict[int, int] = {}
        outlines = np.array(outlines, dtype=object)
        for a, b in shapely.STRtree(outlines).query(outlines, predicate="intersects").T.tolist():
            if self._images[numbers[a]].part > self._images[numbers[b]].part:
                touching.setdefault(numbers[a], numbers[b])
        for number, other in sorted(touching.items()):
            problems.add(
                "tiles on the ground of another split",
                f"{self._place(number).name}: shares ground with {self._place(other).name}, as their names say. What "
                "is learned is also what is scored: see `holdout_city`.",
            )

    def _place(self, number: int, split: str | None = None, group: str | None = None) -> Place:
        image = self._images[number]
        name = f"{self.parts[image.part].split}/{Path(image.record.name).stem}"
        window = (0, 0, image.record.width, image.record.height)
        return Place(name, number, window, split=split, group=group)

    def _places_by_city(self) -> list[Place]:
        """Tiles with labels whose names say their city."""
        labelled = [n for n, i in enumerate(self._images) if self.parts[i.part].split not in self._unlabelled]
        cities = {n: sensor_and_city(self._images[n].record.name)[1] for n in labelled}
        known = {n: city for n, city in cities.items() if city}
        names = sorted(set(known.values()))
        if not known:
            raise InputError(
                "`holdout_city` and `split` go by the cities in the names of the images, as in "
                "GF2_Brasilia_-15.8652_-47.9337.tif, but none has one."
            )
        if len(known) < len(labelled):
            self._notes.append(
                f"{len(labelled) - len(known)} tiles are left out: their names do not say of which city they are."
            )
        if not self.holdout:
            return [self._place(n, group=city) for n, city in known.items()]
        wanted = {_plain(city): city for city in self.holdout}
        for key, city in wanted.items():
            if key not in map(_plain, names):
                raise unknown_name("city", city, names)
        if len(wanted) == len(set(map(_plain, names))):
            raise InputError(
                f"`holdout_city` names all cities ({', '.join(names)}): none is left to train on."
            )
        return [self._place(n, "val" if _plain(city) in wanted else "train") for n, city in known.items()]

    def make(self, place: Place, out: Path, problems: Problems) -> Made:
        """The tile of an image."""
        image = self._images[place.image]
        optical, sar = self._rasters(image, problems)
        with open_raster(optical.path) as source:
            crs, placed = raster_crs_text(source.crs), not source.transform.is_identity
            transform = tuple(source.transform)[:6] if placed else None
            kept = source.dtypes[0] in KEPT_DTYPES and not stated_scaling(source, source.indexes)
            dtype = source.dtypes[0] if kept else "float32"
        sensor, city = sensor_and_city(image.record.name)
        size = (image.record.width, image.record.height)
        tile = Tile(
            file_name="",
            width=size[0],
            height=size[1],
            gsd_m=gsd_m_of(Affine(*transform), crs, *size) if crs else self._gsd_of(sensor),
            crs=crs,
            transform=transform,
            id=image.record.id if self._ids_are_kept() else None,
        )
        heights_m = self._heights(image, tile, problems)
        labels = Counter()
        found = self._indexes[image.part].buildings(image.record, problems, labels)
        found = [dataclasses.replace(building, outline=self.outline) for building in found]
        found = clip_labels(found, (0, 0, *size), np.ones(size[::-1], bool), 0.0, labels)
        unknown = Counter()
        with rasterio.Env():  # else each outline that is rasterised sets one up
            tile.buildings = [self._with_height(building, heights_m, unknown) for building in found]
        self._refer(tile, place.name, optical, sar, image, heights_m, dtype, out)
        counts = {
            "labels": labels,
            "unknown_heights": unknown,
            "cities": Counter([city or "unknown"]),
            "sensors": Counter([sensor or "unknown"]),
            "roofs": Counter(b.attributes["category"] for b in found if "category" in b.attributes),
        }
        return Made(tile, {heading: count for heading, count in counts.items() if count})

    def _rasters(self, image: ContestImage, problems: Problems) -> tuple[TileRaster, TileRaster | None]:
        """(optical, SAR or None); a SAR raster that cannot be used is named and left out."""
        merge = image.files.get("merge")
        optical = (
            TileRaster(image.files["rgb"]) if "rgb" in image.files else TileRaster(merge, None, (1, 2, 3))
        )
        self._check(optical, 3, image)
        if "sar" not in image.files and merge is None:
            return optical, None
        sar = TileRaster(image.files["sar"]) if "sar" in image.files else TileRaster(merge, None, (4,))
        try:
            self._check(sar, 1, image, "uint8")
        except InputError as error:
            problems.add("unusable SAR rasters", f"{error} The tile is RGB alone.")
            return optical, None
        return optical, sar

    def _check(self, raster: TileRaster, count: int, image: ContestImage, dtype: str | None = None) -> None:
        """InputError where a raster is not what the labels and the contest say."""
        with open_raster(raster.path) as source:
            size, found = (source.width, source.height), source.count
            wrong = dtype if dtype not in (None, source.dtypes[0]) else None
        wanted = (image.record.width, image.record.height)
        if size != wanted:
            raise InputError(
                f"{raster.path}: {size[0]} x {size[1]} px, but {self.parts[image.part].labels.name} says "
                f"{wanted[0]} x {wanted[1]} px."
            )
        needed = max(raster.indexes or (count,))
        if found < needed:
            raise InputError(f"{raster.path}: has {found} bands, expected {needed}.")
        if wrong:
            raise InputError(
                f"{raster.path}: is {source.dtypes[0]}, expected {wrong}, stretched for display."
            )
        # Its end is where a truncated file is missed.
        last_px = (size[0] - 1, size[1] - 1, 1, 1)
        if count == 1:
            read_tile_image(None, raster, BandSpec((), BANDS.sar, BANDS.sar_scale), BANDS, window=last_px)
        else:
            read_tile_image(raster, None, BandSpec(BANDS.optical), BANDS, window=last_px)

    def _gsd_of(self, sensor: str | None) -> float:
        return self.gsd_m.get(sensor or "", self.gsd_m[""])

    def _ids_are_kept(self) -> bool:
        """The contest's numbers are those of one file of labels each."""
        return not (self.holdout or self.by_city) or sum(i is not None for i in self._indexes) == 1

    def _heights(self, image: ContestImage, tile: Tile, problems: Problems) -> np.ndarray | None:
        """(H, W) metres above ground, NaN = unknown; None where there are none that can be used."""
        path = image.files.get("height")
        if path is None:
            return None
        shape = (tile.height, tile.width)
        try:
            if path.suffix.lower() == ".npy":
                heights_m = _read_array(path, shape)
            else:
                heights_m = read_heights(path, shape, tile.transform, tile.crs)
        except InputError as error:
            problems.add("unusable height rasters", f"{error} The heights of its buildings are unknown.")
            return None
        holes = int(np.isnan(heights_m).sum())
        if holes:
            problems.add(
                "height rasters with holes", f"{path}: no height in {holes} of {heights_m.size} pixels."
            )
        return heights_m

    def _with_height(self, building: Building, heights_m: np.ndarray | None, unknown: Counter) -> Building:
        if heights_m is None:
            unknown["no height raster"] += 1
            return building
        height_m, reason = zonal_height(heights_m, building.polygon, statistic(self.zonal))
        if height_m is None:
            unknown[reason] += 1
            return building
        facts = {"height_source": "ndsm", "height_stat": self.zonal, "height_datum": "ground"}
        return dataclasses.replace(building, height_m=height_m, **facts)

    def _refer(
        self, tile: Tile, name: str, optical, sar, image: ContestImage, heights_m, dtype: str, out: Path
    ) -> None:
        """Give the tile names of its rasters: links to the archive, or files of its own."""
        grid = {"transform": Affine(*(tile.transform or (1, 0, 0, 0, 1, 0))), "crs": tile.crs}
        written = {}
        if self.cut:
            pixels = read_tile_image(optical, sar, self.bands, self.bands)
            n = len(self.bands.optical)
            written["rgb"] = (pixels[:n], dtype, self.bands.optical)
            if sar is not None:
                written["sar"] = (pixels[n:], "uint8", self.bands.sar)
        if heights_m is not None and (self.cut or image.files["height"].suffix.lower() == ".npy"):
            written["ndsm"] = (heights_m[None], "float32", ("ndsm",))
        for folder, (pixels, kind, names) in written.items():
            write_tile(out / folder / f"{name}.tif", pixels, kind, None, names, **grid)
        own = {folder: f"{folder}/{name}.tif" for folder in written}
        if not self.cut:
            tile.indexes, tile.sar_indexes = optical.indexes, sar and sar.indexes
        tile.file_name = own.get("rgb") or self._linked(optical.path, out)
        if sar is not None:
            tile.sar_file_name = own.get("sar") or self._linked(sar.path, out)
        if heights_m is not None:
            tile.ndsm_file_name = own.get("ndsm") or self._linked(image.files["height"], out)

    def _linked(self, path: Path, out: Path) -> str:
        """Name of a raster of the archive in the data set."""
        return f"{link(out, 'images', self.root)}/{path.relative_to(self.root).as_posix()}"

    def finish(self, sample: Dataset, report: Report) -> None:
        """Look whether the height rasters hold heights; notes on what was left out."""
        report.notes += self._notes
        if any(tile.ndsm_file_name for tile in sample.tiles):
            try:
                report.notes += check_height_labels({str(self.root): sample}, "ndsm")
            except InputError as error:
                raise InputError(str(error).replace(f"{sample.root}/images", str(self.root))) from None
        sensors = {sensor_and_city(image.record.name)[0] for image in self._images}
        if "GF2" in sensors - self.gsd_m.keys():
            report.notes.append(
                f"tiles of GF2 are taken as {self.gsd_m['']:g} m per pixel, as published; the sensor's own pixel is "
                '0.8 m. See `gsd_m="GF2=0.8"`.'
            )

    def info(self) -> dict:
        """What outlines, heights and pixels are."""
        return {
            "description": f"IEEE GRSS Data Fusion Contest 2023, Track {self.track}",
            "source": [part.labels.name for part in self.parts if part.labels],
            "sar": "Gaofen-3, polarisation and look direction unpublished, stretched to 8 bits for display",
            "outlines": f"{self.outline}, as drawn on the optical image; some follow the other",
            "height_source": f"{self.zonal} of the nDSM inside the outline; 0 there is unknown",
            "gsd_m": {sensor or "others": value for sensor, value in self.gsd_m.items()},
            "held_out_cities": self.holdout,
            "splits_without_labels": self._unlabelled,
            "image_ids": "of the contest's files" if self._ids_are_kept() else "new",
        }


def _plain(city: str) -> str:
    return re.sub(r"[^0-9a-z]", "", city.lower())


def _key(name: str) -> str:
    """What the names of one image have in common: of its products, and of `P_0001.tif` and `P0001.tif`."""
    stem = Path(name.replace("\\", "/")).stem.lower()
    number = re.fullmatch(r"p_?(\d+)", stem)
    return f"p{int(number.group(1))}" if number else stem


def _by_key(folder: Path) -> dict[str, Path]:
    suffixes = (*SUFFIXES, ".npy") if folder.name.lower() in PRODUCTS["height"] else SUFFIXES
    return {_key(p.name): p for p in sorted(folder.iterdir()) if p.suffix.lower() in suffixes}


def _read_array(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 of a NumPy file; InputError where it is none, or of another shape."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a NumPy file of numbers ({error}).") from None
    if values.dtype.kind not in "fiu" or values.size != shape[0] * shape[1] or shape not in (
        values.shape[:2], values.shape[-2:],
    ):  # fmt: skip
        raise InputError(
            f"{path}: is {values.dtype} of shape {values.shape}, expected {shape[0]} x {shape[1]} metres."
        )
    heights_m = np.array(values, np.float32).reshape(shape)
    return np.where(np.isfinite(heights_m), heights_m, np.float32(np.nan))


# ---- The command -----------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    """Options of `prepare_dataset.py dfc2023`."""
    parser.add_argument(
        "--root",
        type=Path,
        required=True,
        metavar="DIR",
        help="the unpacked archive: holds train/ and annotations/",
    )
    parser.add_argument(
        "--track",
        type=int,
        choices=(1, 2),
        help="1: roof_fine_*.json, 2: buildings_only_*.json (default: 2 where it is there)",
    )
    parser.add_argument(
        "--zonal",
        default="median",
        metavar="STAT",
        help="height of a building: median, mean, min, max or pNN of the nDSM's pixels inside (default: %(default)s)",
    )
    parser.add_argument(
        "--outline",
        choices=("roof", "footprint"),
        default="roof",
        help="what the outlines follow; recorded (default: %(default)s)",
    )
    parser.add_argument(
        "--gsd",
        dest="gsd_m",
        nargs="+",
        default=[str(PUBLISHED_GSD_M)],
        metavar="M",
        help="metres per pixel of rasters without georeference, or SENSOR=M, e.g. 0.5 GF2=0.8 (default: 0.5)",
    )
    parser.add_argument(
        "--holdout-city",
        nargs="+",
        default=[],
        metavar="NAME",
        help="these cities become val and all others train, whatever splits the archive has",
    )
    parser.add_argument(
        "--cut", action="store_true", help="copy the pixels; else the tiles refer to the archive"
    )
    conversion.add_arguments(parser, skips=True)


def main(args) -> None:
    """Run `prepare_dataset.py dfc2023`."""
    if args.holdout_city and args.split:
        raise InputError("`holdout_city` and `split` both say what the splits are: pass one of them.")
    track, parts = find_parts(args.root, args.track)
    source = Dfc2023(
        args.root,
        track,
        parts,
        zonal=args.zonal,
        outline=args.outline,
        gsd_m=_gsd_by_sensor(args.gsd_m),
        holdout=args.holdout_city,
        by_city=bool(args.split),
        cut=args.cut,
    )
    names = ("root", "zonal", "outline", "holdout_city", "cut")
    recipe = {
        "source": "dfc2023",
        "track": track,
        "gsd": args.gsd_m,
        **{name: getattr(args, name) for name in names},
    }
    report = conversion.convert(source, args.out, conversion.options_from(args), recipe)
    reports.show(report, args.out)


def _gsd_by_sensor(words: list[str]) -> dict[str, float]:
    """{"": 0.5, "GF2": 0.8} of ["0.5", "GF2=0.8"]."""
    found = {"": PUBLISHED_GSD_M}
    for word in words:
        sensor, _, text = word.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0.01 <= value <= 100:
            raise InputError(
                f"`gsd_m={word!r}`: expected metres per pixel from 0.01 to 100, or SENSOR=M, e.g. GF2=0.8."
            )
        found[sensor] = value
    return found
