"""Memory while stages take turns: what may be loaded beside layers that still have sessions. Pure.

A successor is loaded beside its predecessor, whose sessions end in peace, where both have room. Only what draining
sessions hold may go beyond the memory for serving: their caches shrink with every session that ends, weights do not.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..config import size_text
from .route import Run


@dataclass(frozen=True, slots=True)
class Takes:
    """What a run of layers takes, as its deployment says: so do plans count, which always have room."""

    weights_bytes: int
    cache_bytes: int  # for all sessions that are promised


def lacking_bytes(memory_bytes: int | None, loaded: Iterable[tuple[Takes, bool]], more: Takes) -> int:
    """Return by how much memory for serving would be exceeded; of those that drain (True) only the weights count."""
    if memory_bytes is None:
        return 0
    held = sum(takes.weights_bytes + (0 if drains else takes.cache_bytes) for takes, drains in loaded)
    return max(0, held + more.weights_bytes + more.cache_bytes - memory_bytes)


def stays(name: str, version: int, held: Mapping[str, tuple[int, Run]], runs: Mapping[str, Run]) -> bool:
    """Whether layers of a model stay that the devices which are here cannot hold together: one may come back soon.

    ``held`` is what is loaded here, with its version, ``runs`` what is to be. Layers of another version do not stay,
    and none do when something else is to be loaded, which may need the room.
    """
    loaded = {other: run for other, (_, run) in held.items()}
    return held.get(name, (None,))[0] == version and all(loaded.get(other) == run for other, run in runs.items())


def waits_for(first: int, last: int, lacking: int, sessions: int) -> str:
    """Say, for people, why layers are not loaded yet."""
    which = f"layers {first} to {last}"
    if not sessions:
        return f"{which} are loaded here when {size_text(lacking)} that older layers take are free"
    ended = (
        "the session on older layers has ended" if sessions == 1 else f"{sessions} sessions on older layers have ended"
    )
    return f"{which} are loaded here when {ended}, which frees {size_text(lacking)}; what lasts long goes on elsewhere"
