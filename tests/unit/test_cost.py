"""What objectives say a step holds, and what they advise where it does not fit."""

from dataclasses import replace

import pytest
import torch
from helpers import CPU, MODEL, tiny_data, tiny_set, tiny_store

from buffers.steps import Sgd
from ddengine.learning.memory import PER_GRADIENT, PER_STEP, saved_bytes
from ddengine.models import build_model
from ddengine.objective import VECTORS, environments
from ddengine.system.rng import generator
from synth.catalogue import find
from synth.selection import NoObjective


@pytest.fixture(scope="module")
def data():
    return tiny_data()


def env_of(recipe, data, experts=None, model=MODEL):
    """The environment of a recipe on tiny images."""
    (env,) = environments(replace(recipe, model=model), data, CPU, experts)
    return env


def image_bytes(data, model=MODEL):
    """Bytes of the graphs of gradients of gradients, an image."""
    network = build_model(model, data.image_shape, data.num_classes, generator(0))
    return PER_STEP * saved_bytes(network, data.image_shape, CPU)


def vector_bytes(env):
    """Bytes of one parameter vector."""
    return 4 * env.model.num_params


def test_a_segment_holds_one_step_or_all(data):
    """In `full` the graphs of all steps, else one; a vector for every step in any case."""
    recipe, syn = find("mtt/digits_ipc1"), tiny_set(data)
    objective = replace(recipe.objective, inner_steps=5, batch=None)
    env = env_of(recipe, data)
    replay = objective.cost(env, syn)
    full = replace(objective, backprop="full").cost(env, syn)
    few = replace(objective, batch=3).cost(env, syn)
    many = replace(objective, batch=10**6).cost(env, syn)
    vectors = (3 * 5 + 10) * vector_bytes(env)
    assert replay == int(image_bytes(data) * len(syn) + vectors)
    assert full == int(5 * image_bytes(data) * len(syn) + vectors)
    assert few == int(3 * image_bytes(data) + vectors) and many == replay


def test_matching_holds_the_classes_that_are_computed_together(data):
    """And not all real images of all classes where they are computed one by one."""
    recipe, syn = find("dc/fashion_mnist_ipc1_small"), tiny_set(data)
    env, objective = env_of(recipe, data), replace(recipe.objective, real_batch=8)
    together = objective.cost(env, syn)
    alone = replace(objective, classes_at_once=1).cost(env, syn)
    larger = replace(objective, real_batch=12).cost(env, syn)
    assert alone < together < larger
    distribution = find("dm/fashion_mnist_ipc1_small")
    objective = replace(distribution.objective, real_batch=8)
    seen = PER_GRADIENT / PER_STEP * image_bytes(data) * 80
    assert objective.cost(env, syn) == int(seen + VECTORS * vector_bytes(env))


def test_statistics_hold_one_forward_pass_whatever_the_number_of_images(data, tmp_path):
    """Also exactly as many images as `images_at_once` says."""
    model = "convnet-d1-w4-bn"
    store = tiny_store(tmp_path, data, model=model, num_experts=1, epochs=1, step=Sgd(lr=0.1))
    recipe = find("sre2l/fashion_mnist_ipc10_small")
    env, objective = env_of(recipe, data, store, model), recipe.objective
    two = replace(objective, images_at_once=7).cost(env, tiny_set(data, ipc=2))
    four = replace(objective, images_at_once=7).cost(env, tiny_set(data, ipc=4))
    assert two == four == int(image_bytes(data, model) * 7 + VECTORS * vector_bytes(env))
    adjusted = replace(objective, images_at_once=7, adjust=0.1)
    assert adjusted.cost(env, tiny_set(data, ipc=4)) == four + 8 * vector_bytes(env)


def test_a_selection_has_no_step(data):
    assert NoObjective().cost(env_of(find("rded/fashion_mnist_ipc10_small"), data), None) == 0


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("mtt/digits_ipc1", {"backprop": "full"}, "set objective.backprop replay"),
        ("mtt/digits_ipc1", {"batch": 6}, "lower objective.batch (now 6)"),
        ("mtt/digits_ipc1", {"batch": None}, "lower ipc (now 3) or set objective.batch"),
        ("dm/fashion_mnist_ipc1_small", {"real_batch": 9}, "lower objective.real_batch (now 9)"),
        ("sre2l/fashion_mnist_ipc10_small", {}, "set objective.images_at_once"),
        ("rded/fashion_mnist_ipc10_small", {}, "lower ipc (now 3)"),
    ],
)
def test_what_is_advised(name, change, words):
    assert replace(find(name).objective, **change).advice(3) == words


def test_measuring_changes_no_network_of_the_environment(data):
    """The forward pass that is measured is of a network of its own."""
    recipe = find("dm/fashion_mnist_ipc1_small")
    env = env_of(recipe, data, model="convnet-d1-w4-bn")
    before = [b.clone() for b in env.model.module.buffers()]
    recipe.objective.cost(env, tiny_set(data))
    assert all(map(torch.equal, before, env.model.module.buffers()))


def test_a_pool_is_held_beside_the_graph_of_all_images(data):
    """Parameters and what the optimiser keeps, of each network; mirrored images count too."""
    recipe, syn = find("frepo/fashion_mnist_ipc1_small"), tiny_set(data)
    env = env_of(recipe, data)
    objective = replace(recipe.objective, real_batch=1)
    flipped = objective.cost(env, syn)
    plain = replace(objective, flip=False).cost(env, syn)
    assert flipped - plain == pytest.approx(image_bytes(data) * len(syn), abs=1)
    larger = replace(objective.pool, size=objective.pool.size + 1)
    added = replace(objective, pool=larger).cost(env, syn) - flipped
    assert added == pytest.approx(3 * vector_bytes(env), abs=1)
    by_sgd = find("krr_st/digits_ipc5_small").objective.pool
    assert replace(by_sgd, size=by_sgd.size + 1).vectors - by_sgd.vectors == 2
    assert f"lower ipc (now 3) or objective.pool.size (now {objective.pool.size})" == (
        objective.advice(3)
    )
