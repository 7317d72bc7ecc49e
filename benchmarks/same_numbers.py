"""One small cell of each family through the command line, and what it wrote, as JSON.

    python benchmarks/same_numbers.py CHECKOUT OUT.json [--only WORD...] [--fork] [--keep FOLDER]

It proves that a change alters no number: run it on the checkout before and on the one after, on
one machine, and compare both by compare_numbers.py. Run it with the Python of the checkout. --fork
starts no interpreter for each command, but forks this one, which has imported torch and other
libraries (nothing of the checkout): the same values, a third of the time.

Every command runs in a fresh working folder. After it every file that is new or changed is told by
its values: tensors, decoded pixels, JSON without clock, machine and versions.
"""

import os

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}  # before torch is imported, for --fork

import argparse
import hashlib
import json
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

VOLATILE = {
    "seconds", "wall_seconds", "initial_seconds", "peak_memory_bytes", "peak_memory", "machine", "versions", "commit", "seconds_before", "log_bytes"
}  # fmt: skip

SLOW = ("mttc",)  # minutes: only when --only names it

D = "--data.name digits --data.limit 300"
M = "--model convnet-d2-w8-in"
CPU = "--device cpu"
EXPERTS = "--buffer.num_experts 2 --buffer.epochs 3 --buffer.batch 16"
LOOP = "--outer.steps 4 --outer.checkpoint_every 3 --outer.evaluate_every 2 --outer.picture_every 2"
TRAJ = "--objective.window.high 1 --objective.expert_epochs 1 --objective.inner_steps 3"
QUICK = "--epochs 3 --num_networks 3 --full_steps 6 --lr_grid 0.01 0.03"
BN = "--teachers convnet-d1-w8-bn convnet-d2-w8-bn --model convnet-d2-w8-bn --buffer.epochs 8 --buffer.batch 32"
SQ = f"{D} {BN} --outer.checkpoint_every 2"
GM = f"{D} {M} --objective.real_batch 16 {LOOP}"
SOFT = f"{D} --data.zca False --data.validation 0.1 {M} {EXPERTS} --buffer.step.sgd.lr 0.1"

mtt = f"mtt/digits_ipc1 --data.limit 300 {M} {EXPERTS} --buffer.step.lr 0.1 {TRAJ} {LOOP}"
GSAM = "--buffer.step.sgd.lr 0.1"
ftd = f"ftd/fashion_mnist_ipc1_small {D} {M} {EXPERTS} {GSAM} {TRAJ} {LOOP}"
tesla = f"tesla/fashion_mnist_ipc1_small {D} {M} {EXPERTS} --buffer.step.lr 0.1 {TRAJ} {LOOP}"
tesla_soft = (
    f"tesla/imagenet_ipc1 {D} --data.size None --data.validation 0.1 {M} {EXPERTS} --buffer.step.lr 0.1 {TRAJ} --objective.batch 8 "
    f"--targets.epochs 1 3 {LOOP} --outer.optim.images.lr 1"
)
datm = (
    f"datm/fashion_mnist_ipc1_small {D} {M} {EXPERTS} {GSAM} --objective.inner_steps 4 --objective.expert_epochs 1 --objective.window.first 1 "
    f"--objective.window.high 2 --objective.window.grow 2 {LOOP} --targets.experts all --init.kind real"
)
datm_correct = (
    datm.replace("--targets.experts all --init.kind real", "--ipc 1") + " --buffer.epochs 12"
)
ast = f"ast/fashion_mnist_ipc10_small {D} {M} --ipc 3 {EXPERTS} --objective.inner_steps 4 --objective.expert_epochs 2 --objective.window.high 1 {LOOP}"
cross = (
    f"datm/cifar10_ipc10 --take buffer=ast/cifar10_ipc10 --take objective.milestones=ast/cifar10_ipc10 {D} --data.zca False --data.validation 0.1 {M} "
    f"{EXPERTS} --objective.inner_steps 4 --objective.batch 8 --objective.window.first 1 --objective.window.high 2 --outer.steps 3 --targets.experts all "
    "--init.kind real --outer.optim.images.lr 1 --outer.optim.logits.lr 1"
)
infer = f"infer/fashion_mnist_ipc10_small {SQ} --ipc 3 --codec.base 2 --codec.compensators 6 --outer.steps 4"
sre2l = f"sre2l/fashion_mnist_ipc10_small {SQ} --ipc 2 --outer.steps 4"
rded = f"rded/fashion_mnist_ipc10_small {SQ} --ipc 2 --init.factor 2 --init.candidates 12 --init.crops 2"
dm = f"dm/fashion_mnist_ipc1_small {GM} --outer.optim.images.lr 1"
few = "dm/fashion_mnist_ipc1_small --data.name digits --data.limit None --model convnet-d2-w8-in --objective.real_batch 16 --outer.steps 2 --outer.evaluate_every 0 --outer.picture_every 0"
continual = (
    f"dm/fashion_mnist_ipc1_small {D} {M} --objective.real_batch 8 --outer.steps 2 --outer.evaluate_every 0 --outer.picture_every 0 --init.steps 5 "
    "--evaluation.epochs 2 --evaluation.full_steps 4 --evaluation.lr_grid 0.01 0.1 --continual.stages 2 --continual.budget 2000 --continual.repeats 2"
)


def cells():
    """[(name, [command line, ...])]; later cells may use folders of earlier ones of the same group (the part before the dot)."""
    yield "mtt.buffer", [f"buffer {mtt} {CPU}", "inspect {experts}"]
    yield (
        "mtt.distill",
        [
            f"distill {mtt} {CPU}",
            f"evaluate {{last}} {QUICK}",
            "inspect {last}",
            f"distill {mtt} {CPU}",
        ],
    )
    yield (
        "mtt.seed1",
        [
            f"buffer {mtt} --buffer.seed 1 {CPU}",
            f"distill {mtt} --seed 1 --buffer.seed 1 {CPU} --out runs/seed1",
        ],
    )
    yield "mtt.tensorboard_out", [f"distill {mtt} {CPU} --restart --out runs/again"]
    yield "mtt.full", [f"distill {mtt} --objective.backprop full {CPU} --out runs/full"]
    yield "mtt.detached", [f"distill {mtt} --objective.backprop detached {CPU} --out runs/detached"]
    yield (
        "mtt.momentum_batch",
        [
            f"distill {mtt} --ipc 2 --objective.momentum 0.9 --objective.batch 7 {CPU} --out runs/momentum"
        ],
    )
    yield "mtt.draws", [f"distill {mtt} --outer.draws 2 {CPU} --out runs/draws"]
    yield (
        "mtt.bf16",
        [
            f"buffer {mtt} --precision bf16 {CPU}",
            f"distill {mtt} --precision bf16 {CPU} --out runs/bf16",
        ],
    )
    yield "mtt.more_experts", [f"buffer {mtt} --buffer.num_experts 3 {CPU}"]
    yield (
        "mtt.stored",
        [
            f"buffer {mtt} --buffer.dtype bfloat16 --buffer.keep 0 2 {CPU}",
            f"distill {mtt} --buffer.dtype bfloat16 --buffer.keep 0 2 {CPU} --out runs/stored",
        ],
    )
    yield "mtt.keep_last", [f"buffer {mtt} --buffer.keep last {CPU} --out stores/last"]
    yield (
        "mtt.idc_codec",
        [
            f"distill {mtt} --take codec=idc/fashion_mnist_ipc1_small {CPU} --out runs/tiles",
            f"evaluate runs/tiles {QUICK} --baselines random full eight_bit",
        ],
    )
    yield (
        "mtt.ema",
        [
            f"distill {mtt} --take outer.ema=ftd/cifar10_ipc10 {CPU} --out runs/ema",
            f"evaluate runs/ema {QUICK} --baselines random",
        ],
    )
    yield "mtt.bounded", [f"distill {mtt} --codec.bounded True {CPU} --out runs/bounded"]
    yield "mtt.max_loss", [f"distill {mtt} --outer.max_loss 0.5 {CPU} --out runs/gate"]
    yield (
        "mtt.ranked_init",
        [
            f"distill {mtt} --ipc 2 --init.kind {kind} --init.steps 10 {CPU} --out runs/init_{kind}"
            for kind in ("noise", "correct", "representative", "herding", "k_means")
        ],
    )
    yield (
        "mtt.select",
        [
            f"select {mtt} --ipc 2 --init.kind {kind} --init.steps 20 {CPU}"
            for kind in (
                "real",
                "herding",
                "k_centre",
                "k_means",
                "forgetting",
                "el2n",
                "correct",
                "representative",
            )
        ]
        + [
            f"select {mtt} --ipc 3 --init.kind herding --init.embedding pixels {CPU} --out runs/pixels",
            f"select {mtt} --ipc 3 --init.kind el2n --init.order easiest --init.steps 20 {CPU} --out runs/easiest",
            f"evaluate runs/pixels {QUICK} --baselines random herding k_centre k_means forgetting el2n full",
        ],
    )
    yield (
        "mtt.exchange",
        [
            "export {experts} --format mtt --out pt --per_file 1",
            f"import {mtt} --files pt",
            f"import {mtt} --files pt --out stores/theirs",
            f"distill {mtt} --experts stores/theirs {CPU}",
            "export runs/bounded --format mtt --out pt_set",
            f"import {mtt} --files pt_set/images_4.pt",
            "export runs/bounded --format webdataset --out tars --per_shard 4",
            "export runs/tiles --format imagefolder --out pngs",
            "import dm/fashion_mnist_ipc1_small --data.name digits --data.limit 300 --ipc 4 --files pngs --out runs/from_pngs",
            "import dm/fashion_mnist_ipc1_small --data.name digits --data.limit 300 --files runs/bounded/distilled/train-00000-of-00001.parquet --out runs/from_parquet",
        ],
    )
    yield (
        "mtt.protocols",
        [
            f"evaluate runs/bounded --protocol {name} {QUICK} --baselines random --out evaluated/{name}"
            for name in ("mtt", "datm", "ast", "dc", "dsa", "idc", "fast")
        ],
    )
    yield (
        "mtt.networks",
        [
            f"evaluate runs/bounded {QUICK} --models mlp lenet resnet18-bn-x12 convnet-d2-w8-in --baselines random --out evaluated/networks",
            f"evaluate runs/bounded {QUICK} --optimiser adamw --schedule thirds --mixup 0.5 --baselines random --out evaluated/adamw",
            f"evaluate runs/bounded {QUICK} --loss uskd --schedule cosine --stretch 2 --baselines hard_labels full --out evaluated/uskd",
            f"evaluate runs/bounded {QUICK} --rate learned --seed 3 --precision bf16 --baselines random --out evaluated/learned",
            f"evaluate runs/bounded runs/ema {QUICK} --baselines random --restart",
        ],
    )
    yield (
        "mtt.worth",
        [
            f"score runs/bounded {QUICK}",
            "privacy runs/bounded --full_steps 10",
            "report runs/bounded runs/ema --out page.html",
            f"rank runs/bounded {QUICK} --models convnet-d1-w4-in convnet-d2-w4-in mlp lenet --baselines random",
        ],
    )
    yield (
        "mtt.zca_size",
        [f"{c} {mtt} --data.zca True --data.size 12 12 {CPU}" for c in ("buffer", "distill")],
    )
    yield (
        "mtt.classes",
        [f"{c} {mtt} --data.limit None --data.classes 7 0 3 {CPU}" for c in ("buffer", "distill")],
    )
    yield (
        "mtt.experts_model",
        [
            f"{c} {mtt} --buffer.model convnet-d1-w8-in --model convnet-d1-w8-in {CPU}"
            for c in ("buffer", "distill")
        ],
    )
    yield (
        "tesla.stored",
        [
            f"buffer {tesla} {CPU}",
            f"distill {tesla} {CPU}",
            f"evaluate {{last}} {QUICK} --baselines random",
        ],
    )
    yield (
        "tesla.labels",
        [
            f"buffer {tesla_soft} {CPU}",
            f"distill {tesla_soft} {CPU} --out runs/soft",
            f"evaluate runs/soft {QUICK} --baselines random random_soft hard_labels",
        ],
    )
    yield (
        "ftd.gsam",
        [
            f"buffer {ftd} {CPU}",
            f"distill {ftd} {CPU}",
            f"evaluate {{last}} {QUICK} --baselines random eight_bit",
        ],
    )
    yield (
        "datm.labels",
        [
            f"buffer {datm} {CPU}",
            f"distill {datm} {CPU}",
            f"evaluate {{last}} {QUICK} --baselines random random_soft",
        ],
    )
    yield "datm.correct", [f"buffer {datm_correct} {CPU}", f"distill {datm_correct} {CPU}"]
    yield (
        "ast.smooth",
        [
            f"buffer {ast} {CPU}",
            f"distill {ast} {CPU}",
            f"evaluate {{last}} {QUICK} --baselines random",
        ],
    )
    yield "cross.parts", [f"buffer {cross} {CPU}", f"distill {cross} {CPU}"]
    for name in ("dc", "dsa", "dcc", "dsac"):
        own = (
            ""
            if name in ("dc", "dsa")
            else " --objective.warmup_networks 1 --objective.warmup_steps 1"
        )
        yield (
            f"{name}.matching",
            [
                f"distill {name}/fashion_mnist_ipc10_small {GM} --ipc 2 --objective.networks.epochs 2 --objective.networks.steps 3{own} {CPU}",
                f"evaluate {{last}} {QUICK} --baselines random",
            ],
        )
    yield (
        "dc.each",
        [
            f"distill dc/fashion_mnist_ipc1_small {GM} --outer.step_after each --objective.classes_at_once 4 --objective.metric mse --objective.tensors all {CPU} --out runs/each"
        ],
    )
    for name in ("idc", "idc_i"):
        yield (
            f"{name}.matching",
            [
                f"distill {name}/fashion_mnist_ipc1_small {GM} --objective.networks.steps 3 --objective.networks.images 40 {CPU}",
                f"evaluate {{last}} {QUICK} --baselines random",
            ],
        )
    yield "dm.matching", [f"distill {dm} {CPU}", f"evaluate {{last}} {QUICK} --baselines random"]
    yield (
        "dm.adam_bn",
        [
            f"distill {dm} --model convnet-d2-w8-bn --ipc 2 --outer.optim.images.kind adam --outer.optim.images.schedule cosine --outer.optim.images.lr 0.05 {CPU} --out runs/adam"
        ],
    )
    yield (
        "dm.merge",
        [
            f"distill {few} --data.classes 7 2 {CPU} --out runs/few",
            f"distill {few} --data.classes 2 0 5 --seed 1 {CPU} --out runs/more",
            "merge runs/few runs/more --out merged",
            "merge {last} runs/adam --out never",
            f"evaluate merged {QUICK} --baselines random",
        ],
    )
    yield (
        "dm.continual",
        [
            f"continual {continual} --continual.memories distilled random herding",
            f"continual {continual} --continual.memories distilled random --continual.budget 3000 --continual.strategy replay --continual.store float32 --seed 1 --out stages",
        ],
    )
    yield (
        "infer.static",
        [
            f"buffer {infer} {CPU}",
            f"distill {infer} {CPU}",
            f"evaluate {{last}} {QUICK} --baselines random random_soft hard_labels full",
            "export {last} --format mtt --out pt_infer",
            "inspect {last}",
        ],
    )
    yield (
        "infer.dynamic",
        [
            f"evaluate {{run:infer-}} {QUICK} --labels dynamic --baselines random_soft --out evaluated/dynamic",
            f"evaluate {{run:infer-}} {QUICK} --labels dynamic --teacher_mode train --cutmix 0.5 --mixup 0 --loss kl --temperature 4 --squared True --baselines random_soft --out evaluated/mode",
        ],
    )
    yield (
        "infer.losses",
        [
            f"evaluate {{run:infer-}} {QUICK} --loss {loss} {more} --baselines random_soft --out evaluated/{loss}"
            for loss, more in (
                ("ce", ""),
                ("mse", "--hard_weight 0.5"),
                ("nkd", "--temperature 1 --mixup 0"),
                ("kl", "--mix_labels probabilities"),
            )
        ],
    )
    yield (
        "infer.top",
        [
            f"distill {infer} --targets.top 2 {CPU} --out runs/top",
            f"distill {infer} --objective.images_at_once 7 {CPU} --out runs/parts",
        ],
    )
    yield "infer.score", [f"score {{run:infer-}} {QUICK} --models convnet-d2-w8-bn --out scored"]
    yield (
        "infer.networks",
        [
            "import "
            + infer.replace("convnet-d1-w8-bn convnet-d2-w8-bn", "convnet-d1-w8-bn", 1)
            + " --files net.pth --out stores/networks"
        ],
    )
    yield (
        "sre2l.plain",
        [
            f"buffer {sre2l} {CPU}",
            f"distill {sre2l} {CPU}",
            f"evaluate {{last}} {QUICK} --baselines random random_soft",
        ],
    )
    yield (
        "sre2l.cda",
        [
            f"distill {sre2l} --objective.crop_until 3 --objective.augment.always resized_crop roll {CPU} --out runs/crops"
        ],
    )
    yield "sre2l.dwa", [f"distill {sre2l} --objective.adjust 0.5 {CPU} --out runs/adjusted"]
    yield (
        "sre2l.protocols",
        [
            f"evaluate runs/crops --protocol {name} {QUICK} --baselines random_soft --out evaluated/{name}"
            for name in ("infer-static", "sre2l", "rded")
        ]
        + [
            f"evaluate runs/crops --protocol infer-dynamic {QUICK} --baselines random_soft --out evaluated/infer-dynamic"
        ],
    )
    yield (
        "rded.patches",
        [
            f"buffer {rded} {CPU}",
            f"distill {rded} {CPU}",
            f"evaluate {{last}} {QUICK} --labels dynamic --baselines random_soft --out evaluated/rded",
        ],
    )
    yield (
        "words.cite",
        [
            "recipes",
            "cite mtt/digits_ipc1",
            "cite datm/cifar10_ipc10 --take buffer=ast/cifar10_ipc10",
            "distill infer/cifar10_ipc10 --print_config",
            "--help",
            "distill mtt/digits_ipc1 --help",
            "evaluate --help",
        ],
    )
    yield (
        "words.wrong",
        [
            "distil mtt/digits_ipc1",
            "distill mtt/digits_ipc2",
            "distill mtt/digits_ipc1 --outer.step 3",
            "distill mtt/digits_ipc1",
            "distill mtt/digits_ipc1 --take loss=ftd/cifar10_ipc1",
            "buffer dm/fashion_mnist_ipc1_small",
            "evaluate nowhere",
            "continual mtt/digits_ipc1",
            "select mtt/digits_ipc1 --init.kind noise",
            "distill mtt/digits_ipc1 --model convnet-d2-w8-xx",
            "inspect nowhere",
            "distill mtt/digits_ipc1 --data.classes 3",
            "export nowhere --out x",
            "merge a b",
            "import mtt/digits_ipc1",
        ],
    )
    yield "estimate.small", [f"estimate {dm} {CPU} --json estimate.json", f"estimate {mtt} {CPU}"]
    yield (
        "mttc.compile",
        [
            f"buffer {mtt} {CPU}",
            f"distill {mtt} --compile --outer.evaluate_every 0 {CPU} --out runs/compiled",
        ],
    )


def sha(data) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def tensor_sha(t) -> str:
    t = t.detach().cpu().contiguous()
    body = (
        t.view(torch.uint8)
        if t.dim() and t.numel()
        else t.reshape(-1).view(torch.uint8)
        if t.numel()
        else torch.zeros(0, dtype=torch.uint8)
    )
    return f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)} {sha(body.numpy().tobytes())}"


def plain(value):
    """JSON data without what a clock, a machine or a version says."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in VOLATILE}
    return [plain(v) for v in value] if isinstance(value, list) else value


def flat(value, where=""):
    if isinstance(value, torch.Tensor):
        yield where, tensor_sha(value)
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from flat(v, f"{where}/{k}")
    elif isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            yield from flat(v, f"{where}/{i}")
    else:
        yield where, repr(value)


def masked(text: str, checkout: Path) -> str:
    """What was said, without paths and times."""
    text = text.replace(str(checkout), "CHECKOUT").replace(str(checkout.resolve()), "CHECKOUT")
    text = re.sub(r"\d+(\.\d+)? (s|ms|min|h)\b", "TIME", text)
    text = re.sub(r"(peak memory +).*", r"\1MEMORY", text)
    text = re.sub(r"(?m)^(versions|commit|machine) .*$", r"\1", text)
    text = re.sub(r"[0-9a-f]{12}-dirty|\b[0-9a-f]{12}\b(?= commit)", "COMMIT", text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def told(path: Path, checkout: Path):
    """What a file says."""
    name, suffix = path.name, path.suffix
    if suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            meta = {
                k: (plain(json.loads(v)) if v[:1] in "{[" else v)
                for k, v in (file.metadata() or {}).items()
            }
            return {
                "tensors": {k: tensor_sha(file.get_tensor(k)) for k in sorted(file.keys())},
                "metadata": meta,
            }
    if suffix == ".jsonl":
        lines = [plain(json.loads(line)) for line in path.read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        return {
            "lines": len(lines),
            "sha": sha(json.dumps(lines).encode()),
            "last_loss": losses[-1] if losses else None,
            "values": lines if len(lines) < 12 else None,
        }
    if suffix == ".json":
        if name.startswith("estimate"):
            return {"keys": sorted(json.loads(path.read_text()))}
        return plain(json.loads(path.read_text()))
    if suffix in (".pt", ".pth"):
        return dict(flat(torch.load(path, weights_only=True)))
    if suffix == ".png":
        pixels = np.asarray(Image.open(path))
        return {
            "shape": list(pixels.shape),
            "sha": sha(pixels.tobytes()),
            "small": pixels.size < 4096,
        }
    if suffix == ".tar":
        with tarfile.open(path) as tar:
            return {m.name: sha(tar.extractfile(m).read()) for m in tar.getmembers() if m.isfile()}
    if suffix == ".html":
        return {"kind": "html"}
    if suffix in (".md", ".py", ".txt", ".csv"):
        text = masked(path.read_text(), checkout)
        return {
            "text": sha(
                re.sub(
                    r"(?m)^\| (commit|versions|machine|peak memory|seconds[^|]*) \|.*$", "", text
                ).encode()
            )
        }
    return {"bytes": path.stat().st_size, "sha": sha(path.read_bytes())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        help="groups or cells whose name begins with one of these; cells of a group use folders of earlier ones",
    )
    parser.add_argument("--fork", action="store_true")
    parser.add_argument("--keep", type=Path, default=None)
    parser.add_argument("--entry", default="run.py")
    options = parser.parse_args()
    checkout = options.checkout.absolute()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MPL"))} | {
        "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "110", "TERM": "dumb", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    top = (
        options.keep.absolute() if options.keep else Path(tempfile.mkdtemp(prefix="same-numbers-"))
    )
    found, began = {}, time.perf_counter()
    last = ""  # the folder of the run that was made last
    for name, commands in cells():
        if not name.startswith(tuple(options.only)) if options.only else name.startswith(SLOW):
            continue
        work = top / name.split(".")[0]
        work.mkdir(parents=True, exist_ok=True)
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(work / ".inductor")
        steps = []
        for command in commands:
            before = {p: p.stat().st_mtime_ns for p in work.rglob("*") if p.is_file()}
            if "{last}" in command:
                command = command.replace("{last}", last)
            if "{experts}" in command:
                command = command.replace(
                    "{experts}",
                    sorted(
                        str(p.parent.relative_to(work))
                        for p in work.glob("experts/*/manifest.json")
                    )[0],
                )
            if m := re.search(r"\{run:([^}]*)\}", command):
                command = command.replace(
                    m[0],
                    sorted(str(p.relative_to(work)) for p in (work / "runs").glob(f"{m[1]}*"))[0],
                )
            if "net.pth" in command:  # a state dict as another program would write it
                write_network(work / "net.pth")
                before[work / "net.pth"] = (work / "net.pth").stat().st_mtime_ns
            start = time.perf_counter()
            start_one = forked if options.fork and "--compile" not in command else started
            rc, stdout, stderr = start_one(
                checkout, options.entry, command.split(), work, environment
            )
            seconds = time.perf_counter() - start
            changed = sorted(
                p
                for p in work.rglob("*")
                if p.is_file()
                and before.get(p) != p.stat().st_mtime_ns
                and ".inductor" not in p.parts
            )
            new = sorted(
                {
                    "/".join(p.relative_to(work).parts[:2])
                    for p in changed
                    if p.relative_to(work).parts[0] in ("runs", "experts")
                }
                - {"/".join(p.relative_to(work).parts[:2]) for p in before}
            )
            run = [n for n in new if n.startswith("runs/") and not n.startswith("runs/.")]
            last = run[-1] if run else last
            said = masked(stdout, checkout)
            if command.startswith("estimate"):
                said = "estimate"  # nothing but times
            steps.append(
                {
                    "command": command,
                    "rc": rc,
                    "new_folders": new,
                    "said": said.splitlines(),
                    "complained": masked(stderr, checkout).splitlines()[-3:],
                    "files": {str(p.relative_to(work)): told(p, checkout) for p in changed},
                }
            )
            print(
                f"{name:24} {seconds:6.1f} s rc {rc} {len(changed):3} files  {command[:90]}",
                flush=True,
            )
            if rc and not name.startswith("words.wrong"):
                print("    " + " | ".join(stderr.strip().splitlines()[-3:])[:400], flush=True)
        found[name] = steps
        options.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(
        f"{len(found)} cells, {sum(len(s) for s in found.values())} commands in {time.perf_counter() - began:.0f} s, {options.out}"
    )
    if options.keep is None:
        shutil.rmtree(top)


def started(checkout, entry, words, work, environment):
    """(exit code, output, errors) of a command in an interpreter of its own."""
    done = subprocess.run(
        [str(checkout / ".venv/bin/python"), str(checkout / entry), *words],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


PRELOADED = (
    "torch",
    "tyro",
    "rich.console",
    "rich.table",
    "rich.progress",
    "sklearn.datasets",
    "scipy.stats",
    "matplotlib",
    "pyarrow",
    "pandas",
    "safetensors.torch",
)


def forked(checkout, entry, words, work, environment):
    """The same in a copy of this process."""
    for name in PRELOADED:
        try:
            __import__(name)
        except ImportError:
            pass
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = (
                    open(1, "w", encoding="utf-8"),
                    open(2, "w", encoding="utf-8"),
                )
                os.chdir(work)
                os.environ.clear()
                os.environ.update(environment)
                script = str(checkout / entry)
                sys.argv, sys.path[0] = [script, *words], str(checkout)
                try:
                    runpy.run_path(script, run_name="__main__")
                    code = 0
                except SystemExit as stop:
                    code = (
                        stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
                    )
                    if isinstance(stop.code, str):
                        print(stop.code, file=sys.stderr)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
        return os.waitstatus_to_exitcode(status), *texts


def write_network(path: Path) -> None:
    """The first teacher of the group's stores, by names of another program: order, kind and shape agree."""
    from safetensors.torch import load_file

    for manifest in sorted(path.parent.glob("experts/*/manifest.json")):
        facts = json.loads(manifest.read_text())
        if facts["identity"]["model"] == "convnet-d1-w8-bn":
            row = load_file(manifest.parent / "expert_0000.safetensors")
            params, buffers = row["params"][-1], row["buffers"][-1]
            named, at = {}, 0
            names = ["conv.weight", "conv.bias", "norm.weight", "norm.bias", "fc.weight", "fc.bias"]
            for key, shape in zip(names, facts["shapes"], strict=True):
                size = int(np.prod(shape))
                named[key] = params[at : at + size].reshape(shape).clone()
                at += size
            named |= {
                "norm.running_mean": buffers[:8].clone(),
                "norm.running_var": buffers[8:16].clone(),
                "norm.num_batches_tracked": buffers[16].long().clone(),
            }
            order = [
                "conv.weight",
                "conv.bias",
                "norm.weight",
                "norm.bias",
                "norm.running_mean",
                "norm.running_var",
                "norm.num_batches_tracked",
                "fc.weight",
                "fc.bias",
            ]
            torch.save({k: named[k] for k in order}, path)
            return


if __name__ == "__main__":
    main()
