"""The architectures that MODEL.META_ARCHITECTURE names; importing this package registers them with Detectron2."""

from fusiondet.modeling.meta_arch.fusion_dense import FusionDense
from fusiondet.modeling.meta_arch.fusion_dense_net import FusionDenseNet
from fusiondet.modeling.meta_arch.fusion_rcnn import FusionRCNN
from fusiondet.modeling.meta_arch.late_fusion import LateFusionDense, LateFusionRCNN

__all__ = ["FusionDense", "FusionDenseNet", "FusionRCNN", "LateFusionDense", "LateFusionRCNN"]
