"""Random streams.

Every stream is derived from names, so none of them need be stored to resume a run.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator


def generator(seed: int, *names: str | int) -> Generator:
    """A CPU generator for the stream (seed, *names).

    Equal names give equal draws on every machine and device. Streams are as good as independent;
    torch's CPU engine keeps 32 bits of a seed, so among 10^5 streams a few may coincide.
    """
    text = repr((seed, *names)).encode()
    digest = hashlib.sha256(text).digest()
    number = int.from_bytes(digest[:8], "big") >> 1
    return Generator().manual_seed(number)


def _seed(rng: Generator) -> int:
    """A seed for another generator."""
    return int(torch.randint(2**62, (1,), generator=rng))


def seed_from(rng: Generator) -> int:
    """A seed below 2^31, for what takes no generator, such as a library's."""
    return int(torch.randint(2**31, (), generator=rng))


def on_device(rng: Generator, device: torch.device) -> Generator:
    """A generator on `device` that follows from `rng`.

    Kinds of device, and models of GPU, draw differently from equal seeds.
    """
    return Generator(device).manual_seed(_seed(rng))


@contextmanager
def scoped(rng: Generator) -> Iterator[None]:
    """Seed torch's global generators from `rng`, and restore them afterwards.

    For what cannot be given a generator: module initialisation, dropout.
    """
    seed = _seed(rng)
    devices = []
    if torch.cuda.is_initialized():
        devices.append(torch.cuda.current_device())
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
