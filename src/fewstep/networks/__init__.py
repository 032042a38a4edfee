"""Numbers in, numbers out: `network(x, times, cond=None)`. Networks know nothing of diffusion. One file, one network."""

from fewstep.networks.base import Network, NetworkConfig
from fewstep.networks.mlp import MLP, MLPConfig
from fewstep.networks.unet import UNet, UNetConfig

__all__ = ["MLP", "MLPConfig", "Network", "NetworkConfig", "UNet", "UNetConfig"]
