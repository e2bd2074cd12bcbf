"""What every config has to do: load, say only what differs, and train two steps on the CPU, shrunk."""

import math
import pickle

import fusiondet.compat  # noqa: F401
from fusiondet.config import find_config
from fusiondet.config_loading import config_from_yaml_text, load_config
from fusiondet.config_text import flat, parse_stored, renamed_keys
from fusiondet.engine.checkpoint import network_differences, read_checkpoint
from fusiondet.engine.complete_config import complete_config
from fusiondet.engine.trainer import FusionTrainer
from fusiondet.modeling.architecture import architecture_of
from tests.support.detectors import caffe2_blobs

import torch
import yaml
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone

# Narrow heads and few regions: they, not the images, are what takes time on a CPU.
SHRUNK = {
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_HEIGHT_HEAD.CONV_DIM": 32,
    "MODEL.ROI_HEIGHT_HEAD.FC_DIM": 16,
    "MODEL.DENSE_HEADS.CONV_DIM": 32,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": "[]",
    "SOLVER.WARMUP_ITERS": 1,
    "DATASETS.TEST": "()",
    "TEST.EVAL_PERIOD": 0,
    "VIS_PERIOD": 0,
    "SEED": 1,
}
NARROW_BOTTLENECKS = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
}
STATED_ANYWAY = {
    "INPUT.MODALITIES",
    "INPUT.DIHEDRAL",
    "MODEL.RESNETS.DEPTH",
    "MODEL.RESNETS.NORM",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.FUSION.STEM_INFLATION",
    "MODEL.DEVICE",
}


def _keys(tree, prefix=""):
    for key, value in tree.items():
        yield from _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]


def leaves(paths):
    """Those of `paths` that are trained, not the bases of others."""
    return [path for path in paths if not path.name.startswith("Base-")]


def check_leaf_is_short(path):
    """A comment that says what it is, a base, an output folder of its own name, and little else."""
    text = path.read_text(encoding="utf-8")
    lines, tree = text.splitlines(), yaml.safe_load(text)
    assert lines[0].startswith("# ") and len(lines) <= 20
    assert "_BASE_" in tree
    folder, name = path.parent.name, path.stem
    assert tree["OUTPUT_DIR"] == f"output/{folder}/{name}", "two configs must not write into one folder"


def check_says_only_what_differs(path):
    """No value repeats what the file below it says already."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    base = tree.pop("_BASE_", None)
    if base is None:
        return
    below = load_config(find_config(path.parent / base) or base)
    own = load_config(path)
    for key in _keys(tree):
        ours, theirs = own, below
        for part in key.split("."):
            ours, theirs = ours[part], theirs[part]
        # Some lines are there to be read: what the modalities are, and what goes with the weights.
        if key not in STATED_ANYWAY:
            assert ours != theirs, f"{key}: {ours} is the value without this line too"


def shrunk_config(path, annotations, folder, narrow):
    cfg = load_config(path)
    small = {**SHRUNK, **(NARROW_BOTTLENECKS if cfg.MODEL.RESNETS.DEPTH >= 50 else {})}
    small |= narrow
    small.update({"DATASETS.TRAIN": f"('{annotations}',)", "OUTPUT_DIR": str(folder)})
    cfg = load_config(path, [str(word) for item in small.items() for word in item])
    complete_config(cfg)
    return cfg


def stand_in_for_model_zoo(cfg, cache):
    """A file of the named weights' layout and of this config's widths, where the model zoo's would be cached."""
    name = cfg.MODEL.WEIGHTS.removeprefix("detectron2://ImageNetPretrained/")
    known = {"MSRA/R-50.pkl": 50, "MSRA/R-101.pkl": 101}
    assert cfg.MODEL.RESNETS.DEPTH == known[name], "the weights are of another depth than the network"
    path = cache / "detectron2" / "ImageNetPretrained" / name
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    path.write_bytes(pickle.dumps(caffe2_blobs(build_resnet_backbone(cfg, ShapeSpec(channels=3)))))


def expected_losses(cfg):
    """Names of the losses that the network of `cfg` has."""
    names = {
        "Footprint": "loss_footprint",
        "DenseHeight": "loss_dense_height",
        "Reconstruction": "loss_reconstruction",
    }
    if cfg.MODEL.META_ARCHITECTURE == "FusionDenseNet":
        names = {"height": "loss_dense_height"}
        return {names.get(task, f"loss_{task}") for task in architecture_of(cfg).pixel_tasks(cfg)}
    losses = {names[name] for name in cfg.MODEL.DENSE_HEADS.NAMES}
    if architecture_of(cfg).finds_instances:
        losses |= {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    return losses | ({"loss_height"} if cfg.MODEL.HEIGHT_ON else set())


def check_two_steps(path, annotations, tmp_path, monkeypatch, narrow=()):
    """Train `path` for two steps, shrunk; `narrow`: further overrides, {key: value}."""
    narrow = dict(narrow)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    cfg = shrunk_config(path, annotations, tmp_path / "out", narrow)
    if cfg.MODEL.WEIGHTS:
        stand_in_for_model_zoo(cfg, tmp_path / "cache")
    trainer = FusionTrainer(cfg)
    trainer.resume_or_load(resume=False)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainer.iter == 2  # where Detectron2 leaves it after the last step
    # "loss_cls", or "optical/loss_cls" and "sar/loss_cls" where each modality has a detector.
    latest = {k.rpartition("/")[2]: v for k, (v, _) in trainer.storage.latest().items()}
    losses = {k: v for k, v in latest.items() if k.startswith("loss_")}
    assert losses.keys() == expected_losses(cfg)
    assert all(math.isfinite(v) for v in losses.values())
    channels = {"optical": 3, "sar": 1}
    assert len(cfg.MODEL.PIXEL_MEAN) == sum(channels[modality] for modality in cfg.INPUT.MODALITIES)
    after = dict(trainer.model.named_parameters())
    still = [name for name, p in before.items() if torch.equal(p, after[name])]
    assert len(still) < 0.05 * len(before), f"not trained: {still[:5]}"
    assert "backbone.bottom_up.resnet.stem.conv1.weight" not in still
    assert read_checkpoint(tmp_path / "out" / "model_final.pth")["iteration"] == 1


def check_stored_config_of_0_5(path):
    """The complete config in `path`, as 0.5 stored it in a checkpoint: every value arrives, under the name of today.

    But for the sections of projects that are not there.
    """
    text = path.read_text(encoding="utf-8")
    names = renamed_keys()
    stored = {names.get(key, key): value for key, value in flat(yaml.safe_load(text)).items()}
    cfg = config_from_yaml_text(text, path.name)
    _, dropped = parse_stored(text, path.name)
    stored = {
        key: value for key, value in stored.items() if not key.startswith(tuple(f"{s}." for s in dropped))
    }
    assert {key: value for key, value in flat(cfg).items() if key in stored} == stored
    again = load_config(path)
    assert again == cfg and network_differences(cfg, again) == []
    return cfg
