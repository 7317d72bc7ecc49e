"""How often 95 % intervals of a mean accuracy contain it.

Student's t cut at 0 and 1, and on the logit scale.

    python benchmarks/intervals.py

Accuracies are drawn from beta distributions of known mean and standard deviation, as those of n
networks on one set; no network is trained. Prints a table and writes
benchmarks/results/intervals-cpu.json.
"""

import sys
from pathlib import Path

import numpy as np
import scipy.special
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common

from ddengine.evaluation import intervals

CASES = (
    (0.5, 0.02),
    (0.5, 0.15),
    (0.8, 0.02),
    (0.8, 0.1),
    (0.95, 0.01),
    (0.95, 0.04),
    (0.95, 0.1),
    (0.99, 0.005),
    (0.99, 0.02),
    (0.1, 0.05),
)
NETWORKS = (2, 3, 5)
DRAWS = 5000


def main() -> None:
    """Draw, count, write."""
    rng, rows = np.random.default_rng(0), []
    print(
        "| mean | std | n | cut t covers % | median width | logit t covers % | median width |\n|"
        + " --- |" * 7
    )
    for mean, std in CASES:
        strength = mean * (1 - mean) / std**2 - 1
        for n in NETWORKS:
            drawn = rng.beta(mean * strength, (1 - mean) * strength, (DRAWS, n))
            middle, half = (
                drawn.mean(1),
                scipy.special.stdtrit(n - 1, 0.975) * drawn.std(1, ddof=1) / n**0.5,
            )
            found = {
                "cut": np.stack([middle - half, middle + half], 1).clip(0, 1),
                "logit": np.array([intervals.interval(list(values))[2] for values in drawn]),
            }
            row = {"mean": mean, "std": std, "n": n}
            for name, ends in found.items():
                row[f"{name}_covers"] = float(((ends[:, 0] <= mean) & (mean <= ends[:, 1])).mean())
                row[f"{name}_width"] = float(np.median(ends[:, 1] - ends[:, 0]))
            rows.append(row)
            cells = [
                f"{100 * row[f'{name}_{what}']:.1f}"
                for name in found
                for what in ("covers", "width")
            ]
            print(f"| {100 * mean:g} | {100 * std:g} | {n} | {' | '.join(cells)} |")
    print(common.write("intervals", torch.device("cpu"), {"draws": DRAWS, "seed": 0}, rows))


if __name__ == "__main__":
    main()
