"""An RGB and a SAR raster as one image on one grid, window by window."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fusiondet.errors import InputError, unknown_name
from fusiondet.io.bands import LINEAR_SCALES, SAR_SCALES, BandSpec
from fusiondet.io.calibration import MIN_SAMPLE, check_sar_scale
from fusiondet.io.crs import GEOREFERENCE, raster_crs_text
from fusiondet.io.fill_values import fill_words, find_fill
from fusiondet.io.grids import (
    SAME_GRID_PX,
    axis_gsd_m,
    footprint_px,
    pixel_ratio,
    whole_pixel_offset,
)
from fusiondet.io.rasters import (
    Bands,
    FileBands,
    PixelWindow,
    check_placed,
    check_size,
    open_raster,
    resolve_bands,
    scaled,
    scaling_note,
)
from fusiondet.io.tile_rasters import TileRaster

import numpy as np
import shapely
from affine import Affine
from rasterio import DatasetReader
from rasterio.features import geometry_mask

# What of rasters with different extents is read: where all of them are, or all of the first one.
EXTENTS = ("intersection", "optical")
# A fringe that is no wider than this is not worth a word, pixels.
_FRINGE_PX = 1.0
# A raster is not resampled by more than this: the number was mistyped, and the grid would not fit anywhere.
MAX_ZOOM = 100

# One raster of a modality, or several that count as one, their bands one after another; some may be open already.
Paths = Path | Sequence[Path | DatasetReader]


@dataclass
class Scene:
    """Pixels of a scene with their place on the map.

    Attributes:
        image: (C, H, W) float32, NaN = no data.
        transform: pixel -> map.
        crs: "EPSG:n" or WKT; None when the raster has none.
        gsd_m: metres per pixel, geometric mean of both directions.
        notes: what was decided on the way (bands, warping, assumptions), one sentence each, for the user.
    """

    image: np.ndarray
    transform: Affine
    crs: str | None
    gsd_m: float
    notes: list[str] = field(default_factory=list)


def read_scene(
    rgb_path: Paths | None, sar_path: Paths | None, bands: BandSpec, window=None, **options
) -> Scene:
    """All of a scene (or a window of it) on its optical grid; see `SceneReader` for the arguments and errors."""
    with SceneReader(rgb_path, sar_path, bands, **options) as reader:
        return reader.read(window)


class SceneRasters:
    """The rasters of a scene, each of which is opened once, when it is first needed; a context manager.

    Attributes:
        paths: modality -> its files, as given, none where it has no raster.
    """

    def __init__(self, rgb: Paths | None, sar: Paths | None):
        """`rgb`, `sar`: a raster, or a list of rasters whose bands are those of one; None where there is none."""
        self.paths = {"optical": _path_list(rgb), "sar": _path_list(sar)}
        self._files = ExitStack()

    @cached_property
    def optical(self) -> list[DatasetReader]:
        """Open optical rasters; InputError, see `open_raster`."""
        return [self._open(path) for path in self.paths["optical"]]

    @cached_property
    def sar(self) -> list[DatasetReader]:
        """Open SAR rasters; InputError, see `open_raster`."""
        return [self._open(path) for path in self.paths["sar"]]

    @property
    def sources(self) -> list[DatasetReader]:
        """All open rasters, optical ones first."""
        return [*self.optical, *self.sar]

    def reader(self, bands: BandSpec, **options) -> "SceneReader":
        """Return a `SceneReader` of these rasters, which is closed with them; for arguments and errors see there."""
        reader = SceneReader(self.optical, self.sar, bands, **options)
        self._files.callback(reader.close)
        return reader

    def _open(self, path: Path) -> DatasetReader:
        # Closed by a callback: as a context manager a dataset keeps an environment of the thread that opened it.
        source = open_raster(path, allow_vrt=True)
        self._files.callback(source.close)
        return source

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _path_list(paths: Paths | None) -> tuple[Path, ...]:
    if paths is None:
        return ()
    return tuple(Path(p) for p in (paths if isinstance(paths, list | tuple) else [paths]))


class SceneReader:
    """An RGB raster and, optionally, a SAR raster as one image on one grid, read window by window.

    The grid is the first optical raster's (the first SAR raster's without an optical one), or that extent in square
    pixels of `target_gsd_m`. Rasters in another CRS, pixel size or origin are warped onto it, whether or not they have
    as many pixels; what is outside them is NaN. SAR is averaged in power, which makes looks where pixels get larger,
    always from full resolution. Optical GeoTIFFs are read from an overview that is not coarser than the grid, where
    they have one (`FileBands.open_overview`): so much less to read, and the numbers are as good as that overview's.

    Attributes:
        width, height, transform, crs, gsd_m: of the grid. bands: what the channels are. notes: sentences for the user.
        fills: name of a file -> number that means no data there, although neither the file nor the user says so.
        own_shape, own_transform: (H, W) and transform of the same extent in the first raster's own pixels.
        target_gsd_m: what the scene is resampled to, None for its own pixels.
        shared: share of the first raster's extent that all rasters cover; 1 where no more than a fringe lacks.
    """

    def __init__(
        self,
        rgb_path: Paths | None,
        sar_path: Paths | None,
        bands: BandSpec,
        *,
        rgb_bands: Sequence[int] | None = None,
        sar_bands: Sequence[int | tuple[int, ...]] | None = None,
        sar_scale: str | None = None,
        sar_factor: float | None = None,
        optical_scale: float | None = None,
        nodata: float | None = None,
        recognise_nodata: bool = False,
        usual_nodata: float | None = None,
        fills: Mapping[str, float] | None = None,
        gsd_m: float | None = None,
        target_gsd_m: float | Callable[[float], float | None] | None = None,
        extent: str = "optical",
        north_up: bool = False,
    ):
        """Open the files and settle bands and grid.

        Args:
            rgb_path, sar_path: local rasters, VRT allowed; None: the channels of that modality are NaN. A list: their
                bands count one after another, e.g. one file per band, each on its own grid. Rasters that are open
                already are not closed by this reader.
            bands: wanted bands; SAR ones may be means of polarisations ("HH+VV").
            rgb_bands, sar_bands: 1-based indexes in the files for the wanted bands, a tuple for a mean power; None: by
                names (see `resolve_bands`), else the first ones with a note.
            sar_scale: what the SAR file holds (bands.SAR_SCALES); None: as `bands.sar_scale` says.
            sar_factor: calibration of amplitudes and complex numbers, which are multiplied by it; None: what the file
                states, else 1.
            optical_scale: what optical numbers are multiplied by; None: as they are.
            nodata: number that means "no data" where a file declares none.
            recognise_nodata: find out such numbers of files for which neither the file nor `nodata` tells: values such
                as -9999, large areas of exactly 0 at the border. See `fusiondet.io.fill_values`.
            usual_nodata: with `recognise_nodata`, the number of files of which none is found.
            fills: name of a file -> such a number, as an earlier reader found it.
            gsd_m: pixel size in metres, for rasters without georeference.
            target_gsd_m: resample to this, or to what this function returns for the raster's own GSD; None: keep the
                raster's own grid.
            extent: of the grid, one of EXTENTS. With "intersection" it is cut to the box of what all rasters cover, and
                what one of them does not cover there is NaN in all channels.
            north_up: read rasters whose rows run north or whose columns run west from the other end, so that no picture
                is mirrored and the result is that of the same raster north-up.

        Raises:
            InputError: a file cannot be read, has too few bands, complex numbers that are not declared so, or others
                than its SAR scale; the files do not overlap, only one is georeferenced and the sizes differ, or neither
                georeference nor `gsd_m` tells the pixel size.
        """
        self.bands, self.notes = bands, []
        self._files = ExitStack()
        with self._files:
            if sar_scale and sar_scale not in SAR_SCALES:
                raise unknown_name("SAR scale", sar_scale, SAR_SCALES)
            if sar_factor is not None and not 0 < sar_factor < math.inf:
                raise InputError(f"`sar_factor` is {sar_factor}, expected a positive number.")
            self._sar_factor = sar_factor
            scale = (sar_scale or bands.sar_scale) if bands.sar else None
            self._optical = self._open(rgb_path, bands.optical, rgb_bands, nodata, "`rgb_bands`")
            self._sar = self._open(sar_path, bands.sar, sar_bands, nodata, "`sar_bands`", scale, sar_factor)
            self._optical_scale = optical_scale
            parts = [part for part in (self._optical, self._sar) if part is not None]
            if not parts:
                raise InputError(
                    f"none of the wanted bands {', '.join(bands.names)} has a raster. Pass `rgb` or `sar`."
                )
            self.fills = dict(fills or {})
            if recognise_nodata and nodata is None:
                self.fills |= self._recognised_fills(parts, usual_nodata)
            for file in (file for part in parts for file in part.files):
                if file.source.name in self.fills:
                    file.assume_nodata(self.fills[file.source.name])
            base = self._base = parts[0].files[0]
            placed: dict = {}
            for file in (file for part in parts for file in part.files):
                if file.source not in placed:
                    self._place(file, base, north_up)
                    placed[file.source] = file
                same = placed[file.source]
                file.transform, file.crs, file.flipped = same.transform, same.crs, same.flipped
            self._note_scaling([file for part in parts for file in part.files])
            common = self._common(list(placed.values()), base, extent)
            self._settle_grid(base, common, gsd_m, target_gsd_m)
            shape = (self.height, self.width)
            for file in placed.values():
                file.offset = whole_pixel_offset(file, self.transform, base.crs, shape)
                if file is not base and file.offset is None:
                    self.notes.append(
                        f"{file.source.name}: another CRS, pixel size or origin; warped onto the optical grid."
                    )
            for file in (file for part in parts for file in part.files):
                file.offset = placed[file.source].offset
            if self._sar is not None:
                self._check_sar(self._sar.files)
            self._overviews = self._open_overviews()
            self._files = self._files.pop_all()

    def _open(self, paths, wanted, indexes, nodata, option, scale=None, factor=None):
        if not paths or not wanted:
            return None
        paths = [paths] if isinstance(paths, str | Path) else paths
        sources = [path if isinstance(path, DatasetReader) else self._opened(path) for path in paths]
        indexes = resolve_bands(sources, wanted, indexes, option, self.notes)
        return Bands(sources, indexes, nodata, scale, factor)

    def _recognised_fills(self, parts: list[Bands], usual: float | None) -> dict[str, float]:
        """Name of a file -> number that means no data in it, of files that declare none; what is found is noted."""
        found: dict[str, float] = {}
        for part in parts:
            of_source: dict = {}
            for file in part.files:
                of_source.setdefault(file.source, []).append(file)
            for source, files in of_source.items():
                if any(n is not None for n in source.nodatavals) or files[0].scale == "complex":
                    continue
                cells = np.concatenate([file.sample_cells() for file in files])
                fill = find_fill(cells)
                if fill is not None and fill.value == 0 and files[0].scale in LINEAR_SCALES:
                    fill = None  # no power is no data anyway
                if usual is not None and not (fill and fill.certain):
                    found[source.name] = usual
                    if (cells == usual).all(axis=0).any():
                        self.notes.append(
                            f"{source.name}: declares no nodata value; {usual:g} counts as no data, as in the training."
                        )
                elif fill is not None:
                    self.notes.append(fill_words(source.name, fill))
                    if fill.certain:
                        found[source.name] = fill.value
        return found

    def sample(self, modality: str) -> list[np.ndarray]:
        """(k,) numbers of each channel of "optical" or "sar" at sampled pixels of its files; none without a raster."""
        part = self._optical if modality == "optical" else self._sar
        if part is None:
            return []
        sampled = part.sample_final()
        if modality == "optical" and self._optical_scale is not None:
            return [values * np.float32(self._optical_scale) for values in sampled]
        return sampled

    def _opened(self, path: Path) -> DatasetReader:
        source = open_raster(path, allow_vrt=True)
        self._files.callback(source.close)
        return source

    def _place(self, part, base, north_up: bool) -> None:
        """Settle where on the map the pixels of `part` are."""
        source = part.source
        check_placed(source)
        if not has_place(source) and part is not base:
            if (source.width, source.height) != (base.source.width, base.source.height):
                raise InputError(
                    f"{source.name}: has no georeference and another size than {base.source.name}. "
                    f"Give it a CRS and a transform: {GEOREFERENCE}"
                )
            self.notes.append(f"{source.name}: no georeference; taken pixel by pixel as {base.source.name}.")
            part.transform, part.crs, part.flipped = base.transform, base.crs, base.flipped
            return
        if (part.crs is None) != (base.crs is None) or has_place(source) != has_place(base.source):
            raise InputError(
                f"{source.name}: has {_georeference(source)}, but {base.source.name} has "
                f"{_georeference(base.source)}. Both need a CRS and a transform: {GEOREFERENCE}"
            )
        if north_up and has_place(source):
            part.turn_north_up()
            ends = [
                end for end, flipped in zip(("columns run west", "rows run north"), part.flipped) if flipped
            ]
            if ends:
                self.notes.append(f"{source.name}: its {' and its '.join(ends)}; read from the other end.")

    def _note_scaling(self, files: list[FileBands]) -> None:
        for source in dict.fromkeys(file.source for file in files if file.scaling):
            pairs = [p for file in files if file.source is source and file.scaling for p in file.scaling]
            self.notes.append(scaling_note(source, pairs))

    def _common(self, files: list[FileBands], base: FileBands, extent: str):
        """What all `files` cover, in pixels of `base`, if only that is to be read and it is not all; else None."""
        if extent not in EXTENTS:
            raise unknown_name("`extent`", extent, EXTENTS)
        shape = base.source.shape
        whole = common = shapely.box(0, 0, shape[1], shape[0])
        what = "only that part is read" if extent == "intersection" else "the rest is no data"
        for file in (f for f in files if f is not base):
            covered = footprint_px(
                file.source.shape, file.transform, file.crs, base.transform, base.crs, shape
            )
            names = f"{file.source.name} and {base.source.name}"
            if covered.area == 0:
                raise InputError(
                    f"{names} do not overlap: {_extent(file.source)} against {_extent(base.source)}. "
                    "Is it the right pair, and is the CRS of both right?"
                )
            if not covered.buffer(_FRINGE_PX, join_style="mitre").covers(whole):
                common = common.intersection(covered)
                share = covered.area / whole.area
                self.notes.append(f"{names} overlap only in part, {_percent(share)} of the latter; {what}.")
        self.shared = common.area / whole.area
        if extent == "optical" or common is whole:
            return None
        left, top, right, bottom = map(round, common.bounds or (0, 0, 0, 0))
        if left >= right or top >= bottom:
            raise InputError(
                f"{', '.join(file.source.name for file in files)}: there is no ground that all of them cover. Pass "
                '`extent="optical"` to predict where one is missing.'
            )
        return common

    def _settle_grid(self, base, common_px, gsd_m, target_gsd_m):
        source, left, top = base.source, 0, 0
        self.width, self.height, self.crs = source.width, source.height, raster_crs_text(source.crs)
        if common_px is not None:
            left, top, right, bottom = map(round, common_px.bounds)
            self.width, self.height = right - left, bottom - top
        self.transform = base.transform * Affine.translation(left, top) if left or top else base.transform
        self.own_shape, self.own_transform = (self.height, self.width), self.transform
        if gsd_m is not None:
            gsd_x, gsd_y = gsd_m, gsd_m
        else:
            try:
                gsd_x, gsd_y = axis_gsd_m(self.transform, self.crs, self.width, self.height)
            except InputError as error:
                raise InputError(f"{source.name}: {error}") from None
            if self.crs is None:
                self.notes.append(f"{source.name}: no CRS; map units are taken as metres.")
        self.gsd_m = math.sqrt(gsd_x * gsd_y)
        self.target_gsd_m = target_gsd_m = (
            target_gsd_m(self.gsd_m) if callable(target_gsd_m) else target_gsd_m
        )
        if target_gsd_m is not None and not 1 / MAX_ZOOM <= target_gsd_m / self.gsd_m <= MAX_ZOOM:
            raise InputError(
                f"{source.name}: {self.gsd_m:.3g} m per pixel cannot be resampled to {target_gsd_m:.3g} m, "
                f"more than {MAX_ZOOM} times finer or coarser."
            )
        zoom = 1.0, 1.0
        if target_gsd_m is not None and abs(target_gsd_m / self.gsd_m - 1) > 1e-3:
            self.notes.append(
                f"{source.name}: resampled from {self.gsd_m:.3g} m to {target_gsd_m:.3g} m per pixel."
            )
            columns = max(1, round(self.width * gsd_x / target_gsd_m))
            rows = max(1, round(self.height * gsd_y / target_gsd_m))
            zoom = self.width / columns, self.height / rows
            self.transform = self.transform * Affine.scale(*zoom)
            self.width, self.height, self.gsd_m = columns, rows, target_gsd_m
        self._common_px = None
        if common_px is not None:
            corner, scale = np.array([left, top]), np.array(zoom)
            common_px = shapely.transform(common_px, lambda xy: (xy - corner) / scale)
            centres = shapely.box(0.5, 0.5, self.width - 0.5, self.height - 0.5)
            if not common_px.buffer(SAME_GRID_PX, join_style="mitre").covers(centres):
                self._common_px = common_px

    def _open_overviews(self) -> dict[FileBands, FileBands]:
        """What is read in place of optical files: one choice for the whole grid, so that windows fit together."""
        found, shape = {}, (self.height, self.width)
        for file in self._optical.files if self._optical else ():
            if file.offset is not None:
                continue
            ratio = pixel_ratio(file.transform, file.crs, self.transform, self._base.crs, shape)
            overview = file.open_overview(ratio)
            if overview is not None:
                self._files.callback(overview.source.close)
                found[file] = overview
                size = f"{overview.source.width} x {overview.source.height} px"
                self.notes.append(f"{file.source.name}: read from its overview of {size}.")
        return found

    def _check_sar(self, files):
        """Refuse numbers that are not what they were declared; dB that look linear are noted only."""
        for source in dict.fromkeys(file.source for file in files):
            part = next(file for file in files if file.source is source)
            if part.factor != 1:
                self.notes.append(
                    f"{source.name}: amplitudes are multiplied by {part.factor:.4g} (calibration)."
                )
            if part.scale not in ("linear_power", "amplitude", "db"):
                continue
            try:
                check_sar_scale(part.sample(MIN_SAMPLE), part.scale, source.name)
            except InputError as error:
                if part.scale != "db":
                    raise
                self.notes.append(str(error))

    @property
    def optical_format(self) -> tuple[str, float | None]:
        """What optical values fit in: (dtype of all chosen bands, nodata number or None).

        Numbers that tags scale are float32, and NaN where there is no data.
        """
        files = self._optical.files
        if any(file.scaling for file in files):
            return "float32", None
        dtypes = [file.source.dtypes[i - 1] for file in files for i in file.indexes]
        numbers = {file.nodata[0] for file in files}
        return str(np.result_type(*dtypes)), numbers.pop() if len(numbers) == 1 else None

    def in_file(self, modality: str, window: PixelWindow) -> TileRaster | None:
        """`window` of the grid as a part of the file of "optical" or "sar": where its pixels can be had as they are.

        None when there is no such file, or `window` is not wholly inside it; when it would be warped, resampled,
        averaged, detected or calibrated by the user's factor, or comes from several files; and when a reader of tiles
        could not take a window of it: VRT, or a format that is unpacked as a whole.

        Raises:
            InputError: the file ends before the window does. What is only referred to would else be missed first by a
                training.
        """
        part = self._as_it_is(modality)
        if part is None:
            return None
        (dx, dy), source = part.offset, part.source
        x0, y0, width, height = window[0] + dx, window[1] + dy, *window[2:]
        if x0 < 0 or y0 < 0 or x0 + width > source.width or y0 + height > source.height:
            return None
        whole = (x0, y0, width, height) == (0, 0, source.width, source.height)
        if source.driver == "VRT" or not (whole or source.driver == "GTiff"):
            return None
        if source.driver == "GTiff":
            part.read_raw((x0 + width - 1, y0 + height - 1, 1, 1))
        first = part.indexes == list(range(1, len(part.indexes) + 1))
        place = None if whole else (x0, y0, width, height)
        return TileRaster(Path(source.name), place, None if first else tuple(part.indexes))

    def has_no_gaps(self, modality: str) -> bool:
        """Whether the file of "optical" or "sar" declares no pixel as no data, so that it need not be read to know."""
        part = self._as_it_is(modality)
        return part is not None and part.has_no_gaps

    def read_file(self, modality: str, window: PixelWindow) -> tuple[np.ndarray, np.ndarray]:
        """What `in_file` refers to: (n, h, w) in `optical_format` or the file's dtype, and (h, w) bool validity.

        Of SAR the file says less than the image: pixels without power are valid here.
        """
        part = self._as_it_is(modality)
        x0, y0 = window[0] + part.offset[0], window[1] + part.offset[1]
        stored, valid = part.read_raw((x0, y0, *window[2:]))
        return (scaled(stored, part.scaling) if part.scaling else stored), valid

    def _as_it_is(self, modality: str) -> FileBands | None:
        """The one file of a modality whose numbers a reader of tiles can take from it; None where there is none."""
        part = self._optical if modality == "optical" else self._sar
        if part is None or len(part.files) > 1 or part.files[0].offset is None:
            return None
        file = part.files[0]
        changed = modality == "sar" and (self._sar_factor or file.scale == "complex")
        return None if changed or any(file.flipped) or self._common_px is not None else file

    def read(self, window: PixelWindow | None = None) -> Scene:
        """The pixels of `window` (x0, y0, width, height) of the grid, which may reach beyond it (NaN there)."""
        x0, y0, width, height = window or (0, 0, self.width, self.height)
        check_size((len(self.bands), height, width), np.float32, "the scene")
        transform = self.transform * Affine.translation(x0, y0)

        def read_file(file: FileBands) -> np.ndarray:
            if file.offset is None:
                return self._overviews.get(file, file).warp(transform, self._base.crs, (height, width))
            channels = np.full((len(file.indexes), height, width), np.nan, np.float32)
            file.read_into(channels, x0 + file.offset[0], y0 + file.offset[1])
            return channels

        images = [
            np.full((n, height, width), np.nan, np.float32) if part is None else part.read(read_file)
            for part, n in ((self._optical, len(self.bands.optical)), (self._sar, len(self.bands.sar)))
        ]
        if self._optical_scale is not None:
            images[0] = images[0] * np.float32(self._optical_scale)
        image = np.concatenate(images)
        if self._common_px is not None:
            image[:, geometry_mask([self._common_px], (height, width), Affine.translation(x0, y0))] = np.nan
        return Scene(image, transform, self.crs, self.gsd_m, list(self.notes))

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def has_place(source) -> bool:
    """Return True for an open raster that has a CRS or a transform."""
    return source.crs is not None or not source.transform.is_identity


def _georeference(source) -> str:
    if not has_place(source):
        return "no georeference"
    return raster_crs_text(source.crs) or "a transform without CRS"


def _percent(share: float) -> str:
    """A share that is neither none nor all, so that it does not read as if it were."""
    return "less than 1 %" if share < 0.01 else f"{min(math.floor(100 * share), 99)} %"


def _extent(source) -> str:
    left, bottom, right, top = source.bounds
    return f"x {left:.6g}..{right:.6g}, y {bottom:.6g}..{top:.6g} ({raster_crs_text(source.crs) or 'no CRS'})"
