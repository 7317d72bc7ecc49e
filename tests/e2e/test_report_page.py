"""The report page of real runs in a browser: no errors, nothing loaded, keyboard, telephone, dark,
print.
"""

import json
import shutil
from pathlib import Path

import pytest
from helpers import TINY, run, tiny_data

from ddengine.pages import figures, page
from ddengine.system import files

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path")
RECIPE = "mtt/digits_ipc1"
QUICK = [
    "--epochs",
    "3",
    "--num_networks",
    "3",
    "--lr_grid",
    "0.01",
    "--full_steps",
    "3",
    "--baselines",
    "random",
    "full",
]


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> Path:
    """A folder with one.html, of a real run, and two.html, of that and of another seed; class names
    as bad as they come.
    """
    where = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        assert run("buffer", RECIPE, *TINY, "--out", "experts") == 0
        flags = [
            "--outer.picture_every",
            "4",
            "--outer.evaluate_every",
            "4",
            "--evaluation.epochs",
            "3",
        ]
        assert (
            run("distill", RECIPE, *TINY, *flags, "--experts", "experts", "--out", "runs/run-0")
            == 0
        )
        assert run("evaluate", "runs/run-0", *QUICK, "--models", "convnet-d1-w4-in", "mlp") == 0
        figures.save_samples(Path("runs/run-0/samples.safetensors"), tiny_data().train)
        second = Path(shutil.copytree("runs/run-0", "runs/run-1"))  # stands for another seed
        meta = files.read_json(second / "distilled/meta.json") | {"seed": 1}
        files.write_json(second / "distilled/meta.json", meta)
        evaluation = files.read_json(second / "evaluation.json")
        for row in evaluation["rows"]:
            row["accuracy_mean"] += 0.1
            for entry in row["accuracies"]:
                entry["accuracy"] += 0.1
        files.write_json(second / "evaluation.json", evaluation)
        page.write([Path("runs/run-0")], Path("one.html"))
        page.write([Path("runs/run-0"), Path("runs/run-1")], Path("two.html"))
        named = Path(
            shutil.copytree(
                "runs/run-0", "runs/an-awfully-long-name-of-a-run-" + 5 * "without-end-"
            )
        )
        meta = files.read_json(named / "distilled/meta.json")
        meta["class_names"][:2] = ["<img src=x onerror=alert(1)>", "w" * 90]
        files.write_json(named / "distilled/meta.json", meta)
        page.write([named, Path("runs/run-1")], Path("long.html"))
    return where


@pytest.fixture(scope="session")
def browser():
    """A chromium for the whole file."""
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def show(browser, pages):
    """Opens a page; at the end of the test nothing may have gone wrong or been asked of a network."""
    wrong, contexts = [], []

    def opened(name, width=1280, height=900, scheme="light", **more):
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **more
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on(
            "console",
            lambda message: (
                wrong.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))
        tab.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:")) else wrong.append(request.url)
            ),
        )
        tab.goto((pages / name).as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def visible(tab):
    """Steps of the pictures that are shown."""
    return tab.eval_on_selector_all(
        ".evolution img", "all => all.filter(i => i.offsetWidth > 0).map(i => i.dataset.step)"
    )


def test_slider_moves_by_keyboard(show):
    """Tab reaches it; the arrow keys change the picture, its label and what is read aloud."""
    tab = show("one.html")
    for _ in range(30):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.type") == "range":
            break
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
        "Step of the distillation"
    )
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert visible(tab) == ["0"] and tab.inner_text("output") == "step 0"
    tab.keyboard.press("ArrowRight")
    assert visible(tab) == ["4"] and tab.inner_text("output") == "step 4"
    assert tab.get_attribute("input[type=range]", "aria-valuetext") == "step 4"
    tab.keyboard.press("End")
    assert visible(tab) == ["8"]
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowLeft")
    assert visible(tab) == ["4"]


def test_skip_link_comes_first(show):
    """It is hidden until it has the focus, and leads to the content."""
    tab = show("two.html")
    place = "document.querySelector('.skip').getBoundingClientRect().bottom"
    assert tab.evaluate(place) <= 0
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip" and tab.evaluate(place) > 0
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"


def test_light_and_dark(show):
    """Both have a ground and letters of their own; lines of figures follow."""
    looks = []
    for scheme in ("light", "dark"):
        tab = show("two.html", scheme=scheme)
        colours = "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
        line = tab.eval_on_selector_all(
            ".plot svg path[style*='--c0']", "all => getComputedStyle(all[0]).stroke"
        )
        letters = tab.eval_on_selector(".plot svg text", "e => getComputedStyle(e).fill")
        looks.append([*tab.eval_on_selector("body", colours), line, letters])
        assert letters == looks[-1][1]  # the ink of the page
        assert tab.locator("table.heat").first.is_visible()
    assert all(light != dark for light, dark in zip(*looks, strict=True))


@pytest.mark.parametrize("name", ["one.html", "two.html", "long.html"])
@pytest.mark.parametrize("width", [360, 768])
def test_page_does_not_scroll_sideways(show, name, width):
    """On a telephone wide tables scroll in a part of their own, which the keyboard reaches; with
    all details open too.
    """
    tab = show(name, width=width, height=740)
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert tab.evaluate(fits)
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert tab.evaluate(fits)
    tab.wait_for_function(
        "[...document.querySelectorAll('.scroll')].every(s => s.scrollWidth <= s.clientWidth || "
        "s.tabIndex === 0)"
    )
    if width == 360:
        assert tab.evaluate(
            "[...document.querySelectorAll('.scroll')].some(s => s.scrollWidth > s.clientWidth)"
        )


def test_print(show):
    """White also where the screen is dark; the last picture of the evolution; no controls; details
    are opened.
    """
    tab = show("one.html", scheme="dark")
    tab.emulate_media(media="print")
    assert (
        tab.eval_on_selector("body", "e => getComputedStyle(e).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    assert visible(tab) == ["8"]
    assert (
        not tab.locator("input[type=range]").is_visible()
        and not tab.locator("button").first.is_visible()
    )
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("[...document.querySelectorAll('details')].every(d => d.open)")
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not tab.evaluate("[...document.querySelectorAll('details')].some(d => d.open)")
    assert tab.pdf()[:4] == b"%PDF"


def test_content_of_real_runs(show):
    """Pictures have loaded; numbers are those of the evaluation; two seeds have their variance
    split; markup in names is text.
    """
    tab = show("two.html")
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    pixelated = tab.eval_on_selector(
        ".strip img", "e => [getComputedStyle(e).imageRendering, e.offsetWidth, e.naturalWidth]"
    )
    assert pixelated == ["pixelated", 56, 8]
    rows = json.loads(
        (Path(tab.url.removeprefix("file://")).parent / "runs/run-1/evaluation.json").read_text()
    )["rows"]
    own = tab.inner_text("#run2 tr.own")
    assert f"{100 * rows[0]['accuracy_mean']:.1f}" in own
    assert (
        tab.locator("#run1 table.heat td[style]").count() == 6
        and tab.locator("#compared table.heat td[style]").count() == 12
    )
    assert "row 1: run-0, run-1" in tab.inner_text("#compared")  # one setting, two distillations
    tab = show("long.html")
    assert tab.locator("strong", has_text="<img src=x onerror=alert(1)>").is_visible()


def test_without_scripts_everything_is_shown(show):
    """All pictures in a row, no slider that does nothing."""
    tab = show("one.html", java_script_enabled=False)
    assert not tab.locator("input[type=range]").is_visible()
    assert tab.locator(".evolution img:visible").count() == 3
