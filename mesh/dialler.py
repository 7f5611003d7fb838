"""Racing a peer's addresses: each gets a short start over the next, and the first whole connection wins.

After RFC 8305 (Happy Eyeballs): one dead address in front of a good one costs ``STAGGER_S``, not a timeout.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import trio

from .errors import LinkError, PeerError, UsageError

STAGGER_S: Final = 0.1  # RFC 8305 recommends 0.25 for the Internet and allows 0.1; a LAN answers in 0.01
ADDRESSES_MAX: Final = 16  # of one peer; more is a list that a stranger made to have us knock at other doors

T = TypeVar("T")


async def race(
    addresses: Sequence[str], attempt: Callable[[str], Awaitable[T]], discard: Callable[[T], None], *, timeout_s: float
) -> T:
    """Run ``attempt`` on all addresses, each a little after the last, or at once when the last failed.

    Returns the first result; the other attempts are cancelled, and a result that came in the same moment is given to
    ``discard``. Raises LinkError that names each address and why it failed.
    """
    reasons: dict[str, str] = {}
    results: list[T] = []
    tried = list(dict.fromkeys(addresses))[:ADDRESSES_MAX]

    try:
        await _run_all(tried, attempt, results, reasons, timeout_s)
    except BaseException:
        for late in results:
            discard(late)
        raise
    if results:
        for late in results[1:]:
            discard(late)
        return results[0]
    why = "; ".join(f"{address}: {reasons.get(address, f'no answer in {timeout_s:g} s')}" for address in tried)
    raise LinkError(f"{why or 'no address is known'}.")


async def _run_all(
    tried: Sequence[str],
    attempt: Callable[[str], Awaitable[T]],
    results: list[T],
    reasons: dict[str, str],
    timeout_s: float,
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + timeout_s

        async def run(address: str, failed: trio.Event) -> None:
            try:
                result = await attempt(address)
            except (LinkError, PeerError, UsageError) as error:
                reasons[address] = str(error).rstrip(".")
                failed.set()
                return
            results.append(result)
            nursery.cancel_scope.cancel()

        for address in tried:
            failed = trio.Event()
            nursery.start_soon(run, address, failed)
            with trio.move_on_after(STAGGER_S):
                await failed.wait()
