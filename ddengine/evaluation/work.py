"""Everything that the rows of an evaluation need is trained, here, in processes, on ranks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from ddengine.evaluation import beside
from ddengine.evaluation.bench import Bench, Training
from ddengine.evaluation.pace import (
    Pace,
    Paces,
    images_of,
    measured,
    processes_for,
    seconds_of,
    updates_in_time,
)
from ddengine.evaluation.plan import Choice, Measure, Plan, Row, Step
from ddengine.evaluation.trainings import Piece, cut_key, decide
from ddengine.evaluation.watch import Watch
from ddengine.system import crew, runtime
from ddengine.system.crew import Crew, Seat
from ddengine.system.workers import Hands, Message, Worker, Workers, working
from ddengine.types import Facts

Hand = Worker | Seat  # what does one job at a time, beside this process
MODULE = "ddengine.evaluation.beside"  # whose `main` a worker runs
LOOK_AFTER = 5.0  # seconds of the first network from which on there is a first look
TELLING = 1.0  # seconds of a training from which on it tells how long others take


def train_all(plan: Plan, rows: Sequence[Row], watch: Watch) -> None:
    """Train what the rows need, in their order as far as all processes stay at work."""
    left = []
    for row in rows:
        if plan.next(row):
            left.append(row)
        else:
            watch.finished(row)
    if left:
        cores = torch.get_num_threads() // plan.bench.threads
        with _sharing(plan, left, watch) as (workers, paces):
            _Work(plan, left, watch, paces, workers, max(1, cores)).all()


@contextmanager
def _sharing(
    plan: Plan, rows: Sequence[Row], watch: Watch
) -> Iterator[tuple[Workers | Crew | None, Paces]]:
    """The processes or ranks that share the work, if any, and what is known of the pace.

    What was chosen once holds wherever the evaluation is resumed.
    """
    bench, paces = plan.bench, Paces()
    asked = [(row.who, row.model) for row in rows]
    allowed = torch.get_num_threads()
    with ExitStack() as stack:
        stack.enter_context(runtime.on_threads(bench.threads))
        first = _first_training(plan, rows[0])
        if first is not None and bench.timed and (bench.economy.looks or allowed > bench.threads):
            pace = measured(bench, first)
            paces.learn(first.model, images_of(bench, first.who), pace.update)
        choose = partial(processes_for, bench, asked, paces, allowed)
        workers = stack.enter_context(_hands(bench, choose))
        if first is not None:
            # other processes take seconds to start, in which this one looks anyway
            watch.look(first, paces, 0.0 if isinstance(workers, Workers) else LOOK_AFTER)
        yield workers, paces


@contextmanager
def _hands(bench: Bench, choose: Callable[[], int]) -> Iterator[Workers | Crew | None]:
    """The other ranks, where there are any, else as many processes as pay; None: this one alone."""
    ranks = crew.current()
    if ranks is not None:
        bench.memo("processes", lambda: ranks.num)
        ranks.begin(beside.beginning_of_rank(bench))
        yield ranks
        return
    processes = bench.memo("processes", choose)
    if processes == 1:
        yield None
        return
    with working(processes, MODULE, bench.threads) as workers:
        yield workers


def _first_training(plan: Plan, row: Row) -> Training | None:
    """One network of the first training of a row; None where something else comes first."""
    for step in plan.next(row):
        if isinstance(step, Piece):
            asked = step.training
            return replace(asked, seeds=asked.seeds[:1], draws=asked.draws[:1])
    return None


@dataclass
class _Work:
    """What is left to do, and who does what."""

    plan: Plan
    rows: list[Row]  # unfinished ones
    watch: Watch
    paces: Paces
    workers: Workers | Crew | None
    cores: int = 1  # of the processes
    idle: list[Hand] = field(default_factory=list)
    running: dict[Hand, tuple[Row, Piece | Measure]] = field(default_factory=dict)
    begun: set[Row] = field(default_factory=set)  # rows of which something was trained

    def __post_init__(self) -> None:
        if isinstance(self.workers, Crew):  # processes say themselves when they have started
            self.idle += self.workers.all

    def all(self) -> None:
        """Do everything."""
        while True:
            while self.workers is not None and (answered := self.workers.ready()):
                self._take(*answered)
            steps = self._steps()
            if not steps and not self.running:
                return
            waiting = self._send(steps)
            if waiting and self._is_for_here(waiting[0][1]):
                self._do(*waiting[0])
            else:
                self._receive()

    @property
    def hands(self) -> Hands:
        """What trains networks."""
        if self.workers is None:
            return Hands()
        num = self.workers.num
        if self._on_ranks or self.plan.bench.threads > 1:  # turns of threads are not counted
            return Hands(num, num)
        return Hands(num, self.cores)

    # What comes next.

    def _steps(self) -> list[tuple[Row, Step]]:
        """What can be done now and nobody does, as far as there are hands for it, in order."""
        taken = {_key(step) for _, step in self.running.values()}
        steps: list[tuple[Row, Step]] = []
        for row in list(self.rows):
            following = self.plan.next(row)
            if not following:
                self.rows.remove(row)
                self.watch.finished(row)
            for step in following:
                if _key(step) not in taken:
                    taken.add(_key(step))
                    steps.append((row, step))
            if len(steps) > len(self.idle):
                break
        return steps

    def _is_for_here(self, step: Step) -> bool:
        """Whether this process must do something itself."""
        if self.workers is None or self.workers.also_here:
            return True
        return not self.workers.all or not self._can_go(step)

    def _can_go(self, step: Step) -> bool:
        """Whether another process can do it."""
        if isinstance(step, Choice):
            return False
        return self._on_ranks or beside.can_go(step.bench, self._training(step))

    @property
    def _on_ranks(self) -> bool:
        """Whether the others are ranks, which have all that this process has."""
        return isinstance(self.workers, Crew)

    def _training(self, step: Piece | Measure) -> Training:
        """What is trained; in a measurement a network of the row."""
        if isinstance(step, Piece):
            return step.training
        bench, row = step.bench, step.row
        seeds, draws = (bench.seed,), (0,)
        return Training(row.who, row.model, bench.config.lr, seeds, draws, "test", row.who.steps)

    def _begin(self, row: Row) -> None:
        """Say once what a row will take."""
        if row in self.begun:
            return
        self.begun.add(row)
        asked = (row.who, row.model)
        self.watch.begins(row, seconds_of(self.plan.bench, asked, self.paces, self.hands))

    # This process.

    def _do(self, row: Row, step: Step) -> None:
        self._begin(row)
        if isinstance(step, Choice):
            self.watch.says(step.label)
            step.choose()
            return
        asked = self._training(step)
        if isinstance(step, Measure):
            self._decide(step, measured(step.bench, asked))
        else:
            self._keep(step, step.bench.result(asked))

    # Other processes and ranks.

    def _send(self, steps: list[tuple[Row, Step]]) -> list[tuple[Row, Step]]:
        """Give idle processes what they can do; what is left."""
        left = []
        for row, step in steps:
            if not self.idle or isinstance(step, Choice) or not self._can_go(step):
                left.append((row, step))
                continue
            self._begin(row)
            asked = self._training(step)
            told = beside.request_of_rank if self._on_ranks else beside.request
            message = told(step.bench, asked)
            if isinstance(step, Measure):
                message = beside.measuring(message)
            worker = self.idle.pop(0)
            self.running[worker] = (row, step)
            worker.send(message)
        return left

    def _receive(self) -> None:
        """Wait for a process or rank, and keep what comes of it."""
        assert self.workers is not None
        self._take(*self.workers.wait())

    def _take(self, worker: Hand, message: Message | None) -> None:
        """Keep what comes of what a process or rank has done; None where it has ended."""
        task = self.running.pop(worker, None)
        if message is None:
            self._lost(task, "it ended")
            return
        if task is None:  # it has started
            worker.send(beside.beginning(self.plan.bench, take_turns=self.hands.take_turns))
            self.idle.append(worker)
            return
        self.idle.append(worker)
        if "failed" in message.facts:
            self._lost(task, message.facts["failed"])
            return
        _, step = task
        if isinstance(step, Measure):
            self._decide(step, beside.pace_of(message.facts["result"]))
        else:
            self._keep(step, message.facts["result"])

    def _lost(self, task: tuple[Row, Piece | Measure] | None, why: str) -> None:
        """What a process failed to do is done here, where errors are told as they are."""
        self.plan.bench.warn(f"a process could not do its part, which is done in this one: {why}")
        if task is not None:
            self._do(*task)

    # What came of it.

    def _keep(self, step: Piece, result: Facts) -> None:
        """Remember what came of networks, and what they took."""
        bench, asked = step.bench, step.training
        bench.memo.put(step.key, result, keep=step.keep)
        if result["seconds"] > TELLING:
            steps = asked.steps or bench.updates(asked.who)
            each = result["seconds"] / (steps * len(asked.seeds))
            self.paces.learn(asked.model, images_of(bench, asked.who), each)
        self.watch.trained(step, result)

    def _decide(self, step: Measure, pace: Pace) -> None:
        """How many updates there are time for."""
        bench, row = step.bench, step.row
        self.paces.learn(row.model, images_of(bench, row.who), pace.update)
        num = updates_in_time(bench, (row.who, row.model), pace, self.hands, beside=step.beside)
        decide(bench, row.who, row.model, num)


def _key(step: Step) -> str:
    """Equal for steps that are the same."""
    if isinstance(step, Piece):
        return step.key
    if isinstance(step, Measure):
        return cut_key(step.row.who, step.row.model)
    return step.label
