"""Write layers of any length in constant memory, whole or not at all.

Buildings first go to a file beside the output, in row groups: what a layer looks like (type of its identifiers, type of
its geometries, extent) is known at the end only, and most formats want it at the beginning. Then that file is read row
group by row group into the final one.
"""

import contextlib
import errno
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

from fusiondet.buildings import Building, clean_polygon
from fusiondet.errors import InputError
from fusiondet.files import atomic_path
from fusiondet.io.cityjson_writer import PART, CityModelWriter
from fusiondet.io.crs import crs_text
from fusiondet.io.layers import NUMBERS, WGS84, areas_m2, check_output, layer_crs, to_crs
from fusiondet.io.vector_access import gdal_path, layer_info

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as parquet
import pyogrio
import shapely
from pyproj import CRS

# Buildings held in memory, and in a row group.
BATCH = 8192
_NUMBERS = (*NUMBERS, "area_m2", "volume_m3")
_SPOOL = pa.schema(
    [("id_text", pa.string()), ("id_number", pa.int64())]
    + [(name, pa.float64()) for name in (*_NUMBERS, "ground_m")]
    + [("height_stat", pa.string()), ("geometry", pa.binary())]
)
_BOX = ("xmin", "ymin", "xmax", "ymax")
_INT64 = np.iinfo(np.int64)
# What GDAL takes for the time of day.
_DATE_OPTION = "OGR_CURRENT_DATE"


def write_buildings(
    buildings: list[Building],
    crs: str | CRS | None,
    path: Path,
    metadata: dict | None = None,
    overwrite: bool = False,
    **options,
) -> list[str]:
    """Write a layer, whole or not at all; no buildings give an empty layer.

    Args:
        buildings: outlines in map coordinates of `crs`, x (east, longitude) first.
        crs, path, metadata, overwrite, options: see `BuildingWriter`.

    Raises:
        InputError: see `BuildingWriter`.
        OSError: it could not be written to the end; nothing is left behind.

    Returns:
        Sentences for the user, e.g. how many buildings of a city model got no block.
    """
    with BuildingWriter(path, crs, metadata, overwrite, **options) as writer:
        writer.write(buildings)
    return writer.notes


class BuildingWriter:
    """A layer being written; a context manager. At its end the layer is `path`, on any error nothing is.

    Attributes:
        metadata: plain values about the whole layer, stored at the end: more may be added while writing.
        count: buildings so far.
        notes: sentences for the user; complete after the end.
    """

    def __init__(
        self,
        path: Path,
        crs: str | CRS | None,
        metadata: dict | None = None,
        overwrite: bool = False,
        *,
        dtm=None,
        vertical_crs: str | CRS | None = None,
        unit_m: float | None = None,
    ):
        """Check everything that can be known before there are buildings.

        Args:
            path: its suffix is one of `fusiondet.io.layers.FORMATS`.
            crs: "EPSG:n", WKT, or a pyproj CRS. Where it has no EPSG code its full WKT2 is stored. None for
                none, see `unit_m`.
            metadata: see `fusiondet.io.layers`.
            overwrite: replace `path` if it exists.
            dtm: for CityJSON, what blocks stand on: a raster of elevations in metres, in any CRS, or a function of (N,)
                outlines in map coordinates that gives (N,) elevations, NaN = unknown. None: all on z = 0.
            vertical_crs: for CityJSON, what the elevations count from; None: what the DTM says, or the vertical part
                of `crs`, or unknown.
            unit_m: metres per unit of coordinates in a plane of their own, such as pixels, which have no CRS and which
                not every format takes; None: there has to be a CRS.

        Raises:
            InputError: an unknown CRS, or one, or none, that the format does not take; an unknown suffix; `path`
                exists; a DTM for a format without elevations.
            ValueError, TypeError: `metadata` is not plain.
        """
        self._path = Path(path)
        self._format = check_output(path, overwrite, elevations=dtm is not None or vertical_crs is not None)
        self._crs, self._unit_m = layer_crs(crs, self._path, plane=unit_m is not None), unit_m or 1.0
        self.metadata, self.count, self.notes = dict(metadata or {}), 0, []
        _description(self.metadata)
        self._city = None
        if self._format.driver == "CityJSON":
            self._city = CityModelWriter(self._path, self._crs, dtm, vertical_crs)
        self._pending: list[tuple[Building, object]] = []
        self._multi, self._id_kinds, self._mended_ids = False, set(), 0
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])

    def __enter__(self) -> "BuildingWriter":
        with contextlib.ExitStack() as stack:
            if self._city:
                stack.enter_context(self._city)
            self._temporary = stack.enter_context(atomic_path(self._path))
            self._spool_path = self._temporary.with_name("rows.spool")
            with _told(self._path):
                self._spool = parquet.ParquetWriter(self._spool_path, _SPOOL)
            stack.callback(self._drop_spool)
            self._stack = stack.pop_all()
        return self

    def write(self, buildings: list[Building]) -> None:
        """Add buildings, their outlines in map coordinates.

        Raises:
            InputError: an outline without area.
            OSError: they could not be written.
        """
        for building in buildings:
            self._pending.append((building, _polygon(building, self._path)))
            self.count += 1
            if len(self._pending) == BATCH:
                self._flush()

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with self._stack:
            if self._pending:
                self._flush()
            with _told(self._path):
                self._spool.close()
                written = self._finish()
            if written != self.count:
                # GDAL tells of a full disk late and in many ways, or not at all.
                raise OSError(
                    errno.EIO, f"only {written} of {self.count} buildings were written", str(self._path)
                )
            if self._mended_ids:
                self.notes.append(
                    f"{self._path}: {self._mended_ids} identifiers hold characters that no file keeps (NUL, halves of "
                    "surrogate pairs). A question mark stands for each."
                )

    def _drop_spool(self) -> None:
        with contextlib.suppress(OSError, pa.ArrowException):  # what it would say has been said
            self._spool.close()

    def _flush(self) -> None:
        buildings, polygons = zip(*self._pending)
        self._pending = []
        polygons = np.array(polygons, dtype=object)
        columns = {name: np.array([getattr(b, name) for b in buildings], dtype=float) for name in NUMBERS}
        columns["area_m2"] = areas_m2(polygons, self._crs, self._unit_m)
        columns["volume_m3"] = columns["area_m2"] * columns["height_m"]
        columns["ground_m"] = np.full(len(polygons), np.nan)
        if self._city:
            polygons, columns["ground_m"] = self._city.prepare(polygons, columns["height_m"])
        elif self._format.driver == "GeoJSON":
            polygons = to_crs(polygons, self._crs, CRS(WGS84))
        self._multi |= bool((shapely.get_type_id(polygons) == shapely.GeometryType.MULTIPOLYGON).any())
        bounds = shapely.total_bounds(polygons)
        self._bounds = np.concatenate(
            [np.fmin(self._bounds[:2], bounds[:2]), np.fmax(self._bounds[2:], bounds[2:])]
        )
        arrays = {name: pa.array(values, from_pandas=True) for name, values in columns.items()}
        arrays["id_text"], arrays["id_number"] = self._ids([b.id for b in buildings])
        arrays["height_stat"] = pa.array([b.height_stat for b in buildings], pa.string())
        arrays["geometry"] = pa.array(shapely.to_wkb(polygons), pa.binary())
        with _told(self._path):
            self._spool.write_table(pa.table([arrays[name] for name in _SPOOL.names], schema=_SPOOL))

    def _ids(self, ids: list) -> tuple[pa.Array, pa.Array]:
        """As text, and as integers where they are; which kinds occur is remembered."""
        integers = [isinstance(i, int | np.integer) and _INT64.min <= int(i) <= _INT64.max for i in ids]
        self._id_kinds |= {
            "none" if i is None else "integer" if whole else "text" for i, whole in zip(ids, integers)
        }
        texts = [None if i is None else _storable(str(i)) for i in ids]
        self._mended_ids += sum(i is not None and t != str(i) for i, t in zip(ids, texts))
        numbers = [int(i) if whole else None for i, whole in zip(ids, integers)]
        return pa.array(texts, pa.string()), pa.array(numbers, pa.int64())

    def _finish(self) -> int:
        """Write the final file out of the spooled one; the number of buildings in it."""
        with parquet.ParquetFile(self._spool_path) as spool:
            if self._city:
                return self._write_city(spool)
            if self._format.driver == "Parquet":
                return self._write_parquet(spool)
            return self._write_ogr(spool)

    def _batches(self, spool) -> Iterator[pa.Table]:
        """Tables with the columns of a layer and "geometry", and those of CityJSON; identifiers settled."""
        numbered = 1
        for group in range(spool.num_row_groups):
            table = spool.read_row_group(group)
            if self._id_kinds <= {"none"}:
                ids = pa.array(np.arange(numbered, numbered + len(table), dtype=np.int64))
            else:
                ids = table["id_number" if self._id_kinds == {"integer"} else "id_text"]
            numbered += len(table)
            yield table.drop_columns(["id_text", "id_number"]).add_column(0, "id", ids)

    def _schema(self) -> pa.Schema:
        kind = pa.int64() if self._id_kinds in (set(), {"none"}, {"integer"}) else pa.string()
        numbers = [pa.field(name, pa.float64()) for name in _NUMBERS]
        extension = {"ARROW:extension:name": "geoarrow.wkb"}
        return pa.schema(
            [pa.field("id", kind), *numbers, pa.field("geometry", pa.binary(), metadata=extension)]
        )

    def _write_ogr(self, spool) -> int:
        # One geometry type per layer: some readers refuse a mixture. GeoJSON readers are used to it.
        plain = self._format.driver == "GeoJSON"
        promote, schema = self._multi and not plain, self._schema()

        def batches() -> Iterator[pa.RecordBatch]:
            for table in self._batches(spool):
                table = table.select(schema.names)
                if promote:
                    table = table.set_column(len(schema) - 1, "geometry", _promoted(table["geometry"]))
                yield from table.cast(schema).to_batches()

        description = _description(self.metadata)
        with _no_date_of_the_run(), warnings.catch_warnings():
            # Of a layer without CRS, which is said where it is decided.
            warnings.filterwarnings("ignore", "'crs' was not provided")
            pyogrio.raw.write_arrow(
                pa.RecordBatchReader.from_batches(schema, batches()),
                gdal_path(self._temporary),
                layer="buildings",
                driver=self._format.driver,
                geometry_name="geometry",
                geometry_type="MultiPolygon" if promote else "Unknown" if plain else "Polygon",
                crs=WGS84 if plain else crs_text(self._crs),
                layer_options={
                    **dict(self._format.options),
                    **({"DESCRIPTION": description} if description else {}),
                },
            )
        return layer_info(self._temporary, force_feature_count=True)["features"]

    def _write_parquet(self, spool) -> int:
        schema = self._schema()
        corners = pa.struct([(name, pa.float64()) for name in _BOX])
        described = {"geo": json.dumps(self._geo()), "description": _description(self.metadata)}
        schema = schema.append(pa.field("bbox", corners)).with_metadata(
            {k: v for k, v in described.items() if v}
        )
        with parquet.ParquetWriter(self._temporary, schema) as file:
            for table in self._batches(spool):
                bounds = shapely.bounds(_polygons(table["geometry"]))
                boxes = pa.StructArray.from_arrays([pa.array(side) for side in bounds.T], _BOX)
                table = table.select(schema.names[:-1]).append_column("bbox", boxes)
                file.write_table(table.cast(schema))
        return parquet.read_metadata(self._temporary).num_rows

    def _geo(self) -> dict:
        """GeoParquet's metadata, see https://geoparquet.org/releases/v1.1.0/."""
        column = {
            "encoding": "WKB",
            "geometry_types": ["Polygon", "MultiPolygon"] if self._multi else ["Polygon"],
            "crs": self._crs and self._crs.to_json_dict(),
            "covering": {"bbox": {name: ["bbox", name] for name in _BOX}},
        }
        if self.count:
            column["bbox"] = self._bounds.tolist()
        return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}

    def _write_city(self, spool) -> int:
        named = self._ids_are_names(spool)

        def batches() -> Iterator[tuple[list[str], np.ndarray, list[dict]]]:
            numbered = 0
            for table in self._batches(spool):
                ids = table["id"].to_pylist()
                names = [str(i) if named else str(n) for n, i in enumerate(ids, start=numbered + 1)]
                numbered += len(ids)
                yield names, _polygons(table["geometry"]), table.drop_columns(["geometry"]).to_pylist()

        count = self._city.write(self._temporary, batches(), self.metadata)
        self.notes += self._city.notes
        return count

    def _ids_are_names(self, spool) -> bool:
        """Whether every building has an identifier of its own, that no part of another one could have."""
        if self._id_kinds <= {"none"}:
            return True
        ids = spool.read(columns=["id_text"])["id_text"]
        return (
            ids.null_count == 0
            and pc.count_distinct(ids).as_py() == len(ids)
            and not pc.any(pc.or_(pc.equal(ids, ""), pc.match_substring(ids, PART))).as_py()
        )


def _polygon(building: Building, path: Path):
    polygon = clean_polygon(building.polygon)
    if polygon is None or not np.isfinite(polygon.bounds).all():
        raise InputError(f"{path}: building {building.id!r} has no outline with area and finite coordinates.")
    return polygon


def _storable(text: str) -> str:
    """`text` without what broken files bring along: halves of surrogate pairs, and NUL, at which GDAL ends a text."""
    return text.encode(errors="replace").decode().replace("\0", "?")


def _description(metadata: dict) -> str:
    return json.dumps(metadata, allow_nan=False) if metadata else ""


def _polygons(column: pa.ChunkedArray) -> np.ndarray:
    return shapely.from_wkb(np.array(column.to_pylist(), dtype=object))


def _promoted(column: pa.ChunkedArray) -> pa.Array:
    polygons = _polygons(column)
    single = shapely.get_type_id(polygons) == shapely.GeometryType.POLYGON
    polygons[single] = shapely.multipolygons(polygons[single][:, None])
    return pa.array(shapely.to_wkb(polygons), pa.binary())


@contextlib.contextmanager
def _no_date_of_the_run():
    """A GeoPackage states when it was last changed: a fixed date, so that the same input gives the same bytes."""
    before = pyogrio.get_gdal_config_option(_DATE_OPTION)
    pyogrio.set_gdal_config_options({_DATE_OPTION: before or "1970-01-01T00:00:00.000Z"})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({_DATE_OPTION: before})


@contextlib.contextmanager
def _told(path: Path):
    """GDAL and Arrow each have their own errors for a disk that is full or fails: all as an OSError."""
    try:
        yield
    except (RuntimeError, OSError, pa.ArrowException) as error:
        raise OSError(errno.EIO, f"could not be written ({error}). Is the disk full?", str(path)) from error
