"""Keeping a session to one arithmetic: stages that round alike are chosen first, and where there are none it is told.

Two devices give the same bits where both run the compiled kernel; torch promises that of one kind of device alone. A
token that follows from other bits is as good, but where two tokens are nearly as likely it may be another one. Pure.
"""

from collections.abc import Callable, Collection, Mapping

from ...mesh.identity import PeerId
from .route import Route, Serving

Find = Callable[[Serving], Route | None]  # the best route through these


class Alike:
    """Chooses the routes of one session."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """``tell`` is told, for people, what may make the text another one."""
        self._tell = tell
        self._held: frozenset[str] = frozenset()

    def choose(self, find: Find, serving: Serving, arithmetic: Mapping[PeerId, str], *, begun: bool) -> Route | None:
        """Return the best route of the session's arithmetic, of any other one, or of several, whichever there is.

        ``begun``: whether a token was made. Only then there is something to stay alike with.
        """
        route = self._found(find, serving, arithmetic, begun=begun)
        if route is None:
            return None
        kinds = frozenset(arithmetic.get(peer, "") for peer in route.peers)
        if begun and kinds != self._held and not kinds < self._held:
            self._tell(
                f"goes on with other arithmetic ({_said(kinds)}) than it began with ({_said(self._held)}): between two "
                f"tokens that are nearly as likely the choice may be another one from here on"
            )
        elif len(kinds) > 1 and kinds != self._held:
            self._tell(
                f"its stages do not round alike ({_said(kinds)}): should one be replaced, the choice between two "
                f"tokens that are nearly as likely may be another one"
            )
        self._held = kinds
        return route

    def _found(self, find: Find, serving: Serving, arithmetic: Mapping[PeerId, str], *, begun: bool) -> Route | None:
        def among(kinds: Collection[str]) -> Route | None:
            return find({run: [p for p in peers if arithmetic.get(p, "") in kinds] for run, peers in serving.items()})

        if begun and (same := among(self._held)) is not None:
            return same
        best = find(serving)
        if begun or best is None or len({arithmetic.get(peer, "") for peer in best.peers}) == 1:
            return best
        alike = (among({kind}) for kind in sorted(set(arithmetic.values())))  # compiled before torch
        return next((route for route in alike if route is not None), best)


def _said(kinds: Collection[str]) -> str:
    return " and ".join(kind or "unknown" for kind in sorted(kinds))
