"""Networks. Importing this package registers every class with Detectron2's registries."""

import fusiondet.compat  # noqa: F401  (before detectron2)
from fusiondet.modeling import backbone, dense_nets, height_head, meta_arch, roi_heads  # noqa: F401
