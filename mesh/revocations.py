"""Who was thrown out: a grow-only set of signed revocations. A machine without I/O.

The root key may revoke anybody, and so may a member whose grant says ``admin``: it puts its own chain into what it
signs, so that any node can check it alone and for ever. Such a revocation stands when its signer's grant has expired
since, and when its signer is revoked itself: otherwise throwing out one administrator would let in everybody whom that
one threw out. Two who revoke each other are both out. Nobody can revoke the root.

A chain of grants in which anybody is revoked is worth nothing: what a stolen device gave to others goes with it. The
revocation may name grants of the revoked that stay good (``keeps``): devices that came in through it and are known.

Who has the key of an admin, revoked or expired, can still sign, with an earlier time, and cannot be told from the admin
before. Nobody listens to it, but a member that plots with it may pass on what it signed. So the harm goes one way only:
it can throw out and never let in, at most ``REVOCATIONS_PER_BRANCH_MAX`` peers; and the root may disown it: then
nothing that it, or anybody through it, revoked counts any more.

Invariants: all that is held verifies; what counts is a function of the set alone; merging is commutative and idempotent
as long as there is room; what is held is never given up, and the root always finds room beside all others.
"""

import hashlib
from collections.abc import Iterable
from typing import Annotated, NamedTuple

import msgspec

from . import limits
from .errors import PeerError, Refused, UsageError
from .grants import Chain, Grant, authority_of, read_grant
from .identity import SIGNATURE_BYTES, Identity, PeerId, public_key_of, short, verify
from .messages import Message, Natural, pack, unpack

_PURPOSE = "revocation"
_ID_BYTES = 16
_GRANT_ID_BYTES = 32  # whoever may make grants at will must not find two with one id: 128 bits of work

RevocationId = Annotated[bytes, msgspec.Meta(min_length=_ID_BYTES, max_length=_ID_BYTES)]
GrantId = Annotated[bytes, msgspec.Meta(min_length=_GRANT_ID_BYTES, max_length=_GRANT_ID_BYTES)]
Reason = Annotated[str, msgspec.Meta(max_length=limits.REVOCATION_REASON_CHARACTERS_MAX)]


class Sentence(Message, frozen=True, kw_only=True):
    """What a revocation says."""

    version: int = 1
    mesh: PeerId  # its root: an admin of two meshes has one key
    issuer: PeerId
    subject: PeerId
    reason: Reason = ""
    issued: Natural  # Unix seconds by its signer's clock; its signer's grant must have held then
    chain: Chain = ()  # that makes its signer an admin; the root needs none
    keeps: Annotated[tuple[GrantId, ...], msgspec.Meta(max_length=limits.KEPT_GRANTS_MAX)] = ()
    disowns: bool = False  # from the root alone: nor does anything count that the subject revoked


class Revocation(Message, frozen=True, kw_only=True, array_like=True):
    """A revocation as it travels and is kept: the exact bytes that were signed."""

    sentence: Annotated[bytes, msgspec.Meta(max_length=limits.REVOCATION_BYTES_MAX)]
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

    @property
    def id(self) -> bytes:
        return hashlib.sha256(self.sentence).digest()[:_ID_BYTES]


class Opened(NamedTuple):
    """A revocation whose sentence was read."""

    sentence: Sentence
    signed: Revocation
    signers: tuple[PeerId, ...]  # whom its signer's chain passes through, itself last

    @property
    def branch(self) -> PeerId:
        """Who answers for it: the root, or whom the root trusted directly."""
        return self.signers[0] if self.signers else self.sentence.issuer

    def __str__(self) -> str:
        said = self.sentence
        signer = "the root key" if said.issuer == said.mesh else short(said.issuer)
        return f"{short(said.subject)} was revoked by {signer}" + (f": {said.reason}" if said.reason else "")


def grant_id(grant: Grant) -> bytes:
    """Name one grant, so that it can be kept when its issuer is revoked."""
    return hashlib.sha256(grant.statement).digest()


def revoke(
    signer: Identity,
    subject: PeerId,
    *,
    root: PeerId,
    reason: str,
    now: float,
    chain: tuple[Grant, ...] = (),
    keeps: tuple[bytes, ...] = (),
    disowns: bool = False,
) -> Revocation:
    """Sign a revocation; ``signer`` is the root, or an admin with its ``chain``.

    Raises UsageError when it is too long, Refused when the signer may not or the subject is the root.
    """
    said = Sentence(
        mesh=root,
        issuer=signer.peer_id,
        subject=subject,
        reason=reason,
        issued=int(now),
        chain=chain,
        keeps=keeps,
        disowns=disowns,
    )
    if len(reason) > limits.REVOCATION_REASON_CHARACTERS_MAX or len(keeps) > limits.KEPT_GRANTS_MAX:
        msg = (
            f"A revocation says why in {limits.REVOCATION_REASON_CHARACTERS_MAX} characters at most and keeps "
            f"{limits.KEPT_GRANTS_MAX} grants at most; this one has {len(reason)} and {len(keeps)}."
        )
        raise UsageError(msg)
    _require_right(said)
    payload = pack(said)
    return Revocation(sentence=payload, signature=signer.sign(_PURPOSE, payload))


def open_revocation(signed: Revocation, root: PeerId) -> Opened:
    """Check a revocation that came from anywhere. Raises PeerError: nobody honest passes on one that does not hold."""
    opened = _read(signed, root)
    verify(opened.sentence.issuer, _PURPOSE, signed.sentence, signed.signature)
    try:
        public_key_of(opened.sentence.subject)
        _require_right(opened.sentence)
    except Refused as error:
        msg = f"A revocation does not hold: {error}"
        raise PeerError(msg) from error
    return opened


def _read(signed: Revocation, root: PeerId) -> Opened:
    said = unpack(signed.sentence, Sentence)
    if said.mesh != root or said.version != 1:
        msg = "A revocation is of another mesh, or of a version that this release does not know."
        raise PeerError(msg)
    return Opened(said, signed, tuple(read_grant(grant).subject for grant in said.chain))


def _require_right(said: Sentence) -> None:
    """Raise Refused unless the signer that a sentence names may say it. No clock is asked, so all nodes agree."""
    if said.subject == said.mesh:
        msg = "The root of a mesh cannot be revoked; make a new mesh if its key was stolen."
        raise Refused(msg)
    if said.issuer == said.mesh:
        if said.chain:
            msg = "The root needs no grant to revoke."
            raise Refused(msg)
        return
    held = authority_of(said.chain, root=said.mesh, subject=said.issuer, now=said.issued)
    held.require("admin", said.issued)
    if said.disowns:
        msg = "Only the root key can disown what somebody revoked."
        raise Refused(msg)


class Revocations:
    """The revocations that one node knows of its mesh."""

    def __init__(self, root: PeerId, kept: Iterable[Revocation] = ()) -> None:
        """Start with what was kept. Raises PeerError when one of these does not verify."""
        self.root = root
        self._held: dict[bytes, Opened] = {}
        self._counting: dict[PeerId, list[Opened]] = {}
        self._branches: dict[PeerId, _Branch] = {}
        self.merge(kept)

    def __len__(self) -> int:
        return len(self._held)

    # -- what counts --------------------------------------------------------------------------------------------------

    @property
    def counting(self) -> dict[PeerId, list[Opened]]:
        """Who is revoked, and by which revocations; what was disowned is left out."""
        return self._counting

    def why(self, subject: PeerId) -> str:
        """Say by whom and why a peer itself was revoked; nothing when it was not."""
        found = self._counting.get(subject)
        return f"{found[0]}." if found else ""

    def why_not(self, chain: tuple[Grant, ...]) -> str:
        """Say why a chain that verifies is worth nothing all the same; nothing when it holds."""
        for n, grant in enumerate(chain if self._counting else ()):
            subject = read_grant(grant).subject
            if subject not in self._counting:
                continue
            if n == len(chain) - 1:
                return self.why(subject)
            follows = grant_id(chain[n + 1])
            for revoked in self._counting[subject]:
                if follows not in revoked.sentence.keeps:
                    last = read_grant(chain[-1]).subject
                    return f"{short(last)} came in through {short(subject)}, and {revoked}."
        return ""

    def proof(self, chain: tuple[Grant, ...]) -> tuple[Revocation, ...]:
        """Return what makes a chain that verifies worth nothing, to show it to whom it belongs."""
        subjects = [read_grant(grant).subject for grant in chain]
        return tuple(self._counting[subject][0].signed for subject in subjects if subject in self._counting)

    def _count(self) -> None:
        """Work out anew what counts."""
        disowned = {
            opened.sentence.subject
            for opened in self._held.values()
            if opened.sentence.disowns and opened.sentence.issuer == self.root
        }
        self._counting = {}
        for _, opened in sorted(self._held.items(), key=_order):
            if disowned.isdisjoint(opened.signers):
                self._counting.setdefault(opened.sentence.subject, []).append(opened)

    # -- spreading ----------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> bytes:
        """Name the whole set: two nodes with the same digest know the same. Empty when nobody was revoked."""
        return hashlib.sha256(b"".join(sorted(self._held))).digest() if self._held else b""

    @property
    def ids(self) -> tuple[bytes, ...]:
        return tuple(sorted(self._held))

    @property
    def all(self) -> tuple[Revocation, ...]:
        """All that is held, the root's first."""
        return tuple(opened.signed for _, opened in sorted(self._held.items(), key=_order))

    def beyond(self, known: Iterable[bytes]) -> tuple[Revocation, ...]:
        """Return what somebody lacks who knows these."""
        have = set(known)
        return tuple(signed for signed in self.all if signed.id not in have)

    def merge(self, items: Iterable[Revocation]) -> list[Opened]:
        """Take in what came from anywhere and return what was new; what finds no room is passed over.

        Raises PeerError at the first that does not hold; what came before it stays.
        """
        new: list[Opened] = []
        try:
            for signed in items:
                if signed.id in self._held or not self._has_room(_read(signed, self.root)):
                    continue
                opened = open_revocation(signed, self.root)
                self._held[signed.id] = opened
                self._branches.setdefault(opened.branch, _Branch()).add(opened)
                new.append(opened)
        finally:
            if new:
                self._count()
        return new

    def _has_room(self, opened: Opened) -> bool:
        branch = self._branches.get(opened.branch)
        if branch is None:
            others = self._branches.keys() - {self.root}
            return opened.branch == self.root or len(others) < limits.REVOCATION_BRANCHES_MAX - 1
        return branch.has_room(opened)


class _Branch:
    """What one of those whom the root trusted directly answers for, or the root itself."""

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0

    def has_room(self, opened: Opened) -> bool:
        return (
            self.count < limits.REVOCATIONS_PER_BRANCH_MAX
            and self.size_bytes + len(opened.signed.sentence) <= limits.REVOCATIONS_BYTES_PER_BRANCH_MAX
        )

    def add(self, opened: Opened) -> None:
        self.count += 1
        self.size_bytes += len(opened.signed.sentence)


def _order(item: tuple[bytes, Opened]) -> tuple[bool, bytes]:
    """The root's first: should there be no room for all, these must not wait behind anybody's."""
    return (item[1].sentence.issuer != item[1].sentence.mesh, item[0])


# -- two nodes make their sets equal ----------------------------------------------------------------------------------


class Said(Message, frozen=True, kw_only=True):
    """One node's word on revocations: which it knows, and some of those that the other lacks.

    Without ``known`` nothing is wanted in return.
    """

    known: Annotated[tuple[RevocationId, ...], msgspec.Meta(max_length=limits.REVOCATIONS_MAX)] | None = None
    revocations: Annotated[tuple[Revocation, ...], msgspec.Meta(max_length=limits.REVOCATIONS_PER_PAGE_MAX)] = ()
    done: bool = False  # who began wants no answer, who answers has no more


def pages_of(items: Iterable[Revocation]) -> list[tuple[Revocation, ...]]:
    """Split revocations into as many as fit in one message each."""
    pages: list[list[Revocation]] = [[]]
    room = limits.REVOCATION_PAGE_BYTES_MAX
    for item in items:
        size_bytes = len(item.sentence) + SIGNATURE_BYTES + 16  # the lengths of the two, and of the pair
        if pages[-1] and (size_bytes > room or len(pages[-1]) == limits.REVOCATIONS_PER_PAGE_MAX):
            pages.append([])
            room = limits.REVOCATION_PAGE_BYTES_MAX
        pages[-1].append(item)
        room -= size_bytes
    return [tuple(page) for page in pages if page]


class Asker:
    """The side that begins: says what it knows, then what the other lacks, until both have all that they take."""

    def __init__(self, revocations: Revocations) -> None:
        self._mine = revocations
        self._sent: set[bytes] = set()

    def first(self) -> Said:
        return Said(known=self._mine.ids)

    def heard(self, answer: Said, new: int) -> Said:
        """Return what to say next, ``done`` when it is the last. ``new``: how many of the answer's were new here."""
        lacking = [item for item in self._mine.beyond(answer.known or ()) if item.id not in self._sent]
        page, *more = pages_of(lacking) or [()]
        self._sent.update(item.id for item in page)
        if not more and (answer.done or not new):
            return Said(revocations=page, done=True)
        return Said(known=self._mine.ids, revocations=page)


def answer_to(said: Said, revocations: Revocations) -> Said:
    """The side that answers: once it has merged what was said, it says what it knows and one page of the rest."""
    pages = pages_of(revocations.beyond(said.known or ())) if said.known is not None else []
    return Said(known=revocations.ids, revocations=pages[0] if pages else (), done=len(pages) < 2)
