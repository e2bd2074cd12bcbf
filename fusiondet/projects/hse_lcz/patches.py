"""Patches of satellite images, labelled as a whole: HDF5 files of So2Sat LCZ42's layout, read where they lie.

So2Sat LCZ42 (Zhu et al. 2020, https://doi.org/10.1109/MGRS.2020.2964708) has, of N patches of 32 x 32 px at 10 m:

    sen1   (N, 32, 32, 8)    Sentinel-1: `SAR_BANDS`
    sen2   (N, 32, 32, 10)   Sentinel-2 reflectances: `OPTICAL_BANDS`
    label  (N, 17)           one-hot local climate zone: `LCZ_CLASSES`

The human settlement extent (HSE), a share in [0, 1] per patch, is not in these files: it comes as an array of N numbers
(.npy, or a data set of an HDF5 file), NaN where it is unknown.

A split is a small JSON, `<source>/annotations/<split>.json`, where tiles have a COCO file; "info.kind" is "patches":

    {"info": {"kind": "patches", "generated": false, ...},
     "patches": {"file_name": "hdf5/train.h5", "count": 352366},
     "hse": {"file_name": "hse/train.npy"}}      or null; "dataset": name in an HDF5 file

File names are relative to `<source>`. HDF5 files are untrusted: what leads to other files is refused.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusiondet.errors import InputError, unknown_name
from fusiondet.files import read_json, safe_join
from fusiondet.io.coco import image_root

import h5py
import numpy as np

KIND = "patches"
SIZE_PX, GSD_M = 32, 10.0
OPTICAL_BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
# Real and imaginary part of the unfiltered signal, its filtered intensity, and the off-diagonal element of the filtered
# covariance matrix.
SAR_BANDS = ("VH_real", "VH_imag", "VV_real", "VV_imag", "VH", "VV", "VHVV_real", "VHVV_imag")
# Linear power, which becomes dB on reading; what is below the floor is noise, or nothing.
_INTENSITIES, _FLOOR_POWER = ("VH", "VV"), 1e-5
LCZ_CLASSES = (
    "compact_high_rise", "compact_mid_rise", "compact_low_rise", "open_high_rise", "open_mid_rise", "open_low_rise",
    "lightweight_low_rise", "large_low_rise", "sparsely_built", "heavy_industry", "dense_trees", "scattered_trees",
    "bush_scrub", "low_plants", "bare_rock_or_paved", "bare_soil_or_sand", "water",
)  # fmt: skip
_SHAPES = {
    "sen1": (SIZE_PX, SIZE_PX, len(SAR_BANDS)),
    "sen2": (SIZE_PX, SIZE_PX, len(OPTICAL_BANDS)),
    "label": (len(LCZ_CLASSES),),
}
# A patch has 80 kB: chunks above this are mostly read in vain.
_LARGE_CHUNK_BYTES = 2**20
# Rows of labels that are checked at a time, and patches that statistics are taken of, at most.
_ROWS, _SAMPLE = 65536, 4096


@dataclass
class PatchSplit:
    """The patches of one split: labels in memory, pixels read when they are asked for.

    Attributes:
        path: the JSON. file: the HDF5 file.
        lcz: (N,) int64 index into LCZ_CLASSES. hse: (N,) float32 in [0, 1], NaN where unknown.
        info: as in the JSON.
    """

    path: Path
    file: Path
    lcz: np.ndarray
    hse: np.ndarray
    info: dict = field(default_factory=dict)
    _open: h5py.File | None = field(default=None, repr=False, compare=False)
    _process: int = field(default=0, repr=False, compare=False)

    optical = OPTICAL_BANDS
    sar = SAR_BANDS

    def __len__(self):
        """N."""
        return len(self.lcz)

    def __getstate__(self):
        """Everything but the open file, which belongs to one process."""
        return {**self.__dict__, "_open": None, "_process": 0}

    def read(self, index: int, optical: Sequence[str] = OPTICAL_BANDS, sar: Sequence[str] = ()) -> np.ndarray:
        """(C, 32, 32) float32 of one patch: these optical bands as reflectance, then these SAR bands; NaN = no data.

        Intensities are dB, other SAR bands as in the file. The file stays open in this process until `close`.

        Raises:
            InputError: a band that there is not; damaged data.
        """
        parts = []
        for name, known, wanted in (("sen2", OPTICAL_BANDS, optical), ("sen1", SAR_BANDS, sar)):
            if len(wanted):
                check_bands(wanted, known)
                pixels = self._patch(name, index)[..., [known.index(band) for band in wanted]]
                parts.append(np.moveaxis(pixels, -1, 0).astype(np.float32))
        image = np.concatenate(parts)
        image[~np.isfinite(image)] = np.nan
        for band, name in enumerate((*optical, *sar)):
            if name in _INTENSITIES:
                image[band] = 10 * np.log10(np.maximum(image[band], _FLOOR_POWER))
        return image

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._open is not None and self._process == os.getpid():
            self._open.close()
        self._open = None

    def statistics(self, optical: Sequence[str], sar: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each band, (C,), of 4096 patches evenly spread over the split, or all.

        Raises:
            InputError: a band without any data.
        """
        count, total, squares = 0.0, 0.0, 0.0
        for index in np.unique(np.linspace(0, len(self) - 1, min(len(self), _SAMPLE)).astype(int)):
            image = self.read(int(index), optical, sar).reshape(len(optical) + len(sar), -1).astype(float)
            known = np.isfinite(image)
            count = count + known.sum(axis=1)
            total = total + np.where(known, image, 0).sum(axis=1)
            squares = squares + np.where(known, image**2, 0).sum(axis=1)
        # Worker processes, forked later, must not inherit it.
        self.close()
        for name, n in zip((*optical, *sar), count, strict=True):
            if not n:
                raise InputError(f"{self.file}: band {name} has no data in any of the patches looked at.")
        mean = total / count
        return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))

    def record(self, index: int) -> dict:
        """What `patch_trainer.PatchMapper` takes: split, image_id, file_name, hse (NaN unknown), lcz."""
        return {
            "split": self,
            "image_id": index,
            "file_name": f"{self.file}[{index}]",
            "hse": float(self.hse[index]),
            "lcz": int(self.lcz[index]),
        }

    def chunk_notes(self) -> list[str]:
        """What makes reading one patch at a time slow: data sets stored in large chunks that are read as a whole."""
        notes = []
        with reading_hdf5(self.file), open_hdf5(self.file) as file:
            for name in ("sen1", "sen2"):
                chunks = file[name].chunks
                size = file[name].dtype.itemsize * int(np.prod(chunks)) if chunks else 0
                if size > _LARGE_CHUNK_BYTES:
                    whole = "x".join(map(str, (1, *_SHAPES[name])))
                    notes.append(
                        f"{name} is stored in chunks of {size / 2**20:.0f} MiB {chunks}, each read as a whole for one "
                        f"patch: h5repack -l {name}:CHUNK={whole} IN OUT makes training faster."
                    )
        return notes

    def absent_classes(self) -> list[str]:
        """Names of the classes that no patch is of."""
        counts = np.bincount(self.lcz, minlength=len(LCZ_CLASSES))
        return [name for name, n in zip(LCZ_CLASSES, counts, strict=True) if not n]

    def _patch(self, name: str, index: int) -> np.ndarray:
        if self._open is None or self._process != os.getpid():
            self._open, self._process = open_hdf5(self.file), os.getpid()
        with reading_hdf5(self.file, f"patch {index} of {name}"):
            return self._open[name][index]


def check_bands(wanted: Sequence[str], known: Sequence[str]) -> None:
    """InputError for a band that patches do not have, or one twice."""
    for name in wanted:
        if name not in known:
            raise unknown_name("band of patches", name, known)
    if len({*wanted}) != len(wanted):
        raise InputError(f"a band is named twice in {', '.join(wanted)}.")


def read_patches(path: Path) -> PatchSplit:
    """The split that the JSON `path` describes, checked; of its files only labels and HSE are read.

    Raises:
        InputError: no such file; a split of tiles; names that leave its folder; what `read_labels` and `read_hse` say.
    """
    document = read_json(path)
    info = document.get("info") if isinstance(document, dict) else None
    if not isinstance(info, dict) or info.get("kind") != KIND:
        raise InputError(
            f"{path}: is no split of patches (info.kind is not {KIND!r}); this network takes patches of So2Sat LCZ42's "
            "layout. Make them with tools/prepare_dataset.py so2sat, or take a network of tiles."
        )
    root = image_root(path)
    patches, hse = document.get("patches"), document.get("hse")
    file = _file(path, root, "patches", patches)
    lcz = read_labels(file)
    if patches.get("count") != len(lcz):
        raise InputError(
            f"{path}: says {patches.get('count')} patches, but {file} has {len(lcz)}. Convert the data again."
        )
    if hse is None:
        values = np.full(len(lcz), np.nan, np.float32)
    else:
        dataset = hse.get("dataset") if isinstance(hse, dict) else None
        if not isinstance(dataset, str | None):
            raise InputError(f"{path}: 'dataset' of 'hse' is {str(dataset)[:60]}, expected a name.")
        values = read_hse(_file(path, root, "hse", hse), len(lcz), dataset)
    return PatchSplit(Path(path), file, lcz, values, info)


def _file(path: Path, root: Path, key: str, value) -> Path:
    if not isinstance(value, dict) or not isinstance(value.get("file_name"), str):
        raise InputError(f"{path}: {key!r} is {str(value)[:60]}, expected an object with a file_name.")
    return safe_join(root, value["file_name"])


# ---- HDF5, untrusted ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading_hdf5(path: Path, what: str = "a part of it"):
    """Whatever h5py raises of a damaged file in this block is an InputError that names it, and `what` was read."""
    try:
        yield
    except InputError:
        raise
    except (
        Exception
    ) as error:  # the library raises any kind of error, by what the damaged bytes happen to mean
        raise InputError(
            f"{path}: {what} cannot be read as HDF5 ({error}). Is it the right file, and complete? Copy or download it "
            "again."
        ) from None


def open_hdf5(path: Path) -> h5py.File:
    """`path`, to be read.

    Raises:
        InputError: missing, or no HDF5 file, or damaged.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file.")
    try:
        # Without a lock: many processes read, nobody writes, and some shared file systems know no locks.
        return h5py.File(path, "r", locking=False)
    except Exception as error:
        raise InputError(
            f"{path}: cannot be opened as HDF5 ({error}). Is it the right file, and complete?"
        ) from None


def array_in(file: h5py.File, name: str, shape: tuple[int | None, ...]) -> h5py.Dataset:
    """The data set `name` of an open file, whose numbers lie in that file itself.

    Args:
        shape: expected; None: any length. What is of another one is never read.

    Raises:
        InputError: it is not there, a group, a link, composed of other files, of another shape, or holds no numbers.
    """
    where = f"{file.filename}: {name}"
    parts = name.strip("/").split("/")
    for depth in range(1, len(parts) + 1):
        kind = _link_kind(file, "/".join(parts[:depth]))
        if kind is None:
            found = ", ".join(sorted(file)[:20]) or "nothing"
            raise InputError(
                f"{where} is missing; the file has {found}. Is it a file of So2Sat LCZ42's layout?"
            )
        if kind != h5py.h5l.TYPE_HARD:
            raise InputError(f"{where} is a link, which may lead to any other file. Store the numbers in it.")
    array = file[name]
    if not isinstance(array, h5py.Dataset):
        raise InputError(f"{where} is a group, expected a data set of shape {_shown(shape)}.")
    if array.is_virtual or array.external:
        raise InputError(
            f"{where} is put together from other files, which is not read. Store the numbers in it (h5repack)."
        )
    wrong = array.ndim != len(shape) or any(s not in (None, n) for s, n in zip(shape, array.shape))
    if wrong:
        raise InputError(f"{where} has shape {array.shape}, expected {_shown(shape)}.")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{where} holds {array.dtype}, expected numbers.")
    return array


def _link_kind(file: h5py.File, name: str) -> int | None:
    """How `name` is there, one of h5py.h5l.TYPE_..., without following it; None: it is not."""
    try:
        return file.id.links.get_info(name.encode()).type
    except (KeyError, ValueError, RuntimeError):
        return None


def _shown(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("N" if n is None else str(n) for n in shape) + ("," * (len(shape) == 1)) + ")"


def read_labels(path: Path) -> np.ndarray:
    """(N,) int64: the class of each patch of the HDF5 file; its pixels are checked for their shape alone.

    Raises:
        InputError: not the expected data sets, different N, no patch, or labels that are not one-hot.
    """
    with reading_hdf5(path, "label"), open_hdf5(path) as file:
        arrays = {name: array_in(file, name, (None, *shape)) for name, shape in _SHAPES.items()}
        counts = {name: len(array) for name, array in arrays.items()}
        if len({*counts.values()}) > 1:
            found = ", ".join(f"{name} {n}" for name, n in counts.items())
            raise InputError(f"{path}: expected as many labels as patches, found {found}.")
        if not counts["label"]:
            raise InputError(f"{path}: holds no patch.")
        parts = []
        for start in range(0, counts["label"], _ROWS):
            rows = arrays["label"][start : start + _ROWS]
            wrong = np.flatnonzero(~(np.isin(rows, (0, 1)).all(axis=1) & (rows.sum(axis=1) == 1)))
            if len(wrong):
                row = rows[wrong[0]]
                raise InputError(
                    f"{path}: label of patch {start + wrong[0]} is {row.tolist()}, expected a single 1 among "
                    f"{len(row)} numbers, and 0 else."
                )
            parts.append(rows.argmax(axis=1))
    return np.concatenate(parts).astype(np.int64)


def read_hse(path: Path, count: int, dataset: str | None = None) -> np.ndarray:
    """(count,) float32 in [0, 1], NaN unknown: the settlement extent of each patch, from .npy or HDF5.

    Args:
        dataset: its name in an HDF5 file; None: hse.

    Raises:
        InputError: neither of both kinds; another length; numbers outside [0, 1].
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        try:
            values = np.load(path, allow_pickle=False, mmap_mode="r")
        except FileNotFoundError:
            raise InputError(f"{path}: no such file.") from None
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: not an array of numbers ({error}).") from None
        where = f"{path}"
    elif path.suffix.lower() in (".h5", ".hdf5"):
        with reading_hdf5(path, dataset or "hse"), open_hdf5(path) as file:
            values = array_in(file, dataset or "hse", (count,))[:]
        where = f"{path}: {dataset or 'hse'}"
    else:
        raise InputError(
            f"{path}: expected .npy, or .h5 with a data set named hse, for the settlement extent."
        )
    if values.dtype.kind not in "fiub" or values.shape != (count,):
        raise InputError(
            f"{where}: is {values.dtype} of shape {values.shape}, expected one number per patch, ({count},)."
        )
    values = np.array(values, np.float32)
    outside = np.flatnonzero(~(np.isnan(values) | ((values >= 0) & (values <= 1))))
    if len(outside):
        raise InputError(
            f"{where}: the settlement extent of patch {outside[0]} is {values[outside[0]]:g}, expected a share from 0 "
            f"to 1, NaN where unknown ({len(outside)} are neither). Divide percentages by 100."
        )
    return values
