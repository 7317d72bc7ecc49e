"""Plain torch that is copied into the `load.py` of a shipped set, function by function.

What the protocol of that set uses is copied. Nothing here may import the engine, because whoever
has the folder need not have it. `protocol` is what `protocol.facts` returns, `settings` its
"augment", `u` are uniform numbers in [0, 1), of shape (B, 3 or 4), of which each operation makes
its parameters. The functions do what augment.py, losses.py and training.py do, in fewer words and
without their speed; tests hold both against each other.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

# What stands in the place of what the written file has, so that this file can be read and tested as
# it is.
OPERATIONS: dict[str, Any] = {}
CODEC: dict[str, Any] = {}  # the settings of the codec
FOLDER: Any = None
decode: Any = None  # of the codec


# Reading.


def load(folder=FOLDER):
    """(images, targets, info) of the set in a folder."""
    tensors = load_file(str(Path(folder) / "data.safetensors"))
    meta = json.loads((Path(folder) / "meta.json").read_text(encoding="utf-8"))
    images, item = decode(tensors, CODEC)
    images = as_seen(images, tensors)
    targets, info = targets_of(tensors["classes"][item], item, meta, folder)
    info["lr"] = tensors["lr"].item() if "lr" in tensors else None
    info["classes"] = meta["class_names"]
    info["preprocess"] = lambda pixels: preprocess(pixels, tensors)
    info["protocol"] = meta.get("protocol")
    if info["protocol"] is not None:
        settings = info["protocol"]["augment"]
        info["augment"] = lambda images, generator=None: augmented(images, settings, generator)
    return images, targets, info


def unchanged(images, tensors):
    """What is stored is what networks see."""
    return images


def preprocess_pixels(images, tensors):
    """What is stored are pixels."""
    return preprocess(images, tensors)


def normalised(pixels, tensors):
    """Pixels as networks see them."""
    mean, std = tensors["preprocess.mean"], tensors["preprocess.std"]
    return (pixels - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def whitened(pixels, tensors):
    """Pixels as networks see them: ZCA whitening."""
    flat = (pixels.flatten(1) - tensors["preprocess.mean"]) @ tensors["preprocess.matrix"]
    return flat.view_as(pixels)


def class_targets(classes, item, meta, folder):
    """(targets, what they are): the classes of the images."""
    return classes, {"labels": classes}  # labels: for train


def logit_targets(classes, item, meta, folder):
    """(targets, what they are): probabilities, which cross_entropy takes in place of classes."""
    logits = all_logits(stored_labels(meta, folder), len(meta["class_names"]))
    logits = logits[item] if meta["label_of"] == "stored" else logits
    targets = logits.softmax(1)
    protocol = meta.get("protocol")
    hard = protocol is not None and protocol["labels"] == "classes"
    labels = classes if hard else targets  # for train
    return targets, {"logits": logits, "image_classes": classes, "labels": labels}


def feature_targets(classes, item, meta, folder):
    """(targets, what they are): features.

    The outputs of a network are to come near to them by squared error.
    """
    targets = stored_labels(meta, folder)["features"].float()
    targets = targets[item] if meta["label_of"] == "stored" else targets
    return targets, {"image_classes": classes}


def stored_labels(meta, folder):
    """The tensors of the labels, which must be those of this set."""
    path = Path(folder) / "labels.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: it holds the soft labels of this set and belongs beside "
            "data.safetensors"
        )
    with safe_open(str(path), "pt") as file:
        digest = (file.metadata() or {}).get("digest")
    if digest != meta["labels_digest"]:
        raise ValueError(
            f"{path} holds the labels of another set; put the file there that was written with "
            "this one"
        )
    return load_file(str(path))


def all_logits(tensors, num_classes):
    """Soft labels (N, K)."""
    if "logits.index" not in tensors:
        return tensors["logits"].float()
    # the largest, and the mean of the others
    top, rest = tensors["logits"].float().split([tensors["logits.index"].shape[1], 1], 1)
    return rest.expand(-1, num_classes).scatter(1, tensors["logits.index"].long(), top)


# Augmentation.


def integers(u, low, high):
    """Whole numbers from low to high, both included."""
    return (u * (high - low + 1)).floor().long().clamp(max=high - low) + low


def picked(images, rows, columns):
    """Image b has at (r, c) what it had at (rows[b, r], columns[b, c]).

    It is zero where that lies outside.
    """
    height, width = images.shape[2:]
    row_inside = ((rows >= 0) & (rows < height))[:, None, :, None]
    column_inside = ((columns >= 0) & (columns < width))[:, None, None, :]
    inside = row_inside & column_inside
    b = torch.arange(len(images), device=images.device)[:, None, None]
    nearest = rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    return images[b, :, nearest[0], nearest[1]].permute(0, 3, 1, 2) * inside


def warped(images, matrix):
    """Bilinear: the pixel at (x, y) is read at matrix (x, y), zero outside; corners at -1 and 1."""
    grid = torch.nn.functional.affine_grid(
        torch.nn.functional.pad(matrix, (0, 1)), list(images.shape), align_corners=True
    )
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
        lines.append(torch.arange(side, device=u.device) + integers(u[:, k], -most, most)[:, None])
    return picked(images, *lines)


def cutout(images, u, settings):
    """A rectangle of zeros, cut off at the border."""
    hidden = []
    for k, side in enumerate(images.shape[2:]):
        size, line = int(side * settings["cutout"] + 0.5), torch.arange(side, device=u.device)
        first = integers(u[:, k], 0, side - size % 2)[:, None] - size // 2
        hidden.append(
            (line >= first.clamp(0, side - 1)) & (line <= (first + size - 1).clamp(0, side - 1))
        )
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


def roll(images, u, settings):
    """Shifted cyclically, down and to the right."""
    lines = []
    for k, side in enumerate(images.shape[2:]):
        lines.append(
            (torch.arange(side, device=u.device) - integers(u[:, k], 0, settings["roll"])[:, None])
            % side
        )
    return picked(images, *lines)


def resized_crop(images, u, settings):
    """A part of the image, of this area and ratio of the sides, stretched to the whole."""
    height, width = images.shape[2:]
    area = height * width * (settings["area"] + u[:, 0] * (1 - settings["area"]))
    ratio = ((2 * u[:, 1] - 1) * math.log(settings["ratio"])).exp()
    weights = []
    for k, side, size in ((2, height, (area / ratio).sqrt()), (3, width, (area * ratio).sqrt())):
        size, line = size.round().clamp(1, side)[:, None], torch.arange(side, device=u.device)
        at = ((line + 0.5) * (size / side) - 0.5).clamp(min=0).minimum(size - 1)
        at = at + integers(u[:, k, None], 0, (side - size).long())
        weights.append((1 - (at[:, :, None] - line).abs()).clamp(min=0)[:, None])
    return weights[0] @ images @ weights[1].mT


def shuffle(images, u, settings):
    """Cut into strips along both sides, which are put in another order."""
    lines, patches = [], settings["patches"]
    for k, side in enumerate(images.shape[2:]):
        size = side // patches
        strips = torch.arange(side, device=u.device).split(
            [size] * (patches - 1) + [side - size * (patches - 1)]
        )
        orders = torch.stack([torch.cat(order) for order in itertools.permutations(strips)])
        lines.append(orders[integers(u[:, 1 - k], 0, len(orders) - 1)])
    return picked(images, *lines)


def sample(num, settings, generator=None):
    """A draw for `num` images: one operation for all, its numbers, those of what always applies."""
    one_of, always = settings["one_of"] or [None], settings["always"]
    numbers = 4 if "resized_crop" in one_of + always else 3
    name = one_of[int(torch.randint(len(one_of), (1,), generator=generator))]
    u = torch.rand(num, numbers, generator=generator)
    return name, u, torch.rand(num, len(always), numbers, generator=generator)


def apply(images, settings, draw):
    """Images (B, C, H, W), in the form that `load` gives them, under a draw."""
    name, u, always = draw
    steps = [*zip(settings["always"], always.unbind(1), strict=True), (name, u)]
    # last, so that what it hides is not moved
    for name, u in sorted(steps, key=lambda step: step[0] == "cutout"):
        images = OPERATIONS[name](images, u.to(images), settings) if name else images
    return images


def augmented_by_drawing(images, settings, generator):
    """Images (B, C, H, W) under a draw of their own."""
    return apply(images, settings, sample(len(images), settings, generator))


def augmented_by_nothing(images, settings, generator):
    """Images as they are, which the protocol does not augment."""
    return images


# Mixing.


def sample_cutmix(num, height, width, protocol, generator=None):
    """(partner of each image, share of its own pixels, rows and columns of the partner's box)."""
    use, covered, *centre = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    partner = torch.randperm(num, generator=generator)
    if use >= protocol["cutmix_probability"]:
        return partner, 1.0, (slice(0, 0), slice(0, 0))
    box = []
    for side, at in zip((height, width), centre, strict=True):
        half = int(side * math.sqrt(covered)) // 2
        box.append(slice(max(0, int(at * side) - half), min(side, int(at * side) + half)))
    hidden = (box[0].stop - box[0].start) * (box[1].stop - box[1].start)
    return partner, 1 - hidden / (height * width), tuple(box)


def cutmix(images, protocol, generator):
    """Images with a box of each taken from its partner; the partners; the share of own pixels."""
    height, width = images.shape[2:]
    partner, share, box = sample_cutmix(len(images), height, width, protocol, generator)
    mixed = images.clone()
    mixed[:, :, box[0], box[1]] = images[partner][:, :, box[0], box[1]]
    return mixed, partner, share


def sample_mixup(num, protocol, generator=None):
    """(each image's partner, share of the image itself).

    The share is of Beta(a, a), by Johnk's method.
    """
    partner, x, y = torch.randperm(num, generator=generator), 1.0, 1.0
    while not 0 < x + y <= 1:
        uniform = torch.rand(2, generator=generator, dtype=torch.float64)
        x, y = (uniform ** (1 / protocol["mixup_beta"])).tolist()
    return partner, x / (x + y)


def mixup(images, protocol, generator):
    """Images blended with their partners; the partners; the share of the images themselves."""
    partner, share = sample_mixup(len(images), protocol, generator)
    return share * images + (1 - share) * images[partner], partner, share


def unmixed(images, protocol, generator):
    """Images as they are, each its own partner."""
    return images, torch.arange(len(images)), 1.0


# Training. Of functions that stand for the same thing the written file has one, under the name that
# `train` uses.


def cross_entropy_of_batch(network, images, index, info, generator):
    """The loss of a batch."""
    return torch.nn.functional.cross_entropy(
        network(images), info["labels"][index].to(images.device)
    )


def cross_entropy_of_mixed_batch(network, images, index, info, generator):
    """The loss of a batch that is mixed, with the labels of both images by their shares."""
    images, partner, share = mixed_by(images, info["protocol"], generator)
    outputs, labels = network(images), info["labels"][index].to(images.device)
    loss = torch.nn.functional.cross_entropy
    return share * loss(outputs, labels) + (1 - share) * loss(outputs, labels[partner])


def soft_loss_of_batch(network, images, index, info, generator):
    """The loss of a batch with soft labels, mixed where the protocol mixes."""
    protocol = info["protocol"]
    images, partner, share = mixed_by(images, protocol, generator)
    outputs, logits, classes = network(images), info["logits"][index], info["image_classes"][index]
    wanted = mixed_logits(logits, partner, share, protocol).to(images.device)
    loss = soft_loss(outputs, wanted, protocol)
    if weight := protocol["class_loss_weight"]:
        for part, of in ((share, classes), (1 - share, classes[partner])):
            loss = loss + weight * part * torch.nn.functional.cross_entropy(
                outputs, of.to(images.device)
            )
    return loss


def blended_logits(logits, partner, share, protocol):
    """Logits of mixed images from those of both."""
    return share * logits + (1 - share) * logits[partner]


def blended_probabilities(logits, partner, share, protocol):
    """Logits whose probabilities, at the temperature, are those of both images by their shares."""
    said = (logits / protocol["temperature"]).log_softmax(1)
    both = [said + (math.log(share) if share > 0 else -math.inf)]
    both.append(said[partner] + (math.log(1 - share) if share < 1 else -math.inf))
    return protocol["temperature"] * torch.logaddexp(*both)


def kl_divergence(outputs, wanted, protocol):
    """Of the softmax of the labels from that of the outputs, both at a temperature."""
    said, wanted = ((x / protocol["temperature"]).log_softmax(1) for x in (outputs, wanted))
    loss = torch.nn.functional.kl_div(said, wanted, reduction="batchmean", log_target=True)
    return loss * protocol["temperature"] ** 2 if protocol["times_temperature_squared"] else loss


def squared_error(outputs, wanted, protocol):
    """Of the logits."""
    return torch.nn.functional.mse_loss(outputs, wanted)


def sgd(network, lr, protocol):
    """The optimiser."""
    decay, momentum = protocol["weight_decay"], protocol["momentum"]
    return torch.optim.SGD(network.parameters(), lr, momentum, weight_decay=decay)


def adamw(network, lr, protocol):
    """The optimiser."""
    return torch.optim.AdamW(
        network.parameters(), lr, tuple(protocol["betas"]), weight_decay=protocol["weight_decay"]
    )


def sgd_sparing(network, lr, protocol):
    """The optimiser."""
    return torch.optim.SGD(decayed(network, protocol), lr, protocol["momentum"])


def adamw_sparing(network, lr, protocol):
    """The optimiser."""
    return torch.optim.AdamW(decayed(network, protocol), lr, tuple(protocol["betas"]))


def decayed(network, protocol):
    """Parameters in two groups: biases and those of normalisation layers have no weight decay."""
    layers = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._NormBase)
    norms = set()
    for module in network.modules():
        if isinstance(module, layers):
            norms |= {id(p) for p in module.parameters(recurse=False)}
    spared, others = [], []
    for p in network.parameters():
        group = spared if p.dim() <= 1 or id(p) in norms else others
        group.append(p)
    groups = (spared, 0.0), (others, protocol["weight_decay"])
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def drop_rate(optimiser, lr, epoch, protocol):
    """The learning rate drops at the beginning of some epochs, counted from 0."""
    for drop in protocol["drops"]:
        if drop["epoch"] == epoch:
            if drop["optimiser_restarts"]:
                optimiser.state.clear()
            for group in optimiser.param_groups:
                group["lr"], group["momentum"] = lr * drop["lr_factor"], drop["momentum"]


def cosine_rate(optimiser, lr, epoch, protocol):
    """The learning rate of an epoch, counted from 0."""
    angle = math.pi * epoch / (protocol["cosine_stretch"] * protocol["epochs"])
    for group in optimiser.param_groups:
        group["lr"] = lr * (1 + math.cos(angle)) / 2


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


def refuse(network, folder=FOLDER, lr=None, generator=None):
    """Networks were trained on this set by a loss or with labels that this file does not have.

    See info["protocol"].
    """
    raise NotImplementedError(
        "this set was trained on by a loss or labels that are not in this folder; "
        'see info["protocol"]'
    )


as_seen: Any = preprocess_pixels
preprocess: Any = normalised
targets_of: Any = class_targets
augmented: Any = augmented_by_drawing
mixed_by: Any = unmixed
mixed_logits: Any = blended_logits
soft_loss: Any = kl_divergence
batch_loss: Any = cross_entropy_of_batch
optimiser_of: Any = sgd
set_rate: Any = drop_rate
