"""Functions of tensors as graphs of plain operations: compiled, and on a GPU launched by one call.

A graph is made for each shape of what a function is given. It is written down with its derivatives,
so nothing is differentiated through compiled code.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

Function = Callable[..., Any]  # of tensors; returns tensors, in tuples
Compiler = Callable[[Function], Function]
# a library of compiled code that cannot be loaded, in an error of the compiler
LIBRARY = re.compile(r"ImportError: (.+?\.so):")
WARM_UP = 3  # calls before kernels are recorded, as torch advises: libraries set themselves up


class Computation(Protocol):
    """How functions of tensors are computed.

    `what` names a function, which may be another object at each call. It must read no tensors that
    are not among those given, but for constants.
    """

    def __call__(self, what: Any, function: Function, *given: Tensor) -> Any:
        """What a function gives, without a graph of autograd."""
        ...

    def loss(self, what: Any, function: Function, *given: Tensor) -> Tensor:
        """A scalar function, differentiable once in those given that want a gradient."""
        ...


class Eager(Computation):
    """One operation after another, as they are written."""

    @torch.no_grad()
    def __call__(self, what: Any, function: Function, *given: Tensor) -> Any:
        """What a function gives, without a graph of autograd."""
        return function(*given)

    def loss(self, what: Any, function: Function, *given: Tensor) -> Tensor:
        """A scalar function with the graph of autograd."""
        return function(*given)


class Graphs(Computation):
    """Each function compiled once for each shape, layout and type of what it is given."""

    def __init__(self, compiler: Compiler | None = None):
        """`compiler` is given each graph; None: `by_inductor`."""
        self._compiler = compiler or by_inductor
        # by what is computed, and the shapes and types of what it is computed of
        self._made: dict[Any, Function] = {}
        self._pool: Any = None  # memory that all CUDA graphs use, one after another

    @torch.no_grad()
    def __call__(self, what: Any, function: Function, *given: Tensor) -> Any:
        """What a function gives, without a graph of autograd."""
        constants = [tensor.detach() for tensor in given]
        key = (what, *map(_layout, given))
        if key not in self._made:
            # derivatives and casts of autocast are written down as plain operations first: the
            # compiler's own way through second derivatives loses casts to bfloat16
            # as a function of exactly these: of arguments with defaults there may be more
            written = make_fx(lambda *tensors: function(*tensors))(*constants)
            compiled = self._compiler(written)
            on_gpu = any(tensor.is_cuda for tensor in constants)
            self._made[key] = self._launched(compiled, constants) if on_gpu else compiled
        return self._made[key](*constants)

    def _launched(self, compiled: Function, like: Sequence[Tensor]) -> "Launched":
        """By a CUDA graph."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        return Launched(compiled, like, partial(as_cuda_graph, pool=self._pool))

    def loss(self, what: Any, function: Function, *given: Tensor) -> Tensor:
        """A scalar function, and its gradients in those given that want one, in one graph."""
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
            value: Tensor = _WithSlopes.apply(  # type: ignore[no-untyped-call]
                self, what, function, *given
            )
            return value
        return self(what, function, *given)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """What a graph of a tensor depends on: views of another layout are written down otherwise."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def computation(compile: bool) -> Computation:
    """Functions compiled where that is asked for."""
    return Graphs() if compile else Eager()


class _WithSlopes(torch.autograd.Function):
    """A scalar function of tensors whose gradients are computed on the way forwards."""

    @staticmethod
    def forward(ctx: Any, graphs: Graphs, what: Any, function: Function, *given: Tensor) -> Tensor:
        wanted = tuple(k for k, needs in enumerate(ctx.needs_input_grad[3:]) if needs)
        with_slopes = torch.func.grad_and_value(function, argnums=wanted)
        slopes, value = graphs((what, wanted), with_slopes, *given)
        ctx.wanted, ctx.num = wanted, len(given)
        ctx.save_for_backward(*slopes)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (arriving,) = grads
        by_given: list[Tensor | None] = [None] * ctx.num
        for k, slope in zip(ctx.wanted, ctx.saved_tensors, strict=True):
            by_given[k] = slope * arriving
        return None, None, None, *by_given


def by_inductor(graph: Function) -> Function:
    """A graph of plain operations on tensors of given shapes, compiled.

    Compiled code that lies on the disk is taken, and compiled again where a kill has cut it.
    """
    function = torch.compile(graph, fullgraph=True, dynamic=False)

    def compiled(*tensors: Tensor) -> Any:
        try:
            return function(*tensors)
        except RuntimeError as error:
            if not _removed(error):
                raise
        torch._dynamo.reset()
        return function(*tensors)

    return compiled


def _removed(error: RuntimeError) -> bool:
    """Whether an error of the compiler is of its own code that cannot be loaded, which is removed.

    A library that lies elsewhere was not compiled here, and stays.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # slow

    cut = LIBRARY.search(str(error))
    if cut is None:
        return False
    library = Path(cut[1]).resolve()
    if not library.is_file() or not library.is_relative_to(Path(cache_dir()).resolve()):
        return False
    library.unlink()
    return True


class Recording(NamedTuple):
    """What a function did once, which can be done again on the same memory."""

    again: Callable[[], Any]
    outputs: Any  # tensors, in tuples, that `again` fills


class Recorder(Protocol):
    """Records a call of a function of tensors; what they hold then is no matter."""

    def __call__(self, function: Function, given: Sequence[Tensor]) -> Recording:
        """What the function did."""
        ...


class Launched:
    """A function of tensors of fixed shapes, whose kernels are recorded once, launched by one call.

    What it returns is copied out of the recording's memory, which the next call fills again, and
    other recordings may use in between.
    """

    def __init__(self, function: Function, like: Sequence[Tensor], recorder: Recorder):
        """Record it for tensors `like` these."""
        self._given = [tensor.detach().clone() for tensor in like]
        self._recorded = recorder(function, self._given)

    def __call__(self, *given: Tensor) -> Any:
        """What the function gives."""
        for place, tensor in zip(self._given, given, strict=True):
            place.copy_(tensor)
        self._recorded.again()
        return pytree.tree_map(torch.clone, self._recorded.outputs)


def as_cuda_graph(function: Function, given: Sequence[Tensor], pool: Any) -> Recording:
    """A CUDA graph of a function, which must not wait for the device, in the memory of a pool."""
    current = torch.cuda.current_stream()
    aside = torch.cuda.Stream()
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            function(*given)
    current.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # goes back to the current stream also where recording fails
    with torch.cuda.stream(current), torch.cuda.graph(graph, pool=pool):
        outputs = function(*given)
    return Recording(graph.replay, outputs)
