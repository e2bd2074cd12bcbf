"""Files of So2Sat LCZ42's layout for tests, with pixels that say which patch and band they are of."""

from pathlib import Path

from fusiondet.files import write_json
from fusiondet.projects.hse_lcz.patches import LCZ_CLASSES, OPTICAL_BANDS, SAR_BANDS

import h5py
import numpy as np


def one_hot(classes) -> np.ndarray:
    return np.eye(len(LCZ_CLASSES))[np.asarray(classes)]


def arrays(classes=(0, 5, 16, 5)) -> dict[str, np.ndarray]:
    """sen1, sen2 and label of patches of these classes; sen2 is 100 * patch + band, sen1 minus that."""
    n = len(classes)
    pixels = 100.0 * np.arange(n)[:, None, None, None] + np.zeros((n, 32, 32, 1))
    sen2, sen1 = pixels + np.arange(len(OPTICAL_BANDS)), -(pixels + np.arange(len(SAR_BANDS)))
    return {"sen1": sen1, "sen2": sen2, "label": one_hot(classes)}


def write_hdf5(path: Path, content: dict | None = None, **changed) -> Path:
    """An HDF5 file of `arrays`; None leaves one out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as f:
        for name, values in {**(content or arrays()), **changed}.items():
            if values is not None:
                f[name] = values
    return path


def write_split(
    root: Path, split: str = "train", classes=(0, 5, 16, 5), hse=(0.9, 0.5, np.nan, 0.4), **changed
) -> Path:
    """A split of patches under `root`; returns its JSON."""
    write_hdf5(root / "hdf5" / f"{split}.h5", arrays(classes), **changed)
    if hse is not None:
        (root / "hse").mkdir(exist_ok=True)
        np.save(root / "hse" / f"{split}.npy", np.array(hse, np.float32))
    path = root / "annotations" / f"{split}.json"
    document = {
        "info": {"kind": "patches"},
        "patches": {"file_name": f"hdf5/{split}.h5", "count": len(classes)},
        "hse": None if hse is None else {"file_name": f"hse/{split}.npy"},
    }
    write_json(document, path)
    return path
