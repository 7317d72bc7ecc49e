"""Names of networks: what stands for them in digests, and how files of before are read."""

import json
from dataclasses import replace

import pytest

from ddengine import contents, naming
from ddengine.evaluation import tables
from ddengine.recipe import resolved
from ddengine.system.configs import digest
from synth.catalogue import find

VIT = "torchvision/vit_b_16"
R18 = "torchvision/resnet18"


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet18-bn", (32, 32), "resnet18-bn"),
        (f"{R18}-small", (32, 32), R18),
        (f"{R18}-small", (224, 224), R18),
        (f"{R18}-small", None, R18),
        (R18, (32, 32), f"{R18}, unchanged"),
        (R18, (64, 64), f"{R18}, unchanged"),
        (R18, None, f"{R18}, unchanged"),
        # the network that the name had before
        (R18, (64, 65), R18),
        ("timm/resnet18", (224, 224), "timm/resnet18"),
        # which had other patches at every size
        (VIT, (224, 224), f"{VIT}, unchanged"),
        (f"{VIT}-small", (224, 224), VIT),
    ],
)
def test_what_stands_for_a_network_in_digests(name, size, expected):
    assert naming.in_digest(name, size) == expected
    if not naming.is_large(size):
        assert naming.of_digest(expected) == name


def test_every_network_of_a_recipe_stands_in_its_digest_by_the_name_of_before():
    recipe = find("dm/fashion_mnist_ipc1_small", model=f"{R18}-small")
    evaluation = replace(recipe.evaluation, models=(f"{R18}-small", "mlp", "timm/resnet10t"))
    content = resolved(replace(recipe, evaluation=evaluation))
    assert content["model"] == R18
    assert content["evaluation"]["models"] == [R18, "mlp", "timm/resnet10t, unchanged"]
    experts = find("mtt/fashion_mnist_ipc1_small")
    experts = replace(experts, buffer=replace(experts.buffer, model=f"{R18}-small"))
    assert resolved(experts)["buffer"]["model"] == R18
    teachers = replace(find("sre2l/cifar10_ipc10"), teachers=(f"{R18}-small", "resnet18-bn"))
    assert resolved(teachers)["teachers"] == [R18, "resnet18-bn"]
    of_small, of_own = (
        digest(resolved(replace(recipe, model=model))) for model in (f"{R18}-small", R18)
    )
    assert of_small != of_own


def test_files_of_before_are_read_with_the_names_of_today(tmp_path):
    content = {
        "recipe": {
            "model": R18,
            "teachers": ["resnet18-bn", "timm/resnet10t"],
            "note": f"of {R18}",
        },
        "rows": [{"model": VIT}],
        "by": {R18: 1},
        "command": ["run.py", "distill", "--model", R18, f"--model={R18}", "torchvision/x/y"],
        "versions": {"torchvision": "0.28.0"},
        "format": 2,
    }
    expected = {
        "recipe": {
            "model": f"{R18}-small",
            "teachers": ["resnet18-bn", "timm/resnet10t-small"],
            "note": f"of {R18}",
        },
        "rows": [{"model": f"{VIT}-small"}],
        "by": {f"{R18}-small": 1},
        "command": [
            "run.py",
            "distill",
            "--model",
            f"{R18}-small",
            f"--model={R18}-small",
            "torchvision/x/y",
        ],
        "versions": {"torchvision": "0.28.0"},
        "format": 3,
    }
    assert naming.as_now(content) == expected
    assert naming.as_now(expected) == expected
    today = {"model": R18, "format": 3}
    assert naming.as_now(today) is today
    assert naming.as_now([R18]) == [R18]
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"model": R18}))
    assert contents.read_json(path, "model") == {"model": f"{R18}-small", "format": 3}


def test_people_are_told_which_network_it_is():
    assert naming.in_words("resnet18-bn") == "resnet18-bn"
    assert naming.in_words(R18) == f"{R18} (torchvision's own network, stem and all)"
    assert naming.explained("timm/resnet18-small") == (
        "timm's network with a stem for images of up to 64 pixels"
    )
    rows = [{"model": "mlp"}, {"model": R18}, {"model": R18}, {"model": f"{R18}-small"}]
    assert tables.networks_in_words(rows) == [
        f"{R18}: torchvision's own network, stem and all",
        f"{R18}-small: torchvision's network with a stem for images of up to 64 pixels",
    ]


def test_a_small_stem_on_large_images_is_warned_of():
    assert naming.warning(R18, (224, 224)) is None
    assert naming.warning(f"{R18}-small", (64, 64)) is None
    assert naming.warning(f"{VIT}-small", (224, 224)) is None
    said = naming.warning(f"{R18}-small", (96, 65))
    assert said is not None and "96x65" in said and said.endswith(f"which is {R18} there")
