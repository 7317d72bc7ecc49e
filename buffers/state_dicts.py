"""Networks that others have trained, as the last snapshots of an expert store: state dicts of
torch, and safetensors files.

A state dict lies in a file alone or in a checkpoint, under a key such as state_dict, model or net.
Its names may have prefixes that wrappers put before them (module., _orig_mod., model.), or be those
of another implementation of the same network, which are then matched in their order.
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
from ddengine.recipe import BufferConfig, DataConfig
from ddengine.system import files, log
from ddengine.system.errors import UserError
from ddengine.system.rng import generator

# of checkpoints, the likeliest first
KEYS = ("state_dict", "model", "net", "model_state_dict", "network", "state_dict_ema", "model_ema")
# of BatchNorm, which older files are without and nothing here reads
COUNTER = "num_batches_tracked"


def find(content: Any) -> Mapping[str, Tensor] | None:
    """The state dict in the content of a file, alone or in a checkpoint; None where there is none,
    or several of unknown purpose.
    """
    if is_state(content):
        return content
    if not isinstance(content, Mapping):
        return None
    states = {key: value for key, value in content.items() if is_state(value)}
    known = [key for key in KEYS if key in states]
    if known:
        return states[known[0]]
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
    own = network.state_dict()
    needed = [name for name in own if not name.endswith(COUNTER)]
    given = _named(
        network,
        {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)},
        needed,
    )
    by_name = given is not None
    if given is None:
        given = _in_order(state, own, needed)
    if given is None:
        raise UserError(_mismatch(path, model, network, state, own, needed))
    for name in needed:
        tensor = given[name]
        if not is_plain(tensor) or not tensor.is_floating_point():
            raise UserError(
                f"The network in {path} is not one of {model}, its {name} is {shape_of(tensor)}; "
                "save its state dict as floats."
            )
        if tuple(tensor.shape) != tuple(own[name].shape):
            raise UserError(
                f"The network in {path} is not {model} for these images: its {name} is "
                f"{shape_of(tensor)}, and {tuple(own[name].shape)} is needed; "
                "name the network with --model or --teachers, and the images with --data.name and "
                "--data.size."
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
        own[name].copy_(tensor.detach())
    return Teacher(path, network.eval(), by_name)


def load_any(path: Path) -> Any:
    """The content of a file of torch.save, or of safetensors."""
    return files.read_tensors(path)[0] if is_safetensors(path) else load_pt(path)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do: eight bytes of length, then JSON."""
    with path.open("rb") as file:
        head = file.read(9)
    return (
        len(head) == 9
        and head[8:] == b"{"
        and int.from_bytes(head[:8], "little") < path.stat().st_size
    )


def _named(
    network: nn.Module, state: Mapping[str, Tensor], needed: Sequence[str]
) -> dict[str, Tensor] | None:
    """The tensors by the network's own names: as they are, without a prefix that all have, or by
    the names of torchvision; None where none fit.
    """
    names = list(state)
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    wanted = set(needed)
    for cut in range(shared + 1):
        plain = {".".join(part[cut:]): state[name] for name, part in zip(names, parts, strict=True)}
        if set(plain) == wanted:
            return plain
        # of torchvision's networks, whose last layer lies apart
        if (path := getattr(network, "head_path", None)) is not None:
            split = {
                f"head.{name.removeprefix(f'{path}.')}"
                if name.startswith(f"{path}.")
                else f"body.{name}": plain[name]
                for name in plain
            }
            if set(split) == wanted:
                return split
    return None


def _in_order(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], needed: Sequence[str]
) -> dict[str, Tensor] | None:
    """The tensors in their order, where kind (weight, bias, running mean ...) and shape of all
    agree and hardly a name does; else None.
    """
    names = [name for name in state if not name.endswith(COUNTER)]
    if len(names) != len(needed) or 2 * len(_stripped(names) & set(needed)) > len(needed):
        return None
    same = (
        there.rpartition(".")[2] == here.rpartition(".")[2]
        and state[there].shape == own[here].shape
        for there, here in zip(names, needed, strict=True)
    )
    return dict(zip(needed, (state[name] for name in names), strict=True)) if all(same) else None


def _stripped(names: Sequence[str]) -> set[str]:
    """Names, and what is left of them without their first parts."""
    parts = [name.split(".") for name in names]
    return {".".join(part[cut:]) for part in parts for cut in range(min(3, len(part)))}


def _mismatch(
    path: Path,
    model: str,
    network: nn.Module,
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    needed: Sequence[str],
) -> str:
    """What differs first, in words."""
    names = [name for name in state if not name.endswith(COUNTER)]
    plain = _stripped(names)
    advice = "name the network with --model or --teachers, and the images with --data.name and --data.size"
    if missing := [name for name in needed if name not in plain]:
        if len(missing) < len(needed):
            return f"The network in {path} is not {model}, its {missing[0]} is missing; {advice}."
        for there, here in zip(names, needed, strict=False):
            if (
                there.rpartition(".")[2] != here.rpartition(".")[2]
                or state[there].shape != own[here].shape
            ):
                return (
                    f"The network in {path} is not {model}: {there}, {shape_of(state[there])}, "
                    f"stands where {here}, a tensor of shape "
                    f"{tuple(own[here].shape)}, should; {advice}."
                )
        return f"The network in {path} is not {model}, it has {len(names)} tensors for {len(needed)}; {advice}."
    extra = [name for name in names if not _stripped([name]) & set(needed)]
    return f"The network in {path} is not {model}, which has no {extra[0] if extra else names[-1]}; {advice}."


def import_networks(
    teachers: Sequence[Teacher],
    folder: Path,
    data: Data,
    data_config: DataConfig,
    config: BufferConfig,
    model: str,
) -> None:
    """Make the store in `folder` of networks built as `model`, one expert each with its last
    snapshot alone, BatchNorm statistics included.

    The folder appears when all are written; a store of the same files and settings is left alone.
    Raises UserError where the folder holds something else.
    """
    imported = files_digest([teacher.path for teacher in teachers])
    content = store.imported_identity(data.train.digest, data_config, config, model, imported)
    shapes = store.shapes_of(teachers[0].network)
    if not store.is_new(folder, content, config, data.train.preprocess, shapes):
        return
    files.make_folder(folder.parent)
    with files.replacing(folder) as temporary:
        store.open_for_writing(
            temporary, content, config.kept_epochs(), data.train.preprocess, shapes=shapes
        )
        for i, teacher in enumerate(teachers):
            metrics: dict[str, Any] = {
                "file": teacher.path.name,
                "sha256": sha256(teacher.path),
                "train_loss": [],
            }
            metrics["validation_accuracy"] = (
                []
                if data.validation is None
                else [training.accuracy(teacher.network, data.validation)]
            )
            buffers = flatten_buffers(teacher.network)
            store.write_expert(
                temporary,
                i,
                flatten(teacher.network)[None],
                None if buffers is None else buffers[None],
                config.dtype,
                metrics,
            )
    if not all(teacher.by_name for teacher in teachers):
        log.say(
            f"the names in {', '.join(t.path.name for t in teachers if not t.by_name)} are not "
            f"those of {model}; tensors were matched in order"
        )
