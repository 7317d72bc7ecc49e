"""What a command needs to go on after a kill is there until its results are."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from ddengine import contents
from ddengine.api import continual, labels, prune, transfer
from ddengine.system import files
from ddengine.uses import labels as buying
from ddengine.uses import pruning
from ddengine.uses import transfer as testing

CONTENT = {"rows": [], "identity": {}, "memories": {}}


@dataclass(frozen=True)
class Nothing:
    """The part of a context that is looked at."""

    folder: Path | None = None


def working(path):
    """What a comparison does: it remembers what is finished."""
    path.write_text("finished\n")
    for folder in ("work/networks", "transfer.networks"):
        (path.parent / folder).mkdir(parents=True)
    return CONTENT


def of_continual(folder):
    continual._content(folder, working, ())


def of_prune(folder):
    prune._content(Nothing(), (), folder, None, ())


def of_labels(folder):
    labels._content(Nothing(), folder, None, ())


def of_transfer(folder):
    transfer._content(Nothing(), folder, restart=False, command=())


@pytest.mark.parametrize("use", [of_continual, of_prune, of_labels, of_transfer])
def test_a_kill_before_the_results_are_written_loses_nothing(tmp_path, monkeypatch, use):
    monkeypatch.setattr(pruning, "run", lambda context, sets, path, keep: working(path))
    monkeypatch.setattr(buying, "run", lambda context, file, path: (working(path), None))
    monkeypatch.setattr(testing, "run", lambda context, path: working(path))
    monkeypatch.setattr(testing, "identity", lambda context: {})
    for module in (continual.of_continual, prune.of_pruning, labels.of_labels):
        monkeypatch.setattr(module, "plot", lambda path, content: None)
    monkeypatch.setattr(contents, "checked", lambda path, content: content)
    write_json = files.write_json

    def killed(path, content):
        raise KeyboardInterrupt

    def remembered():
        kept = [path for path in tmp_path.rglob("*") if path.name.endswith(".partial.jsonl")]
        return kept + [path for path in tmp_path.rglob("*networks")]

    monkeypatch.setattr(files, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        use(tmp_path)
    assert len(remembered()) == 3
    files.empty(tmp_path)

    def killed_behind(path, content):
        write_json(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_json", killed_behind)
    with pytest.raises(KeyboardInterrupt):
        use(tmp_path)
    assert remembered()
    use(tmp_path)  # the results are there
    used = {of_continual: "work/networks", of_transfer: "transfer.networks", of_prune: "work"}
    left = [path.name for path in tmp_path.rglob("*.partial.jsonl")]
    assert not left and not (tmp_path / used.get(use, "nothing")).exists()
