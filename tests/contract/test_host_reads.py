"""No step of a method waits for the device, as far as a processor can tell.

What is made of images, labels, networks or what is kept between steps lies on the device. A read of
it by the host, or a shape that follows from its values, would have the host wait.
"""

import traceback
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import synth
from ddengine.contract import worlds
from ddengine.system.rng import generator

PARTS = Path(synth.__file__).parent.parts
PACKAGES = [(*PARTS[:-1], name) for name in ("ddengine", "buffers", "synth")]
aten = torch.ops.aten
# operations for whose result the host waits
READS = {
    aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten.bincount,
    aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave,
    aten.linalg_eigh, aten._linalg_eigh, aten.is_nonzero,
}  # fmt: skip
METHODS = ("tolist", "numpy", "cpu")  # of tensors; these read without an operation


def place() -> str:
    """The module of this program that is at work."""
    lines = traceback.extract_stack()
    *_, ours = [line for line in lines if Path(line.filename).parts[: len(PARTS)] in PACKAGES]
    return Path(ours.filename).stem


# what the host must know: how many inner steps there are, and which network of a pool is trained
KNOWN = {
    "at": {"stages", "windows"},
    "att": {"trajectory"},
    "frepo": {"pool", "labels"},  # one_hot looks at classes, but on a GPU it does not
    "krr_st": {"pool"},
}


class Watched(TorchDispatchMode):
    """Follows what is made of some tensors, and notes reads of it by the host."""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        self.reads: set[str] = set()
        self._known: dict[int, StorageWeakRef] = {}
        self.add(tensors)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Follow these too."""
        for tensor in tensors:
            reference = StorageWeakRef(tensor.untyped_storage())
            self._known[reference.cdata] = reference

    def knows(self, values) -> bool:
        """Whether any of these was made of the tensors."""
        for tensor in tensors_in(values):
            if StorageWeakRef(tensor.untyped_storage()).cdata in self._known:
                return True
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if self.knows((args, kwargs)):
            by_mask = func is aten.index.Tensor and any(
                index is not None and index.dtype == torch.bool for index in args[1]
            )
            if func.overloadpacket in READS or by_mask:
                self.reads.add(place())
            self.add(tensors_in(made))
        return made


def tensors_in(values) -> list[Tensor]:
    """All tensors, at any depth."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


RECIPES = [recipe for recipe in worlds.recipes_of_methods(()) if recipe.outer.steps]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_step_reads_nothing_back(recipe, world, monkeypatch):
    """But for tables that are made once."""
    recipe, train = worlds.shrunk(recipe), world.data.train
    objective, syn = worlds.start(recipe, world)
    learned, state = syn.by_tensor(recipe.outer.optim), objective.init(generator(0, "state"))
    for step in range(3):
        leaves = {name: tensor.clone() for name, tensor in syn.tensors.items()}
        for name in learned:
            leaves[name].requires_grad_()
        watched = Watched([*leaves.values(), syn.classes, train.pixels, train.labels])
        watched.add(tensors_in(state))
        with monkeypatch.context() as patched, watched:
            for name in METHODS:
                patched.setattr(Tensor, name, noted(getattr(Tensor, name), name, watched))
            rng = generator(0, "losses", step)
            for loss in objective.losses(syn.with_tensors(leaves), state, step, rng):
                loss.backward()
    method = recipe.name.split("/")[0]
    assert watched.reads == KNOWN.get(method, set())


def noted(method, name, watched):
    """A method of tensors, whose reads are noted."""

    def reading(tensor, *args, **kwargs):
        if watched.knows(tensor):
            watched.reads.add(place())
        return method(tensor, *args, **kwargs)

    return reading
