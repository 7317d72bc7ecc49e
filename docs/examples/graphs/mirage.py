"""Mirage: graphs distilled into sets of computation trees that often occur together.

    python mirage.py                             generated graphs whose motifs are known
    python mirage.py train.sdf test.sdf          molecules, classed by their property --label

After Gupta, Manchanda, Kodamana & Ranu, ICLR 2024. A message-passing network of L layers sees of a
node no more than its computation tree of L hops. So the trees that often occur together in the
graphs of a class can stand for these graphs: they are mined, and nothing is trained. Needs the
extra `graphs` of ddengine; docs/graphs.md says what it reaches and what it guarantees.
"""

import contextlib
import importlib
import io
import itertools
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal

import networkx as nx
import torch
import tyro
from torch import Generator, Tensor, nn

from ddengine import UserError
from ddengine.commands import cli
from ddengine.evaluation.intervals import interval
from synth.cite import entries

# (label of a node, (label of the edge, code) of each neighbour that it hears, sorted)
Code = tuple[str, tuple[tuple[str, "Code"], ...]]


@dataclass(frozen=True)
class Options:
    """Mine tree sets, and train networks on them, on as many bytes of graphs, and on all graphs."""

    # SDF files of molecules, for training and for the test; none: generated graphs
    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    label: str = "SOL_classification"  # the property of the molecules that names their class
    supports: tuple[float, ...] = (0.05, 0.2)  # shares of its class that a tree set must have
    longest: int = 3  # trees in a set
    most: int = 2000  # tree sets of a class; more are refused
    depth: int = 2  # hops of a tree, and layers of the networks
    width: int = 64  # of the networks
    pool: Literal["mean", "sum"] = "sum"  # how nodes, or roots of trees, become one vector
    updates: int = 300  # of each network
    batch: int = 64  # graphs or tree sets in an update
    lr: float = 1e-3  # of Adam
    seeds: int = 5  # networks of each row, each with a draw of random graphs
    save: Path | None = None  # file for the tree sets of the first support
    cite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False  # print the work to cite and end

    def check(self) -> None:
        """Raise UserError for a number that cannot be."""
        for name in ("longest", "most", "depth", "width", "updates", "batch", "lr"):
            if not vars(self)[name] > 0:
                raise UserError(f"--{name} is {vars(self)[name]}; set it to a number above 0.")
        if self.seeds < 2:
            raise UserError(f"--seeds {self.seeds} give no interval; set at least 2.")
        if len(self.files) not in (0, 2):
            raise UserError(
                f"{len(self.files)} file(s) of molecules were given; name two, for training and "
                "for the test, or none for generated graphs."
            )
        if self.save is not None and not self.save.parent.is_dir():
            raise UserError(f"There is no folder {self.save.parent} for --save; make it first.")
        for share in self.supports:
            if not 0 < share <= 1:
                raise UserError(f"--supports {share} is no share; set it above 0 and at most 1.")


# Graphs: networkx, with a text as "label" of each node and each edge.


@dataclass(frozen=True)
class Graphs:
    """Graphs and the numbers of their classes in `names`."""

    graphs: list[nx.Graph]
    classes: list[int]
    names: list[str]

    def of(self, label: int) -> list[int]:
        """The positions of a class."""
        positions = []
        for i, other in enumerate(self.classes):
            if other == label:
                positions.append(i)
        return positions

    def by_class(self) -> list[list[int]]:
        """The positions of each class."""
        labels = range(len(self.names))
        return list(map(self.of, labels))

    def sizes(self) -> list[int]:
        """The number of graphs of each class."""
        return list(map(len, self.by_class()))

    def some(self, chosen: Sequence[int]) -> "Graphs":
        """Those at some positions, in that order."""
        graphs, classes = [], []
        for position in chosen:
            graphs.append(self.graphs[position])
            classes.append(self.classes[position])
        return Graphs(graphs, classes, self.names)


def extra(module: str) -> Any:
    """A module of the extra `graphs`. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{module} is not installed; it comes with pip install 'ddengine[graphs]'."
        ) from None


def molecules(path: Path, label: str) -> tuple[list[nx.Graph], list[str]]:
    """Graphs of the molecules of an SDF file, and what their property `label` says.

    Nodes are atoms without hydrogens, labelled by their element; edges are labelled by the kind of
    bond, where aromatic is one. What RDKit cannot read is left out. Raises UserError for a file
    that is missing or holds no such molecule.
    """
    chem = extra("rdkit.Chem")
    extra("rdkit.RDLogger").DisableLog("rdApp.*")
    if not path.is_file():
        raise UserError(f"There is no file {path}; name an SDF file of molecules.")
    graphs, classes = [], []
    for molecule in chem.SDMolSupplier(str(path)):
        if molecule is None or not molecule.HasProp(label):
            continue
        graph = nx.Graph()
        for atom in molecule.GetAtoms():
            graph.add_node(atom.GetIdx(), label=atom.GetSymbol())
        for bond in molecule.GetBonds():
            kind = str(bond.GetBondType())
            graph.add_edge(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), label=kind)
        graphs.append(graph)
        classes.append(molecule.GetProp(label))
    if not graphs:
        raise UserError(
            f"{path} has no molecule with the property {label!r}; name another by --label."
        )
    return graphs, classes


def read(files: Sequence[Path], label: str) -> tuple[Graphs, Graphs]:
    """Molecules for training and for the test. Raises UserError where classes do not suit."""
    train, classes = molecules(files[0], label)
    test, test_classes = molecules(files[1], label)
    names = sorted(set(classes))
    if len(names) < 2 or len(names) > len(train) / 2:
        raise UserError(
            f"The property {label!r} of {files[0]} takes {len(names)} values in {len(train)} "
            "molecules, which are no classes; name another by --label."
        )
    others = set(test_classes) - set(names)
    if others:
        raise UserError(
            f"{files[1]} has molecules of the class {min(others)!r}, of which {files[0]} has none; "
            "name a test of the same classes."
        )
    numbers = list(map(names.index, classes))
    test_numbers = list(map(names.index, test_classes))
    return Graphs(train, numbers, names), Graphs(test, test_numbers, names)


MOTIFS = {"cycle": nx.cycle_graph(5), "house": nx.house_graph()}


def generated(num: int, seed: int) -> Graphs:
    """Random trees of nodes a and b, each with a cycle or a house of five nodes c.

    The motif is the class, and hangs on the tree by an edge from its first node.
    """
    rng = Random(seed)
    motifs = list(MOTIFS.values())
    graphs, classes = [], []
    for i in range(num):
        label = i % 2
        tree = nx.random_labeled_tree(rng.randint(6, 14), seed=rng)
        for node in tree:
            tree.nodes[node]["label"] = rng.choice("ab")
        motif = motifs[label].copy()
        nx.set_node_attributes(motif, dict.fromkeys(motif, "c"), "label")
        graph = nx.disjoint_union(tree, motif)
        graph.add_edge(rng.randrange(len(tree)), len(tree))
        nx.set_edge_attributes(graph, dict.fromkeys(graph.edges, "-"), "label")
        graphs.append(graph)
        classes.append(label)
    return Graphs(graphs, classes, list(MOTIFS))


# Trees and their codes.


def codes(graph: nx.Graph, depth: int) -> list[Code]:
    """The computation trees of `depth` hops of all nodes, in the order of the nodes.

    Two trees have one code if, and only if, they are equal but for the order of children: the code
    of a node is its label and the sorted codes of its children, which are all its neighbours, the
    one that it came from too, one hop less deep (Aho, Hopcroft & Ullman).
    """
    labels = nx.get_node_attributes(graph, "label")
    code: dict[Hashable, Code] = {}
    for node, label in labels.items():
        code[node] = label, ()
    for _ in range(depth):
        shallower, code = code, {}
        for node, neighbours in graph.adjacency():
            heard = []
            for other, edge in neighbours.items():
                child = edge["label"], shallower[other]
                heard.append(child)
            children = tuple(sorted(heard))
            code[node] = labels[node], children
    return list(code.values())


def frequent(
    transactions: Sequence[frozenset[Code]], least: int, longest: int, most: int
) -> dict[frozenset[Code], int]:
    """Sets of at most `longest` trees that `least` transactions hold, and how many do (FP-growth).

    Their number grows exponentially as `least` falls. So they are mined longer and longer, and
    more than `most` are refused by a UserError.
    """
    fpgrowth = extra("mlxtend.frequent_patterns").fpgrowth
    counts = Counter(itertools.chain.from_iterable(transactions))
    items = []
    for item, count in sorted(counts.items()):
        if count >= least:
            items.append(item)
    mined: dict[frozenset[Code], int] = {}
    if not items:
        return mined
    num = len(transactions)
    held = {}
    for number, item in enumerate(items):
        held[number] = [item in transaction for transaction in transactions]
    table = extra("pandas").DataFrame(held)
    for length in range(1, min(longest, len(items)) + 1):
        # the support is a share: half a graph less, so that no rounding decides
        found = fpgrowth(table, min_support=(least - 0.5) / num, max_len=length)
        if len(found) > most:
            raise UserError(
                f"A class has {len(found)} sets of {length} trees in {least} of its graphs, above "
                f"--most {most}; raise --supports, or lower --longest to {length - 1}."
            )
        for share, chosen in zip(found["support"], found["itemsets"], strict=True):
            trees = frozenset(map(items.__getitem__, chosen))
            mined[trees] = round(share * num)
    return mined


@dataclass(frozen=True)
class TreeSet:
    """Trees that stand for graphs of a class, how many of these hold them, and their weight.

    Weights of all sets sum to 1, those of a class to its share of the graphs.
    """

    label: int
    trees: tuple[Code, ...]
    count: int
    weight: float


Counts = Mapping[tuple[Code, ...], int]  # how many graphs have these trees


def weighted(counts: Sequence[Counts], sizes: Sequence[int]) -> list[TreeSet]:
    """Tree sets with weights, of the counts of each class and its number of graphs."""
    sets = []
    for label, of_class in enumerate(counts):
        share = sizes[label] / sum(sizes)
        total = sum(of_class.values())
        for trees, count in of_class.items():
            sets.append(TreeSet(label, trees, count, share * count / total))
    return sets


def distilled(data: Graphs, support: float, options: Options) -> list[TreeSet]:
    """Mirage: the frequent tree sets of each class.

    Of a graph counts only which trees it has, not how often. Raises UserError where a class has
    none at this support.
    """
    counts: list[Counts] = []
    for name, positions in zip(data.names, data.by_class(), strict=True):
        transactions = []
        for position in positions:
            transactions.append(frozenset(codes(data.graphs[position], options.depth)))
        num = len(transactions)
        least = max(1, round(support * num))
        mined = frequent(transactions, least, options.longest, options.most)
        if not mined:
            usual = Counter(itertools.chain.from_iterable(transactions))
            share = max(usual.values()) / num
            raise UserError(
                f"No tree occurs in {support:.0%} of the graphs of {name!r}; lower --supports to "
                f"{share:.3g} or less, or --depth."
            )
        of_class = {}
        for trees, count in mined.items():
            of_class[tuple(sorted(trees))] = count
        counts.append(of_class)
    return weighted(counts, data.sizes())


def every_tree(data: Graphs, depth: int) -> list[TreeSet]:
    """All trees of each graph, as often as it has them; graphs of equal trees are one set.

    A network that pools all nodes has the same weighted loss and gradient on them as on the graphs.
    """
    counts = [Counter[tuple[Code, ...]]() for _ in data.names]
    for graph, label in zip(data.graphs, data.classes, strict=True):
        trees = tuple(sorted(codes(graph, depth)))
        counts[label][trees] += 1
    return weighted(counts, data.sizes())


# Files: both kinds in the same manner, so that bytes can be compared.


def packed(content: Any) -> bytes:
    """JSON without blanks, deflated."""
    return zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9)


def subtrees(trees: Iterable[Code]) -> dict[Code, int]:
    """All subtrees of some trees, each once and numbered, children before their parents."""
    number: dict[Code, int] = {}

    def place(code: Code) -> None:
        if code in number:
            return
        for _, child in code[1]:
            place(child)
        number[code] = len(number)

    for tree in trees:
        place(tree)
    return number


def stored_sets(sets: Sequence[TreeSet], sizes: Sequence[int]) -> bytes:
    """The file of tree sets; a subtree of many trees is written once.

    `sizes` are the numbers of graphs of the classes.
    """
    everything = itertools.chain.from_iterable(one.trees for one in sets)
    number = subtrees(everything)
    table = []
    for label, heard in number:
        row: list[Any] = [label]
        for edge, child in heard:
            row += [edge, number[child]]
        table.append(row)
    rows = []
    for one in sets:
        trees = map(number.__getitem__, one.trees)
        rows.append([one.label, one.count, *trees])
    return packed({"sizes": list(sizes), "subtrees": table, "sets": rows})


def read_sets(data: bytes) -> list[TreeSet]:
    """What `stored_sets` wrote."""
    content = json.loads(zlib.decompress(data))
    codes_of: list[Code] = []
    for label, *heard in content["subtrees"]:
        children = []
        for edge, child in zip(heard[::2], heard[1::2], strict=True):
            children.append((edge, codes_of[child]))
        codes_of.append((label, tuple(children)))
    counts: list[dict[tuple[Code, ...], int]] = [{} for _ in content["sizes"]]
    for label, count, *numbers in content["sets"]:
        trees = tuple(map(codes_of.__getitem__, numbers))
        counts[label][trees] = count
    return weighted(counts, content["sizes"])


def stored_graphs(data: Graphs) -> bytes:
    """The file of graphs: the class, the labels of nodes, and each edge with its label."""
    rows = []
    for graph, label in zip(data.graphs, data.classes, strict=True):
        labels = nx.get_node_attributes(graph, "label")
        number = numbered(labels)
        edges = []
        for one, other, edge in graph.edges(data="label"):
            edges += [number[one], number[other], edge]
        rows.append([label, list(labels.values()), edges])
    return packed(rows)


def numbered(things: Iterable[Any]) -> dict[Any, int]:
    """Things by their places."""
    return {thing: i for i, thing in enumerate(things)}


# Networks.


@dataclass(frozen=True)
class Piece:
    """Graphs or tree sets as a network takes them: numbers of labels, and who hears whom.

    Of `edges` the rows are sender, receiver and label. `roots` are the nodes that are pooled, and
    `owner` says for each of which graph or tree set, of `num`.
    """

    nodes: Tensor  # (n,)
    edges: Tensor  # (3, m)
    roots: Tensor  # (r,)
    owner: Tensor  # (r,)
    num: int = 1


@dataclass(frozen=True)
class Vocabulary:
    """Labels of the training graphs, numbered; all others have the number after the last."""

    nodes: dict[str, int]
    edges: dict[str, int]

    @classmethod
    def of(cls, data: Graphs) -> "Vocabulary":
        """That of some graphs."""
        nodes, edges = set(), set()
        for graph in data.graphs:
            nodes.update(nx.get_node_attributes(graph, "label").values())
            edges.update(nx.get_edge_attributes(graph, "label").values())
        return cls(numbered(sorted(nodes)), numbered(sorted(edges)))

    def node(self, label: str) -> int:
        """The number of the label of a node."""
        return self.nodes.get(label, len(self.nodes))

    def edge(self, label: str) -> int:
        """The number of the label of an edge."""
        return self.edges.get(label, len(self.edges))


def piece(nodes: list[int], edges: list[tuple[int, int, int]], roots: list[int]) -> Piece:
    """Lists as tensors."""
    links = torch.tensor(edges, dtype=torch.int64).view(-1, 3).T
    pooled = torch.tensor(roots)
    return Piece(torch.tensor(nodes), links, pooled, torch.zeros_like(pooled))


def of_graph(graph: nx.Graph, vocabulary: Vocabulary) -> Piece:
    """A graph: every node hears its neighbours, and all are pooled."""
    labels = nx.get_node_attributes(graph, "label")
    number = numbered(labels)
    edges = []
    for node, neighbours in graph.adjacency():
        for other, edge in neighbours.items():
            label = vocabulary.edge(edge["label"])
            edges.append((number[other], number[node], label))
    nodes = list(map(vocabulary.node, labels.values()))
    return piece(nodes, edges, list(range(len(nodes))))


def of_trees(trees: Sequence[Code], vocabulary: Vocabulary) -> Piece:
    """A tree set: every node hears its children, and the roots are pooled.

    Equal subtrees are one node, which many may hear, as their embeddings are equal. After L layers
    the embedding of a root is that of its node in the graph: messages go to parents only.
    """
    number = subtrees(trees)
    nodes, edges = [], []
    for (label, heard), receiver in number.items():
        nodes.append(vocabulary.node(label))
        for edge, child in heard:
            edges.append((number[child], receiver, vocabulary.edge(edge)))
    roots = list(map(number.__getitem__, trees))
    return piece(nodes, edges, roots)


def joined(pieces: Sequence[Piece]) -> Piece:
    """Several side by side, as a batch."""
    nodes, edges, roots, owner = [], [], [], []
    start = num = 0
    for one in pieces:
        shift = torch.tensor([[start], [start], [0]])
        nodes.append(one.nodes)
        edges.append(one.edges + shift)
        roots.append(one.roots + start)
        owner.append(one.owner + num)
        start += len(one.nodes)
        num += one.num
    return Piece(torch.cat(nodes), torch.cat(edges, 1), torch.cat(roots), torch.cat(owner), num)


class Layer(nn.Module):
    """h of a node becomes MLP((1 + eps) h + sum over neighbours of relu(h' + edge)) (GINE)."""

    def __init__(self, edges: int, width: int):
        super().__init__()
        self.edge = nn.Embedding(edges, width)
        self.eps = nn.Parameter(torch.zeros(()))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, hidden: Tensor, edges: Tensor) -> Tensor:
        """Embeddings (n, width) after another hop."""
        sender, receiver, label = edges
        sent = torch.relu(hidden[sender] + self.edge(label))
        heard = torch.zeros_like(hidden).index_add(0, receiver, sent)
        return torch.relu(self.mlp((1 + self.eps) * hidden + heard))


class Gin(nn.Module):
    """A graph isomorphism network with edge labels, without normalisation.

    Statistics over the nodes of a batch would not be the same over trees and over graphs.
    """

    def __init__(self, vocabulary: Vocabulary, classes: int, options: Options):
        super().__init__()
        self.node = nn.Embedding(len(vocabulary.nodes) + 1, options.width)
        edges = len(vocabulary.edges) + 1
        self.layers = nn.ModuleList(Layer(edges, options.width) for _ in range(options.depth))
        self.last = nn.Linear(options.width, classes)
        self.pool = options.pool

    def forward(self, batch: Piece) -> Tensor:
        """Logits (num, classes)."""
        hidden = self.node(batch.nodes)
        for layer in self.layers:
            hidden = layer(hidden, batch.edges)
        pooled = hidden.new_zeros(batch.num, hidden.shape[1])
        pooled = pooled.index_add(0, batch.owner, hidden[batch.roots])
        if self.pool == "mean":
            pooled = pooled / batch.owner.bincount(minlength=batch.num)[:, None]
        return self.last(pooled)


@dataclass(frozen=True)
class Examples:
    """What a network is trained on or tested by; `weights` sum to 1."""

    pieces: list[Piece]
    classes: Tensor  # (N,)
    weights: Tensor  # (N,)

    @classmethod
    def of_graphs(cls, data: Graphs, vocabulary: Vocabulary) -> "Examples":
        """Graphs, all of one weight."""
        pieces = [of_graph(graph, vocabulary) for graph in data.graphs]
        weights = torch.full((len(pieces),), 1 / len(pieces))
        return cls(pieces, torch.tensor(data.classes), weights)

    @classmethod
    def of_sets(cls, sets: Sequence[TreeSet], vocabulary: Vocabulary) -> "Examples":
        """Tree sets."""
        pieces, labels, weights = [], [], []
        for one in sets:
            pieces.append(of_trees(one.trees, vocabulary))
            labels.append(one.label)
            weights.append(one.weight)
        return cls(pieces, torch.tensor(labels), torch.tensor(weights))

    def drawn(self, num: int, rng: Generator) -> Tensor:
        """Positions (num,), drawn by weight and with replacement."""
        return self.weights.multinomial(num, replacement=True, generator=rng)


def trained(examples: Examples, network: Gin, options: Options, seed: int) -> None:
    """Train a network in place, on batches that are drawn by weight."""
    rng = Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(network.parameters(), options.lr)
    for _ in range(options.updates):
        index = examples.drawn(options.batch, rng)
        pieces = list(map(examples.pieces.__getitem__, index.tolist()))
        logits = network(joined(pieces))
        loss = nn.functional.cross_entropy(logits, examples.classes[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def new_network(vocabulary: Vocabulary, classes: int, options: Options, seed: int) -> Gin:
    """A network whose start the seed decides; torch's own random numbers go on as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Gin(vocabulary, classes, options)


# Rivals: real graphs, in an order of which any first part has all classes in their shares.


def interleaved(by_class: Sequence[Sequence[int]]) -> list[int]:
    """Positions that are in order within each class, in one order for all."""
    placed = []
    for label, positions in enumerate(by_class):
        for rank, position in enumerate(positions):
            place = (rank + 0.5) / len(positions)
            placed.append((place, label, position))
    order = []
    for _, _, position in sorted(placed):
        order.append(position)
    return order


def at_random(data: Graphs, seed: int) -> list[int]:
    """All positions, at random within each class."""
    rng = Random(seed)
    by_class = data.by_class()
    for positions in by_class:
        rng.shuffle(positions)
    return interleaved(by_class)


def tree_shares(data: Graphs, depth: int) -> Tensor:
    """(N, D): what share of a graph's nodes has each of D trees."""
    counts = []
    for graph in data.graphs:
        counts.append(Counter(codes(graph, depth)))
    number = numbered(sorted(set().union(*counts)))  # sums of floats depend on their order
    features = torch.zeros(len(counts), len(number))
    for row, count in zip(features, counts, strict=True):
        for code, times in count.items():
            row[number[code]] = times / count.total()
    return features


def herded(data: Graphs, depth: int) -> list[int]:
    """Positions, in each class those first whose trees are, together, most like all of the class.

    Herding (Welling, 2009) on the shares of trees.
    """
    features = tree_shares(data, depth)
    by_class = []
    for positions in data.by_class():
        left = list(positions)
        mean = features[left].mean(0)
        wanted = mean.clone()
        order = []
        while left:
            best = int((features[left] @ wanted).argmax())
            order.append(left.pop(best))
            wanted += mean - features[order[-1]]
        by_class.append(order)
    return interleaved(by_class)


def within(data: Graphs, order: Sequence[int], budget: int) -> Graphs:
    """As many of the graphs, in order, as a file of `budget` bytes holds.

    Where not even one of each class fits, these are taken all the same.
    """
    count = 1
    while len(set(data.some(order[:count]).classes)) < len(data.names):
        count += 1
    while count < len(order):
        more = data.some(order[: count + 1])
        if len(stored_graphs(more)) > budget:
            break
        count += 1
    return data.some(order[:count])


# The table.


@dataclass(frozen=True)
class Table:
    """Rows of a table in Markdown, each printed when its networks are trained."""

    train: Graphs
    test: Graphs
    options: Options
    vocabulary: Vocabulary

    def head(self) -> None:
        """The first lines."""
        print(f"| trained on | number | bytes | test accuracy %, n = {self.options.seeds} | 95 % |")
        print("| --- | --- | --- | --- | --- |", flush=True)

    def row(self, name: str, made: Sequence[tuple[Examples, int]]) -> None:
        """Train a network on each of the sets and files (examples, bytes), by its own seed."""
        test = Examples.of_graphs(self.test, self.vocabulary)
        everything = joined(test.pieces)
        accuracies = []
        for seed, (examples, _) in enumerate(made):
            classes = len(self.train.names)
            network = new_network(self.vocabulary, classes, self.options, seed)
            trained(examples, network, self.options, seed)
            with torch.no_grad():
                right = network(everything).argmax(1) == test.classes
            accuracies.append(right.double().mean().item())
        mean, std, ends = interval(accuracies)
        assert mean is not None and std is not None and ends is not None
        low, high = ends
        number = average([len(examples.classes) for examples, _ in made])
        _, sizes = zip(*made, strict=True)
        size = average(sizes)
        print(
            f"| {name} | {number} | {size} | {100 * mean:.1f} ± {100 * std:.1f} | "
            f"{100 * low:.1f} to {100 * high:.1f} |",
            flush=True,
        )

    def sets(self, name: str, sets: Sequence[TreeSet]) -> int:
        """The row of tree sets; returns their bytes."""
        size = len(stored_sets(sets, self.train.sizes()))
        examples = Examples.of_sets(sets, self.vocabulary)
        self.row(name, [(examples, size)] * self.options.seeds)
        return size

    def graphs(self, name: str, chosen: Sequence[Graphs]) -> None:
        """The row of real graphs, which may be others for each network."""
        made = []
        for graphs in chosen:
            examples = Examples.of_graphs(graphs, self.vocabulary)
            made.append((examples, len(stored_graphs(graphs))))
        self.row(name, made)


def average(numbers: Sequence[int]) -> str:
    """The mean, without decimals."""
    return f"{sum(numbers) / len(numbers):,.0f}"


def rows(table: Table) -> None:
    """Mirage at each support beside graphs of equal bytes and of equal number, and all graphs."""
    options, train = table.options, table.train
    seeds = range(options.seeds)
    drawn = [at_random(train, seed) for seed in seeds]
    herd = herded(train, options.depth)
    for support in options.supports:
        start = time.perf_counter()
        sets = distilled(train, support, options)
        seconds = time.perf_counter() - start
        size = table.sets(f"Mirage, support {support:g} ({seconds:.1f} s)", sets)
        number = max(len(sets), len(train.names))
        table.graphs("random, equal bytes", [within(train, order, size) for order in drawn])
        table.graphs("herding, equal bytes", [within(train, herd, size) for _ in seeds])
        table.graphs("random, equal number", [train.some(order[:number]) for order in drawn])
    table.sets("all trees of all graphs", every_tree(train, options.depth))
    table.graphs("all graphs", [train for _ in seeds])


def run(args: Sequence[str]) -> None:
    """The program. Raises UserError for bad input."""
    options = parsed(args)
    if options.cite:
        print(entries()["gupta2024mirage"])
        return
    if options.files:
        train, test = read(options.files, options.label)
    else:
        train, test = generated(600, seed=0), generated(300, seed=1)
    table = Table(train, test, options, Vocabulary.of(train))
    if options.save is not None:
        sets = distilled(train, options.supports[0], options)
        options.save.write_bytes(stored_sets(sets, train.sizes()))
    named = []
    for name, size in zip(train.names, train.sizes(), strict=True):
        named.append(f"{name} {size}")
    usual = 100 * max(test.sizes()) / len(test.graphs)
    print(f"{len(train.graphs)} graphs for training ({', '.join(named)}),")
    print(f"{len(test.graphs)} for the test, {usual:.1f} % of the most frequent class.\n")
    table.head()
    rows(table)


def parsed(args: Sequence[str]) -> Options:
    """The options of a command line. Raises UserError with what is wrong in one sentence."""
    name = "python mirage.py"
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = tyro.cli(Options, args=args, prog=name, use_underscores=True)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(cli.sentence(complaint.getvalue(), name)) from None
    options.check()
    return options


if __name__ == "__main__":
    sys.exit(cli.run(lambda: run(sys.argv[1:])))
