"""Profiles along shadow and layover: a mark of one height is in one place, whatever the angles."""

import math

import fusiondet.compat  # noqa: F401
from fusiondet.buildings import SensorGeometry
from fusiondet.errors import InputError
from fusiondet.modeling.preprocessing import sensor_rows
from fusiondet.modeling.sensor_geometry import (
    FACTS,
    HEIGHTS_M,
    MARKS,
    SENSOR_FIELDS,
    GeometryBranch,
    check_facts,
    far_edges,
    mark_place,
    sample_profiles,
)

import pytest
import torch
from detectron2.structures import Boxes

CANDIDATES_M = torch.tensor(HEIGHTS_M)


def row(gsd_m=0.5, **angles):
    """(1, F) as the meta architecture makes it; angles by their names in SensorGeometry."""
    return sensor_rows([{"gsd_m": gsd_m, "sensor": angles}], "cpu")


def test_a_row_has_the_gsd_and_the_fields_of_the_metadata():
    assert SENSOR_FIELDS == ("gsd_m", *SensorGeometry().to_dict())
    assert {fact.field for fact in FACTS.values()} == set(SENSOR_FIELDS)


# ---- where marks lie ----


def swept(box_xyxy, direction, length_px, side=200):
    """(1, 1, side, side): 1 where a box, moved by up to `length_px` along `direction`, comes by."""
    centres = torch.arange(side) + 0.5
    since, until = torch.zeros(side, side), torch.full((side, side), float(length_px))
    for axis, d in enumerate(direction):
        at = centres if axis == 0 else centres[:, None]
        d = d if abs(d) > 1e-6 else 1e-6
        ends = torch.stack([(at - box_xyxy[axis]) / d, (at - box_xyxy[axis + 2]) / d])
        since, until = torch.maximum(since, ends.amin(0)), torch.minimum(until, ends.amax(0))
    return (since < until).float()[None, None]


@pytest.mark.parametrize("elevation", [30.0, 55.0])
@pytest.mark.parametrize("azimuth", [0.0, 90.0, 140.0, 245.0])
def test_a_shadow_ends_at_the_candidate_that_is_the_height(elevation, azimuth):
    height_m, gsd_m, box = 12.0, 0.5, (85.0, 90.0, 115.0, 110.0)
    away = (-math.sin(math.radians(azimuth)), math.cos(math.radians(azimuth)))
    picture = swept(box, away, height_m / math.tan(math.radians(elevation)) / gsd_m)
    facts = row(gsd_m, sun_azimuth_deg=azimuth, sun_elevation_deg=elevation)
    place = mark_place(MARKS["sun_shadow"], facts)
    origins, hit = far_edges(torch.ones(1, 1, 28, 28), torch.tensor([box]), place.direction, 8)
    dark = sample_profiles(picture, 1, origins, place.direction, place.reach_px, [1])[0, 0]
    assert place.known.all() and hit.all()
    for line in dark:
        ends_m = CANDIDATES_M[line > 0.5].max().item()
        assert height_m / 1.2 < ends_m < height_m * 1.1, "candidates are 14 % apart"


@pytest.mark.parametrize(
    ("mark", "direction", "metres_per_metre"),
    [
        ("sun_shadow", (-1, 0), 1 / math.tan(math.radians(40))),
        ("layover", (0, 1), 1 / math.tan(math.radians(35))),
        ("radar_shadow", (0, -1), math.tan(math.radians(35))),
        ("lean", (0, 1), math.tan(math.radians(20))),
    ],
)
def test_marks_lie_where_physics_puts_them(mark, direction, metres_per_metre):
    """Sun in the east; the antenna looks north, from the south; the camera stands in the north."""
    facts = row(0.25, sun_azimuth_deg=90, sun_elevation_deg=40, sar_look_azimuth_deg=0, sar_incidence_deg=35,
                view_azimuth_deg=0, view_off_nadir_deg=20)  # fmt: skip
    place = mark_place(MARKS[mark], facts)
    torch.testing.assert_close(
        place.direction[0], torch.tensor(direction, dtype=torch.float32), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(place.reach_px[0], CANDIDATES_M * metres_per_metre / 0.25)


def test_the_same_height_is_half_as_many_pixels_at_twice_the_gsd():
    angles = {"sun_azimuth_deg": 10.0, "sun_elevation_deg": 30.0}
    fine, coarse = (mark_place(MARKS["sun_shadow"], row(g, **angles)).reach_px for g in (0.5, 1.0))
    torch.testing.assert_close(fine, 2 * coarse)


@pytest.mark.parametrize("elevation", [0.001, 90.0])
def test_a_sun_on_the_horizon_or_overhead_gives_finite_places(elevation):
    place = mark_place(MARKS["sun_shadow"], row(sun_azimuth_deg=10, sun_elevation_deg=elevation))
    assert torch.isfinite(place.reach_px).all()


@pytest.mark.parametrize("missing", ["gsd_m", "sun_azimuth_deg", "sun_elevation_deg"])
def test_a_mark_is_known_when_all_its_facts_are(missing):
    facts = {"gsd_m": 0.5, "sun_azimuth_deg": 10.0, "sun_elevation_deg": 30.0, missing: None}
    place = mark_place(MARKS["sun_shadow"], row(**facts))
    assert (
        not place.known.any()
        and torch.isfinite(place.direction).all()
        and torch.isfinite(place.reach_px).all()
    )


def test_lines_leave_a_box_at_its_far_side():
    origins, hit = far_edges(
        torch.ones(1, 1, 28, 28), torch.tensor([[10.0, 20.0, 50.0, 40.0]]), torch.tensor([[1.0, 0.0]]), 4
    )
    assert hit.all()
    torch.testing.assert_close(origins[0, :, 0], torch.full((4,), 50.0), atol=0.5, rtol=0)
    torch.testing.assert_close(origins[0, :, 1], torch.tensor([22.5, 27.5, 32.5, 37.5]), atol=0.3, rtol=0)


def test_lines_are_spread_over_the_building_not_over_its_box():
    """The lower left half of a square, seen towards the upper right: all lines leave on the diagonal."""
    mask = torch.tril(torch.ones(40, 40))[None, None]
    u = math.sqrt(0.5)
    origins, hit = far_edges(mask, torch.tensor([[0.0, 0.0, 40.0, 40.0]]), torch.tensor([[u, -u]]), 6)
    assert hit.all()
    torch.testing.assert_close(origins[0, :, 0], origins[0, :, 1], atol=1.0, rtol=0)


def test_a_line_through_a_courtyard_ends_at_the_outer_wall():
    mask = torch.ones(1, 1, 30, 30)
    mask[:, :, 10:20, 10:20] = 0
    origins, _ = far_edges(mask, torch.tensor([[0.0, 0.0, 30.0, 30.0]]), torch.tensor([[0.0, 1.0]]), 5)
    torch.testing.assert_close(origins[0, :, 1], torch.full((5,), 30.0), atol=0.5, rtol=0)


def test_no_line_hits_an_empty_mask():
    origins, hit = far_edges(
        torch.zeros(1, 1, 8, 8), torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([[1.0, 0.0]]), 3
    )
    assert not hit.any() and torch.isfinite(origins).all()


def test_cells_are_sampled_where_their_centres_are():
    """Bilinear sampling of a map that holds the pixel coordinates of its cells gives the coordinates back."""
    x = ((torch.arange(16) + 0.5) * 4).expand(16, 16)
    coordinates = torch.stack([x, x.T])[None]
    origins, direction = torch.tensor([[[20.0, 30.0]]]), torch.tensor([[0.6, 0.8]])
    found = sample_profiles(coordinates, 4, origins, direction, torch.tensor([[0.0, 5.0, 10.0]]), [1])
    torch.testing.assert_close(found[0, :, 0].T, torch.tensor([[20.0, 30.0], [23.0, 34.0], [26.0, 38.0]]))


def test_beyond_the_map_there_is_nothing():
    found = sample_profiles(
        torch.ones(1, 1, 4, 4),
        4,
        torch.tensor([[[8.0, 8.0]]]),
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[0.0, 90.0]]),
        [1],
    )
    assert found.flatten().tolist() == [1.0, 0.0]


# ---- the branch ----


ALL = list(FACTS)
ANGLES = {
    "sun_azimuth_deg": 145.0, "sun_elevation_deg": 40.0, "sar_look_azimuth_deg": 80.0, "sar_incidence_deg": 35.0,
    "view_azimuth_deg": 300.0, "view_off_nadir_deg": 15.0,
}  # fmt: skip


@pytest.fixture
def branch():
    torch.manual_seed(0)
    return GeometryBranch(ALL, in_channels=6, stride=4, dim=8).eval()


def scene(n=2, seed=0, side=64):
    """Random features (1, 6, 16, 16) of a 64-px image, n boxes and masks."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, 2, generator=generator) * (side - 24)
    boxes = Boxes(torch.cat([corners, corners + torch.tensor([20.0, 12.0])], dim=1))
    return (
        torch.randn(1, 6, 16, 16, generator=generator),
        boxes,
        torch.rand(n, 1, 28, 28, generator=generator),
    )


def evidence(branch, features, boxes, masks, sensor):
    """The vector without the embedding of the facts: what the profiles tell."""
    found = branch(features, [boxes], masks, sensor)
    return torch.cat([found.vector[:, 2 * len(branch.facts) :], found.log_height[:, None]], dim=1)


def test_a_picture_turned_with_its_azimuths_tells_the_same(branch):
    features, boxes, masks = scene()
    sensor = SensorGeometry(**ANGLES)
    before = evidence(branch, features, boxes, masks, row(**sensor.to_dict()).expand(2, -1))
    x0, y0, x1, y1 = boxes.tensor.unbind(1)
    turned_boxes = Boxes(torch.stack([64 - y1, x0, 64 - y0, x1], dim=1))
    turned = (features.rot90(-1, (2, 3)), turned_boxes, masks.rot90(-1, (2, 3)))
    after = evidence(branch, *turned, row(**sensor.rotated(90).to_dict()).expand(2, -1))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    unturned = evidence(branch, *turned, row(**sensor.to_dict()).expand(2, -1))
    assert (unturned - before).abs().max() > 1e-3


def test_a_mirrored_picture_tells_the_same(branch):
    features, boxes, masks = scene()
    sensor = SensorGeometry(**ANGLES)
    before = evidence(branch, features, boxes, masks, row(**sensor.to_dict()).expand(2, -1))
    x0, y0, x1, y1 = boxes.tensor.unbind(1)
    mirrored = (features.flip(3), Boxes(torch.stack([64 - x1, y0, 64 - x0, y1], dim=1)), masks.flip(3))
    after = evidence(branch, *mirrored, row(**sensor.flipped_horizontally().to_dict()).expand(2, -1))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_images_of_a_batch_each_have_their_own_geometry(branch):
    (fa, boxes_a, masks_a), (fb, boxes_b, masks_b) = scene(2, 1), scene(3, 2)
    rows_a = row(0.5, **ANGLES).expand(2, -1)
    rows_b = row(1.0, **{**ANGLES, "sun_azimuth_deg": 210.0, "sar_incidence_deg": None}).expand(3, -1)
    apart = [branch(fa, [boxes_a], masks_a, rows_a), branch(fb, [boxes_b], masks_b, rows_b)]
    nobody = Boxes(torch.zeros(0, 4))
    together = branch(
        torch.cat([fa, fb, fa]),
        [boxes_a, boxes_b, nobody],
        torch.cat([masks_a, masks_b]),
        torch.cat([rows_a, rows_b]),
    )
    for got, expected in zip(together, zip(*apart)):
        torch.testing.assert_close(got, torch.cat(expected))


def test_unknown_facts_have_an_embedding_of_their_own_and_no_nan_reaches_a_gradient(branch):
    features, boxes, masks = scene()
    features.requires_grad_(True)
    vector, log_height = branch(features, [boxes], masks, row(None).expand(2, -1))
    told = torch.cat([branch.unknown_facts.flatten(), branch.unknown_votes.flatten()])
    torch.testing.assert_close(vector, told.expand(2, -1))
    torch.testing.assert_close(log_height, torch.zeros(2), msg="nobody has voted yet")
    (vector.square().sum() + (vector.sum() + log_height.sum())).backward()
    for name, parameter in branch.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert branch.unknown_facts.grad.abs().min() > 0
    assert torch.isfinite(features.grad).all()


def test_nobody_to_look_at_keeps_every_parameter_in_the_graph(branch):
    features, _, _ = scene()
    features = features.expand(2, -1, -1, -1)
    nobody = [Boxes(torch.zeros(0, 4))] * 2
    vector, log_height = branch(
        features, nobody, torch.zeros(0, 1, 28, 28), torch.zeros(0, len(SENSOR_FIELDS))
    )
    assert vector.shape == (0, branch.out_channels) and log_height.shape == (0,)
    ((vector.sum() + log_height.sum()) * 0.0).backward()
    assert all(p.grad is not None and not p.grad.any() for p in branch.parameters())


def test_autocast_moves_no_sample(branch):
    features, boxes, masks = scene()
    rows = row(**ANGLES).expand(2, -1)
    place = mark_place(MARKS["layover"], rows)
    origins, _ = far_edges(masks, boxes.tensor, place.direction, 4)
    exact = sample_profiles(features, 4, origins, place.direction, place.reach_px, [2])
    plain = branch(features, [boxes], masks, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(far_edges(masks, boxes.tensor, place.direction, 4)[0], origins)
        assert torch.equal(sample_profiles(features, 4, origins, place.direction, place.reach_px, [2]), exact)
        rough = branch(features, [boxes], masks, rows)
    torch.testing.assert_close(rough.vector, plain.vector, atol=0.05, rtol=0.05)


def test_training_hides_facts_of_whole_images_drawn_from_the_seed(branch):
    branch.dropout = 0.5
    sensor = torch.arange(1.0, 6.0)[:, None].expand(-1, len(SENSOR_FIELDS))
    assert torch.equal(branch.hide(sensor, [2, 3]), sensor), "inference is told all"
    branch.train()
    torch.manual_seed(3)
    first = branch.hide(sensor, [2, 3])
    torch.manual_seed(3)
    torch.testing.assert_close(branch.hide(sensor, [2, 3]), first, equal_nan=True)
    hidden = torch.isnan(first)
    assert torch.equal(hidden[0], hidden[1]) and torch.equal(hidden[2], hidden[4])
    assert torch.equal(first[~hidden], sensor[~hidden])
    many = torch.isnan(torch.cat([branch.hide(sensor[:1], [1]) for _ in range(400)])).float().mean(0)
    assert ((many > 0.4) & (many < 0.6)).all(), "each fact on its own"


def test_only_facts_that_are_told_are_hidden():
    branch = GeometryBranch(["sun_azimuth"], in_channels=6, stride=4, dropout=0.999)
    told = branch.hide(torch.ones(50, len(SENSOR_FIELDS)), [1] * 50)
    assert torch.isnan(told[:, SENSOR_FIELDS.index("sun_azimuth_deg")]).any()
    assert not torch.isnan(told[:, SENSOR_FIELDS.index("gsd_m")]).any()
    assert branch.marks == [], "an azimuth without an elevation places nothing"


def shadows(n, seed, side=64):
    """n images of one house each: (features, boxes, masks, sensor, heights_m); every sun stands elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    azimuth, elevation, log_height = torch.rand(3, n, generator=generator)
    azimuth, elevation, heights_m = 360 * azimuth, 30 + 30 * elevation, 3 * 5**log_height
    pictures, rows, box = [], [], (26.0, 27.0, 38.0, 37.0)
    for a, e, h in zip(azimuth.tolist(), elevation.tolist(), heights_m.tolist()):
        away = (-math.sin(math.radians(a)), math.cos(math.radians(a)))
        pictures.append(swept(box, away, h / math.tan(math.radians(e)), side))
        rows.append(row(1.0, sun_azimuth_deg=a, sun_elevation_deg=e))
    boxes = [Boxes(torch.tensor([box]))] * n
    return torch.cat(pictures), boxes, torch.ones(n, 1, 28, 28), torch.cat(rows), heights_m


def test_the_length_of_a_shadow_is_read_under_any_sun_but_not_under_another_ones():
    torch.manual_seed(0)
    branch = GeometryBranch(["sun_azimuth", "sun_elevation"], in_channels=1, stride=1, dim=8)
    optimizer = torch.optim.Adam(branch.parameters(), lr=0.02)
    features, boxes, masks, sensor, heights_m = shadows(32, seed=1)
    for _ in range(50):
        optimizer.zero_grad()
        error = branch(features, boxes, masks, sensor).log_height - (heights_m / 9).log()
        error.abs().mean().backward()
        optimizer.step()
    features, boxes, masks, sensor, heights_m = shadows(32, seed=2)

    def mean_error(sensor):
        return (branch(features, boxes, masks, sensor).log_height - (heights_m / 9).log()).abs().mean().item()

    assert mean_error(sensor) < 0.12, "12 % of the height, on suns never seen"
    assert mean_error(sensor.roll(1, 0)) > 0.4, "no better than a constant"


# ---- names ----


@pytest.mark.parametrize(
    ("facts", "modalities", "message"),
    [
        (["sun_elevatoin"], ["optical"], "Did you mean 'sun_elevation'"),
        (["gsd", "gsd"], ["optical"], "twice"),
        (["gsd", "incidence"], ["optical"], r"incidence.*Set it to \['gsd'\]"),
        (["sun_azimuth", "look_azimuth"], ["sar"], "sun_azimuth"),
    ],
)
def test_facts_that_nothing_shows_are_refused(facts, modalities, message):
    with pytest.raises(InputError, match=message):
        check_facts(facts, modalities)


def test_all_facts_fit_a_network_that_sees_both():
    check_facts(ALL, ["optical", "sar"])
    check_facts([], ["sar"])
