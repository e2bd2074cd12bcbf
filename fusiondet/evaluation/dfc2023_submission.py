"""A submission to Track 2 of the 2023 IEEE GRSS Data Fusion Contest (DFC2023): written, and any zip read.

    seg_results.json              COCO results: image_id of the contest's JSON, category_id, score, compressed RLE
    height/<name of image>.tif    float32 metres above ground per pixel, the size of the image; 0 is no building

Zips are untrusted: members are looked up by their expected name and read into memory under a cap of size, none is ever
unpacked under a name of its own. What is wrong with one is a finding, counted and named, and scoring goes on with the
rest; see `FINDINGS`.
"""

import json
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from fusiondet.cli import progress
from fusiondet.errors import InputError
from fusiondet.evaluation.dense import MAP_SCORE, painted
from fusiondet.evaluation.instances import scored_images
from fusiondet.files import atomic_path
from fusiondet.io.rasters import open_raster

import numpy as np

SEGMENTATIONS, HEIGHTS = "seg_results.json", "height"
# The contest's scorer looks at no more of an image.
MAX_INSTANCES = 1000
# 605 tiles with 1000 instances of 300 bytes each are 0.2 GiB.
_MAX_JSON_BYTES = 512 << 20
_MAX_MEMBERS = 100_000
_NAMES_SHOWN = 5

# What can be wrong with a submission, and what the contest's scorer makes of it: True, it stops with a traceback.
FINDINGS: dict[str, tuple[str, bool]] = {
    "nested_folder": ("a folder above seg_results.json and height/: zip its content instead", True),
    "backslash": ("member names with \\ instead of /", True),
    "unsafe_name": ("members whose names lead out of the zip; not read", False),
    "unexpected_member": ("members that are neither seg_results.json nor height/<name of image>.tif", False),
    "twice": ("members that are there twice; the last one counts", False),
    "no_instances": ("no list of instances in seg_results.json", True),
    "broken_record": (
        "instances without a usable image_id, category_id, score or segmentation; left out",
        True,
    ),
    "unknown_image": ("instances of images that the annotations do not list; left out", True),
    "other_category": ("instances of another category than building; left out", False),
    "uncompressed_mask": ("masks that are polygons or uncompressed RLE; rasterised here", True),
    "broken_mask": ("masks with damaged runs; they count as false positives", True),
    "mask_size": ("masks of another size than their image; they count as false positives", False),
    "unknown_tile": ("files in height/ that no image has the name of; left out", True),
    "unreadable_tile": ("height rasters that cannot be read; left out", True),
    "wrong_shape": ("height rasters of another size or with several bands; left out", True),
    "missing_tile": ("images without a height raster; the contest's delta1 leaves them out", False),
    "nan_height": ("height rasters with NaN or infinite pixels; those pixels are wrong", False),
    "negative_height": ("height rasters with negative pixels; they are taken for 999 m", False),
    "whole_metres": ("height rasters of whole numbers, whose zeros are never right", False),
}


class Findings:
    """What was wrong, by kind. `strict`: the first one is an InputError."""

    def __init__(self, source: str, strict: bool = False):
        """`source`: what the findings are about, for messages."""
        self._source, self._strict = source, strict
        self._names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """One more of `kind` in `FINDINGS`; `name`: the member, tile or record, with details."""
        if self._strict:
            raise InputError(
                f"{self._source}: {FINDINGS[kind][0]}: {name}. Without `strict` it is counted, and the rest is scored."
            )
        self._names.setdefault(kind, []).append(name)

    @property
    def counts(self) -> dict[str, int]:
        """Kind -> how many, only of kinds that were found."""
        return {kind: len(names) for kind, names in self._names.items()}

    @property
    def stops_scorer(self) -> bool:
        """Whether the contest's scorer gives this submission no score at all."""
        return any(FINDINGS[kind][1] for kind in self._names)

    def lines(self) -> list[str]:
        """A line per kind: how many, what, the first names."""
        lines = []
        for kind, names in self._names.items():
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            what, stops = FINDINGS[kind]
            stops = " [the contest's scorer stops here]" if stops else ""
            lines.append(f"{len(names)} {what}{stops}: {', '.join(names[:_NAMES_SHOWN])}{more}")
        return lines


class ZippedSubmission:
    """A zip, opened; a context manager.

    Attributes:
        findings: what was wrong so far.
        records: content of seg_results.json, unchecked; empty where there is no such list.
        height_names: names of the rasters in height/.
    """

    def __init__(self, path: Path, findings: Findings):
        """Open `path` and read its segmentations.

        Raises:
            InputError: not a zip, or one of an absurd number of members. With strict findings: the first one.
        """
        self.path, self.findings = Path(path), findings
        self._zip = _opened(self.path)
        try:
            self._members = self._sorted_out(self._zip.infolist())
            self.records = self._read_records()
        except BaseException:
            self._zip.close()
            raise
        prefix = f"{HEIGHTS}/"
        self.height_names = [name[len(prefix) :] for name in self._members if name.startswith(prefix)]

    def read_height(self, name: str, shape: tuple[int, int]) -> np.ndarray | None:
        """Height raster `name` in the file's own numbers, (H, W); None, with a finding, where it cannot be used.

        Args:
            shape: (H, W) of its image.
        """
        member = self._members[f"{HEIGHTS}/{name}"]
        data = self._read(member, 32 * shape[0] * shape[1] + (8 << 20), "unreadable_tile", name)
        if data is None:
            return None
        # GDAL is given a file of ours: the name in the zip has no say in where it lies or how it is opened.
        with tempfile.TemporaryDirectory(prefix="fusiondet-") as folder:
            (file := Path(folder) / "height.tif").write_bytes(data)
            return read_plain_raster(file, shape, name, self.findings)

    def _sorted_out(self, members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        """Expected name -> member."""
        files = {}
        for member in members:
            name = member.filename
            if "\\" in name:
                self.findings.add("backslash", name)
                name = name.replace("\\", "/")
            parts = PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts or PureWindowsPath(name).drive:
                self.findings.add("unsafe_name", name)
            elif not name.endswith("/") and "__MACOSX" not in parts:
                if name in files:
                    self.findings.add("twice", name)
                files[name] = member
        return self._expected(files)

    def _expected(self, files: dict[str, zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        above = "" if SEGMENTATIONS in files else _folder_above(files)
        if above:
            self.findings.add("nested_folder", above)
        expected = {}
        for name, member in files.items():
            inner = name[len(above) :] if name.startswith(above) else name
            if inner == SEGMENTATIONS or (inner.startswith(f"{HEIGHTS}/") and inner.count("/") == 1):
                expected[inner] = member
            elif PurePosixPath(name).name != ".DS_Store":
                self.findings.add("unexpected_member", name)
        return expected

    def _read_records(self) -> list:
        member = self._members.get(SEGMENTATIONS)
        if member is None:
            self.findings.add("no_instances", f"{SEGMENTATIONS} is missing")
            return []
        data = self._read(member, _MAX_JSON_BYTES, "no_instances", SEGMENTATIONS)
        if data is None:
            return []
        try:
            records = json.loads(data, parse_int=_parse_int)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            self.findings.add("no_instances", f"{SEGMENTATIONS} is not valid JSON ({error})")
            return []
        if not isinstance(records, list) or not records:
            what = "is empty" if records == [] else f"holds {type(records).__name__}, not a list"
            self.findings.add("no_instances", f"{SEGMENTATIONS} {what}")
            return []
        return records

    def _read(self, member: zipfile.ZipInfo, cap: int, kind: str, name: str) -> bytes | None:
        if member.file_size > cap:
            self.findings.add(kind, f"{name} ({member.file_size} bytes unpacked, more than {cap})")
            return None
        try:
            # zipfile stops at the size that the zip declares, whatever the stream would go on to give.
            return self._zip.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
            self.findings.add(kind, f"{name} (damaged: {error})")
        except (RuntimeError, NotImplementedError) as error:  # encrypted; a compression of another program
            self.findings.add(kind, f"{name} ({error})")
        return None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._zip.close()


class PaintedSubmission:
    """Predicted instances as a submission: each painted with its own height; exactly 0 elsewhere.

    Attributes: those of `ZippedSubmission`.
    """

    def __init__(
        self,
        document: dict,
        records: list[dict],
        names: Mapping[int | str, str],
        findings: Findings,
        category_id: int = 1,
        score_threshold: float | None = None,
    ):
        """Check `records`, COCO results with `height_m`.

        Args:
            document: COCO annotations; their images' ids are those of `records`. Its annotations play no role.
            names: image id -> name of its height raster.
            category_id: what the contest's JSON calls a building.
            score_threshold: instances from this score on are painted, all are listed; None: `dense.MAP_SCORE`.

        Raises:
            InputError: a record of an image that is not listed, or one that is broken, as in `evaluate_instances`.
        """
        self.findings = findings
        self._threshold = MAP_SCORE if score_threshold is None else score_threshold
        self._images = {
            names[image.image_id]: image
            for image in scored_images({**document, "annotations": []}, records, MAX_INSTANCES)
        }
        self.height_names = list(self._images)
        self.records = [
            _plain_record(record, category_id) for image in self._images.values() for record in image.records
        ]
        self.without_height = sum(
            record.get("height_m") is None and record["score"] >= self._threshold
            for image in self._images.values()
            for record in image.records
        )

    def read_height(self, name: str, shape: tuple[int, int]) -> np.ndarray:
        """(H, W) float32 metres, 0 where no instance of known height is."""
        return painted(self._images[name].records, shape, self._threshold)[0]


def write_submission(
    submission: PaintedSubmission, shapes: Mapping[str, tuple[int, int]], path: Path
) -> None:
    """Write `submission` as the zip `path`, whole or not at all; the same input gives the same bytes.

    Args:
        shapes: name of a height raster -> (H, W), of every image.
    """
    records = json.dumps(submission.records, allow_nan=False).encode()
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr(_member(SEGMENTATIONS), records, zipfile.ZIP_DEFLATED)
        for name, shape in progress(shapes.items(), label="write heights"):
            raster = _geotiff(submission.read_height(name, shape))
            archive.writestr(_member(f"{HEIGHTS}/{name}"), raster, zipfile.ZIP_STORED)


def read_plain_raster(
    path: Path, shape: tuple[int, int], name: str, findings: Findings | None = None
) -> np.ndarray | None:
    """(H, W) numbers of the only band of `path` as they are: no nodata, no scale, dtype of the file.

    Args:
        shape: the (H, W) that it has to have.
        name: what messages call it.
        findings: where to say what is wrong, and return None; None: an InputError says it.
    """
    import rasterio
    from rasterio.errors import RasterioError

    kind, error = "unreadable_tile", None
    try:
        with open_raster(path) as source:
            if (source.count, source.height, source.width) != (1, *shape):
                kind = "wrong_shape"
                found = f"{source.count} x {source.height} x {source.width}"
                raise InputError(f"{found} (bands, height, width), expected 1 x {shape[0]} x {shape[1]}")
            if source.dtypes[0].startswith("complex"):
                raise InputError("complex numbers")
            with rasterio.Env(GDAL_NUM_THREADS="1"):
                return source.read(1)
    except RasterioError as e:
        error = f"damaged: {e.__cause__ or e}"
    except InputError as e:
        error = str(e).removeprefix(f"{path}: ")
    if findings is None:
        raise InputError(f"{name}: {error.rstrip('.')}. Heights are read from a GeoTIFF of one band.")
    findings.add(kind, f"{name} ({error.rstrip('.')})")
    return None


def _opened(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise InputError(
            f"{path}: {'is a directory' if path.is_dir() else 'no such file'}; expected a zip of {SEGMENTATIONS} and "
            f"{HEIGHTS}/*.tif."
        )
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise InputError(f"{path}: not a zip, or a damaged one ({error}). Make it again.") from None
    if len(archive.infolist()) > _MAX_MEMBERS:
        archive.close()
        raise InputError(
            f"{path}: has {len(archive.infolist())} members; more than {_MAX_MEMBERS} are refused."
        )
    return archive


def _parse_int(text: str) -> int | float:
    """A whole number of JSON; one that no computation takes becomes a float, maybe infinite."""
    return int(text) if len(text) < 19 else float(text)


def _folder_above(names: Iterable[str]) -> str:
    """`folder/` of the member that is called as the segmentations are, or that most height rasters lie below; ""."""
    names = list(names)
    above = [name[: -len(SEGMENTATIONS)] for name in names if name.endswith(f"/{SEGMENTATIONS}")]
    if not above:
        parts = [PurePosixPath(name).parts for name in names]
        above = ["/".join(p[:-2]) + "/" for p in parts if len(p) > 2 and p[-2] == HEIGHTS]
    return Counter(above).most_common(1)[0][0] if above else ""


def _plain_record(record: dict, category_id: int) -> dict:
    rle = record["segmentation"]
    counts = rle["counts"].decode("ascii") if isinstance(rle["counts"], bytes) else rle["counts"]
    return {
        "image_id": record["image_id"],
        "category_id": category_id,
        "score": float(record["score"]),
        "bbox": [float(v) for v in record["bbox"]],
        "segmentation": {"size": [int(n) for n in rle["size"]], "counts": counts},
    }


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)  # dated 1980, so that the same input gives the same bytes
    info.external_attr = 0o644 << 16
    return info


def _geotiff(height_m: np.ndarray) -> bytes:
    from rasterio.io import MemoryFile

    height, width = height_m.shape
    options = {"compress": "DEFLATE", "predictor": 3}
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", count=1, height=height, width=width, dtype="float32", **options
        ) as f:
            f.write(height_m.astype(np.float32), 1)
        return memory.read()
