"""Image datasets: readers (one file each), splits, preprocessing, and sets on the device."""

from ddengine.data.dataset import Dataset
from ddengine.data.load import DATASETS, load_data
from ddengine.data.loaded import Data
from ddengine.data.preprocess import Preprocess, fit_preprocess
from ddengine.data.realset import RealSet, Subset
from ddengine.data.source import Part, Source, stratified

__all__ = [
    "DATASETS",
    "Data",
    "Dataset",
    "Part",
    "Preprocess",
    "RealSet",
    "Source",
    "Subset",
    "fit_preprocess",
    "load_data",
    "stratified",
]
