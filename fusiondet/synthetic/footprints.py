"""A real city out of CityJSON: footprints and, where the file has them, LoD 2.2 roofs; everything else is invented.

Heights are above the ground next to each building: 3DBAG's `b3_h_maaiveld`, else the lowest vertex of its ground
surfaces. A building without roof surfaces becomes a level block at 3DBAG's 70p. Colours, trees and ground cover are
drawn per acquisition, for the file knows nothing about them.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from fusiondet.buildings import TALLEST_BUILDING_M, clean_height_m
from fusiondet.errors import InputError
from fusiondet.io import cityjson_reader as cityjson
from fusiondet.io import threedbag
from fusiondet.io.crs import parse_crs
from fusiondet.synthetic.city import City, CityBuilding, RoofPiece, roof_height_m, roof_piece
from fusiondet.synthetic.presets import Preset
from fusiondet.synthetic.procedural import dress, ground_materials, ground_patches, plant_trees

import numpy as np
from shapely.affinity import translate

Bounds = tuple[float, float, float, float]


_LONGEST_BUILDING_M = 5000.0


@lru_cache(maxsize=1)
def read_city(path: Path) -> City:
    """The buildings of a CityJSON file without colours, trees and ground; one file is kept per process.

    Raises:
        InputError: not CityJSON, no CRS or one that is not in metres, or no building that can be rendered.
    """
    if path.is_file() and not _begins_as_json(path):
        raise InputError(
            f"{path}: expected CityJSON (.city.json, .city.jsonl), whose roofs are rendered; layers of outlines such "
            "as GeoPackages have none. 3DBAG offers its tiles as CityJSON, too."
        )
    model = cityjson.read_cityjson(path)
    _require_metres(path, model.crs)
    corners = [b.footprint().bounds for b in model.buildings if b.footprint() is not None]
    if not corners:
        raise InputError(f"{path}: no building with a footprint (LoD 0 or GroundSurface) in it.")
    x0, y0, x1, y1 = np.transpose(corners)
    if max((x1 - x0).max(), (y1 - y0).max()) > _LONGEST_BUILDING_M:
        raise InputError(
            f"{path}: a building of {max((x1 - x0).max(), (y1 - y0).max()) / 1000:.3g} km, expected "
            f"{_LONGEST_BUILDING_M / 1000:g} km at most. Is the transform of its vertices right?"
        )
    x0, y0 = np.floor(x0.min()), np.floor(y0.min())
    buildings = [_building(b, x0, y0) for b in model.buildings]
    buildings = [b for b in buildings if b is not None]
    if not buildings:
        raise InputError(
            f"{path}: no building with a roof or a known height in it, so there is nothing to render."
        )
    return City(buildings, origin_map=(float(x0), float(y0)), crs=model.crs)


def _begins_as_json(path: Path) -> bool:
    with open(path, "rb") as f:
        return f.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


def dressed(city: City, bounds: Bounds, preset: Preset, rng: np.random.Generator) -> City:
    """The part of a real city near `bounds`, with colours, ground cover and trees."""
    buildings = [dress(b, preset, rng) for b in city.near(bounds)]
    albedo, sigma0_db = ground_materials(preset, rng)
    trees = plant_trees(buildings, [], preset.tree_per_ha, bounds, rng)
    return replace(
        city,
        buildings=buildings,
        ground=ground_patches(bounds, rng),
        trees=trees,
        ground_albedo=albedo,
        ground_sigma0_db=sigma0_db,
    )


def spatial_split(
    city: City, shares: dict[str, int], tile_m: float, rng: np.random.Generator, block_tiles: int = 2
) -> dict[str, list[Bounds]]:
    """Tiles that contain building, {split: bounds in city metres}; no two tiles overlap.

    Blocks of `block_tiles` x `block_tiles` tiles go to one split each, in proportion to `shares`, so that splits touch
    along few edges.

    Raises:
        InputError: there are fewer occupied blocks than splits.
    """
    points = np.array([b.footprint.representative_point().coords[0] for b in city.buildings])
    index = np.floor(points / tile_m).astype(int)
    occupied = sorted({(int(i), int(j)) for i, j in index})
    blocks: dict[tuple[int, int], list[Bounds]] = {}
    for i, j in occupied:
        tile = (i * tile_m, j * tile_m, (i + 1) * tile_m, (j + 1) * tile_m)
        blocks.setdefault((i // block_tiles, j // block_tiles), []).append(tile)
    if len(blocks) < len(shares):
        raise InputError(
            f"the buildings occupy {len(blocks)} blocks of {block_tiles * tile_m:g} m, too few for {len(shares)} "
            "splits. Use smaller tiles or a larger file."
        )
    return _deal([blocks[key] for key in sorted(blocks)], shares, rng)


def _deal(
    blocks: list[list[Bounds]], shares: dict[str, int], rng: np.random.Generator
) -> dict[str, list[Bounds]]:
    """Hand each block, in random order, to the split that is furthest behind its share of tiles."""
    dealt: dict[str, list[Bounds]] = {split: [] for split in shares}
    for position in rng.permutation(len(blocks)):
        behind = min(shares, key=lambda split: len(dealt[split]) / shares[split])
        dealt[behind] += blocks[position]
    return dealt


def _building(source: cityjson.CityBuilding, x0: float, y0: float) -> CityBuilding | None:
    footprint = source.footprint()
    if footprint is None:
        return None
    footprint = translate(footprint, -x0, -y0)
    fields = threedbag.height_fields(source.attributes)
    ground_m = _ground_m(source, fields)
    roof = _roof(source, np.array([x0, y0, ground_m])) if ground_m is not None else []
    if not roof and fields is not None:
        height_m, _ = clean_height_m(_difference(source.attributes, fields))
        roof = [] if height_m is None else [RoofPiece(footprint, (0.0, 0.0, height_m))]
    # Higher than anything stands: a damaged coordinate, whose shadow would fill memory.
    if not roof or not 0 < roof_height_m(roof) <= TALLEST_BUILDING_M:
        return None
    return CityBuilding(footprint, roof, round(roof_height_m(roof), 3), id=source.id)


def _difference(attributes: dict, fields: Sequence[str]) -> float | None:
    top_m, ground_m = (attributes.get(name) for name in fields)
    return None if top_m is None or ground_m is None else top_m - ground_m


def _ground_m(source: cityjson.CityBuilding, fields) -> float | None:
    if fields is not None and source.attributes.get(fields[1]) is not None:
        return float(source.attributes[fields[1]])
    lows = [ring[:, 2].min() for s in source.surfaces if s.kind == "GroundSurface" for ring in s.rings]
    return float(min(lows)) if lows else None


def _roof(source: cityjson.CityBuilding, origin: np.ndarray) -> list[RoofPiece]:
    pieces = []
    for surface in source.roof_surfaces():
        outer, *holes = (ring - origin for ring in surface.rings)
        piece = roof_piece(outer, holes)
        if piece is not None:
            pieces.append(piece)
    return pieces


def _require_metres(path: Path, crs: str | None) -> None:
    if crs is None:
        raise InputError(
            f"{path}: names no CRS (metadata.referenceSystem). Set one, e.g. with `cjio FILE crs_assign 7415 save OUT`."
        )
    if not parse_crs(crs, f"{path}: CRS").is_projected:
        raise InputError(
            f"{path}: CRS {crs} is not in metres. Reproject it, e.g. with `cjio FILE crs_reproject 28992 save OUT`."
        )
