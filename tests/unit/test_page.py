"""The report page: what it says, what it leaves out, that text stays text, that it loads nothing."""

import json
import re
import shutil
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_data, tiny_set
from PIL import Image

from ddengine.artefact import folder as folders
from ddengine.pages import charts, figures, page, pictures
from ddengine.system import files, log
from ddengine.system.errors import UserError

NASTY = '<b>bold</b> & "quoted" $x$'


def row(name, model="mlp", mean=0.8, **more):
    """A row as evaluate writes it."""
    accuracies = [{"seed": i, "draw": 0, "accuracy": mean + 0.01 * (i - 1)} for i in range(3)]
    plain = {
        "set": name,
        "model": model,
        "images": 20,
        "bytes": 1444,
        "accuracy_mean": mean,
        "accuracy_std": 0.01,
        "ci95": [mean - 0.025, mean + 0.025],
    }
    return (
        plain | {"n": 3, "lr": 0.01, "steps": 30, "seconds": 1.5, "accuracies": accuracies} | more
    )


def evaluation(rows, **more):
    """As evaluate writes it."""
    return {
        "protocol": {"protocol": "fast", "epochs": 5, "models": ["mlp"]},
        "rows": rows,
        "raw_bytes": 11520,
        "seed": 0,
        "seconds": 9.0,
    } | more


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder of a run; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("page") / "alpha"
    (folder / "progress").mkdir(parents=True)
    data = tiny_data()
    syn = tiny_set(data, ipc=2, lr=0.02)
    recipe = {
        "name": "dm/tiny", "note": "A note.", "published": None, "data": {"name": "digits", "root": "/secret/place", "limit": 200, "validation": 0.1},
        "model": "mlp", "ipc": 2, "outer": {"steps": 40, "max_loss": "inf"},
    }  # fmt: skip
    facts = {
        "seed": 3,
        "precision": "fp32",
        "raw_bytes": 11520,
        "dataset_bytes": 115008,
        "commit": "abcdef123456",
    }
    cost = {
        "distillation": {"seconds": 130.0, "peak_memory_bytes": 123_000_000},
        "machine": {"device": "CPU toy", "cores": 2},
        "versions": {"torch": "9.9"},
    }
    folders.save(syn, folder / "distilled", {"recipe": recipe, **facts, **cost})
    files.write_json(folder / "recipe.json", {"recipe": recipe, "seed": 3})
    for step in (0, 20, 40):
        figures.grid(folder / "progress" / f"step_{step:06d}.png", syn)
    events = [
        {
            "step": s,
            "loss": 1 / s,
            "lr": 0.02,
            **({"validation_accuracy": 0.5} if s % 20 == 0 else {}),
        }
        for s in range(1, 41)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    figures.save_samples(folder / "samples.safetensors", data.train)
    files.write_json(
        folder / "evaluation.json", evaluation([row("distilled"), row("random", mean=0.6)])
    )
    return folder


@pytest.fixture(scope="session")
def whole(made) -> str:
    """The page of the run as it is."""
    return html(made)


@pytest.fixture(scope="session")
def twice(made) -> str:
    """The page of the run beside itself."""
    return html(made, made)


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of its own."""
    return Path(shutil.copytree(made, tmp_path / "alpha"))


def html(*folders: Path) -> str:
    """The page of these runs."""
    return page.write(folders, folders[0].parent / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Text without styles and scripts, tags, ids, whatever would be loaded, and unclosed elements."""

    VOID = ("meta", "link", "img", "input", "br", "hr")

    def __init__(self, content: str):
        super().__init__()
        self.words, self.ids, self.loads, self.tags, self.open = [], [], [], [], []
        self.feed(content)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open += [] if tag in self.VOID else [tag]
        for key, value in attrs:
            self.ids += [value] if key == "id" else []
            self.loads += (
                [value] if key in ("src", "href", "xlink:href", "srcset", "action", "data") else []
            )

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-5:])
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)


def test_page_says_what_was_done(made, whole):
    """Facts, table, bytes, time, curves, images, commands; well-formed, without a path of the
    machine.
    """
    content, reader = whole, Reader(whole)
    assert not reader.open
    for words in (
        "Distillation report: alpha", "dm/tiny", "A note.", "digits, limit 200, validation 0.1", "CPU toy, 2 cores", "torch 9.9", "abcdef123456",
        "77.5 to 82.5", "Outer steps of the distillation 2 min", "Peak memory of the distillation 123 MB", "Distilled is not anonymous",
        "last iterate", "on a validation split", "looked at once a network", "python run.py distill dm/tiny", "--seed 3",
        "python run.py evaluate runs/alpha --protocol fast --models mlp", "Loss of the distillation", "Learned learning rate", "Validation accuracy",
    ):  # fmt: skip
        assert words in reader.text, words
    assert content.count("Distilled is not anonymous") == 1
    assert "/secret" not in content and str(made.parent) not in content
    total = sum(
        v
        for k, v in json.loads((made / "distilled/meta.json").read_text())["bytes"].items()
        if k == "total"
    )
    assert f"In all {log.size(total)} {100 * total / 11520:.3g} %" in reader.text
    assert content.count("real images of class") == content.count("distilled images of class") == 10
    assert (
        'aria-label="10 real images of class 7"' in content
        and 'aria-label="2 distilled images of class 7"' in content
    )
    assert content.count("data-step=") == 3 and reader.tags.count("svg") == 4
    assert (
        json.loads(
            re.search(r'id="run1-json"[^>]*>(.*?)</pre>', content, re.DOTALL)[1].replace(
                "&#34;", '"'
            )
        )["ipc"]
        == 2
    )


def test_nothing_is_loaded_and_ids_are_unique(twice):
    """Pictures are in the page; links lead within it; several figures do not share ids."""
    content, reader = twice, Reader(twice)
    assert reader.loads and all(v.startswith(("data:", "#")) for v in reader.loads), [
        v[:80] for v in reader.loads
    ]
    assert "http://" not in content and "https://" not in content and "@import" not in content
    assert not re.search(r"url\((?!#)", content)
    assert len(set(reader.ids)) == len(reader.ids)
    wanted = {v[1:] for v in reader.loads if v.startswith("#")} | set(
        re.findall(r"url\(#([^)]*)\)", content)
    )
    assert wanted <= set(reader.ids)
    assert "#010" not in content and "currentColor" in content and "var(--c0)" in content


def test_real_and_distilled_pixels_are_right(whole):
    """The picture of a class is the first image of it, real and distilled, to the bit."""
    import base64
    import io

    rows = re.findall(
        r'aria-label="\d+ (real|distilled) images of class 4">(.*?)</div>', whole, re.DOTALL
    )
    shown = {
        kind: [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(b))))
            for b in re.findall(r"base64,([^\"]*)", part)
        ]
        for kind, part in rows
    }
    data = tiny_data()
    assert np.array_equal(shown["real"][0], data.train.pixels[data.train.members[4][0], 0].numpy())
    syn = tiny_set(data, ipc=2)
    expected = (syn.pixels(torch.tensor([8, 9])).clamp(0, 1) * 255).round().byte()[:, 0].numpy()
    assert np.array_equal(np.stack(shown["distilled"]), expected)


def privacy(note="", score="distance, pixels"):
    """privacy.json as far as a page shows it."""
    attack = {
        "score": score,
        "auc": 0.532,
        "ci95": [0.48, 0.58],
        "tpr_at_1_fpr": 0.01,
        "control": None,
    }
    return {
        "images": 10,
        "train": 90,
        "held_out": 20,
        "near_copy_rms": 0.02,
        "neighbours": {},
        "membership": [attack],
        "note": note,
    }


def test_user_text_is_text(folder):
    """Class names, names of sets, notes and recipes are shown as they are, never as markup."""
    meta = json.loads((folder / "distilled/meta.json").read_text())
    meta["class_names"][4] = NASTY
    meta["recipe"] |= {"note": "<script>alert(1)</script>", "name": "dm/<i>tiny</i>"}
    files.write_json(folder / "distilled/meta.json", meta)
    files.write_json(
        folder / "evaluation.json",
        evaluation([row(NASTY), row("</text><script>alert(2)</script>", model="<u>net</u>")]),
    )
    files.write_json(folder / "privacy.json", privacy(note=NASTY, score="</td><b>x</b>"))
    content = html(folder)
    reader = Reader(content)
    assert (
        not {"b", "i", "u"} & set(reader.tags)
        and reader.tags.count("script") == 1
        and not reader.open
    )
    for words in (
        NASTY,
        "<script>alert(1)</script>",
        "dm/<i>tiny</i>",
        "</text><script>alert(2)</script>",
        "<u>net</u>",
    ):
        assert words in reader.text


@pytest.mark.parametrize(
    ("removed", "gone"),
    [
        ("metrics.jsonl", ["Loss of the distillation", "Learned learning rate"]),
        ("progress", ["Evolution of the images"]),
        ("evaluation.json", ["Accuracy beside baselines", "run.py evaluate"]),
        ("samples.safetensors", ["real images of class"]),
        ("distilled", ["distilled images of class", "What is stored"]),
        ("recipe.json", []),
    ],
)
def test_missing_parts_are_left_out(folder, whole, removed, gone):
    """Whatever is missing has no heading and no made-up number, and the rest is there."""
    path = folder / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    content = html(folder)
    for words in gone:
        assert words in whole and words not in content, words
    assert "Distillation report: alpha" in content and "dm/tiny" in content


def test_bare_distilled_folder_and_folder_of_an_evaluation(folder, tmp_path):
    """Both make a page."""
    content = html(folder / "distilled")
    assert "distilled images of class 3" in content and "Accuracy beside baselines" not in content
    (tmp_path / "only").mkdir()
    shutil.copy(folder / "evaluation.json", tmp_path / "only")
    text = Reader(html(tmp_path / "only")).text
    assert (
        "77.5 to 82.5" in text
        and "Curves" not in text
        and "Seed 0" in text
        and "run.py distill" not in text
    )


def test_unfinished_run_says_so(folder):
    """Curves and pictures so far."""
    shutil.rmtree(folder / "distilled")
    (folder / "evaluation.json").unlink()
    (folder / "metrics.jsonl").write_bytes(
        (folder / "metrics.jsonl").read_bytes() + b'{"step": 41, "lo'
    )
    text = Reader(html(folder)).text
    assert (
        "not finished" in text
        and "Loss of the distillation" in text
        and "Evolution of the images" in text
    )


def test_several_runs(folder, tmp_path):
    """A table on top, curves in one figure, a heat map of all sets and networks, a section each,
    a table of settings over seeds.
    """
    other = Path(shutil.copytree(folder, tmp_path / "beta"))
    meta = json.loads((other / "distilled/meta.json").read_text())
    files.write_json(other / "distilled/meta.json", meta | {"seed": 4})
    files.write_json(
        other / "evaluation.json", evaluation([row("distilled", mean=0.7), row("random", mean=0.6)])
    )
    content = html(folder, other)
    reader = Reader(content)
    assert (
        "2 runs" in reader.text
        and '<section id="run2"' in content
        and '<section id="run3"' not in content
    )
    first, second = re.findall(
        r"<tr><th scope=\"row\">(?:alpha|beta)</th>(.*?)</tr>",
        content[: content.index('id="run1"')],
    )
    assert (
        "80.0" in first
        and "70.0" in second
        and "2 min" in first
        and "<td>3</td>" in first
        and "<td>4</td>" in second
    )
    assert "alpha: distilled" in reader.text and "beta: random" in reader.text
    overlaid = re.search(r"<figure class=\"plot\">(.*?)</figure>", content, re.DOTALL)[1]
    assert "var(--c0)" in overlaid and "var(--c1)" in overlaid
    body = re.search(r"Settings over distillations.*?<tbody>(.*?)</tbody>", content, re.DOTALL)[1]
    mean, _, between, within, number = re.findall(r"<td[^>]*>(.*?)</td>", body)
    # sqrt(0.015 / 3), the networks move together
    assert [mean, between, within, number] == ["75.0", "7.07", "1.00", "2"]
    assert "row 1: alpha, beta" in reader.text
    files.write_json(other / "distilled/meta.json", meta)  # the same seed is no other distillation
    assert "Settings over" not in html(folder, other)


def test_equal_names_are_told_apart(made, twice):
    """By their parents, else by a number."""
    parent = made.parent.name
    assert f"{parent}/alpha (1)" in twice and f"{parent}/alpha (2)" in twice


def test_heat_map_of_networks(folder):
    """Each set on each network, numbers written on colours they can be read on; nothing is made up
    where a number is missing.
    """
    rows = [row("distilled", m, a) for m, a in (("mlp", 0.1), ("lenet", 0.55), ("vgg11", 0.99))] + [
        row("random", "mlp", 0.4)
    ]
    files.write_json(folder / "evaluation.json", evaluation(rows))
    table = re.search(r"<table class=\"heat\">(.*?)</table>", html(folder), re.DOTALL)[1]
    cells = re.findall(r'style="background:(#\w+);color:(#\w+)">([\d.]+)<', table)
    assert [c[2] for c in cells] == ["10.0", "55.0", "99.0", "40.0"] and table.count(
        'class="none"'
    ) == 2

    def light(colour):
        parts = (
            [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            if len(colour) == 7
            else [int(colour[1], 16) / 15] * 3
        )
        return sum(
            w * (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4)
            for w, p in zip((0.2126, 0.7152, 0.0722), parts, strict=True)
        )

    for back, ink, _ in cells:
        low, high = sorted((light(back), light(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5
    assert len({c[0] for c in cells}) == 4


def test_compute_and_optional_files(folder):
    """Columns for what rows may have; scores, ranking, privacy with its picture."""
    files.write_json(
        folder / "evaluation.json",
        evaluation([row("distilled", training_flops=2.5e9, examples_seen=600)]),
    )
    score = {"mean": 0.512, "std": 0.01, "ci95": [0.4, 0.6], "n": 5}
    both = {"label_robust_score": score, "hard_label_recovery": {"mean": None}}
    files.write_json(folder / "scores.json", {"scores": [{"model": "mlp", "scores": both}]})
    tau = {
        "set": "distilled",
        "kendall": 0.61,
        "kendall_ci95": [0.2, 0.9],
        "spearman": 0.7,
        "spearman_ci95": None,
    }
    files.write_json(folder / "ranking.json", {"sets": [tau], "note": "Few networks."})
    files.write_json(folder / "privacy.json", privacy(note="Proves nothing."))
    figures.grid(folder / "privacy.png", tiny_set(tiny_data()))
    text = Reader(content := html(folder)).text
    for words in (
        "Training FLOP",
        "2.5 G",
        "7.5 GFLOP",
        "Label-robust score 0.512 0.400 to 0.600 5",
        "Scores on mlp",
        "Hard-label recovery none",
    ):
        assert words in text, words
    for words in (
        "Few networks.",
        "distilled 0.610 0.200 to 0.900 0.700 \N{EN DASH}",
        "Proves nothing.",
        "10 distilled images beside 90 training and 20 held-out ones",
        "AUC, distance, pixels 0.53 (0.48 to 0.58) - 0.50",
        "The picture of the privacy check.",
    ):
        assert words in text, words
    assert (
        "Training FLOP" not in Reader(html(folder / "distilled")).text
        and content.count('<img src="data:image/png') == 1
    )


def test_many_steps_stay_small(folder):
    """200 pictures and 50 000 steps: a page that a browser opens, with the first and the last of
    both.
    """
    shutil.rmtree(folder / "progress")
    (folder / "progress").mkdir()
    noise = np.random.default_rng(0)
    for step in range(0, 2000, 10):
        Image.fromarray(noise.integers(0, 256, (124, 124, 3), dtype=np.uint8)).save(
            folder / f"progress/step_{step:06d}.png"
        )
    lines = "".join(
        f'{{"step": {s}, "loss": {0.5 + noise.random()}, "lr": NaN}}\n' for s in range(1, 50_001)
    )
    (folder / "metrics.jsonl").write_text(lines)
    content = html(folder)
    steps = [int(s) for s in re.findall(r'data-step="(\d+)"', content)]
    assert (
        steps[0] == 0
        and steps[-1] == 1990
        and 2 <= len(steps) <= pictures.FRAMES
        and steps == sorted(steps)
    )
    assert f"The set at {len(steps)} of 200 moments" in Reader(content).text
    assert len(content) < 2_000_000 and "smallest and largest" in content


def test_thinned_curves_keep_extremes():
    """Ends, smallest and largest value stay; values that are not finite go; short curves are kept
    whole.
    """
    steps, values = list(range(10_000)), [float(i % 7) for i in range(10_000)]
    values[1234], values[4321], values[5000] = 99.0, -99.0, float("nan")
    kept_steps, kept = charts.thinned(steps, values)
    assert len(kept) <= 2 * charts.BINS + 2 and kept_steps[0] == 0 and kept_steps[-1] == 9999
    assert (
        kept[kept_steps.index(1234)] == 99.0
        and kept[kept_steps.index(4321)] == -99.0
        and kept_steps == sorted(kept_steps)
    )
    assert charts.thinned([1, 2, 3], [1.0, float("inf"), 3.0]) == ([1, 3], [1.0, 3.0])


def test_no_file_but_a_picture_travels_with_the_page(folder, tmp_path, capsys):
    """A run of a stranger may have a link to anything, and pages are given away."""
    secret = tmp_path / "secret"
    secret.write_text("of nobody else's business")
    drawn = sorted((folder / "progress").glob("*.png"))[0]
    shutil.copy(drawn, folder / "real_vs_distilled.png")
    for path in (folder / "real_vs_distilled.png", secret):
        assert bool(pictures.picture_of(path)) == (path != secret)
    (folder / "real_vs_distilled.png").unlink()
    (folder / "real_vs_distilled.png").symlink_to(secret)
    assert pictures.picture_of(folder / "real_vs_distilled.png") == ""
    assert "is no picture, so the page leaves it out" in capsys.readouterr().out


def test_a_picture_of_more_than_memory_is_refused(folder):
    """By its header, which claims 60,000 x 60,000 pixels."""
    path = sorted((folder / "progress").glob("*.png"))[0]
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no picture"):
        html(folder)


def test_progress_loses_only_its_enlargement(folder, made):
    """A frame is the picture of the run at the images' own size."""
    frame, width = pictures._frame(made / "progress/step_000020.png", (8, 8))
    import io

    small = np.asarray(Image.open(io.BytesIO(frame)))
    large = np.asarray(Image.open(made / "progress/step_000020.png").convert("L"))
    assert width == large.shape[1] == 662 and small.shape == (17, 89)
    assert np.array_equal(small[:8, 9:17], large[2:66:8, 68:132:8]) and np.array_equal(
        small[9:, :8], large[68:132:8, 2:66:8]
    )


@pytest.mark.parametrize("classes", [1, 20, 25])
def test_numbers_of_classes(folder, classes):
    """One to twenty are shown, and how many more there are is said."""
    from ddengine.sets.codec import Identity
    from ddengine.sets.synthetic import SyntheticSet

    base = tiny_set(tiny_data())
    images = torch.randn(classes, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    names = tuple(f"kind-{i}" for i in range(classes))
    syn = SyntheticSet(
        {"images": images}, torch.arange(classes), names, Identity(), base.preprocess
    )
    folders.save(syn, folder / "distilled", {})
    figures.save_samples(folder / "samples.safetensors", tiny_data().train)
    content = html(folder)
    assert content.count("distilled images of class kind-") == min(classes, 20)
    assert ("and 5 more classes" in content) == (classes == 25) and (
        "20 of 25 classes" in content
    ) == (classes == 25)


def test_samples_are_the_first_training_images(tmp_path):
    """Ten of each class, fewer where it has fewer."""
    real = tiny_data().train
    figures.save_samples(tmp_path / "samples.safetensors", real)
    tensors, _ = files.read_tensors(tmp_path / "samples.safetensors")
    index = torch.cat([m[:10] for m in real.members])
    assert tensors["pixels"].dtype == torch.uint8 and torch.equal(
        tensors["pixels"], real.pixels[index]
    )
    assert torch.equal(tensors["labels"], real.labels[index])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("evaluation.json", "{", "cannot be read"),
        ("evaluation.json", '{"rows": [{"set": "distilled"}]}', "evaluate again"),
        ("evaluation.json", "[1]", "must be an object"),
        ("recipe.json", "no json", "cannot be read"),
        ("scores.json", "3", "must be an object"),
        ("privacy.json", "{}", "it lacks held_out"),
        ("distilled/meta.json", "{", "cannot be read"),
        ("distilled/data.safetensors", "short", "is damaged"),
        ("samples.safetensors", "short", "is damaged"),
        ("progress/step_000020.png", "no picture", "is no picture"),
    ],
)
def test_damaged_files_are_one_sentence(folder, name, content, words):
    """Naming the file; no page is written."""
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        page.write([folder], folder.parent / "report.html")
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder.parent / "report.html").exists()


def test_paths_that_are_no_runs(tmp_path):
    """A missing folder, a file, an empty folder, nothing at all, and an output that is a folder."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for path, words in (
        ("missing", "check the path"),
        ("file", "check the path"),
        ("empty", "neither a run"),
    ):
        with pytest.raises(UserError, match=words):
            page.write([tmp_path / path], tmp_path / "report.html")
    with pytest.raises(UserError, match="needs a run"):
        page.write([], tmp_path / "report.html")
    with pytest.raises(UserError, match="is a folder"):
        page.write([tmp_path / "empty"], tmp_path)


def change_meta(folder: Path, recipe=None, **facts) -> None:
    """Let the set of a run say something else."""
    path = folder / "distilled/meta.json"
    meta = json.loads(path.read_text()) | facts
    meta["recipe"] |= recipe or {}
    files.write_json(path, meta)


def test_parts_taken_come_from_the_recipe(folder):
    """What was taken is flags of the command; the prose of an older run is shown and not parsed."""
    change_meta(folder, {"taken": ["codec=dc/other", "init=mtt/other"]})
    text = Reader(html(folder)).text
    assert "distill dm/tiny --take codec=dc/other --take init=mtt/other --data.name digits" in text
    note = "dm/tiny with parts of others (codec=dc/other), for which nothing is published."
    change_meta(folder, {"taken": [], "note": note})
    text = Reader(html(folder)).text
    assert note in text and "--take" not in text


def test_command_of_an_imported_set(folder):
    """Neither flags that import does not know nor their values."""
    change_meta(folder, imported={"files": ["images.pt"]})
    text = Reader(html(folder)).text
    assert (
        "import dm/tiny --data.name digits --data.limit 200 --model mlp --ipc 2 --files FILES"
        in text
    )


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        (["python", "run.py"], "python run.py buffer dm/tiny --ipc 2"),
        (["ddengine"], "ddengine buffer dm/tiny --ipc 2"),
        (["python", "-m", "ddengine"], "python -m ddengine buffer dm/tiny --ipc 2"),
    ],
)
def test_commands_begin_as_the_program_was_called(folder, program, shown):
    """With each of its three names, the experts are made before the set by the same program."""
    words = [*program, "distill", "dm/tiny", "--ipc", "2"]
    files.write_json(folder / "recipe.json", settings(folder) | {"command": words})
    change_meta(folder, experts={"seconds": 1.0})
    text = Reader(html(folder)).text
    assert shown in text
    assert shown.replace("buffer", "distill") in text


def settings(folder: Path) -> dict:
    """What the run was begun with."""
    path = folder / "recipe.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def test_an_evaluation_from_python_has_no_command_to_show(folder):
    """Its commands are made of its facts; a name without a command is none, as older files have."""
    path = folder / "evaluation.json"
    for command in ({}, {"command": ["python", "run.py"]}):
        content = json.loads(path.read_text())
        content.pop("command", None)
        files.write_json(path, content | command)
        assert f"python run.py evaluate runs/{folder.name}" in Reader(html(folder)).text
