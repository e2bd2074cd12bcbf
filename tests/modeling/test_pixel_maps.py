"""Labels per pixel, and maps in the size of the output."""

import fusiondet.compat  # noqa: F401
from fusiondet.modeling.pixel_maps import add_maps, dense_targets, map_outputs, output_sizes

import torch
from detectron2.structures import ImageList

NAN = float("nan")


def test_targets_are_unknown_in_the_padding_without_labels_and_where_nothing_is_told(make_tile):
    tiles = [make_tile(1, side=4 * 8), make_tile(1) | {"labelled": False}, {"image": None}]
    tiles[0]["building_height_m"][0, 0] = NAN
    image = torch.zeros(3, 4, 96, 96)
    targets = dense_targets(tiles, image)
    known = ~targets.footprint.isnan()
    assert known.shape == (3, 1, 96, 96) and known.sum() == 32 * 32 and known[0, 0, :32, :32].all()
    assert (~targets.height_m.isnan()).sum() == 32 * 32 - 1
    assert targets.height_m[0, 0, :32, :32].nan_to_num().unique().tolist() == [0, 8]
    assert targets.image is image


def test_maps_are_cut_from_the_padding_and_resized_to_the_output():
    images = ImageList(torch.zeros(2, 3, 8, 8), [(4, 6), (8, 8)])
    sizes = output_sizes([{"height": 8, "width": 6}, {}], images)
    assert sizes == [(8, 6), (8, 8)]
    rows = torch.arange(8.0)[:, None].expand(2, 1, 8, 8)
    maps = {"height_map_m": rows, "class_map": rows.expand(2, 5, 8, 8)}
    one, other = map_outputs(maps, images, sizes)
    # Rows half as high: their centres lie at -0.25, 0.25, 0.75, ... of the old ones.
    torch.testing.assert_close(one["height_map_m"][:4, 0], torch.tensor([0, 0.25, 0.75, 1.25]))
    assert one["height_map_m"].shape == (8, 6) and one["class_map"].shape == (5, 8, 6)
    assert torch.equal(other["height_map_m"], rows[1, 0])


def test_maps_are_added_to_outputs():
    images = ImageList(torch.zeros(1, 3, 4, 4), [(4, 4)])
    outputs = [{"instances": 1}]
    assert add_maps(outputs, {"footprint_map": torch.ones(1, 1, 4, 4)}, images, [(4, 4)]) is outputs
    assert outputs[0].keys() == {"instances", "footprint_map"}
