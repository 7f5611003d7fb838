"""Numbers that only their sum gives away: fixed point modulo 2^32 under masks that cancel in pairs.

Each pair of members shares a seed that one adds and the other subtracts, and each member adds one more mask of its own,
which it reveals once everybody has agreed on whose values are in the sum (Bonawitz et al. 2017, without its secret
shares: gossip can skip a round, so nobody's mask ever has to be recovered).

A value x travels as ``round(x * 2^16) mod 2^32``, masked. Sums of up to 16 members are exact as long as every value is
within ``VALUE_MAX``; the error of a value is at most 2^-17, from rounding alone.
"""

import struct
from collections.abc import Mapping
from hashlib import blake2b

import numpy as np
from nacl import bindings
from nacl.exceptions import CryptoError
from numpy.typing import NDArray

from ..codecs import Floats
from ..errors import BadContribution
from ..hashing import digest

Words = NDArray[np.uint32]

SEED_BYTES = 32
FRACTION_BITS = 16
MEMBERS_MAX = 16  # a group of 16 covers colluders of up to 30 %
VALUE_MAX = 2.0 ** (31 - FRACTION_BITS) / MEMBERS_MAX  # 2048: the sum of so many has to stay under 2^31
_SCALE = 2.0**FRACTION_BITS


def public_key(secret: bytes) -> bytes:
    """Return the X25519 public key (RFC 7748) of 32 secret bytes, drawn anew for every attempt at a round."""
    return bindings.crypto_scalarmult_base(secret)


def pair_seed(secret: bytes, other_public: bytes, context: bytes) -> bytes:
    """Return the seed that two members share for one context: BLAKE2b(key = X25519(secret, other), context).

    Raises:
        BadContribution: the other's key is no point that gives a secret.
    """
    try:
        shared = bindings.crypto_scalarmult(secret, other_public)
    except (CryptoError, ValueError) as error:  # a point of small order
        raise BadContribution(f"its key is not one that a secret can be made with ({error})") from None
    return blake2b(context, key=shared, digest_size=SEED_BYTES, person=b"lepton-pair").digest()


def own_seed(secret: bytes, context: bytes) -> bytes:
    """Return the seed of a member's own mask for one context."""
    return blake2b(context, key=secret, digest_size=SEED_BYTES, person=b"lepton-own").digest()


def mask(seed: bytes, part: int, n: int) -> Words:
    """Expand a seed to the n words that mask one part: a ChaCha20 keystream, different for every part."""
    of_part = blake2b(struct.pack("<I", part), key=seed, digest_size=SEED_BYTES, person=b"lepton-part").digest()
    return np.frombuffer(bindings.randombytes_buf_deterministic(4 * n, of_part), dtype="<u4").astype(
        np.uint32, copy=False
    )


def to_words(values: Floats, weight: float) -> Words:
    """Return weight * values (n,) in fixed point and, behind them, the weight: uint32 (n + 1,).

    Raises:
        BadContribution: a value is too large (`VALUE_MAX`) or not finite, or the weight is not within (0, 1].
    """
    if not 0.0 < weight <= 1.0:
        raise BadContribution(f"its weight is {weight}; in a private round it has to be above 0 and at most 1")
    largest = float(np.max(np.abs(values), initial=0.0))
    if not largest <= VALUE_MAX:
        raise BadContribution(f"a value of {largest:g} cannot travel in a private round: at most {VALUE_MAX:g} can")
    scaled = np.empty(values.size + 1, dtype=np.int64)
    np.rint(values * np.float64(weight * _SCALE), out=scaled[:-1], casting="unsafe")
    scaled[-1] = max(1, round(weight * _SCALE))
    return scaled.astype(np.uint32)


def masked(values: Words, part: int, own: bytes, pairs: Mapping[str, bytes], me: str) -> Words:
    """Return the words of one part as its owner may see them: under one's own mask and those of all pairs."""
    total = values + mask(own, part, values.size)
    for peer, seed in pairs.items():
        if me < peer:
            total += mask(seed, part, values.size)
        else:
            total -= mask(seed, part, values.size)
    return total


def unmask(total: Words, part: int, owns: Mapping[str, bytes], lost: Mapping[tuple[str, str], bytes]) -> Words:
    """Take the masks off the sum of one part.

    ``owns`` are the revealed seeds of those in the sum; ``lost`` the seeds that members in the sum share with others
    who are not, by (who is in it, who is not): their masks have no counterpart.
    """
    clear = total.copy()
    for seed in owns.values():
        clear -= mask(seed, part, clear.size)
    for (inside, outside), seed in lost.items():
        if inside < outside:
            clear -= mask(seed, part, clear.size)
        else:
            clear += mask(seed, part, clear.size)
    return clear


def mean_of(total: Words, members: int) -> tuple[Floats, float]:
    """Return the weighted mean, float32 (n,), of an unmasked sum uint32 (n + 1,), and the sum of the weights.

    Raises:
        BadContribution: the weights do not add up to anything that ``members`` weights can: masks do not fit.
    """
    weight = float(total[-1]) / _SCALE
    if not 0.0 < weight <= members + 1e-3:  # the weights are rounded too
        raise BadContribution(f"the weights of {members} members add up to {weight:g}: somebody's masks do not fit")
    sums = total[:-1].view(np.int32).astype(np.float64)
    return (sums / (weight * _SCALE)).astype(np.float32), weight


def context_of(terms: bytes, reference: bytes, attempt: int) -> bytes:
    """Return what every key and signature of one attempt is bound to."""
    return digest("lepton-private", terms, reference, attempt.to_bytes(4, "big"))
