//! The process that serves metrics over HTTP: text for Prometheus at `/metrics`, a
//! page with charts for people at `/`, and what the page asks for at `/state`. Once a second
//! it looks at everything and keeps a sample, for pages that are opened later.
//!
//! It is forked by the master and reads the zone, in which it writes nothing; it has
//! no client's connection and no lock that anybody waits for. So it can die at any
//! time, and the master replaces it. One thread, one place that sleeps: a poll in
//! [`run`]. It ends with the master: its channel is closed then.

#[cfg(feature = "pages")]
mod history;
mod http;
mod peer;
#[cfg(feature = "pages")]
mod state;
mod text;

use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chappe_shm::Zone;
use chappe_sys::process::ExitReason;
use chappe_sys::signals::{Signals, USED, unblock};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::channel::{Received, WorkerEnd};
#[cfg(feature = "pages")]
use history::Samples;
use http::Answer;
use peer::Peer;
pub(crate) use text::Facts;

/// How many connections there are at a time. For one more, the oldest goes of those that
/// have asked nothing yet, or were answered.
const CONNECTIONS_MAX: usize = 32;

/// How many are let in in a turn of the loop, before those that were let in are looked at.
const ACCEPTS_A_TURN: usize = CONNECTIONS_MAX;

/// How many wait in the socket's queue. A client that finds it full tries again a second later,
/// so it has room for more than anybody has scrapers.
pub(crate) const BACKLOG: u32 = 4096;

/// How long accepting pauses after an error: what is missing may come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The page, without anything from elsewhere.
#[cfg(feature = "pages")]
const PAGE: &str = include_str!("page.html");

/// What the process starts with, all of it its own.
#[derive(Debug)]
pub(crate) struct Start {
    /// Read, never written.
    pub(crate) zone: Arc<Zone>,
    /// The line to the master.
    pub(crate) channel: WorkerEnd,
    /// Listens, and does not block.
    pub(crate) listener: TcpListener,
    /// What the zone does not tell.
    pub(crate) facts: Facts,
}

/// Serves until the master is gone, or until SIGTERM.
pub(crate) fn run(start: Start) -> ExitReason {
    match serve(start) {
        Ok(()) => ExitReason::Stopped,
        Err(_) => ExitReason::Failed,
    }
}

fn serve(start: Start) -> io::Result<()> {
    let Start { zone, channel, listener, facts } = start;
    // A terminal's keys reach every process of its group. This one leaves the answer to
    // the master, but for SIGTERM, which is meant.
    let taken: Vec<Signal> = USED.into_iter().filter(|s| *s != Signal::SIGCHLD).collect();
    let mut signals = Signals::new(&taken)?;
    unblock()?;
    #[cfg(feature = "pages")]
    let mut samples = Samples::new();
    let mut peers: Vec<Peer> = Vec::new();
    let mut accept_after = Instant::now();
    loop {
        #[cfg(feature = "pages")]
        let next_look = Some(samples.look_if_due(&zone));
        #[cfg(not(feature = "pages"))]
        let next_look = None;
        let accepts = has_room(&peers) && accept_after <= Instant::now();
        sleep(&channel, &signals, accepts.then_some(&listener), &peers, accept_after, next_look)?;
        if signals.pending().contains(&Signal::SIGTERM) || has_ended(&channel) {
            return Ok(());
        }
        let answer = |request: Result<http::Path, http::Refusal>| match request {
            #[cfg(feature = "pages")]
            Ok(http::Path::Page) => Answer::page(PAGE),
            Ok(http::Path::Metrics) => {
                text::render(&zone, &facts).map_or_else(Answer::unavailable, Answer::metrics)
            }
            #[cfg(feature = "pages")]
            Ok(http::Path::State(after)) => samples
                .history
                .state(&zone, &facts, after)
                .map_or_else(Answer::unavailable, Answer::state),
            Err(refusal) => Answer::refusal(refusal),
        };
        // First those that are there: a client whose request has come does not make room for another.
        let now = Instant::now();
        peers.retain_mut(|peer| peer.go_on(now, &answer));
        if accepts && let Err(_full) = accept(&listener, &mut peers, &answer) {
            accept_after = Instant::now() + ACCEPT_PAUSE;
        }
    }
}

/// Whether one more can be let in, be it in the place of another one.
fn has_room(peers: &[Peer]) -> bool {
    peers.len() < CONNECTIONS_MAX || peers.iter().any(Peer::is_waiting)
}

/// The only place that sleeps: until a peer, the master or a signal has something, or
/// the next deadline.
fn sleep(
    channel: &WorkerEnd,
    signals: &Signals,
    listener: Option<&TcpListener>,
    peers: &[Peer],
    accept_after: Instant,
    next_look: Option<Instant>,
) -> io::Result<()> {
    let mut fds = vec![
        PollFd::new(channel.as_fd(), PollFlags::POLLIN),
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
    ];
    fds.extend(peers.iter().map(|peer| PollFd::new(peer.as_fd(), peer.interest())));
    let now = Instant::now();
    let mut deadlines: Vec<Instant> = peers.iter().map(Peer::deadline).collect();
    deadlines.extend(next_look);
    match listener {
        Some(listener) => fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN)),
        None if accept_after > now => deadlines.push(accept_after),
        None => {}
    }
    let timeout = deadlines.into_iter().min().map_or(PollTimeout::NONE, |deadline| {
        // poll counts whole milliseconds; rounded down it would spin for the rest.
        let wait = deadline.saturating_duration_since(now) + Duration::from_millis(1);
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
    });
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the master is gone, or has let go of us.
fn has_ended(channel: &WorkerEnd) -> bool {
    loop {
        match channel.try_receive() {
            Ok(Some(Received::Message(_) | Received::Nonsense)) => {}
            Ok(None) => return false,
            Ok(Some(Received::Closed)) | Err(_) => return true,
        }
    }
}

/// Lets in the clients that wait, and answers at once those that have asked already. Silent connections, however
/// many there are, do not keep anybody out: for each new one the oldest of them goes.
fn accept(
    listener: &TcpListener,
    peers: &mut Vec<Peer>,
    answer: &impl Fn(Result<http::Path, http::Refusal>) -> Answer,
) -> io::Result<()> {
    for _ in 0..ACCEPTS_A_TURN {
        if !has_room(peers) {
            return Ok(());
        }
        match listener.accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(true)?;
                let now = Instant::now();
                let mut peer = Peer::new(socket, now);
                if peer.go_on(now, answer) {
                    make_room(peers);
                    peers.push(peer);
                }
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => return Ok(()),
                // It has gone before it was taken.
                ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

/// Closes the oldest connection that nobody waits at, if there are as many as may be.
fn make_room(peers: &mut Vec<Peer>) {
    if peers.len() < CONNECTIONS_MAX {
        return;
    }
    let waiting = peers.iter().enumerate().filter(|(_, peer)| peer.is_waiting());
    if let Some((place, _)) = waiting.min_by_key(|(_, peer)| peer.deadline()) {
        peers.remove(place);
    }
}
