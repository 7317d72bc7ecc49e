"""No step of a method waits for the device, as far as a processor can tell.

What is made of images, labels, networks or what is kept between steps lies on the device. A read of
it by the host, or a shape that follows from its values, would have the host wait; and so would a
copy to the device that is not said to be `non_blocking`.
"""

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
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
    aten.linalg_eigh, aten._linalg_eigh, aten._linalg_check_errors, aten.is_nonzero,
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
    "haba": {"views"},  # how many pairs of examples there are
    "frepo": {"pool", "labels"},  # one_hot looks at classes, but on a GPU it does not
    "krr_st": {"pool"},
}


SENT = "runtime"  # the module of `sent`, which does not wait for a copy to a GPU
COPIES = {"mct": {"convex"}}  # epochs between waypoints are made on the host


class Watched(TorchDispatchMode):
    """Follows what is made of some tensors, and notes reads of it by the host.

    And, where functions of torch are `seen` by it, copies to the device that are waited for.
    """

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        self.reads: set[str] = set()
        self.copies: set[str] = set()
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

    @contextmanager
    def seeing(self, monkeypatch) -> Iterator[None]:
        """Within the block methods and functions that move tensors are seen too."""
        with monkeypatch.context() as patched, self:
            for name in METHODS:
                patched.setattr(Tensor, name, self._reading(getattr(Tensor, name)))
            patched.setattr(Tensor, "to", self._moving(Tensor.to))
            for name in ("tensor", "as_tensor"):
                patched.setattr(torch, name, self._copying(getattr(torch, name)))
            for name in ("arange", "full", "ones", "rand", "randperm", "zeros"):
                patched.setattr(torch, name, self._making(getattr(torch, name)))
            yield

    def _reading(self, method):
        def reading(tensor, *args, **kwargs):
            if self.knows(tensor):
                self.reads.add(place())
            return method(tensor, *args, **kwargs)

        return reading

    def _moving(self, method):
        def moving(tensor, *args, **kwargs):
            where = [kwargs.get("device"), *args]
            moves = any(isinstance(to, torch.device | str) or self.knows(to) for to in where)
            made = method(tensor, *args, **kwargs)
            if moves and tensors_in(tensor):
                if not self.knows(tensor) and place() != SENT:
                    self.copies.add(place())
                self.add([made])
            return made

        return moving

    def _copying(self, function):
        def copying(*args, **kwargs):
            if kwargs.get("device") is not None and not self.knows(args):
                self.copies.add(place())
            return function(*args, **kwargs)

        return copying

    def _making(self, function):
        def making(*args, **kwargs):
            made = function(*args, **kwargs)
            if kwargs.get("device") is not None:
                self.add([made])
            return made

        return making

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if self.knows((args, kwargs)):
            indexes = func.overloadpacket in (aten.index, aten.index_put_, aten.index_put)
            by_mask = indexes and any(index.dtype == torch.bool for index in tensors_in(args[1]))
            if func.overloadpacket in READS or by_mask:
                self.reads.add(place())
            self.add(tensors_in(made))
        return made


def tensors_in(values) -> list[Tensor]:
    """All tensors, at any depth, but those that vmap or a derivative wraps, which have no memory."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return [tensor for tensor in tensors if not is_functorch_wrapped_tensor(tensor)]


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
        with watched.seeing(monkeypatch):
            rng = generator(0, "losses", step)
            for loss in objective.losses(syn.with_tensors(leaves), state, step, rng):
                loss.backward()
    method = recipe.name.split("/")[0]
    assert watched.reads == KNOWN.get(method, set())
    assert watched.copies == COPIES.get(method, set())
