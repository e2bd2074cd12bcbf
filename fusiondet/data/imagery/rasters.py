"""Open rasters safely, and read chosen bands with their validity, on the file's own grid or warped onto another."""

import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from fusiondet.data.bands import POLARISATIONS
from fusiondet.data.imagery.grids import crs_text, grid_in_pixels_of, warp_valid, whole_pixel_offset
from fusiondet.errors import InputError

import numpy as np
import rasterio
from affine import Affine
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
# What a polarisation without any power becomes where another one has some.
SAR_FLOOR_DB = -50.0

# Share of negative numbers above which a file cannot be linear power or amplitude, whatever was declared.
_MAX_NEGATIVE = 0.1

# The directory of a training set holds thousands of files: GDAL must not list it at every open.
GDAL_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "GDAL_CACHEMAX": 64, "GDAL_NUM_THREADS": "1"}

# Tiles without georeference are fine, and counted where it matters.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

PixelWindow = tuple[int, int, int, int]


def open_raster(path: Path, allow_vrt: bool = False) -> rasterio.DatasetReader:
    """Open a local raster for reading; the caller closes it.

    Args:
        allow_vrt: accept a VRT, which may refer to any other file: only for a path that the user typed.

    Raises:
        InputError: missing, a directory, not one of SIGNATURES (also a VRT with another suffix), or damaged.
    """
    path = Path(path)
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
    except RasterioError as error:
        raise InputError(
            f"{path}: damaged or truncated, GDAL cannot open it as {driver} ({error}). Copy or download it again."
        ) from None
    area = source.transform.determinant
    if not (math.isfinite(area) and area):
        source.close()
        raise InputError(
            f"{path}: its transform {tuple(source.transform)[:6]} gives pixels no area. Georeference it again."
        )
    return source


def _driver(path: Path) -> str | None:
    with open(path, "rb") as f:
        head = f.read(512)
    if b"<VRTDataset" in head:
        return "VRT"
    return next((driver for signature, driver in SIGNATURES.items() if head.startswith(signature)), None)


class Bands:
    """Chosen bands of one open raster: reads, validity, and the way between the file's numbers and the image's."""

    def __init__(self, source, indexes, nodata, scale):
        self.source, self.indexes, self.scale = source, list(indexes), scale
        self.transform, self.crs = source.transform, source.crs
        declared = [source.nodatavals[i - 1] for i in self.indexes]
        self.nodata = [nodata] * len(declared) if all(n is None for n in declared) else declared
        self.offset = None
        dtypes = {source.dtypes[i - 1] for i in self.indexes}
        if any(t.startswith("complex") for t in dtypes):
            raise InputError(
                f"{source.name}: holds complex numbers ({', '.join(dtypes)}). Detect it to intensity and bring it to a "
                "map grid first, then pass --sar-scale linear_power."
            )
        if scale == "stretched_uint8" and dtypes != {"uint8"}:
            raise InputError(
                f"{source.name}: is {', '.join(dtypes)}, but its SAR scale was declared stretched_uint8."
            )
        if scale == "db" and all(np.dtype(t).kind == "u" for t in dtypes):
            raise InputError(
                f"{source.name}: is {', '.join(dtypes)}, which knows no negative numbers, so it is not in dB, as was "
                "declared or trained on. Say what it holds with --sar-scale."
            )

    def _read(self, window: PixelWindow | None):
        """float32 (n, h, w) in the file's numbers, and (h, w) bool validity."""
        x0, y0, width, height = window or (0, 0, self.source.width, self.source.height)
        if x0 < 0 or y0 < 0 or x0 + width > self.source.width or y0 + height > self.source.height:
            raise InputError(
                f"{self.source.name}: {self.source.width} x {self.source.height} px; window {window} is not inside."
            )
        rows, columns = self.source.block_shapes[0]
        for shape in ((len(self.indexes), height, width), (1, rows, columns)):
            check_size(shape, np.float32, self.source.name)
        window = Window(x0, y0, width, height)
        try:
            with rasterio.Env(**GDAL_OPTIONS):
                raw = self.source.read(self.indexes, window=window)
                valid = self._validity(raw, window)
        except RasterioError as error:
            raise InputError(
                f"{self.source.name}: damaged or truncated, its pixels cannot be read ({error.__cause__ or error}). "
                "Copy or download it again."
            ) from None
        return raw.astype(np.float32), valid

    def _validity(self, raw, window):
        valid = np.ones(raw.shape[1:], bool)
        if raw.dtype.kind == "f":
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

    def read_linear(self, window: PixelWindow | None = None):
        """float32 (n, h, w) in units that may be averaged (SAR: power), and (h, w) bool validity."""
        values, valid = self._read(window)
        if self.scale == "db":
            values = np.power(10.0, values / 10.0, out=np.zeros_like(values), where=valid)
        elif self.scale in ("linear_power", "amplitude"):
            self._check_not_db(values[:, valid])
            if self.scale == "amplitude":
                values = values * np.abs(values)
            valid = valid & (values > 0).any(axis=0)
        return values, valid

    def _check_not_db(self, known):
        negative = np.mean(known < 0) if known.size else 0
        if negative > _MAX_NEGATIVE:
            raise InputError(
                f"{self.source.name}: {100 * negative:.0f} % of its values are negative, so it is not {self.scale}. "
                "Is it in dB (--sar-scale db)?"
            )

    def _to_final(self, values, valid):
        """Image channels from `read_linear`'s numbers: SAR power in dB, NaN where not valid."""
        if self.scale in ("linear_power", "amplitude", "db"):
            floor = np.full_like(values, SAR_FLOOR_DB / 10)
            values = 10 * np.log10(values, out=floor, where=(values > 0) & valid)
        values[:, ~valid] = np.nan
        return values

    def read_final(self, window: PixelWindow | None = None) -> np.ndarray:
        """(n, h, w) image channels on the file's own grid."""
        if self.scale in ("linear_power", "amplitude"):
            return self._to_final(*self.read_linear(window))
        values, valid = self._read(window)
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


class BandReader:
    """One band of a raster in the file's numbers (elevations, say), readable on any grid.

    Attributes:
        transform, crs, width, height: of the file.
    """

    def __init__(self, path: Path, band: int = 1, nodata: float | None = None, allow_vrt: bool = True):
        """Open `path`; a context manager that closes it. `allow_vrt` and errors are those of `open_raster`."""
        self._source = open_raster(path, allow_vrt)
        self._bands = Bands(self._source, [band], nodata, None)
        self.transform, self.crs = self._source.transform, self._source.crs
        self.width, self.height = self._source.width, self._source.height

    def onto(self, transform: Affine, crs, shape: tuple[int, int]) -> np.ndarray:
        """(H, W) float32 on the grid of `transform` and `crs` (rasterio's), warped where it differs; NaN = no data.

        Raises:
            InputError: only one of the two grids has a CRS.
        """
        if (self.crs is None) != (crs is None):
            raise InputError(
                f"{self._source.name}: CRS {crs_text(self.crs)}, but it goes with a raster of {crs_text(crs)}. "
                "Both need one: `rio edit-info --crs EPSG:n FILE` sets it."
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
    source, wanted: Sequence[str], indexes: Sequence[int] | None, option: str, notes: list[str]
):
    """1-based band indexes of `source` for the `wanted` names.

    `indexes` if given; else by band descriptions, colour interpretation or polarisation names; else the first ones,
    with a note when the file has more.

    Raises:
        InputError: fewer bands than wanted (naming both), bands of other polarisations, a wrong number of indexes or
            one out of range, or a palette.
    """
    data = [i for i, c in enumerate(source.colorinterp, 1) if c != ColorInterp.alpha or indexes]
    found = f"{source.name}: has {len(data)} band{'s' * (len(data) != 1)} ({band_names(source)})"
    if indexes:
        if len(indexes) != len(wanted) or not all(1 <= i <= source.count for i in indexes):
            raise InputError(
                f"{found}; {option} {' '.join(map(str, indexes))} must be {len(wanted)} of 1..{source.count}, one for "
                f"each of {', '.join(wanted)}."
            )
        return list(indexes)
    if len(data) < len(wanted):
        raise InputError(f"{found}, but {len(wanted)} are needed: {', '.join(wanted)}.")
    if ColorInterp.palette in source.colorinterp:
        raise InputError(f"{found} with a colour table. Expand it first: gdal_translate -expand rgb IN OUT.")
    named = [next((i for i in data if _is_band(source, i, name)), None) for name in wanted]
    if None not in named and len(set(named)) == len(named):
        return named
    others = [p for p in POLARISATIONS if p not in wanted and any(_is_band(source, i, p) for i in data)]
    lacking = [name for name, index in zip(wanted, named) if index is None and name in POLARISATIONS]
    if lacking and others:
        raise InputError(
            f"{found}, but {', '.join(lacking)} is needed; no polarisation stands for another. Choose bands with "
            f"{option} to take them all the same."
        )
    if len(data) > len(wanted):
        first = f"the first {len(wanted)} are" if len(wanted) > 1 else "the first is"
        notes.append(
            f"{found}, whose names do not tell; {first} taken as {', '.join(wanted)} (see {option})."
        )
    return data[: len(wanted)]


def _is_band(source, index: int, name: str) -> bool:
    description = (source.descriptions[index - 1] or "").lower()
    if name.upper() in POLARISATIONS:
        return re.search(rf"(?<![a-z]){name.lower()}(?![a-z])", description) is not None
    if description:
        return description == name.lower()
    color = source.colorinterp[index - 1].name
    return color == name.lower() or (name == "pan" and color == "gray" and source.count == 1)


def band_names(source) -> str:
    """Descriptions of all bands, colour interpretation where there is none, for messages."""
    pairs = zip(source.descriptions, source.colorinterp, strict=True)
    return ", ".join(description or color.name for description, color in pairs)


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
    if dtype.kind == "f":
        return True
    info = np.iinfo(dtype)
    return float(number).is_integer() and info.min <= number <= info.max
