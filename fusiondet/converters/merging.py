"""Layers of neighbouring tiles -> one layer, with the buildings on their borders counted once."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from fusiondet.buildings import Building
from fusiondet.errors import InputError
from fusiondet.io import threedbag
from fusiondet.io.building_parts import join_buildings
from fusiondet.io.vectors import UNKNOWN_HEIGHT, Layer, transform_layer

import shapely

# Outlines with one identifier are the same building where they share this much of the smaller one.
SAME_SHARE = 0.5
# Pieces that a tile's edge cut apart touch up to the rounding of their coordinates. Units of the CRS.
TOUCHING = 0.01
ONCE, JOINED = "in several files, counted once", "joined across files"


def merge_layers(layers: Sequence[Layer]) -> Layer:
    """Layers of neighbouring tiles as one, with the buildings on their borders once. One layer is given back as it is.

    A building in two layers is recognised by its identifier, which has to be a column of both, and by its place:
    numbers that start anew in every file do not make one building of two. Where two outlines share most of the smaller
    one, that with a known height, else the larger one, is kept. Where a tile's edge cut a building in two, the pieces
    are joined, their heights weighted by area; only identifiers of the BAG are trusted that far. Rows of one and the
    same layer stay apart: see `join_parts` of `read_layer`.

    Returns:
        A layer in the CRS of the first one; its `counts` have "in several files, counted once" and "joined across
        files".

    Raises:
        InputError: no layer; or some have a CRS and others have none.
    """
    if not layers:
        raise InputError("no layer of buildings to merge.")
    if len(layers) == 1:
        return layers[0]
    crs = layers[0].crs
    if any((layer.crs is None) != (crs is None) for layer in layers):
        raise InputError(
            'some of the footprints have a CRS, others have none. Name theirs, e.g. `footprints_crs="EPSG:28992"`.'
        )
    if crs is not None:
        layers = [transform_layer(layer, crs) for layer in layers]
    buildings, counts = _merged([(n, b) for n, layer in enumerate(layers) for b in layer.buildings], layers)
    return Layer(
        buildings,
        crs,
        reasons=Counter(b.attributes[UNKNOWN_HEIGHT] for b in buildings if UNKNOWN_HEIGHT in b.attributes),
        geometry=sum((layer.geometry for layer in layers), Counter()),
        height_field=_common(layers, "height_field"),
        ground_field=_common(layers, "ground_field"),
        id_field=_common(layers, "id_field"),
        release=_common(layers, "release"),
        counts=sum((layer.counts for layer in layers), counts),
        checks=sum((layer.checks for layer in layers), Counter()),
        notes=list(dict.fromkeys(note for layer in layers for note in layer.notes)),
    )


def _merged(entries: list[tuple[int, Building]], layers: Sequence[Layer]) -> tuple[list[Building], Counter]:
    """The buildings of (number of the layer, building), in their order, and what happened to how many of them."""
    found = [building for _, building in entries]
    kept_at = list(range(len(found)))  # where a building that was merged into an earlier one stands
    counts: Counter = Counter()
    for i, near in _neighbours(entries, layers):
        may_join = layers[entries[i][0]].id_field.lower() in threedbag.IDENTIFIERS
        near = list(dict.fromkeys(kept_at[j] for j in near))
        twin = next((j for j in near if _share(found[i], found[j]) >= SAME_SHARE), None)
        count = ONCE
        if twin is None and may_join and near:
            twin, count = near[0], JOINED
        if twin is not None:
            found[twin] = _one_of(found[twin], found[i], count)
            kept_at[i] = twin
            counts[count] += 1
    return [found[i] for i, place in enumerate(kept_at) if i == place], counts


def _neighbours(entries, layers) -> Iterator[tuple[int, list[int]]]:
    """(index, earlier indices) of entries that touch others with their identifier in earlier layers, ascending."""
    layers_of: dict = defaultdict(set)
    for number, building in entries:
        if layers[number].id_field is not None:
            layers_of[building.id].add(number)
    shared = [i for i, (n, b) in enumerate(entries) if layers[n].id_field and len(layers_of[b.id]) > 1]
    if not shared:
        return
    polygons = [entries[i][1].polygon for i in shared]
    pairs = shapely.STRtree(polygons).query(polygons, predicate="dwithin", distance=TOUCHING)
    near: dict[int, list[int]] = defaultdict(list)
    for i, j in sorted((shared[a], shared[b]) for a, b in pairs.T if b < a):
        (layer, building), (other_layer, other) = entries[i], entries[j]
        if layer != other_layer and building.id == other.id:
            near[i].append(j)
    yield from near.items()


def _share(first: Building, second: Building) -> float:
    """Area that two outlines share, as a share of the smaller one."""
    smaller = min(first.polygon.area, second.polygon.area)
    return first.polygon.intersection(second.polygon).area / smaller


def _one_of(first: Building, second: Building, count: str) -> Building:
    if count == JOINED:
        return join_buildings([first, second])
    return max(first, second, key=lambda b: (b.height_m is not None, b.polygon.area))


def _common(layers: Sequence[Layer], name: str):
    """What all layers say of `name`; None where they differ."""
    values = {getattr(layer, name) for layer in layers}
    return values.pop() if len(values) == 1 else None
