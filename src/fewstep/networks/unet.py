"""diffusers' `UNet2DModel`, made fit for forward-mode differentiation and for several times.

Two of its parts have no forward mode: fused attention (the plain attention processor takes its place) and group
normalisation of a non-contiguous tangent (`GroupNorm` below makes it contiguous). The times are mixed by our own
embedding, which enters where a class embedding would; the built-in embedding of one time is fed a constant.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.networks.base import Network, NetworkConfig
from fewstep.networks.embedding import TimesEmbedding


class GroupNorm(nn.GroupNorm):
    """Group normalisation whose input, and with it the input's tangent, is contiguous and in the weights' precision.

    (On a CPU, autocast would leave the tangent in another precision than the input.)
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype).clone(memory_format=torch.contiguous_format))


class UNet(Network):
    """A U-Net over images `(batch, inputs * channels, height, width)`; `x` is concatenated on the channel axis."""

    def __init__(self, config: "UNetConfig", item_shape: tuple[int, ...], inputs: int, times: int):
        super().__init__()
        from diffusers.models.attention_processor import Attention, AttnProcessor
        from diffusers.models.unets.unet_2d import UNet2DModel

        if len(item_shape) != 3:
            raise UserError(f"a U-Net works on items (channels, height, width), not {item_shape}: use an MLP")
        channels, height, width = item_shape
        cuts = 2 ** (len(config.block_out_channels) - 1)
        if height % cuts or width % cuts:
            raise UserError(f"a U-Net of {len(config.block_out_channels)} levels needs sides that {cuts} divides, "
                            f"not {height} x {width}: use fewer levels or resize the images")  # fmt: skip
        self.config = config
        try:
            self.unet = UNet2DModel(
                sample_size=(height, width),
                in_channels=inputs * channels,
                out_channels=channels,
                down_block_types=config.down_block_types,
                up_block_types=config.up_block_types,
                block_out_channels=config.block_out_channels,
                layers_per_block=config.layers_per_block,
                downsample_padding=config.downsample_padding,
                norm_num_groups=config.norm_num_groups,
                dropout=config.dropout,
                act_fn="silu",
                class_embed_type="identity",
            )
        except ValueError as error:
            raise UserError(f"diffusers cannot build this U-Net: {error}") from error
        for module in list(self.unet.modules()):
            if isinstance(module, Attention):
                module.set_processor(AttnProcessor())
                module.upcast_softmax = False  # to float32 it would be, which is down where the network is in float64
        _replace_group_norms(self.unet)
        self.embedding = TimesEmbedding(
            times,
            4 * config.block_out_channels[0],
            width=config.embedding_width,
            features=128,
            num_classes=config.num_classes,
        )

    def forward(self, x: Tensor, times: Tensor, cond: Tensor | None = None) -> Tensor:
        embedding = self.embedding(times, cond)
        return self.unet(x, timestep=0, class_labels=embedding, return_dict=False)[0]


@dataclass(frozen=True, kw_only=True)
class UNetConfig(NetworkConfig):
    """A U-Net; the fields are `UNet2DModel`'s. Defaults: the paper's network for MNIST (table 1, 1.1 M parameters)."""

    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (32, 64, 32)
    layers_per_block: int = 1
    downsample_padding: int = 1
    norm_num_groups: int = 32
    dropout: float = 0.0
    embedding_width: int = 256

    def build(self, item_shape: tuple[int, ...], inputs: int, times: int) -> UNet:
        return UNet(self, item_shape, inputs, times)


MNIST_UNET = UNetConfig()
CIFAR10_UNET = UNetConfig(
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(128, 256, 256, 256),
    layers_per_block=2,
    downsample_padding=0,
    embedding_width=512,
)


def _replace_group_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, GroupNorm(child.num_groups, child.num_channels, child.eps, child.affine))
        else:
            _replace_group_norms(child)
