"""Networks that others have trained, as experts: the weights that torchvision publishes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from buffers.exchange import load_pt
from buffers.steps import Step, StepConfig
from ddengine.artefact.exchange import is_plain, is_state, sha256
from ddengine.models.torchvision_models import TorchvisionClassifier
from ddengine.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Pretrained(StepConfig):
    """No training: the one expert has torchvision's weights, out of a file that is on disk."""

    weights: str = "IMAGENET1K_V1"  # torchvision's name of the weights
    folder: str | None = None  # where the .pth files lie; None: torch hub's cache

    @property
    def trains(self) -> bool:
        """Nothing is."""
        return False

    def build(self, model: nn.Module, epochs: int) -> Step:
        """Raise TypeError: there is no step. `load` fills the network."""
        raise TypeError("published weights are read, not trained")

    def load(self, network: nn.Module, name: str) -> dict[str, Any]:
        """Put the weights into `network`, and say which file they came from.

        The network was built as `name` (torchvision/NAME). Nothing is downloaded. Raises UserError
        for another network, unknown weights, a file that is not there, or weights that do not fit.
        """
        path, url = self.find(network, name)
        assert isinstance(network, TorchvisionClassifier)  # find refuses others
        state = load_pt(path)
        if not is_state(state) or not all(map(is_plain, state.values())):
            raise UserError(
                f"{path} does not hold the weights of a network, tensors by name; download {url} "
                "in its place."
            )
        digest = sha256(path)
        if not is_published(path, digest):
            raise UserError(
                f"{path} is not the file that torchvision publishes under this name; download "
                f"{url} in its place."
            )
        network.load_torchvision(state)
        return {"file": path.name, "sha256": digest}

    def find(self, network: nn.Module, name: str) -> tuple[Path, str]:
        """(the file, where torchvision publishes it).

        Raises UserError for another network, unknown weights, and a file that is not there.
        """
        if not isinstance(network, TorchvisionClassifier):
            raise UserError(
                f"There are pretrained weights of torchvision's networks only, and {name} is "
                "none; choose one, such as torchvision/resnet18."
            )
        url = self._url(network.name)
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        if self.folder is not None:
            folder = Path(self.folder).expanduser()
        path = folder / url.rpartition("/")[2]
        if not path.is_file():
            raise UserError(
                f"The weights of {name} are not in {folder}; download {url} and put the file "
                "there, or name its folder with buffer.step.folder."
            )
        return path, url

    def _url(self, network: str) -> str:
        """Where torchvision publishes these weights."""
        from ddengine.system.compat import torchvision  # seconds to import, and rarely needed

        known = {weights.name: weights for weights in torchvision.models.get_model_weights(network)}
        if self.weights not in known:
            raise UserError(
                f"torchvision has no weights {self.weights} of {network}; set buffer.step.weights "
                f"to {' or '.join(known) or 'nothing'}."
            )
        return known[self.weights].url


def is_published(path: Path, digest: str) -> bool:
    """Whether a file is what its name says.

    torchvision's names end in the first digits of the content's SHA-256.
    """
    return digest.startswith(path.stem.rpartition("-")[2])
