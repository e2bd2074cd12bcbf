"""GeoTIFFs on disks that are full."""

import resource
import signal

from fusiondet.io.whole_tiff import whole_tiff

import numpy as np
import pytest
import rasterio
from affine import Affine

PROFILE = {
    "dtype": "uint8", "count": 3, "height": 200, "width": 300, "crs": "EPSG:32631", "compress": "deflate",
    "transform": Affine(0.5, 0, 6e5, 0, -0.5, 5.7e6), "predictor": 2, "photometric": "RGB",
}  # fmt: skip
PIXELS = np.random.default_rng(0).integers(0, 255, (3, 200, 300)).astype("uint8")


def test_the_bytes_are_those_of_a_file_that_rasterio_writes(tmp_path):
    with whole_tiff(tmp_path / "new" / "a.tif", **PROFILE) as target:
        target.write(PIXELS)
        target.descriptions = ("red", "green", "blue")
    with rasterio.open(tmp_path / "b.tif", "w", driver="GTiff", **PROFILE) as target:
        target.write(PIXELS)
        target.descriptions = ("red", "green", "blue")
    assert (tmp_path / "new" / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.tif"]


@pytest.fixture
def small_files():
    """No file may get larger than 50 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_without_room_is_an_error_that_names_the_file(tmp_path, small_files):
    (tmp_path / "a.tif").write_text("before")
    with (
        pytest.raises(OSError, match="too large") as caught,
        whole_tiff(tmp_path / "a.tif", **PROFILE) as target,
    ):
        target.write(PIXELS)
    assert caught.value.filename == str(tmp_path / "a.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"] and (tmp_path / "a.tif").read_text() == "before"


def test_an_error_in_the_block_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), whole_tiff(tmp_path / "a.tif", **PROFILE):
        raise ValueError
    assert list(tmp_path.iterdir()) == []
