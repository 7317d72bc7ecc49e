"""The example of graphs: codes of computation trees, mined sets, and what training on them is."""

import itertools
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import networkx as nx
import pytest
import torch

from ddengine import UserError
from ddengine.commands import cli

pytest.importorskip("mlxtend")
Chem = pytest.importorskip("rdkit.Chem")
EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "graphs" / "mirage.py"
sys.path.append(str(EXAMPLE.parent))
import mirage  # noqa: E402

SMALL = mirage.Options(depth=2, width=8, updates=3, batch=4, seeds=2)
SDF = {"CCO": "a", "CCN": "b", "CC(=O)O": "a", "c1ccccc1N": "b", "CCCO": "a", "CNC": "b"}


def some_graph(rng, num=7, labels="ab", edges="-="):
    graph = nx.gnp_random_graph(num, 0.35, seed=rng)
    for node in graph:
        graph.nodes[node]["label"] = rng.choice(labels)
    for one, other in graph.edges:
        graph.edges[one, other]["label"] = rng.choice(edges)
    return graph


def some_graphs(num=12, seed=0):
    rng = Random(seed)
    graphs = [some_graph(rng, rng.randint(2, 8)) for _ in range(num)]
    return mirage.Graphs(graphs, [i % 3 for i in range(num)], ["x", "y", "z"])


def relabelled(graph, rng):
    """The same graph with its nodes and edges in another order, and the new name of each node."""
    names = dict(zip(graph, rng.sample(range(100, 200), len(graph)), strict=True))
    other = nx.Graph()
    nodes = [(names[node], attributes) for node, attributes in graph.nodes(data=True)]
    edges = [(names[a], names[b], attributes) for a, b, attributes in graph.edges(data=True)]
    other.add_nodes_from(rng.sample(nodes, len(nodes)))
    other.add_edges_from(rng.sample(edges, len(edges)))
    return other, names


def unrolled(graph, root, depth):
    """The computation tree as a graph of its own, whose root is marked."""
    tree = nx.Graph()
    tree.add_node(0, label=(graph.nodes[root]["label"], "root"))
    todo = [(0, root, depth)]
    while todo:
        parent, node, hops = todo.pop()
        for other in graph[node] if hops else ():
            child = len(tree)
            tree.add_node(child, label=(graph.nodes[other]["label"], "below"))
            tree.add_edge(parent, child, label=graph.edges[node, other]["label"])
            todo.append((child, other, hops - 1))
    return tree


def same(one, other):
    def equal(a, b):
        return a["label"] == b["label"]

    return nx.is_isomorphic(one, other, node_match=equal, edge_match=equal)


# Codes.


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_codes_do_not_depend_on_names_and_order(depth):
    rng = Random(depth)
    for _ in range(40):
        graph = some_graph(rng)
        other, names = relabelled(graph, rng)
        code = dict(zip(graph, mirage.codes(graph, depth), strict=True))
        its_code = dict(zip(other, mirage.codes(other, depth), strict=True))
        assert {names[node]: text for node, text in code.items()} == its_code


def test_trees_have_one_code_exactly_if_they_are_isomorphic():
    rng, seen = Random(0), Counter()
    for _ in range(120):
        graph = some_graph(rng, 6, labels="aaaab", edges="-")
        depth = rng.randint(1, 3)
        one, other = rng.sample(list(graph), 2)
        code = mirage.codes(graph, depth)
        equal = same(unrolled(graph, one, depth), unrolled(graph, other, depth))
        assert (code[one] == code[other]) == equal
        seen[equal] += 1
    assert min(seen.values()) > 10 and len(seen) == 2


def test_an_edge_label_tells_trees_apart():
    graph = nx.path_graph(3)
    nx.set_node_attributes(graph, "a", "label")
    graph.edges[0, 1]["label"], graph.edges[1, 2]["label"] = "-", "="
    first, _, last = mirage.codes(graph, 1)
    assert first != last


def test_graphs_that_no_such_network_tells_apart_have_the_same_trees():
    """A ring of six and two rings of three: what the codes do not promise."""
    ring, rings = nx.cycle_graph(6), nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3))
    for graph in (ring, rings):
        nx.set_node_attributes(graph, "c", "label")
        nx.set_edge_attributes(graph, "-", "label")
    assert not nx.is_isomorphic(ring, rings)
    assert Counter(mirage.codes(ring, 4)) == Counter(mirage.codes(rings, 4))


# Mining.


def by_trying(transactions, least, longest):
    """All frequent sets, by trying each set of items."""
    items = sorted(set().union(*transactions))
    found = {}
    for length in range(1, longest + 1):
        for chosen in map(frozenset, itertools.combinations(items, length)):
            count = sum(chosen <= transaction for transaction in transactions)
            if count >= least:
                found[chosen] = count
    return found


@pytest.mark.parametrize(("least", "longest"), [(1, 2), (2, 3), (4, 6), (7, 6)])
def test_mined_sets_are_those_of_trying_all(least, longest):
    rng = Random(least)
    for num in (1, 9, 14):
        items = [(letter, ()) for letter in "abcdef"]
        transactions = [
            frozenset(rng.sample(items, rng.randint(1, len(items)))) for _ in range(num)
        ]
        mined = mirage.frequent(transactions, least, longest, 10**6)
        assert mined == by_trying(transactions, least, longest)
        assert bool(mined) == (least <= max(Counter(itertools.chain(*transactions)).values()))


def test_a_set_in_exactly_so_many_graphs_is_mined():
    """Where the share times the number of graphs is rounded up, too."""
    pair, other = frozenset({("a", ()), ("b", ())}), frozenset({("c", ())})
    for num, least in ((25, 7), (100, 7), (100, 14), (100, 29), (114, 57)):
        transactions = [pair] * least + [other] * (num - least)
        assert mirage.frequent(transactions, least, 2, 10)[pair] == least


def test_too_many_sets_are_refused_before_they_are_mined():
    transactions = [frozenset((str(i), ()) for i in range(40))] * 3
    assert len(mirage.frequent(transactions, 3, 2, 820)) == 40 + 780
    with pytest.raises(UserError, match=r"820 sets of 2 trees in 3 .*--longest to 1"):
        mirage.frequent(transactions, 3, 40, 819)


def test_the_motif_is_what_all_graphs_of_a_class_share():
    """Two hops see, of the nodes far from where it hangs, nothing but the motif."""
    data = mirage.generated(60, seed=3)
    sets = mirage.distilled(data, 1.0, replace(SMALL, depth=2))
    cycle, house = nx.cycle_graph(5), nx.house_graph()
    expected = set()
    for label, (motif, inside) in enumerate([(cycle, [2]), (house, [3, 4])]):
        nx.set_node_attributes(motif, "c", "label")
        nx.set_edge_attributes(motif, "-", "label")
        code = mirage.codes(motif, 2)
        far = [code[node] for node in inside]
        for length in range(1, len(far) + 1):
            for chosen in itertools.combinations(far, length):
                expected.add((label, tuple(sorted(chosen))))
    assert {(one.label, one.trees) for one in sets} == expected and len(sets) == 4
    assert {one.count for one in sets} == {30}
    weights = [sum(one.weight for one in sets if one.label == label) for label in (0, 1)]
    assert weights == pytest.approx([0.5, 0.5])


def test_a_support_that_no_tree_has_names_one_that_works():
    data = some_graphs(24)
    with pytest.raises(UserError, match="No tree occurs in 100%") as refused:
        mirage.distilled(data, 1.0, SMALL)
    share = float(str(refused.value).split("--supports to ")[1].split()[0])
    assert 0 < share < 1
    one_class = data.some(data.of(0))
    alone = mirage.Graphs(one_class.graphs, one_class.classes, ["x"])
    assert mirage.distilled(alone, share, SMALL)


# Training.


def loss_of(examples, network):
    logits = network(mirage.joined(examples.pieces))
    losses = torch.nn.functional.cross_entropy(logits, examples.classes, reduction="none")
    return losses @ examples.weights.to(losses)


@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_all_trees_have_the_loss_and_the_gradient_of_the_graphs(pool):
    data = some_graphs()
    twice = mirage.Graphs(
        data.graphs + data.graphs[:5], data.classes + data.classes[:5], data.names
    )
    options = replace(SMALL, pool=pool, depth=3)
    vocabulary = mirage.Vocabulary.of(data)
    network = mirage.new_network(vocabulary, 3, options, 0).double()
    told = {}
    for depth in (3, 2):
        sets = mirage.every_tree(twice, depth)
        assert len(sets) <= len(data.graphs)
        of_sets = mirage.Examples.of_sets(sets, vocabulary)
        for name, examples in (
            ("trees", of_sets),
            ("graphs", mirage.Examples.of_graphs(twice, vocabulary)),
        ):
            loss = loss_of(examples, network)
            gradient = torch.autograd.grad(loss, list(network.parameters()))
            told[depth, name] = torch.cat([loss[None], *(g.flatten() for g in gradient)])
    # weights are float32
    torch.testing.assert_close(told[3, "trees"], told[3, "graphs"], rtol=1e-6, atol=1e-7)
    assert told[3, "graphs"].abs().max() > 0.01
    # trees that are too shallow for the network are not the graphs
    assert (told[2, "trees"] - told[2, "graphs"]).abs().max() > 1e-3


def test_sets_are_drawn_by_weight():
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05])
    pieces = [mirage.piece([0], [], [0])] * 4
    examples = mirage.Examples(pieces, torch.zeros(4, dtype=torch.int64), weights)
    rng = torch.Generator().manual_seed(0)
    share = examples.drawn(20_000, rng).bincount(minlength=4) / 20_000
    torch.testing.assert_close(share, weights, rtol=0, atol=0.015)  # four deviations


def test_the_same_seed_trains_the_same_network_and_leaves_torchs_numbers():
    data = some_graphs()
    vocabulary = mirage.Vocabulary.of(data)
    examples = mirage.Examples.of_graphs(data, vocabulary)
    results = []
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    for seed in (1, 1, 2):
        network = mirage.new_network(vocabulary, 3, SMALL, seed)
        mirage.trained(examples, network, SMALL, seed)
        results.append(network(mirage.joined(examples.pieces)))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


# Files and rivals.


def test_a_file_holds_the_sets_exactly():
    data = some_graphs(30)
    sizes = [len(data.of(label)) for label in range(3)]
    for sets in (mirage.distilled(data, 0.2, SMALL), mirage.every_tree(data, 3)):
        assert mirage.read_sets(mirage.stored_sets(sets, sizes)) == sets


def test_first_parts_have_all_classes_and_keep_to_the_bytes():
    data = some_graphs(30)
    data = data.some(data.of(0) + data.of(1)[:3] + data.of(2)[:1])
    for order in (mirage.at_random(data, 0), mirage.herded(data, 2)):
        assert sorted(order) == list(range(14))
        chosen = mirage.within(data, order, 10**6)
        assert chosen.graphs == data.some(order).graphs
        whole = len(mirage.stored_graphs(data))
        some = mirage.within(data, order, whole - 40)
        size = len(mirage.stored_graphs(some))
        assert whole - 100 < size <= whole - 40 and set(some.classes) == {0, 1, 2}
        assert set(mirage.within(data, order, 1).classes) == {0, 1, 2}
    assert mirage.at_random(data, 0) != mirage.at_random(data, 1)


def test_herding_takes_the_graph_nearest_to_the_mean_first():
    data = mirage.generated(20, seed=0)
    first = mirage.herded(data, 1)[0]
    counts = [Counter(mirage.codes(graph, 1)) for graph in data.graphs]
    of_class = data.of(data.classes[first])

    def likeness(position):
        mine, total = counts[position], 0.0
        for other in of_class:
            for code, times in counts[other].items():
                total += times / counts[other].total() * mine[code] / mine.total()
        return total

    assert likeness(first) == pytest.approx(max(map(likeness, of_class)))


def test_shares_of_trees_stand_in_one_order_in_every_process():
    """That of the trees: sets of strings have another one in each process, and sums round by it."""
    data = mirage.generated(12, seed=0)
    counts = [Counter(mirage.codes(graph, 1)) for graph in data.graphs]
    trees = sorted({code for count in counts for code in count})
    wanted = [[count[tree] / count.total() for tree in trees] for count in counts]
    assert torch.equal(mirage.tree_shares(data, 1), torch.tensor(wanted))


# Molecules.


def sdf(path, classes=SDF, name="group"):
    with Chem.SDWriter(str(path)) as writer:
        for smiles, label in classes.items():
            molecule = Chem.MolFromSmiles(smiles)
            molecule.SetProp(name, label)
            writer.write(molecule)
    return path


def test_molecules_are_read_with_their_classes_and_aromatic_bonds(tmp_path):
    train, test = mirage.read([sdf(tmp_path / "a.sdf"), sdf(tmp_path / "b.sdf")], "group")
    assert train.names == ["a", "b"] and train.classes == [0, 1, 0, 1, 0, 1] == test.classes
    aniline = train.graphs[3]
    assert Counter(nx.get_node_attributes(aniline, "label").values()) == {"C": 6, "N": 1}
    bonds = Counter(nx.get_edge_attributes(aniline, "label").values())
    assert bonds == {"AROMATIC": 6, "SINGLE": 1}


def test_labels_that_training_has_not_seen_are_one_more():
    data = some_graphs()
    vocabulary = mirage.Vocabulary.of(data)
    assert vocabulary.node("Sn") == 2 == vocabulary.edge("~")
    graph = nx.path_graph(2)
    nx.set_node_attributes(graph, "Sn", "label")
    nx.set_edge_attributes(graph, "~", "label")
    network = mirage.new_network(vocabulary, 3, SMALL, 0)
    assert network(mirage.of_graph(graph, vocabulary)).shape == (1, 3)


# The program.


def test_the_table_has_every_row_and_the_set_is_saved(tmp_path, capsys):
    files = [str(sdf(tmp_path / "a.sdf")), str(sdf(tmp_path / "b.sdf"))]
    saved = tmp_path / "sets.bin"
    small = ["--width", "4", "--updates", "2", "--seeds", "2", "--depth", "1"]
    options = ["--label", "group", "--supports", "0.6", "--save", str(saved), *small]
    mirage.run([*files, *options])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "6 graphs for training (a 3, b 3),",
        "6 for the test, 50.0 % of the most frequent class.",
    ]
    rows = [line.split(" | ") for line in lines if line.startswith("| ")][2:]
    assert [row[0].split(",")[0] for row in rows] == [
        "| Mirage", "| random", "| herding", "| random", "| all trees of all graphs", "| all graphs",
    ]  # fmt: skip
    assert int(rows[0][2]) == len(saved.read_bytes())
    assert int(rows[0][1]) == len(mirage.read_sets(saved.read_bytes()))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["none.sdf", "none.sdf"], "There is no file none.sdf"),
        (["one.sdf"], r"1 file\(s\) .* name two"),
        (["{a}", "{a}", "--label", "mass"], "no molecule with the property 'mass'"),
        (["{a}", "{other}", "--label", "group"], "class 'c'"),
        (["{single}", "{a}", "--label", "group"], "takes 1 values"),
        (["{text}", "{a}", "--label", "group"], "no molecule with the property"),
        (["--seeds", "1"], "--seeds 1 give no interval"),
        (["--supports", "1.5"], r"--supports 1\.5 is no share"),
        (["--depth", "0"], "--depth is 0"),
        (["--save", "{a}/sets.bin"], "There is no folder"),
        (["--lr", "nan"], "--lr is nan"),
        (["--width", "wide"], "--width"),
        (["--widht", "4"], "did you mean --width"),
        (["--supports", "0.01", "--longest", "9"], "above --most 2000"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(words, told, tmp_path, capsys):
    paths = {
        "a": sdf(tmp_path / "a.sdf"),
        "other": sdf(tmp_path / "other.sdf", {"CCO": "c"}),
        "single": sdf(tmp_path / "single.sdf", {"CCO": "c", "CCC": "c"}),
        "text": tmp_path / "text.sdf",
    }
    paths["text"].write_text("no molecule\n")
    words = [word.format(**paths) for word in words]
    assert cli.run(lambda: mirage.run(words)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(told, said) and said.count("error:") == 1


def test_without_the_extra_the_sentence_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlxtend.frequent_patterns", None)
    assert cli.run(lambda: mirage.run([])) == 2
    assert "pip install 'ddengine[graphs]'" in capsys.readouterr().err


def test_it_says_what_to_cite(capsys):
    mirage.run(["--cite"])
    assert capsys.readouterr().out.startswith("@inproceedings{gupta2024mirage,")


def test_the_file_is_a_program():
    command = [sys.executable, str(EXAMPLE), "--batch", "-3"]
    environment = {"PYTHONPATH": str(EXAMPLE.parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 2 and done.stderr.startswith("error: --batch is -3")
