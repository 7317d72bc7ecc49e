"""Convex expert stores (MCT): what they keep, what is read of them, and what is refused."""

from dataclasses import replace

import pytest
import torch
from helpers import DIGITS, MODEL, new_model, tiny_data, tiny_env, tiny_set

from buffers import convex, store
from buffers.experts import generate
from buffers.steps import Sgd
from buffers.store import ExpertStore
from ddengine.recipe import AugmentConfig, BufferConfig
from ddengine.system.errors import UserError
from ddengine.system.rng import generator
from synth.catalogue import find
from synth.trajectory import TrajectoryMatching, UniformWindow

CONFIG = BufferConfig(step=Sgd(lr=0.3), num_experts=2, epochs=4, batch=16)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """(data, snapshots, two waypoints, three waypoints) of the same trainings."""
    data, folder = tiny_data(), tmp_path_factory.mktemp("stores")
    opened = []
    for waypoints in (0, 2, 3):
        config = replace(CONFIG, store="convex", waypoints=waypoints) if waypoints else CONFIG
        path = folder / str(waypoints)
        generate(data, DIGITS, config, MODEL, new_model(data), path)
        opened.append(ExpertStore(path, new_model(data), 2))
    return data, *opened


def test_a_store_holds_waypoints_alone_and_reads_every_epoch(stores):
    """Of two waypoints the ends are the trajectory's own; between, each tensor lies on its line."""
    data, snapshots, two, three = stores
    assert two.epochs == snapshots.epochs == (0, 1, 2, 3, 4)
    sizes = [p.numel() for p in new_model(data)(generator(0)).parameters()]
    for expert in range(2):
        points = snapshots.snapshots(expert, range(5))
        for opened, number in ((two, 2), (three, 3)):
            assert opened._slice(expert, "params").get_shape() == [number, snapshots.num_params]
            at = convex.waypoint_epochs(5, number)
            wanted = convex.convexified(points, sizes, number)
            epochs = [0, 1, 1.5, 2, 3.25, 4]
            ours = opened.snapshots(expert, epochs)
            for row, epoch in zip(ours, epochs, strict=True):
                assert torch.allclose(row, convex.point(wanted, epoch, at, sizes), atol=1e-6)
        ends = two.snapshots(expert, [0, 4])
        assert torch.equal(ends, points[[0, 4]])
    network = two.load(0, 2)
    theta = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert torch.equal(theta, two.snapshots(0, [2])[0])


def test_shares_grow_with_the_path_of_each_tensor():
    points = torch.tensor([[0.0, 0, 5], [3, 4, 5], [3, 14, 5], [3, 14, 5]]).double()
    shares = convex.path_shares(points, [2, 1])
    assert shares.tolist() == [[0, 0], [5 / 15, 0], [1, 0], [1, 0]]
    assert [convex.waypoint_epochs(n, w) for n, w in ((51, 4), (4, 4), (3, 2))] == [
        [0, 17, 34, 50], [0, 1, 2, 3], [0, 2],
    ]  # fmt: skip
    with pytest.raises(UserError, match="at most the 3 epochs"):
        convex.waypoint_epochs(3, 4)


def test_segments_start_between_epochs(stores):
    """The loss is that of the points on the lines; a store of snapshots has none there."""
    data, snapshots, two, _ = stores
    config = TrajectoryMatching(
        inner_steps=2, expert_epochs=1, window=UniformWindow(high=3), lr=0.05, fractional=True,
        augment=AugmentConfig(ops=()),
    )  # fmt: skip
    syn = tiny_set(data, lr=config.lr)
    starts = set()
    objective = config.build(tiny_env(data, two))
    for seed in range(40):
        segment = objective._segment(0, generator(seed))
        assert 0 <= segment.start <= 2
        wanted = two.snapshots(segment.expert, [segment.start, segment.start + 1])
        assert torch.equal(segment.theta, wanted[0]) and torch.equal(segment.ends[0], wanted[1])
        starts.add(segment.start)
    assert len(starts) == 40
    (loss,) = objective.losses(syn, {}, 0, generator(0))
    assert loss.isfinite()
    with pytest.raises(UserError, match="keeps no epoch"):
        next(config.build(tiny_env(data, snapshots)).losses(syn, {}, 0, generator(0)))


def test_what_does_not_go_with_a_convex_store_is_a_sentence(stores, tmp_path):
    data = stores[0]
    with pytest.raises(UserError, match=r"set buffer\.keep all"):
        replace(CONFIG, store="convex", keep="last")
    with pytest.raises(UserError, match=r"lower buffer\.waypoints"):
        replace(CONFIG, store="convex", waypoints=6)
    with pytest.raises(UserError, match=r"set buffer\.store convex"):
        replace(CONFIG, waypoints=3)
    recipe = find("mct/digits_ipc1")
    with pytest.raises(UserError, match=r"objective\.fractional False"):
        replace(recipe, buffer=find("mtt/digits_ipc1").buffer)
    assert recipe.buffer.num_snapshots() == 2 and len(recipe.buffer.kept_epochs()) == 11
    name = "convnet-d1-w4-bn"
    with pytest.raises(UserError, match="without BatchNorm"):
        generate(
            data,
            DIGITS,
            replace(CONFIG, store="convex"),
            name,
            new_model(data, name),
            tmp_path / "s",
        )
    assert not (tmp_path / "s").exists()


def test_an_interrupted_convex_store_goes_on_to_the_same_bytes(stores, tmp_path):
    """The second expert is missing, and made again as it was."""
    data, _, two, _ = stores
    config = replace(CONFIG, store="convex")
    generate(data, DIGITS, replace(config, num_experts=1), MODEL, new_model(data), tmp_path)
    generate(data, DIGITS, config, MODEL, new_model(data), tmp_path)
    again = ExpertStore(tmp_path, new_model(data), 2)
    assert again.manifest["fingerprint"] == two.manifest["fingerprint"]
    assert torch.equal(again.snapshots(1, [0.5, 3]), two.snapshots(1, [0.5, 3]))
    assert store.sizes_of(again.manifest) == store.sizes_of(two.manifest)
