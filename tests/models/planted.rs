//! The test of the tests: with a fault planted, its model has to fail. Each runs
//! in a process of its own, since a failing model ends its process's threads
//! where they stand.

use super::Fault;
use std::process::{Command, Stdio};

const VARIABLE: &str = "CHAPPE_PLANTED_FAULT";

/// Each fault and the model that finds it.
const FOUND_BY: [(Fault, &str); 14] = [
    (Fault::PostBeforeState, "models::outbox::each_message_is_sent_once_and_in_order"),
    (Fault::PostBeforeUnblock, "models::outbox::each_message_is_sent_once_and_in_order"),
    (Fault::PostTooMany, "models::outbox::each_message_is_sent_once_and_in_order"),
    (Fault::ClearCallLate, "models::outbox::each_message_is_sent_once_and_in_order"),
    (Fault::StopPostsFirst, "models::outbox::each_message_is_sent_once_and_in_order"),
    (Fault::ShareNotListed, "models::outbox::what_is_beyond_a_fair_share_has_its_turn"),
    (Fault::CutBegun, "models::push::a_cut_backlog_leaves_whole_frames"),
    (Fault::PushAfterLook, "models::push::a_push_is_sent_or_refused"),
    (Fault::CloseUnderWriter, "models::abort::an_aborted_socket_is_closed_under_nobody"),
    (Fault::WaitOutsideLock, "models::budget::who_waits_for_room_is_told"),
    (Fault::PauseOutsideLock, "models::inbox::a_paused_connection_is_read_again_and_finishes"),
    (Fault::EndWithoutLook, "models::inbox::a_paused_connection_is_read_again_and_finishes"),
    (
        Fault::SettleWithoutLook,
        "models::fuse::the_loop_answers_directly_and_whole_while_others_push",
    ),
    (Fault::StallAfterPark, "models::stall::a_stalled_turn_goes_on_when_the_outbox_has_drained"),
];

/// The fault that this process is to plant.
pub(super) fn from_environment() -> Option<Fault> {
    let name = std::env::var(VARIABLE).ok()?;
    let found = FOUND_BY.iter().find(|(fault, _)| format!("{fault:?}") == name);
    Some(found.expect("the name of a fault").0)
}

#[test]
fn each_planted_fault_is_found() {
    if from_environment().is_some() {
        return;
    }
    for (fault, model) in FOUND_BY {
        let status = Command::new(std::env::current_exe().expect("the test binary"))
            .args(["--exact", model])
            .env(VARIABLE, format!("{fault:?}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("the test binary starts");
        assert!(!status.success(), "{model} does not see {fault:?}");
        println!("{fault:?} is found by {model}: {status}");
    }
}
