"""The cost of scene prediction: that both sides do the same work, what the stand-in does, and how costs are judged."""

import json

from benchmarks import scene_cost as scene
from benchmarks.conversion_cost import write_mosaic
from fusiondet.errors import InputError
from fusiondet.io.layers import read_buildings

import numpy as np
import pytest

WINDOW = 512


def test_windows_are_whole_lattices_apart():
    for window in (512, 1024, 600):
        stride = scene.stride_px(window)
        assert all(stride % pitch == 0 for pitch in scene.PITCH_PX) and 0 < stride < window
    side = scene.scene_side_px(4000, 512)
    assert side >= 4000 and (side - 512) % scene.stride_px(512) == 0


def test_the_stand_in_takes_its_time_and_counts_it():
    model = scene.StandIn(WINDOW, 0.02)
    assert len(model.outputs([{}, {}])) == 2
    assert 0.04 <= model.seconds_taken < 1
    masks = model.predict(np.zeros((WINDOW, WINDOW, 3), np.uint8)).pred_masks.numpy()
    assert masks.shape[1:] == (WINDOW, WINDOW) and masks.any(axis=(1, 2)).all()
    assert (masks.sum(axis=0) <= 1).all(), "buildings do not overlap"


def test_both_sides_find_the_same_and_say_what_they_took(tmp_path, monkeypatch):
    weights = scene.write_weights(tmp_path)
    side = scene.scene_side_px(900, WINDOW)
    path = write_mosaic(tmp_path / "scene.tif", side, side)
    for kind in ("ours", "usual", "idle"):
        scene.run(kind, str(weights), str(path), str(tmp_path / kind), WINDOW, 2.0, 1)
    times = {k: json.loads((tmp_path / k / "times.json").read_text()) for k in ("ours", "usual", "idle")}
    same = scene._compare_results(tmp_path)
    assert same["buildings"] == times["ours"]["buildings"] == times["usual"]["buildings"] > 100
    assert (
        times["idle"]["model_s"] == 0 and times["usual"]["predict_s"] > times["usual"]["model_s"] >= 4 * 0.002
    )
    # Each building once: the lattice's points on the scene, but for the L whose notch is all of it that is there.
    points = [len(np.arange(0, side + 1, pitch)) for pitch in scene.PITCH_PX]
    assert same["buildings"] == np.prod(points) - 1
    heights = [b.height_m for b in read_buildings(tmp_path / "ours" / "buildings.gpkg")[0]]
    assert min(heights) >= 4 and max(heights) <= 20


def test_another_result_is_no_comparison(tmp_path, monkeypatch):
    layers = {"ours": [1, 2], "usual": [1]}

    class One:
        area = 1.0

    monkeypatch.setattr(
        scene,
        "read_buildings",
        lambda path: ([type("B", (), {"polygon": One})] * len(layers[path.parent.name]), ""),
    )
    with pytest.raises(RuntimeError, match="finds 2 buildings of 2 m², the usual way 1 of 1 m²"):
        scene._compare_results(tmp_path)


def test_ratios_are_judged():
    def costs(predict_s, model_s, peak):
        return [{"predict_s": predict_s, "model_s": model_s, "peak_bytes": peak} for _ in range(2)]

    runs = {scene.START: costs(0, 0, 100), scene.OURS: costs(10, 9, 110), scene.USUAL: costs(20, 9, 200)}
    found = scene._ratios(runs, costs(1, 0, 100), costs(9, 0, 120))
    shares = {name: (of["median"], of["verdict"]) for name, of in found.items()}
    assert shares == {
        "wall time outside the network / wall time": (pytest.approx(0.1), "met"),
        "time outside the network, ours / usual": (pytest.approx(1 / 11), "met"),
        "memory beyond start-up, ours / usual": (pytest.approx(0.1), "met"),
        "peak memory, ours / usual, start-up included": (pytest.approx(0.55), "-"),
        "peak memory, large scene / small": (pytest.approx(1.2), "MISSED"),
    }


def test_the_tool_prints_what_was_measured(load_tool, monkeypatch, tmp_path, capsys):
    asked = []

    def fake(settings):
        asked.append(settings)
        run = {"predict_s": 2.0, "model_s": 1.5, "cpu_s": 1.0, "peak_bytes": 5e8, "buildings": 9}
        ratio = {"median": 0.1, "low": 0.1, "high": 0.1, "limit": 0.2, "verdict": "met"}
        return {"settings": {"window_px": 512, "model_ms": 25, "rounds": 1}, "machine": "this one", "scene_px": 992,
                "runs": {"ours": run}, "ratios": {"outside": ratio}, "same": {"buildings": 9}}  # fmt: skip

    monkeypatch.setattr(scene, "benchmark_scene", fake)
    words = f"scene --size 900 --model-ms 25 --rounds 1 --large 2000 --small 1000 --out {tmp_path / 'm.json'}"
    load_tool("benchmark").main(words.split())
    (settings,) = asked
    assert (settings.size_px, settings.large_px, settings.rounds) == (900, 2000, 1)
    printed = capsys.readouterr().out
    assert "outside: 0.100 (0.100 .. 0.100) <= 0.2: met" in printed and "m.json" in printed
    assert json.loads((tmp_path / "m.json").read_text())["scene_px"] == 992


@pytest.mark.parametrize("options", [{"rounds": 0}, {"window_px": 100}, {"model_ms": -1}])
def test_bad_settings(options):
    with pytest.raises(InputError, match=f"benchmark: {next(iter(options))} is"):
        scene.SceneSettings(**options)
