"""Every bound of mesh/limits.py has its reason beside it and a test that goes one past it, named here."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
from lepton.mesh import limits

UNITS = {"KIB", "MIB"}
CALLS, MESH = "mesh/calls/test_limits.py", "mesh/test_limits.py"
BUNDLE = "node/services/test_bundle.py"
LIVES = "mesh/test_liveness.py"
# Of a pace (REPEAT_S, BUSY_RETRY_S) nothing can be one past: there the test shows what it does.
PASSED = {
    "HEADER_BYTES_MAX": "mesh/test_messages.py::test_a_header_of_the_largest_size_is_read_and_one_byte_more_is_not",
    "ARRAY_ITEMS_MAX": "mesh/test_messages.py::test_each_limit_holds_and_not_one_earlier",
    "MAP_ITEMS_MAX": "mesh/test_messages.py::test_each_limit_holds_and_not_one_earlier",
    "STRING_BYTES_MAX": "mesh/test_messages.py::test_each_limit_holds_and_not_one_earlier",
    "BIN_BYTES_MAX": "mesh/test_messages.py::test_each_limit_holds_and_not_one_earlier",
    "DEPTH_MAX": "mesh/test_messages.py::test_each_limit_holds_and_not_one_earlier",
    "BUFFERS_MAX": "mesh/calls/test_machines.py::test_a_request_one_past_a_limit_is_not_read",
    "BODY_BYTES_MAX": "mesh/test_frames.py::test_an_oversized_frame_is_refused_by_its_announcement",
    "INLINE_BYTES_MAX": "mesh/calls/test_calls.py::test_tensors_arrive_as_they_were",
    "BULK_BYTES_MAX": f"{CALLS}::test_a_transfer_larger_than_any_disk_is_refused",
    "BLOB_BYTES_MAX": "node/local/test_blobs.py::test_a_blob_larger_than_any_layer_has_no_name",
    "CHUNKS_SERVED_MAX": "node/together/test_sharing.py::test_who_may_fetch_and_what",
    "BUNDLE_BYTES_MAX": f"{BUNDLE}::test_a_bundle_of_too_many_bytes_files_or_folders_is_not_made",
    "BUNDLE_FILES_MAX": f"{BUNDLE}::test_a_bundle_of_too_many_bytes_files_or_folders_is_not_made",
    "BUNDLE_INDEX_BYTES_MAX": f"{BUNDLE}::test_what_is_no_bundle_is_refused_before_anything_is_written",
    "BUNDLE_DEPTH_MAX": f"{BUNDLE}::test_a_bundle_of_too_many_bytes_files_or_folders_is_not_made",
    "MANIFEST_BYTES_MAX": "node/local/test_publishing.py::test_a_manifest_out_of_bounds_is_refused",
    "LAYER_HEADER_BYTES_MAX": "node/local/test_publishing.py::test_a_header_larger_than_a_layers_is_refused",
    "REASON_CHARACTERS_MAX": f"{CALLS}::test_a_reason_is_cut_to_its_length",
    "TENSOR_DIMENSIONS_MAX": "mesh/test_tensors.py::test_a_shape_is_a_short_list_of_natural_numbers",
    "HINTED_PEERS_MAX": "mesh/test_membership.py::test_forged_hints_are_bounded_and_push_out_nobody_who_was_here",
    "HINTED_ADDRESSES_MAX": "mesh/test_membership.py::test_forged_hints_are_bounded_and_push_out_nobody_who_was_here",
    "KNOWN_MEMBERS_MAX": "mesh/test_membership.py::test_addresses_of_members_are_bounded_too",
    "DIALS_MAX": (
        "mesh/test_membership.py::test_no_more_dials_are_under_way_at_once_than_may_be_and_members_come_first"
    ),
    "CONNECTIONS_PER_PEER_MAX": (f"{CALLS}::test_a_peer_with_one_connection_too_many_is_sent_away_until_one_is_closed"),
    "STREAMS_PER_PEER_MAX": f"{CALLS}::test_one_stream_too_many_is_busy_here_and_refused_there",
    "STREAM_REFUSALS_MAX": (f"{MESH}::test_streams_beyond_what_may_be_are_refused_so_often_and_then_it_is_a_flood"),
    "CALLS_PER_PEER_MAX": "mesh/calls/test_calls.py::test_one_call_too_many_is_busy_with_a_hint",
    "CALLS_QUEUED_PER_PEER_MAX": (
        "mesh/calls/test_machines.py::test_of_small_calls_that_wait_in_a_queue_there_may_be_more_beside_the_others"
    ),
    "CALLS_OUT_PER_PEER_MAX": (
        "mesh/calls/test_machines.py::test_the_caller_holds_itself_back_before_it_asks_too_much"
    ),
    "STREAM_ITEMS_MAX": "mesh/calls/test_machines.py::test_a_callee_that_breaks_the_rules_is_named",
    "STREAM_BYTES_MAX": "mesh/calls/test_machines.py::test_who_sends_more_bytes_than_may_wait_breaks_the_protocol",
    "CREDIT_MAX": "mesh/calls/test_machines.py::test_a_request_one_past_a_limit_is_not_read",
    "CONTROL_UNSENT_BYTES_MAX": "mesh/calls/test_calls.py::test_a_peer_that_does_not_read_answers_is_not_read",
    "ASIDE_BYTES_PER_PEER_MAX": f"{CALLS}::test_the_large_buffers_of_one_peer_have_a_bound",
    "TRANSFERS_PER_PEER_MAX": "mesh/calls/test_machines.py::test_a_third_transfer_waits_its_turn",
    "RATE_BYTES_S": f"{CALLS}::test_who_sends_faster_than_the_rate_waits_and_nobody_else",
    "BURST_BYTES_MAX": "mesh/test_budget.py::test_who_sends_a_burst_is_read_on_and_who_goes_on_is_read_later",
    "KEYS_PER_PEER_MAX": "mesh/calls/test_once.py::test_keys_are_forgotten_late_and_new_ones_are_busy_until_then",
    "KEYS_SETTLED_MAX": "mesh/calls/test_once.py::test_one_request_lets_go_of_no_more_brief_keys_than_it_may",
    "REMEMBERED_BYTES_PER_PEER_MAX": "mesh/calls/test_once.py::test_an_answer_too_large_to_be_kept_is_given_once",
    "ATTACHED_PER_PEER_MAX": f"{CALLS}::test_streams_that_wait_for_their_call_have_a_bound",
    "PART_BYTES": f"{CALLS}::test_a_byte_a_second_is_not_enough",
    "CONNECTIONS_MAX": f"{CALLS}::test_all_peers_together_have_so_many_connections",
    "STRANGERS_MAX": (
        "mesh/test_mesh.py::test_strangers_at_the_door_are_few_and_who_said_nothing_for_longest_makes_room"
    ),
    "MEMORY_BYTES_MAX": "mesh/test_budget.py::test_the_last_part_is_kept_for_those_who_hold_little",
    "MEMORY_BYTES_PER_PEER_MAX": "mesh/test_budget.py::test_one_peer_gets_its_share_and_not_one_byte_more",
    "MEMORY_KEPT_BYTES": "mesh/test_budget.py::test_the_last_part_is_kept_for_those_who_hold_little",
    "MEMORY_LITTLE_BYTES": "mesh/test_budget.py::test_the_last_part_is_kept_for_those_who_hold_little",
    "HANDSHAKE_TIMEOUT_S": "mesh/test_mesh.py::test_a_stranger_that_says_nothing_is_not_waited_for",
    "DIAL_TIMEOUT_S": f"{MESH}::test_a_dial_that_nobody_answers_is_given_up",
    "CALL_TIMEOUT_S": f"{MESH}::test_a_call_without_a_deadline_has_one",
    "CALL_TIMEOUT_S_MAX": "mesh/calls/test_machines.py::test_a_request_one_past_a_limit_is_not_read",
    "REMEMBERED_S": "mesh/calls/test_once.py::test_keys_are_forgotten_late_and_new_ones_are_busy_until_then",
    "REPEAT_S": (
        "mesh/calls/test_once.py::test_a_call_whose_connection_breaks_goes_on_and_its_repetition_gets_the_answer"
    ),
    "FRAME_TIMEOUT_S": "mesh/test_mesh.py::test_who_sends_too_slowly_is_cut_off",
    "TRANSFER_STALL_S": f"{CALLS}::test_a_byte_a_second_is_not_enough",
    "REASON_WAIT_S": f"{MESH}::test_the_reason_for_a_reset_is_waited_for_so_long",
    "BUSY_RETRY_S": "mesh/calls/test_machines.py::test_one_call_too_many_is_answered_busy_with_a_hint",
    "PROBE_TIMEOUT_S": "mesh/test_finding.py::test_a_laptop_that_moves_to_another_network_is_reached_there",
    "JOIN_TIMEOUT_S": f"{MESH}::test_joining_ends",
    "JOIN_SECOND_OPINION_S": f"{MESH}::test_who_is_told_no_waits_for_a_second_opinion_and_not_for_all",
    "JOIN_ASKED_MAX": "mesh/test_joining.py::test_only_so_many_are_asked",
    "GRANT_CHAIN_MAX": "mesh/test_grants.py::test_a_chain_has_at_most_three_links",
    "GRANT_BYTES_MAX": "mesh/test_grants.py::test_every_grant_of_ours_fits_its_field",
    "CAPABILITIES_MAX": "mesh/test_grants.py::test_a_grant_holds_so_many_capabilities_and_no_more",
    "INVITE_TRIES_MAX": (
        "mesh/test_invites.py::test_after_five_wrong_codes_by_whomever_an_invite_is_closed_even_for_the_right_one"
    ),
    "INVITE_BROKEN_OFF_MAX": (
        "mesh/test_invites.py::test_attempts_that_are_broken_off_are_bounded_and_cost_others_nothing"
    ),
    "JOIN_REVOCATIONS_BYTES_MAX": (
        "mesh/test_invites.py::test_as_many_revocations_as_fit_beside_the_longest_chain_go_along"
    ),
    "INVITES_MAX": "mesh/test_invites.py::test_open_invites_are_bounded_and_expired_ones_make_room",
    "REVOCATION_BRANCHES_MAX": (
        "mesh/test_revocations.py::test_who_stole_an_admin_fills_its_own_branch_and_the_root_still_finds_room"
    ),
    "REVOCATIONS_PER_BRANCH_MAX": (
        "mesh/test_revocations.py::test_who_stole_an_admin_fills_its_own_branch_and_the_root_still_finds_room"
    ),
    "REVOCATIONS_MAX": "mesh/test_revocations.py::test_the_most_that_can_be_known_can_be_said",
    "REVOCATION_REASON_CHARACTERS_MAX": f"{MESH}::test_a_revocation_has_a_short_reason_and_keeps_so_many",
    "KEPT_GRANTS_MAX": f"{MESH}::test_a_revocation_has_a_short_reason_and_keeps_so_many",
    "REVOCATION_BYTES_MAX": "mesh/test_revocations.py::test_the_most_that_can_be_known_can_be_said",
    "REVOCATIONS_BYTES_PER_BRANCH_MAX": "mesh/test_revocations.py::test_the_set_is_bounded_in_bytes_too",
    "REVOCATIONS_PER_PAGE_MAX": f"{MESH}::test_a_page_of_revocations_has_so_many_and_so_many_bytes",
    "REVOCATION_PAGE_BYTES_MAX": f"{MESH}::test_a_page_of_revocations_has_so_many_and_so_many_bytes",
    "RECORD_BYTES_MAX": "mesh/test_records.py::test_what_does_not_fit_into_a_record_is_told_to_its_writer",
    "RECORDS_PER_OWNER_MAX": "mesh/test_records.py::test_one_owner_states_so_many_things_and_no_more",
    "RECORDS_BYTES_PER_OWNER_MAX": "mesh/test_records.py::test_one_owner_fills_only_its_share_of_bytes",
    "MEMBERS_MAX": "mesh/test_admission.py::test_members_are_bounded_and_expired_ones_make_room",
    "RECORDS_MAX": "mesh/test_records.py::test_all_records_together_are_bounded",
    "RECORDS_BYTES_MAX": "mesh/test_records.py::test_all_bytes_together_are_bounded",
    "CONTRADICTIONS_MAX": "mesh/test_records.py::test_proofs_are_bounded",
    "RECORDS_PER_SWAP_MAX": "mesh/test_swaps.py::test_one_past_a_limit_does_not",
    "CHAINS_PER_SWAP_MAX": "mesh/test_swaps.py::test_more_owners_than_one_message_proves_wait",
    "WANTED_MAX": "mesh/test_swaps.py::test_one_past_a_limit_does_not",
    "NEWS_MAX": "mesh/test_swaps.py::test_one_past_a_limit_does_not",
    "LISTED_MAX": "mesh/test_swaps.py::test_one_past_a_limit_does_not",
    "USELESS_MAX": f"{MESH}::test_so_many_useless_records_are_remembered",
    "RUMOURS_MAX": f"{LIVES}::test_messages_come_back_as_they_were_sent_and_too_long_ones_do_not",
    "DOUBTERS_MAX": f"{LIVES}::test_messages_come_back_as_they_were_sent_and_too_long_ones_do_not",
    "RUMOURS_KEPT_MAX": f"{LIVES}::test_rumours_are_told_least_told_first_so_often_and_are_bounded",
    "LIVES_MAX": f"{LIVES}::test_lives_are_bounded_and_the_dead_make_room",
    "LESSON_PAGES_MAX": "mesh/test_lesson.py::test_a_teacher_without_end_is_left_after_so_many_pages",
    "ERRANDS_MAX": f"{LIVES}::test_errands_are_bounded",
}
NAMES = [name for name in vars(limits) if name.isupper() and name not in UNITS]


def source() -> list[str]:
    spec = importlib.util.find_spec(limits.__name__)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_a_test_goes_one_past_it(name: str, root: Path) -> None:
    assert name in PASSED, f"write a test that goes one past limits.{name}, and name it here"
    file, _, test = PASSED[name].partition("::")
    tree = ast.parse((root / "tests" / file).read_text("utf-8"))
    tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert test in tests, f"{PASSED[name]} is not there (any more)"


@pytest.mark.parametrize("name", NAMES)
def test_a_reason_stands_beside_it(name: str) -> None:
    lines = source()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"{name}: Final"))
    end = at
    while lines[at].count("(") and not lines[end].startswith(")") and end < at + 3 and lines[at].endswith("("):
        end += 1
    beside = any(re.search(r"#\s*\w", line) for line in lines[at : end + 1])
    above = lines[at - 1].startswith("# ") and not lines[at - 1].startswith("# --")
    assert beside or above, f"limits.{name} wants a comment with its reason"


def test_nothing_is_listed_that_is_no_limit() -> None:
    assert set(PASSED) - set(NAMES) == set()
