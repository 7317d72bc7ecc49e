"""Rounds of choosing points, asking for their classes, and training, for every rule."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ddengine.evaluation.intervals import NAME
from ddengine.evaluation.rates import adapted, best_rate, candidates
from ddengine.learning import training
from ddengine.recipe import EvalConfig
from ddengine.system import files, log, runtime
from ddengine.system.configs import digest, to_dict
from ddengine.system.errors import UserError
from ddengine.system.memo import Memo
from ddengine.system.rng import generator
from ddengine.types import Json
from ddengine.uses.labels.answers import Answers, OfFile, OfNetwork, Simulated
from ddengine.uses.labels.choosing import BY_NAME, judged
from ddengine.uses.labels.config import cites
from ddengine.uses.labels.context import Answered, Context
from ddengine.uses.labels.summary import differences, row_of
from ddengine.uses.pieces import Pieces

# form of what is remembered of an interrupted command; what an older program left is made again
MEMO = 1


def check(context: Context) -> None:
    """Raise UserError for more points than the pool has, before any network is trained."""
    config, pool = context.config, context.pool
    counts = torch.bincount(pool.classes, minlength=context.num_classes)
    fewest = int(counts.argmin())
    if counts[fewest] < config.first_per_class:
        raise UserError(
            f"first_per_class {config.first_per_class} is more than the {int(counts[fewest])} "
            f"points of class {context.class_names[fewest]!r}; lower it."
        )
    first = config.first_per_class * context.num_classes
    asked = first + config.rounds * config.points
    if asked > len(pool):
        raise UserError(
            f"{first} first points and {config.rounds} rounds of {config.points} are {asked}, and "
            f"the pool has {len(pool)}; lower points, rounds or first_per_class."
        )
    if config.teacher is not None and config.teacher_images > len(pool):
        raise UserError(
            f"teacher_images {config.teacher_images} are more than the {len(pool)} points of the "
            "pool; lower it."
        )


def identity(context: Context, file: Path | None) -> str:
    """Identifies everything that decides the numbers; not what a file answers, which may grow."""
    facts: Json = {
        "form": MEMO,
        "pool": context.pool.digest,
        "names": list(context.class_names),
        "test": context.test.digest,
        "preprocess": files.tensor_digest(context.test.preprocess.tensors()),
        "model": context.model,
        "protocol": to_dict(context.protocol),
        "config": to_dict(context.config),
        "answers": None if file is None else file.name,
        "seed": context.seed,
        "precision": context.precision,
    }
    return digest(facts)


@dataclass(frozen=True)
class Course:
    """One rule that asks one answerer, in all repeats."""

    rule: str
    answers: Callable[[int], Answers]  # of a repeat
    name: str  # what answers

    @property
    def key(self) -> str:
        """Names what is remembered."""
        return f"{self.rule}/{self.name}"


class Unanswered(Exception):
    """A file does not say all classes that are asked for."""

    def __init__(self, index: Tensor):
        """Index (B,) of the points that are to be answered."""
        super().__init__()
        self.index = index


def run(context: Context, file: OfFile | None, memo_path: Path) -> tuple[Json, Tensor | None]:
    """(the content of labels.json, the points that a file has yet to answer; None: all is done).

    Finished rounds are remembered in the file `memo_path`, which the caller removes once the
    content is written.
    """
    begin = time.perf_counter()
    context = replace(
        context,
        identity=identity(context, None if file is None else file.path),
        rates=_rates(context),
    )
    memo = Memo(memo_path, context.identity)
    # wherever it is resumed, computations are on as many threads as where it began
    threads = memo("threads", torch.get_num_threads)
    waiting = None
    rows: list[Json] = []
    num = _num_pieces(context, file)
    with log.progress("labels", num) as bar, runtime.on_threads(threads):
        context = replace(context, pieces=Pieces(memo, bar.advance))
        for course in _courses(context, file):
            try:
                repeats = [_repeat(context, course, r) for r in range(context.config.repeats)]
            except Unanswered as stop:
                waiting = stop.index
                break
            rows.append(row_of(context, course.rule, course.answers(0), repeats))
    seconds = round(memo.seconds_before + time.perf_counter() - begin, 2)
    return _content(context, rows) | {"seconds": seconds, "threads": threads}, waiting


def _num_pieces(context: Context, file: OfFile | None) -> int:
    """How many networks are trained, but for those that answer."""
    config = context.config
    tried = len(context.rates) if len(context.rates) > 1 else 0
    answerers = len(config.wrong) if _simulates(context, file) else 1
    rounds = len(config.rules) * answerers * config.rounds
    return config.repeats * (tried + 1 + rounds)


def _simulates(context: Context, file: OfFile | None) -> bool:
    return file is None and context.config.teacher is None


def _courses(context: Context, file: OfFile | None) -> list[Course]:
    """All rules with all that answer."""
    config = context.config
    if file is not None:
        by_file: Answers = file
        return [Course(rule, lambda repeat: by_file, file.name) for rule in config.rules]
    if config.teacher is not None:
        teachers: dict[int, Answers] = {}

        def teacher(repeat: int) -> Answers:
            if repeat not in teachers:
                teachers[repeat] = _teacher(context, repeat)
            return teachers[repeat]

        return [Course(rule, teacher, config.teacher) for rule in config.rules]
    made = []
    for share in config.wrong:

        def simulated(repeat: int, share: float = share) -> Answers:
            seed = context.seed_of("wrong", repeat)
            return Simulated(context.pool.classes, context.num_classes, share, seed)

        for rule in config.rules:
            made.append(Course(rule, simulated, f"{share!r}"))
    return made


# One repeat.


def _repeat(context: Context, course: Course, repeat: int) -> Json:
    """{"accuracies", "right", "index", "answers", "lr", "seconds"} of all rounds of a repeat.

    The first accuracy is that with the first points alone.
    """
    first = _first(context, repeat)
    index, classes = first, context.pool.classes[first]
    lr = _rate(context, repeat)
    start, network = _taught(context, f"start/{repeat}", repeat, 0, index, classes, lr)
    if network is not None:
        context.starts[repeat] = network
    network = context.starts.get(repeat)
    accuracies: list[float | None] = [start["accuracy"]]
    seconds = start["seconds"]
    answers = course.answers(repeat)
    for number in range(1, context.config.rounds + 1):
        # what is remembered belongs to these answers: people mend their files
        key = f"{course.key}/{repeat}/{number}/{digest(classes.tolist())}"
        chosen = _chosen(context, course, key, repeat, number, index, classes, network, lr)
        said, answered = answers.ask(chosen)
        if not bool(answered.all()):
            raise Unanswered(chosen[~answered])
        index, classes = torch.cat([index, chosen]), torch.cat([classes, said])
        key = f"{course.key}/{repeat}/{number}/{digest(classes.tolist())}"
        result, network = _taught(context, key, repeat, number, index, classes, lr)
        accuracies.append(result["accuracy"])
        seconds += result["seconds"]
    bought = index[len(first) :]
    right = classes[len(first) :] == context.pool.classes[bought]
    return {
        "accuracies": accuracies,
        "right": int(right.sum()),
        "index": bought.tolist(),
        "answers": classes[len(first) :].tolist(),
        "lr": lr,
        "seconds": seconds,
    }


def _first(context: Context, repeat: int) -> Tensor:
    """The points that are known from the start, as many of every class."""
    rng = generator(context.seed, "labels", "first", repeat)
    chosen = []
    for class_ in range(context.num_classes):
        members = (context.pool.classes == class_).nonzero().flatten()
        order = torch.randperm(len(members), generator=rng)
        chosen.append(members[order[: context.config.first_per_class]])
    return torch.cat(chosen)


def _chosen(
    context: Context,
    course: Course,
    key: str,
    repeat: int,
    number: int,
    known: Tensor,
    classes: Tensor,
    network: nn.Module | None,
    lr: float,
) -> Tensor:
    """The points that are bought in a round.

    The network that judges them is trained again where an interrupted command only remembered how
    good it was.
    """

    def choose() -> Json:
        judge = network
        if judge is None:
            judge = _trained(context, repeat, number - 1, known, classes, lr)
        free = torch.ones(len(context.pool), dtype=torch.bool)
        free[known] = False
        points = free.nonzero().flatten()
        rng = generator(context.seed, "labels", course.rule, repeat, number)
        of = judged(judge, context.pool.examples, points, known)
        errors = context.config.guarded(course.answers(repeat).wrong)
        rows = BY_NAME[course.rule](of, context.config.points, errors, rng)
        return {"index": points[rows].tolist()}

    return torch.tensor(context.pieces.memo(f"chosen/{key}", choose)["index"], dtype=torch.int64)


def _taught(
    context: Context,
    key: str,
    repeat: int,
    number: int,
    index: Tensor,
    classes: Tensor,
    lr: float,
) -> tuple[Json, nn.Module | None]:
    """({"accuracy", "seconds"} of a round, its network where it was trained just now)."""
    made: list[nn.Module] = []

    def compute() -> Json:
        made.append(_trained(context, repeat, number, index, classes, lr))
        return {"accuracy": training.accuracy(made[0], context.test, context.precision)}

    label = f"{key.split('/')[0]}, repeat {repeat + 1}, {len(index)} points"
    result = context.pieces.remember(f"taught/{key}", label, compute)
    return result, made[0] if made else None


def _trained(
    context: Context, repeat: int, number: int, index: Tensor, classes: Tensor, lr: float
) -> nn.Module:
    """A network of a round, trained on points with their answered classes."""
    on = Answered(context.pool, index, classes)
    seed = context.seed_of("student", repeat, number)
    return _train(context, context.model, on, lr, seed, context.config.steps)


def _train(
    context: Context, model: str, on: Answered, lr: float, seed: int, steps: int
) -> nn.Module:
    networks = training.train_networks(
        context.builder(model),
        [on],
        [seed],
        _plain(context, model),
        lr,
        context.device,
        steps=steps,
        precision=context.precision,
        labels="hard",
    )
    return networks[0]


def _plain(context: Context, model: str) -> EvalConfig:
    """The protocol of a network that learns classes and nothing else."""
    return adapted(replace(context.protocol, loss="ce", labels="hard"), model)


def _teacher(context: Context, repeat: int) -> Answers:
    """A network that was trained on some random images of the pool with their true classes."""
    config, pool = context.config, context.pool
    assert config.teacher is not None
    rng = generator(context.seed, "labels", "teacher", repeat)
    index = torch.randperm(len(pool), generator=rng)[: config.teacher_images]
    on = Answered(pool, index, pool.classes[index])
    seed = context.seed_of("teacher", repeat)
    lr = _plain(context, config.teacher).lr
    network = _train(context, config.teacher, on, lr, seed, config.teacher_steps)
    return OfNetwork(network, pool.examples, config.teacher)


# The learning rate.


def _rates(context: Context) -> tuple[float, ...]:
    """The learning rates that are tried; the only one where none is chosen."""
    protocol = _plain(context, context.model)
    if context.validation is not None and protocol.rate == "validation":
        return tuple(candidates(protocol, None))
    return (protocol.lr,)


def _rate(context: Context, repeat: int) -> float:
    """The learning rate of a repeat: the best for its first points on the validation images.

    All rules have it.
    """
    if len(context.rates) == 1:
        return context.rates[0]
    first = _first(context, repeat)
    on = Answered(context.pool, first, context.pool.classes[first])
    tried: list[tuple[float, Sequence[float | None]]] = []
    for lr in context.rates:

        def search(lr: float = lr) -> Json:
            seed = context.seed_of("search", repeat)
            network = _train(context, context.model, on, lr, seed, context.config.steps)
            assert context.validation is not None
            accuracy = training.accuracy(network, context.validation, context.precision)
            return {"accuracies": [accuracy]}

        label = f"repeat {repeat + 1}, trying learning rate {lr:g}"
        result = context.pieces.remember(f"search/{repeat}/{lr!r}", label, search)
        tried.append((lr, result["accuracies"]))
    return best_rate(tried)[0]


def _content(context: Context, rows: Sequence[Json]) -> Json:
    """The content of labels.json."""
    config = context.config
    return {
        "identity": context.identity,
        "config": to_dict(config),
        "model": context.model,
        "protocol": to_dict(context.protocol),
        "classes": list(context.class_names),
        "points": len(context.pool),
        "known": config.first_per_class * context.num_classes,
        "interval": NAME,  # of every ci95
        "rows": list(rows),
        "differences": differences(rows),
        "cites": list(cites(config)),
        "seed": context.seed,
        "precision": context.precision,
        "machine": runtime.machine(context.device),
        "versions": runtime.versions(),
        "commit": runtime.commit(),
    }
