"""What a set shows of the images that it was made of."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from ddengine import naming
from ddengine.api.checks import check_run
from ddengine.api.evaluate import open_set, protocol_of, source_of
from ddengine.api.inputs import Images
from ddengine.api.keeping import kept_beside
from ddengine.api.outcomes import Outcome
from ddengine.api.results import Distilled, opened
from ddengine.recipe import DataConfig
from ddengine.system import files, log
from ddengine.system.runtime import Precision


def privacy(
    of: Distilled | Path | str,
    data: Images | DataConfig = None,
    *,
    model: str | None = None,
    full_steps: int | None = None,
    folder: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    progress: log.Progress = True,
) -> Outcome:  # long: its arguments are explained
    """The real images that those of a set are nearest to, and whether membership shows.

        ddengine.privacy(result, data)

    Args:
        of: a set, or the folder of one or of its run.
        data: as `evaluate` takes it.
        model: the network in whose embedding images are compared, and which is attacked; None: the
            recipe's.
        full_steps: most updates of the network that embeds, on the full data; None: the protocol's.
        folder: where privacy.json and privacy.png are written; None: as `evaluate` has it.
        seed: decides networks, orders and which images are compared.
        device: auto, cpu, cuda or cuda:N.
        precision: fp32, tf32 or bf16.
        progress: as `distill` takes it.

    Raises:
        UserError: images that are not those of the set, a network that does not fit.
    """
    from ddengine.pages import of_privacy
    from ddengine.uses import privacy as measuring

    check_run(seed, precision)
    with log.shown(progress):
        asked = opened(of)
        config = protocol_of(asked)
        name = model or asked.meta["recipe"]["model"]
        if full_steps is not None:
            config = replace(config, full_steps=full_steps)
        config = replace(config, models=(name,), baselines=())
        beside = open_set(asked, source_of(asked, data), config, device, precision)
        with kept_beside(asked, folder, "privacy") as out:
            content = measuring.run(
                beside.syn,
                beside.data,
                config,
                name,
                seed=seed,
                device=beside.device,
                precision=precision,
                learned_for=asked.meta["recipe"]["model"],
            )
            if out is not None:
                files.write_json(out / "privacy.json", {"format": naming.FORMAT, **content})
                of_privacy.picture(out / "privacy.png", beside.syn, beside.data, content)
        heads = [head or "measure" for head in of_privacy.HEADS]
        rows = [dict(zip(heads, line, strict=True)) for line in of_privacy.lines(content)]
        return Outcome(content, rows, partial(of_privacy.table, content), (), out)
