"""How fast is the engine beside the field's way, on one machine in one run?

    python benchmarks/field.py [--device cuda] [--cells mtt_ipc1_t10 dsa_ipc1] [--width 128]

Each cell is one piece of work on images of CIFAR-10's shape, of no meaning, in a ConvNet-D3: an
epoch of an expert on 1024 images; an outer step of MTT (1 and 10 images per class, T = 10, 30, 50),
of DSA (1) and of DM (10); 30 updates of 5 networks of an evaluation. On CUDA such an epoch of 8
experts, which the field trains one after another and we as one computation. On all cores of a CPU,
which a row says: such an epoch of two experts a core, and these networks of an evaluation; the
field trains one after another on as many threads as there are cores, we in processes of one thread,
which were started before, as for a whole store: as many, or a few more that take turns. The field's
way is plain_loops.py, which passes the golden vectors, with networks of torch's own layers, in a
process that is set up as published programs are: by PyTorch's defaults, on CUDA with cuDNN's search
for the fastest kernels. Ours keeps freed memory on a CPU and computes deterministically on CUDA
(runtime.setup); "field, set up as ours" is the field's loop with that. MTT's default (backprop
auto) keeps the graphs that fit into a share of the memory; "ours, replay" keeps one at a time.
"ours, all graphs, of torch's layers" is the engine at what that loop does, where memory holds it
twice (up to 50 images of a class in all steps), so that the two should take as long.
Each way has a process, and they take turns, on as many threads; a row has the median seconds of the
processor and of the clock, the mean ratio with its 95 % interval (Student's t on its logarithm),
and the peak memory of each way in one more process. A graph that does not fit into memory is not
tried, and the row says what it would take. The floor is what the operations of convolutions and
matrix products take at the fastest speed of these here, measured in the same run. Ratios are of the
clock on CUDA and on all cores, else of the processor. JSON and table are written after every cell,
and the same command goes on after the last that they hold.
"""

import atexit
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

# its worker pool does not start inside a process of a pool
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

import common
import plain_loops
import torch
import tyro
from torch import Tensor, nn

from buffers import beside as expert_processes
from buffers import store
from buffers.filling import Making
from buffers.train import train_expert, train_experts
from ddengine.data import Data, Preprocess, RealSet
from ddengine.evaluation import beside as evaluation_processes
from ddengine.evaluation import work as evaluation_work
from ddengine.evaluation.bench import Bench, Contender, Training
from ddengine.learning import augment, training
from ddengine.learning.flat import FlatModel, flatten
from ddengine.models import build_model
from ddengine.objective import Env
from ddengine.recipe import DataConfig, EvalConfig
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files, rng, runtime
from ddengine.system.memo import Memo
from ddengine.system.workers import Hands, Message, Worker, num_for, working
from synth.catalogue import find
from synth.trajectory import student_batches

SHAPE, CLASSES = (3, 32, 32), 10
EXPERT_IMAGES = 1024
NETWORKS, UPDATES = 5, 30  # of an evaluation
MTT = [f"mtt_ipc{ipc}_t{steps}" for ipc in (1, 10) for steps in (10, 30, 50)]
# on all cores: such a cell, and the one of a network, or networks, that it has several of
ALL_CORES = {"experts": "expert", "evaluations": "evaluation"}
CELLS = ("expert", *MTT, "dsa_ipc1", "dm_ipc10", "evaluation")
OF_DEVICE = {"cpu": tuple(ALL_CORES), "cuda": ("experts_together",)}  # cells of one alone
EACH = 2  # experts of each core
TOGETHER = 8  # experts as one computation
FIELD, LIKE_OURS = "field", "field, set up as ours"
OURS, REPLAY, COMPILED = "ours", "ours, replay", "ours compiled"
FULL = "ours, all graphs, of torch's layers"  # what the field's loop does, by the engine
MOST_FULL = 50  # images of a class, in all steps, that the engine keeps all graphs of
FITS = 0.7  # of the memory that is available, which a step may be expected to take

Once = Callable[[int], Any]  # does the work of a cell for the n-th time


@dataclass(frozen=True)
class Settings:
    """The question asked."""

    device: str = "auto"
    cells: tuple[str, ...] = ()  # none: all that the device has
    width: int = 128
    threads: int = 1  # of a CPU, of both ways
    repeats: int = 5  # turns, after one that is not counted
    compiled: bool = True  # also what is compiled, where there is anything
    name: str = "field"  # of the result's file
    out: Path = common.RESULTS  # the folder of that file


class Expert:
    """Snapshots between two networks, in place of a store of experts."""

    num_experts = 1
    epochs = tuple(range(51))

    def __init__(self, start: Tensor, end: Tensor):
        self.start, self.end, self.num_params = start, end, len(start)

    def snapshots(self, expert: int, epochs: list[int]) -> Tensor:
        """Parameters (len(epochs), P) on the way."""
        return torch.stack([self.start.lerp(self.end, epoch / 50) for epoch in epochs])


class World:
    """What both ways work with."""

    def __init__(self, settings: Settings, way: str):
        if way == FIELD:
            self.device = runtime.device_named(settings.device)
            torch.backends.cudnn.benchmark = True
        else:
            self.device = runtime.setup(settings.device)
        if self.device.type == "cpu":
            torch.set_num_threads(settings.threads)
        self.model = f"convnet-d3-w{settings.width}-in"
        self.preprocess = Preprocess(mean=torch.zeros(3), std=torch.ones(3)).to(self.device)

    def network(self, seed: int) -> nn.Module:
        """A new network."""
        return self.new_model(rng.generator(seed, "network")).to(self.device)

    def plain_network(self, seed: int) -> nn.Module:
        """The same of torch's own layers, which is the field's."""
        return plain_loops.of_torchs_layers(self.network(seed))

    def new_model(self, stream: torch.Generator) -> nn.Module:
        """A network by the engine."""
        return build_model(self.model, SHAPE, CLASSES, stream)

    def real(self, each: int) -> RealSet:
        """Pixels of no meaning, so many of every class."""
        stream = rng.generator(0, "pixels")
        size = (CLASSES * each, *SHAPE)
        pixels = torch.randint(0, 256, size, generator=stream, dtype=torch.uint8)
        labels = torch.arange(CLASSES).repeat_interleave(each)
        return RealSet(pixels.to(self.device), labels.to(self.device), CLASSES, self.preprocess)

    def syn(self, ipc: int, **scalars: float) -> SyntheticSet:
        """A set whose images gradients flow into."""
        stream = rng.generator(0, "syn")
        tensors = {"images": torch.randn(CLASSES * ipc, *SHAPE, generator=stream)}
        tensors |= {name: torch.tensor(value) for name, value in scalars.items()}
        leaves = {name: t.to(self.device).requires_grad_() for name, t in tensors.items()}
        labels = torch.arange(CLASSES, device=self.device).repeat_interleave(ipc)
        codec = find("mtt/cifar10_ipc1").codec
        names = tuple(map(str, range(CLASSES)))
        return SyntheticSet(leaves, labels, names, codec, self.preprocess, space=codec.space)

    def env(self, real: RealSet, experts: Any = None, way: str = "") -> Env:
        """What an objective may touch."""
        network = self.plain_network(0) if way == FULL else self.network(0)
        model = FlatModel(network).to(self.device)
        return Env(real, self.new_model, model, experts, self.device, way == COMPILED)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def augmented(config: Any, stream: torch.Generator, images: Tensor) -> Tensor:
    """Images under a new draw."""
    draw = augment.sample(config, len(images), stream).to(images.device)
    return augment.apply(config, images, draw)


def outer_step(objective: Any, syn: SyntheticSet, world: World, number: int) -> None:
    """Losses of the engine and their gradients."""
    state = objective.init(rng.generator(0, "state"))
    for tensor in syn.tensors.values():
        tensor.grad = None
    for loss in objective.losses(syn, state, number, rng.generator(0, "losses", number)):
        loss.backward()
    world.wait()


# Cells: (world, settings) -> the ways of doing it, by name.


def expert(world: World, settings: Settings) -> dict[str, Once]:
    """An epoch of an expert, at MTT's settings."""
    config = find("mtt/cifar10_ipc1").buffer
    config = replace(config, epochs=1, num_experts=1, keep="last")
    real = world.real(EXPERT_IMAGES // CLASSES)
    names = tuple(map(str, range(CLASSES)))
    data = Data(real, None, None, names, bytes=0, dataset_bytes=0)
    images, labels = real.batch(torch.arange(len(real), device=world.device))
    step = config.step

    def field(number: int) -> None:
        network, stream = world.plain_network(number).train(), rng.generator(number, "order")
        optimiser = torch.optim.SGD(network.parameters(), step.lr, step.momentum)
        plain_loops.train_epochs(
            network, images, labels, 1, optimiser,
            batch=config.batch, augment=partial(augmented, config.augment, stream), stream=stream,
        )  # fmt: skip
        world.wait()

    def ours(number: int) -> None:
        train_expert(world.network(number), data, config, number)
        world.wait()

    return {FIELD: field, OURS: ours}


class Processes:
    """Processes of one thread each, which are started and told what all requests share."""

    def __init__(self, module: str, num: int, beginning: Message):
        self._beginning = beginning
        self._stack = ExitStack()
        atexit.register(self._stack.close)
        self._workers = self._stack.enter_context(working(num, module, 1))
        self._idle: list[Worker] = []

    def do(self, requests: Sequence[Message]) -> None:
        """Do requests, each in a process that has time."""
        waiting, left = list(requests), len(requests)
        while left:
            while self._idle and waiting:
                self._idle.pop().send(waiting.pop(0))
            worker, message = self._workers.wait()
            assert message is not None and "failed" not in message.facts
            if not message.facts:  # it has started
                worker.send(self._beginning)
            if not message.facts or "result" in message.facts:
                self._idle.append(worker)
            left -= "result" in message.facts


def experts(world: World, settings: Settings) -> dict[str, Once]:
    """An epoch of two experts a core, at MTT's settings, on all cores."""
    one_after_another = expert(world, settings)[FIELD]
    num, making = EACH * settings.threads, _making(world)
    started: list[Processes] = []

    def field(number: int) -> None:
        for each in range(num):
            one_after_another(num * number + each)

    def ours(number: int) -> None:
        if not started:
            making.open(1)
            beginning = expert_processes.beginning([making])
            started.append(Processes(expert_processes.MODULE, settings.threads, beginning))
        numbers = range(num * number, num * number + num)
        started[0].do([Message({"task": [0, each]}) for each in numbers])
        assert set(numbers) <= set(store.finished(making.folder))

    return {FIELD: field, OURS: ours}


def experts_together(world: World, settings: Settings) -> dict[str, Once]:
    """An epoch of several experts at MTT's settings, as one computation."""
    one_after_another = expert(world, settings)[FIELD]
    making = _making(world)

    def field(number: int) -> None:
        for each in range(TOGETHER):
            one_after_another(TOGETHER * number + each)

    def ours(number: int) -> None:
        numbers = range(TOGETHER * number, TOGETHER * number + TOGETHER)
        networks = {each: world.network(each) for each in numbers}
        train_experts(networks, numbers, making.data, making.config)
        world.wait()

    return {FIELD: field, OURS: ours}


def _making(world: World) -> Making:
    """A store of experts, in a folder that goes with this process."""
    config = replace(find("mtt/cifar10_ipc1").buffer, epochs=1, keep="last")
    names = tuple(map(str, range(CLASSES)))
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return Making(
        data=Data(world.real(EXPERT_IMAGES // CLASSES), None, None, names, 0, 0),
        data_config=DataConfig(name="cifar10"),
        config=config,
        model=world.model,
        new_model=world.new_model,
        folder=Path(folder, "store"),
        is_named=True,
    )


def evaluations(world: World, settings: Settings) -> dict[str, Once]:
    """Updates of the networks of an evaluation, on all cores."""
    field = evaluation(world, settings)[FIELD]
    real, names = world.real(1), tuple(map(str, range(CLASSES)))
    bench = Bench(
        data=Data(real, None, real, names, 0, 0),
        config=EvalConfig(protocol="benchmark"),
        seed=0,
        device=world.device,
        precision="fp32",
        memo=Memo(None, ""),
        means=training.usual_means(),
    )
    who = Contender("full", lambda draw: real)
    started: list[Processes] = []

    def ours(number: int) -> None:
        if not started:
            num = num_for(NETWORKS, settings.threads, NETWORKS)
            hands = Hands(num, settings.threads)
            beginning = evaluation_processes.beginning(bench, take_turns=hands.take_turns)
            started.append(Processes(evaluation_work.MODULE, hands.num, beginning))
        requests = []
        for seed in range(NETWORKS):
            asked = Training(who, world.model, 0.01, (seed,), (0,), "test", UPDATES)
            requests.append(evaluation_processes.request(bench, asked))
        started[0].do(requests)

    return {FIELD: field, OURS: ours}


def mtt(world: World, settings: Settings, ipc: int, steps: int) -> dict[str, Once]:
    """An outer step of MTT on all images at once."""
    config = replace(find(f"mtt/cifar10_ipc{ipc}").objective, inner_steps=steps, batch=None)
    start, end = flatten(world.network(0)), flatten(world.network(1))
    experts = Expert(start, end)
    syn = world.syn(ipc, lr=config.lr)
    network = world.plain_network(0).requires_grad_(False)

    def field(number: int) -> None:
        stream = rng.generator(0, "losses", number)
        for tensor in syn.tensors.values():
            tensor.grad = None
        batches = student_batches(len(syn), len(syn), steps, stream)
        loss, _ = plain_loops.mtt_loss(
            network, start, end, syn.tensors["images"], syn.classes, syn.tensors["lr"],
            [index.to(world.device) for index in batches],
            partial(augmented, config.augment, stream),
        )  # fmt: skip
        loss.backward()
        world.wait()

    ways: dict[str, Once] = {FIELD: field}
    graphs = {OURS: "auto", FULL: "full", REPLAY: "replay", COMPILED: "auto"}
    for name, backprop in graphs.items():
        if name == COMPILED and not settings.compiled:
            continue
        if name == FULL and ipc * steps > MOST_FULL:  # as much memory again
            continue
        of_way = replace(config, backprop=backprop)
        objective = of_way.build(world.env(world.real(1), experts, name))
        memory = runtime.available_memory(world.device)
        of_way.choose(objective, of_way.choices(objective, syn, memory))
        ways[name] = partial(outer_step, objective, syn, world)
    return ways


def dsa(world: World, settings: Settings) -> dict[str, Once]:
    """An outer step of DSA with one image per class, in a new network."""
    config = find("dsa/cifar10_ipc1").objective
    real, syn = world.real(config.real_batch + 44), world.syn(1)

    def field(number: int) -> None:
        syn.tensors["images"].grad = None
        network = world.plain_network(number).train()
        plain_loops.dsa_loss(network, *_by_class(world, real, syn, config, number)).backward()
        world.wait()

    return {FIELD: field} | _eager_and_compiled(config, real, syn, world, settings)


def dm(world: World, settings: Settings) -> dict[str, Once]:
    """An outer step of DM with ten images per class, in a new network."""
    config = find("dm/cifar10_ipc10").objective
    real, syn = world.real(config.real_batch + 44), world.syn(10)

    def field(number: int) -> None:
        syn.tensors["images"].grad = None
        network = world.plain_network(number).train().requires_grad_(False)
        plain_loops.dm_loss(network.embed, *_by_class(world, real, syn, config, number)).backward()
        world.wait()

    return {FIELD: field} | _eager_and_compiled(config, real, syn, world, settings)


def _eager_and_compiled(
    config: Any, real: RealSet, syn: SyntheticSet, world: World, settings: Settings
) -> dict[str, Once]:
    """An outer step of the engine both ways; objectives that are built, and compile, when asked."""
    made: dict[str, Any] = {}

    def ours(way: str, number: int) -> None:
        if way not in made:
            made[way] = config.build(world.env(real, way=way))
        outer_step(made[way], syn, world, number)

    ways = (OURS, COMPILED) if settings.compiled else (OURS,)
    return {way: partial(ours, way) for way in ways}


def _by_class(
    world: World, real: RealSet, syn: SyntheticSet, config: Any, number: int
) -> tuple[list[Tensor], list[Tensor], Callable[[Tensor, int], Tensor]]:
    """Real and synthetic images of each class, and one augmentation for both."""
    stream = rng.generator(0, "losses", number)
    chosen = [index.to(world.device) for index in real.draw_each(config.real_batch, stream)]
    draws = [augment.sample(config.augment, 1, stream, groups=1, shared=True) for _ in chosen]

    def shared(images: Tensor, c: int) -> Tensor:
        return augment.apply(config.augment, images, draws[c].to(world.device))

    of_classes = list(syn.tensors["images"].unflatten(0, (CLASSES, -1)))
    return [real.images(index) for index in chosen], of_classes, shared


def evaluation(world: World, settings: Settings) -> dict[str, Once]:
    """Updates of the networks of an evaluation on one image per class, which are one batch."""
    config = EvalConfig(protocol="benchmark")
    real = world.real(1)
    images, labels = real.batch(torch.arange(len(real), device=world.device))
    seeds = list(range(NETWORKS))

    def field(number: int) -> None:
        for seed in seeds:
            network, stream = world.plain_network(seed).train(), rng.generator(seed, "order")
            optimiser = torch.optim.SGD(
                network.parameters(), 0.01, config.momentum, weight_decay=config.weight_decay
            )
            plain_loops.train_epochs(
                network, images, labels, UPDATES, optimiser, batch=config.batch,
                augment=partial(augmented, config.augment, stream), stream=stream,
            )  # fmt: skip
        world.wait()

    def ours(number: int) -> None:
        training.train_networks(
            world.new_model, [real] * NETWORKS, seeds, config, 0.01, world.device, steps=UPDATES
        )
        world.wait()

    return {FIELD: field, OURS: ours}


def ways_of(cell: str, settings: Settings, way: str) -> dict[str, Once]:
    """The ways of doing the work of a cell, by name, in a process set up for one of them."""
    if cell in ALL_CORES:
        settings = replace(settings, threads=cores(settings))
    world = World(settings, way)
    if cell.startswith("mtt_"):
        ipc, steps = cell.removeprefix("mtt_ipc").split("_t")
        return _with_like_ours(mtt(world, settings, int(ipc), int(steps)))
    makers = {
        "expert": expert,
        "experts": experts,
        "experts_together": experts_together,
        "dsa_ipc1": dsa,
        "dm_ipc10": dm,
        "evaluation": evaluation,
        "evaluations": evaluations,
    }
    return _with_like_ours(makers[cell](world, settings))


def _with_like_ours(ways: dict[str, Once]) -> dict[str, Once]:
    """The same with the field's loop once more, for a process that is set up as ours."""
    return {FIELD: ways[FIELD], LIKE_OURS: ways[FIELD], **ways}


# Measuring.


def cores(settings: Settings) -> int:
    """Threads of a cell on all cores: as many as were asked for, or as there are."""
    if settings.threads > 1:
        return settings.threads
    return int(runtime.machine(torch.device("cpu"))["cores"])


def processor_seconds() -> float:
    """Of this process, and of those that it has started and that run (Linux)."""
    ticks = 0
    for of_thread in Path("/proc/self/task").glob("*/children"):
        for child in of_thread.read_text().split():
            behind_name = Path("/proc", child, "stat").read_text().rpartition(")")[2].split()
            ticks += int(behind_name[11]) + int(behind_name[12])  # as a user, and in the kernel
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def work(pipe: Any, cell: str, settings: Settings) -> None:
    """Send the names of the ways of a cell, and its floor in seconds of the processor.

    Under the floor no way can come that makes as many floating-point operations (of convolutions
    and matrix products) as ours does, at the speed of the fastest of these here.
    """
    # operations are counted where they are made, and those of a cell on all cores in processes
    counted = ways_of(ALL_CORES.get(cell, cell), settings, OURS)
    with common.Operations() as counter:
        counted[OURS](0)
    times = EACH * cores(settings) if cell == "experts" else 1
    floor = times * counter.number / fastest(World(settings, OURS))
    pipe.send((list(ways_of(cell, settings, OURS)), floor))


def fastest(world: World) -> float:
    """Operations a second: those of a matrix product, or of a convolution, whichever has more."""
    size, images, channels, pixels = 2048, 64, 128, 16
    matrix = torch.randn(size, size, device=world.device)
    seen = torch.randn(images, channels, pixels, pixels, device=world.device)
    weights = torch.randn(channels, channels, 3, 3, device=world.device)
    of_product = 2 * size**3
    of_convolution = 2 * images * pixels**2 * weights.numel()
    return max(
        of_product / _least_seconds(world, lambda: matrix @ matrix),
        of_convolution / _least_seconds(world, lambda: torch.conv2d(seen, weights, padding=1)),
    )


def _least_seconds(world: World, once: Callable[[], Any]) -> float:
    """The least that something takes of the processor, of the clock where that is a GPU's."""
    clock = time.perf_counter if world.device.type == "cuda" else time.process_time
    seconds = []
    for _ in range(10):
        start = clock()
        once()
        world.wait()
        seconds.append(clock() - start)
    return min(seconds)


def turns(pipe: Any, cell: str, settings: Settings, way: str) -> None:
    """Do the work of a cell each time that the pipe gives its number.

    Sends the seconds of the processor and of the clock that it took. None ends it.
    """
    once = ways_of(cell, settings, way)[way]
    while (turn := pipe.recv()) is not None:
        cpu, wall = processor_seconds(), time.perf_counter()
        once(turn)
        pipe.send((processor_seconds() - cpu, time.perf_counter() - wall))


def times(
    cell: str, settings: Settings, ways: Sequence[str]
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of the processor and of the clock of all turns but the first, by way."""
    with ExitStack() as stack:
        pipes = {}
        for way in ways:
            pipes[way] = stack.enter_context(common.beside(turns, cell, settings, way))
        measured: dict[str, list[tuple[float, float]]] = {way: [] for way in pipes}
        for turn in range(settings.repeats + 1):
            for way, pipe in pipes.items():
                pipe.send(turn)
                measured[way].append(pipe.recv())
        for pipe in pipes.values():
            pipe.send(None)
    return {way: of_way[1:] for way, of_way in measured.items()}


def memory(pipe: Any, cell: str, settings: Settings, way: str) -> None:
    """Send the added peak memory of one way."""
    pipe.send(common.added_memory(ways_of(cell, settings, way)[way]))


def graph_bytes(cell: str, settings: Settings) -> int:
    """What the graphs of all steps of MTT take, by those of a few; 0 of other cells."""
    if not cell.startswith("mtt_"):
        return 0
    name, steps = cell.split("_t")
    of_two, of_four = (
        common.apart(memory, f"{name}_t{few}", settings, FIELD) for few in (2, 4)
    )  # also what does not grow with the steps
    return of_two + (of_four - of_two) * (int(steps) - 2) // 2


def measured(cell: str, settings: Settings) -> list[dict[str, Any]]:
    """A row for each way of a cell."""
    ways, floor = common.apart(work, cell, settings)
    needed = graph_bytes(cell, settings)
    # the field's loop that is set up as ours keeps them while the others have their turns
    fits = 2 * needed < FITS * runtime.available_memory(runtime.setup(settings.device))
    if not fits:
        ways = [way for way in ways if way not in (FIELD, LIKE_OURS)]
    seconds = times(cell, settings, ways)
    by_clock = cell in ALL_CORES or runtime.setup(settings.device).type == "cuda"
    which = int(by_clock)
    rows = []
    for way, of_way in seconds.items():
        row: dict[str, Any] = {"cell": cell, "way": way, "floor_s": floor}
        for name, place in (("processor_s", 0), ("clock_s", 1)):
            row[name] = statistics.median(turn[place] for turn in of_way)
        row["turns"] = of_way
        if cell in ALL_CORES:
            row |= {"cores": cores(settings), "peak_bytes": None}  # of several processes
        else:
            row["peak_bytes"] = common.apart(memory, cell, settings, way)
        if FIELD in seconds:
            theirs, own = ([turn[which] for turn in turns] for turns in (seconds[FIELD], of_way))
            row["faster"], row["faster_interval"] = common.ratio(theirs, own)
        rows.append(row)
    if not fits:
        rows.insert(0, {"cell": cell, "way": FIELD, "not_tried": True, "needs_bytes": needed})
    return rows


def said(row: dict[str, Any]) -> str:
    """A row in a line."""
    start = f"{row['cell']:14} {row['way']:36}"
    if "not_tried" in row:
        return f"{start} not tried: its graphs would take {row['needs_bytes'] / 1e9:.1f} GB"
    line = f"{start} {row['processor_s']:8.3f} s of the processor, {row['clock_s']:8.3f} s, "
    if row["peak_bytes"] is None:
        line += f"{row['cores']} cores"
    else:
        line += f"{row['peak_bytes'] / 1e9:6.2f} GB"
    if row["way"] == FIELD:
        return f"{line}, floor {row['floor_s']:.3f} s"
    if "faster" not in row:
        return line
    line += f", {row['faster']:.2f} x"
    if row["faster_interval"] is not None:
        low, high = row["faster_interval"]
        line += f" ({low:.2f} to {high:.2f})"
    return line


COLUMNS = ("cell", "way", "processor s", "clock s", "peak GB", "times as fast (95 % interval)",
           "floor s")  # fmt: skip


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *map(_cells_of, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells_of(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    if "not_tried" in row:
        needed = f"{row['needs_bytes'] / 1e9:.1f} by those of few steps"
        return (row["cell"], row["way"], "not tried", "", needed, "", "")
    cell, memory, faster, floor = row["cell"], "", "", ""
    if row["peak_bytes"] is None:
        cell += f", {row['cores']} cores"
    else:
        memory = f"{row['peak_bytes'] / 1e9:.2f}"
    if row["way"] == FIELD:
        floor = f"{row['floor_s']:.2f}"
    elif "faster" in row:
        low, high = row["faster_interval"] or (math.nan, math.nan)
        faster = f"{row['faster']:.2f} ({low:.2f} to {high:.2f})"
    seconds = (f"{row['processor_s']:.2f}", f"{row['clock_s']:.2f}")
    return (cell, row["way"], *seconds, memory, faster, floor)


def asked_of(settings: Settings) -> dict[str, Any]:
    """The settings that decide a row, and the cells."""
    return {name: value for name, value in asdict(settings).items() if name != "out"}


def known(settings: Settings, device: torch.device) -> list[dict[str, Any]]:
    """The rows that the file holds of these settings and this commit."""
    path = settings.out / f"{settings.name}-{device.type}.json"
    if not path.is_file():
        return []
    before = files.read_json(path, "settings", "rows", "commit")
    same = before["commit"] == runtime.commit()
    asked, of_before = asked_of(settings), before["settings"] | {"cells": None}
    if not same or files.to_json(of_before) != files.to_json(asked | {"cells": None}):
        return []
    return before["rows"]


def main(settings: Settings) -> None:
    """Measure, print, write the JSON."""
    device = runtime.setup(settings.device)
    rows = known(settings, device)
    for row in rows:
        print(said(row))
    done = {row["cell"] for row in rows}
    for cell in settings.cells or (*CELLS, *OF_DEVICE[device.type]):
        if cell in done:
            continue
        of_cell = measured(cell, settings)
        rows += of_cell
        common.write(settings.name, device, asked_of(settings), rows, settings.out)
        files.write_text(settings.out / f"{settings.name}-{device.type}.md", markdown(rows))
        for row in of_cell:
            print(said(row), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
