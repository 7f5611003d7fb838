"""Every bound on what a peer may send or hold here, with its reason. Nothing else in Lepton states such a number.

Sizes are bytes, times seconds.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# -- one message ------------------------------------------------------------------------------------------------------
# A header is control data: 10 MB of empty msgpack arrays would take 713 MB once decoded, 64 KiB of them under 5 MB.
HEADER_BYTES_MAX: Final = 64 * KIB
ARRAY_ITEMS_MAX: Final = 1024  # the longest list that we send has 128 records
MAP_ITEMS_MAX: Final = 256  # structs have under 20 fields, model manifests one per layer
STRING_BYTES_MAX: Final = 4 * KIB  # a refusal in words has 1,000 characters
BIN_BYTES_MAX: Final = 32 * KIB  # signed records; raw tensors never travel inside msgpack
DEPTH_MAX: Final = 8  # our deepest message has 5
BUFFERS_MAX: Final = 64  # tensors in one frame: live values of a cut, or tensors of one layer
# One frame's raw part. The largest in use is one blob chunk or one batch of activations.
BODY_BYTES_MAX: Final = 64 * MIB
# Tensors up to this size travel in the control stream's frames, larger ones on a stream of their own. A stream costs
# about as much CPU as copying 1 MiB, and 64 KiB hold up a small call on a 100 Mbit/s link by 5 ms.
INLINE_BYTES_MAX: Final = 64 * KIB
BULK_BYTES_MAX: Final = 64 * 1024 * MIB  # one transfer, when neither side names less: what fits on an edge node's disk
# One blob: a layer of the largest models in float32 (Llama 405B: 13 GB). Its list of chunks takes 128 KiB.
BLOB_BYTES_MAX: Final = 16 * 1024 * MIB
CHUNKS_SERVED_MAX: Final = (
    16  # of 4 MiB, read for all peers together and not yet sent: what two of them ask for at once
)
# A service's code and what little data lies beside it: models are blobs of their own. Unpacked it is as large, for
# nothing in it is compressed.
BUNDLE_BYTES_MAX: Final = 64 * MIB
BUNDLE_FILES_MAX: Final = 4096  # a package with its data; a virtual environment, put in by mistake, has ten times that
BUNDLE_INDEX_BYTES_MAX: Final = MIB  # 4,096 names of the longest kind
BUNDLE_DEPTH_MAX: Final = 16  # folders in folders
MANIFEST_BYTES_MAX: Final = 2 * MIB  # 256 layers of a few blobs at 100 B each, and a configuration
# What describes the tensors of one layer: 384 experts of three matrices at 130 B each take 150 KiB.
LAYER_HEADER_BYTES_MAX: Final = MIB
REASON_CHARACTERS_MAX: Final = 1000  # of an error's text
TENSOR_DIMENSIONS_MAX: Final = 8  # numpy itself stops at 64; no layer of ours sees more than 5

# -- one peer ---------------------------------------------------------------------------------------------------------
HINTED_PEERS_MAX: Final = 256  # peers that somebody on the network says exist; anybody may say it
HINTED_ADDRESSES_MAX: Final = 8  # of one peer: two interfaces, IPv4 and IPv6, before and after it moved
KNOWN_MEMBERS_MAX: Final = 4096  # members whose addresses are kept, present or not; 300 B each
DIALS_MAX: Final = 32  # under way at once: a Pi's processor has 32 handshakes done in half a second
CONNECTIONS_PER_PEER_MAX: Final = 4  # simultaneous dials make two; more is a leak or an attack
# Its control stream, and two for each call: with 8 calls both ways 17 are in use, and 8 for answers to queued ones.
STREAMS_PER_PEER_MAX: Final = 32
STREAM_REFUSALS_MAX: Final = 1024  # streams beyond them in a rush: then it is no peer that waits, but a flood
CALLS_PER_PEER_MAX: Final = 8  # in flight at once towards us
# And beside them small calls (a message, INLINE_BYTES_MAX of tensors) of methods that have a queue of their own with a
# bound, as services do: twice a usual batch, so that one caller alone can fill them, one after another. 8 MiB.
CALLS_QUEUED_PER_PEER_MAX: Final = 64
CALLS_OUT_PER_PEER_MAX: Final = 96  # in flight at once towards one peer: more than it takes at once, so that it decides
STREAM_ITEMS_MAX: Final = 16  # items of one streaming call that wait for its consumer: a round trip's worth of tokens
# And their bytes, of those that travel in the frame itself: a frame of 4K has 24 MiB, and is sent alone.
STREAM_BYTES_MAX: Final = 8 * MIB
CREDIT_MAX: Final = 1024  # items that a peer may let us send at once; what holds us back then is the link
CONTROL_UNSENT_BYTES_MAX: Final = 256 * KIB  # frames of calls that wait for a peer to read: then it is not read either
ASIDE_BYTES_PER_PEER_MAX: Final = (
    128 * MIB
)  # requests' large buffers that are held here at once, reserved before reading
TRANSFERS_PER_PEER_MAX: Final = 2  # that come to us at once; a third would only slow these down
# What a peer may send for long: twice a gigabit's worth, and about half of what one core decrypts and sorts, so that
# a flood leaves the other half to everybody else. Faster, it is not cut off: its connection is read later.
RATE_BYTES_S: Final = 256 * MIB
# And at once: a model of a gigabyte comes as fast as the wire carries it. Measured with 64 MiB, transfers between two
# processes were held up, and small calls on the same connection waited 15 ms behind them.
BURST_BYTES_MAX: Final = 1024 * MIB
KEYS_PER_PEER_MAX: Final = 1024  # idempotency keys of one caller that are remembered: two a second
KEYS_SETTLED_MAX: Final = 32  # brief keys that one request lets go; the rest go with the next
REMEMBERED_BYTES_PER_PEER_MAX: Final = 256 * KIB  # and their answers: a small message each
ATTACHED_PER_PEER_MAX: Final = 32  # streams that wait for the call which they belong to; two for each call are in use
PART_BYTES: Final = 256 * KIB  # of a large buffer has to come within TRANSFER_STALL_S: 9 kB/s, the slowest link we bear
CONNECTIONS_MAX: Final = 256  # of all peers; a full mesh has 50
STRANGERS_MAX: Final = 32  # connections that have not yet proved membership

# -- all peers together -----------------------------------------------------------------------------------------------
# What peers' streams and large buffers may take here: a quarter of the smallest device that runs a shard (2 GiB).
MEMORY_BYTES_MAX: Final = 512 * MIB
MEMORY_BYTES_PER_PEER_MAX: Final = 192 * MIB  # its large buffers, every stream's first window, and some wide ones
MEMORY_KEPT_BYTES: Final = 64 * MIB  # the last part, for peers that hold little: some streams of 32 of them
MEMORY_LITTLE_BYTES: Final = 2 * MIB  # eight streams' first windows: enough to call

# -- time -------------------------------------------------------------------------------------------------------------
HANDSHAKE_TIMEOUT_S: Final = 10.0  # a Pi under load takes 1 to 2 s
DIAL_TIMEOUT_S: Final = 10.0  # all addresses of one peer, handshake included
CALL_TIMEOUT_S: Final = 10.0  # when the caller names no deadline
CALL_TIMEOUT_S_MAX: Final = 600.0  # the longest deadline that a peer may ask for
REMEMBERED_S: Final = CALL_TIMEOUT_S_MAX  # an idempotency key after its call ended: no call is repeated for longer
REPEAT_S: Final = 0.5  # between attempts of a call with a key: a peer that was lost is dialled again in about this
FRAME_TIMEOUT_S: Final = 30.0  # a frame once begun must be complete: the slow-loris bound
TRANSFER_STALL_S: Final = 30.0  # for each part of a large buffer, and for a peer to read something
REASON_WAIT_S: Final = 1.0  # for the reason why a stream was reset to come on another: a round trip
BUSY_RETRY_S: Final = 0.1  # the hint that goes with Busy: some calls' length
PROBE_TIMEOUT_S: Final = 3.0  # for a connection to show that it still carries something: many round trips of a LAN
JOIN_TIMEOUT_S: Final = 20.0  # to find who holds an invite: some announcements, dials and handshakes one after another
# For the true holder of an invite to answer when somebody else on the network has said no.
JOIN_SECOND_OPINION_S: Final = 3.0
JOIN_ASKED_MAX: Final = 128  # nodes that one joiner dials: twice a full mesh and its neighbours'

# -- trust ------------------------------------------------------------------------------------------------------------
GRANT_CHAIN_MAX: Final = 3  # root, issuer, member; a deeper delegation is a mistake or an attack
GRANT_BYTES_MAX: Final = 2 * KIB  # 195 B in use; 32 capabilities of the longest names fit
CAPABILITIES_MAX: Final = 32  # of one grant; a role has six, more name single models or tasks
# Wrong codes for one invite, by whomever (a peer id costs nothing), before it is closed. Five of 2^40 guesses.
INVITE_TRIES_MAX: Final = 5
# Attempts on one invite that were broken off before they could be right or wrong: they tell next to nothing and cost
# two multiplications in Python each, so an honest user on a bad link has plenty.
INVITE_BROKEN_OFF_MAX: Final = 64
JOIN_REVOCATIONS_BYTES_MAX: Final = 24 * KIB  # in a welcome: what BIN_BYTES_MAX leaves beside three large grants
INVITES_MAX: Final = 256  # open invites of one issuer
# Revocations are kept for ever. A branch is the root, or one of those whom it trusted directly (one to three, and their
# successors): so a stolen admin fills its own branch, however many admins it makes, and nobody else's.
REVOCATION_BRANCHES_MAX: Final = 8
REVOCATIONS_PER_BRANCH_MAX: Final = 128  # twice a mesh of 50 devices, all of them lost once
REVOCATIONS_MAX: Final = REVOCATION_BRANCHES_MAX * REVOCATIONS_PER_BRANCH_MAX  # their ids fit one message
REVOCATION_REASON_CHARACTERS_MAX: Final = 200  # a sentence
KEPT_GRANTS_MAX: Final = 128  # of a revoked admin's guests; twice a mesh
REVOCATION_BYTES_MAX: Final = 12 * KIB  # three grants of the largest size, and 128 ids of kept ones
REVOCATIONS_BYTES_PER_BRANCH_MAX: Final = 256 * KIB  # 128 ordinary ones take 100 KiB
REVOCATIONS_PER_PAGE_MAX: Final = 64  # in one message; at most 0.4 ms each to verify
REVOCATION_PAGE_BYTES_MAX: Final = 40 * KIB  # beside the ids of all, which take 18 KiB

# -- the picture ------------------------------------------------------------------------------------------------------
RECORD_BYTES_MAX: Final = 16 * KIB  # a manifest of 100 layers takes 10 KiB
RECORDS_PER_OWNER_MAX: Final = 128  # models, stages, tasks and services of one device
RECORDS_BYTES_PER_OWNER_MAX: Final = 512 * KIB  # 32 manifests of the largest size
MEMBERS_MAX: Final = 4096  # four times the largest mesh that is simulated; a grant and what goes with it take 1 KiB
RECORDS_MAX: Final = 32768  # 8 of each of so many members, 32 of a thousand; about 60 MiB with their indexes
RECORDS_BYTES_MAX: Final = 64 * MIB  # 128 members that fill all their share, or 16 KiB of each of so many members
CONTRADICTIONS_MAX: Final = 64  # proofs of misbehaviour kept, 2 MiB: enough to see who it is
RECORDS_PER_SWAP_MAX: Final = 128  # records in one message; the rest comes with the next
CHAINS_PER_SWAP_MAX: Final = 32  # proofs of their owners in one message: the longest take 6 KiB
WANTED_MAX: Final = 512  # ids that one message asks for, 8 KiB
NEWS_MAX: Final = 256  # ids of what was lately learned that one message names, 4 KiB
LISTED_MAX: Final = 2000  # ids that one message lists, 31 KiB: more than a binary value holds would not pass
USELESS_MAX: Final = 4096  # ids that are not asked for again for a minute, 64 KiB

# -- who lives --------------------------------------------------------------------------------------------------------
RUMOURS_MAX: Final = 16  # of each kind in one message; we send fewer, so that a probe fits into one Ethernet frame
DOUBTERS_MAX: Final = 4  # named in one doubt: as many as shorten a suspicion, and its first
RUMOURS_KEPT_MAX: Final = 512  # waiting to be told: a change of half of 1,000 members at once
LIVES_MAX: Final = 4096  # members of whose lives a node keeps track, dead ones too; each takes some 300 B
LESSON_PAGES_MAX: Final = 512  # that one neighbour is asked for in a row: twice what as many members as that fill
ERRANDS_MAX: Final = 64  # that a node makes for others at once: of 50 peers that all look for the same one
