"""Replay buffers of the published programs <-> expert stores, and the door for files of others.

replay_buffer_0.pt, replay_buffer_1.pt, ...: a list of experts, each a list of E+1 snapshots, each a
list of the network's parameters in the order of `module.parameters()`. A row of a store is the same
numbers in the same order, so nothing is computed on the way.
"""

import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from buffers import store
from buffers.store import ExpertStore
from ddengine.api.export import export as export_of_set
from ddengine.api.results import Distilled, path_of
from ddengine.artefact import listing
from ddengine.artefact.exchange import all_are, described, is_plain, save_pt, sha256, shape_of
from ddengine.artefact.export import Format
from ddengine.artefact.tars import PER_SHARD
from ddengine.data import Data
from ddengine.recipe import BufferConfig, DataConfig
from ddengine.system import archives, claims, files, log
from ddengine.system.configs import digest
from ddengine.system.errors import UserError
from ddengine.system.runtime import check_memory

FILE = "replay_buffer_{}.pt"
PER_FILE = 10  # experts in a file, as the published programs write them


class _Forgotten:
    """Stands in for what a file holds beside tensors, and forgets it.

    That is numbers of numpy and their types, arguments of a command line, and paths: nothing
    imported is one.
    """

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# DC, DSA and DM keep their accuracies as numpy numbers beside the images, and checkpoints of
# networks the arguments of their training beside the state dict. These are the names under which
# pickle asks for the functions and classes that make such things; a file that asks gets the class
# above instead. So the names are harmless whatever the file passes to them: no code of numpy runs,
# which a type crafted in the file could otherwise lead to wrong memory.
HARMLESS = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
)
STAND_INS = [(_Forgotten, name) for name in HARMLESS]


def load_pt(path: Path) -> Any:
    """The content of a file of torch.save: tensors on the CPU, in lists, tuples and dicts.

    Nothing in the file is ever run.

    Raises UserError when the file is missing or damaged, or asks for anything beyond that.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; check the path.")
    try:
        archives.check_sums(path)
        with torch.serialization.safe_globals(STAND_INS), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.simplefilter("ignore")
            content = _detached(torch.load(path, map_location="cpu", weights_only=True))
            needed = _bytes_of(content)
            check_memory(f"What {path} says it holds", needed, "get another file")
            return content
    except UserError:
        raise
    except Exception as error:  # damage shows in any way: KeyError, EOFError, RuntimeError ...
        raise _unreadable(path, error) from None


def _bytes_of(value: Any) -> int:
    """Bytes of all tensors, each as large as it says: one number can be expanded to any shape."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return 0
    return sum(map(_bytes_of, value))


def _unreadable(path: Path, error: Exception) -> UserError:
    """What to say of a file that torch.load refused."""
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if asked is None:
        return UserError(
            f"{path} is damaged or was not written by torch.save ({type(error).__name__}); get "
            "the file again."
        )
    name = asked[1].rstrip(".")
    return UserError(
        f"{path} asks for {name} to be run while it is read, as files of tensors never "
        "need and harmful ones do, "
        f"so it was not read; {_instead(name)}."
    )


def _detached(value: Any) -> Any:
    """The same without gradients, and with plain tensors in place of parameters.

    These read without a warning of torch.
    """
    if isinstance(value, Tensor):
        plain = not value.requires_grad and not isinstance(value, nn.Parameter)
        return value if plain else value.detach()
    if type(value) in (list, tuple):
        return type(value)(map(_detached, value))
    if isinstance(value, dict):
        return {key: _detached(part) for key, part in value.items()}
    return value


def _instead(name: str) -> str:
    """What to ask for in place of a file that wants `name`."""
    if name.startswith("numpy"):
        return "it holds a numpy array, of which torch.from_numpy(...) saved by torch.save is read"
    if name.startswith(("torch.nn", "torchvision.", "timm.", "__main__.", "models.", "networks.")):
        kind = name.rpartition(".")[2]
        return f"it holds a whole object ({kind}), of a network save network.state_dict() instead"
    return "ask its authors for a file of tensors only"


def expand(given: Sequence[Path]) -> list[Path]:
    """The files, with a folder replaced by its replay_buffer_*.pt in numeric order.

    Raises UserError for what is not there.
    """
    paths: list[Path] = []
    for path in given:
        if path.is_dir():
            paths += _replay_buffers(path)
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"{path} does not exist; check --files.")
    return paths


def _replay_buffers(folder: Path) -> list[Path]:
    """The replay_buffer_*.pt of a folder in numeric order."""
    numbered = {}
    for path in folder.iterdir():
        match = re.fullmatch(r"replay_buffer_(\d+)\.pt", path.name)
        if match:
            numbered[int(match[1])] = path
    if not numbered:
        raise UserError(
            f"The folder {folder} holds no replay_buffer_*.pt; give the files themselves "
            "with --files."
        )
    return [numbered[number] for number in sorted(numbered)]


def files_digest(paths: Sequence[Path]) -> str:
    """12 hexadecimal digits that identify the contents of these files, in this order."""
    return digest(list(map(sha256, paths)))


def import_experts(
    paths: Sequence[Path],
    imported: str,
    folder: Path,
    data: Data,
    data_config: DataConfig,
    config: BufferConfig,
    model: str,
    network: nn.Module,
) -> int:
    """Make the store in `folder` of the experts in these files, and return how many they are.

    `imported` is the digest of the files. One file is in memory at a time. The folder appears when
    all are written; a store of the same files and settings is left alone. Raises UserError when a
    file does not hold experts of `network` trained for `config.epochs` epochs, or the folder holds
    something else.
    """
    content = store.imported_identity(data.train.digest, data_config, config, model, imported)
    preprocess = data.train.preprocess
    shapes = store.shapes_of(network)
    if not store.is_new(folder, content, config, preprocess, model, shapes):
        return ExpertStore(folder).num_experts
    with log.progress("import", len(paths)) as bar:
        experts = _read(paths, network, model, config, bar.advance)
        # files that do not fit are mostly refused here, before anything is written
        first = next(experts)
        files.make_folder(folder.parent)
        with files.replacing(folder) as temporary:
            kept = config.kept_epochs()
            store.open_for_writing(temporary, content, kept, preprocess, model=model, shapes=shapes)
            count = 0
            for name, params in itertools.chain([first], experts):
                store.write_expert(temporary, count, params, None, config.dtype, {"file": name})
                count += 1
    return count


def _read(
    paths: Sequence[Path],
    network: nn.Module,
    model: str,
    config: BufferConfig,
    on_file: Callable[[str], None],
) -> Iterator[tuple[str, Tensor]]:
    """(name of the file, parameters (kept epochs, P)) of each expert."""
    for path in paths:
        # a frame of its own: a file is let go before the next is read
        yield from _read_file(path, network, model, config)
        on_file(path.name)


def _read_file(
    path: Path, network: nn.Module, model: str, config: BufferConfig
) -> Iterator[tuple[str, Tensor]]:
    """(name of the file, parameters (kept epochs, P)) of each expert in a file."""
    experts = load_pt(path)
    if not isinstance(experts, list | tuple) or not experts:
        raise UserError(
            f"{path} holds {described(experts)} and not a list of experts; several --files must "
            "be the replay_buffer files of one buffer."
        )
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    for number, expert in enumerate(experts):
        which = f"Expert {number} of {path}"
        _check_length(which, expert, config)
        for epoch, snapshot in enumerate(expert):
            _check(which, epoch, snapshot, shapes, model)
        first = _row(expert[0])
        last = _row(expert[config.epochs])
        if torch.equal(first, last):
            raise UserError(
                f"{which} does not move, all its snapshots are the same (the published program "
                "writes such files on a machine without a GPU); "
                "train experts with the buffer command."
            )
        yield path.name, torch.stack([_row(expert[epoch]) for epoch in config.kept_epochs()])


def _row(snapshot: Sequence[Tensor]) -> Tensor:
    """The parameters of a snapshot as one flat row (P,) of float32."""
    return torch.cat([part.detach().float().flatten() for part in snapshot])


def _check_length(which: str, expert: Any, config: BufferConfig) -> None:
    """Raise UserError unless an expert is a list of as many snapshots as the recipe says."""
    is_list = isinstance(expert, list | tuple)
    if not is_list or not all_are(expert, list | tuple):
        raise UserError(
            f"{which} is not a list of snapshots that are lists of tensors, it is "
            f"{described(expert)}; "
            "give the replay_buffer files of one buffer."
        )
    if len(expert) != config.epochs + 1:
        advice = "give the replay_buffer files of one buffer."
        if len(expert) > 1:
            advice = f"set buffer.epochs {len(expert) - 1}."
        raise UserError(
            f"{which} has {len(expert)} snapshots, and buffer.epochs {config.epochs} makes "
            f"{config.epochs + 1} with the initialisation; {advice}"
        )


def _check(
    which: str,
    epoch: int,
    snapshot: Sequence[Any],
    shapes: Mapping[str, torch.Size],
    model: str,
) -> None:
    """Raise UserError, naming the first parameter that differs, unless a snapshot fits the network.

    `shapes` are those of its parameters, by name, in their order.
    """
    advice = (
        "name their network with --model or --buffer.model, and their images with --data.name and "
        "--data.size"
    )
    for (name, wanted), part in zip(shapes.items(), snapshot, strict=False):
        if not is_plain(part) or not part.is_floating_point() or part.shape != wanted:
            raise UserError(
                f"{which} is not of {model}, its {name} is {shape_of(part)} and should be a float "
                f"tensor of shape {tuple(wanted)}; {advice}."
            )
        if not part.float().isfinite().all():
            raise UserError(
                f"{which} has numbers that are not finite in {name} of snapshot {epoch}; its "
                "training diverged, get another file."
            )
    names = list(shapes)
    if len(snapshot) != len(names):
        where = f"nothing follows {names[-1]} there"
        if len(snapshot) < len(names):
            where = f"{names[len(snapshot)]} is missing"
        raise UserError(
            f"{which} is not of {model}, it has {len(snapshot)} parameter tensors for "
            f"{len(names)} ({where}); {advice}."
        )


def export(
    of: Distilled | Path | str,
    format: Format,
    folder: Path | str,
    *,
    per_file: int = PER_FILE,
    per_shard: int = PER_SHARD,
    title: str | None = None,
    license: str | None = None,
) -> list[Path]:
    """Write an expert store, a run or the folder of a set as files of other programs.

        buffers.export("experts/mine", "mtt", "theirs")

    Args:
        of: a set that lies in a folder, or the folder of an expert store, of a set or of its run.
        format: mtt, the files of MTT, FTD, TESLA and DATM; of a run or set also webdataset,
            folders, imagefolder and hub, which hold images of 8 bits.
        folder: to write.
        per_file: experts in a file of mtt.
        per_shard: examples in a tar of webdataset.
        title: as `ddengine.export` takes it.
        license: as `ddengine.export` takes it.

    Returns:
        What was written.

    Raises:
        UserError: a path that holds neither, a format that does not go, and files that exist
            already.
    """
    path = path_of(of) if isinstance(of, Distilled) else Path(of)
    if not (path / store.MANIFEST).is_file():
        return export_of_set(
            path, format, folder, per_shard=per_shard, title=title, license=license
        )
    if format != "mtt":
        raise UserError(
            f"{path} holds experts, and format {format} is one of images; set --format mtt."
        )
    if title is not None or license is not None:
        raise UserError(
            f"{path} holds experts, which have no card; leave --title and --license out."
        )
    with claims.claimed(Path(folder), "export"):
        written = export_experts(path, Path(folder), per_file)
        listing.write(Path(folder), written)
        return written


def export_experts(folder: Path, out: Path, per_file: int = PER_FILE) -> list[Path]:
    """Write the experts of a store into `out` as replay_buffer_0.pt, replay_buffer_1.pt ...

    `per_file` experts lie in a file, as float32. Returns the files. Raises UserError when the store
    does not say the shapes of its parameters, or one of the files exists.
    """
    if per_file < 1:
        raise UserError(
            f"--per_file must be at least 1, got {per_file}; the published programs put 10 "
            "experts into a file."
        )
    source = ExpertStore(folder)
    shapes = _shapes(source)
    starts = range(0, source.num_experts, per_file)
    paths = [out / FILE.format(i) for i in range(len(starts))]
    files.refuse_existing(paths)
    files.make_folder(out)
    with log.progress("export", len(paths)) as bar:
        for path, start in zip(paths, starts, strict=True):
            experts = []
            for expert in range(start, min(start + per_file, source.num_experts)):
                rows = source.snapshots(expert, source.epochs)
                experts.append([_parameters(row, shapes) for row in rows])
            save_pt(path, experts)
            bar.advance(path.name)
    return paths


def _shapes(source: ExpertStore) -> list[torch.Size]:
    """The shapes of the parameters of the experts of a store, in their order."""
    shapes = source.manifest.get("shapes")
    if shapes is None:
        raise UserError(
            f"The expert store {source.folder} was made before stores kept the shapes of "
            "parameters; make it again with the buffer command."
        )
    shapes = list(map(torch.Size, shapes))
    if sum(shape.numel() for shape in shapes) != source.num_params:
        raise UserError(
            f"The shapes in {source.folder / 'manifest.json'} are not those of its experts; make "
            "the store again with the buffer command."
        )
    return shapes


def _parameters(row: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """One flat row (P,) as parameter tensors, each of which holds numbers of its own."""
    parameters = []
    first = 0
    for shape in shapes:
        last = first + shape.numel()
        parameters.append(row[first:last].clone().view(shape))
        first = last
    return parameters
