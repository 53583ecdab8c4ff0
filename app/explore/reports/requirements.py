"""What Kickstand must be able to show (R1-R56) and the defects of the posted patch (D1-D15): where each is shown.

``tests/explore/verdicts/test_ledger.py`` checks every entry.
"""

from __future__ import annotations

from typing import Any

from kickstand.explore.reports.ledger import ByTest, Entry, OutOfScope, entry

STATES = "tests/core/test_run_state_table.py"
REQUESTS = "tests/core/test_requests.py"
RWSEM = "tests/core/test_rwsem.py"
SLOTS = "tests/core/test_memslots.py"
VARIANTS = "tests/conformance/test_variants.py"
EXPLORED = "tests/explore/verdicts/test_requirements.py"


LEDGER: tuple[Entry, ...] = (
    entry(
        "R1",
        "KICK returns only after every vCPU left KVM_RUN",
        "merge sticky careless closed_window holds",
        ByTest(VARIANTS, "test_kick_returns_only_after_every_vcpu_has_left_kvm_run"),
    ),
    entry(
        "R2",
        "after KICK each KVM_RUN returns EINTR without a guest step, until RESUME",
        ByTest(STATES, "test_run_after_a_kick_returns_eintr_each_time_until_resume"),
    ),
    entry(
        "R3",
        "a busy loop of KVM_RUN while kicked",
        "merge sticky careless livelock violated",
        "merge sticky careless bounded_busy violated",
    ),
    entry(
        "R4",
        "kick in guest: IPI, exit, EINTR",
        ByTest(STATES, "test_kick_in_guest_returns_eintr_and_leaves_exit_reason"),
    ),
    entry(
        "R5",
        "kick while halted: EINTR, mp_state stays",
        ByTest(STATES, "test_kick_while_halted_returns_eintr_and_stays_halted"),
    ),
    entry(
        "R6",
        "kick in halt-poll",
        OutOfScope("the core sleeps without polling first; both use check_block, which is shown"),
    ),
    entry(
        "R7",
        "a parked AP answers EAGAIN",
        ByTest(STATES, "test_kick_of_a_parked_ap_returns_eagain_with_exit_reason_untouched"),
    ),
    entry(
        "R8",
        "exit_reason is stale on a kick and INTR on a signal",
        ByTest(STATES, "test_kick_in_guest_returns_eintr_and_leaves_exit_reason"),
        ByTest(STATES, "test_signal_alone_returns_eintr_with_exit_intr"),
    ),
    entry("R9", "merging slots without a kick: MMIO exits in the window", "merge none well spurious_mmio violated"),
    entry(
        "R10",
        "the same with code in m2: INTERNAL_ERROR",
        ByTest(EXPLORED, "test_code_in_a_deleted_slot_is_an_internal_error_without_the_kick_and_none_with_it"),
    ),
    entry(
        "R11", "under the kick neither", "merge sticky well spurious_mmio holds", "merge sticky well missing_slot holds"
    ),
    entry(
        "R12",
        "grow, shrink, split, merge, toggling READONLY need DELETE and CREATE",
        ByTest(SLOTS, "test_each_check_is_einval_and_names_its_field"),
        "grow none well missing_slot violated",
        "shrink none well missing_slot violated",
        "split none well missing_slot violated",
        "toggle_readonly none well missing_slot violated",
    ),
    entry("R13", "dirty bits between GET_DIRTY_LOG and DELETE are lost", "dirty_log none well dirty_kept violated"),
    entry(
        "R14",
        "none is lost under the kick",
        "dirty_log sticky well dirty_kept holds",
        "dirty_log holds careless dirty_kept holds",
        OutOfScope("mprotect of the host range: the host's page tables are no part of the emulated kernel"),
    ),
    entry("R15", "a best-effort sync before DELETE still races", "dirty_log region_list well dirty_kept violated"),
    entry(
        "R16",
        "a global semaphore makes VM A wait for VM B",
        "two_vms global_rwsem well kick_returns violated",
        "two_vms global_rwsem well no_bystander violated",
        "two_vms sticky well kick_returns holds",
    ),
    entry("R17", "a queued writer stops new readers", ByTest(RWSEM, "test_a_queued_writer_stops_new_readers")),
    entry(
        "R18",
        "waits cannot be interrupted as posted; killable ones can",
        ByTest(RWSEM, "test_a_plain_wait_ignores_signals"),
        ByTest(RWSEM, "test_a_killable_wait_ends_with_a_signal_and_holds_nothing"),
    ),
    entry("R19", "overlapping holders without a count", "merge sticky well missing_slot violated 2"),
    entry("R20", "refcounted holds", "merge holds well missing_slot holds 2"),
    entry("R21", "RESUME races the next KICK", "merge sticky well kick_returns violated 2"),
    entry(
        "R22",
        "serialised transactions do not",
        "merge holds well kick_returns holds 2",
        "merge accel_blocker well kick_returns holds 2",
    ),
    entry(
        "R23",
        "alternative (a) with and without a gate",
        "merge clear_on_exit well missing_slot holds",
        "merge clear_on_exit well kick_returns holds",
        "merge clear_on_exit careless missing_slot violated",
        "merge clear_on_exit careless kick_returns violated",
    ),
    entry(
        "R24",
        "alternative (b)",
        "merge clear_before_up_write well missing_slot violated",
        "merge clear_before_up_write careless missing_slot violated",
        "merge clear_before_up_write well kick_returns holds",
    ),
    entry(
        "R25",
        "alternative (c)",
        "merge clear_after_up_write well missing_slot violated",
        "merge clear_after_up_write careless missing_slot violated",
        "merge clear_after_up_write well kick_returns holds",
    ),
    entry(
        "R26",
        "check in place of test at check_block loses the kick",
        "merge check_not_test well kick_returns violated",
        "merge check_not_test well deadlock violated",
    ),
    entry(
        "R27",
        "passing the gate and calling KVM_RUN is not one step",
        "merge clear_after_up_write well closed_window violated",
    ),
    entry(
        "R28",
        "a finished exit is lost; not in the repaired order",
        "merge sticky well lost_exit violated",
        ByTest(EXPLORED, "test_the_repaired_order_of_the_exit_test_loses_no_exit"),
    ),
    entry("R29", "a completion runs in the closed window", "pending_io sticky well closed_window violated"),
    entry(
        "R30",
        "finishing it with immediate_exit first avoids that",
        ByTest(STATES, "test_immediate_exit_returns_eintr_after_the_completion"),
    ),
    entry(
        "R31",
        "a vCPU created in the window is not held",
        "hotplug sticky well closed_window violated",
        "hotplug holds well closed_window holds",
    ),
    entry("R32", "other ioctls read slots in the window", "other_ioctl sticky well no_bystander violated"),
    entry(
        "R33",
        "so do threads that are no vCPU's",
        "other_ioctl srcu well no_bystander violated",
        "other_ioctl holds well no_bystander holds",
    ),
    entry(
        "R34",
        "a vCPU stuck in a page fault hangs the KICK; a signal frees it",
        "stuck_fault sticky well kick_returns violated",
        "stuck_fault signal well kick_returns holds",
    ),
    entry(
        "R35",
        "SRCU means the same as the semaphore",
        "merge srcu well kick_returns holds",
        "merge srcu well missing_slot holds",
        ByTest(RWSEM, "test_srcu_grace_period_ends_although_new_readers_keep_coming"),
        OutOfScope("expedited or normal is how long a grace period takes; the core has no clock"),
    ),
    entry(
        "R36",
        "signal and immediate_exit: nobody is missed, nothing keeps the vCPU out",
        "merge signal well kick_returns holds",
        "merge signal careless closed_window violated",
    ),
    entry(
        "R37",
        "pause_all_vcpus drops the BQL",
        OutOfScope("a property of QEMU's big lock; the core emulates the kernel, not QEMU"),
    ),
    entry("R38", "two pausers race", OutOfScope("as R37")),
    entry(
        "R39",
        "accel-blocker end to end",
        "merge accel_blocker careless closed_window holds",
        "merge accel_blocker careless kick_returns holds",
        "merge accel_blocker careless bounded_busy holds",
    ),
    entry(
        "R40",
        "inhibit only when an addition overlaps a deletion",
        OutOfScope("a choice of QEMU's memory listener before the ioctls; scenarios say themselves what they protect"),
    ),
    entry("R41", "the holder's own ioctls pass", "merge accel_blocker well deadlock holds"),
    entry(
        "R42",
        "a count above zero lets further ioctls in and starves the inhibitor",
        ByTest(EXPLORED, "test_overlapping_ioctls_starve_the_accel_blocker"),
    ),
    entry(
        "R43",
        "the missed kick when mode and request are in the wrong order",
        ByTest("tests/explore/verdicts/test_mutations.py", "test_a_dropped_safeguard_turns_a_verdict"),
    ),
    entry(
        "R44",
        "WAIT acknowledges the IPI, not the exit from KVM_RUN",
        ByTest(REQUESTS, "test_wait_means_the_ipi_was_taken_not_that_kvm_run_was_left"),
    ),
    entry(
        "R45",
        "a woken sleeper is not waited for",
        ByTest(REQUESTS, "test_a_woken_sleeper_is_not_waited_for_even_with_wait"),
    ),
    entry(
        "R46",
        "NO_WAKEUP leaves a sleeper asleep",
        ByTest(REQUESTS, "test_a_no_wakeup_request_leaves_a_halted_vcpu_asleep"),
    ),
    entry("R47", "NO_ACTION leaves no bit", ByTest(REQUESTS, "test_a_no_action_request_leaves_no_bit")),
    entry(
        "R48",
        "KICK with nobody inside returns at once",
        ByTest(STATES, "test_kick_with_no_vcpu_and_with_all_in_userspace_returns_at_once"),
    ),
    entry(
        "R49",
        "KICK from a vCPU's own thread is legal",
        ByTest(VARIANTS, "test_kick_without_vcpus_inside_returns_at_once"),
    ),
    entry("R50", "KICK from another process is EIO", OutOfScope("an emulated VM has no mm; every client is its owner")),
    entry(
        "R51",
        "the list ioctl",
        ByTest(SLOTS, "test_a_list_is_all_or_nothing"),
        ByTest(EXPLORED, "test_a_list_that_ends_where_it_began_shows_a_guest_nothing_in_between"),
        ByTest(EXPLORED, "test_an_error_in_the_middle_of_a_list_changes_nothing_for_a_guest"),
        "merge region_list well missing_slot holds",
    ),
    entry("R52", "KVM_MEM_DISABLED", OutOfScope("an idea of the thread without a patch; no variant has it")),
    entry("R53", "zero-length MMIO on a fetch", OutOfScope("as R52")),
    entry("R54", "a primitive that grows or shrinks in place", OutOfScope("as R52")),
    entry("R55", "the INVALID phase", ByTest(SLOTS, "test_a_deletion_shows_an_invalid_slot_before_it_shows_a_hole")),
    entry(
        "R56",
        "pausing costs the slowest vCPU, not the sum",
        OutOfScope("a figure, not a verdict: benchmarks measure it"),
    ),
    entry("D1", "lost exit", "merge sticky well lost_exit violated", "merge holds careless lost_exit holds"),
    entry(
        "D2",
        "completion in the closed window",
        "pending_io sticky well closed_window violated",
        "pending_io sticky well spurious_mmio violated",
        "pending_io holds well closed_window holds",
    ),
    entry(
        "D3",
        "EAGAIN of a parked AP",
        ByTest(STATES, "test_kick_of_a_parked_ap_returns_eagain_with_exit_reason_untouched"),
    ),
    entry("D4", "stale exit_reason", ByTest(STATES, "test_kick_in_guest_returns_eintr_and_leaves_exit_reason")),
    entry(
        "D5",
        "a vCPU created after KICK",
        "hotplug global_rwsem well closed_window violated",
        "hotplug holds well closed_window holds",
    ),
    entry("D6", "one bit, no count", "merge global_rwsem well missing_slot violated 2"),
    entry("D7", "RESUME racing KICK", "merge global_rwsem well kick_returns violated 2"),
    entry(
        "D8",
        "one semaphore for all VMs",
        "two_vms global_rwsem well kick_returns violated",
        "two_vms global_rwsem well no_bystander violated",
    ),
    entry("D9", "waits that cannot be interrupted", ByTest(RWSEM, "test_a_plain_wait_ignores_signals")),
    entry("D10", "an x86 macro in common code", OutOfScope("a build error on other architectures")),
    entry("D11", "no capability, no documentation", OutOfScope("nothing to run")),
    entry(
        "D12",
        "other ioctls are not blocked",
        "other_ioctl sticky well no_bystander violated",
        "other_ioctl holds careless no_bystander holds",
    ),
    entry("D13", "RESUME without KICK is a no-op", ByTest(STATES, "test_resume_without_a_kick_changes_nothing")),
    entry(
        "D14",
        "a kicked vCPU stuck in mm",
        "stuck_fault global_rwsem well kick_returns violated",
        "stuck_fault holds well kick_returns holds",
        ByTest(STATES, "test_kick_of_a_vcpu_stuck_in_a_page_fault_hangs"),
    ),
    entry(
        "D15",
        "the kick test comes before VM_DEAD",
        ByTest(STATES, "test_kick_comes_before_a_pending_triple_fault_which_stays"),
    ),
)


def ledger_json() -> dict[str, Any]:
    """The ledger as data."""
    return {
        "requirements": [
            {"id": it.id, "what": it.what, "shown_by": [str(item) for item in it.shown_by]} for it in LEDGER
        ]
    }
