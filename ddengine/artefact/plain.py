"""Plain torch that is copied into the `load.py` of a shipped set, function by function.

What the protocol of that set uses is copied. Nothing here may import the engine, because whoever
has the folder need not have it. `protocol` is what `protocol.facts` returns, `settings` its
"augment", `u` are uniform numbers in [0, 1), of shape (B, 3 or 4), of which each operation makes
its parameters. The functions do what augment.py, losses.py and training.py do, in fewer words and
without their speed; tests hold both against each other.
"""

import hashlib
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
    """(images, targets, info) of the set in a folder; ValueError where its files are damaged."""
    try:
        return set_in(Path(folder))
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:  # whatever torch and safetensors say of damaged files
        raise ValueError(f"{folder} is damaged ({error!r}); get its files again") from error


def set_in(folder):
    """(images, targets, info) of the set in a folder."""
    meta = sound_meta(folder)
    check_bytes(folder / "data.safetensors", meta)
    tensors = load_file(str(folder / "data.safetensors"))
    decoded, item = decode(tensors, CODEC)
    images = as_seen(decoded, tensors)
    classes = tensors["classes"][item]
    targets, info = targets_of(classes, item, meta, folder)
    info["lr"] = None
    if "lr" in tensors:
        info["lr"] = tensors["lr"].item()
    info["classes"] = meta["class_names"]
    info["preprocess"] = lambda pixels: preprocess(pixels, tensors)
    info["protocol"] = meta.get("protocol")
    if info["protocol"] is not None:
        settings = info["protocol"]["augment"]
        info["augment"] = lambda images, generator=None: augmented(images, settings, generator)
    return images, targets, info


def sound_meta(folder):
    """What meta.json says; ValueError where it was changed after it was written."""
    meta = json.loads(there(folder / "meta.json").read_text(encoding="utf-8"))
    stated = meta.pop("blake2b", None)
    if stated is not None and stated != digest_of(meta):
        raise ValueError(f"{folder / 'meta.json'} was changed after it was written; restore it")
    return meta


def there(path):
    """The path of a file; FileNotFoundError for any other, such as a pipe, which never ends."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    return path


def check_bytes(path, meta):
    """ValueError for a file that is not the one that meta.json says, or for none."""
    there(path)
    stated = meta.get("digests", {}).get(path.name)
    if stated is not None and stated != digest_of_file(path):
        raise ValueError(f"{path} is damaged; get the file again")


def digest_of(facts, data=()):
    """BLAKE2b of plain facts, and of bytes in parts."""
    text = json.dumps(facts, sort_keys=True)
    state = hashlib.blake2b(text.encode(), digest_size=16)
    for part in data:
        state.update(part)
    return state.hexdigest()


def digest_of_file(path):
    """BLAKE2b of a safetensors file, but for what its header says of it."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"{path} is damaged; get the file again")
        header = json.loads(file.read(length))
        header["__metadata__"].pop("blake2b", None)
        return digest_of(header, iter(lambda: file.read(2**20), b""))


def unchanged(images, tensors):
    """What is stored is what networks see."""
    return images


def preprocess_pixels(images, tensors):
    """What is stored are pixels."""
    return preprocess(images, tensors)


def normalised(pixels, tensors):
    """Pixels as networks see them."""
    mean = tensors["preprocess.mean"].view(-1, 1, 1)
    std = tensors["preprocess.std"].view(-1, 1, 1)
    return (pixels - mean) / std


def whitened(pixels, tensors):
    """Pixels as networks see them: ZCA whitening."""
    centred = pixels.flatten(1) - tensors["preprocess.mean"]
    white = centred @ tensors["preprocess.matrix"]
    return white.view_as(pixels)


def class_targets(classes, item, meta, folder):
    """(targets, what they are): the classes of the images."""
    return classes, {"labels": classes, "image_classes": classes}  # labels: for train


def logit_targets(classes, item, meta, folder):
    """(targets, what they are): probabilities, which cross_entropy takes in place of classes."""
    stored = stored_labels(meta, folder)
    logits = all_logits(stored, len(meta["class_names"]))
    if meta["label_of"] == "stored":
        logits = logits[item]
    targets = logits.softmax(1)
    labels = targets  # for train
    protocol = meta.get("protocol")
    if protocol is not None and protocol["labels"] == "classes":
        labels = classes
    return targets, {"logits": logits, "image_classes": classes, "labels": labels}


def weight_targets(classes, item, meta, folder):
    """(targets, what they are): weights of the classes, which cross_entropy takes as they are."""
    stored = stored_labels(meta, folder)
    targets = stored["weights"].float()
    if meta["label_of"] == "stored":
        targets = targets[item]
    labels = targets  # for train
    protocol = meta.get("protocol")
    if protocol is not None and protocol["labels"] == "classes":
        labels = classes
    return targets, {"weights": targets, "image_classes": classes, "labels": labels}


def feature_targets(classes, item, meta, folder):
    """(targets, what they are): features.

    The outputs of a network are to come near to them by squared error.
    """
    stored = stored_labels(meta, folder)
    targets = stored["features"].float()
    if meta["label_of"] == "stored":
        targets = targets[item]
    return targets, {"features": targets, "image_classes": classes, "labels": classes}


def stored_labels(meta, folder):
    """The tensors of the labels, which must be those of this set."""
    path = Path(folder) / "labels.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: it holds the labels of this set and belongs beside "
            "data.safetensors"
        )
    with safe_open(str(there(path)), "pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("digest") != meta["labels_digest"]:
        raise ValueError(
            f"{path} holds the labels of another set; put the file there that was written with "
            "this one"
        )
    check_bytes(path, meta)
    return load_file(str(path))


def all_logits(tensors, num_classes):
    """Soft labels (N, K)."""
    logits = tensors["logits"].float()
    if "logits.index" not in tensors:
        return logits
    # the largest, and the mean of the others
    index = tensors["logits.index"].long()
    largest, others = logits.split([index.shape[1], 1], 1)
    return others.expand(-1, num_classes).scatter(1, index, largest)


# Augmentation.


def integers(u, low, high):
    """Whole numbers from low to high, both included."""
    steps = (u * (high - low + 1)).floor().long()
    return steps.clamp(max=high - low) + low


def picked(images, rows, columns):
    """Image b has at (r, c) what it had at (rows[b, r], columns[b, c]).

    It is zero where that lies outside.
    """
    height, width = images.shape[2:]
    row_inside = (rows >= 0) & (rows < height)
    column_inside = (columns >= 0) & (columns < width)
    inside = row_inside[:, None, :, None] & column_inside[:, None, None, :]
    b = torch.arange(len(images), device=images.device)[:, None, None]
    row = rows.clamp(0, height - 1)[:, :, None]
    column = columns.clamp(0, width - 1)[:, None, :]
    nearest = images[b, :, row, column]
    return nearest.permute(0, 3, 1, 2) * inside


def warped(images, matrix):
    """Bilinear: the pixel at (x, y) is read at matrix (x, y), zero outside; corners at -1 and 1."""
    theta = torch.nn.functional.pad(matrix, (0, 1))
    shape = list(images.shape)
    grid = torch.nn.functional.affine_grid(theta, shape, align_corners=True)
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
        line = torch.arange(side, device=u.device)
        most = int(side * settings["crop"] + 0.5)
        shift = integers(u[:, k], -most, most)
        lines.append(line + shift[:, None])
    return picked(images, *lines)


def cutout(images, u, settings):
    """A rectangle of zeros, cut off at the border."""
    hidden = []
    for k, side in enumerate(images.shape[2:]):
        line = torch.arange(side, device=u.device)
        size = int(side * settings["cutout"] + 0.5)
        middle = integers(u[:, k], 0, side - size % 2)
        first = middle[:, None] - size // 2
        last = first + size - 1
        from_first = line >= first.clamp(0, side - 1)
        to_last = line <= last.clamp(0, side - 1)
        hidden.append(from_first & to_last)
    rows, columns = hidden
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


def flip(images, u, settings):
    """Mirrored with this probability."""
    mirrored = u[:, 0] < settings["flip"]
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def scale(images, u, settings):
    """Stretched, columns and rows each by a factor."""
    largest = settings["scale"]
    smallest = 1 / largest
    factors = smallest + u[:, :2] * (largest - smallest)
    return warped(images, torch.diag_embed(factors))


def rotate(images, u, settings):
    """Turned by an angle in degrees."""
    most = math.radians(settings["rotate"])
    angle = (u[:, 0] - 0.5) * 2 * most
    cos = angle.cos()
    sin = angle.sin()
    matrix = torch.stack([cos, -sin, sin, cos], 1)
    return warped(images, matrix.view(-1, 2, 2))


def roll(images, u, settings):
    """Shifted cyclically, down and to the right."""
    lines = []
    for k, side in enumerate(images.shape[2:]):
        line = torch.arange(side, device=u.device)
        shift = integers(u[:, k], 0, settings["roll"])
        lines.append((line - shift[:, None]) % side)
    return picked(images, *lines)


def resized_crop(images, u, settings):
    """A part of the image, of this area and ratio of the sides, stretched to the whole."""
    height, width = images.shape[2:]
    smallest = settings["area"]
    area = height * width * (smallest + u[:, 0] * (1 - smallest))
    ratio = ((2 * u[:, 1] - 1) * math.log(settings["ratio"])).exp()
    rows = resizing(height, (area / ratio).sqrt(), u[:, 2, None])
    columns = resizing(width, (area * ratio).sqrt(), u[:, 3, None])
    return rows @ images @ columns.mT


def resizing(side, size, u):
    """(B, 1, side, side): what stretches `size` (B,) lines, from a drawn one on, to the side."""
    line = torch.arange(side, device=u.device)
    size = size.round().clamp(1, side)[:, None]
    at = (line + 0.5) * (size / side) - 0.5
    at = at.clamp(min=0).minimum(size - 1)
    at = at + integers(u, 0, (side - size).long())
    distance = (at[:, :, None] - line).abs()
    return (1 - distance).clamp(min=0)[:, None]


def shuffle(images, u, settings):
    """Cut into strips along both sides, which are put in another order."""
    patches = settings["patches"]
    lines = []
    for k, side in enumerate(images.shape[2:]):
        line = torch.arange(side, device=u.device)
        size = side // patches
        last = side - size * (patches - 1)
        strips = line.split([size] * (patches - 1) + [last])
        orders = torch.stack([torch.cat(order) for order in itertools.permutations(strips)])
        number = integers(u[:, 1 - k], 0, len(orders) - 1)
        lines.append(orders[number])
    return picked(images, *lines)


def sample(num, settings, generator=None):
    """A draw for `num` images: one operation for all, its numbers, those of what always applies."""
    one_of = settings["one_of"] or [None]
    always = settings["always"]
    numbers = 3
    if "resized_crop" in one_of + always:
        numbers = 4
    number = int(torch.randint(len(one_of), (1,), generator=generator))
    u = torch.rand(num, numbers, generator=generator)
    u_always = torch.rand(num, len(always), numbers, generator=generator)
    return one_of[number], u, u_always


def apply(images, settings, draw):
    """Images (B, C, H, W), in the form that `load` gives them, under a draw."""
    name, u, u_always = draw
    steps = list(zip(settings["always"], u_always.unbind(1), strict=True))
    if name:
        steps.append((name, u))
    # last, so that what it hides is not moved
    steps.sort(key=lambda step: step[0] == "cutout")
    for name, u in steps:
        images = OPERATIONS[name](images, u.to(images), settings)
    return images


def augmented_by_drawing(images, settings, generator):
    """Images (B, C, H, W) under a draw of their own."""
    draw = sample(len(images), settings, generator)
    return apply(images, settings, draw)


def augmented_by_nothing(images, settings, generator):
    """Images as they are, which the protocol does not augment."""
    return images


# Mixing.


def sample_cutmix(num, height, width, protocol, generator=None):
    """(partner of each image, share of its own pixels, rows and columns of the partner's box)."""
    numbers = torch.rand(4, generator=generator, dtype=torch.float64)
    use, covered, *centre = numbers.tolist()
    partner = torch.randperm(num, generator=generator)
    if use >= protocol["cutmix_probability"]:
        return partner, 1.0, (slice(0, 0), slice(0, 0))
    box = []
    hidden = 1
    for side, at in zip((height, width), centre, strict=True):
        half = int(side * math.sqrt(covered)) // 2
        first = max(0, int(at * side) - half)
        end = min(side, int(at * side) + half)
        box.append(slice(first, end))
        hidden *= end - first
    return partner, 1 - hidden / (height * width), tuple(box)


def cutmix(images, protocol, generator):
    """Images with a box of each taken from its partner; the partners; the share of own pixels."""
    height, width = images.shape[2:]
    partner, share, box = sample_cutmix(len(images), height, width, protocol, generator)
    rows, columns = box
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[partner][:, :, rows, columns]
    return mixed, partner, share


def sample_mixup(num, protocol, generator=None):
    """(each image's partner, share of the image itself).

    The share is of Beta(a, a), by Johnk's method.
    """
    partner = torch.randperm(num, generator=generator)
    exponent = 1 / protocol["mixup_beta"]
    x = y = 1.0
    while not 0 < x + y <= 1:
        uniform = torch.rand(2, generator=generator, dtype=torch.float64)
        x, y = (uniform**exponent).tolist()
    return partner, x / (x + y)


def mixup(images, protocol, generator):
    """Images blended with their partners; the partners; the share of the images themselves."""
    partner, share = sample_mixup(len(images), protocol, generator)
    mixed = share * images + (1 - share) * images[partner]
    return mixed, partner, share


def unmixed(images, protocol, generator):
    """Images as they are, each its own partner."""
    return images, torch.arange(len(images)), 1.0


# Training. Of functions that stand for the same thing the written file has one, under the name that
# `train` uses.


def cross_entropy_of_batch(network, images, index, info, generator):
    """The loss of a batch."""
    labels = info["labels"][index].to(images.device)
    return torch.nn.functional.cross_entropy(network(images), labels)


def cross_entropy_of_mixed_batch(network, images, index, info, generator):
    """The loss of a batch that is mixed, with the labels of both images by their shares."""
    images, partner, share = mixed_by(images, info["protocol"], generator)
    outputs = network(images)
    labels = info["labels"][index].to(images.device)
    return mixed_cross_entropy(outputs, labels, labels[partner], share)


def mixed_cross_entropy(outputs, labels, partner_labels, share):
    """Of mixed images, the loss with the labels of both by their shares."""
    of_image = torch.nn.functional.cross_entropy(outputs, labels)
    of_partner = torch.nn.functional.cross_entropy(outputs, partner_labels)
    return share * of_image + (1 - share) * of_partner


def soft_loss_of_batch(network, images, index, info, generator):
    """The loss of a batch with soft labels, mixed where the protocol mixes."""
    protocol = info["protocol"]
    images, partner, share = mixed_by(images, protocol, generator)
    outputs = network(images)
    logits = info["logits"][index]
    wanted = mixed_logits(logits, partner, share, protocol).to(images.device)
    loss = protocol.get("label_loss_weight", 1.0) * soft_loss(outputs, wanted, protocol)
    weight = protocol["class_loss_weight"]
    if weight:
        classes = info["image_classes"][index]
        for part, of in ((share, classes), (1 - share, classes[partner])):
            hard_loss = torch.nn.functional.cross_entropy(outputs, of.to(images.device))
            loss = loss + weight * part * hard_loss
    return loss


def feature_loss_of_batch(network, images, index, info, generator):
    """The squared error of a batch with features, mixed where the protocol mixes."""
    images, partner, share = mixed_by(images, info["protocol"], generator)
    outputs = network(images)
    wanted = blended_logits(info["features"][index], partner, share, info["protocol"])
    return torch.nn.functional.mse_loss(outputs, wanted.to(images.device))


def blended_logits(logits, partner, share, protocol):
    """Logits of mixed images from those of both."""
    return share * logits + (1 - share) * logits[partner]


def blended_probabilities(logits, partner, share, protocol):
    """Logits whose probabilities, at the temperature, are those of both images by their shares."""
    temperature = protocol["temperature"]
    log_probabilities = (logits / temperature).log_softmax(1)
    of_image = log_probabilities + log_of_share(share)
    of_partner = log_probabilities[partner] + log_of_share(1 - share)
    return temperature * torch.logaddexp(of_image, of_partner)


def log_of_share(share):
    """The logarithm of a share, which may be 0."""
    if share > 0:
        return math.log(share)
    return -math.inf


def kl_divergence(outputs, wanted, protocol):
    """Of the softmax of the labels from that of the outputs, both at a temperature."""
    temperature = protocol["temperature"]
    reached = (outputs / temperature).log_softmax(1)
    wanted = (wanted / temperature).log_softmax(1)
    loss = torch.nn.functional.kl_div(reached, wanted, reduction="batchmean", log_target=True)
    if protocol["times_temperature_squared"]:
        loss = loss * temperature**2
    return loss


def squared_error(outputs, wanted, protocol):
    """Of the logits."""
    return torch.nn.functional.mse_loss(outputs, wanted)


def sgd(network, lr, protocol):
    """The optimiser."""
    decay = protocol["weight_decay"]
    momentum = protocol["momentum"]
    return torch.optim.SGD(network.parameters(), lr, momentum, weight_decay=decay)


def adamw(network, lr, protocol):
    """The optimiser."""
    decay = protocol["weight_decay"]
    betas = tuple(protocol["betas"])
    return torch.optim.AdamW(network.parameters(), lr, betas, weight_decay=decay)


def sgd_sparing(network, lr, protocol):
    """The optimiser."""
    groups = decayed(network, protocol)
    return torch.optim.SGD(groups, lr, protocol["momentum"])


def adamw_sparing(network, lr, protocol):
    """The optimiser."""
    groups = decayed(network, protocol)
    betas = tuple(protocol["betas"])
    return torch.optim.AdamW(groups, lr, betas)


def optimiser_of_torch(network, lr, protocol):
    """The optimiser, by its name in torch."""
    kind = vars(torch.optim)[protocol["optimiser"]]
    decay = protocol["weight_decay"]
    settings = protocol["optimiser_settings"]
    return kind(network.parameters(), lr=lr, weight_decay=decay, **settings)


def decayed(network, protocol):
    """Parameters in two groups: biases and those of normalisation layers have no weight decay."""
    layers = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._NormBase)
    norms = set()
    for module in network.modules():
        if isinstance(module, layers):
            norms.update(map(id, module.parameters(recurse=False)))
    spared = {"params": [], "weight_decay": 0.0}
    others = {"params": [], "weight_decay": protocol["weight_decay"]}
    for parameter in network.parameters():
        if parameter.dim() <= 1 or id(parameter) in norms:
            spared["params"].append(parameter)
        else:
            others["params"].append(parameter)
    return [group for group in (spared, others) if group["params"]]


def drop_rate(optimiser, lr, epoch, protocol):
    """The learning rate drops at the beginning of some epochs, counted from 0."""
    for drop in protocol["drops"]:
        if drop["epoch"] != epoch:
            continue
        if drop["optimiser_restarts"]:
            optimiser.state.clear()
        for group in optimiser.param_groups:
            group["lr"] = lr * drop["lr_factor"]
            group["momentum"] = drop["momentum"]


def cosine_rate(optimiser, lr, epoch, protocol):
    """The learning rate of an epoch, counted from 0."""
    length = protocol["cosine_stretch"] * protocol["epochs"]
    angle = math.pi * epoch / length
    for group in optimiser.param_groups:
        group["lr"] = lr * (1 + math.cos(angle)) / 2


def train(network, folder=FOLDER, lr=None, generator=None):
    """Train a network on the set by its protocol, where it lies, and return it in evaluation mode.

    lr None: the protocol's. `generator` decides order and augmentation; None: torch's own numbers.
    """
    images, _, info = load(folder)
    images = images.to(next(network.parameters()).device)
    protocol = info["protocol"]
    lr = lr or protocol["lr"]
    network.train()
    optimiser = optimiser_of(network, lr, protocol)
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


def train_as_students(network, folder=FOLDER, lr=None, generator=None):
    """Train a network as the set's students were trained, and return it in evaluation mode.

    lr None: the protocol's; rates that were learned with the set have it as their mean. `generator`
    decides batches and augmentation; None: torch's own numbers.
    """
    images, _, info = load(folder)
    images = images.to(next(network.parameters()).device)
    protocol = info["protocol"]
    lr = lr or protocol["lr"]
    rates = protocol["rates"] or [lr]
    factor = lr * len(rates) / sum(rates)
    network.train()
    optimiser = optimiser_of(network, lr, protocol)
    for step in range(protocol["updates"]):
        for group in optimiser.param_groups:
            group["lr"] = factor * rates[step % len(rates)]
        index = class_batch(info["image_classes"], step, protocol["batches"], generator)
        batch = info["augment"](images[index], generator)
        loss = batch_loss(network, batch, index, info, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network.eval()


def class_batch(classes, step, batches, generator):
    """The images of an update: some of each class, drawn at random or one after another."""
    names = classes.unique()
    if batches["classes"] is not None:
        drawn = torch.randperm(len(names), generator=generator)[: batches["classes"]]
        names = names[drawn]
    parts = []
    for name in names:
        members = (classes == name).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        if batches["order"] == "turns":
            first = step * batches["per_class"]
            order = (torch.arange(len(members)) + first) % len(members)
        parts.append(members[order[: batches["per_class"]]])
    return torch.cat(parts)


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
