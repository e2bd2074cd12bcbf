import math

from fusiondet.synthetic.clouds import SHADE, cloud_cover, draw_layer, share_of
from fusiondet.synthetic.optical import render_optical

import numpy as np
import pytest

TILES = [(64.0 * i, 0.0, 64.0 * (i + 1), 64.0) for i in range(8)]
SIZE = (128, 128)


@pytest.fixture
def layer(sensor):
    return draw_layer(0.4, TILES, sensor(), np.random.default_rng(5))


@pytest.mark.parametrize("mean", [0.1, 0.3, 0.5, 0.9])
def test_acquisitions_are_clear_to_overcast_and_have_the_mean_share(mean):
    shares = [share_of(i, mean) for i in range(60)]
    for n in (8, 20, 60):
        assert np.mean(shares[:n]) == pytest.approx(mean, abs=0.03)
    assert min(shares) < 0.65 * mean and max(shares) > min(0.7, 3 * mean)
    assert {share_of(i, 0.0) for i in range(9)} == {0.0} and {share_of(i, 1.0) for i in range(9)} == {1.0}


@pytest.mark.parametrize("share", [0.0, 0.15, 0.6, 1.0])
def test_the_share_of_an_acquisition_is_hidden(share, sensor):
    layer = draw_layer(share, TILES, sensor(), np.random.default_rng(1))
    opacity = np.stack([cloud_cover(layer, t, SIZE, 1, sensor()).opacity for t in TILES])
    assert opacity.mean() == pytest.approx(share, abs=0.02)
    assert (opacity.min(), opacity.max()) == {0.0: (0, 0), 1.0: (1, 1)}.get(share, (0, 1))
    assert ((opacity > 0.02) & (opacity < 0.98)).mean() < 0.12  # edges of a few pixels, not haze


def test_clouds_are_larger_than_buildings_and_fit_from_tile_to_tile(layer, sensor):
    opacity = np.hstack([cloud_cover(layer, t, SIZE, 2, sensor()).opacity for t in TILES])
    whole = cloud_cover(layer, (0, 0, 512, 64), (128, 1024), 2, sensor())
    np.testing.assert_allclose(opacity, whole.opacity, atol=1e-3)
    runs = np.diff(np.flatnonzero(np.diff((opacity[64] > 0.5).astype(int))))
    assert np.median(runs) * 0.5 > 20  # metres along a line, of cloud or of gap


@pytest.mark.parametrize("sun", [(180.0, 45.0), (90.0, 60.0), (235.0, 35.0)])
def test_a_shadow_falls_away_from_the_sun_by_height_over_tan_elevation(sun, layer, sensor):
    azimuth, reach_m = math.radians(sun[0]), layer.base_m / math.tan(math.radians(sun[1]))
    dx, dy = -reach_m * math.sin(azimuth), -reach_m * math.cos(azimuth)
    moved = (100 + dx, 50 + dy, 228 + dx, 178 + dy)
    cloud = cloud_cover(layer, (100, 50, 228, 178), (256, 256), 1, sensor(sun))
    shadow = cloud_cover(layer, moved, (256, 256), 1, sensor(sun))
    shade = (1 - shadow.sunlight) / SHADE
    assert 0.05 < cloud.opacity.mean() < 0.95
    assert np.array_equal(shade > 0.5, cloud.opacity > 0.5)
    assert np.abs(shade - cloud.opacity).mean() < 0.1  # softer, in the same place


def test_seen_aslant_a_cloud_hides_what_is_behind_it(layer, sensor):
    """Seen from the east at 20 degrees, it appears base * tan(20) further west; its shadow stays."""
    reach_m = layer.base_m * math.tan(math.radians(20))
    above = cloud_cover(layer, (100, 50, 228, 178), (256, 256), 1, sensor())
    aslant = cloud_cover(layer, (100 - reach_m, 50, 228 - reach_m, 178), (256, 256), 1, sensor(view=(90, 20)))
    np.testing.assert_allclose(aslant.opacity, above.opacity, atol=1e-3)
    same_place = cloud_cover(layer, (100, 50, 228, 178), (256, 256), 1, sensor(view=(90, 20)))
    assert np.array_equal(same_place.sunlight, above.sunlight)
    assert np.abs(same_place.opacity - above.opacity).max() > 0.5


def test_the_picture_is_white_under_cloud_dim_in_its_shadow_and_untouched_elsewhere(
    layer, scene_of, block, sensor
):
    scene = scene_of([block(10, 20, 30, 40, 12.0)])
    tile, cover = (0, 0, 64, 64), None
    for tile in TILES:
        cover = cloud_cover(layer, tile, SIZE, 2, sensor())
        if 0.2 < cover.opacity.mean() < 0.8:
            break
    sunlight = np.ones_like(cover.sunlight)
    sunlight[:, :100] = 1 - SHADE  # left 50 columns of the tile
    cover = type(cover)(cover.opacity, cover.brightness, sunlight)
    cloudy, clear = (
        render_optical(scene, sensor(), np.random.default_rng(1), clouds=c).astype(int) for c in (cover, None)
    )
    opaque, none = cover.opacity > 0.99, cover.opacity == 0
    lit, dim = np.zeros((2, *SIZE), bool)
    lit[:, 56:], dim[:, :46] = True, True
    assert opaque.any() and (none & lit).any() and (none & dim).any()
    assert cloudy[opaque].min() > 195 and 1 < cloudy[opaque].std() < 15
    assert np.array_equal(cloudy[none & lit], clear[none & lit])
    assert 0.4 < cloudy[none & dim].mean() / clear[none & dim].mean() < 0.8
    bare = render_optical(scene, sensor(), np.random.default_rng(1), shadow=False, clouds=cover).astype(int)
    assert bare[none & dim].mean() > clear[none & dim].mean()  # neither shadows of houses nor of clouds
