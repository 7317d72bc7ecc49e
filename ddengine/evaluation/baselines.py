"""What decides the numbers of a baseline, to the bit, whatever set it stands beside.

By these facts evaluations share what came of it.
"""

from ddengine.data import RealSet, Subset
from ddengine.evaluation.bench import Bench, Training
from ddengine.system import files, program, runtime
from ddengine.system.configs import to_dict
from ddengine.types import Facts, Json, TrainingSet

FORM = 1  # of what is shared
FOLDER = ".baselines"  # beside runs
# settings of a protocol that say which trainings there are, and not what comes of one
OF_ALL = (
    "protocol",
    "models",
    "baselines",
    "baseline_steps",
    "full_steps",
    "num_networks",
    "search_networks",
    "rate",
    "lr",
    "lr_grid",
)


def of_all(bench: Bench) -> Json:
    """What decides all trainings of an evaluation on real images."""
    data = bench.data
    protocol = to_dict(bench.config)
    for name in OF_ALL:
        protocol.pop(name)
    images = {}
    for name, real in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        images[name] = None if real is None else real.digest
    return {
        "form": FORM,
        "images": images,
        "preprocess": files.tensor_digest(data.train.preprocess.tensors()),
        "protocol": protocol,
        "precision": bench.precision,
        "device": runtime.machine(bench.device)["device"],
        "threads": bench.threads,
        "versions": runtime.versions() | {"ddengine": program.version()},
    }


def of_training(bench: Bench, asked: Training) -> Facts:
    """What decides what comes of networks on a baseline."""
    who = asked.who
    return {
        "set": who.name,
        "images": [_images_of(who.sets(draw)) for draw in asked.draws],
        "network": asked.model,
        "brought": bench.brought_by_user(asked.model),
        "lr": asked.lr,
        "updates": asked.steps or bench.updates(who),
        "seeds": list(asked.seeds),
        "split": asked.split,
        "together": bench.together(who, asked.model, len(asked.seeds)),
    }


def _images_of(of: TrainingSet) -> str:
    """Which real images a baseline has."""
    if isinstance(of, Subset):
        return files.tensor_digest({"index": of.index})
    assert isinstance(of, RealSet), "a baseline is made of real images"
    return "all"
