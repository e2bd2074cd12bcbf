"""The only reader of rasters, for training and inference alike: files in, float32 (C, H, W) with NaN = no data out.

Channels: optical bands as the file has them, then SAR bands in dB (`stretched_uint8` untouched). No data is a property
of a modality: a pixel that is invalid there is NaN in all its bands. Invalid means: all bands equal the declared nodata
number (or, where the file declares none, the dataset's number), any band NaN or infinite, outside the alpha band or
mask, or SAR power <= 0 in every band (a single band <= 0 is set to SAR_FLOOR_DB).

Resampling happens in linear power and never mixes in invalid pixels: values times validity and validity itself are
warped together and divided; a pixel of the result is valid where its nearest source pixel is.

Files are untrusted: local paths only, an explicit list of drivers (a VRT may open any other file), sizes checked
before memory is taken.
"""

import math
import re
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.buildings import Tile
from fusiondet.data.bands import POLARISATIONS, BandSpec
from fusiondet.data.coco import Dataset
from fusiondet.errors import InputError
from fusiondet.files import safe_join

import numpy as np
import rasterio
from affine import Affine
from pyproj import CRS as ProjCRS
from pyproj import Geod, Transformer
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.warp import reproject
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
SAR_FLOOR_DB = -50.0
# Two grids that nowhere differ by more than this are one grid: a tenth of a pixel is far below the accuracy of any
# optical-SAR registration, and resampling would smooth the speckle for nothing.
SAME_GRID_PX = 0.1
# Share of negative numbers above which a file cannot be linear power or amplitude, whatever was declared.
_MAX_NEGATIVE = 0.1
# The directory of a training set holds thousands of files: GDAL must not list it at every open.
_GDAL_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "GDAL_CACHEMAX": 64, "GDAL_NUM_THREADS": "1"}

# Tiles without georeference are fine, and counted where it matters.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

PixelWindow = tuple[int, int, int, int]


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
        with rasterio.Env(**_GDAL_OPTIONS):
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


def read_tile(dataset: Dataset, tile: Tile, bands: BandSpec | None = None, window: PixelWindow | None = None):
    """`read_tile_image` of one tile of a dataset, its names joined safely to the dataset's root."""

    def path(name):
        return None if name is None else safe_join(dataset.root, name)

    optical, sar = path(tile.file_name), path(tile.sar_file_name)
    if not dataset.bands.optical and sar is None:
        optical, sar = None, optical
    return read_tile_image(optical, sar, bands or dataset.bands, dataset.bands, dataset.nodata, window)


def read_tile_image(
    optical_path: Path | None,
    sar_path: Path | None,
    bands: BandSpec,
    file_bands: BandSpec,
    nodata: float | None = None,
    window: PixelWindow | None = None,
) -> np.ndarray:
    """The stacked image of one tile whose files are on one grid.

    Args:
        optical_path, sar_path: None when the tile lacks that modality: its channels are NaN.
        bands: the bands wanted, in channel order.
        file_bands: the bands that the files hold, in the files' order; its `sar_scale` says how to get to dB.
        nodata: number that means "no data" in files that declare none.
        window: (x0, y0, width, height) in pixels inside the tile; None for all of it.

    Returns:
        (C, H, W) float32, C = len(bands), NaN = no data.

    Raises:
        InputError: a file is missing, damaged, has fewer bands than `file_bands` names or another size than the other
            file; or a wanted band is not in `file_bands`.
    """
    file_bands.select(bands.optical, bands.sar)
    parts = []
    for path, wanted, known, scale in (
        (optical_path, bands.optical, file_bands.optical, None),
        (sar_path, bands.sar, file_bands.sar, file_bands.sar_scale),
    ):
        if path is None or not wanted:
            parts.append((path, len(wanted), None))
            continue
        with open_raster(path) as source:
            _check_band_count(source, known, path)
            band = _Bands(source, [known.index(name) + 1 for name in wanted], nodata, scale)
            parts.append((path, len(wanted), band.read_final(window)))
    return _stack_tile(parts)


def _stack_tile(parts) -> np.ndarray:
    read = [(path, image) for path, _, image in parts if image is not None]
    if not read:
        raise InputError("a tile needs an optical or a SAR raster for the wanted bands; both are missing.")
    shape = read[0][1].shape[1:]
    if read[-1][1].shape[1:] != shape:
        (path_a, a), (path_b, b) = read
        raise InputError(
            f"{path_b}: {b.shape[2]} x {b.shape[1]} px, but {path_a} has {a.shape[2]} x {a.shape[1]} px. Tiles must be "
            "on one grid: make them with tools/prepare_dataset.py tiles, which warps SAR onto the optical grid."
        )
    images = [np.full((n, *shape), np.nan, np.float32) if image is None else image for _, n, image in parts]
    return np.concatenate(images)


def read_scene(
    rgb_path: Path | None, sar_path: Path | None, bands: BandSpec, window=None, **options
) -> Scene:
    """All of a scene (or a window of it) on its optical grid; see `SceneReader` for the arguments and errors."""
    with SceneReader(rgb_path, sar_path, bands, **options) as reader:
        return reader.read(window)


class SceneReader:
    """An RGB raster and, optionally, a SAR raster as one image on one grid, read window by window.

    The grid is the optical raster's (the SAR raster's without an optical one), or that extent in square pixels of
    `target_gsd_m`. SAR in another CRS, pixel size or origin is warped onto it; what is outside SAR is NaN.

    Attributes:
        width, height, transform, crs, gsd_m: of the grid. bands: what the channels are. notes: sentences for the user.
    """

    def __init__(
        self,
        rgb_path: Path | None,
        sar_path: Path | None,
        bands: BandSpec,
        *,
        rgb_bands: Sequence[int] | None = None,
        sar_bands: Sequence[int] | None = None,
        sar_scale: str | None = None,
        nodata: float | None = None,
        gsd_m: float | None = None,
        target_gsd_m: float | None = None,
    ):
        """Open the files and settle bands and grid.

        Args:
            rgb_path, sar_path: local rasters, VRT allowed; None: the channels of that modality are NaN.
            bands: wanted bands.
            rgb_bands, sar_bands: 1-based indexes in the files for the wanted bands; None: by band descriptions or
                colour interpretation, else the first ones with a note.
            sar_scale: what the SAR file holds (bands.SAR_SCALES); None: as `bands.sar_scale` says.
            nodata: number that means "no data" where a file declares none.
            gsd_m: pixel size in metres, for rasters without georeference.
            target_gsd_m: resample to this; None: keep the raster's own grid.

        Raises:
            InputError: a file cannot be read, has too few bands or complex numbers, the files do not overlap, or
                neither georeference nor `gsd_m` tells the pixel size.
        """
        self.bands, self.notes = bands, []
        self._files = ExitStack()
        with self._files:
            self._optical = self._open(rgb_path, bands.optical, rgb_bands, nodata, None, "--rgb-bands")
            scale = (sar_scale or bands.sar_scale) if bands.sar else None
            self._sar = self._open(sar_path, bands.sar, sar_bands, nodata, scale, "--sar-bands")
            base = self._optical or self._sar
            if base is None:
                raise InputError(
                    f"none of the wanted bands {', '.join(bands.names)} has a raster. Pass --rgb or --sar."
                )
            self._settle_grid(base, gsd_m, target_gsd_m)
            for other in (self._optical, self._sar):
                if other is not None:
                    self._relate(other, base)
            self._files = self._files.pop_all()

    def _open(self, path, wanted, indexes, nodata, scale, option):
        if path is None or not wanted:
            return None
        source = self._files.enter_context(open_raster(path, allow_vrt=True))
        indexes = resolve_bands(source, wanted, indexes, option, self.notes)
        return _Bands(source, indexes, nodata, scale)

    def _settle_grid(self, base, gsd_m, target_gsd_m):
        source = base.source
        self.width, self.height, self.transform = source.width, source.height, source.transform
        self.crs = crs_text(source.crs)
        if gsd_m is not None:
            gsd_x, gsd_y = gsd_m, gsd_m
        else:
            gsd_x, gsd_y = axis_gsd_m(source.transform, self.crs, self.width, self.height)
            if self.crs is None:
                self.notes.append(f"{source.name}: no CRS; map units are taken as metres.")
        self.gsd_m = math.sqrt(gsd_x * gsd_y)
        if target_gsd_m is not None and abs(target_gsd_m / self.gsd_m - 1) > 1e-3:
            self.notes.append(
                f"{source.name}: resampled from {self.gsd_m:.3g} m to {target_gsd_m:.3g} m per pixel."
            )
            columns = max(1, round(self.width * gsd_x / target_gsd_m))
            rows = max(1, round(self.height * gsd_y / target_gsd_m))
            self.transform = self.transform * Affine.scale(self.width / columns, self.height / rows)
            self.width, self.height, self.gsd_m = columns, rows, target_gsd_m

    def _relate(self, part, base):
        """Decide how `part` gets onto the grid: a shift by whole pixels, or a warp."""
        source = part.source
        if source.crs is None and source.transform.is_identity and part is not base:
            if (source.width, source.height) != (base.source.width, base.source.height):
                raise InputError(
                    f"{source.name}: has no georeference and another size than {base.source.name}. "
                    "Give it a CRS and a transform, e.g. with `rio edit-info` or gdal_translate -a_srs -a_ullr."
                )
            self.notes.append(f"{source.name}: no georeference; taken pixel by pixel as {base.source.name}.")
            part.transform, part.crs = base.transform, base.crs
        elif (part.crs is None) != (base.crs is None):
            raise InputError(
                f"{source.name}: CRS {crs_text(source.crs)}, but {base.source.name} has {crs_text(base.source.crs)}. "
                "Both need one: `rio edit-info --crs EPSG:n FILE` sets it."
            )
        part.offset = _whole_pixel_offset(part, self.transform, base.crs, (self.height, self.width))
        if part is not base:
            self._report_overlap(part, base)

    def _report_overlap(self, part, base):
        names = f"{part.source.name} and {base.source.name}"
        x, y = _grid_in_pixels_of(part, self.transform, base.crs, (0, 0, self.width, self.height))
        inside = (x >= -1) & (x <= part.source.width + 1) & (y >= -1) & (y <= part.source.height + 1)
        separate = x.size == 0 or x.max() <= 0 or y.max() <= 0 or x.min() >= part.source.width
        if separate or y.min() >= part.source.height:
            raise InputError(
                f"{names} do not overlap: {_extent(part.source)} against {_extent(base.source)}. "
                "Is it the right pair, and is the CRS of both right?"
            )
        if part.offset is None:
            self.notes.append(
                f"{part.source.name}: another CRS, pixel size or origin; warped onto the optical grid."
            )
        if not inside.all():
            self.notes.append(f"{names} overlap only in part; the rest is no data.")

    @property
    def optical_format(self) -> tuple[str, float | None]:
        """What the optical file holds: (dtype that all its chosen bands fit in, nodata number or None)."""
        part = self._optical
        dtypes = [part.source.dtypes[i - 1] for i in part.indexes]
        return str(np.result_type(*dtypes)), part.nodata[0]

    def read(self, window: PixelWindow | None = None) -> Scene:
        """The pixels of `window` (x0, y0, width, height) of the grid, which may reach beyond it (NaN there)."""
        x0, y0, width, height = window or (0, 0, self.width, self.height)
        _check_size((len(self.bands), height, width), np.float32, "the scene")
        transform = self.transform * Affine.translation(x0, y0)
        base_crs = (self._optical or self._sar).crs
        image = np.full((len(self.bands), height, width), np.nan, np.float32)
        n = len(self.bands.optical)
        for part, channels in ((self._optical, image[:n]), (self._sar, image[n:])):
            if part is None:
                continue
            if part.offset is not None:
                dx, dy = part.offset
                part.read_into(channels, x0 + dx, y0 + dy)
            else:
                channels[:] = part.warp(transform, base_crs, (height, width))
        return Scene(image, transform, self.crs, self.gsd_m, list(self.notes))

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class BandReader:
    """One band of a raster in the file's numbers (elevations, say), readable on any grid.

    Attributes:
        transform, crs, width, height: of the file.
    """

    def __init__(self, path: Path, band: int = 1, nodata: float | None = None):
        """Open `path`; a context manager that closes it. Raises InputError as `open_raster` does."""
        self._source = open_raster(path, allow_vrt=True)
        self._bands = _Bands(self._source, [band], nodata, None)
        self.transform, self.crs = self._source.transform, self._source.crs
        self.width, self.height = self._source.width, self._source.height

    def onto(self, transform: Affine, crs, shape: tuple[int, int]) -> np.ndarray:
        """(H, W) float32 on the grid of `transform` and `crs` (rasterio's), warped where it differs; NaN = no data."""
        offset = _whole_pixel_offset(self._bands, transform, crs, shape)
        if offset is None:
            return self._bands.warp(transform, crs, shape)[0]
        image = np.full((1, *shape), np.nan, np.float32)
        self._bands.read_into(image, *offset)
        return image[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._source.close()


class _Bands:
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

    def _read(self, window: PixelWindow | None):
        """float32 (n, h, w) in the file's numbers, and (h, w) bool validity."""
        x0, y0, width, height = window or (0, 0, self.source.width, self.source.height)
        if x0 < 0 or y0 < 0 or x0 + width > self.source.width or y0 + height > self.source.height:
            raise InputError(
                f"{self.source.name}: {self.source.width} x {self.source.height} px; window {window} is not inside."
            )
        rows, columns = self.source.block_shapes[0]
        for shape in ((len(self.indexes), height, width), (1, rows, columns)):
            _check_size(shape, np.float32, self.source.name)
        window = Window(x0, y0, width, height)
        try:
            with rasterio.Env(**_GDAL_OPTIONS):
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
        x, y = _grid_in_pixels_of(self, transform, crs, (0, 0, shape[1], shape[0]))
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


def warp_valid(values, valid, transform, crs, to_transform, to_crs, shape):
    """Warp bands onto another grid without letting invalid pixels bleed into valid ones.

    Args:
        values: (n, h, w) float32 in units that may be averaged. valid: (h, w) bool.
        transform, crs, to_transform, to_crs: the two grids (CRS None on both sides: plain pixels or map units).
        shape: (H, W) of the result.

    Returns:
        (n, H, W) float32, and (H, W) bool: the nearest source pixel exists and is valid. Bilinear where pixels get
        smaller or stay, area-weighted average where they get larger (no aliasing).
    """
    crs, to_crs = crs or _PLAIN_CRS, to_crs or _PLAIN_CRS
    grids = {"src_transform": transform, "src_crs": crs, "dst_transform": to_transform, "dst_crs": to_crs}
    # XSCALE/YSCALE fixed: GDAL would derive the kernel's width from the window, and neighbouring windows would differ.
    exact = {"init_dest_nodata": False, "tolerance": 0, "XSCALE": 1, "YSCALE": 1}
    nearest = np.zeros(shape, np.uint8)
    reproject(valid.astype(np.uint8), nearest, resampling=Resampling.nearest, **grids, **exact)
    if _pixel_area_ratio(transform, crs, to_transform, to_crs, shape) > 1.05:
        exact = {**exact, "resampling": Resampling.average}
        del exact["XSCALE"], exact["YSCALE"]
    else:
        exact["resampling"] = Resampling.bilinear
    weighted = np.concatenate([np.where(valid, values, 0), valid[None]]).astype(np.float32)
    warped = np.zeros((len(weighted), *shape), np.float32)
    reproject(weighted, warped, **grids, **exact)
    inside = (nearest > 0) & (warped[-1] > 1e-6)
    return warped[:-1] / np.where(inside, warped[-1], 1), inside


# Map units without a CRS are metres in the plane; any projected CRS serves to say "the same on both sides".
_PLAIN_CRS = CRS.from_epsg(3857)


def resolve_bands(
    source, wanted: Sequence[str], indexes: Sequence[int] | None, option: str, notes: list[str]
):
    """1-based band indexes of `source` for the `wanted` names.

    `indexes` if given; else by band descriptions, colour interpretation or polarisation names; else the first ones,
    with a note when the file has more.

    Raises:
        InputError: fewer bands than wanted (naming both), a wrong number of indexes or one out of range, or a palette.
    """
    data = [i for i, c in enumerate(source.colorinterp, 1) if c != ColorInterp.alpha or indexes]
    found = f"{source.name}: has {len(data)} band{'s' * (len(data) != 1)} ({_band_names(source)})"
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


def _band_names(source) -> str:
    pairs = zip(source.descriptions, source.colorinterp, strict=True)
    return ", ".join(description or color.name for description, color in pairs)


def band_statistics(dataset: Dataset, bands: BandSpec | None = None, max_tiles: int = 200):
    """Mean and standard deviation per band over the valid pixels of up to `max_tiles` evenly spread tiles.

    Returns:
        (mean (C,), std (C,)) float64, in the image's units (SAR: dB); a constant band has std 1.

    Raises:
        InputError: a band has no valid pixel in any of them.
    """
    bands = bands or dataset.bands
    step = max(1, math.ceil(len(dataset.tiles) / max_tiles))
    count, total, squares = (np.zeros(len(bands)) for _ in range(3))
    for tile in dataset.tiles[::step]:
        image = read_tile(dataset, tile, bands).astype(np.float64)
        count += np.isfinite(image).sum(axis=(1, 2))
        total += np.nansum(image, axis=(1, 2))
        squares += np.nansum(image**2, axis=(1, 2))
    if not count.all():
        name = bands.names[int(np.argmin(count))]
        raise InputError(
            f"{dataset.root}: band {name!r} has no valid pixel in {len(dataset.tiles[::step])} tiles."
        )
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean, np.where(std > 1e-6, std, 1.0)


def crs_text(crs) -> str | None:
    """The CRS as "EPSG:n" where there is a code, else as WKT; None for none."""
    return crs.to_string() if crs else None


def metric_crs(crs: str, x: float, y: float) -> str:
    """A CRS near the point (x, y) of `crs` in which a metre is a metre within 1 %.

    `crs` itself if it is projected, in metres, and true to scale there (Web Mercator is not); else the UTM zone.
    """
    try:
        projected = ProjCRS.from_user_input(crs)
        lon, lat = Transformer.from_crs(projected, "EPSG:4326", always_xy=True).transform(x, y)
    except ProjError as error:
        raise InputError(
            f"the CRS {crs[:80]!r} cannot be placed on earth ({error}). Assign the right one."
        ) from None
    if not (math.isfinite(lon) and math.isfinite(lat)):
        raise InputError(f"the point ({x}, {y}) is not a place in {projected.name}. Is the CRS right?")
    if projected.is_projected and all(axis.unit_conversion_factor == 1 for axis in projected.axis_info[:2]):
        back = Transformer.from_crs(projected, "EPSG:4326", always_xy=True)
        lons, lats = back.transform([x - 50, x + 50, x, x], [y, y, y - 50, y + 50])
        _, _, metres = Geod(ellps="WGS84").inv(lons[::2], lats[::2], lons[1::2], lats[1::2])
        if max(abs(m / 100 - 1) for m in metres) < 0.01:
            return crs
    zone = min(60, max(1, int((lon + 180) // 6) + 1))
    return f"EPSG:{(32600 if lat >= 0 else 32700) + zone}"


def axis_gsd_m(transform, crs: str | None, width: int, height: int) -> tuple[float, float]:
    """Ground distance of one column and of one row step at the raster's centre, metres; see `gsd_m_of`."""
    affine = Affine(*tuple(transform)[:6])
    if crs is None:
        if affine.is_identity:
            raise InputError(
                "the raster has neither a CRS nor a pixel size. Pass its pixel size in metres: --gsd."
            )
        return math.hypot(affine.a, affine.d), math.hypot(affine.b, affine.e)
    points = [affine * (width / 2 + dx, height / 2 + dy) for dx, dy in ((0, 0), (1, 0), (0, 1))]
    metric = metric_crs(crs, *points[0])
    if metric != crs:
        convert = Transformer.from_crs(crs, metric, always_xy=True)
        points = [convert.transform(*p) for p in points]
    (x, y), *steps = points
    return tuple(math.hypot(px - x, py - y) for px, py in steps)


def gsd_m_of(transform, crs: str | None, width: int, height: int) -> float:
    """Metres per pixel at the raster's centre, geometric mean of both directions.

    Degrees, feet and Web Mercator go through the local UTM zone. Without a CRS, map units are taken as metres.

    Raises:
        InputError: neither CRS nor pixel size.
    """
    return math.sqrt(math.prod(axis_gsd_m(transform, crs, width, height)))


def _grid_in_pixels_of(part, transform, crs, window, steps: int = 21):
    """Finite pixel coordinates x, y in `part`'s file of a lattice over `window` of the grid (transform, crs)."""
    x0, y0, width, height = window
    u, v = (
        a.ravel()
        for a in np.meshgrid(np.linspace(x0, x0 + width, steps), np.linspace(y0, y0 + height, steps))
    )
    x, y = transform * (u, v)
    if part.crs != crs:
        convert = Transformer.from_crs(ProjCRS(crs.to_wkt()), ProjCRS(part.crs.to_wkt()), always_xy=True)
        x, y = convert.transform(x, y)
    finite = np.isfinite(x) & np.isfinite(y)
    return ~part.transform * (x[finite], y[finite])


def _whole_pixel_offset(part, transform, crs, shape) -> tuple[int, int] | None:
    """(dx, dy) such that grid pixel (x, y) is the file's (x + dx, y + dy) everywhere; None if it has to be warped."""
    if part.crs != crs:
        return None
    height, width = shape
    corners = np.array([(0, 0), (width, 0), (0, height), (width, height)], float)
    there = np.array([~part.transform * (transform * tuple(c)) for c in corners])
    shift = there - corners
    offset = np.round(shift.mean(axis=0))
    if np.abs(shift - offset).max() > SAME_GRID_PX:
        return None
    return int(offset[0]), int(offset[1])


def _pixel_area_ratio(transform, crs, to_transform, to_crs, shape) -> float:
    """Area of a target pixel in source pixels, at the target's centre."""
    points = [to_transform * (shape[1] / 2 + dx, shape[0] / 2 + dy) for dx, dy in ((0, 0), (1, 0), (0, 1))]
    if crs != to_crs:
        convert = Transformer.from_crs(ProjCRS(to_crs.to_wkt()), ProjCRS(crs.to_wkt()), always_xy=True)
        points = [convert.transform(*p) for p in points]
    (x, y), (x1, y1), (x2, y2) = (~transform * p for p in points)
    return abs((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y))


def _check_band_count(source, known: Sequence[str], path) -> None:
    if source.count < len(known):
        raise InputError(
            f"{path}: has {source.count} band{'s' * (source.count != 1)} ({_band_names(source)}), but the dataset says "
            f"{len(known)}: {', '.join(known)}."
        )


def _check_size(shape, dtype, name) -> None:
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


def _extent(source) -> str:
    left, bottom, right, top = source.bounds
    return f"x {left:.6g}..{right:.6g}, y {bottom:.6g}..{top:.6g} ({crs_text(source.crs) or 'no CRS'})"
