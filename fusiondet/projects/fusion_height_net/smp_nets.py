"""FusionHeightNet's baselines that segmentation-models-pytorch builds: DeepLabv3+, ResUNet, UPerNet, PSPNet.

Never with pretrained weights: P2 trains all of its networks from scratch, and nothing here is downloaded.
"""

from fusiondet.errors import unknown_name
from fusiondet.modeling.dense_nets import DENSE_NET_REGISTRY
from fusiondet.projects.fusion_height_net.two_task_head import StackedNet

import segmentation_models_pytorch as smp
from torch import Tensor, nn

# ResNets of timm, whose widths can be chosen, by the name in MODEL.DENSE_NET.SMP.ENCODER.
_ENCODERS = {f"resnet{depth}": f"tu-resnet{depth}" for depth in (18, 34, 50, 101)}


class _Body(nn.Module):
    """Encoder and decoder of a network of segmentation-models-pytorch, without its own head."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.encoder, self.decoder = network.encoder, network.decoder
        _unnormalise_single_cells(self.decoder)

    def forward(self, x: Tensor) -> Tensor:
        """(N, bands, H, W) -> (N, channels, h, w)."""
        return self.decoder(self.encoder(x))


def _unnormalise_single_cells(module: nn.Module) -> None:
    """Take batch norm out where a whole map is pooled to one cell: one image in training has no statistics there."""
    for branch in module.modules():
        pool = next(iter(branch.children()), None) if isinstance(branch, nn.Sequential) else None
        if isinstance(pool, nn.AdaptiveAvgPool2d) and pool.output_size in (1, (1, 1)):
            for parent in branch.modules():
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.BatchNorm2d):
                        setattr(parent, name, nn.Identity())


class _SMPNet(StackedNet):
    """A network of segmentation-models-pytorch whose ResNet has MODEL.DENSE_NET.WIDTH channels in its first stage.

    Decoders scale with it: at a width of 64 they have the library's own channels. The paper does not publish depth or
    width of its baselines' encoders.
    """

    sections = (*StackedNet.sections, "SMP")
    stride = 32
    # Stride of the decoder's map.
    decoder_stride = 1

    @classmethod
    def check(cls, cfg) -> None:
        """See `DenseNet.check`."""
        encoder = cfg.MODEL.DENSE_NET.SMP.ENCODER
        if encoder not in _ENCODERS:
            raise unknown_name("MODEL.DENSE_NET.SMP.ENCODER", encoder, _ENCODERS)

    def build_body(self, cfg, bands: int) -> tuple[nn.Module, int, bool]:
        """See `StackedNet.build_body`."""
        self.check(cfg)
        width = cfg.MODEL.DENSE_NET.WIDTH
        architecture, keys, channels = self.choose(width)
        network = getattr(smp, architecture)(
            encoder_name=_ENCODERS[cfg.MODEL.DENSE_NET.SMP.ENCODER],
            encoder_weights=None,
            in_channels=bands,
            channels=tuple(width * 2**i for i in range(4)),
            # Else the residual blocks of timm's ResNets start as the identity.
            zero_init_last=False,
            **keys,
        )
        return _Body(network), channels, self.decoder_stride > 1

    def choose(self, width: int) -> tuple[str, dict, int]:
        """The library's class, its arguments, channels of its decoder's map."""
        raise NotImplementedError


@DENSE_NET_REGISTRY.register()
class DeepLabV3Plus(_SMPNet):
    """DeepLabv3+: ResNet to stride 16, atrous pyramid of 6, 12, 18, decoder to stride 4."""

    decoder_stride = 4

    def choose(self, width: int) -> tuple[str, dict, int]:
        """See `_SMPNet.choose`."""
        return "DeepLabV3Plus", {"decoder_channels": 4 * width}, 4 * width


@DENSE_NET_REGISTRY.register()
class ResUNet(_SMPNet):
    """U-Net on a ResNet, skips at strides 2 to 16, up to full resolution."""

    def choose(self, width: int) -> tuple[str, dict, int]:
        """See `_SMPNet.choose`."""
        channels = tuple(max(1, int(width * times)) for times in (4, 2, 1, 0.5, 0.25))
        return "Unet", {"decoder_channels": channels}, channels[-1]


@DENSE_NET_REGISTRY.register()
class UPerNet(_SMPNet):
    """UPerNet: pyramid pooling on stride 32, a feature pyramid, all of its levels fused at stride 4."""

    decoder_stride = 4

    def choose(self, width: int) -> tuple[str, dict, int]:
        """See `_SMPNet.choose`."""
        return "UPerNet", {"decoder_channels": 4 * width}, 4 * width


@DENSE_NET_REGISTRY.register()
class PSPNet(_SMPNet):
    """PSPNet: ResNet dilated so that it stays at stride 8, pyramid pooling of 1, 2, 3, 6."""

    decoder_stride = 8

    def choose(self, width: int) -> tuple[str, dict, int]:
        """See `_SMPNet.choose`."""
        # The library's default ends the ResNet behind its second stage instead.
        keys = {"encoder_depth": 5, "output_stride": 8, "psp_out_channels": 8 * width}
        return "PSPNet", keys, 8 * width
