"""What prune.json says of a row."""

from collections.abc import Sequence

from ddengine.evaluation.intervals import counted, interval
from ddengine.types import Facts, Json
from ddengine.uses.pruning.context import Context
from ddengine.uses.pruning.keep import Size
from ddengine.uses.pruning.students import Student


def row_of(
    context: Context, selection: str, size: Size, student: Student, results: Sequence[Facts]
) -> Json:
    """A row: what students were trained on and how, and their accuracies over repeats.

    Accuracies are fractions; those of networks that diverged are None and do not count.
    """
    accuracies = []
    seconds = 0.0
    for result in results:
        accuracies.append(result["accuracy"])
        seconds += result["seconds"]
    finite = counted(accuracies)
    mean, std, ci95 = interval(finite)
    return {
        "selection": selection,
        "size": size.name,
        "fraction": size.fraction,
        "images": results[0]["images"],
        "bytes": results[0]["bytes"],
        "loss": student.loss,
        "alpha": student.alpha,
        "teacher": student.teacher,
        "lr": results[0]["lr"],
        "updates": context.config.steps,
        "accuracy_mean": mean,
        "accuracy_std": std,
        "ci95": ci95 and list(ci95),
        "accuracies": accuracies,
        "diverged": len(accuracies) - len(finite),
        "seconds": round(seconds, 2),
    }
