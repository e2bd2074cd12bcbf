"""Every configuration key that fusiondet adds to Detectron2, with its default and meaning, and how configs are loaded.

Empty lists marked *from the training data* are filled in by `fusiondet.engine.trainer.complete_config` before the model
is built, and are then part of the saved config and of every checkpoint: inference needs no dataset.

Of Detectron2's keys these mean nothing here: INPUT.FORMAT (bands go by name), INPUT.MIN_SIZE_*, MAX_SIZE_*, RANDOM_FLIP
(tiles keep their pixels; see SCALE_RANGE and DIHEDRAL), DATALOADER.SAMPLER_TRAIN and ASPECT_RATIO_GROUPING, TEST.AUG.
"""

from pathlib import Path

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.errors import InputError, unknown_name

import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg


def add_fusiondet_config(cfg: CN) -> None:
    """Add fusiondet's keys to a Detectron2 `cfg`, and register its backbones, heads and architectures."""
    import fusiondet.modeling
    import fusiondet.projects  # noqa: F401

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
    # Training of two branches that exchange (LateFusionRCNN, LateFusionDense, DualUNet) trains the one alone for a
    # while whose modality is learned from more slowly; see fusiondet/engine/balance.py.
    cfg.MODEL.FUSION.BALANCE = CN()
    # Steps that it is trained alone for, and at least as many of both after; 0 never does.
    cfg.MODEL.FUSION.BALANCE.WINDOW = 0
    # Difference of the conditional learning speeds, in logs, that is left alone.
    cfg.MODEL.FUSION.BALANCE.TOLERANCE = 0.1
    # "optical" or "sar": treat this modality as missing, as if every pixel were no data. For --eval-only.
    cfg.MODEL.FUSION.DISABLED = ""

    # Heads that predict per pixel, of DENSE_HEAD_REGISTRY: "DenseHeight" (height of buildings), "Footprint",
    # "Reconstruction" (of the image, which needs no labels). Each at most once. See modeling/dense_heads.py.
    cfg.MODEL.DENSE_HEADS = CN()
    cfg.MODEL.DENSE_HEADS.NAMES = []
    # Feature maps that are decoded, finest first; without skips the last of them alone.
    cfg.MODEL.DENSE_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Channels of the decoders at the strides of IN_FEATURES; half of it at stride 2, a quarter at stride 1.
    cfg.MODEL.DENSE_HEADS.DIM = 64
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
    # Heights outside the predicted footprint become 0 (FusionHeightNet's semantic refinement); needs "Footprint".
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

    # Whole networks for maps, META_ARCHITECTURE "FusionDenseNet": the dense systems of the papers and what they were
    # compared with. See modeling/dense_nets/.
    cfg.MODEL.DENSE_NET = CN()
    # Class in DENSE_NET_REGISTRY.
    cfg.MODEL.DENSE_NET.NAME = ""
    # What it says of each pixel, of "footprint", "height" (of buildings), "classes" (those that the data set names).
    cfg.MODEL.DENSE_NET.TASKS = ["footprint", "height"]
    # Channels of its finest level; coarser ones have multiples of it.
    cfg.MODEL.DENSE_NET.WIDTH = 64
    # Metres that are 1 in what the network learns of heights. From the training data (0): the greatest known height.
    cfg.MODEL.DENSE_NET.HEIGHT_SCALE_M = 0.0
    # Heights outside the predicted footprint become 0 (FusionHeightNet's semantic refinement), where it has both tasks.
    cfg.MODEL.DENSE_NET.REFINE = True
    # Weights of the losses of footprints and heights: lambda 1 and 2 of FusionHeightNet.
    cfg.MODEL.DENSE_NET.FOOTPRINT_WEIGHT = 1.0
    cfg.MODEL.DENSE_NET.HEIGHT_WEIGHT = 0.5
    # Names of the classes in the order of their logits. From the training data ([]).
    cfg.MODEL.DENSE_NET.CLASSES = []
    # Settings of "DualUNet".
    cfg.MODEL.DENSE_NET.DUAL_UNET = CN()
    # Channels of the levels of each U-Net, finest first, in multiples of WIDTH.
    cfg.MODEL.DENSE_NET.DUAL_UNET.MULTIPLES = [1, 2, 2]
    # Of the Power Jaccard loss: 1 is the Jaccard loss; up to 2.
    cfg.MODEL.DENSE_NET.DUAL_UNET.POWER = 2.0
    # Settings of "FusionHeightNet".
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET = CN()
    # Blocks of each Transformer, heads of all attention, expansion of the MLPs.
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET.DEPTH = 4
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET.HEADS = 8
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET.MLP_RATIO = 4.0
    # Learned positions per side, one for each 16 pixels of the training tiles; other tiles see them resized.
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET.POSITIONS = 32
    # How optical and SAR meet: "cross" (cross-fusion before and behind the Transformers) or "concat" (at the end).
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET.FUSION = "cross"
    # One encoder for both modalities; stems stay apart, as their bands differ.
    cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET.SHARED_ENCODER = False
    # Settings of "DeepLabV3Plus", "ResUNet", "UPerNet" and "PSPNet".
    cfg.MODEL.DENSE_NET.SMP = CN()
    # Their ResNet, with random weights: resnet18, resnet34, resnet50, resnet101.
    cfg.MODEL.DENSE_NET.SMP.ENCODER = "resnet50"
    # Settings of "UREC".
    cfg.MODEL.DENSE_NET.U_REC = CN()
    # Weight of the reconstruction's L1; the cross-entropy of the classes has 1 - W1. 0: a plain U-Net without it.
    cfg.MODEL.DENSE_NET.U_REC.W1 = 0.1
    # Of the L1: "mean" over pixels and bands, or "sum_per_image" as the paper's equation has it, where a W1 does what
    # n W1 / (n W1 + 1 - W1) does here, n numbers per image. See modeling/dense_nets/u_rec.py.
    cfg.MODEL.DENSE_NET.U_REC.REDUCTION = "mean"

    # Networks of patches, MODEL.META_ARCHITECTURE "HseLczNet": settlement extent and local climate zone of each; see
    # fusiondet/projects/hse_lcz/hse_lcz_net.py. MODEL.TASK_ATTENTION and TASK_WEIGHTING are theirs, too; of what
    # changes training tiles they have flips and turns alone (INPUT.DIHEDRAL, QUARTER_TURNS).
    cfg.MODEL.HSE_LCZ = CN()
    # What is said of a patch: "hse" (settlement extent, a share), "lcz" (one of 17 zones), or both.
    cfg.MODEL.HSE_LCZ.TASKS = ["hse", "lcz"]
    # Channels of the shared blocks; between two of them the map is halved.
    cfg.MODEL.HSE_LCZ.WIDTHS = [32, 64, 128]
    # Convolutions in each shared block.
    cfg.MODEL.HSE_LCZ.CONVS = 2
    # Channels of what each task has for itself.
    cfg.MODEL.HSE_LCZ.HEAD_DIM = 128
    # Share of a task's features that training hides before its last layer.
    cfg.MODEL.HSE_LCZ.DROPOUT = 0.2
    # What the zone is told of the predicted settlement extent: "none", "detached" (it learns nothing from the zone), or
    # "joint" (it does).
    cfg.MODEL.HSE_LCZ.PRIOR = "none"
    # Weights of the losses. That of the extent is an error of a share, about 0.1; that of the zone, an entropy.
    cfg.MODEL.HSE_LCZ.HSE_WEIGHT = 10.0
    cfg.MODEL.HSE_LCZ.LCZ_WEIGHT = 1.0

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

    # ---- Solver, test ----------------------------------------------------------------------------------------------
    # "SGD" (Detectron2's) or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # SOLVER.AMP.ENABLED means float16 on CUDA; on CPU it does nothing unless this is set too, then bfloat16.
    cfg.SOLVER.AMP.BF16_ON_CPU = False
    # Factors on the learning rate of what one stream of a network with two has for itself: its ResNet, its pyramid and
    # its detector where it has them; not the exchanges and joins between streams.
    cfg.SOLVER.OPTICAL_LR_FACTOR = 1.0
    cfg.SOLVER.SAR_LR_FACTOR = 1.0
    # Forward and backward passes per optimizer step; the batch of a step is IMS_PER_BATCH times this.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # Key of the evaluation (see fusiondet/evaluation/__init__.py) that decides which checkpoint is model_best.pth.
    cfg.TEST.BEST_METRIC = "joint/AP50"
    # At the end of the training and at each TEST.EVAL_PERIOD, calibrate the width of the height intervals on
    # DATASETS.TEST, before the checkpoint is written. So name a validation set there while training, not the set of the
    # final score.
    cfg.TEST.CALIBRATE_HEIGHTS = True
    # Also score the height head with ground-truth boxes and masks: height_gt_boxes/... separates detection from height.
    cfg.TEST.HEIGHTS_ON_TRUTH_BOXES = True


def load_config(path: str | Path, overrides: list[str] = ()) -> CN:
    """Detectron2's defaults, fusiondet's keys, the YAML file with its `_BASE_` chain, then KEY VALUE pairs.

    Raises:
        InputError: missing file, invalid YAML, Python tags in it, an unknown key (the right ones are listed), a value
            of another type or that means nothing, or a name that is in no registry.
    """
    cfg = defaults()
    if not Path(path).is_file():
        raise InputError(f"{path}: no such config file.")
    _merge(cfg, lambda: cfg.merge_from_other_cfg(CN(_load_yaml_chain(Path(path)))), str(path))
    if len(overrides) % 2:
        raise InputError(
            f"config overrides come as KEY VALUE pairs, found {len(overrides)} words: {' '.join(overrides)}"
        )
    _merge(cfg, lambda: cfg.merge_from_list(list(overrides)), "command line")
    check_names(cfg)
    check_values(cfg)
    check_fusion(cfg)
    check_tasks(cfg)
    return cfg


def config_from_yaml_text(text: str, source: str) -> CN:
    """The config stored in checkpoint `source`. Parsed by a safe loader; `_BASE_` is refused.

    Raises:
        InputError: Python tags, a `_BASE_`, unknown keys or names, values that mean nothing.
    """
    cfg = defaults()
    tree = safe_yaml(text, source)
    if "_BASE_" in tree:
        raise InputError(
            f"{source}: its config refers to another file by _BASE_, which a stored config never does."
        )
    _merge(cfg, lambda: cfg.merge_from_other_cfg(CN(tree)), source)
    check_names(cfg)
    check_values(cfg)
    check_fusion(cfg)
    check_tasks(cfg)
    return cfg


def check_names(cfg: CN) -> None:
    """InputError when a class named in `cfg` is in no registry; the message lists the names that are."""
    from fusiondet.modeling.fusion import EXCHANGE_REGISTRY, JOIN_REGISTRY
    from fusiondet.modeling.height_head import ROI_HEIGHT_HEAD_REGISTRY
    from fusiondet.modeling.sensor_geometry import check_facts

    from detectron2.modeling import META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY
    from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
    from detectron2.modeling.backbone import BACKBONE_REGISTRY
    from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY
    from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, ROI_MASK_HEAD_REGISTRY

    for key, registry in {
        "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
        "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
        "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
        "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
        "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
        "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
        "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
        "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
        "MODEL.ROI_HEIGHT_HEAD.NAME": ROI_HEIGHT_HEAD_REGISTRY,
        "MODEL.FUSION.JOIN": JOIN_REGISTRY,
        **{f"MODEL.FUSION.EXCHANGE.{stage}": EXCHANGE_REGISTRY for stage in cfg.MODEL.FUSION.EXCHANGE},
    }.items():
        name = _get(cfg, key)
        # Detectron2's default for the box head is "", which networks without one keep; "" is no exchange, too.
        if name and name not in registry:
            raise unknown_name(key, name, [known for known, _ in registry])
    if not len(cfg.INPUT.MODALITIES):
        raise InputError('INPUT.MODALITIES is empty, expected "optical", "sar" or both.')
    for modality in cfg.INPUT.MODALITIES:
        if modality not in ("optical", "sar"):
            raise unknown_name("INPUT.MODALITIES entry", modality, ("optical", "sar"))
    check_facts(cfg.MODEL.ROI_HEIGHT_HEAD.GEOMETRY, cfg.INPUT.MODALITIES)
    for key, known in {
        "MODEL.FUSION.STEM_INFLATION": ("zero", "mean_rescaled"),
        "MODEL.FUSION.DISABLED": ("", "optical", "sar"),
        "MODEL.TASK_WEIGHTING.NAME": ("fixed", "uncertainty", "gradnorm"),
        "INPUT.HEIGHT_LABELS": ("auto", "building_height", "ndsm", "instances"),
        "SOLVER.OPTIMIZER": ("SGD", "AdamW"),
        "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    }.items():
        if _get(cfg, key) not in known:
            raise unknown_name(key, _get(cfg, key), [name for name in known if name])


_ABOVE_ZERO = (
    "MODEL.ROI_HEIGHT_HEAD.CONV_DIM", "MODEL.ROI_HEIGHT_HEAD.NUM_CONV", "MODEL.ROI_HEIGHT_HEAD.MIN_HEIGHT_M",
    "MODEL.ROI_HEIGHT_HEAD.MAX_POSITIVES_PER_IMAGE", "MODEL.FPN.OUT_CHANNELS", "SOLVER.MAX_ITER",
    "SOLVER.IMS_PER_BATCH", "SOLVER.ACCUMULATE_STEPS", "SOLVER.CHECKPOINT_PERIOD", "MODEL.FUSION.MMTM.RATIO",
    "MODEL.FUSION.CROSS_ATTENTION.DIM", "MODEL.FUSION.CROSS_ATTENTION.HEADS",
    "MODEL.FUSION.CROSS_ATTENTION.MLP_RATIO", "MODEL.FUSION.CROSS_ATTENTION.MAX_KEYS",
    "SOLVER.OPTICAL_LR_FACTOR", "SOLVER.SAR_LR_FACTOR", "MODEL.DENSE_NET.WIDTH",
)  # fmt: skip
_NOT_NEGATIVE = (
    "DATALOADER.NUM_WORKERS", "MODEL.ROI_HEIGHT_HEAD.CONTEXT_M", "MODEL.ROI_HEIGHT_HEAD.PRIOR_MEDIAN_M",
    "MODEL.ROI_HEIGHT_HEAD.PRIOR_LOG_SCALE", "MODEL.ROI_HEIGHT_HEAD.NUM_FC", "MODEL.FUSION.BALANCE.WINDOW",
    "MODEL.FUSION.BALANCE.TOLERANCE",
    "MODEL.FUSION.CROSS_ATTENTION.WINDOW", "MODEL.FUSION.SAR_RESNETS.STEM_OUT_CHANNELS",
    "MODEL.FUSION.SAR_RESNETS.RES2_OUT_CHANNELS", "MODEL.FUSION.SAR_RESNETS.WIDTH_PER_GROUP",
    "MODEL.TASK_WEIGHTING.ALPHA", "DATALOADER.UNLABELLED_PER_BATCH",
)  # fmt: skip
_DEPTHS = (18, 34, 50, 101, 152)
_PAIRS = (
    "INPUT.SAR_LOOK_AZIMUTH_RANGE_DEG", "INPUT.SUN_AZIMUTH_RANGE_DEG", "INPUT.GSD_RANGE_M",
    "INPUT.SUN_ELEVATION_RANGE_DEG", "INPUT.SAR_INCIDENCE_RANGE_DEG",
)  # fmt: skip


def check_values(cfg: CN) -> None:
    """InputError when a number or list in `cfg` has the right type and no meaning, or is empty in YAML (None)."""
    for key in _empty_keys(cfg, defaults()):
        raise InputError(f"{key} has no value. Write one, or leave the key out to keep its default.")
    for keys, allowed, what in (
        (_ABOVE_ZERO, lambda v: v > 0, "above 0"),
        (_NOT_NEGATIVE, lambda v: v >= 0, "0 or more"),
        (
            ("MODEL.FUSION.MODALITY_DROPOUT",),
            lambda v: min(v.values()) >= 0 and sum(v.values()) <= 1,
            "probabilities of 0 or more that add up to 1 at most",
        ),
        (("MODEL.TASK_WEIGHTING.RATE",), lambda v: 0 < v <= 1, "above 0 and 1 at most"),
        (
            ("DATASETS.LABEL_SHARE",),
            lambda v: 0 < v <= 1,
            "above 0, as buildings are learned from labels alone, and 1 at most; 0.1: a tenth of the tiles",
        ),
        (("MODEL.ROI_HEIGHT_HEAD.GEOMETRY_DROPOUT",), lambda v: 0 <= v < 1, "at least 0 and below 1"),
        (("MODEL.RESNETS.DEPTH",), lambda v: v in _DEPTHS, f"one of {_DEPTHS}"),
        (("MODEL.FUSION.SAR_RESNETS.DEPTH",), lambda v: v in (0, *_DEPTHS), f"0 or one of {_DEPTHS}"),
        (_PAIRS, lambda v: not len(v) or _is_numbers(v, 2), "two numbers or []"),
        (
            ("INPUT.SCALE_RANGE",),
            lambda v: _is_numbers(v, 2) and 0 < v[0] <= v[1],
            "[low, high] with 0 < low <= high",
        ),
        (
            ("DATASETS.TRAIN", "DATASETS.TEST"),
            lambda v: all(isinstance(n, str) for n in v),
            "a list of names",
        ),
    ):
        for key in keys:
            if not allowed(_get(cfg, key)):
                raise InputError(f"{key} is {_shown(_get(cfg, key))}, expected {what}.")
    attention = cfg.MODEL.FUSION.CROSS_ATTENTION
    if attention.DIM % (4 * attention.HEADS):
        raise InputError(
            f"MODEL.FUSION.CROSS_ATTENTION.DIM is {attention.DIM}, expected a multiple of 4 times HEADS, "
            f"{4 * attention.HEADS}."
        )
    head, mean, std = cfg.MODEL.ROI_HEIGHT_HEAD, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if head.MIN_HEIGHT_M >= head.MAX_HEIGHT_M:
        raise InputError(
            f"MODEL.ROI_HEIGHT_HEAD.MIN_HEIGHT_M is {head.MIN_HEIGHT_M}, expected less than MAX_HEIGHT_M, "
            f"{head.MAX_HEIGHT_M}."
        )
    if not (_is_numbers(mean, len(mean)) and _is_numbers(std, len(std)) and all(s > 0 for s in std)):
        raise InputError(
            f"MODEL.PIXEL_MEAN {mean}, PIXEL_STD {std}: expected numbers, deviations above 0; or [] to have them "
            "computed from the training data."
        )


_BOTH_STREAMS = ("build_intermediate_fusion_resnet_fpn_backbone", "build_late_fusion_resnet_fpn_backbone")
_ONE_STREAM, _TWO_PYRAMIDS = (
    "build_early_fusion_resnet_fpn_backbone",
    "build_two_pyramids_resnet_fpn_backbone",
)
# Architectures with a branch on each of two pyramids.
_TWO_BRANCHES = ("LateFusionRCNN", "LateFusionDense")
# Keys of MODEL.FUSION that are for two streams; two pyramids are never joined.
_IDLE_KEYS = {_ONE_STREAM: ("EXCHANGE", "JOIN", "SHARE_WEIGHTS", "SAR_RESNETS"), _TWO_PYRAMIDS: ("JOIN",)}


def check_fusion(cfg: CN) -> None:
    """InputError when a key of MODEL.FUSION would be ignored, or asks for a modality that the network does not see."""
    fusion, usual, backbone = cfg.MODEL.FUSION, defaults().MODEL.FUSION, cfg.MODEL.BACKBONE.NAME
    idle = [key for key in _IDLE_KEYS.get(backbone, ()) if fusion[key] != usual[key]]
    if idle:
        raise InputError(
            f"MODEL.FUSION.{idle[0]} is {_shown(fusion[idle[0]])}, but MODEL.BACKBONE.NAME {backbone} has no use for "
            f"it. Leave it at {_shown(usual[idle[0]])}, or take {' or '.join(_BOTH_STREAMS)}."
        )
    if (backbone == _TWO_PYRAMIDS) != (cfg.MODEL.META_ARCHITECTURE in _TWO_BRANCHES):
        raise InputError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} with MODEL.BACKBONE.NAME {backbone}: "
            f"{' or '.join(_TWO_BRANCHES)} and {_TWO_PYRAMIDS} go together."
        )
    hiding = ["DISABLED"] * bool(fusion.DISABLED) + ["MODALITY_DROPOUT"] * any(
        fusion.MODALITY_DROPOUT.values()
    )
    two_streams = backbone in (*_BOTH_STREAMS, _TWO_PYRAMIDS)
    if len(cfg.INPUT.MODALITIES) < 2 and (hiding or two_streams):
        key = f"MODEL.FUSION.{hiding[0]}" if hiding else f"MODEL.BACKBONE.NAME {backbone}"
        raise InputError(
            f"{key} needs both modalities, optical and sar, but INPUT.MODALITIES is {list(cfg.INPUT.MODALITIES)}. "
            + ("Leave it at its default." if hiding else f"Use {_ONE_STREAM} for one modality alone.")
        )


# Architectures that know dense heads: those alone, or instances, too; and all that are for maps alone.
DENSE_ALONE, _WITH_INSTANCES = ("FusionDense", "LateFusionDense"), ("FusionRCNN", "LateFusionRCNN")
_MAPS_ALONE = (*DENSE_ALONE, "FusionDenseNet")
# What each dense head learns.
_TASK_OF_HEAD = {"DenseHeight": "height", "Footprint": "footprint", "Reconstruction": "reconstruction"}


def finds_instances(cfg: CN) -> bool:
    """Whether the network of `cfg` finds buildings one by one; False for one that says maps alone."""
    return cfg.MODEL.META_ARCHITECTURE not in _MAPS_ALONE


def pixel_tasks(cfg: CN) -> tuple[str, ...]:
    """What the network of `cfg` says of each pixel, of "footprint", "height", "classes" and "reconstruction"."""
    if cfg.MODEL.META_ARCHITECTURE != "FusionDenseNet":
        return tuple(_TASK_OF_HEAD[name] for name in cfg.MODEL.DENSE_HEADS.NAMES)
    reconstructs = _dense_net(cfg).teaches_unlabelled(cfg)
    return (*cfg.MODEL.DENSE_NET.TASKS, *(["reconstruction"] if reconstructs else []))


def _dense_net(cfg: CN):
    from fusiondet.modeling.dense_nets import DENSE_NET_REGISTRY

    return DENSE_NET_REGISTRY.get(cfg.MODEL.DENSE_NET.NAME)


def check_tasks(cfg: CN) -> None:
    """InputError when a key of dense heads, of what joins tasks, or of tiles without labels would be ignored."""
    from fusiondet.modeling.dense_heads import check_dense_heads
    from fusiondet.modeling.dense_nets import check_dense_net
    from fusiondet.projects.hse_lcz.hse_lcz_net import ARCHITECTURE, check_hse_lcz

    check_dense_heads(cfg)
    check_dense_net(cfg)
    check_hse_lcz(cfg, defaults())
    model = cfg.MODEL
    if model.META_ARCHITECTURE == ARCHITECTURE:
        return
    if model.META_ARCHITECTURE in _MAPS_ALONE:
        _check_maps_alone(cfg)
    elif model.META_ARCHITECTURE not in _WITH_INSTANCES:
        for key in ("MODEL.DENSE_HEADS.NAMES", "MODEL.TASK_ATTENTION", "MODEL.TASK_WEIGHTING.NAME"):
            if _get(cfg, key) not in ([], False, "fixed"):
                raise InputError(
                    f"{key} is {_get(cfg, key)}, but MODEL.META_ARCHITECTURE {model.META_ARCHITECTURE} has no use for "
                    f"it. Take {', '.join(_WITH_INSTANCES)} or {DENSE_ALONE[0]}."
                )
    for key, head in (
        ("MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR", "DenseHeight"),
        ("DATALOADER.UNLABELLED_PER_BATCH", "Reconstruction"),
    ):
        if _get(cfg, key) and _TASK_OF_HEAD[head] not in pixel_tasks(cfg):
            if model.META_ARCHITECTURE == "FusionDenseNet":
                raise InputError(
                    f"{key} is {_get(cfg, key)}, but {model.DENSE_NET.NAME} as configured says no "
                    f"{_TASK_OF_HEAD[head]}. Leave {key} at {_get(defaults(), key)}, or take a network that does."
                )
            raise InputError(
                f"{key} is {_get(cfg, key)}, which needs the head {head}, but MODEL.DENSE_HEADS.NAMES is "
                f"{list(model.DENSE_HEADS.NAMES)}. Add it there, or leave {key} at {_get(defaults(), key)}."
            )
    if model.ROI_HEIGHT_HEAD.DENSE_PRIOR and not model.HEIGHT_ON:
        raise InputError(
            "MODEL.ROI_HEIGHT_HEAD.DENSE_PRIOR is True, but with MODEL.HEIGHT_ON False there is no head to show it to."
        )
    _check_more_than_one_task(cfg)


def _check_maps_alone(cfg: CN) -> None:
    """InputError when a network of maps has none, is to find instances, is judged by them, or would ignore a key."""
    model, architecture = cfg.MODEL, cfg.MODEL.META_ARCHITECTURE
    if architecture in DENSE_ALONE and not len(model.DENSE_HEADS.NAMES):
        raise InputError(
            f"MODEL.META_ARCHITECTURE {architecture} has dense heads alone, but MODEL.DENSE_HEADS.NAMES is empty. Name "
            "one at least, or take FusionRCNN."
        )
    for key in ("MASK_ON", "HEIGHT_ON"):
        if model[key]:
            raise InputError(
                f"MODEL.{key} is True, but MODEL.META_ARCHITECTURE {architecture} finds no instances. Set "
                "MODEL.MASK_ON and MODEL.HEIGHT_ON False, or take FusionRCNN."
            )
    of_classes = "classes" in pixel_tasks(cfg)
    if not cfg.TEST.BEST_METRIC.startswith(("dense/", "classes/") if of_classes else "dense/"):
        raise InputError(
            f"TEST.BEST_METRIC is {cfg.TEST.BEST_METRIC}, which {architecture} is not scored by, as it finds no "
            "instances. Take one that begins with dense/, such as dense/delta1_building or dense/dice"
            + (", or with classes/, such as classes/oa." if of_classes else ".")
        )
    if architecture not in DENSE_ALONE:
        _check_read_by_dense_net(cfg)


# Read for every dense net: what it is, and what happens to its input and to what it says.
_OF_ALL_DENSE_NETS = (
    "NAME", "TASKS", "CLASSES", "HEIGHT_SCALE_M", "OPTICAL_CHANNELS", "STEM_INFLATION", "MODALITY_DROPOUT", "DISABLED",
)  # fmt: skip


# Read where the network has these tasks.
_OF_TASKS = {
    "FOOTPRINT_WEIGHT": {"footprint"},
    "HEIGHT_WEIGHT": {"height"},
    "REFINE": {"footprint", "height"},
}


def _check_read_by_dense_net(cfg: CN) -> None:
    """InputError when a key of MODEL.DENSE_NET or MODEL.FUSION is set that the network of `cfg` does not read.

    So with MODEL.BACKBONE.NAME: who names a backbone of two streams there wants another network.
    """
    net, usual, tasks = _dense_net(cfg), defaults(), list(cfg.MODEL.DENSE_NET.TASKS)
    if cfg.MODEL.BACKBONE.NAME not in (_ONE_STREAM, usual.MODEL.BACKBONE.NAME):
        raise InputError(
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}, but {cfg.MODEL.DENSE_NET.NAME} is a whole network and "
            f"has no use for a backbone. Leave it at {_ONE_STREAM}, or take FusionDense."
        )
    for key, needed in _OF_TASKS.items():
        if (
            key in net.sections
            and not needed <= {*tasks}
            and cfg.MODEL.DENSE_NET[key] != usual.MODEL.DENSE_NET[key]
        ):
            raise InputError(
                f"MODEL.DENSE_NET.{key} is {_shown(cfg.MODEL.DENSE_NET[key])}, but MODEL.DENSE_NET.TASKS is {tasks}. "
                f"Leave it at {_shown(usual.MODEL.DENSE_NET[key])}, or add {' and '.join(sorted(needed - {*tasks}))}."
            )
    for section in ("DENSE_NET", "FUSION"):
        for key, value in cfg.MODEL[section].items():
            read = key in (*_OF_ALL_DENSE_NETS, *net.sections)
            if not read and value != usual.MODEL[section][key]:
                raise InputError(
                    f"MODEL.{section}.{key} is {_shown(value)}, but {cfg.MODEL.DENSE_NET.NAME} does not read it. Leave "
                    f"it at {_shown(usual.MODEL[section][key])}."
                )


def _check_more_than_one_task(cfg: CN) -> None:
    """InputError when tasks are to be weighed or kept apart and there is one, or another schedule weighs them, too."""
    model, heads = cfg.MODEL, len(pixel_tasks(cfg))
    instances = 1 if finds_instances(cfg) else 0
    weighting = model.TASK_WEIGHTING.NAME
    more = "dense heads to MODEL.DENSE_HEADS.NAMES"
    if model.META_ARCHITECTURE == "FusionDenseNet":
        more = "one to MODEL.DENSE_NET.TASKS"
    # A height per building is weighted for itself, and looks at what its box looks at.
    for key, value, tasks in (
        ("TASK_ATTENTION", model.TASK_ATTENTION, instances + heads),
        ("TASK_WEIGHTING.NAME", weighting != "fixed", instances + heads + (instances and model.HEIGHT_ON)),
    ):
        if value and tasks < 2:
            raise InputError(
                f"MODEL.{key} is {_get(model, key)}, but the network has a single task. Add {more}, or leave "
                f"MODEL.{key} at {_get(defaults().MODEL, key)}."
            )
    if weighting != "fixed" and model.FUSION.BALANCE.WINDOW:
        raise InputError(
            f"MODEL.TASK_WEIGHTING.NAME is {weighting} and MODEL.FUSION.BALANCE.WINDOW {model.FUSION.BALANCE.WINDOW}: "
            "both change the weights of losses, each by what it sees of the other's. Leave one at its default."
        )


def defaults() -> CN:
    """Detectron2's defaults and ours."""
    cfg = get_cfg()
    add_fusiondet_config(cfg)
    return cfg


def flat(cfg: CN, prefix: str = "") -> dict:
    """{dotted key: value} of all keys, tuples as lists: YAML does not tell them apart."""
    values = {}
    for key, value in cfg.items():
        if isinstance(value, CN):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = list(value) if isinstance(value, tuple) else value
    return values


def _empty_keys(cfg: CN, defaults: CN, prefix: str = ""):
    """Dotted keys that are None in `cfg` and not in `defaults`; YAML makes that of a key without a value."""
    for key, value in cfg.items():
        if isinstance(value, CN):
            yield from _empty_keys(value, defaults[key], f"{prefix}{key}.")
        elif value is None and defaults[key] is not None:
            yield prefix + key


def _is_numbers(values, count: int) -> bool:
    return len(values) == count and all(isinstance(v, int | float) for v in values)


def _shown(value):
    return dict(value) if isinstance(value, CN) else value


def _get(cfg: CN, dotted: str):
    for part in dotted.split("."):
        cfg = cfg[part]
    return cfg


def _merge(cfg: CN, merge, source: str) -> None:
    try:
        merge()
    except (KeyError, AssertionError, ValueError) as error:
        message = str(error.args[0]) if error.args else str(error)
        section = message.rpartition("config key: ")[2]
        if "CfgNode" in message and isinstance(_get(cfg, section), CN):
            keys = ", ".join(f"{section}.{key}" for key in _get(cfg, section))
            raise InputError(f"{source}: {section} is a section; set its keys one by one: {keys}.") from None
        if "Non-existent" not in message:
            whole = "<class 'float'> vs. <class 'int'>" in message
            hint = ". Write a whole number with a decimal point here: 40.0" if whole else ""
            raise InputError(f"{source}: {message}{hint}") from None
        key = message.split(":")[-1].strip()
        raise InputError(f"{source}: {unknown_name('config key', key, _known_near(cfg, key))}") from None


def _known_near(cfg: CN, dotted: str) -> list[str]:
    """Keys beside the misspelt one: those of the deepest section of `dotted` that exists."""
    section, prefix = cfg, []
    for part in dotted.split(".")[:-1]:
        if not isinstance(section.get(part), CN):
            break
        section, prefix = section[part], [*prefix, part]
    return [".".join([*prefix, key]) for key in section]


def _load_yaml_chain(path: Path, above: tuple[Path, ...] = ()) -> dict:
    """The tree of `path` over those of its bases; `above` are the files that led here."""
    if path.resolve() in above:
        raise InputError(f"{path}: is its own _BASE_, by way of {above[-1]}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file, expected a YAML config.") from None
    tree = safe_yaml(text, str(path))
    base = tree.pop("_BASE_", None)
    if base is None:
        return tree
    base_path = path.parent / str(base)
    if not base_path.is_file():
        raise InputError(f"{path}: its _BASE_ {base_path} does not exist.")
    return _overlay(_load_yaml_chain(base_path, (*above, path.resolve())), tree)


def _overlay(base: dict, top: dict) -> dict:
    both = dict(base)
    for key, value in top.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = _overlay(both[key], value) if nested else value
    return both


# Far above any config. References let a few lines of YAML stand for more than any memory holds.
_MOST_YAML_VALUES = 100_000


def safe_yaml(text: str, source: str) -> dict:
    """The mapping that YAML `text` of file `source` holds, by a safe loader.

    Raises:
        InputError: not YAML, Python tags, no mapping, references that expand without end, keys that are no words.
    """
    try:
        tree = yaml.safe_load(text) or {}
    except (yaml.YAMLError, RecursionError) as error:
        problem = getattr(error, "problem", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise InputError(f"{source}: not a plain YAML config{line}: {problem}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{source}: expected a YAML mapping of config keys, found {type(tree).__name__}.")
    if _expanded_size(tree, {}) > _MOST_YAML_VALUES:
        raise InputError(f"{source}: its references (& and *) expand to too many values; write them out.")
    for key in _keys(tree):
        if not isinstance(key, str):
            raise InputError(f"{source}: config keys are words, found {key!r}.")
    return tree


def _expanded_size(value, known: dict[int, float]) -> float:
    """Number of values below `value` with references written out, counted without doing so."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = float("inf")  # what a value that contains itself finds
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_expanded_size(part, known) for part in parts)
    return known[id(value)]


def _keys(tree: dict):
    for key, value in tree.items():
        yield key
        if isinstance(value, dict):
            yield from _keys(value)
