"""Networks of one architecture as one computation, and the second classifier that USKD needs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor, nn

from ddengine.models import middle
from ddengine.system.rng import scoped


class Ensemble:
    """n networks of one architecture as one: (n, B, C, H, W) -> (n, B, K).

    With n = 1 it is the plain network.
    """

    def __init__(self, networks: Sequence[nn.Module]):
        self.networks = list(networks)
        if len(self.networks) > 1:
            self._params, self._buffers = torch.func.stack_module_state(self.networks)

    def parameters(self) -> dict[str, Tensor]:
        """What an optimiser steps, by name; of several networks each is stacked."""
        if len(self.networks) == 1:
            return dict(self.networks[0].named_parameters())
        return self._params

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of all networks, each on its own images."""
        if len(self.networks) == 1:
            network = self.networks[0]
            return network(images[0]).unsqueeze(0)
        together = torch.vmap(self._one)
        return together(self._params, self._buffers, images)

    def _one(self, params: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        return torch.func.functional_call(self.networks[0], (params, buffers), (images,))

    def state(self) -> dict[str, Tensor]:
        """All that training changes, by name; of several networks each is stacked."""
        if len(self.networks) == 1:
            return self.networks[0].state_dict()
        state = {}
        for name, tensor in {**self._params, **self._buffers}.items():
            state[name] = tensor.detach()
        return state

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Be as when this was the `state`. Raises KeyError or RuntimeError for other networks'."""
        if len(self.networks) == 1:
            self.networks[0].load_state_dict(state)
            return
        for name, tensor in self.state().items():
            given = state[name]
            if given.shape != tensor.shape:  # which copying would stretch
                raise RuntimeError(f"{name} is {tuple(given.shape)} for {tuple(tensor.shape)}")
            tensor.copy_(given)

    @torch.no_grad()
    def unstack(self) -> list[nn.Module]:
        """The networks with the state reached so far."""
        if len(self.networks) == 1:
            return self.networks
        stacked = {**self._params, **self._buffers}
        for i, network in enumerate(self.networks):
            named = (*network.named_parameters(), *network.named_buffers())
            for name, tensor in named:
                of_all = stacked[name]
                tensor.copy_(of_all[i])
        return self.networks


class WeakHead:
    """USKD's second classifier: it classifies by the output of the middle of a network.

    That output is averaged over space. The head is trained with the network and then not used.
    """

    def __init__(self, network: nn.Module, images: Tensor, rng: Generator):
        """Initialise the head from `rng`.

        The network looks at `images` (B, C, H, W) once, which changes nothing in it.
        """
        _, channels, height, width = images.shape
        self._seen: Tensor | None = None
        features = middle(network, (channels, height, width))
        self._hook = features.register_forward_hook(self._see)
        mode = network.training
        with torch.no_grad():
            num_classes = network.eval()(images).shape[1]
        network.train(mode)
        assert self._seen is not None
        num_features = self._seen.shape[1]
        with scoped(rng):
            self.linear = nn.Linear(num_features, num_classes)
        self.linear.to(images.device)

    def _see(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # averaged at once: what follows may change the output in place
        self._seen = output.float().mean((2, 3))

    def logits(self) -> Tensor:
        """(B, K) of the batch that the network saw last."""
        assert self._seen is not None
        return self.linear(self._seen)

    def remove(self) -> None:
        """Let the network go."""
        self._hook.remove()
