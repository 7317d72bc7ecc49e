"""Values that several programs share in a folder."""

import json
import threading

import pytest

from ddengine.system.shared import Shared

OF, FACTS = {"images": "abc", "threads": 1}, {"set": "random", "lr": 0.1}


def test_what_one_finds_out_the_others_know(tmp_path):
    Shared(tmp_path, OF).put(FACTS, {"accuracies": [0.1, 1 / 3]})
    again = Shared(tmp_path, dict(OF))
    assert again.get({"lr": 0.1, "set": "random"}) == {"accuracies": [0.1, 1 / 3]}
    assert again.get(FACTS | {"lr": 0.2}) is None
    assert Shared(tmp_path, OF | {"threads": 2}).get(FACTS) is None
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "of.json").read_text()) == OF
    assert not list(folder.glob(".writing-*"))


def test_nothing_is_shared_without_a_folder():
    shared = Shared()
    shared.put(FACTS, 1)
    assert shared.get(FACTS) is None


def test_values_are_renewed_once(tmp_path):
    Shared(tmp_path, OF).put(FACTS, "old")
    renewing = Shared(tmp_path, OF, renew=True)
    assert renewing.get(FACTS) is None
    renewing.put(FACTS, "new")
    assert renewing.get(FACTS) == "new" == Shared(tmp_path, OF).get(FACTS)


@pytest.mark.parametrize("damage", ["other value", "half", "of something else", "empty"])
def test_what_does_not_fit_is_not_believed(tmp_path, damage, capsys):
    shared = Shared(tmp_path, OF)
    shared.put(FACTS, [1, 2])
    (path,) = [p for p in tmp_path.rglob("*.json") if p.name != "of.json"]
    text = path.read_text()
    content = json.loads(text)
    if damage == "other value":
        path.write_text(json.dumps(content | {"value": [1, 3]}))
    elif damage == "of something else":
        path.write_text(json.dumps(content | {"of": FACTS | {"lr": 0.2}}))
    else:
        path.write_text(text[: len(text) // 2] if damage == "half" else "")
    assert shared.get(FACTS) is None and "is damaged" in capsys.readouterr().out
    shared.put(FACTS, [1, 2])
    assert shared.get(FACTS, list[int]) == [1, 2]
    assert shared.get(FACTS, list[str]) is None and "is damaged" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_only_no_help(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    shared = Shared(tmp_path / "file" / "below", OF)
    shared.put(FACTS, 1)
    assert "cannot be written" in capsys.readouterr().out and shared.get(FACTS) is None


def test_many_write_and_read_at_once(tmp_path):
    """Whoever writes last, what is read is whole."""
    value, wrong = list(range(5000)), []

    def work():
        shared = Shared(tmp_path, OF)
        for _ in range(20):
            shared.put(FACTS, value)
            if shared.get(FACTS) != value:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not list(tmp_path.rglob(".writing-*"))
