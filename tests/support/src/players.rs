//! Workers that only play: they do what `[application] play` says, for tests of the master.

use std::os::fd::AsFd;
use std::thread;

use chappe::prefork::{Assignment, Message, Parcel, ReceivedParcel, Stage};
use chappe_sys::process::ExitReason;
use chappe_sys::signals::{self, Signals};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

/// What a worker of `players` does, until it is told to go.
pub fn play(assignment: Assignment) -> ExitReason {
    let part = assignment.application().get("play").and_then(|part| part.as_str());
    let part = part.unwrap_or("well").to_owned();
    let first = assignment.slot.connection_ids(1) == 1;
    match part.as_str() {
        "die at boot" => return ExitReason::CannotBoot,
        // The first of all workers comes up, and none after it.
        "die again and again" if !first => return ExitReason::CannotBoot,
        "ready when told" => wait_for_usr2(),
        "first is well" if first => {}
        "last is late" if assignment.number == 0 => {}
        "never ready" | "first is well" | "last is late" => loop {
            thread::park();
        },
        _ => {}
    }
    let mut signals = Signals::new(&[Signal::SIGTERM, Signal::SIGINT]).expect("signals");
    signals::unblock().expect("signals");
    assignment.slot.mark_ready();
    assignment.channel.send(Message::Ready).expect("the master lives");
    let mut followed = Stage::Wait;
    loop {
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(assignment.channel.as_fd(), PollFlags::POLLIN),
        ];
        let _interrupted = poll(&mut fds, PollTimeout::NONE);
        if !signals.pending().is_empty() && part != "stubborn" {
            return ExitReason::Stopped;
        }
        let received = assignment.channel.try_receive_parcel().expect("channel");
        let (message, value) = match received {
            Some(ReceivedParcel::Parcel(Parcel { message, value, .. })) => (message, value),
            Some(ReceivedParcel::Closed) => return ExitReason::Stopped,
            Some(ReceivedParcel::Nonsense) | None => continue,
        };
        if message == Message::SwapLog {
            assignment.channel.send_parcel(Message::Done, value, None).expect("told");
        }
        let stage = assignment.slot.orders().stage;
        if stage == followed {
            continue;
        }
        followed = stage;
        if stage == Stage::Serve {
            log::info!(target: "worker.serves", "worker serves");
            assignment.slot.mark_serving();
        } else if stage.is_drain() {
            log::info!(target: "worker.drains", "worker drains");
            assignment.slot.mark_draining();
            if part != "stubborn" && part != "linger" {
                return ExitReason::Stopped;
            }
        }
    }
}

fn wait_for_usr2() {
    let mut told = Signals::new(&[Signal::SIGUSR2]).expect("signals");
    signals::unblock().expect("signals");
    while told.pending().is_empty() {
        let mut fds = [PollFd::new(told.as_fd(), PollFlags::POLLIN)];
        let _interrupted = poll(&mut fds, PollTimeout::NONE);
    }
}
