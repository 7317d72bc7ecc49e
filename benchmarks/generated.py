"""The picture beside the table `generative`: what each way of sampling made of every class.

    python benchmarks/generated.py runs/generative

The first image of a class of each run, below a real one. Writes docs/results/generative.png.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ddengine import load
from ddengine.pages import figures
from ddengine.system import files

ROOT = Path(__file__).resolve().parent.parent
WAYS = {
    "reconstructed": "reconstructed",
    "unguided": "unguided",
    "MGD3": "MGD³",
    "MGD3_+_EVLF": "MGD³ + EVLF",
    "prototypes__D4M_": "prototypes",
}
DATASETS = {"fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


def main(folder: Path) -> None:
    """Draw a block of rows for each dataset, a class a column."""
    figure = figures.new_figure((10.0, 2 * (len(WAYS) + 1) * 0.95))
    blocks = figure.subfigures(len(DATASETS), 1)
    for block, (dataset, title) in zip(blocks, DATASETS.items(), strict=True):
        axes = block.subplots(len(WAYS) + 1, 10, squeeze=False)
        block.suptitle(title, fontsize=11)
        for line, (way, called) in enumerate(WAYS.items(), 1):
            run = folder / f"{dataset}__{way}"
            result = load(run)
            real, _ = files.read_tensors(run / "samples.safetensors")
            for number, name in enumerate(result.class_names):
                first = int((result.classes == number).nonzero()[0, 0])
                figures.show_image(axes[line, number], result.pixels()[first].clamp(0, 1))
                of_class = int((real["labels"] == number).nonzero()[0, 0])
                figures.show_image(axes[0, number], real["pixels"][of_class] / 255)
                axes[0, number].set_title(name, fontsize=8)
            axes[line, 0].set_ylabel(called, fontsize=8)
        axes[0, 0].set_ylabel("real", fontsize=8)
    figures.save_figure(figure, ROOT / "docs" / "results" / "generative.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/generated.py runs/generative")
    main(Path(sys.argv[1]))
