"""Networks that others have trained, as the last snapshots of an expert store.

They come as state dicts of torch, or safetensors files. A state dict lies in a file alone or in a
checkpoint, under a key such as state_dict, model or net. Its names may have prefixes that wrappers
put before them (module., _orig_mod., model.), or be those of another implementation of the same
network, which are then matched in their order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Generator, Tensor, nn

from buffers import store
from buffers.exchange import files_digest, load_pt
from ddengine.artefact.exchange import described, is_plain, is_state, sha256, shape_of
from ddengine.data import Data
from ddengine.learning import training
from ddengine.learning.flat import flatten, flatten_buffers
from ddengine.models.torchvision_models import TorchvisionClassifier
from ddengine.recipe import BufferConfig, DataConfig
from ddengine.system import files, log
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

# of checkpoints, the likeliest first
KEYS = ("state_dict", "model", "net", "model_state_dict", "network", "state_dict_ema", "model_ema")
# of BatchNorm, which older files are without and nothing here reads
COUNTER = "num_batches_tracked"
ADVICE = (
    "name the network with --model or --teachers, and the images with --data.name and --data.size"
)


def find(content: Any) -> Mapping[str, Tensor] | None:
    """The state dict in the content of a file, alone or in a checkpoint.

    None where there is none, or several of unknown purpose.
    """
    if is_state(content):
        return content
    if not isinstance(content, Mapping):
        return None
    states = {key: value for key, value in content.items() if is_state(value)}
    for key in KEYS:
        if key in states:
            return states[key]
    return next(iter(states.values())) if len(states) == 1 else None


@dataclass(frozen=True)
class Teacher:
    """A network out of a file, in evaluation mode, and how its tensors were matched."""

    path: Path
    network: nn.Module
    by_name: bool  # or in their order, the names being those of another implementation


def read(path: Path, model: str, new_model: Callable[[Generator], nn.Module]) -> Teacher:
    """The network in a file, built as `model`.

    Raises UserError, naming the first tensor that differs, where it does not fit.
    """
    content = load_any(path)
    state = find(content)
    if state is None:
        raise UserError(
            f"{path} holds {described(content)} and not the state dict of a network; save "
            "network.state_dict() with torch.save."
        )
    network = new_model(generator(0))
    wanted = Wanted.of(network)
    given = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    fitting = _named(network, given, wanted)
    by_name = fitting is not None
    if fitting is None:
        fitting = _in_order(given, wanted)
    if fitting is None:
        raise UserError(
            f"The network in {path} is not {model}{_difference(given, wanted)}; {ADVICE}."
        )
    for name in wanted.names:
        _check(path, model, name, fitting[name], wanted.tensors[name])
        wanted.tensors[name].copy_(fitting[name].detach())
    return Teacher(path, network.eval(), by_name)


@dataclass(frozen=True)
class Wanted:
    """The tensors that a network needs."""

    tensors: Mapping[
        str, Tensor
    ]  # those of the network itself, so what is copied there stays there
    names: Sequence[str]  # without counters, in their order

    @classmethod
    def of(cls, network: nn.Module) -> "Wanted":
        """Those of a network."""
        tensors = network.state_dict()
        return cls(tensors, [name for name in tensors if not name.endswith(COUNTER)])


def _check(path: Path, model: str, name: str, tensor: Any, wanted: Tensor) -> None:
    """Raise UserError for a tensor that cannot be the one of this name."""
    if not is_plain(tensor) or not tensor.is_floating_point():
        raise UserError(
            f"The network in {path} is not one of {model}, its {name} is {shape_of(tensor)}; "
            "save its state dict as floats."
        )
    if tuple(tensor.shape) != tuple(wanted.shape):
        raise UserError(
            f"The network in {path} is not {model} for these images: its {name} is "
            f"{shape_of(tensor)}, and {tuple(wanted.shape)} is needed; {ADVICE}."
        )
    if not tensor.float().isfinite().all():
        raise UserError(
            f"The network in {path} has numbers that are not finite in {name}; its training "
            "diverged, get another file."
        )
    if name.endswith("running_var") and bool((tensor < 0).any()):
        raise UserError(
            f"The network in {path} has negative variances in {name}, which no training "
            "leaves behind; get another file."
        )


def load_any(path: Path) -> Any:
    """The content of a file of torch.save, or of safetensors."""
    return files.read_tensors(path)[0] if is_safetensors(path) else load_pt(path)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    if len(head) < 9 or head[8:] != b"{":
        return False
    return int.from_bytes(head[:8], "little") < path.stat().st_size


def _named(
    network: nn.Module, given: Mapping[str, Tensor], wanted: Wanted
) -> dict[str, Tensor] | None:
    """The tensors by the network's own names; None where none fit.

    The names fit as they are, without a prefix that all have, or as those of torchvision.
    """
    needed = set(wanted.names)
    parts = [name.split(".") for name in given]
    for cut in range(_shared(parts) + 1):
        plain = {}
        for part, tensor in zip(parts, given.values(), strict=True):
            plain[".".join(part[cut:])] = tensor
        if set(plain) == needed:
            return plain
        if isinstance(network, TorchvisionClassifier):
            split = {_of_torchvision(name, network.head_path): plain[name] for name in plain}
            if set(split) == needed:
                return split
    return None


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """How many first parts all names share; the last part of a name is its own."""
    shared = 0
    while True:
        for part in parts:
            if len(part) <= shared + 1 or part[shared] != parts[0][shared]:
                return shared
        shared += 1


def _of_torchvision(name: str, head_path: str) -> str:
    """The name of a tensor of one of torchvision's networks, whose last layer lies apart here."""
    if name.startswith(f"{head_path}."):
        return f"head.{name.removeprefix(f'{head_path}.')}"
    return f"body.{name}"


def _in_order(given: Mapping[str, Tensor], wanted: Wanted) -> dict[str, Tensor] | None:
    """The tensors in their order, where all agree in kind and shape and hardly any in name.

    The kind is the last part of the name: weight, bias, running mean ... None where they do not.
    """
    if len(given) != len(wanted.names):
        return None
    equal_names = _stripped(list(given)) & set(wanted.names)
    if 2 * len(equal_names) > len(wanted.names):
        return None
    for name, needed in zip(given, wanted.names, strict=True):
        if not _alike(name, given[name], needed, wanted):
            return None
    return dict(zip(wanted.names, given.values(), strict=True))


def _alike(name: str, tensor: Tensor, needed: str, wanted: Wanted) -> bool:
    """Whether a tensor agrees in kind and shape with the one that is needed."""
    _, _, kind = name.rpartition(".")
    _, _, needed_kind = needed.rpartition(".")
    return kind == needed_kind and tensor.shape == wanted.tensors[needed].shape


def _stripped(names: Sequence[str]) -> set[str]:
    """Names, and what is left of them without their first one or two parts."""
    stripped = set()
    for name in names:
        parts = name.split(".")
        for cut in range(min(3, len(parts))):
            stripped.add(".".join(parts[cut:]))
    return stripped


def _extra(names: Sequence[str], needed: set[str]) -> str:
    """The first name that no needed one is, or else the last name."""
    for name in names:
        if not _stripped([name]) & needed:
            return name
    return names[-1]


def _difference(given: Mapping[str, Tensor], wanted: Wanted) -> str:
    """What differs first between the tensors of a file and those of the network, in words."""
    names = list(given)
    plain = _stripped(names)
    missing = [name for name in wanted.names if name not in plain]
    if not missing:
        return f", which has no {_extra(names, set(wanted.names))}"
    if len(missing) < len(wanted.names):
        return f", its {missing[0]} is missing"
    for name, needed_name in zip(names, wanted.names, strict=False):
        if not _alike(name, given[name], needed_name, wanted):
            return (
                f": {name}, {shape_of(given[name])}, stands where {needed_name}, a tensor of shape "
                f"{tuple(wanted.tensors[needed_name].shape)}, should"
            )
    return f", it has {len(names)} tensors for {len(wanted.names)}"


def import_networks(
    teachers: Sequence[Teacher],
    folder: Path,
    data: Data,
    data_config: DataConfig,
    config: BufferConfig,
    model: str,
) -> None:
    """Make the store in `folder` of networks built as `model`, one expert each.

    An expert is its last snapshot alone, BatchNorm statistics included. The folder appears when all
    are written; a store of the same files and settings is left alone. Raises UserError where the
    folder holds something else.
    """
    imported = files_digest([teacher.path for teacher in teachers])
    content = store.imported_identity(data.train.digest, data_config, config, model, imported)
    shapes = store.shapes_of(teachers[0].network)
    preprocess = data.train.preprocess
    if not store.is_new(folder, content, config, preprocess, model, shapes):
        return
    files.make_folder(folder.parent)
    with files.replacing(folder) as temporary:
        kept = config.kept_epochs()
        store.open_for_writing(temporary, content, kept, preprocess, model=model, shapes=shapes)
        for i, teacher in enumerate(teachers):
            buffers = flatten_buffers(teacher.network)
            store.write_expert(
                temporary,
                i,
                flatten(teacher.network)[None],
                None if buffers is None else buffers[None],
                config.dtype,
                _metrics(teacher, data),
            )
    in_order = [teacher.path.name for teacher in teachers if not teacher.by_name]
    if in_order:
        log.say(
            f"the names in {', '.join(in_order)} are not those of {model}; tensors were matched in "
            "order"
        )


def _metrics(teacher: Teacher, data: Data) -> dict[str, Any]:
    """What a store says of an expert: where it is from, and how good it is."""
    accuracies = []
    if data.validation is not None:
        accuracies.append(training.accuracy(teacher.network, data.validation))
    return {
        "file": teacher.path.name,
        "sha256": sha256(teacher.path),
        "train_loss": [],
        "validation_accuracy": accuracies,
    }
