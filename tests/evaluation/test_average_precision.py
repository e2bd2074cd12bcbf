"""AP against pycocotools, and the joint AP against its definition."""

import contextlib
import io

from fusiondet.evaluation.average_precision import average_precision, coco_average_precision
from fusiondet.evaluation.instances import evaluate_instances
from fusiondet.io.coco import encode_rle

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIZE = 96


def rectangle_rle(x, y, w, h):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y : y + h, x : x + w] = True
    return encode_rle(mask)


def rectangle(x, y, w, h, **more):
    """Annotation or record whose mask is that rectangle."""
    return {
        "image_id": 1,
        "category_id": 1,
        "bbox": [x, y, w, h],
        "area": w * h,
        "iscrowd": 0,
        "segmentation": rectangle_rle(x, y, w, h),
        **more,
    }


def document_of(annotations, n_images=1):
    images = [
        {"id": i, "file_name": f"{i}.tif", "width": SIZE, "height": SIZE} for i in range(1, n_images + 1)
    ]
    numbered = [{**a, "id": n} for n, a in enumerate(annotations, start=1)]
    return {"images": images, "annotations": numbered, "categories": [{"id": 1, "name": "building"}]}


def random_scene(seed, n_images=5, per_image=30, crowds=True):
    """Truth in random rectangles, predictions that are shaken truth, misses, extras, and tied scores."""
    rng = np.random.default_rng(seed)
    annotations, records = [], []
    for image_id in range(1, n_images + 1):
        for _ in range(rng.integers(0, per_image)):
            x, y, w, h = (int(v) for v in (*rng.integers(0, SIZE - 24, 2), *rng.integers(4, 20, 2)))
            height_m = float(rng.uniform(2, 30)) if rng.random() < 0.8 else None
            crowd = int(crowds and rng.random() < 0.1)
            annotations.append(rectangle(x, y, w, h, image_id=image_id, height_m=height_m, iscrowd=crowd))
            for _ in range(rng.integers(0, 4)):
                dx, dy, dw, dh = (int(v) for v in rng.integers(-2, 3, 4))
                box = (max(x + dx, 0), max(y + dy, 0), max(w + dw, 1), max(h + dh, 1))
                guess_m = (height_m or 10.0) * float(np.exp(rng.normal(0, 0.2)))
                score = round(float(rng.random()), 1)
                records.append(rectangle(*box, image_id=image_id, score=score, height_m=guess_m))
    return document_of(annotations, n_images), records


def pycocotools_precision(document, records, kind, max_detections):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {**document, "annotations": [dict(a) for a in document["annotations"]]}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(r) for r in records]), kind)
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, 0].mean(axis=1)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_ap_equals_pycocotools(kind, seed):
    document, records = random_scene(seed)
    expected = pycocotools_precision(document, records, kind, 100)
    assert coco_average_precision(document, records, kind, 100) == pytest.approx(expected, abs=1e-12)


def test_ap_equals_pycocotools_above_one_hundred_detections():
    document, records = random_scene(7, n_images=2, per_image=300)
    per_image = max(sum(r["image_id"] == i for r in records) for i in (1, 2))
    assert per_image > 200
    for limit in (150, 1000):
        expected = pycocotools_precision(document, records, "segm", limit)
        assert coco_average_precision(document, records, "segm", limit) == pytest.approx(expected, abs=1e-12)
    few, many = (evaluate_instances(document, records, n, ("coco",))["segm/AP50"] for n in (20, 1000))
    assert few < many


def test_the_numbers_of_a_scene_one_can_draw():
    truth = [rectangle(0, 0, 10, 10, height_m=10.0), rectangle(30, 0, 10, 10, height_m=20.0)]
    records = [
        rectangle(0, 0, 10, 10, score=0.9, height_m=10.0),
        rectangle(30, 0, 10, 6, score=0.8, height_m=20.0),
        rectangle(60, 60, 10, 10, score=0.7, height_m=5.0),
    ]
    got = evaluate_instances(document_of(truth), records)
    # The second prediction has IoU 0.6: right at .50, .55, .60, wrong from .65 on, where 51 of 101 points remain.
    for kind in ("bbox", "segm", "joint"):
        assert got[f"{kind}/AP50"] == pytest.approx(100)
        assert got[f"{kind}/AP75"] == pytest.approx(100 * 51 / 101)
        assert got[f"{kind}/AP"] == pytest.approx(10 * (3 + 7 * 51 / 101))
    assert (got["dataset/n_images"], got["dataset/n_buildings"], got["dataset/n_predictions"]) == (1, 2, 3)


def test_joint_ap_is_ap_when_all_heights_are_right_and_known():
    document, records = random_scene(11, crowds=True)
    for a in document["annotations"]:
        a["height_m"] = 10.0
    for r in records:
        r["height_m"] = 11.0
    got = evaluate_instances(document, records)
    for name in ("AP", "AP50", "AP75"):
        assert got[f"joint/{name}"] == pytest.approx(got[f"segm/{name}"], abs=1e-9)
    assert 0 < got["joint/AP50"] < 100


def test_a_wrong_height_is_a_false_positive_and_leaves_the_truth_to_others():
    truth = [rectangle(0, 0, 10, 10, height_m=10.0)]
    wrong = rectangle(0, 0, 10, 10, score=0.9, height_m=12.5)
    right = rectangle(0, 0, 10, 10, score=0.5, height_m=12.49)
    assert evaluate_instances(document_of(truth), [wrong], metrics=("joint",))["joint/AP50"] == 0
    assert evaluate_instances(document_of(truth), [right], metrics=("joint",))["joint/AP50"] == pytest.approx(
        100
    )
    # Found at rank two of two: precision one half at every recall.
    both = evaluate_instances(document_of(truth), [wrong, right])
    assert both["joint/AP50"] == pytest.approx(50)
    assert both["segm/AP50"] == pytest.approx(100)


def test_truth_of_unknown_height_is_ignored_but_a_prediction_elsewhere_is_not():
    truth = [rectangle(0, 0, 10, 10, height_m=None), rectangle(30, 0, 10, 10, height_m=8.0)]
    on_unknown = rectangle(0, 0, 10, 10, score=0.9, height_m=3.0)
    on_known = rectangle(30, 0, 10, 10, score=0.5, height_m=8.0)
    elsewhere = rectangle(60, 60, 10, 10, score=0.95, height_m=8.0)

    def joint(*records):
        return evaluate_instances(document_of(truth), list(records), metrics=("joint",))["joint/AP50"]

    assert joint(on_known) == joint(on_unknown, on_known) == pytest.approx(100)
    assert joint(elsewhere, on_unknown, on_known) == pytest.approx(50)
    nothing_known = document_of([rectangle(0, 0, 10, 10, height_m=None)])
    assert evaluate_instances(nothing_known, [on_unknown], metrics=("joint",))["joint/AP50"] is None


def test_a_prediction_without_height_is_not_a_joint_true_positive():
    truth = [rectangle(0, 0, 10, 10, height_m=10.0)]
    got = evaluate_instances(document_of(truth), [rectangle(0, 0, 10, 10, score=0.9, height_m=None)])
    assert got["joint/AP50"] == 0 and got["segm/AP50"] == pytest.approx(100)
    assert got["height/n"] == 0 and got["height/coverage"] == 0


def slow_joint_ap50(document, records):
    """The definition, written out: one threshold, one loop per prediction, precision at 101 recalls by search."""
    truth = document["annotations"]
    masks = {id(x): _pixels(x) for x in [*truth, *records]}
    taken, outcomes = set(), []
    ordered = sorted(records, key=lambda r: (r["image_id"],))
    for record in sorted(ordered, key=lambda r: -r["score"]):
        best, best_iou, best_counts = None, 0.0, False
        for a in truth:
            if a["image_id"] != record["image_id"] or (id(a) in taken and not a["iscrowd"]):
                continue
            counts = not a["iscrowd"] and a["height_m"] is not None
            if counts and max(a["height_m"] / record["height_m"], record["height_m"] / a["height_m"]) >= 1.25:
                continue
            both = len(masks[id(a)] & masks[id(record)])
            union = len(masks[id(record)]) if a["iscrowd"] else len(masks[id(a)] | masks[id(record)])
            iou = both / union
            if iou >= 0.5 and (counts, iou) >= (best_counts, best_iou):
                best, best_iou, best_counts = a, iou, counts
        if best is not None:
            taken.add(id(best))
        if best is None or best_counts:
            outcomes.append(best is not None)
    n_truth = sum(not a["iscrowd"] and a["height_m"] is not None for a in truth)
    points = [
        (sum(outcomes[: k + 1]) / n_truth, sum(outcomes[: k + 1]) / (k + 1)) for k in range(len(outcomes))
    ]
    return np.mean([max((p for r, p in points if r >= q), default=0.0) for q in np.linspace(0, 1, 101)])


def _pixels(item):
    x, y, w, h = item["bbox"]
    return {(i, j) for i in range(x, x + w) for j in range(y, y + h)}


@pytest.mark.parametrize("seed", range(4))
def test_joint_ap_equals_its_written_out_definition(seed):
    document, records = random_scene(20 + seed, n_images=3, per_image=15)
    got = evaluate_instances(document, records, metrics=("joint",))["joint/AP50"]
    assert got == pytest.approx(100 * slow_joint_ap50(document, records), abs=1e-9)
    assert 0 < got < 100


def test_nothing_predicted_is_zero_and_no_truth_is_undefined():
    truth = document_of([rectangle(0, 0, 10, 10, height_m=10.0)])
    record = rectangle(0, 0, 10, 10, score=0.5, height_m=10.0)
    nothing_found = evaluate_instances(truth, [])
    no_truth = evaluate_instances(document_of([]), [record])
    neither = evaluate_instances(document_of([]), [])
    for key in ("bbox/AP", "segm/AP50", "joint/AP", "joint/AP50"):
        assert nothing_found[key] == 0
        assert no_truth[key] is None and neither[key] is None
    assert nothing_found["height/coverage"] == 0 and nothing_found["height/mae_m"] is None
    assert no_truth["height/coverage"] is None
    assert set(nothing_found) == set(no_truth) == set(neither)


def test_only_crowds_is_no_truth_and_excuses_predictions_inside():
    crowd = rectangle(0, 0, 40, 40, iscrowd=1, height_m=9.0)
    inside = rectangle(5, 5, 10, 10, score=0.9, height_m=2.0)
    assert evaluate_instances(document_of([crowd]), [inside])["segm/AP50"] is None
    house = rectangle(60, 60, 10, 10, height_m=8.0)
    found = rectangle(60, 60, 10, 10, score=0.5, height_m=8.0)
    got = evaluate_instances(document_of([crowd, house]), [inside, found])
    assert got["segm/AP50"] == got["joint/AP50"] == pytest.approx(100)
    assert (got["height/n"], got["height/coverage"]) == (1, 1.0)


def test_average_precision_of_a_hand_made_ranking():
    true = np.array([[True, False, True, False]])
    got = average_precision(np.array([0.9, 0.8, 0.7, 0.6]), true, np.zeros_like(true), n_truth=2)
    assert got == pytest.approx([(51 * 1 + 50 * 2 / 3) / 101])
    assert average_precision(np.zeros(0), np.zeros((1, 0), bool), np.zeros((1, 0), bool), 3) == [0.0]
    assert average_precision(np.zeros(0), np.zeros((1, 0), bool), np.zeros((1, 0), bool), 0) is None
