"""Scenes to GeoDataFrames, from Python.

    from fusiondet.inference import ScenePredictor

    predictor = ScenePredictor.from_checkpoint("model.pth", device="cpu")
    buildings = predictor.predict("rgb.tif", "sar.tif")
    print(buildings[["height_m", "score", "area_m2"]].describe())

    # A scene larger than memory: frames of buildings as they are finished.
    for part in predictor.iterate("rgb.tif", "sar.tif", window_px=512):
        print(len(part), "buildings", part.height_m.max(), "m")

Runs that may be stopped and go on, or that others take part in, go through `fusiondet.inference.predict_to_file`.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from fusiondet.buildings import Building
from fusiondet.inference.outlines import buildings_to_map
from fusiondet.inference.pipeline import predict_windows
from fusiondet.inference.plan import ScenePlan, plan_scene
from fusiondet.inference.predictor import Predictor
from fusiondet.inference.scene import SceneFacts, finished_buildings, provenance
from fusiondet.io.layers import NUMBERS, areas_m2

import geopandas
import numpy as np
import pandas
import shapely
from pyproj import CRS

# Buildings of a frame that `iterate` gives, at least.
_FRAME_ROWS = 1000


class ScenePredictor:
    """A trained network that turns rasters of any size into GeoDataFrames of buildings.

    Frames have the columns of the layers of `fusiondet.io.layers`: score, height_m, height_p16_m, height_p84_m (metres
    above ground, NaN where unknown), area_m2 and volume_m3, and outlines in the scene's own CRS; without a CRS, areas
    are in map units. `frame.attrs` holds "notes", what was decided on the way, and "metadata", where it comes from.
    """

    def __init__(self, predictor: Predictor):
        """`predictor`: a network that finds buildings."""
        self.predictor = predictor

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str | None = None, score_threshold: float | str | None = "layer"
    ) -> "ScenePredictor":
        """Load a checkpoint that tools/train_net.py wrote; see `Predictor` for the arguments and errors."""
        return cls(Predictor(path, device, score_threshold))

    def predict(self, rgb, sar=None, aoi=None, **options) -> geopandas.GeoDataFrame:
        """All buildings of a scene.

        Args:
            rgb, sar: a raster, or a list of rasters whose bands are those of one; None where there is none.
            aoi: area of interest: a file, a GeoDataFrame or GeoSeries in any CRS, or a geometry in the scene's.
            options: see `fusiondet.inference.predict_scene`.

        Raises:
            InputError: see `fusiondet.inference.predict_scene`.
        """
        plan, shape = self._plan(rgb, sar, aoi, options)
        notes = list(plan.notes)
        found = self._buildings(plan, shape, notes, rgb, sar)
        with contextlib.closing(found):
            buildings = [b for finished in found for b in finished]
        return self._frame(plan, buildings, notes)

    def iterate(self, rgb, sar=None, aoi=None, **options) -> Iterator[geopandas.GeoDataFrame]:
        """The same as `predict`, in frames of 1000 buildings or more, as they are finished; in constant memory.

        What is only known at the end, e.g. that SAR has no data anywhere, is in the notes of the last frame. There is
        always one, empty if nothing was found.
        """
        plan, shape = self._plan(rgb, sar, aoi, options)
        notes, waiting = list(plan.notes), []
        with contextlib.closing(self._buildings(plan, shape, notes, rgb, sar)) as found:
            for buildings in found:
                if len(waiting) >= _FRAME_ROWS:
                    yield self._frame(plan, waiting, notes)
                    waiting = []
                waiting += buildings
        yield self._frame(plan, waiting, notes)

    def _plan(self, rgb, sar, aoi, options: dict) -> tuple[ScenePlan, dict]:
        """The plan, and those of the options that `finished_buildings` takes."""
        shape = {name: options[name] for name in ("regularize_m", "max_overlap") if name in options}
        rest = {name: value for name, value in options.items() if name not in shape}
        return plan_scene(self.predictor, rgb, sar, aoi=aoi, **rest), shape

    def _buildings(self, plan, shape: dict, notes: list[str], rgb, sar) -> Iterator[list[Building]]:
        """In map coordinates; what the windows tell about the scene is added to `notes` at the end."""
        facts = SceneFacts()
        with contextlib.closing(predict_windows(self.predictor, plan, range(len(plan.windows)))) as results:
            for buildings in finished_buildings(plan, facts.of(results), **shape, facts=facts):
                yield buildings_to_map(buildings, plan.transform)
        notes += facts.notes(self.predictor, plan, rgb, sar)

    def _frame(self, plan: ScenePlan, buildings: Iterable[Building], notes) -> geopandas.GeoDataFrame:
        frame = buildings_frame(buildings, plan.crs)
        frame.attrs = {"notes": list(notes), "metadata": provenance(self.predictor, plan)}
        return frame


def buildings_frame(buildings: Iterable[Building], crs: str | None) -> geopandas.GeoDataFrame:
    """`buildings` in map coordinates of `crs` as a frame with the columns of a layer; NaN where unknown."""
    buildings = list(buildings)
    polygons = np.array([b.polygon for b in buildings], dtype=object)
    columns = {name: np.array([getattr(b, name) for b in buildings], dtype=float) for name in NUMBERS}
    area = areas_m2(polygons, CRS(crs)) if crs else shapely.area(polygons).astype(float)
    columns |= {"area_m2": area, "volume_m3": area * columns["height_m"]}
    return geopandas.GeoDataFrame(pandas.DataFrame(columns), geometry=list(polygons), crs=crs)
