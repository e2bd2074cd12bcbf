"""Changes of rasters: driver, type, size, values, georeference, tags, bytes."""

import contextlib
import random
import warnings
from pathlib import Path

from tests.fuzz.mutations import NASTY_WORDS, change_bytes
from tests.fuzz.vectors import CRSS

import numpy as np
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

_TYPES = (
    "uint8",
    "int8",
    "uint16",
    "int16",
    "int32",
    "uint32",
    "int64",
    "float32",
    "float64",
    "complex64",
    "complex_int16",
)
_NUMBERS = (0, 1, -1, 255, 65535, -9999, 1e-30, 1e38, -3.4e38, 1e300, float("nan"), float("inf"))


def change(path: Path, rng: random.Random) -> None:
    """Write the raster anew with one to three changes, or damage its bytes."""
    if rng.random() < 0.25:
        change_bytes(path, rng)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if rng.random() < 0.06:
            _write_otherwise(path, rng)
            return
        with rasterio.open(path) as source:
            profile, values = dict(source.profile), source.read()
        extras = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            values = rng.choice(_CHANGES)(values, profile, extras, rng)
        with contextlib.suppress(Exception):
            _write(path, values, profile, extras)


def _write(path: Path, values: np.ndarray, profile: dict, extras: list) -> None:
    new = path.with_name(f"new{path.suffix}")
    if profile["driver"] in ("PNG", "JPEG", "GTiff"):
        profile = {
            k: v for k, v in profile.items() if k in ("driver", "crs", "transform", "nodata", "gcps", "rpcs")
        }
    shape = {"count": len(values), "height": values.shape[1], "width": values.shape[2]}
    try:
        with rasterio.open(
            new, "w", **{**profile, **shape, "dtype": profile.pop("dtype", values.dtype)}
        ) as f:
            f.write(values)
            for extra in extras:
                with contextlib.suppress(Exception):
                    extra(f)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _other_type(values, profile, extras, rng):
    name = rng.choice(_TYPES)
    with np.errstate(all="ignore"):
        return values.astype("complex64" if name == "complex_int16" else name)


def _other_values(values, profile, extras, rng):
    number, share = rng.choice(_NUMBERS), rng.choice((1.0, 0.5, 0.01, 0.0001))
    draw = np.random.default_rng(rng.randrange(2**32))
    if rng.random() < 0.3:
        values = values.astype("float32")
    with np.errstate(all="ignore"):
        return np.where(draw.random(values.shape) <= share, np.asarray(number).astype(values.dtype), values)


def _other_scale(values, profile, extras, rng):
    with np.errstate(all="ignore"):
        return (values * rng.choice((1e-6, 257, 1e4, -1, 0))).astype(
            rng.choice(("float32", "uint16", values.dtype.name))
        )


def _other_size(values, profile, extras, rng):
    height, width = rng.choice(((1, 1), (1, 96), (96, 1), (3, 2), (31, 33), (200, 70), (96, 97)))
    return np.resize(values, (len(values), height, width))


def _other_bands(values, profile, extras, rng):
    return np.resize(values, (rng.choice((1, 2, 3, 4, 5, 13, 70)), *values.shape[1:]))


def _nodata(values, profile, extras, rng):
    profile["nodata"] = rng.choice((None, *_NUMBERS))
    return values


def _crs(values, profile, extras, rng):
    profile["crs"] = rng.choice((None, *CRSS))
    return values


def _transform(values, profile, extras, rng):
    a = profile.get("transform") or Affine.identity()
    profile["transform"] = rng.choice(
        (
            *(
                Affine.identity(),
                Affine(0, 0, 0, 0, 0, 0),
                a * Affine.rotation(30),
                a * Affine.scale(1, -1),
                None,
            ),
            *(a * Affine.scale(1e-9), a * Affine.scale(1e9), a * Affine.scale(3, 1), a * Affine.scale(-1, 1)),
            *(
                Affine(float("nan"), 0, 0, 0, -1, 0),
                Affine(1, 0, float("inf"), 0, -1, 0),
                Affine(1, 1, 0, 1, 1, 0),
            ),
            *(
                Affine.translation(1e300, 0) * a,
                Affine.translation(1e7, 1e7) * a,
                Affine.translation(0.25, 0.25) * a,
            ),
        )
    )
    return values


def _control_points(values, profile, extras, rng):
    profile["transform"] = None
    if rng.random() < 0.5:
        corners = ((0, 0), (0, 96), (96, 0), (96, 96))
        profile["gcps"] = [GroundControlPoint(r, c, 600_000 + c / 2, 5_800_000 - r / 2) for r, c in corners]
    else:
        one, number = [1.0] + [0.0] * 19, [0.0, 1.0] + [0.0] * 18
        profile["rpcs"] = RPC(0, 1, 52, 1, one, number, 48, 48, 3, 1, one, number, 48, 48, 1, 1)
    return values


def _tags(values, profile, extras, rng):
    word = rng.choice(NASTY_WORDS)
    number = rng.choice(_NUMBERS)
    extras.append(
        rng.choice(
            (
                lambda f: setattr(f, "scales", (number,) * f.count),
                lambda f: setattr(f, "offsets", (number,) * f.count),
                lambda f: setattr(f, "units", (rng.choice(("m", "ft", "US survey foot", word)),) * f.count),
                lambda f: setattr(f, "descriptions", (rng.choice(("HH", "red", "blue", word)),) * f.count),
                lambda f: f.update_tags(1, STATISTICS_MINIMUM=word, STATISTICS_MAXIMUM=word),
                lambda f: f.update_tags(AREA_OR_POINT="Point", CALIBRATION=word),
                lambda f: f.write_mask(np.zeros(f.shape, bool)),
                lambda f: f.build_overviews([2, 4]),
                lambda f: f.write_colormap(1, {0: (1, 2, 3, 4), 7: (9, 9, 9, 0)}),
            )
        )
    )
    return values


def _driver(values, profile, extras, rng):
    profile["driver"] = rng.choice(("GTiff", "PNG", "JPEG", "ENVI", "HFA", "JP2OpenJPEG", "netCDF"))
    return values


_CHANGES = (
    *(
        _other_type,
        _other_values,
        _other_values,
        _other_scale,
        _other_size,
        _other_bands,
        _nodata,
        _crs,
        _transform,
    ),
    *(_transform, _control_points, _tags, _tags, _driver),
)


def _write_otherwise(path: Path, rng: random.Random) -> None:
    """What is no usual raster: a header of a vast image, a VRT, a text."""
    if rng.random() < 0.4:
        side = rng.choice((70_000, 1 << 20, (1 << 31) - 1))
        # Sparse, so that it is small; large blocks keep its index small, too.
        blocks = {
            "tiled": True,
            "blockxsize": 4096,
            "blockysize": 4096,
            "SPARSE_OK": "TRUE",
            "BIGTIFF": "YES",
        }
        shape = {"count": rng.choice((1, 3)), "height": side, "width": side, "dtype": "uint8"}
        with contextlib.suppress(Exception), rasterio.open(path, "w", driver="GTiff", **shape, **blocks):
            pass
        return
    sources = (path.name, "missing.tif", "/dev/zero", "/vsicurl/http://127.0.0.1:9/a.tif", "../train.yaml")
    path.write_text(
        f'<VRTDataset rasterXSize="96" rasterYSize="{rng.choice((96, -1, 2**31 - 1))}">'
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">'
        f"{rng.choice(sources)}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
