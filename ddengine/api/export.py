"""A set as files of other programs, and as a dataset of the Hub."""

from pathlib import Path

from ddengine.api.results import Distilled, path_of
from ddengine.artefact import export as exporting
from ddengine.artefact import hub, listing, tars
from ddengine.artefact.export import Format
from ddengine.artefact.owner import OwnersWords
from ddengine.system import claims, log


def export(
    of: Distilled | Path | str,
    format: Format,
    folder: Path | str,
    *,
    per_shard: int = tars.PER_SHARD,
    title: str | None = None,
    license: str | None = None,
    progress: log.Progress = True,
) -> list[Path]:
    """Write a set as files of other programs; returns what was written.

        ddengine.export("sets/mine", "folders", "pictures")

    Args:
        of: a set that lies in a folder, or the folder of one or of its run.
        format: mtt, the files of MTT, FTD, TESLA and DATM; webdataset, a tar, or several, of 8-bit
            PNGs; folders, such PNGs in a folder for each class, called as the class is;
            imagefolder, the same with the number of the class before its name; hub, a dataset of
            the Hugging Face Hub.
        folder: to write.
        per_shard: examples in a tar of webdataset.
        title: of the card of hub; None: what the set is.
        license: of the set, for the card of hub, such as "cc-by-4.0"; None: what is known of the
            licence of the source images.
        progress: as `distill` takes it.

    Raises:
        UserError: a path that holds no set, files that exist already.
    """
    path = path_of(of) if isinstance(of, Distilled) else Path(of)
    with log.shown(progress), claims.claimed(Path(folder), "export"):
        words = OwnersWords(title, license)
        written = exporting.export(path, format, Path(folder), per_shard=per_shard, words=words)
        listing.write(Path(folder), written)
        return written


def push(
    of: Distilled | Path | str,
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    title: str | None = None,
    license: str | None = None,
) -> str:
    """Upload a set to the Hugging Face Hub as a dataset; returns its address.

        ddengine.push("sets/mine", "user/tiny-pictures")

    Args:
        of: a set that lies in a folder, or the folder of one or of its run.
        repo: "user/name", or "organisation/name".
        private: whether a repository that is made is for its owners only.
        token: of the user; None: the one that `hf auth login` stored.
        title: as `export` takes it.
        license: as `export` takes it.

    Raises:
        UserError: a name that is none, libraries that are missing, whatever the Hub refuses.
    """
    path = path_of(of) if isinstance(of, Distilled) else Path(of)
    words = OwnersWords(title, license)
    return hub.push(path, repo, private=private, token=token, words=words)
