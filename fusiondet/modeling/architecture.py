"""What a network architecture declares about itself, so that nobody has to know architectures by their names."""

from fusiondet import plugins
from fusiondet.errors import InputError

from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import Tensor, nn


class Architecture:
    """Base of the architectures of fusiondet; the defaults describe one of Detectron2's own, which declares nothing.

    Attributes:
        finds_instances: outputs have "instances": buildings one by one.
        predicts_scenes: outputs describe places in the image; False for a network that classifies whole patches.
        has_modalities: knows which bands are optical and which are SAR, and can do without either.
        detectors: number of detectors whose scores are averaged; a building that one of them misses keeps 1 / detectors
            of its score.
        separate_pyramids: MODEL.BACKBONE.NAME has to return a feature pyramid per modality.
        reads_dense_heads: builds MODEL.DENSE_HEADS, and reads MODEL.TASK_ATTENTION and MODEL.TASK_WEIGHTING.
        reads_dense_net: is the network that MODEL.DENSE_NET describes, and has no backbone of its own.
        may_skip_parameters: a training step may leave parameters without a gradient.
    """

    finds_instances: bool = True
    predicts_scenes: bool = True
    has_modalities: bool = False
    detectors: int = 1
    separate_pyramids: bool = False
    reads_dense_heads: bool = False
    reads_dense_net: bool = False
    may_skip_parameters: bool = False

    # Of a network, not of its class: has a branch per modality that predicts on its own, see `branch_predictions`.
    has_branches: bool = False
    # Of a network: both branches go through the same stages, so that these belong to neither modality.
    shares_stages: bool = False
    # Of a network: factor on the width of its height intervals, which calibration sets in place; None without heights.
    interval_width: Tensor | None = None

    @classmethod
    def pixel_tasks(cls, cfg) -> tuple[str, ...]:
        """Return what the network of `cfg` predicts per pixel: "footprint", "height", "classes", "reconstruction"."""
        return ()

    @classmethod
    def tasks(cls, cfg) -> list[str]:
        """Return the tasks of the network of `cfg`, by the names that their losses are weighted under."""
        return ["instances"]

    @classmethod
    def score_groups(cls, cfg) -> tuple[str, ...]:
        """Return the groups of scores that TEST.BEST_METRIC may be of, e.g. "dense"; () if that depends on the data."""
        if cls.finds_instances:
            return ()
        return ("dense", "classes") if "classes" in cls.pixel_tasks(cfg) else ("dense",)

    @classmethod
    def best_metric(cls, cfg) -> str:
        """Return the score that decides which checkpoint is the best one, where the config names none."""
        if cls.finds_instances:
            instances = "segm/AP50" if cfg.MODEL.MASK_ON else "bbox/AP50"
            return "joint/AP50" if cfg.MODEL.HEIGHT_ON else instances
        tasks = cls.pixel_tasks(cfg)
        if "classes" in tasks:
            return "classes/oa"
        return "dense/delta1_building" if "height" in tasks else "dense/dice"

    def unimodal_part(self, modality: str) -> nn.Module:
        """Return the part of a network with branches that processes `modality` alone, before any head."""
        raise NotImplementedError

    def branch_predictions(self, batched_inputs: list[dict]) -> dict[str, list[dict]]:
        """Return what each branch predicts alone and what both predict together, for a network with branches.

        Returns:
            {"optical": ..., "sar": ..., "fused": ...}, each as the network's output for these inputs.
        """
        raise NotImplementedError


def architecture_of(cfg) -> type[Architecture]:
    """Return the class that MODEL.META_ARCHITECTURE names; `Architecture` itself for one of Detectron2's own.

    The architecture of a project is imported first; InputError when a library that it needs is not installed.
    """
    plugins.load("architectures", cfg.MODEL.META_ARCHITECTURE, "MODEL.META_ARCHITECTURE")
    named = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    # Detectron2's registry holds classes, but accepts functions, too.
    return named if isinstance(named, type) and issubclass(named, Architecture) else Architecture


def build_network(cfg) -> nn.Module:
    """Return the network that `cfg` describes, on its MODEL.DEVICE, with fresh weights.

    Raises:
        InputError: the config describes no network, or one whose parts do not fit together.
    """
    try:
        return build_model(cfg)
    except InputError:
        raise
    except Exception as error:
        # Detectron2 and torch raise almost anything for a depth, a norm or a feature map that does not exist.
        reason = f"{type(error).__name__} {error}".splitlines()[0]
        raise InputError(
            f"no network can be built from this config: {reason}. Compare MODEL.DEVICE and the other MODEL keys "
            "with configs/Base-FusionRCNN-FPN.yaml."
        ) from error
