"""FusionHeightNet (P2): two encoders of convolutions and Transformers that fuse at two levels, a decoder per task."""

from fusiondet.errors import InputError, unknown_name
from fusiondet.modeling.backbone import valid_at
from fusiondet.modeling.dense_heads import DenseMaps
from fusiondet.modeling.dense_nets import DENSE_NET_REGISTRY, Picture
from fusiondet.modeling.fusion import MODALITIES, AttentionBlock, ConcatJoin, CrossAttention
from fusiondet.modeling.streams import PerModality
from fusiondet.modeling.unet import UNetDecoder
from fusiondet.projects.fusion_height_net.two_task_head import TwoTaskHead, TwoTaskNet

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import Tensor, nn

# Channels of F0, F1, F2 and F_out over those of F0.
WIDTHS = (1, 2, 4, 8)
FUSIONS = ("cross", "concat")
# Of one encoder that both modalities go through.
_BOTH = "both"
# Keys are never pooled: the paper's attention is over all cells.
_ALL_KEYS = 1 << 30


class _Levels(nn.Module):
    """Three levels of residual convolutions, each of half the size: F0 -> F1, F2, F_out."""

    def __init__(self, widths: list[int]):
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(BasicBlock(before, own, stride=2, norm="BN"), BasicBlock(own, own, norm="BN"))
            for before, own in zip(widths, widths[1:])
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C0, H/2, W/2) -> (N, C1, H/4, W/4), (N, C2, H/8, W/8), (N, C3, H/16, W/16)."""
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


class Transformer(nn.Module):
    """Embeds each cell as a token, adds a learned position, and lets all tokens with data attend to each other."""

    def __init__(self, channels: int, depth: int, heads: int, mlp_ratio: float, cells: int):
        """`cells` per side of the learned positions, which are resized to a map of any other size."""
        super().__init__()
        self.embed = nn.Linear(channels, channels)
        self.position = nn.Parameter(torch.empty(1, channels, cells, cells))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(depth))
        self.blocks = nn.ModuleList(
            AttentionBlock(
                channels,
                channels,
                dim=channels,
                heads=heads,
                mlp_ratio=mlp_ratio,
                max_keys=_ALL_KEYS,
                positions=False,
            )
            for _ in range(depth)
        )

    def positions(self, height: int, width: int) -> Tensor:
        """(1, C, height, width): the learned ones, bicubic in between where the map is of another size."""
        if self.position.shape[-2:] == (height, width):
            return self.position
        return F.interpolate(self.position, (height, width), mode="bicubic", align_corners=False)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(N, C, h, w) and the share of each cell that has data, (N, 1, h, w) -> (N, C, h, w)."""
        x = self.embed(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) + self.positions(*x.shape[-2:])
        for norm, block in zip(self.norms, self.blocks):
            normed = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            x = block(x, normed, normed, valid)
        return x


@DENSE_NET_REGISTRY.register()
class FusionHeightNet(TwoTaskNet):
    """Footprints, and heights refined by them, from optical and SAR images (P2, SpaceNet 6).

    A modality's encoder: convolution and max-pooling (F0 at stride 2); three levels of residual convolutions (F1, F2,
    F_out at strides 4, 8, 16); cross-fusion 1 with the other one's F_out; a Transformer; cross-fusion 2. In
    cross-fusion queries come from the other modality, keys and values from this one (`CrossAttention`). The fused map
    feeds a decoder per task: three times upsampling, the encoders' F2, F1, F0 beside, two 3 x 3 convolutions with ReLU;
    then `TwoTaskHead`. One modality alone has one encoder and no cross-fusion (experiments A1, A2, A4, A5).

    Keys of MODEL.DENSE_NET.FUSION_HEIGHT_NET: FUSION "concat" leaves cross-fusion out, so that maps meet where they are
    concatenated (A6); SHARE_WEIGHTS has one set of levels and one Transformer for both modalities (B1), stems apart,
    as their bands differ.

    Assumptions, where the paper does not say it:
    - widths: F0, F1, F2, F_out have 1, 2, 4, 8 times MODEL.DENSE_NET.WIDTH channels; a level is two residual blocks of
      two convolutions with batch norm, the first of stride 2; stem 3 x 3, batch norm, ReLU, max-pooling 2 x 2;
    - tokens are the single cells of F_out (patches of 1 x 1): 1024 for a crop of 512 pixels; depth, heads, MLP ratio;
    - both encoders' F0, F1, F2 are concatenated for the decoders, and so are their last maps, then mixed by a 1 x 1
      convolution;
    - cross-fusion has fixed sine positions in queries and keys; tokens without data are no keys; no dropout;
    - three doublings end at stride 2: the last one, to the image's size, is bilinear and without weights;
    - metres of 1 in the normalised heights: the greatest height of the training data (HEIGHT_SCALE_M);
    - what `TwoTaskHead` lists; learning rate, batch and epochs, which the configs say.
    """

    stride = 16
    # Batch norm of a single image has to see more than one cell at stride 16.
    least_size_px = 32
    sections = (*TwoTaskNet.sections, "FUSION_HEIGHT_NET")

    @classmethod
    def check(cls, cfg) -> None:
        """See `DenseNet.check`."""
        where, keys = "MODEL.DENSE_NET.FUSION_HEIGHT_NET", cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET
        if keys.FUSION not in FUSIONS:
            raise unknown_name(f"{where}.FUSION", keys.FUSION, FUSIONS)
        for key, least in (("DEPTH", 0), ("HEADS", 1), ("POSITIONS", 1)):
            if keys[key] < least:
                raise InputError(f"{where}.{key} is {keys[key]}, expected {least} or more.")
        if not keys.MLP_RATIO > 0:
            raise InputError(f"{where}.MLP_RATIO is {keys.MLP_RATIO}, expected above 0.")
        channels = WIDTHS[-1] * cfg.MODEL.DENSE_NET.WIDTH
        if channels <= 0 or channels % (4 * keys.HEADS):
            raise InputError(
                f"MODEL.DENSE_NET.WIDTH is {cfg.MODEL.DENSE_NET.WIDTH}, of which FusionHeightNet makes tokens of "
                f"{channels} channels: expected a multiple of 4 times {where}.HEADS, {4 * keys.HEADS}."
            )
        if len(cfg.INPUT.MODALITIES) < 2 and (keys.FUSION != "cross" or keys.SHARE_WEIGHTS):
            raise InputError(
                f"{where}.FUSION and SHARE_WEIGHTS are about two modalities, but INPUT.MODALITIES is "
                f"{list(cfg.INPUT.MODALITIES)}. Leave both at their defaults."
            )

    def __init__(self, cfg, optical_channels: int, sar_channels: int):
        """See `DENSE_NET_REGISTRY`.

        Raises:
            InputError: see `check`.
        """
        super().__init__()
        self.check(cfg)
        keys = cfg.MODEL.DENSE_NET.FUSION_HEIGHT_NET
        widths = [times * cfg.MODEL.DENSE_NET.WIDTH for times in WIDTHS]
        bands = {"optical": optical_channels, "sar": sar_channels}
        self.modalities = [m for m in MODALITIES if bands[m]]
        self.shared = keys.SHARE_WEIGHTS and len(self.modalities) > 1
        self.stems = PerModality({m: _stem(bands[m], widths[0]) for m in self.modalities})
        encoders = [_BOTH] if self.shared else self.modalities
        self.levels = PerModality({name: _Levels(widths) for name in encoders})
        sizes = (keys.DEPTH, keys.HEADS, keys.MLP_RATIO, keys.POSITIONS)
        self.transformers = PerModality({name: Transformer(widths[-1], *sizes) for name in encoders})
        self.exchanges, self.joins = nn.ModuleList(), nn.ModuleList()
        if len(self.modalities) > 1:
            if keys.FUSION == "cross":
                self.exchanges.extend(_cross_fusion(widths[-1], keys) for _ in range(2))
            self.joins.append(ConcatJoin(optical_channels=widths[-1], sar_channels=widths[-1]))
        beside = [len(self.modalities) * width for width in widths]
        self.decoders = nn.ModuleDict(
            {task: UNetDecoder(widths, skip_widths=beside, norm=False) for task in cfg.MODEL.DENSE_NET.TASKS}
        )
        self.head = TwoTaskHead(widths[0], widths[0], **TwoTaskHead.arguments(cfg))
        for block in self.modules():
            if isinstance(block, AttentionBlock):
                # From scratch as ViT: those that start as the identity are for networks that know something already.
                nn.init.trunc_normal_(block.out.weight, std=0.02)
                nn.init.trunc_normal_(block.mlp[-1].weight, std=0.02)

    def forward(self, picture: Picture) -> DenseMaps:
        """See `DenseNet.forward`."""
        pixels = {m: getattr(picture, m) for m in self.modalities}
        stems = {m: self.stems[m](pixels[m]) for m in self.modalities}
        maps = self._encoded(self.levels, stems)
        coarsest = {m: maps[m][-1] for m in self.modalities}
        valid = {m: valid_at(getattr(picture, f"{m}_valid"), coarsest[m]) for m in self.modalities}
        coarsest = self._encoded(self.transformers, self._fused(0, coarsest, valid), valid)
        coarsest = self._fused(1, coarsest, valid)
        both = [coarsest[m] for m in self.modalities]
        fused = self.joins[0](*both, *valid.values()) if len(both) > 1 else both[0]
        skips = [
            torch.cat(level, dim=1) for level in zip(*([stems[m], *maps[m][:-1]] for m in self.modalities))
        ]
        decoded = {task: self._decoded(decoder, [*skips, fused]) for task, decoder in self.decoders.items()}
        return self.head(decoded.get("footprint"), decoded.get("height"))

    def _encoded(self, parts: nn.ModuleDict, *inputs: dict[str, Tensor]) -> dict:
        """Each modality's part of its inputs; a shared one takes both as one batch, whose statistics it then knows."""
        if not self.shared:
            return {m: parts[m](*(x[m] for x in inputs)) for m in self.modalities}
        said = parts[_BOTH](*(torch.cat([x[m] for m in self.modalities]) for x in inputs))
        if isinstance(said, Tensor):
            return dict(zip(self.modalities, said.chunk(2)))
        return dict(zip(self.modalities, zip(*(x.chunk(2) for x in said))))

    def _fused(self, level: int, maps: dict[str, Tensor], valid: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both after cross-fusion `level`; as they are without."""
        if not len(self.exchanges):
            return maps
        return dict(zip(self.modalities, self.exchanges[level](*maps.values(), *valid.values())))

    @staticmethod
    def _decoded(decoder: UNetDecoder, maps: list[Tensor]) -> Tensor:
        return F.interpolate(decoder(maps), scale_factor=2.0, mode="bilinear", align_corners=False)


def _stem(bands: int, width: int) -> nn.Sequential:
    """(N, bands, H, W) -> (N, width, H/2, W/2)."""
    conv = nn.Conv2d(bands, width, 3, padding=1, bias=False)
    weight_init.c2_msra_fill(conv)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(2))


def _cross_fusion(channels: int, keys) -> CrossAttention:
    return CrossAttention(
        optical_channels=channels,
        sar_channels=channels,
        dim=channels,
        heads=keys.HEADS,
        mlp_ratio=keys.MLP_RATIO,
        max_keys=_ALL_KEYS,
    )
