"""The distilled set as ready-to-train tensors. Needs torch and safetensors, nothing else.

    from load import load, train
    images, targets, info = load()     # images as a network should see them, targets as the loss should
    network = ...                      # any torch.nn.Module that takes such images
    train(network)                     # as info["protocol"] says

info["lr"] is the learned learning rate (None without one), info["classes"] names the classes.
info["preprocess"](pixels) brings real images with values in [0, 1], shape (B, C, H, W), into the
same form: use it on the test images.
info["protocol"] says how networks were trained on the set when it was evaluated, and
info["augment"](images, generator=None) changes a batch as it was changed then.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).resolve().parent


def decode(tensors):
    return tensors["images"], torch.arange(len(tensors["images"]))


def preprocess(pixels, tensors):
    """Pixels as networks see them."""
    return (pixels - tensors["preprocess.mean"].view(-1, 1, 1)) / tensors["preprocess.std"].view(-1, 1, 1)


def whole(u, low, high):
    """Whole numbers from low to high, both included."""
    return (u * (high - low + 1)).floor().long().clamp(max=high - low) + low


def picked(images, rows, columns):
    """Image b has at (r, c) what it had at (rows[b, r], columns[b, c]); zero where that lies outside."""
    height, width = images.shape[2:]
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    b = torch.arange(len(images), device=images.device)[:, None, None]
    found = images[b, :, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    return found.permute(0, 3, 1, 2) * inside


def warped(images, matrix):
    """Bilinear: the pixel at (x, y), corners at -1 and 1, is read at matrix (x, y); zero outside."""
    grid = torch.nn.functional.affine_grid(torch.nn.functional.pad(matrix, (0, 1)), list(images.shape), align_corners=True)
    return torch.nn.functional.grid_sample(images, grid, align_corners=True)


def color(images, u, settings):
    """Brightness, saturation, contrast."""
    brightness, saturation, contrast = u[:, :3, None, None, None].unbind(1)
    images = images + (brightness - 0.5) * settings["brightness"]
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (saturation * settings["saturation"])
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (contrast + settings["contrast"])


def crop(images, u, settings):
    """Shifted, zeros coming in."""
    lines = []
    for k, side in enumerate(images.shape[2:]):
        most = int(side * settings["crop"] + 0.5)
        lines.append(torch.arange(side, device=u.device) + whole(u[:, k], -most, most)[:, None])
    return picked(images, *lines)


def cutout(images, u, settings):
    """A rectangle of zeros, cut off at the border."""
    hidden = []
    for k, side in enumerate(images.shape[2:]):
        size, line = int(side * settings["cutout"] + 0.5), torch.arange(side, device=u.device)
        first = whole(u[:, k], 0, side - size % 2)[:, None] - size // 2
        hidden.append((line >= first.clamp(0, side - 1)) & (line <= (first + size - 1).clamp(0, side - 1)))
    return images * ~(hidden[0][:, None, :, None] & hidden[1][:, None, None, :])


def flip(images, u, settings):
    """Mirrored with this probability."""
    return torch.where((u[:, 0] < settings["flip"])[:, None, None, None], images.flip(3), images)


def scale(images, u, settings):
    """Stretched, columns and rows each by a factor."""
    smallest = 1 / settings["scale"]
    return warped(images, torch.diag_embed(smallest + u[:, :2] * (settings["scale"] - smallest)))


def rotate(images, u, settings):
    """Turned by an angle in degrees."""
    angle = (u[:, 0] - 0.5) * 2 * math.radians(settings["rotate"])
    cos, sin = angle.cos(), angle.sin()
    return warped(images, torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2))


def sample(num, settings, generator=None):
    """A draw for `num` images: one operation for all, its numbers, and those of what is always applied."""
    one_of, always = settings["one_of"] or [None], settings["always"]
    numbers = 4 if "resized_crop" in one_of + always else 3
    name = one_of[int(torch.randint(len(one_of), (1,), generator=generator))]
    u = torch.rand(num, numbers, generator=generator)
    return name, u, torch.rand(num, len(always), numbers, generator=generator)


def apply(images, settings, draw):
    """Images (B, C, H, W), in the form that `load` gives them, under a draw."""
    name, u, always = draw
    steps = [*zip(settings["always"], always.unbind(1), strict=True), (name, u)]
    for name, u in sorted(steps, key=lambda step: step[0] == "cutout"):  # last, so that what it hides is not moved
        images = OPERATIONS[name](images, u.to(images), settings) if name else images
    return images


def batch_loss(network, images, index, info, generator):
    """The loss of a batch."""
    return torch.nn.functional.cross_entropy(network(images), info["labels"][index].to(images.device))


def optimiser_of(network, lr, protocol):
    """The optimiser."""
    decay, momentum = protocol["weight_decay"], protocol["momentum"]
    return torch.optim.SGD(network.parameters(), lr, momentum, weight_decay=decay)


def set_rate(optimiser, lr, epoch, protocol):
    """The learning rate drops at the beginning of some epochs, counted from 0."""
    for drop in protocol["drops"]:
        if drop["epoch"] == epoch:
            if drop["optimiser_restarts"]:
                optimiser.state.clear()
            for group in optimiser.param_groups:
                group["lr"], group["momentum"] = lr * drop["lr_factor"], drop["momentum"]


OPERATIONS = {op.__name__: op for op in [color, crop, cutout, flip, scale, rotate]}


def load(folder=FOLDER):
    """(images, targets, info) of the set in a folder."""
    tensors = load_file(str(Path(folder) / "data.safetensors"))
    meta = json.loads((Path(folder) / "meta.json").read_text(encoding="utf-8"))
    images, item = decode(tensors)
    targets = tensors["classes"][item]
    settings = meta["protocol"]["augment"]
    info = {
        "lr": tensors["lr"].item() if "lr" in tensors else None,
        "classes": meta["class_names"],
        "preprocess": lambda pixels: preprocess(pixels, tensors),
        "protocol": meta.get("protocol"),
        "augment": lambda images, generator=None: apply(images, settings, sample(len(images), settings, generator)),
        "labels": targets,  # for train
    }
    return images, targets, info


def train(network, folder=FOLDER, lr=None, generator=None):
    """Train a network on the set by its protocol, where it lies, and return it in evaluation mode.

    lr None: the protocol's. `generator` decides order and augmentation; None: torch's own numbers.
    """
    images, _, info = load(folder)
    protocol, images = info["protocol"], images.to(next(network.parameters()).device)
    lr = lr or protocol["lr"]
    optimiser = optimiser_of(network.train(), lr, protocol)
    for epoch in range(protocol["epochs"]):
        set_rate(optimiser, lr, epoch, protocol)
        order = torch.randperm(len(images), generator=generator)
        for index in order.split(protocol["images_per_update"]):
            batch = info["augment"](images[index], generator)
            loss = batch_loss(network, batch, index, info, generator)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


if __name__ == "__main__":
    images, targets, info = load()
    print(tuple(images.shape), images.dtype, "images of", len(info["classes"]), "classes, learned lr", info["lr"])
