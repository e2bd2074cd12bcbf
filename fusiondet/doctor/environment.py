"""Does this environment work? Versions, device and small real operations, each with what to do when it fails.

Imports nothing but the standard library until a check runs, so that it can report a missing torch or GDAL.
"""

import importlib
import importlib.metadata
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fusiondet.errors import InputError

_MAKE_SETUP = (
    "Run `make setup` in the fusiondet checkout, or `pip install -r requirements.txt -c constraints.txt`."
)
_FIT = "torch and torchvision must fit: `pip install --upgrade torch torchvision`, both in one command."
_DETECTRON2 = "Run `python tools/install_detectron2.py` in the fusiondet checkout."
_PROJ = "Another PROJ or GDAL gets in the way: unset PROJ_LIB, PROJ_DATA, GDAL_DATA."


@dataclass(frozen=True)
class Check:
    """Outcome of one check.

    Attributes:
        name: what was checked.
        ok: whether it works.
        detail: versions or findings; for a failure, the error in one line.
        remedy: what to do about a failure; empty when `ok`, or when `detail` says it already.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def diagnose() -> list[Check]:
    """Run every check; a failure of one, whatever it is, does not stop the others. Takes some seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old Detectron2 on a new torch: nothing the user can act on
        return [_check(name, function, remedy) for name, function, remedy in _CHECKS]


def report(checks: list[Check]) -> str:
    """The checks as lines of text, failures with their remedy, and a last line that sums up."""
    lines = []
    for check in checks:
        lines.append(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
        if check.remedy:
            lines.append(f"      -> {check.remedy}")
    failed = sum(not check.ok for check in checks)
    verdict = f"{failed} of {len(checks)} checks failed." if failed else f"All {len(checks)} checks passed."
    return "\n".join([*lines, verdict])


def _check(name: str, function: Callable[[], str], remedy: str) -> Check:
    try:
        return Check(name, True, function())
    except InputError as error:  # made for the user: complete as it is
        return Check(name, False, str(error))
    except ModuleNotFoundError as error:
        return Check(name, False, f"{error.name} is not installed", _MAKE_SETUP)
    except Exception as error:  # whatever breaks an import or an operation is what this is to report
        what = " ".join(str(error).split())
        return Check(name, False, f"{type(error).__name__}: {what}"[:300], remedy)


def _python() -> str:
    if sys.version_info < (3, 10):  # noqa: UP036  # installed or not, the tool runs
        raise RuntimeError(f"found {platform.python_version()}, expected 3.10 or later")
    return f"{platform.python_version()} ({sys.executable}) on {platform.platform()}"


def _versions(*modules: str) -> str:
    return ", ".join(f"{module} {_version(importlib.import_module(module))}" for module in modules)


def _version(module) -> str:
    known = getattr(module, "__version__", None)
    return known or importlib.metadata.version(module.__name__)


def _fusiondet() -> str:
    import fusiondet

    return f"{fusiondet.__version__} in {Path(fusiondet.__file__).parent}"


def _torch() -> str:
    return _versions("torch", "torchvision")


def _arrays() -> str:
    return _versions("numpy", "scipy", "cv2", "PIL", "matplotlib")


def _geo() -> str:
    import rasterio
    import shapely

    found = _versions("rasterio", "shapely", "geopandas", "pyogrio", "pyproj", "pyarrow")
    return f"{found}; GDAL {rasterio.__gdal_version__}, GEOS {shapely.geos_version_string}"


def _coco() -> str:
    importlib.import_module("faster_coco_eval")
    names = ("pycocotools", "faster-coco-eval")
    importlib.import_module("pycocotools.mask")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _detectron2() -> str:
    from fusiondet import compat  # has to come before detectron2

    import detectron2
    import detectron2.engine
    import detectron2.modeling

    compiled = "not compiled (rotated boxes and deformable convolution are missing; fusiondet uses neither)"
    if importlib.util.find_spec("detectron2._C") and "detectron2._C" not in compat.applied:
        compiled = "compiled"
    shims = ", ".join(compat.applied) or "none"
    return (
        f"{detectron2.__version__} in {Path(detectron2.__file__).parent}, {compiled}; shims needed: {shims}"
    )


def _device() -> str:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = f"CPU with {cores} cores, {torch.get_num_threads()} threads"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    named = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus)
    return f"{named}; {cpu}" if gpus else f"{cpu}; no GPU, so use the small CPU configs (configs/synthetic/)"


def _devices() -> list[str]:
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _nms() -> str:
    import torch
    from torchvision.ops import nms

    for device in _devices():
        boxes_xyxy = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30]], dtype=torch.float32)
        kept = nms(boxes_xyxy.to(device), torch.tensor([0.9, 0.8, 0.7], device=device), 0.5).tolist()
        _expect(kept == [0, 2], f"kept boxes {kept} on {device}, expected [0, 2]")
    return _works_on()


def _roi_align() -> str:
    import torch
    from torchvision.ops import roi_align

    for device in _devices():
        ramp = torch.arange(8.0, device=device).expand(1, 1, 8, 8) + 0.5  # value = x of the sample
        box = torch.tensor([[0.0, 2.0, 2.0, 6.0, 6.0]], device=device)
        mean = roi_align(ramp, box, output_size=1, aligned=True).item()
        _expect(abs(mean - 4.0) < 1e-4, f"centre of the box read as x = {mean} on {device}, expected 4")
    return _works_on()


def _backbone() -> str:
    """Forward and backward of an R-18 FPN with a 4-channel stem: optical plus one SAR band."""
    from fusiondet import compat  # noqa: F401  # has to come before detectron2

    import torch
    from detectron2.modeling.backbone import FPN, ResNet
    from detectron2.modeling.backbone.resnet import BasicStem

    for device in _devices():
        stages = ResNet.make_default_stages(18, norm="BN")
        bottom_up = ResNet(BasicStem(4, 64, norm="BN"), stages, out_features=["res2", "res3", "res4", "res5"])
        model = FPN(bottom_up, ["res2", "res3", "res4", "res5"], out_channels=8).to(device)
        features = model(torch.rand(2, 4, 64, 64, device=device))
        sum(feature.square().mean() for feature in features.values()).backward()
        gradient = bottom_up.stem.conv1.weight.grad
        _expect(tuple(gradient.shape) == (64, 4, 7, 7), f"stem gradient has shape {tuple(gradient.shape)}")
        _expect(
            bool(gradient.isfinite().all() and gradient.any()),
            f"stem gradient is zero or not finite on {device}",
        )
    return _works_on()


def _works_on() -> str:
    return "works on " + " and ".join(_devices())


def _projection() -> str:
    from pyproj import Transformer

    lon, lat = Transformer.from_crs(32631, 4326, always_xy=True).transform(500000.0, 0.0)
    _expect(
        abs(lon - 3) < 1e-9 and abs(lat) < 1e-9, f"UTM 31N origin is at {lon}, {lat}, expected 3, 0 degrees"
    )
    return "UTM to WGS 84 works"


def _geotiff() -> str:
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin

    pixels = np.arange(4 * 3 * 2, dtype="float32").reshape(4, 3, 2)
    profile = dict(driver="GTiff", count=4, height=3, width=2, dtype="float32", crs="EPSG:32631")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "check.tif")
        with rasterio.open(path, "w", transform=from_origin(5e5, 5.5e6, 0.5, 0.5), **profile) as raster:
            raster.write(pixels)
        with rasterio.open(path) as raster:
            _expect(np.array_equal(raster.read(), pixels), "pixels changed between writing and reading")
            _expect(raster.crs.to_epsg() == 32631, f"CRS read back as {raster.crs}")
    return "4 bands written and read back"


def _gpkg() -> str:
    import geopandas
    from shapely.geometry import box

    layer = geopandas.GeoDataFrame({"height_m": [7.5]}, geometry=[box(0, 0, 10, 20)], crs="EPSG:32631")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "check.gpkg")
        layer.to_file(path, driver="GPKG", engine="pyogrio")
        read = geopandas.read_file(path, engine="pyogrio")
    same = read.geometry[0].equals(layer.geometry[0]) and read.height_m[0] == 7.5
    _expect(same and read.crs == layer.crs, "a building changed between writing and reading")
    return "building written and read back"


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


_CHECKS = (
    ("Python", _python, "Make the environment with Python 3.10 or later: `make setup PYTHON=python3.11`."),
    ("fusiondet", _fusiondet, _MAKE_SETUP),
    ("torch and torchvision", _torch, _FIT),
    ("arrays and pictures", _arrays, _MAKE_SETUP),
    ("rasters and vectors", _geo, _MAKE_SETUP),
    ("COCO scores", _coco, _MAKE_SETUP),
    ("Detectron2", _detectron2, _DETECTRON2),
    ("device", _device, _FIT),
    ("nms", _nms, _FIT),
    ("roi_align", _roi_align, _FIT),
    ("4-channel backbone, forward and backward", _backbone, _FIT),
    ("map projection", _projection, _PROJ),
    ("GeoTIFF", _geotiff, _PROJ),
    ("GPKG", _gpkg, _PROJ),
)
