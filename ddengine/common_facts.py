"""What several of the JSON files say, field by field."""

from collections.abc import Mapping
from typing import TypedDict

from ddengine.system.runtime import Precision
from ddengine.system.typed import Count


class Machine(TypedDict, total=False):
    """Where something was computed."""

    device: str
    cores: Count | None
    system: str


class Common(TypedDict, total=False):
    """What several files say."""

    format: Count
    seed: int | None
    precision: Precision | None
    images: str
    machine: Machine
    versions: Mapping[str, str]
    commit: str | None
    command: list[str]
