"""Open rasters safely, and read chosen bands with their validity, on the file's own grid or warped onto another."""

import contextlib
import itertools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from fusiondet.errors import InputError
from fusiondet.files import check_name
from fusiondet.io.bands import LINEAR_SCALES, POLARISATIONS, check_averaging, sar_members
from fusiondet.io.calibration import MIN_SAMPLE, check_not_db, stated_scale_factor
from fusiondet.io.crs import SET_CRS, raster_crs_text
from fusiondet.io.fill_values import PATCH_PX, WHOLE_PX, lattice_starts
from fusiondet.io.grids import grid_in_pixels_of, north_up, warp_valid, whole_pixel_offset
from fusiondet.io.units import LengthUnit, height_unit_of, horizontal_unit, required_length_unit

import numpy as np
import rasterio
from affine import Affine
from pyproj import CRS
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

# The drivers that may open a file, by its first bytes: the suffix says nothing about what GDAL would make of it.
SIGNATURES = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\x89PNG\r\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}

MAX_READ_BYTES = 8 << 30
# Far beyond every sensor and mosaic: more of either is a damaged header, or a file made to exhaust its reader.
MAX_BANDS = 1000
MAX_SIDE_PX = 100_000_000
# Bands that a message names.
MAX_NAMED = 24
# Sizes of grids are rounded to whole pixels: an overview coarser by so little is not coarser.
ROUNDED = 1.02
# A mask is looked at in so many rows and columns.
LOOK_PX = 1024
# Bands without telling names are taken in order up to this number of them: red, green, blue and one more. Images of
# more begin with other bands (coastal aerosol, blue).
_MOST_GUESSED = 4
# What a polarisation without any power becomes where another one has some.
SAR_FLOOR_DB = -50.0

# The directory of a training set holds thousands of files: GDAL must not list it at every open.
# A PNG that is unpacked in one go fills what is missing at its end with whatever memory held, without an error.
GDAL_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",
    "GDAL_CACHEMAX": 64 << 20,
    "GDAL_NUM_THREADS": "1",
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
}

# Tiles without georeference are fine, and counted where it matters.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

PixelWindow = tuple[int, int, int, int]


class UnreadablePixelsError(InputError):
    """A raster that opens, some pixels of which are damaged; others may be read all the same."""


def open_raster(path: Path, allow_vrt: bool = False) -> rasterio.DatasetReader:
    """Open a local raster for reading; the caller closes it.

    Args:
        allow_vrt: accept a VRT, which may refer to any other file: only for a path that the user typed.

    Raises:
        InputError: missing, a directory, not one of SIGNATURES (also a VRT with another suffix), or damaged.
    """
    path = Path(path)
    check_name(path)
    if not path.exists():
        raise InputError(f"{path}: no such file.")
    if not path.is_file():
        raise InputError(f"{path}: is a directory, expected a raster file.")
    driver = _driver(path)
    if driver is None or (driver == "VRT" and not (allow_vrt and path.suffix.lower() == ".vrt")):
        vrt = (
            " A VRT is read only under its own suffix .vrt and when named on the command line."
            if driver
            else ""
        )
        kinds = ", ".join(dict.fromkeys(SIGNATURES.values()))
        raise InputError(f"{path}: not a raster of a kind that is read here ({kinds}).{vrt}")
    try:
        with rasterio.Env(**GDAL_OPTIONS):
            source = rasterio.open(path.absolute(), driver=driver)
            _ = source.colorinterp  # GDAL may read pixels for it, so that damaged ones show here
    except (RasterioError, CPLE_BaseError) as error:
        raise InputError(
            f"{path}: damaged or truncated, GDAL cannot open it as {driver} ({error}). Copy or download it again."
        ) from None
    try:
        _check_header(source, path)
    except InputError:
        source.close()
        raise
    return source


def _check_header(source, path: Path) -> None:
    if max(source.width, source.height) > MAX_SIDE_PX:
        raise InputError(
            f"{path}: {source.width} x {source.height} px, more than the {MAX_SIDE_PX} px a side that are read here. "
            "Is its header damaged? Else cut it: `gdal_translate -srcwin X Y WIDTH HEIGHT IN OUT`."
        )
    if source.count > MAX_BANDS:
        raise InputError(
            f"{path}: has {source.count} bands, more than the {MAX_BANDS} that are read here. Copy the wanted ones: "
            "`gdal_translate -b 1 -b 2 -b 3 IN OUT`."
        )
    area = source.transform.determinant
    if not (math.isfinite(area) and area):
        raise InputError(
            f"{path}: its transform {tuple(source.transform)[:6]} gives pixels no area. Georeference it again."
        )


def check_placed(source) -> None:
    """Refuse an open raster that has a CRS, ground control points or RPCs, but no transform: its pixels have no place.

    Raises:
        InputError: see above; it names the commands that help.
    """
    if not source.transform.is_identity:
        return
    if source.gcps[0]:
        raise InputError(
            f"{source.name}: has {len(source.gcps[0])} ground control points and no transform, so it is not on a map "
            "grid yet. Warp it: `rio warp IN OUT --dst-crs EPSG:n` or `gdalwarp -t_srs EPSG:n IN OUT`; a SAR image in "
            "radar geometry has to be corrected for the terrain instead, with the tools of its mission."
        )
    if source.rpcs:
        raise InputError(
            f"{source.name}: has rational polynomial coefficients (RPCs) and no transform, so it is not on a map grid "
            "yet. Orthorectify it: `gdalwarp -rpc -to RPC_DEM=DEM.tif -t_srs EPSG:n IN OUT`, where DEM.tif holds the "
            "terrain; a SAR image with the tools of its mission."
        )
    if source.crs is not None:
        raise InputError(
            f"{source.name}: has the CRS {raster_crs_text(source.crs)[:60]} and no transform, so it is not known where "
            "its pixels lie. Set pixel size and upper left corner in the units of the CRS: `rio edit-info --transform "
            '"[PIXEL, 0, LEFT, 0, -PIXEL, TOP]" FILE`; or take them from a raster on the same grid: `rio edit-info '
            "--like OTHER --transform like FILE`."
        )


def _driver(path: Path) -> str | None:
    with open(path, "rb") as f:
        head = f.read(512)
    if b"<VRTDataset" in head:
        return "VRT"
    return next((driver for signature, driver in SIGNATURES.items() if head.startswith(signature)), None)


def _overviews_are_tiff(source) -> bool:
    """Whether overviews of a GeoTIFF are in it, or in a TIFF beside it: GDAL would open whatever is there."""
    beside = [Path(f"{source.name}{suffix}") for suffix in (".ovr", ".OVR")]
    return not source.tags(ns="OVERVIEWS") and all(_driver(p) == "GTiff" for p in beside if p.exists())


def _states_other_nodata(overview, source, index: int) -> bool:
    """Whether an overview cannot tell no data as its file does.

    A mask that lacks this overview reads as "all known" there, so one that masks nothing is not believed.
    """
    facts = [(s.dtypes, s.mask_flag_enums, s.colorinterp, str(s.nodatavals)) for s in (overview, source)]
    if facts[0] != facts[1]:
        return True
    if MaskFlags.per_dataset not in source.mask_flag_enums[index - 1]:
        return False
    shape = tuple(min(side, LOOK_PX) for side in overview.shape)
    try:
        with rasterio.Env(**GDAL_OPTIONS):
            return bool(overview.read_masks(index, out_shape=shape).all())
    except RasterioError:
        return True


class Bands:
    """Channels of one modality, out of one raster or of several that count as one, their bands one after another.

    A channel is a band or, where its index is a tuple, the mean power of several. In a mean each polarisation counts
    where it is known (positive power, finite, not the no-data number) and is left out where it is not: the mean is
    then that of the others, not of them and zero. A pixel without any of them is no data.

    Attributes:
        files: `FileBands`: the bands that are read together, each file's on its own grid.
    """

    def __init__(self, sources, indexes: Sequence[int | tuple[int, ...]], nodata, scale, factor=None):
        """Settle what is read; see `FileBands` for `nodata`, `scale` and `factor`.

        Args:
            sources: an open raster, or a list of them.
            indexes: one for each channel, counted from 1 through the bands of all sources; tuples only for SAR with
                power.

        Raises:
            InputError: the files' dtypes contradict the scale.
        """
        stack = band_stack(sources)
        wanted = [(i,) if isinstance(i, int) else tuple(dict.fromkeys(i)) for i in indexes]
        alone = [members[0] for members in wanted if len(members) == 1]
        averaged = list(dict.fromkeys(i for members in wanted if len(members) > 1 for i in members))
        if averaged:
            check_averaging(scale)
        # Single bands of a file share their validity; in a mean each band has its own.
        sources = dict.fromkeys(stack[i - 1][0] for i in alone)
        groups = [[i for i in alone if stack[i - 1][0] is source] for source in sources]
        row_alone = {i: row for row, i in enumerate(i for group in groups for i in group)}
        row_averaged = {i: len(alone) + n for n, i in enumerate(averaged)}
        self._rows = [
            [row_alone[members[0]]] if len(members) == 1 else [row_averaged[i] for i in members]
            for members in wanted
        ]
        self.files = [
            FileBands(stack[group[0] - 1][0], [stack[i - 1][1] for i in group], nodata, scale, factor)
            for group in groups + [[i] for i in averaged]
        ]

    def read(self, read_file: Callable[["FileBands"], np.ndarray]) -> np.ndarray:
        """(n, h, w) channels, NaN = no data, out of what `read_file` makes of each of `files`, all of one shape."""
        parts = [read_file(file) for file in self.files]
        if len(parts) == 1:
            return parts[0]
        members = [channel for part in parts for channel in part]
        image = np.empty((len(self._rows), *members[0].shape), np.float32)
        for channel, rows in zip(image, self._rows, strict=True):
            channel[:] = (
                members[rows[0]] if len(rows) == 1 else _mean_power_db([members[row] for row in rows])
            )
        if len(image) > 1:
            image[:, np.isnan(image).any(axis=0)] = np.nan
        return image

    def sample_final(self) -> list[np.ndarray]:
        """(k,) numbers of each channel at sampled pixels, see `FileBands.sample_final`, NaN left out.

        Of a mean of several bands: those of all of them.
        """
        members = [channel for file in self.files for channel in file.sample_final()]
        sampled = [np.concatenate([members[row] for row in rows]) for rows in self._rows]
        return [values[np.isfinite(values)] for values in sampled]

    def read_final(self, window: PixelWindow | None = None) -> np.ndarray:
        """(n, h, w) channels on the grid of the files, which is one."""
        return self.read(lambda file: file.read_final(window))


def band_stack(sources) -> list[tuple]:
    """(source, its 1-based band) of all bands of an open raster or of a list of them."""
    sources = sources if isinstance(sources, list | tuple) else [sources]
    return [(source, i) for source in sources for i in range(1, source.count + 1)]


def _mean_power_db(bands_db: Sequence[np.ndarray]) -> np.ndarray:
    """(h, w) dB: the mean power of those of several (h, w) that are not NaN; NaN where all are."""
    total, count = np.zeros((2, *bands_db[0].shape), np.float32)
    for band in bands_db:
        power = np.exp(band * np.float32(math.log(10) / 10))
        known = power < np.inf  # nor NaN
        np.add(total, power, out=total, where=known)
        count += known
    mean = np.full_like(total, SAR_FLOOR_DB / 10)
    np.log10(total / np.maximum(count, 1), out=mean, where=total > 0)
    mean *= 10
    mean[count == 0] = np.nan
    return mean


class FileBands:
    """Single bands of one open raster: reads, validity, and the way between the file's numbers and the image's.

    Attributes:
        source, indexes, scale: as given. nodata: number of each band, None for none.
        transform, crs: of the file; `SceneReader` may say otherwise. offset: of the file in a scene's grid, pixels.
        flipped: (columns, rows) that are counted from the other end, see `turn_north_up`.
        factor: what amplitudes and complex numbers are multiplied by.
        scaling: [(scale, offset)] of each band, by which the stored numbers become the file's values; None where they
            are these values, as nearly everywhere.
    """

    def __init__(self, source, indexes: Sequence[int], nodata, scale, factor: float | None = None):
        """Look at the file's header only.

        Args:
            nodata: number that means "no data" where the file declares none.
            scale: one of bands.SAR_SCALES, what the numbers are; None for what is not SAR.
            factor: calibration of amplitudes and complex numbers; None: what the file states, else 1.

        Raises:
            InputError: the dtypes contradict the scale.
        """
        self.source, self.indexes, self.scale = source, list(indexes), scale
        if nodata is not None and not math.isfinite(nodata):
            raise InputError(
                f"`nodata` is {nodata}, expected a finite number; NaN and inf are no data anyway."
            )
        self.transform, self.crs = source.transform, source.crs
        self.scaling = stated_scaling(source, self.indexes)
        declared = [source.nodatavals[i - 1] for i in self.indexes]
        self._assumes_nodata = nodata is not None and all(n is None for n in declared)
        self.nodata = [nodata] * len(declared) if self._assumes_nodata else declared
        self.offset, self.factor, self.flipped = None, 1.0, (False, False)
        dtypes = {source.dtypes[i - 1] for i in self.indexes}
        self._complex = any(t.startswith("complex") for t in dtypes)
        if self._complex and scale != "complex":
            raise InputError(
                f"{source.name}: holds complex numbers ({', '.join(dtypes)}). If it is a single-look SAR image on a "
                'map grid, say so with `sar_scale="complex"`: it is detected to power.'
            )
        if scale == "complex" and not all(t.startswith("complex") for t in dtypes):
            raise InputError(
                f"{source.name}: is {', '.join(dtypes)}, but its SAR scale was declared complex. Say what it holds "
                "with `sar_scale`: linear_power, amplitude or db."
            )
        if scale == "stretched_uint8" and dtypes != {"uint8"}:
            raise InputError(
                f"{source.name}: is {', '.join(dtypes)}, but its SAR scale was declared stretched_uint8."
            )
        if scale == "db" and not self.scaling and all(np.dtype(t).kind == "u" for t in dtypes):
            raise InputError(
                f"{source.name}: is {', '.join(dtypes)}, which knows no negative numbers, so it is not in dB, as was "
                "declared or trained on. Say what it holds with `sar_scale`."
            )
        if scale in ("complex", "amplitude"):
            self.factor = factor or stated_scale_factor(source) or 1.0

    def turn_north_up(self) -> None:
        """Count columns and rows from the other end where that brings east to the right and north up.

        After it `transform` is that of the picture that is read: never mirrored, and turned by 90 degrees at most.
        """
        self.flipped, self.transform = north_up(self.transform, self.source.width, self.source.height)

    def read_raw(self, window: PixelWindow | None = None):
        """(n, h, w) stored numbers in the file's dtype, and (h, w) bool validity by what the file declares.

        `scaling` is not applied yet: no-data numbers are stored numbers.

        Raises:
            InputError: `window` is not inside the file, or too large; the file is damaged.
        """
        x0, y0, width, height = window or (0, 0, self.source.width, self.source.height)
        if x0 < 0 or y0 < 0 or x0 + width > self.source.width or y0 + height > self.source.height:
            raise InputError(
                f"{self.source.name}: {self.source.width} x {self.source.height} px; window {window} is not inside."
            )
        rows, columns = self.source.block_shapes[0]
        for shape in ((len(self.indexes), height, width), (1, rows, columns)):
            check_size(shape, np.complex64 if self._complex else np.float32, self.source.name)
        columns_flipped, rows_flipped = self.flipped
        x0 = self.source.width - x0 - width if columns_flipped else x0
        y0 = self.source.height - y0 - height if rows_flipped else y0
        window = Window(x0, y0, width, height)
        try:
            with rasterio.Env(**GDAL_OPTIONS):
                raw = self.source.read(self.indexes, window=window)
                valid = self._validity(raw, window)
        except RasterioError as error:
            raise UnreadablePixelsError(
                f"{self.source.name}: damaged or truncated, its pixels cannot be read ({error.__cause__ or error}). "
                "Copy or download it again."
            ) from None
        if columns_flipped or rows_flipped:
            order = np.s_[..., :: -1 if rows_flipped else 1, :: -1 if columns_flipped else 1]
            raw, valid = np.ascontiguousarray(raw[order]), np.ascontiguousarray(valid[order])
        return raw, valid

    def _read(self, window: PixelWindow | None):
        """float32 (n, h, w) values of the file, complex ones squared, and (h, w) bool validity."""
        raw, valid = self.read_raw(window)
        if self.scaling:
            raw = scaled(raw, self.scaling)
        if not self._complex:
            return raw.astype(np.float32, copy=False), valid
        with np.errstate(over="ignore"):  # numbers too large for float32 are no data, below
            power = np.square(raw.real, dtype=np.float32) + np.square(raw.imag, dtype=np.float32)
        return power, valid & np.isfinite(power).all(axis=0)

    @property
    def has_no_gaps(self) -> bool:
        """Whether every pixel is valid by what the file declares: whole numbers, no nodata, no mask, no alpha."""
        source = self.source
        return (
            all(np.dtype(source.dtypes[i - 1]).kind in "ui" for i in self.indexes)
            and any(
                n is None or not _fits(n, np.dtype(source.dtypes[self.indexes[0] - 1])) for n in self.nodata
            )
            and ColorInterp.alpha not in source.colorinterp
            and MaskFlags.per_dataset not in source.mask_flag_enums[self.indexes[0] - 1]
            and self.scale in (None, "stretched_uint8")
        )

    def _validity(self, raw, window):
        valid = np.ones(raw.shape[1:], bool)
        if raw.dtype.kind in "fc":
            valid &= np.isfinite(raw).all(axis=0)
        if all(n is not None and _fits(n, raw.dtype) for n in self.nodata):
            valid &= ~np.all(
                [band == raw.dtype.type(n) for band, n in zip(raw, self.nodata, strict=True)], axis=0
            )
        alpha = [i for i, c in enumerate(self.source.colorinterp, 1) if c == ColorInterp.alpha]
        flags = self.source.mask_flag_enums[self.indexes[0] - 1]
        if alpha:
            if alpha[0] not in self.indexes:
                valid &= self.source.read(alpha[0], window=window) > 0
        elif MaskFlags.per_dataset in flags:
            valid &= self.source.read_masks(self.indexes[0], window=window) > 0
        return valid

    def assume_nodata(self, value: float) -> None:
        """Take `value` for no data, where the file declares no such number."""
        if all(n is None for n in self.nodata):
            self._assumes_nodata, self.nodata = True, [value] * len(self.nodata)

    def patch_windows(self) -> tuple[list[list[PixelWindow]], int]:
        """Rows of windows that show what the file holds, see `fusiondet.io.fill_values`, and the side of a patch.

        One window, of patches of 1 px, is all of a small file.
        """
        width, height = self.source.width, self.source.height
        if width * height <= WHOLE_PX or min(width, height) < PATCH_PX:
            return [[(0, 0, width, min(height, max(1, WHOLE_PX // width)))]], 1
        columns, rows = lattice_starts(width), lattice_starts(height)
        return [[(x, y, PATCH_PX, PATCH_PX) for x in columns] for y in rows], PATCH_PX

    def sample_cells(self) -> np.ndarray:
        """(n, R, C, p, p) float32 numbers of the file in patches, see `fusiondet.io.fill_values.find_fill`.

        NaN where the file tells of no data, and where its pixels cannot be read.
        """
        windows, side = self.patch_windows()

        def numbers(window):
            try:
                raw, valid = self.read_raw(window)
            except UnreadablePixelsError:
                return np.full((len(self.indexes), window[3], window[2]), np.nan, np.float32)
            return np.where(valid, raw.astype(np.float32), np.float32(np.nan))

        if side == 1:
            return numbers(windows[0][0])[..., None, None]
        return np.stack([np.stack([numbers(window) for window in row], 1) for row in windows], 1)

    def sample_final(self) -> np.ndarray:
        """(n, k) float32 image channels at the pixels of `patch_windows`, NaN = no data.

        Parts that cannot be read are left out: who predicts them says so.
        """
        found = [np.zeros((len(self.indexes), 0), np.float32)]
        for window in (window for row in self.patch_windows()[0] for window in row):
            with contextlib.suppress(InputError):
                found.append(self.read_final(window).reshape(len(self.indexes), -1))
        return np.concatenate(found, axis=1)

    def sample(self, count: int) -> np.ndarray:
        """About `count` known numbers other than 0: of the middle of the file, then of eight places around it."""
        found, known = [], 0
        width, height = min(128, self.source.width), min(128, self.source.height)
        free = self.source.width - width, self.source.height - height
        for v, u in itertools.product((0.5, 0.1, 0.9), repeat=2):
            values, valid = self._read((round(u * free[0]), round(v * free[1]), width, height))
            found.append(values[:, valid & (values != 0).all(axis=0)].ravel())
            known += found[-1].size
            if known >= count or free == (0, 0):
                break
        return np.concatenate(found)

    def read_linear(self, window: PixelWindow | None = None):
        """float32 (n, h, w) in units that may be averaged (SAR: power), and (h, w) bool validity."""
        values, valid = self._read(window)
        if self.scale == "db":
            values = np.power(10.0, values / 10.0, out=np.zeros_like(values), where=valid)
        elif self.scale in LINEAR_SCALES:
            if self.scale != "complex":
                check_not_db(values[:, valid], self.scale, self.source.name)
            if self.scale == "amplitude":
                values = values * np.abs(values)
            if self.factor != 1:
                values = values * np.float32(self.factor**2)
            valid = valid & (values > 0).any(axis=0)
        return values, valid

    def _to_final(self, values, valid):
        """Image channels from `read_linear`'s numbers: SAR power in dB, NaN where not valid."""
        if self.scale in (*LINEAR_SCALES, "db"):
            floor = np.full_like(values, SAR_FLOOR_DB / 10)
            values = 10 * np.log10(values, out=floor, where=(values > 0) & valid)
        if not valid.all():
            values[:, ~valid] = np.nan
        return values

    def read_final(self, window: PixelWindow | None = None) -> np.ndarray:
        """(n, h, w) image channels on the file's own grid."""
        if self.scale in LINEAR_SCALES:
            return self._to_final(*self.read_linear(window))
        values, valid = self._read(window)
        if not valid.all():
            values[:, ~valid] = np.nan
        return values

    def read_into(self, channels: np.ndarray, x0: int, y0: int) -> None:
        """Fill the part of `channels` (n, h, w), whose corner is at (x0, y0) of the file, that the file covers."""
        height, width = channels.shape[1:]
        left, top = max(x0, 0), max(y0, 0)
        right, bottom = min(x0 + width, self.source.width), min(y0 + height, self.source.height)
        if left < right and top < bottom:
            part = self.read_final((left, top, right - left, bottom - top))
            channels[:, top - y0 : bottom - y0, left - x0 : right - x0] = part

    def open_overview(self, ratio: tuple[float, float]) -> "FileBands | None":
        """The same bands out of the file's coarsest overview that has enough pixels; the caller closes its `source`.

        Its numbers are what whoever made it took: near those of averaging the file's own pixels if it was averaged,
        and not if it was thinned (`nearest`). At the border of no data, validity may differ by a pixel of it.

        Args:
            ratio: (columns, rows) of the file that a pixel of the wanted grid reaches over; see `pixel_ratio`.

        Returns:
            None where the file itself has to be read: no such overview; not a GeoTIFF; SAR, as power has to be
            averaged, and overviews average amplitudes or dB; no-data pixels the file does not tell of, which
            its overviews mix with their neighbours, or a mask that its overviews lack.
        """
        source = self.source
        hidden = self._assumes_nodata or (
            any(np.dtype(source.dtypes[i - 1]).kind == "f" for i in self.indexes) and None in self.nodata
        )
        if self.scale is not None or source.driver != "GTiff" or hidden or not _overviews_are_tiff(source):
            return None
        shapes = [source.overviews(i) for i in self.indexes]
        usable = [
            (factor, level)
            for level, factor in enumerate(shapes[0])
            if all(1 < factor <= ROUNDED * r < math.inf for r in ratio)
        ]
        if not usable or any(other != shapes[0] for other in shapes):
            return None
        try:
            with rasterio.Env(**GDAL_OPTIONS):
                overview = rasterio.open(source.name, driver="GTiff", overview_level=max(usable)[1])
        except RasterioError:
            return None
        if _states_other_nodata(overview, source, self.indexes[0]):
            overview.close()
            return None
        bands = FileBands(overview, self.indexes, None, None)
        bands.scaling = self.scaling  # which GDAL does not repeat for every kind of overview
        scale = Affine.scale(source.width / overview.width, source.height / overview.height)
        bands.transform, bands.crs, bands.flipped = self.transform * scale, self.crs, self.flipped
        return bands

    def warp(self, transform: Affine, crs, shape: tuple[int, int]) -> np.ndarray:
        """(n, *shape) image channels on another grid; NaN where the nearest pixel is invalid or outside the file."""
        final = np.full((len(self.indexes), *shape), np.nan, np.float32)
        x, y = grid_in_pixels_of(self, transform, crs, (0, 0, shape[1], shape[0]))
        if x.size == 0:
            return final
        shrink = math.sqrt((np.ptp(x) * np.ptp(y)) / (shape[0] * shape[1])) if min(shape) else 1.0
        margin = 3 + math.ceil(shrink)
        left, top = (max(0, math.floor(v.min()) - margin) for v in (x, y))
        right = min(self.source.width, math.ceil(x.max()) + margin)
        bottom = min(self.source.height, math.ceil(y.max()) + margin)
        if left >= right or top >= bottom:
            return final
        values, valid = self.read_linear((left, top, right - left, bottom - top))
        source_transform = self.transform * Affine.translation(left, top)
        return self._to_final(*warp_valid(values, valid, source_transform, self.crs, transform, crs, shape))


def sample_values(paths: Sequence[Path], nodata: float | None = None) -> np.ndarray:
    """(k,) float32: some known numbers of all bands of rasters, as the files have them; |z|^2 of complex ones.

    For `plausible_sar_scales`: pass some tiles of a data set.

    Args:
        nodata: number that means "no data" where a file declares none; 0 is left out anyway.
    """
    found = []
    for path in paths:
        with open_raster(path) as source:
            is_complex = source.dtypes[0].startswith("complex")
            bands = FileBands(source, source.indexes, nodata, "complex" if is_complex else None)
            found.append(bands.sample(MIN_SAMPLE))
    return np.concatenate(found) if found else np.zeros(0, np.float32)


def stated_scaling(source, indexes: Sequence[int]) -> list[tuple[float, float]] | None:
    """Return (scale, offset) of bands of an open raster as its tags state them; None where none changes a number.

    Raises:
        InputError: a scale is 0, or one of the two is no finite number.
    """
    found = [(source.scales[i - 1], source.offsets[i - 1]) for i in indexes]
    for scale, offset in found:
        if not (math.isfinite(scale) and scale and math.isfinite(offset)):
            raise InputError(
                f"{source.name}: states that its values are its numbers x {scale:g} + {offset:g}, expected a scale "
                "other than 0 and finite numbers. Set them right, e.g. with "
                "`gdal_translate -a_scale 1 -a_offset 0 IN OUT`."
            )
    return None if all(pair == (1, 0) for pair in found) else found


def scaled(stored: np.ndarray, scaling: Sequence[tuple[float, float]]) -> np.ndarray:
    """(n, h, w) float32 or complex64 values of stored numbers; `scaling` of each band as in `FileBands`."""
    dtype = np.complex64 if np.iscomplexobj(stored) else np.float32
    values = np.empty(stored.shape, dtype)
    with np.errstate(over="ignore"):  # as no data, too large numbers are found by their infinity
        for band, (scale, offset), target in zip(stored, scaling, values, strict=True):
            target[:] = band * np.float64(scale) + offset
    return values


def scaling_note(source, scaling: Sequence[tuple[float, float]]) -> str:
    """A sentence for the user on what the stored numbers of an open raster become."""
    said = " and ".join(f"x {scale:g} + {offset:g}" for scale, offset in dict.fromkeys(scaling))
    return f"{source.name}: values are its stored numbers {said}, as its scale and offset tags say."


class BandReader:
    """One band of a raster in the file's values (elevations, say), readable on any grid.

    Attributes:
        transform, crs, width, height: of the file.
        unit: that of its values before they were brought to metres; None where nothing states one.
        hints_at_feet: heights of no stated unit lie on a map in feet, so that they may be in feet as well.
        notes: what was decided by what the file states, one sentence each, for the user.
    """

    def __init__(
        self,
        path: Path,
        band: int = 1,
        nodata: float | None = None,
        allow_vrt: bool = True,
        in_metres: bool = False,
        height_unit: str | None = None,
    ):
        """Open `path`; a context manager that closes it. `allow_vrt` and errors are those of `open_raster`.

        Args:
            in_metres: the values are heights, and are read in metres, whatever length the band's unit or else the
                vertical axis of the CRS states.
            height_unit: the unit where neither states one; None: metres.

        Raises:
            InputError: also, with `in_metres`, a unit that is no length, or an axis that counts depths.
        """
        self._source = open_raster(path, allow_vrt)
        self.notes: list[str] = []
        self.unit: LengthUnit | None = None
        self.hints_at_feet = False
        try:
            check_placed(self._source)
            self._bands = FileBands(self._source, [band], nodata, None)
            if self._bands.scaling:
                self.notes.append(scaling_note(self._source, self._bands.scaling))
            if in_metres:
                self._settle_unit(band, height_unit)
        except InputError:
            self._source.close()
            raise
        self.transform, self.crs = self._source.transform, self._source.crs
        self.width, self.height = self._source.width, self._source.height

    def _settle_unit(self, band: int, height_unit: str | None) -> None:
        source = self._source
        crs = CRS.from_wkt(source.crs.to_wkt()) if source.crs else None
        try:
            self.unit = height_unit_of(source.units[band - 1], crs)
        except InputError as error:
            raise InputError(f"{source.name}: {error}") from None
        given = None if height_unit is None else required_length_unit(height_unit, "height_unit")
        if self.unit is not None and given is not None and self.unit != given:
            self.notes.append(f"{source.name}: states heights in {self.unit.name}, not in {given.name}.")
        self.unit = self.unit or given
        on_map = horizontal_unit(crs) if crs is not None else None
        self.hints_at_feet = self.unit is None and on_map is not None and on_map.is_foot
        if self.unit is None or self.unit.is_metre:
            return
        self.convert(self.unit)
        self.notes.append(f"{source.name}: its heights are in {self.unit.name}; read in metres.")

    def convert(self, unit: LengthUnit) -> None:
        """Read values, which are in `unit`, in metres."""
        scale, offset = (self._bands.scaling or [(1.0, 0.0)])[0]
        self._bands.scaling = [(scale * unit.metres, offset * unit.metres)]

    def onto(self, transform: Affine, crs, shape: tuple[int, int]) -> np.ndarray:
        """(H, W) float32 on the grid of `transform` and `crs` (rasterio's), warped where it differs; NaN = no data.

        Raises:
            InputError: only one of the two grids has a CRS.
        """
        if (self.crs is None) != (crs is None):
            raise InputError(
                f"{self._source.name}: CRS {raster_crs_text(self.crs)}, but it goes with a raster of "
                f"{raster_crs_text(crs)}. Both need one: {SET_CRS}"
            )
        offset = whole_pixel_offset(self._bands, transform, crs, shape)
        if offset is None:
            return self._bands.warp(transform, crs, shape)[0]
        image = np.full((1, *shape), np.nan, np.float32)
        self._bands.read_into(image, *offset)
        return image[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._source.close()


def resolve_bands(
    sources,
    wanted: Sequence[str],
    indexes: Sequence[int | tuple[int, ...]] | None,
    option: str,
    notes: list[str],
) -> list[int | tuple[int, ...]]:
    """Numbers for the `wanted` names, from 1, among the bands of an open raster, or of a list of them in order.

    `indexes` if given; else by band descriptions, colour interpretation, polarisation names, or the name of a file
    with one band; else in order (one of each file where there are as many files as bands), with a note when there are
    more. A name like "HH+VV" gets the tuple of its members, or the number of the band that is described so.

    Raises:
        InputError: fewer bands than wanted (naming both), bands of other polarisations, a wrong number of indexes or
            one out of range, a mean whose members cannot be told, more optical bands than can be guessed at, or a
            palette.
    """
    stack = band_stack(sources)
    data = [
        n
        for n, (source, i) in enumerate(stack, 1)
        if source.colorinterp[i - 1] != ColorInterp.alpha or indexes
    ]
    files = list(dict.fromkeys(source for source, _ in stack))
    named = "; ".join(band_names(source) for source in files)
    found = f"{', '.join(source.name for source in files)}: has {len(data)} band{'s' * (len(data) != 1)} ({named})"
    if indexes:
        numbers = [n for index in indexes for n in ((index,) if isinstance(index, int) else index)]
        if len(indexes) != len(wanted) or not all(1 <= n <= len(stack) for n in numbers):
            given = " ".join(str(i) if isinstance(i, int) else "+".join(map(str, i)) for i in indexes)
            raise InputError(
                f"{found}; {option} {given} must be {len(wanted)} of 1..{len(stack)}, one for each of "
                f"{', '.join(wanted)}."
            )
        return list(indexes)
    if any(ColorInterp.palette in source.colorinterp for source in files):
        raise InputError(f"{found} with a colour table. Expand it first: gdal_translate -expand rgb IN OUT.")

    def find(name):
        return next((n for n in data if _is_band(*stack[n - 1], name)), None)

    whole = {name: find(name) for name in wanted if "+" in name and find(name)}
    members = list(dict.fromkeys(m for name in wanted if name not in whole for m in sar_members(name)))
    at = {name: find(name) for name in members}
    if None in at.values() or len(set(at.values())) < len(at):
        at = _in_order(stack, data, wanted, members, at, found, option, notes)
    numbers = [
        tuple(at[m] for m in sar_members(name)) if name not in whole else whole[name] for name in wanted
    ]
    return [n[0] if isinstance(n, tuple) and len(n) == 1 else n for n in numbers]


def _in_order(stack, data, wanted, members, at, found, option, notes) -> dict[str, int]:
    """Band numbers of `members`: polarisations where names tell them, the others in order among untold bands."""
    if len(data) < len(members):
        raise InputError(f"{found}, but {len(members)} are needed: {', '.join(members)}.")
    told = {n: _polarisations(*stack[n - 1]) for n in data}
    at = {name: n for name, n in at.items() if n is not None and name in POLARISATIONS}
    rest = [name for name in members if name not in at]
    free = [n for n in data if not told[n] and n not in at.values()]
    if len(free) < len(rest):
        raise InputError(
            f"{found}, but {', '.join(rest)} is needed; no polarisation stands for another. Choose bands with "
            f"{option} to take them all the same."
        )
    more = len(free) > len(rest)
    if more and len(free) > _MOST_GUESSED and not set(rest) & set(POLARISATIONS):
        raise InputError(
            f"{found}; names do not tell which of them are {', '.join(rest)}. Say so with {option}: "
            f"{_usual_bands(option, len(free), rest)}."
        )
    mean = next((name for name in wanted if "+" in name and set(sar_members(name)) & set(rest)), None)
    if mean and more:
        raise InputError(
            f"{found}; names do not tell which bands {mean} is the mean power of: say so, e.g. {option} "
            f"{'+'.join(str(n + 1) for n in range(len(sar_members(mean))))}."
        )
    sources = [stack[n - 1][0] for n in free]
    if len(dict.fromkeys(sources)) == len(rest):
        free = [n for i, n in enumerate(free) if sources.index(sources[i]) == i]
    if more:
        first = f"the first {len(rest)} are" if len(rest) > 1 else "the first is"
        notes.append(f"{found}, whose names do not tell; {first} taken as {', '.join(rest)} (see {option}).")
    return {**at, **dict(zip(rest, free))}


def _usual_bands(option: str, count: int, wanted: Sequence[str]) -> str:
    """The bands of common products of `count` bands that are red, green and blue, as a value of `option`."""
    if list(wanted) != ["red", "green", "blue"]:
        return f"{len(wanted)} of 1..{count}"
    usual = {8: ("(5, 3, 2)", "WorldView-2 and -3"), 7: ("(4, 3, 2)", "Landsat 8 and 9")}
    numbers, product = usual.get(count, ("(4, 3, 2)", "Sentinel-2 with B1 first"))
    return f"`{option.strip('`')}={numbers}` for {product}"


def _polarisations(source, index: int) -> set[str]:
    """The polarisations that a band's description names, or the name of a file whose only band it is."""
    for text in _names(source, index):
        found = set(re.findall(r"(?<![a-z])(hh|hv|vh|vv)(?![a-z])", text))
        if found:
            return {name.upper() for name in found}
    return set()


def _names(source, index: int) -> list[str]:
    description = (source.descriptions[index - 1] or "").lower()
    return [description, Path(source.name).stem.lower()] if source.count == 1 else [description]


def _is_band(source, index: int, name: str) -> bool:
    if "+" in name:  # of the description only: a file called hh+vv may hold both
        return name.lower() in re.split(r"[^a-z+]+", _names(source, index)[0])
    if name.upper() in POLARISATIONS:
        return _polarisations(source, index) == {name.upper()}
    description, *stem = _names(source, index)
    if description:
        return description == name.lower()
    color = source.colorinterp[index - 1].name
    if color == name.lower() or (name == "pan" and color == "gray" and source.count == 1):
        return True
    return bool(stem) and name.lower() in re.split(r"[^a-z0-9]+", stem[0])


def band_names(source) -> str:
    """Descriptions of bands, colour interpretation where there is none, for messages; of many bands the first ones."""
    pairs = list(zip(source.descriptions, source.colorinterp, strict=True))
    named = [description or color.name for description, color in pairs[:MAX_NAMED]]
    return ", ".join(named if len(pairs) <= MAX_NAMED else [*named, "..."])


def check_size(shape, dtype, name) -> None:
    """InputError when an array of that shape would take more than MAX_READ_BYTES."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size > MAX_READ_BYTES:
        raise InputError(
            f"{name}: {' x '.join(map(str, shape))} values would take {size / 2**30:.0f} GiB, more than "
            f"{MAX_READ_BYTES >> 30} GiB at once. Read it in windows, or cut it into tiles first."
        )


def _fits(number: float, dtype) -> bool:
    """Whether `number` can occur in an array of `dtype` (NaN cannot be compared, and is found as not finite)."""
    if math.isnan(number):
        return False
    if dtype.kind in "fc":
        return True
    info = np.iinfo(dtype)
    return float(number).is_integer() and info.min <= number <= info.max
