"""What is measured of an item: `y = A(x_0) + noise`, with deepinv's names `A`, `A_adjoint`, `A_dagger`, `prox_l2`."""

from fewstep.operators.base import Linear, LinearOperator, Operator, ShapedOperator, check_observation, is_linear
from fewstep.operators.blur import Blur, GaussianBlur, KernelBlur, MotionBlur
from fewstep.operators.closed_forms import Decomposed, ScaledIsometry
from fewstep.operators.grey import Grey
from fewstep.operators.inpainting import Inpainting
from fewstep.operators.masks import BoxMask, HalfMask, ImageMask, Mask, RandomMask, TensorMask
from fewstep.operators.matrix import Matrix
from fewstep.operators.noise import Gaussian, Noise, NoNoise, Poisson
from fewstep.operators.nonlinear import BlockQuantisation, HDRClip, PhaseRetrieval, Quantisation
from fewstep.operators.super_resolution import AveragePool, Bicubic

__all__ = [
    "AveragePool",
    "Bicubic",
    "BlockQuantisation",
    "Blur",
    "BoxMask",
    "Decomposed",
    "Gaussian",
    "GaussianBlur",
    "Grey",
    "HDRClip",
    "HalfMask",
    "ImageMask",
    "Inpainting",
    "KernelBlur",
    "Linear",
    "LinearOperator",
    "Mask",
    "Matrix",
    "MotionBlur",
    "NoNoise",
    "Noise",
    "Operator",
    "PhaseRetrieval",
    "Poisson",
    "Quantisation",
    "RandomMask",
    "ScaledIsometry",
    "ShapedOperator",
    "TensorMask",
    "check_observation",
    "is_linear",
]
