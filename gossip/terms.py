"""What the members of one exchange must agree on, to the letter, before their numbers may be added up."""

from dataclasses import dataclass

from .codecs import codec
from .errors import BadSetup
from .hashing import digest
from .plan import CHUNK_BYTES, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of one exchange. Part j of the vector, a contiguous slice, is averaged by member j, its owner.

    `mesh` names the mesh, `members` is the sorted group, `dimension` the number of parameters, `codec` a codec's name;
    `chunk_bytes` is about what travels at once. `leader` is who gathered the members, where their views differed.
    """

    mesh: bytes
    task: str
    round: int
    members: tuple[str, ...]
    dimension: int
    codec: str
    chunk_bytes: int = CHUNK_BYTES
    leader: str = ""

    def __post_init__(self) -> None:
        """Check what a caller may have got wrong.

        Raises:
            BadSetup: the members are not sorted, or some occur twice, or there are none.
            UnknownCodec: there is no such codec.
        """
        if not self.members or list(self.members) != sorted(set(self.members)):
            raise BadSetup(f"members must be one or more, sorted, each once: got {list(self.members)}")
        codec(self.codec)

    @property
    def context(self) -> bytes:
        """A digest of all terms: messages with another context come from another view and are not for this round."""
        numbers = (n.to_bytes(8, "big") for n in (self.round, self.dimension, self.chunk_bytes))
        names = (
            self.task.encode(),
            self.codec.encode(),
            self.leader.encode(),
            *(member.encode() for member in self.members),
        )
        return digest("lepton-round", self.mesh, *numbers, *names)

    @property
    def plan(self) -> Plan:
        """Which slice of the vector each member owns, and its chunks; none where there are fewer elements."""
        return Plan.of(self.dimension, len(self.members), codec(self.codec), self.chunk_bytes)

    @property
    def parts(self) -> tuple[slice, ...]:
        """Which slice of the vector each member owns; some are empty where parameters are fewer than members."""
        return self.plan.parts

    def part_of(self, member: str) -> int:
        """Return the number of the part that `member` owns.

        Raises:
            BadSetup: it is not one of the members.
        """
        if member not in self.members:
            raise BadSetup(f"{member} is not in the group of round {self.round}: {', '.join(self.members)}")
        return self.members.index(member)
