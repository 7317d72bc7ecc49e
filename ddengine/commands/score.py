"""Score."""

from dataclasses import replace
from pathlib import Path

from ddengine.commands.evaluate import evaluation_in, set_options
from ddengine.commands.options import SET, paths_of
from ddengine.evaluation import intervals, scores
from ddengine.system import files, log


def score(path: Path, args: list[str]) -> None:
    """DD-Ranking's scores of a set on every network: scores.json."""
    folder, meta, options = set_options(path, args, "score")
    out = options.out or path
    soft = meta["target_kind"] == "logits" or options.evaluation.labels == "dynamic"
    found = [
        evaluation_in(
            out / "scores" / name,
            folder,
            meta,
            replace(options, evaluation=config),
            ("score", str(path), *args),
            strict=True,
            command="score",
        )
        for name, config in zip(
            ("augmented", "plain"), scores.protocols(options.evaluation, soft), strict=True
        )
    ]
    made = scores.of(*found, name=found[0]["rows"][0]["set"])
    kept = ("machine", "versions", "commit", "seed", "precision")
    facts = {"scores": made, "interval": intervals.NAME}
    files.write_json(
        out / "scores.json",
        {
            **facts,
            "seconds": sum(e["seconds"] for e in found),
            **{k: found[0].get(k) for k in kept},
        },
    )
    log.console.print(scores.table(made, f"{meta['recipe']['name']}, accuracies as fractions"))
    log.say(f"95 % intervals are of the mean over networks, by {intervals.NAME}")
    for entry in made:
        if entry["diverged"]:
            log.say(
                f"warning: with {entry['diverged']} of the seeds a network on {entry['model']} "
                "diverged, and these do not count"
            )


def main(args: list[str]) -> None:
    """The command."""
    score(paths_of(args[:1], "score", SET)[0], args[1:])
