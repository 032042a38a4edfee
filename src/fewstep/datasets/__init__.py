"""Where `x_0` comes from: `dataset.train(root).batch(n, generator)`. One file, one data set."""

from fewstep.datasets.arrays import Arrays
from fewstep.datasets.base import Dataset, Examples, TensorExamples
from fewstep.datasets.cifar10 import CIFAR10
from fewstep.datasets.digits import Digits
from fewstep.datasets.images import Images
from fewstep.datasets.mixtures import T2, Correlated, MixtureDataset, MixtureExamples, Ring
from fewstep.datasets.mnist import MNIST
from fewstep.datasets.planar import Checkerboard, Moons, PlanarDataset, PlanarExamples, SwissRoll
from fewstep.datasets.tilted import Tilted

__all__ = [
    "CIFAR10",
    "MNIST",
    "T2",
    "Arrays",
    "Checkerboard",
    "Correlated",
    "Dataset",
    "Digits",
    "Examples",
    "Images",
    "MixtureDataset",
    "MixtureExamples",
    "Moons",
    "PlanarDataset",
    "PlanarExamples",
    "Ring",
    "SwissRoll",
    "TensorExamples",
    "Tilted",
]
