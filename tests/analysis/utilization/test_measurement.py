"""How much each modality is used: the formulas on numbers, networks that by construction use one alone, the tool."""

import dataclasses
import json
from types import SimpleNamespace

from fusiondet.analysis.utilization import (
    analyze,
    analyze_to_dir,
    markdown,
    text_table,
)
from fusiondet.analysis.utilization import (
    measurement as analysis,
)
from fusiondet.analysis.utilization.measurement import (
    REPLACEMENTS,
    SCORES,
    UTILIZATIONS,
    conditional_utilization,
    estimated,
    other_tiles,
    predictions,
    replace_modality,
)
from fusiondet.engine.checkpoint import FusionCheckpointer
from fusiondet.engine.complete_config import complete_config
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.errors import InputError
from fusiondet.evaluation.resampling import summarize
from fusiondet.geometry.painting import footprint_label
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import read_coco
from fusiondet.modeling.fusion import MODALITIES, Exchange, exchanges, mean_messages
from tests.support.messages import raises_naming
from tests.support.projects import needs_network
from tests.support.tiny_city import tiny_config, write_split

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from scipy import ndimage
from torch import nn

# ---- The formulas ----------------------------------------------------------------------------------------


def test_utilization_is_the_share_of_the_score_that_the_other_modality_brings():
    assert conditional_utilization(0.60, 0.378) == pytest.approx(0.37)
    assert conditional_utilization(0.5, 0.5) == 0
    assert conditional_utilization(80.0, 0.0) == 1


def test_utilization_is_negative_where_the_other_modality_harms():
    assert conditional_utilization(0.40, 0.50) == pytest.approx(-0.25)


@pytest.mark.parametrize("scores", [(0.0, 0.0), (0.0, 0.3), (np.nan, 0.3), (0.3, np.nan)])
def test_utilization_is_not_defined_without_a_score(scores):
    assert np.isnan(conditional_utilization(*scores))


def hand_made(**changes):
    """`estimated` of constant scores; every draw is the score itself."""
    names = ["as_is", *(f"{m}/{how}" for m in MODALITIES for how in REPLACEMENTS)]
    names += [f"{m}_branch{end}" for m in MODALITIES for end in ("", "_cut_off")]
    values = {name: 0.5 for name in names} | changes
    scores = {name: dict.fromkeys(SCORES, value) for name, value in values.items()}
    drawn = {
        name: dict.fromkeys(SCORES, np.full(20, np.nan if value is None else value))
        for name, value in values.items()
    }
    return estimated(scores, drawn, {"n_tiles": 3}, ["a note"])


def test_the_report_holds_both_utilizations_and_their_difference():
    report = hand_made(
        optical_branch=0.60, optical_branch_cut_off=0.378, sar_branch=0.5, sar_branch_cut_off=0.415
    )
    flat = report.to_dict()
    assert flat["utilization/u_sar_given_opt/pixel/best_f1"] == pytest.approx(0.37)
    assert flat["utilization/u_opt_given_sar/pixel/best_f1"] == pytest.approx(0.17)
    assert flat["utilization/d_util/pixel/best_f1"] == pytest.approx(0.20)
    assert (
        flat["utilization/d_util/pixel/best_f1/low"]
        == flat["utilization/d_util/pixel/best_f1/high"]
        == pytest.approx(0.20)
    )
    assert "u(sar\\|opt) | +0.370 [+0.370, +0.370]" in markdown(report)


def test_what_is_not_defined_stays_undefined():
    flat = hand_made(optical_branch=0.0, **{"sar/mean": None}).to_dict()
    for key in ("utilization/u_sar_given_opt", "utilization/d_util", "drop_sensitivity/sar/mean"):
        assert [flat[f"{key}/segm/AP50{end}"] for end in ("", "/low", "/high")] == [None] * 3
    assert flat["utilization/u_opt_given_sar/segm/AP50"] == 0
    json.dumps(flat, allow_nan=False)


def test_drop_sensitivity_is_the_score_lost():
    report = hand_made(as_is=0.8, **{"sar/mean": 0.7, "optical/stand_in": 0.9})
    lost = {key: one["pixel/best_f1"].value for key, one in report.drop_sensitivity.items()}
    assert lost["sar", "mean"] == pytest.approx(0.1) and lost["optical", "stand_in"] == pytest.approx(-0.1)


def test_intervals_pair_the_draws():
    report = hand_made()
    drawn = {name: {key: np.arange(20.0) for key in SCORES} for name in report.scores}
    drawn["sar/mean"] = {key: np.arange(20.0) - 0.25 for key in SCORES}
    one = estimated(report.scores, drawn, {}, []).drop_sensitivity["sar", "mean"]["pixel/best_f1"]
    assert (one.value, one.low, one.high) == (0, 0.25, 0.25)


# ---- Replacing a modality --------------------------------------------------------------------------------

OPTICAL, SAR = slice(0, 3), slice(3, 4)
MEAN = torch.tensor([100.0, 90.0, 80.0, -12.0])


def test_the_mean_is_put_where_there_were_data():
    image = torch.rand(4, 5, 6)
    image[3, 0] = torch.nan
    got = replace_modality(image, image, "mean", SAR, MEAN)
    assert torch.equal(got[:3], image[:3]) and torch.isnan(got[3, 0]).all() and (got[3, 1:] == -12).all()
    assert image[3, 1:].max() <= 1, "the input is left as it was"


def test_the_stand_in_is_no_data():
    got = replace_modality(torch.rand(4, 5, 6), torch.rand(4, 5, 6), "stand_in", OPTICAL, MEAN)
    assert torch.isnan(got[:3]).all() and not torch.isnan(got[3]).any()


@pytest.mark.parametrize("shape", [(5, 6), (3, 4), (9, 20)])
def test_another_tile_fills_the_whole_image(shape):
    image, other = torch.rand(4, 5, 6), torch.rand(4, *shape)
    got = replace_modality(image, other, "other_tile", SAR, MEAN)
    assert torch.equal(got[:3], image[:3])
    for i, j in ((0, 0), (4, 5), (2, 3)):
        assert got[3, i, j] == other[3, i % shape[0], j % shape[1]]


@pytest.mark.parametrize("n", [2, 3, 10])
def test_every_tile_gets_another_one(n):
    for seed in range(5):
        partner = other_tiles(n, seed)
        assert sorted(partner) == list(range(n)) and (partner != np.arange(n)).all()
    np.testing.assert_array_equal(other_tiles(n, 3), other_tiles(n, 3))


# ---- A network whose use of the bands is known -----------------------------------------------------------


class BrightPixels(nn.Module):
    """Takes for a building what is brighter than usual in a weighted sum of the normalised bands."""

    channels = {"optical": OPTICAL, "sar": SAR}
    has_branches = False

    def __init__(self, weights, mean=(60.0, 60.0, 60.0, -18.0), std=(50.0, 50.0, 50.0, 3.0)):
        super().__init__()
        self.weights = torch.tensor(weights)[:, None, None]
        self.pixel_mean, self.pixel_std = (torch.tensor(v)[:, None, None] for v in (mean, std))
        self.preprocessing = SimpleNamespace(pixel_mean=self.pixel_mean)

    def forward(self, batched_inputs):
        image = torch.nan_to_num((batched_inputs[0]["image"] - self.pixel_mean) / self.pixel_std)
        labels, n = ndimage.label(((image * self.weights).sum(dim=0) > 0.5).numpy())
        masks = [labels == k for k in range(1, n + 1) if (labels == k).sum() > 20]
        instances = Instances(labels.shape)
        instances.pred_masks = torch.from_numpy(
            np.stack(masks) if masks else np.zeros((0, *labels.shape), bool)
        )
        instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
        instances.scores = torch.full((len(masks),), 0.9)
        for name in ("pred_heights", "pred_height_p16", "pred_height_p84"):
            instances.set(name, torch.full((len(masks),), 10.0))
        return [{"instances": instances}]


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    root = tmp_path_factory.mktemp("city")
    write_split(root, "train", (2, 3, 1))
    write_split(root, "val", (3, 4, 0, 5, 2), seed=5)
    return root


def analyzed(city, monkeypatch, model, **options):
    """`analyze` with `model` in the place of the one in the checkpoint."""
    cfg = tiny_config(city)
    complete_config(cfg)
    monkeypatch.setattr(analysis, "_network", lambda *_: (cfg, cfg, model))
    return analyze("bright.pth", str(city / "annotations" / "val.json"), draws=50, **options)


def test_bands_of_no_weight_have_no_sensitivity_and_the_others_have(city, monkeypatch):
    report = analyzed(city, monkeypatch, BrightPixels([1.0, 0.0, 0.0, 0.0]))
    assert report.scores["as_is"]["segm/AP50"] > 80
    for how in REPLACEMENTS:
        for key in SCORES:
            lost = report.drop_sensitivity["sar", how][key]
            assert lost.value == lost.low == lost.high == 0
        for key in ("segm/AP50", "pixel/best_f1"):
            lost = report.drop_sensitivity["optical", how][key]
            assert lost.value > 0 and lost.low > 0
    assert report.conditional == {} and "one head" in report.notes[0]


def test_sensitivity_follows_the_bands(city, monkeypatch):
    report = analyzed(city, monkeypatch, BrightPixels([0.0, 0.0, 0.0, 1.0]))
    assert any("its stand-in is the mean" in note for note in report.notes)
    assert report.drop_sensitivity["optical", "other_tile"]["segm/AP50"].value == 0
    assert report.drop_sensitivity["sar", "other_tile"]["segm/AP50"].low > 0
    assert report.facts["n_tiles"] == 5


# ---- Real networks, untrained ----------------------------------------------------------------------------

LATE = (
    *("MODEL.META_ARCHITECTURE", "LateFusionRCNN"),
    *("MODEL.BACKBONE.NAME", "build_two_pyramids_resnet_fpn_backbone"),
)


def checkpoint(city, name, *overrides, change=None):
    """A checkpoint of an untrained network."""
    torch.manual_seed(0)
    cfg = tiny_config(
        city, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "8", *overrides
    )
    complete_config(cfg)
    model = FusionTrainer.build_model(cfg)
    if change is not None:
        change(model)
    FusionCheckpointer(model, str(city), config_yaml=cfg.dump()).save(name)
    return city / f"{name}.pth"


@pytest.mark.parametrize("silent", MODALITIES)
def test_a_network_deaf_to_a_modality_predicts_the_same_whatever_is_put_there(city, silent):
    torch.manual_seed(0)
    cfg = tiny_config(city, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "8")
    complete_config(cfg)
    model = FusionTrainer.build_model(cfg).eval()
    model.backbone.bottom_up.resnet.stem.conv1.weight.data[:, model.channels[silent]] = 0
    x, other = (next(iter(FusionTrainer.build_test_loader(cfg, cfg.DATASETS.TEST[i])))[0] for i in (0, 0))
    other = {**other, "image": other["image"].flip(1)}
    found = predictions(model, [(x, other)])
    assert len(found["as_is"]) > 0
    for modality in MODALITIES:
        for how in REPLACEMENTS:
            assert (found[f"{modality}/{how}"] == found["as_is"]) == (modality == silent), (modality, how)


# ---- Branches --------------------------------------------------------------------------------------------


class Whisper(Exchange):
    """Gives each stream what the other one is."""

    def forward(self, optical, sar, optical_valid, sar_valid):
        return self._tell("sar", sar, sar_valid), self._tell("optical", optical, optical_valid)


class Parrot(BrightPixels):
    """Two branches: the optical one repeats what it hears of SAR, the SAR one looks for itself."""

    has_branches = True

    def __init__(self):
        super().__init__([0.0, 0.0, 0.0, 1.0])
        self.exchange = Whisper()

    def preprocess_image(self, batched_inputs):
        return SimpleNamespace(tensor=torch.stack([x["image"] for x in batched_inputs]))

    def backbone(self, images):
        valid = torch.ones_like(images[:, :1])
        return self.exchange(images[:, :1], images[:, SAR], valid, valid)

    def branch_predictions(self, batched_inputs):
        heard, _ = self.backbone(self.preprocess_image(batched_inputs).tensor)
        optical = torch.cat([torch.zeros(3, *heard.shape[2:]), heard[0]])
        return {
            "optical": self([{"image": optical}]),
            "sar": self(batched_inputs),
            "fused": self(batched_inputs),
        }


def test_a_branch_that_repeats_the_other_owes_it_everything(city, monkeypatch):
    report = analyzed(city, monkeypatch, Parrot())
    assert report.scores["optical_branch"] == report.scores["sar_branch"]
    assert report.scores["sar_branch"] == report.scores["sar_branch_cut_off"]
    for key in ("segm/AP50", "joint/AP50", "pixel/best_f1"):
        u = [report.conditional[name][key] for name in UTILIZATIONS]
        assert [one.value for one in u] == [1, 0, 1] and u[0].low == u[0].high == 1
    # Nothing is found without SAR, so its heights have no score.
    assert report.conditional["u_sar_given_opt"]["height/delta1"].value is None
    assert report.facts["n_calibration_tiles"] == 3 and report.facts["calibration"].endswith("_train")


def test_the_limit_holds_for_both_data_sets(city, monkeypatch):
    facts = analyzed(city, monkeypatch, Parrot(), limit=2).facts
    assert (facts["n_tiles"], facts["n_calibration_tiles"]) == (2, 2)


def test_one_tile_cannot_be_replaced_by_another(city, monkeypatch):
    with raises_naming("val.json", "1 tile", "2"):
        analyzed(city, monkeypatch, Parrot(), limit=1)


@pytest.mark.parametrize("name", ["", "synthcity_train"])
def test_a_missing_calibration_set_is_named(city, monkeypatch, name):
    model = Parrot()
    cfg = tiny_config(city)
    complete_config(cfg)
    stored = cfg.clone()
    stored.DATASETS.TRAIN = (name,) if name else ()
    monkeypatch.setattr(analysis, "_network", lambda *_: (stored, cfg, model))
    with pytest.raises(
        InputError, match=f"training set, here {name or 'none'}: .*Name it with `calibration`"
    ):
        analyze("parrot.pth", str(city / "annotations" / "val.json"))


def open_gates(model):
    """What the branches tell each other makes a difference."""
    for op in exchanges(model).values():
        for parameter in op.parameters():
            torch.nn.init.normal_(parameter, std=0.3)


@pytest.fixture(scope="module")
def dual(city):
    """A checkpoint of two detectors that talk behind res4, and do hear each other."""
    return checkpoint(city, "dual", *LATE, "MODEL.FUSION.EXCHANGE.res4", "MMTM", change=open_gates)


def test_the_tool_writes_table_numbers_and_picture(city, dual, tmp_path, load_tool, capsys):
    out = tmp_path / "report"
    arguments = [
        "--weights",
        str(dual),
        "--dataset",
        str(city / "annotations" / "val.json"),
        "--out",
        str(out),
    ]
    load_tool("analyze_modalities").main([*arguments, "--draws", "20", "--limit", "3", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "Drop sensitivity" in printed and "u(sar|opt)" in printed and str(out) in printed.splitlines()[-1]
    assert sorted(p.name for p in out.iterdir()) == ["utilization.json", "utilization.md", "utilization.png"]
    flat = json.loads((out / "utilization.json").read_text())
    keys = {f"drop_sensitivity/{m}/{how}" for m in MODALITIES for how in REPLACEMENTS}
    keys |= {f"utilization/{name}" for name in UTILIZATIONS}
    assert {f"{k}/{s}{end}" for k in keys for s in SCORES for end in ("", "/low", "/high")} <= flat.keys()
    assert (flat["n_tiles"], flat["n_calibration_tiles"], flat["draws"], flat["seed"]) == (3, 3, 20, 0)
    with raises_naming("overwrite"):
        load_tool("analyze_modalities").main(arguments)


def test_cutting_off_changes_the_other_branch_alone(city, dual):
    _, cfg, model = analysis._network(dual, str(city / "annotations" / "val.json"), "cpu")
    (x,) = next(iter(FusionTrainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])))
    means = mean_messages(model, [[x]])
    means = {op: {m: value + 3 for m, value in one.items()} for op, one in means.items()}
    found = predictions(model, [(x, x)], means)
    for modality in MODALITIES:
        assert (
            found[f"{modality}_branch"] and found[f"{modality}_branch"] != found[f"{modality}_branch_cut_off"]
        )
    assert found["as_is"] == predictions(model, [(x, x)])["as_is"], "nothing stays cut off"


def test_branches_that_exchange_nothing_have_no_utilization_to_report(city):
    report = analyze(
        checkpoint(city, "apart", *LATE), str(city / "annotations" / "val.json"), draws=5, limit=2
    )
    assert report.conditional == {} and "calibration" not in report.facts
    assert "exchange nothing" in report.notes[0]
    assert "u(sar|opt)" not in text_table(report)
    assert {key for key in report.to_dict() if key.startswith("utilization/")} == set()
    with raises_naming("calibration=gone_train"):
        analyze(city / "apart.pth", str(city / "annotations" / "val.json"), calibration="gone_train")


# ---- Networks that say maps alone ------------------------------------------------------------------------

MAPS = ("MODEL.MASK_ON", "False", "MODEL.HEIGHT_ON", "False", "TEST.BEST_METRIC", "dense/dice")
HEADS = ("MODEL.DENSE_HEADS.NAMES", "['DenseHeight']", "MODEL.DENSE_HEADS.CONV_DIM", "8")
DENSE = ("MODEL.META_ARCHITECTURE", "FusionDense", *HEADS, *MAPS)
DUAL_UNET = ("MODEL.META_ARCHITECTURE", "FusionDenseNet", "MODEL.DENSE_NET.NAME", "DualUNet", *MAPS)
DUAL_UNET += ("MODEL.DENSE_NET.TASKS", "['footprint']", "MODEL.DENSE_NET.WIDTH", "4")


class Shares(nn.Module):
    """Two branches that find a share of every true building pixel row by row: less where they hear a mean alone."""

    channels = {"optical": OPTICAL, "sar": SAR}
    has_branches = True
    preprocessing = SimpleNamespace(pixel_mean=torch.zeros(4, 1, 1))
    # modality -> (share as trained, share with the other cut off)
    shares = {"optical": (0.5, 0.25), "sar": (1.0, 0.5)}

    def __init__(self, truth):
        super().__init__()
        self.exchange, self.truth = Whisper(), truth

    def preprocess_image(self, batched_inputs):
        return SimpleNamespace(tensor=torch.stack([x["image"] for x in batched_inputs]))

    def backbone(self, images):
        valid = torch.ones_like(images[:, :1])
        return self.exchange(images[:, :1], images[:, SAR], valid, valid)

    def said(self, x, share):
        """Of the true pixels the first ones, in that share."""
        found = torch.zeros(x["image"].shape[1:])
        rows, columns = np.nonzero(self.truth[x["image_id"]])
        n = round(share * len(rows))
        found[rows[:n], columns[:n]] = 0.5  # from there on a pixel counts
        return {"footprint_map": found}

    def forward(self, batched_inputs):
        return [self.said(batched_inputs[0], 0.75)]

    def branch_predictions(self, batched_inputs):
        hears = {
            "optical": "sar" not in self.exchange._replaced,
            "sar": "optical" not in self.exchange._replaced,
        }
        return {m: [self.said(batched_inputs[0], self.shares[m][not hears[m]])] for m in MODALITIES}


def analyzed_maps(city, monkeypatch, model, *overrides, **options):
    cfg = tiny_config(city, *overrides)
    complete_config(cfg)
    monkeypatch.setattr(analysis, "_network", lambda *_: (cfg, cfg, model))
    return analyze("maps.pth", str(city / "annotations" / "val.json"), draws=50, **options)


@needs_network("DualUNet")
def test_utilization_of_maps_by_hand(city, monkeypatch):
    dataset = read_coco(city / "annotations" / "val.json")
    model = Shares({tile.id: footprint_label(tile) for tile in dataset.tiles})
    report = analyzed_maps(city, monkeypatch, model, *DUAL_UNET)

    def f1(share):
        return 2 * share / (share + 1)

    assert report.keys == ("dense/dice",)
    scores = {name: one["dense/dice"] for name, one in report.scores.items()}
    for name, share in {
        "as_is": 0.75,
        "optical_branch": 0.5,
        "sar_branch_cut_off": 0.5,
        "sar_branch": 1.0,
    }.items():
        assert scores[name] == pytest.approx(f1(share), abs=0.01), name
    u = {name: report.conditional[name]["dense/dice"] for name in UTILIZATIONS}
    u_sar, u_opt = 1 - f1(0.25) / f1(0.5), 1 - f1(0.5)  # 0.4 and 1/3
    for name, expected in zip(UTILIZATIONS, (u_sar, u_opt, u_sar - u_opt), strict=True):
        assert u[name].value == pytest.approx(expected, abs=0.01)
        assert u[name].low <= u[name].value <= u[name].high and u[name].high - u[name].low < 0.05
    lost = report.drop_sensitivity["sar", "mean"]["dense/dice"]
    assert lost.value == lost.low == lost.high == 0, "what does not look at pixels loses nothing"


def test_a_tile_where_nothing_is_left_to_see_is_a_map_of_nothing(city, monkeypatch):
    class OfSar(Shares):
        has_branches = False

        def forward(self, batched_inputs):
            assert not torch.isnan(batched_inputs[0]["image"]).all()
            return [self.said(batched_inputs[0], 1.0)]

    dataset = read_coco(city / "annotations" / "val.json")
    model = OfSar({tile.id: footprint_label(tile) for tile in dataset.tiles})
    blank = dict(image=torch.full((4, 64, 64), torch.nan), image_id=dataset.tiles[0].id)
    blank["image"][3] = 1.0
    only = dataclasses.replace(dataset, tiles=dataset.tiles[:1])
    counts = analysis.map_counts(model, [(blank, blank)], only)
    assert summarize(counts["as_is"])["dense/dice"] == 1
    assert summarize(counts["sar/stand_in"])["dense/dice"] == 0
    blank["image"][3] = torch.nan
    with raises_naming("val_0_rgb.tif"):
        analysis.map_counts(model, [(blank, blank)], only)


@needs_network("DualUNet")
def test_maps_of_something_else_than_buildings_are_refused(city, monkeypatch):
    class OfClasses(BrightPixels):
        def forward(self, batched_inputs):
            return [{"class_map": torch.zeros(3, 64, 64)}]

    with raises_naming("OfClasses", "class_map"):
        analyzed_maps(city, monkeypatch, OfClasses([1.0, 0, 0, 0]), *DUAL_UNET)


@needs_network("DualUNet")
def test_the_tool_measures_a_dual_unet(city, tmp_path, load_tool, capsys):
    path = checkpoint(city, "dual_unet", *DUAL_UNET, change=open_gates)
    words = [
        "--weights",
        str(path),
        "--dataset",
        str(city / "annotations" / "val.json"),
        "--out",
        str(tmp_path / "u"),
    ]
    load_tool("analyze_modalities").main([*words, "--draws", "20", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "u(sar|opt)" in printed and "pixel F1" in printed and "AP50" not in printed
    flat = json.loads((tmp_path / "u" / "utilization.json").read_text())
    a, cut = (flat[f"score/optical_branch{end}/dense/dice"] for end in ("", "_cut_off"))
    u = [flat[f"utilization/{name}/dense/dice"] for name in UTILIZATIONS]
    assert u[0] == pytest.approx((a - cut) / a) and u[2] == pytest.approx(u[0] - u[1])
    assert u[0] != 0 and u[1] != 0, "they do hear each other"
    assert flat["utilization/d_util/dense/dice/low"] <= flat["utilization/d_util/dense/dice/high"]
    assert flat["n_calibration_tiles"] == 3
    assert {k.split("/", 2)[-1] for k in flat if k.startswith("score/as_is")} == {"dense/dice"}


def test_any_network_of_maps_has_a_drop_sensitivity(city):
    path = checkpoint(city, "heights", *DENSE)
    report = analyze(path, str(city / "annotations" / "val.json"), draws=5, limit=2)
    assert report.keys == ("dense/dice", "dense/delta1_building", "dense/delta1_all")
    assert report.conditional == {} and "one head" in report.notes[0] and "1 m or more" in report.notes[1]
    everything = [one for estimates in report.drop_sensitivity.values() for one in estimates.values()]
    assert len(everything) == 18 and all(one.value is not None for one in everything)


def test_branches_of_maps_that_exchange_have_utilizations_of_each_score(city):
    late = ("MODEL.META_ARCHITECTURE", "LateFusionDense", *LATE[2:], *HEADS, *MAPS)
    exchanging = ("MODEL.FUSION.EXCHANGE.res4", "MMTM")
    path = checkpoint(city, "late_maps", *late, *exchanging, change=open_gates)
    report = analyze(path, str(city / "annotations" / "val.json"), draws=5, limit=2)
    assert report.conditional.keys() == {*UTILIZATIONS}
    assert report.scores["optical_branch"] != report.scores["optical_branch_cut_off"]
    assert "δ1 on buildings" in text_table(report)


# ---- What is refused -------------------------------------------------------------------------------------


def test_a_network_of_one_modality_is_refused(city):
    path = checkpoint(city, "rgb", "INPUT.MODALITIES", "['optical']")
    with raises_naming("rgb.pth", "optical"):
        analyze(path, str(city / "annotations" / "val.json"))


def test_a_data_set_without_the_bands_is_refused(city, dual):
    path = write_split(city, "rgb_only", (1, 1), bands=BandSpec(("red", "green", "blue")))
    with raises_naming("sar", "rgb_only.json"):
        analyze(dual, str(path))


def test_a_network_that_knows_no_modalities_is_refused(city):
    path = checkpoint(
        city,
        "plain",
        "MODEL.META_ARCHITECTURE",
        "GeneralizedRCNN",
        "MODEL.HEIGHT_ON",
        "False",
        "MODEL.ROI_HEADS.NAME",
        "StandardROIHeads",
    )
    with raises_naming("GeneralizedRCNN", "FusionRCNN"):
        analyze(path, str(city / "annotations" / "val.json"))


def test_an_unknown_data_set_is_refused_before_anything_is_made(dual, tmp_path):
    with raises_naming("synthcity_tset"):
        analyze_to_dir(dual, "synthcity_tset", tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_weights_of_another_kind_are_refused(city, tmp_path):
    torch.save({"model": {}}, tmp_path / "theirs.pth")
    with pytest.raises(InputError, match="not a checkpoint of fusiondet"):
        analyze(tmp_path / "theirs.pth", str(city / "annotations" / "val.json"))
