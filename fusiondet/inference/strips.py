"""Buildings that wait, on disk, to be painted on a raster of heights: where they overlap, the better one is on top."""

import struct
from pathlib import Path

from fusiondet.buildings import Building
from fusiondet.files import naming
from fusiondet.io.height_rasters import HeightRasterWriter

import shapely

_HEAD = struct.Struct("<ddI")
# Rows of the raster that are painted at a time.
STRIP_ROWS = 2048


class HeightStrips:
    """A file for each strip of rows of a raster, with what is known of the buildings that reach into it."""

    def __init__(self, folder: Path, raster: HeightRasterWriter):
        """`folder`: empty; `raster`: whose band "instances" is to be painted."""
        self._folder, self._raster = folder, raster

    def add(self, buildings_px: list[Building]) -> None:
        """Outlines in pixels of the grid that heights come in; those without height are left out."""
        records: dict[int, list[bytes]] = {}
        for building in buildings_px:
            if building.height_m is None:
                continue
            wkb = shapely.to_wkb(building.polygon)
            record = _HEAD.pack(building.score or 0.0, building.height_m, len(wkb)) + wkb
            for strip in self._strips(building):
                records.setdefault(strip, []).append(record)
        for strip, found in records.items():
            with naming(self._file(strip)), open(self._file(strip), "ab") as f:
                f.write(b"".join(found))

    def paint(self) -> None:
        """Paint all strips."""
        height, _ = self._raster.shape
        for strip in range(-(-height // STRIP_ROWS)):
            if self._file(strip).exists():
                rows = range(strip * STRIP_ROWS, min(height, (strip + 1) * STRIP_ROWS))
                self._raster.paint(self._read(strip), rows)

    def _strips(self, building: Building) -> range:
        _, y0, _, y1 = building.polygon.bounds
        zoom = self._raster.zoom[1]
        return range(max(0, int(y0 / zoom) // STRIP_ROWS), int(y1 / zoom) // STRIP_ROWS + 1)

    def _file(self, strip: int) -> Path:
        return self._folder / f"{strip}.wkb"

    def _read(self, strip: int) -> list[Building]:
        content, at, buildings = self._file(strip).read_bytes(), 0, []
        while at < len(content):
            score, height_m, length = _HEAD.unpack_from(content, at)
            at += _HEAD.size
            polygon = shapely.from_wkb(content[at : at + length])
            buildings.append(Building(polygon, height_m, score=score))
            at += length
        return buildings
