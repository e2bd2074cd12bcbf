"""What the trained networks of an ablation say of a few tiles: predicted once, kept, and drawn side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.analysis.ablation.runs import Run, load_trained
from fusiondet.analysis.ablation.spec import Gallery
from fusiondet.data import catalog
from fusiondet.data.mapper import FusionDatasetMapper
from fusiondet.evaluation.dense import painted, tile_truth
from fusiondet.evaluation.evaluator import FOOTPRINT_LIMIT, prediction_records
from fusiondet.files import atomic_path
from fusiondet.io.coco import Dataset
from fusiondet.io.tile_rasters import read_tile
from fusiondet.jobs.hashing import file_sha256
from fusiondet.visualization.datasets import choose_tiles
from fusiondet.visualization.gallery import Said, gallery_figure
from fusiondet.visualization.tile_figures import TileView

import numpy as np
import torch
from matplotlib.figure import Figure

# Beside the weights of each network.
_FILE = "maps.npz"


def maps_left(galleries: Sequence[Gallery], runs: Sequence[Run], dataset: Path) -> list[Run]:
    """The runs of `galleries` whose maps are not there, or are of other weights or tiles."""
    shown = {row for gallery in galleries for row in gallery.rows}
    asked = _asked(dataset, _tiles(galleries, dataset))
    found = [run for run in runs if run.row in shown and run.trained()]
    return [run for run in found if _read(run, asked) is None]


def predict(galleries: Sequence[Gallery], runs: Sequence[Run], dataset: Path) -> Iterator[str]:
    """Predict the tiles of `galleries` with each of `runs`, and keep the maps in its folder; yields its name."""
    tiles = _tiles(galleries, dataset)
    asked = _asked(dataset, tiles)
    for run in runs:
        said = _said(run, dataset, tiles)
        maps = {
            f"{what}_{i}": values
            for i, one in enumerate(said)
            for what, values in (("footprint", one.footprint), ("height", one.height_m))
            if values is not None
        }
        with atomic_path(run.folder / _FILE) as temporary, open(temporary, "wb") as f:
            np.savez_compressed(f, key=_key(run, asked), **maps)
        yield run.name


def figures(galleries: Sequence[Gallery], runs: Sequence[Run], dataset: Path) -> dict[str, Figure]:
    """Title -> picture, of the galleries of which at least one network has maps; rows without any are left out."""
    by_row, tiles = {run.row: run for run in runs}, _tiles(galleries, dataset)
    split, asked, made = catalog.load_split(str(dataset)), _asked(dataset, tiles), {}
    for gallery in galleries:
        ours = _tiles([gallery], dataset)
        places = [tiles.index(tile_id) for tile_id in ours]
        networks = {}
        for row, label in gallery.rows.items():
            run = by_row.get(row)
            said = None if run is None else _read(run, asked)
            if said is not None:
                networks[label] = [said[i] for i in places]
        if networks:
            views, truth = zip(*(_view(split, tile_id) for tile_id in ours), strict=True)
            made[gallery.title] = gallery_figure(views, truth, networks)
    return made


def _tiles(galleries: Sequence[Gallery], dataset: Path) -> list:
    """Ids of all tiles that `galleries` show, in the data set's order."""
    split = catalog.load_split(str(dataset))
    chosen = {
        tile.id
        for gallery in galleries
        for tile in choose_tiles(split.tiles, gallery.tiles, [len(t.buildings) for t in split.tiles])
    }
    return [tile.id for tile in split.tiles if tile.id in chosen]


def _asked(dataset: Path, tiles: list) -> str:
    """What the maps are of; hashed once for all networks."""
    return f"{file_sha256(dataset)} {tiles}"


def _key(run: Run, asked: str) -> str:
    trained = run.trained()
    return f"{trained and trained['weights']} {asked}"


def _read(run: Run, asked: str) -> list[Said] | None:
    path = run.folder / _FILE
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as stored:
        if str(stored["key"]) != _key(run, asked):
            return None
        count = 1 + max((int(name.rpartition("_")[2]) for name in stored.files if name != "key"), default=-1)

        def get(what: str, i: int) -> np.ndarray | None:
            name = f"{what}_{i}"
            return stored[name] if name in stored.files else None

        return [Said(get("footprint", i), get("height", i)) for i in range(count)]


def _said(run: Run, dataset: Path, tiles: list) -> list[Said]:
    cfg, model = load_trained(run, ["DATASETS.TEST", [str(dataset)]])
    mapper, split = FusionDatasetMapper(cfg, False), catalog.load_split(str(dataset))
    said = []
    for record in (r for r in catalog.records(split) if r["image_id"] in tiles):
        x = mapper(record)
        with torch.no_grad():
            output = model([x])[0]
        said.append(_maps(x, output))
    return said


def _maps(x: dict, output: dict) -> Said:
    """The maps of dense heads; of a network without, its instances, painted."""
    height_m, probability = output.get("height_map_m"), output.get("footprint_map")
    if height_m is None and probability is None:
        records = prediction_records(x, output["instances"].to("cpu"))
        painted_m, footprint = painted(records, (x["height"], x["width"]))
        return Said(footprint, painted_m if output["instances"].has("pred_heights") else None)
    footprint = None if probability is None else (probability >= FOOTPRINT_LIMIT).cpu().numpy()
    return Said(footprint, None if height_m is None else height_m.float().cpu().numpy())


def _view(split: Dataset, tile_id) -> tuple[TileView, np.ndarray]:
    tile = next(t for t in split.tiles if t.id == tile_id)
    truth_m, footprint = tile_truth(split, tile)
    return TileView(tile, read_tile(split, tile), split.bands, truth_map_m=truth_m), footprint
