"""Frozen networks whose features a drifting field looks at. One file, one encoder."""

from fewstep.encoders.base import Encoder, MapsModule
from fewstep.encoders.masked import Masked
from fewstep.encoders.pooling import pooled

__all__ = ["Encoder", "MapsModule", "Masked", "pooled"]
