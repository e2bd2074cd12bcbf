"""Changes of vector files: format, CRS, geometry, columns, structure, bytes."""

import contextlib
import json
import random
import sqlite3
import warnings
from pathlib import Path

from tests.fuzz.mutations import change_bytes, change_json

import geopandas
import numpy as np
import pyogrio
import shapely

_MOON = (
    'GEOGCRS["Moon",DATUM["Moon",ELLIPSOID["Moon",1737400,0]],CS[ellipsoidal,2],AXIS["lat",north],AXIS["lon",east],'
    'ANGLEUNIT["degree",0.0174532925199433]]'
)
_ENGINEERING = (
    'ENGCRS["Site",EDATUM["Site"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'
)
CRSS = (
    *(
        "EPSG:4326",
        "EPSG:3857",
        "EPSG:32631",
        "EPSG:2263",
        "EPSG:28992",
        "EPSG:4978",
        "EPSG:4979",
        "EPSG:5773",
    ),
    *(
        "EPSG:7415",
        "EPSG:27700",
        "EPSG:3413",
        "EPSG:2193",
        "EPSG:32661",
        "ESRI:54009",
        "OGC:CRS84",
        "EPSG:5806",
    ),
    *(
        _MOON,
        _ENGINEERING,
        "+proj=omerc +lat_0=4 +lonc=115 +alpha=53 +k=0.9 +type=crs",
        "+proj=gnom +lat_0=90",
    ),
)
FORMATS = (
    ".gpkg",
    ".geojson",
    ".shp",
    ".fgb",
    ".parquet",
    ".gml",
    ".kml",
    ".csv",
    ".sqlite",
    ".geojsonl",
    ".city.json",
)
_EXTREME = (0.0, 1e300, -1e300, float("nan"), float("inf"), 1e-300, 181.0, 1e7)
_URNS = (
    *(
        "urn:ogc:def:crs:EPSG::4326",
        "urn:ogc:def:crs,crs:EPSG::25832,crs:EPSG::5783",
        "EPSG:28992+5709",
        "7415",
    ),
    *(
        "urn:adv:crs:ETRS89_UTM32*DE_DHHN2016_NH",
        "https://www.opengis.net/def/crs/EPSG/0/7415",
        "x",
        "",
        4326,
        None,
    ),
    *([], {"type": "name", "properties": {"name": "EPSG:5806"}}, {"type": "name", "properties": {}}),
    {"type": "link", "properties": {"href": "http://127.0.0.1:9/x", "type": "proj4"}},
)


def change(folder: Path, path: Path, rng: random.Random, any_format: bool) -> Path:
    """Change a layer, and return the path of what takes its place, both relative to `folder`.

    Args:
        any_format: the tool takes the layer in any format; else the file keeps its own.
    """
    path = Path(path)
    if any_format and rng.random() < 0.7:
        path = _written(folder, path, rng)
    full = folder / path
    kind = rng.random()
    if full.suffix in (".json", ".geojson") and full.is_file() and kind < 0.6:
        with contextlib.suppress(ValueError):
            _change_crs_text(full, rng) if kind < 0.15 else change_json(full, rng)
    elif full.suffix == ".gpkg" and kind < 0.3:
        _change_tables(full, rng)
    elif kind < 0.5:
        parts = sorted(p for p in full.parent.glob(f"{full.name.partition('.')[0]}.*") if p.is_file())
        damaged = rng.choice(parts) if full.suffix == ".shp" and parts else full
        if damaged.is_file():
            damaged.unlink() if full.suffix == ".shp" and kind < 0.35 else change_bytes(damaged, rng)
    return path


def _written(folder: Path, path: Path, rng: random.Random) -> Path:
    """The layer with changes of columns, outlines and CRS in some format; as it was where that cannot be written."""
    suffix = rng.choice(FORMATS)
    if suffix == ".city.json":
        return Path("layers/houses.city.json")
    layer = geopandas.read_file(folder / path)
    for _ in range(rng.choice((0, 1, 1, 2))):
        with contextlib.suppress(Exception):  # what geopandas itself refuses to make
            layer = rng.choice(_CHANGES)(layer, rng)
    new = Path("layers") / f"changed{suffix}"
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        if suffix == ".parquet":
            layer.to_parquet(folder / new)
        elif suffix == ".csv":
            layer.to_csv(folder / new)
        else:
            layer.to_file(folder / new, driver={".geojsonl": "GeoJSONSeq"}.get(suffix))
    return new if (folder / new).exists() else path


def _other_crs(layer, rng):
    crs = rng.choice((*CRSS, None))
    if crs is not None and rng.random() < 0.4:
        with contextlib.suppress(Exception):
            return layer.to_crs(crs)
    return layer.set_crs(crs, allow_override=True)


def _other_outlines(layer, rng):
    shapes = list(layer.geometry)
    first = shapes[0]
    others = (
        *(None, shapely.Point(1, 2), shapely.LineString([(0, 0), (1, 1)]), shapely.Polygon(), first.boundary),
        *(
            shapely.MultiPolygon(shapes),
            shapely.GeometryCollection([first, first.centroid]),
            shapely.force_3d(first, 5),
        ),
        *(
            shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)]),
            first.buffer(1e6),
            first.buffer(-3),
            first.buffer(1e-9),
        ),
        shapely.Polygon(first.exterior, [list(shapes[-1].exterior.coords)]),
    )
    for i in range(len(shapes)) if rng.random() < 0.3 else [rng.randrange(len(shapes))]:
        shapes[i] = rng.choice(others)
    return layer.set_geometry(geopandas.GeoSeries(shapes, crs=layer.crs))


def _extreme_points(layer, rng):
    value, share = rng.choice(_EXTREME), rng.random()
    draw = np.random.default_rng(rng.randrange(2**32))

    def moved(xy):
        return np.where(draw.random(xy.shape) < share, value, xy)

    return layer.set_geometry(
        geopandas.GeoSeries(shapely.transform(layer.geometry.values, moved), crs=layer.crs)
    )


def _other_column(layer, rng):
    n = len(layer)
    columns = (
        *(
            ["x"] * n,
            [None] * n,
            [float("nan")] * n,
            [1e300] * n,
            [-5] * n,
            ["1,5"] * n,
            ["7 m"] * n,
            [2**62] * n,
        ),
        *(
            [True] * n,
            [float("inf")] * n,
            [0] * n,
            ["2024-01-01"] * n,
            [[1, 2]] * n,
            ["9" * 400] * n,
            range(10**9, 10**9 + n),
        ),
    )
    return layer.assign(**{rng.choice(("height", "ground", "name", "fid", "id")): list(rng.choice(columns))})


def _other_names(layer, rng):
    old = rng.choice(["height", "ground", "name"])
    return layer.rename(
        columns={old: rng.choice(("Height", "", "geometry", "id", "fid", "é", "a b", "height_m", "x" * 70))}
    )


def _other_rows(layer, rng):
    return rng.choice((layer.iloc[:0], layer.iloc[:1], geopandas.pd.concat([layer] * 40), layer.iloc[::-1]))


_CHANGES = (
    _other_crs,
    _other_crs,
    _other_outlines,
    _extreme_points,
    _other_column,
    _other_names,
    _other_rows,
)


def _change_crs_text(path: Path, rng: random.Random) -> None:
    """Another `crs` of GeoJSON, or `referenceSystem` of CityJSON."""
    document = json.loads(path.read_text())
    if document.get("type") == "CityJSON":
        document.setdefault("metadata", {})["referenceSystem"] = rng.choice(_URNS)
    else:
        urn = rng.choice(_URNS)
        named = {"type": "name", "properties": {"name": urn}}
        document["crs"] = named if isinstance(urn, str) and rng.random() < 0.8 else urn
    path.write_text(json.dumps(document))


def _change_tables(path: Path, rng: random.Random) -> None:
    """Change the tables of a GeoPackage."""
    name = pyogrio.list_layers(path)[0][0]
    statements = (
        "UPDATE gpkg_geometry_columns SET srs_id = -1",
        "UPDATE gpkg_geometry_columns SET srs_id = 77",
        "UPDATE gpkg_contents SET srs_id = NULL",
        "UPDATE gpkg_spatial_ref_sys SET definition = 'x'",
        f"UPDATE gpkg_spatial_ref_sys SET definition = '{_ENGINEERING}'",
        "UPDATE gpkg_geometry_columns SET geometry_type_name = 'POINT'",
        "DELETE FROM gpkg_geometry_columns",
        "DELETE FROM gpkg_contents",
        "UPDATE gpkg_contents SET table_name = 'missing'",
        f"UPDATE \"{name}\" SET geom = X'00'",
        f'UPDATE "{name}" SET geom = NULL',
        f"UPDATE \"{name}\" SET geom = X'47500001FFFFFFFF0103000000FFFFFFFF'",
        f"UPDATE \"{name}\" SET height = 'x'",
        f"UPDATE \"{name}\" SET height = X'FF'",
        f'DROP TABLE "{name}"',
        "PRAGMA user_version = 1",
        "PRAGMA application_id = 0",
        f'ALTER TABLE "{name}" RENAME TO plain; CREATE VIEW "{name}" AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL '
        "SELECT i + 1 FROM n) SELECT plain.* FROM plain, n",
    )
    with contextlib.closing(sqlite3.connect(path)) as base, contextlib.suppress(sqlite3.Error):
        for trigger in base.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            base.execute(f'DROP TRIGGER "{trigger[0]}"')
        base.executescript(rng.choice(statements))
        base.commit()
