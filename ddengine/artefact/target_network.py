"""Whose features the targets of a set are, as its meta.json says it."""

from typing import Any

from ddengine.artefact.markdown import at
from ddengine.types import Json, Meta

UNKNOWN = "a network that the set does not name"


def target_network(meta: Meta) -> Json | None:
    """The name of the network, under "model", and the "fingerprint" of the store that holds it.

    That is what meta.json has under "target_network"; without it, for sets with features, the first
    of the experts that they were made with. None of other sets, and where neither is said.
    """
    if meta.get("target_kind") not in ("features", None):
        return None
    named = meta.get("target_network")
    if named is None:
        stores = at(meta, "experts", "stores")
        named = stores[0] if isinstance(stores, list) and stores else meta.get("experts")
    model = at(named, "model")
    if not isinstance(model, str):
        return None
    return {"model": model, "fingerprint": at(named, "fingerprint")}


def target_in_words(network: Json | None) -> str:
    """A network in a sentence, with the store that holds it."""
    if network is None:
        return UNKNOWN
    fingerprint: Any = network["fingerprint"]
    return network["model"] + (f" (store {fingerprint})" if fingerprint else "")
