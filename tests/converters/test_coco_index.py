"""COCO files read image by image: the same as read whole, whatever their order and spelling."""

import json
from collections import Counter

from fusiondet.converters.coco_index import read_index
from fusiondet.converters.reports import Problems

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import box

texts = st.text(max_size=8) | st.sampled_from(['"}]', "\\", '{"images": [', "é}"])


def ring(x, y, side=4):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def image(number, name=None):
    return {"id": number, "file_name": name or f"{number}.tif", "width": 64, "height": 48}


def annotation(number, owner, x=0, **more):
    return {"id": number, "image_id": owner, "category_id": 1, "segmentation": [ring(x, 0)], **more}


def write(folder, content, **options):
    path = folder / "a.json"
    path.write_text(json.dumps(content, **options), encoding="utf-8")
    return path


def found(index):
    return {i.id: [a["id"] for a, _ in index.annotations(i)] for i in index.images}


@given(
    owners=st.lists(st.integers(0, 4), max_size=12),
    note=texts,
    annotations_first=st.booleans(),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
)
def test_every_annotation_is_found_with_its_image(
    tmp_path, owners, note, annotations_first, indent, ascii_only
):
    images = [image(n, f"{n} {note}.tif") for n in (3, 1, 4, 0, 2)]
    annotations = [
        annotation(k, owner, note=note, nested={"a": [{"b": note}]}) for k, owner in enumerate(owners)
    ]
    lists = {"images": images, "annotations": annotations}
    if annotations_first:
        lists = dict(reversed(lists.items()))
    content = {"info": {"images": [note]}, note or "x": note, **lists, "licenses": [{"images": [{"id": 9}]}]}
    problems = Problems()
    index = read_index(write(tmp_path, content, indent=indent, ensure_ascii=ascii_only), problems)
    assert [i.id for i in index.images] == [3, 1, 4, 0, 2] and index.images[0].name == f"3 {note}.tif"
    assert found(index) == {n: [k for k, owner in enumerate(owners) if owner == n] for n in (3, 1, 4, 0, 2)}
    assert index.annotation_count == len(owners) and not problems.counts


def test_what_cannot_be_used_is_named_and_the_rest_is_read(tmp_path):
    content = {
        "images": [
            image(1),
            {**image(2), "width": 0},
            {**image(3), "id": "x"},
            image(1, "again.tif"),
            image(4),
        ],
        "annotations": [
            annotation(1, 1),
            annotation(2, 2),
            annotation(3, 9),
            annotation(4, 9),
            annotation(1, 4),
        ],
    }
    problems = Problems()
    index = read_index(write(tmp_path, content), problems)
    assert [i.id for i in index.images] == [1, 4] and found(index) == {1: [1], 4: [1]}
    assert problems.counts == {
        "records that are no images": 2,
        "images listed twice": 1,
        "annotation ids that occur twice": 1,
        "images that have annotations and are not listed": 2,
    }
    assert any(
        "2 annotations belong to image 9" in m for messages in problems.named.values() for m in messages
    )
    [building] = index.buildings(index.images[1], problems, Counter())
    assert building.id is None, "an id of two buildings is none"


def test_outlines_without_area_crowds_and_nonsense(tmp_path):
    content = {
        "images": [image(1)],
        "annotations": [
            annotation(1, 1, x=10),
            annotation(2, 1, iscrowd=1),
            {**annotation(3, 1), "segmentation": []},
            {**annotation(4, 1), "segmentation": [[1, 2, 3, 4]]},
            {**annotation(5, 1), "segmentation": [["a", "b"] * 4]},
            {**annotation(6, 1), "segmentation": None},
            {**annotation(7, 1), "segmentation": {"size": [9, 9], "counts": [81]}},
            {**annotation(8, 1), "segmentation": {}},
        ],
    }
    problems, counts = Problems(), Counter()
    index = read_index(write(tmp_path, content), problems)
    [building] = index.buildings(index.images[0], problems, counts)
    assert building.polygon.equals(box(10, 0, 14, 4)) and building.attributes == {}
    assert problems.counts == {"broken outlines": 4}
    assert counts["crowds left out"] == 1 and counts["without area"] == 2


@pytest.mark.parametrize("names", ["", "a", "ab"])
def test_category_is_kept_where_there_are_several(tmp_path, names):
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    content = {"images": [image(1)], "annotations": [annotation(1, 1)], "categories": categories}
    index = read_index(write(tmp_path, content), Problems())
    [building] = index.buildings(index.images[0], Problems(), Counter())
    assert building.attributes == ({"category": "a"} if names == "ab" else {})
