"""The one place that writes what a run leaves: the set, and the pictures beside it."""

from pathlib import Path

from ddengine.artefact import folder as folders
from ddengine.data import Data
from ddengine.pages import figures
from ddengine.sets.synthetic import SyntheticSet
from ddengine.types import Meta


def write_run(
    folder: Path,
    syn: SyntheticSet,
    data: Data,
    meta: Meta,
    *,
    shown: SyntheticSet | None = None,
) -> None:
    """Write a set into the folder of its run, with what a report shows beside it.

    The set lies there last, because with it the run is finished. `shown` is the set with its
    classes numbered as the images have them; None: `syn`.
    """
    pictured = syn if shown is None else shown
    figures.real_vs_distilled(folder / "real_vs_distilled.png", data.train, pictured, None)
    figures.save_samples(folder / "samples.safetensors", data.train)
    folders.save(syn, folder / "distilled", meta, data.split_names)
