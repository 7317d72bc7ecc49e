"""What the tests know of the published datasets, in one place."""

# of ImageNet, ten classes each
SUBSETS = ("imagenette", "imagewoof", "imagefruit", "imagemeow", "imagesquawk", "imageyellow")
NUM_CLASSES = {
    "digits": 10,
    "mnist": 10,
    "fashion_mnist": 10,
    "svhn": 10,
    "cifar10": 10,
    "cifar100": 100,
    "tiny_imagenet": 200,
    "imagenet": 1000,
}
NUM_CLASSES |= dict.fromkeys(SUBSETS, 10)

# of the images as they come; those of ImageNet and its subsets have the size that a recipe says
SHAPES = {
    "digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "svhn": (3, 32, 32), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32),
    "tiny_imagenet": (3, 64, 64),
}  # fmt: skip
