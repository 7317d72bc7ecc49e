"""The store of expert trajectories: a shard an expert, a manifest of what decides their content.

experts/<fingerprint>/
    manifest.json            fingerprint, configuration, kept epochs, shapes of the parameters that
                             a row of "params" holds, threads on which an expert is trained, how
                             many are trained together
    preprocess.safetensors   what the experts saw their images through
    expert_0000.safetensors  "params" (kept epochs, P), and "buffers" (kept epochs, Q) of networks
                             that have any; metrics in its metadata

Each file says its digest. The manifest says that of the preprocessing, and that there are digests.

A convex store (`buffer.store convex`) has waypoints (W, P) as "params" and "shares" beside them,
see `convex`; the manifest says the epochs that can be read, which are all.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Generator, Tensor, nn

from buffers import convex
from buffers.unfinished import Checkpoint, path_of
from ddengine import contents, naming
from ddengine.data import Preprocess
from ddengine.data.stored import read_preprocess
from ddengine.experts import OwnTraining, StoredExperts
from ddengine.learning.flat import unflatten_into
from ddengine.recipe import BufferConfig, DataConfig, Recipe
from ddengine.system import claims, files, log
from ddengine.system.configs import differences, digest, listed, to_dict
from ddengine.system.errors import UserError
from ddengine.system.parsing import check_regular

FORMAT = naming.FORMAT  # of the manifest; in 1 the identity alone said the network
MANIFEST = "manifest.json"
PREPROCESS = "preprocess.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def identity(
    images: str,
    data_config: DataConfig,
    buffer: BufferConfig,
    model: str,
    precision: str,
) -> dict[str, Any]:
    """Everything that decides the content of a store.

    How many experts there are is left out: a store can grow.

    `images` is the digest of the training split, so it stands for root, size, limit, validation and
    split_seed too.
    """
    config = to_dict(buffer)
    for key in ("num_experts", "model", "seed"):  # model, resolved, and seed stand beside it
        config.pop(key, None)
    config["step"].pop("folder", None)  # where the files of a pretrained network lie
    read = buffer.step.files() if isinstance(buffer.step, OwnTraining) else None
    more = {} if read is None else {"files": read}
    return more | {
        "dataset": data_config.name,
        "images": images,
        "zca": data_config.zca,
        "model": naming.in_digest(model, data_config.size),
        "seed": buffer.seed,
        "precision": precision,
        "buffer": config,
    }


def shard_path(folder: Path, expert: int) -> Path:
    """The file of an expert."""
    return folder / f"expert_{expert:04d}.safetensors"


def teacher_folder(folder: Path, model: str) -> Path:
    """Where the store of a teacher lies in a folder that the user named.

    One of the time when networks had other names lies under its name of then.
    """
    path = folder / model.replace("/", "-")
    if naming.is_small(model) and not path.exists():
        before = folder / naming.in_digest(model, None).replace("/", "-")
        if (before / MANIFEST).is_file() and read_manifest(before)["model"] == model:
            return before
    return path


def finished(folder: Path) -> list[int]:
    """Experts whose shard is there."""
    numbers = []
    for path in sorted(folder.glob("expert_*.safetensors")):
        number = path.stem.removeprefix("expert_")
        if not number.isdecimal():
            raise UserError(f"{path} is not a shard of this store; move it elsewhere.")
        numbers.append(int(number))
    return sorted(numbers)


def shapes_of(network: nn.Module) -> list[list[int]]:
    """The shapes of a network's parameters, in the order in which a row of the store holds them."""
    return [list(p.shape) for p in network.parameters()]


def open_for_writing(
    folder: Path,
    content: dict[str, Any],
    kept: Sequence[int],
    preprocess: Preprocess,
    *,
    model: str,
    shapes: list[list[int]],
    threads: int | None = None,
    together: int = 1,
) -> None:
    """Create a store, or check that the one in `folder` has this identity.

    Raises UserError when it has another.

    `model` is the network's name, `shapes` are those of its parameters. On so many `threads` each
    expert of a new store is trained; None: on those that there are. So many are trained `together`.
    Imported experts come from exactly their files, and no others are put beside them.
    """
    check_no_others(folder)
    files.make_folder(folder)
    files.clean(folder)
    if (folder / MANIFEST).exists():
        check_identity(folder, content)
        for expert in finished(folder):  # a kill came before its checkpoint was removed
            path_of(folder, expert).unlink(missing_ok=True)
        if imported_digest(folder) != content.get("imported"):
            raise UserError(
                f"The expert store {folder} was imported from files, and nothing else can be put "
                "into it; name another folder with --out."
            )
        return
    of_preprocess = files.write_tensors(folder / PREPROCESS, preprocess.tensors())
    manifest = {
        "format": FORMAT,
        "fingerprint": digest(content),
        "identity": content,
        "model": model,
        "epochs": list(kept),
        "shapes": shapes,
        "digests": {PREPROCESS: of_preprocess},
    }
    if threads is not None:
        manifest["threads"] = threads
    if together > 1:
        manifest["together"] = together
    files.write_json(folder / MANIFEST, manifest)


def check_no_others(folder: Path) -> None:
    """Raise UserError for a folder without a store that holds anything else."""
    if not folder.is_dir() or (folder / MANIFEST).exists():
        return
    for path in files.contents(folder):
        if path.name != PREPROCESS:
            raise UserError(
                f"{folder} is not empty and not an expert store; name another folder with --out."
            )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store, which says its network by the name of today.

    Raises UserError when there is no store.
    """
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"There is no expert store in {folder}; make it with the buffer command, or name "
            "another with --experts."
        )
    path = folder / MANIFEST
    manifest = contents.checked(path, files.read_json(path, "epochs", "fingerprint", "identity"))
    named = _named(manifest["identity"])
    return {"model": named.get("model"), **manifest}


def imported_digest(folder: Path) -> str | None:
    """The digest of the files a store was imported from.

    None for a store of this program, and where there is none.
    """
    if not (folder / MANIFEST).is_file():
        return None
    return read_manifest(folder)["identity"].get("imported")


def threads_of(folder: Path) -> int | None:
    """On which each expert of a store is trained, wherever that goes on.

    None of a store that does not say it: on those that there are.
    """
    return read_manifest(folder).get("threads")


def together_of(folder: Path) -> int:
    """How many experts of a store are trained as one computation, wherever that goes on.

    1 of a store that does not say it.
    """
    return read_manifest(folder).get("together", 1)


def imported_identity(
    images: str, data_config: DataConfig, buffer: BufferConfig, model: str, imported: str
) -> dict[str, Any]:
    """The identity of a store of what others have trained, as the recipe declares it.

    The digest of the files takes the place of seed and precision.
    """
    content = identity(images, data_config, buffer, model, "fp32")
    return content | {"seed": None, "precision": None, "imported": imported}


def is_new(
    folder: Path,
    content: dict[str, Any],
    buffer: BufferConfig,
    preprocess: Preprocess,
    model: str,
    shapes: list[list[int]],
) -> bool:
    """Whether a store of this identity is still to be written into `folder`, as a whole.

    Raises UserError when the folder holds a store of another one, or anything else.
    """
    if (folder / MANIFEST).exists():
        kept = buffer.kept_epochs()
        open_for_writing(folder, content, kept, preprocess, model=model, shapes=shapes)
        return False
    if folder.exists() and files.contents(folder):
        raise UserError(
            f"{folder} is not empty and not an expert store; name another folder with --out."
        )
    return True


def check_identity(folder: Path, content: dict[str, Any]) -> None:
    """Raise UserError, naming what differs, unless the store in `folder` has this identity.

    Of imported experts nobody knows seed and precision: these are as the store says, and everything
    else must agree.
    """
    manifest = read_manifest(folder)
    stored = manifest["identity"]
    if "imported" in stored:
        content = dict(content)
        for key in ("imported", "seed", "precision"):
            content[key] = stored.get(key)
    if manifest.get("fingerprint") != digest(content):
        differing = differences(_named(stored), _named(content))
        raise UserError(
            f"The expert store {folder} was made with other settings "
            f"({listed(differing.values())}); "
            "name another folder, or give the settings it was made with."
        )


def _named(content: dict[str, Any]) -> dict[str, Any]:
    """An identity by the names of its settings, and with the network's name of today."""
    named = dict(content)
    if "seed" in named:
        named["buffer.seed"] = named.pop("seed")
    if "model" in named:
        named["model"] = naming.of_digest(named["model"])
    return named


def checkpoint(folder: Path, expert: int) -> Checkpoint:
    """What keeps the training of an expert of an open store that is not finished."""
    return Checkpoint(path_of(folder, expert), read_manifest(folder)["fingerprint"])


def write_expert(
    folder: Path,
    expert: int,
    params: Tensor,
    buffers: Tensor | None,
    dtype: str,
    metrics: dict[str, Any],
) -> None:
    """Write one finished expert into an open store.

    `params` is (kept epochs, P), `buffers` (kept epochs, Q).
    """
    manifest = files.read_json(folder / MANIFEST, "fingerprint", "identity", "epochs")
    tensors: dict[str, Tensor] = {}
    if buffers is not None:
        tensors["buffers"] = buffers
    waypoints = waypoints_of(manifest)
    if waypoints:
        trajectory = convex.convexified(params, sizes_of(manifest), len(waypoints))
        params, tensors["shares"] = trajectory.waypoints, trajectory.shares
    tensors["params"] = params.to(DTYPES[dtype])
    metadata = {"fingerprint": manifest["fingerprint"], "metrics": files.to_json(metrics)}
    files.write_tensors(shard_path(folder, expert), tensors, metadata)


def waypoints_of(manifest: Mapping[str, Any]) -> list[int]:
    """The epochs of the waypoints of a convex store; none of any other."""
    buffer = manifest["identity"].get("buffer", {})
    if buffer.get("store") != "convex":
        return []
    number = buffer.get("waypoints", 2)  # left out where it is the default
    return convex.waypoint_epochs(len(manifest["epochs"]), number)


def sizes_of(manifest: Mapping[str, Any]) -> list[int]:
    """How many numbers each parameter tensor of a store has."""
    return [math.prod(shape) for shape in manifest["shapes"]]


def stored_preprocess(folder: Path) -> Preprocess | None:
    """What the experts of a store saw their images through; None where there is no store.

    Raises UserError for impossible numbers.
    """
    path = folder / PREPROCESS
    if not path.exists():
        return None
    stated = None
    if (folder / MANIFEST).is_file():
        stated = stated_digests(read_manifest(folder)).get(PREPROCESS)
    if stated is not None and stated != files.check_tensors(path):
        raise UserError(
            f"{path} is not the file that the manifest beside it was written with; put that back, "
            "or make the store again with --restart."
        )
    return read_preprocess(path)


def stated_digests(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The digests that a manifest says; none of one that was written before there were any."""
    return manifest.get("digests") or {}


def check_shard(folder: Path, expert: int, *, has_digest: bool) -> None:
    """Compare the bytes of a shard with its digest, which it need not say unless `has_digest`.

    Raises UserError where they differ.
    """
    path = shard_path(folder, expert)
    try:
        stated = files.check_tensors(path)
    except UserError as error:
        raise _damaged(str(error).partition(";")[0]) from None
    if stated is None and has_digest:
        raise _damaged(f"{path} is damaged (it says no digest)")


def _damaged(what: str) -> UserError:
    return UserError(f"{what}; run the buffer command again, which trains this expert alone.")


def remove_damaged(folder: Path) -> list[int]:
    """Remove the shards whose bytes are not those that were written, and return their experts."""
    has_digest = bool(stated_digests(read_manifest(folder)))
    removed = []
    for expert in finished(folder):
        try:
            check_shard(folder, expert, has_digest=has_digest)
        except UserError:
            shard_path(folder, expert).unlink()
            removed.append(expert)
    return removed


class ExpertStore(StoredExperts):
    """Memory-mapped reader of a store; an `Experts` for objectives."""

    def __init__(
        self,
        folder: Path,
        new_model: Callable[[Generator], nn.Module] | None = None,
        num_experts: int | None = None,
    ):
        """Open a store, checking every shard's header.

        `new_model` builds the networks that `load` fills.

        With `num_experts` exactly the first so many are used, whatever else the store has grown to:
        what is drawn from it must not change. Raises UserError when there is no store, too few
        experts, or a shard is damaged or of another store.
        """
        self.folder = folder
        claims.reads(self, folder / MANIFEST)
        self.manifest = read_manifest(folder)
        self.epochs: Sequence[int] = tuple(self.manifest["epochs"])
        self._row: dict[float, int] = {epoch: i for i, epoch in enumerate(self.epochs)}
        self._waypoints = waypoints_of(self.manifest)
        self._new_model = new_model
        self._open: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}  # bytes of the shards that are open
        self._sound_shards: set[int] = set()  # whose bytes have been compared with their digests
        self._has_digests = bool(stated_digests(self.manifest))
        if not self._has_digests:
            log.say_once(
                f"warning: the expert store {folder} was written before stores had digests, so "
                "damage would not be noticed"
            )
        stored = finished(folder)
        self.experts = stored
        if num_experts is not None:
            self.experts = [i for i in range(num_experts) if i in stored]
        if not stored:
            raise UserError(
                f"The expert store {folder} has no finished expert; run the buffer command again "
                "to go on."
            )
        if num_experts is not None and len(self.experts) < num_experts:
            raise UserError(
                f"The expert store {folder} has {len(self.experts)} of the {num_experts} experts "
                "asked for; "
                "run the buffer command for the rest, or lower buffer.num_experts."
            )
        self.num_params: int = self._slice(0, "params").get_shape()[1]
        for expert in range(len(self.experts)):
            self._check_header(expert)

    def _check_header(self, expert: int) -> None:
        """Raise UserError for a shard of another store."""
        metadata = self._file(expert).metadata() or {}
        shape = self._slice(expert, "params").get_shape()
        same_store = metadata.get("fingerprint") == self.manifest["fingerprint"]
        rows = len(self._waypoints) or len(self.epochs)
        if not same_store or shape != [rows, self.num_params]:
            raise UserError(
                f"The shard {shard_path(self.folder, self.experts[expert])} belongs to another "
                "store; delete it and run the buffer command again."
            )

    @property
    def num_experts(self) -> int:
        """Finished experts."""
        return len(self.experts)

    @property
    def preprocess(self) -> Preprocess | None:
        """What the experts saw their images through."""
        return stored_preprocess(self.folder)

    def _file(self, expert: int) -> Any:
        if expert not in self._open:
            path = shard_path(self.folder, self.experts[expert])
            try:
                check_regular(path)  # a pipe would be waited for
                # kept open: only the header is read, rows come through the memory map
                self._open[expert] = safe_open(path, "pt").__enter__()
                self._sizes[expert] = path.stat().st_size
            except (SafetensorError, OSError, ValueError) as error:
                raise _damaged(f"The shard {path} is damaged ({error})") from None
        return self._open[expert]

    def _check_bytes(self, expert: int) -> None:
        """Raise UserError unless rows of a shard can be read as they were written.

        All its bytes are compared with its digest before its first row is read. Its size is
        compared each time: pages of a memory map behind the end of a file that was cut since end
        the process, without a word.
        """
        number = self.experts[expert]
        path = shard_path(self.folder, number)
        self._file(expert)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _damaged(f"The shard {path} cannot be read ({error.strerror})") from None
        if size != self._sizes[expert]:
            raise _damaged(
                f"The shard {path} had {self._sizes[expert]} bytes when it was opened, and has "
                f"{size} now"
            )
        if expert not in self._sound_shards:
            check_shard(self.folder, number, has_digest=self._has_digests)
            self._sound_shards.add(expert)

    def _slice(self, expert: int, name: str) -> Any:
        try:
            return self._file(expert).get_slice(name)
        except SafetensorError:
            raise UserError(
                f"The shard {shard_path(self.folder, self.experts[expert])} has no {name!r}; "
                "delete it and run buffer again."
            ) from None

    def snapshots(self, expert: int, epochs: Sequence[float]) -> Tensor:
        """Parameters (len(epochs), P), float32, reading those rows only.

        Epochs that are not whole can be read of a convex store. Raises UserError for a row with
        numbers that are not finite.
        """
        self._check_bytes(expert)
        if self._waypoints:
            return torch.stack([self._between(expert, epoch) for epoch in epochs])
        rows = self._slice(expert, "params")
        chosen = []
        for epoch in epochs:
            if epoch not in self._row:
                raise UserError(
                    f"The expert store {self.folder} keeps no epoch {epoch:g}; epochs that are not "
                    "whole can be read of stores of buffer.store convex."
                )
            chosen.append(self._sound(rows[self._row[epoch]], expert, epoch))
        return torch.stack(chosen).float()

    def _between(self, expert: int, epoch: float) -> Tensor:
        """The parameters (P,) at an epoch of a convex store, which need not be whole."""
        at = convex.place(epoch, self._waypoints)
        rows, shares = self._slice(expert, "params"), self._slice(expert, "shares")
        first, last = (
            self._sound(rows[number], expert, self._waypoints[number]).float()
            for number in (at.piece, at.piece + 1)
        )
        of_tensors = convex.share_at(shares[at.row : at.row + 2], at.fraction).float()
        return convex.along(first, last, of_tensors, sizes_of(self.manifest))

    def _sound(self, row: Tensor, expert: int, epoch: float) -> Tensor:
        """The row, which is finite. Raises UserError for another.

        An update made of another would be skipped, so half of a damaged store would pass for a slow
        run.
        """
        if not row.isfinite().all():
            raise UserError(
                f"The shard {shard_path(self.folder, self.experts[expert])} is damaged: epoch "
                f"{epoch} holds numbers that are not finite; "
                "delete it and run the buffer command again."
            )
        return row

    def load(self, expert: int, epoch: int) -> nn.Module:
        """The network of that snapshot, BatchNorm buffers included, in evaluation mode.

        Raises UserError for a damaged row, as `snapshots` does.
        """
        assert self._new_model is not None, "the store was opened without new_model"
        network = self._new_model(Generator())
        self._check_bytes(expert)
        buffers = self._buffers(expert, epoch)
        names = [name for name, _ in network.named_buffers()]
        if buffers is None and any("running_" in name for name in names):
            raise UserError(
                f"The experts in {self.folder} were imported without BatchNorm statistics, so "
                "they cannot look at images; "
                "use experts of the buffer command, or a network without BatchNorm."
            )
        (theta,) = self.snapshots(expert, [epoch])
        unflatten_into(network, theta, buffers)
        return network.eval()

    def _buffers(self, expert: int, epoch: int) -> Tensor | None:
        """The buffers (Q,) of that snapshot; None where the store has none."""
        if "buffers" not in self._file(expert).keys():
            return None
        stored = self._slice(expert, "buffers")
        return self._sound(stored[self._row[epoch]], expert, epoch)

    def summary(self) -> dict[str, Any]:
        """Fingerprint, number and training time of the experts in use, for meta.json."""
        seconds: float = 0
        for expert in range(self.num_experts):
            seconds += self.metrics(expert).get("seconds", 0.0)
        return {
            "model": self.manifest["model"],
            "fingerprint": self.manifest["fingerprint"],
            "seed": self.manifest["identity"].get("seed"),
            "num": self.num_experts,
            "seconds": round(seconds, 2),
        }

    def place(self) -> Path:
        """The folder of the store."""
        return self.folder

    def identities(self) -> list[dict[str, Any]]:
        """What decides the content of the store, its network by name."""
        return [self.manifest["identity"] | {"model": self.manifest["model"]}]

    def preprocesses(self) -> list[Preprocess | None]:
        """What the experts saw their images through."""
        return [self.preprocess]

    def fingerprints(self) -> list[str]:
        """The digest of the identity."""
        return [self.manifest["fingerprint"]]

    def origin(self, recipe: Recipe, images: str, precision: str) -> str | None:
        """None for experts that follow from recipe, images and precision.

        Of imported ones the digest of their files, of any others the fingerprint.
        """
        stored = self.manifest["identity"]
        fingerprint = self.manifest["fingerprint"]
        if "imported" in stored:
            return stored["imported"]
        if recipe.buffer is None:
            return fingerprint
        model = self.manifest["model"]
        content = identity(images, recipe.data, recipe.buffer, model, precision)
        if fingerprint == digest(content):
            return None
        return fingerprint

    def metrics(self, expert: int) -> dict[str, Any]:
        """What was measured while training an expert."""
        path = shard_path(self.folder, self.experts[expert])
        metadata = self._file(expert).metadata() or {}
        return contents.said_in_metadata(path, metadata, "metrics", contents.Metrics)


class StoreGroup(StoredExperts):
    """Several stores, of networks of different kinds, as one: the teachers.

    Those of the first store come first. They are no trajectories of one network.
    """

    def __init__(self, stores: Sequence[ExpertStore]):
        """At least one store. Raises UserError when they have no epoch in common."""
        self.stores = list(stores)
        self._of: list[tuple[ExpertStore, int]] = []
        for store in self.stores:
            for expert in range(store.num_experts):
                self._of.append((store, expert))
        self.num_experts = len(self._of)
        self.num_params = self.stores[0].num_params
        epochs = list(self.stores[0].epochs)
        for store in self.stores[1:]:
            epochs = [epoch for epoch in epochs if epoch in store.epochs]
        self.epochs: Sequence[int] = tuple(epochs)
        if not self.epochs:
            raise UserError(
                "The stores of the teachers have no epoch in common; make them with one "
                "buffer.epochs and buffer.keep."
            )

    def snapshots(self, expert: int, epochs: Sequence[float]) -> Tensor:
        """Parameters (len(epochs), P) of a network, whose P is its own."""
        store, number = self._of[expert]
        return store.snapshots(number, epochs)

    def load(self, expert: int, epoch: int) -> nn.Module:
        """The network of that snapshot, in evaluation mode."""
        store, number = self._of[expert]
        return store.load(number, epoch)

    def summary(self) -> dict[str, Any]:
        """Number and training time of the networks in use, and each store's own, for meta.json."""
        stores = [store.summary() for store in self.stores]
        seconds: float = 0
        for of_store in stores:
            seconds += of_store["seconds"]
        return {"num": self.num_experts, "seconds": round(seconds, 2), "stores": stores}

    def identities(self) -> list[dict[str, Any]]:
        """What decides the content of each store, its network by name."""
        identities = []
        for store in self.stores:
            identities += store.identities()
        return identities

    def preprocesses(self) -> list[Preprocess | None]:
        """What the networks of each store saw their images through."""
        preprocesses = []
        for store in self.stores:
            preprocesses += store.preprocesses()
        return preprocesses

    def fingerprints(self) -> list[str]:
        """The digest of each identity."""
        fingerprints = []
        for store in self.stores:
            fingerprints += store.fingerprints()
        return fingerprints

    def origin(self, recipe: Recipe, images: str, precision: str) -> str | None:
        """The origins of the stores; None where they follow from recipe, images and precision."""
        origins = []
        for store in self.stores:
            origin = store.origin(recipe, images, precision)
            if origin:
                origins.append(origin)
        return ", ".join(origins) or None
