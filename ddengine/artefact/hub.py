"""A set in the layout of the Hugging Face Hub, written and uploaded by the Hub's own libraries.

README.md                            the card; its YAML says the features and where the examples are
data/train-00000-of-00001.parquet    the decoded examples, pixels of 8 bits
data.safetensors, labels.safetensors, meta.json, load.py, evaluation.json     the exact set

The libraries `datasets` and `huggingface_hub` are the extra `hub`, imported only here.
"""

import importlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ddengine import contents
from ddengine.artefact import folder as folders
from ddengine.artefact import runs
from ddengine.artefact.card import CARD, card
from ddengine.artefact.eight_bit import exported
from ddengine.artefact.owner import OwnersWords
from ddengine.artefact.parquet import PARQUET, write_parquet
from ddengine.artefact.results import EVALUATION, without_folders
from ddengine.data.hub import without_bars
from ddengine.sets.synthetic import SyntheticSet
from ddengine.system import files
from ddengine.system.errors import UserError
from ddengine.types import Json, Meta

EXAMPLES = f"data/{PARQUET}"
EXACT = ("data.safetensors", "labels.safetensors", "load.py", EVALUATION)
NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
LONGEST_ANSWER = 300  # characters of what the Hub said


def library(name: str) -> Any:
    """The library `datasets` or `huggingface_hub`. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"Datasets of the Hugging Face Hub need the library {name}, which is not installed; "
            "run pip install ddengine[hub]."
        ) from None


def write_hub_folder(
    source: Path, syn: SyntheticSet, out: Path, words: OwnersWords = OwnersWords()
) -> Path:
    """Write the set in the folder `source` into `out` as a dataset repository; returns `out`.

    `datasets.load_dataset(out)` reads it. The card is that of `source`, with what its evaluation
    said and what its owner wrote, and title and licence as `words` says them. Pictures are left
    out, because the parquet file holds them all.

    Raises UserError when `out` holds anything, or the libraries are missing.
    """
    library("datasets")
    library("huggingface_hub")
    files.refuse_full(out)
    files.make_folder(out.parent)
    meta = contents.read_json(source / "meta.json")
    with files.replacing(out) as temporary:
        (temporary / "data").mkdir(parents=True)
        info = _write_examples(temporary / EXAMPLES, syn)
        _write_card(temporary / CARD, _card_of(source, syn, meta), info, words)
        files.write_json(temporary / "meta.json", _without_places(meta))
        for name in EXACT:
            if (source / name).is_file():
                shutil.copyfile(source / name, temporary / name)
    return out


def _write_examples(path: Path, syn: SyntheticSet) -> Any:
    """Write the decoded examples by `datasets`, and return what it says of them, its DatasetInfo.

    They are an image, a label that is the name of a class and, with soft labels, the logits, with
    features these.
    """
    datasets = library("datasets")
    with tempfile.TemporaryDirectory() as place, without_bars(datasets):
        plain = Path(place) / PARQUET
        write_parquet(plain, syn, exported(syn))
        table = datasets.Dataset.from_parquet(
            str(plain), split="train", cache_dir=str(Path(place) / "cache")
        )
        table.to_parquet(path)
        return table.info


def _card_of(source: Path, syn: SyntheticSet, meta: Meta) -> str:
    """The card of the set, which folders written before there were cards get now."""
    if not (source / CARD).is_file():
        return card(syn, meta, exported(syn))
    return (source / CARD).read_bytes().decode(errors="replace")


def _write_card(path: Path, text: str, info: Any, words: OwnersWords) -> None:
    """Write the card by `huggingface_hub`; its YAML says features and where the examples are."""
    hub = library("huggingface_hub")
    text = words.on_card(text.replace(" and of images/", ""))
    written = hub.DatasetCard(text, ignore_metadata_errors=True)
    for name, value in words.front_matter().items():
        written.data[name] = value
    written.data.configs = [
        {"config_name": "default", "data_files": [{"split": "train", "path": EXAMPLES}]}
    ]
    # as the library itself writes it when it uploads a dataset
    written.data.dataset_info = {"features": info.features._to_yaml_list()}
    files.write_text(path, str(written))


def _without_places(meta: Meta) -> Json:
    """The content of meta.json without folders of this machine."""
    public = dict(meta)
    if isinstance(meta.get("merged"), list):
        public["merged"] = [without_folders(str(folder)) for folder in meta["merged"]]
    return public


@contextmanager
def _repository(path: Path, words: OwnersWords) -> Iterator[Path]:
    """The folder to upload: `path` if it is in the layout of the Hub, else written for a while.

    Raises UserError for words about a folder that has its card already.
    """
    if (path / EXAMPLES).is_file():
        if words:
            raise UserError(
                f"{path} has its card already; give --title and --license to export, or push the "
                "run or the set itself."
            )
        yield path
        return
    source = runs.set_folder(path)
    syn, _ = folders.load(source, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as place:
        yield write_hub_folder(source, syn, Path(place) / "repository", words)


def push(
    path: Path,
    repo: str,
    *,
    private: bool = False,
    token: str | None = None,
    words: OwnersWords = OwnersWords(),
) -> str:
    """Upload a set to the Hugging Face Hub as a dataset, and return its address.

    A repository of that name is added to where there is one.

    Args:
        path: a run, the folder of a set, or a folder that export wrote with --format hub.
        repo: "user/name", or "organisation/name".
        private: whether a repository that is made is for its owners only.
        token: of the user; None: the one that `hf auth login` stored.
        words: title and licence for the card.

    Raises:
        UserError: a name that is none, no set, libraries that are missing, and whatever the Hub
            refuses.
    """
    if not NAME.fullmatch(repo):
        raise UserError(
            f"{repo!r} is not the name of a repository of the Hub; give it as user/name."
        )
    hub = library("huggingface_hub")
    api = hub.HfApi(token=token)
    with _repository(path, words) as folder:
        try:
            made = api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo,
                repo_type="dataset",
                folder_path=folder,
                commit_message="Upload of a set by ddengine",
            )
        except (OSError, ValueError) as error:  # all that huggingface_hub raises are such
            answer = " ".join(str(error).split())[:LONGEST_ANSWER].rstrip(".")
            raise UserError(
                f"The Hub refused {repo} ({answer}); log in with hf auth login as somebody who may "
                "write there, or name another repository."
            ) from None
    return str(made)
