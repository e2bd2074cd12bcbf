from fusiondet.buildings import SensorGeometry
from fusiondet.synthetic.city import City, CityBuilding, RoofPiece
from fusiondet.synthetic.surfaces import rasterize_scene

import numpy as np
import pytest
from shapely.geometry import box


def flat_building(x0, y0, x1, y1, height_m, **materials) -> CityBuilding:
    outline = box(x0, y0, x1, y1)
    return CityBuilding(outline, [RoofPiece(outline, (0.0, 0.0, height_m))], height_m, **materials)


def sensor_at(sun=(180.0, 45.0), look=(90.0, 45.0), view=(None, None)) -> SensorGeometry:
    return SensorGeometry(*sun, *look, *view)


@pytest.fixture
def block():
    """A flat building from its corners in metres and its height."""
    return flat_building


@pytest.fixture
def sensor():
    """Geometry from sun (azimuth, elevation) and look (azimuth, incidence) and view (azimuth, off-nadir)."""
    return sensor_at


@pytest.fixture
def scene_of():
    """The scene of some buildings on a 64 m tile whose lower left corner is the city's origin; 0.5 m pixels."""

    def make(buildings, geometry=None, trees=None, size_m=64.0, gsd_m=0.5, oversample=2):
        city = City(list(buildings), trees=np.zeros((0, 4)) if trees is None else np.array(trees, float))
        return rasterize_scene(city, (0, 0, size_m, size_m), gsd_m, geometry or sensor_at(), oversample)

    return make
