//! What the models share: a scripted socket, a send path, the loop's part.

mod abort;
mod budget;
mod fuse;
mod inbox;
mod outbox;
mod planted;
mod push;
mod stall;

use chappe::send::{CallList, Entry, SendHalf, SendLimits, SendList, SendPath, SlowReader, Socket};
use chappe::sync::fault::{Fault, is_planted, plant};
use chappe::sync::{Mutex, Semaphore};
use chappe_shm::{SharedCounters, ThreadCounters};
use std::io::{self, IoSlice};
use std::sync::Arc;

/// How often a thread may be preempted in one run. Three finds each planted
/// fault, five find nothing more; every further one multiplies the time.
const PREEMPTIONS: usize = 3;

/// Runs a model, with the fault that the environment asks for.
fn check(model: impl Fn() + Send + Sync + 'static) {
    plant(planted::from_environment());
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 20_000;
    builder.check(model);
}

/// How a socket answers its first call; then it takes all.
#[derive(Clone, Copy, Debug)]
enum First {
    /// It has room for one byte, and is full.
    OneByte,
    /// The kernel has no memory.
    NoBuffers,
    /// It takes all from the beginning.
    All,
}

/// A socket that is full once.
#[derive(Debug)]
struct TightSocket {
    first: First,
    state: Mutex<TightState>,
}

#[derive(Debug, Default)]
struct TightState {
    taken: Vec<u8>,
    calls: usize,
    is_closed: bool,
}

impl TightSocket {
    fn new() -> Arc<Self> {
        Self::that(First::OneByte)
    }

    fn that(first: First) -> Arc<Self> {
        Arc::new(Self { first, state: Mutex::new(TightState::default()) })
    }

    fn taken(&self) -> Vec<u8> {
        self.state.lock().taken.clone()
    }

    fn close(&self) {
        self.state.lock().is_closed = true;
    }
}

impl Socket for TightSocket {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.state.lock();
        assert!(!state.is_closed, "a write to a descriptor that may be a stranger's");
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        state.calls += 1;
        let room = match self.first {
            First::OneByte if state.calls == 1 => 1,
            First::NoBuffers if state.calls == 1 => {
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            }
            _ => all.len(),
        };
        let sent = room.min(all.len());
        state.taken.extend_from_slice(&all[..sent]);
        Ok(sent)
    }
}

fn send_path(bytes_max: usize) -> Arc<SendPath> {
    send_path_with_total(bytes_max, 10_000)
}

fn send_path_with_total(bytes_max: usize, total_bytes_max: usize) -> Arc<SendPath> {
    let list = SendList::new(Semaphore::new(0));
    let calls = CallList::new().expect("a model");
    let slow_reader = SlowReader::DropNewest;
    let limits = SendLimits { bytes_max, total_bytes_max, slow_reader };
    let pushers = SharedCounters::detached();
    Arc::new(SendPath::new(list, calls, limits, entry(b"!"), pushers))
}

fn send_half(socket: &Arc<TightSocket>, path: &Arc<SendPath>) -> Arc<SendHalf> {
    let socket = Arc::clone(socket) as Arc<dyn Socket>;
    Arc::new(SendHalf::new(1, 1, socket, Arc::clone(path)))
}

fn entry(bytes: &'static [u8]) -> Entry {
    Entry { bytes: bytes.into(), frames: 1 }
}

fn send_thread(path: &Arc<SendPath>) -> loom::thread::JoinHandle<()> {
    let path = Arc::clone(path);
    loom::thread::spawn(move || {
        chappe::send::send_thread::run(&path, &ThreadCounters::detached());
    })
}

/// The event loop's part: sleeps on the bell, looks when it is called, writes
/// the rest at EPOLLOUT, until all is sent and the connection may be closed.
fn loop_until_finished(half: &Arc<SendHalf>, path: &SendPath) {
    let counters = ThreadCounters::detached();
    loop {
        path.calls().bell().wait();
        let mut called = Vec::new();
        path.calls().take(&mut called);
        if called.is_empty() {
            continue;
        }
        if !is_planted(Fault::ClearCallLate) {
            half.clear_call();
        }
        let view = half.view();
        if is_planted(Fault::ClearCallLate) {
            half.clear_call();
        }
        if view.blocked.is_some() {
            half.flush_blocked(&counters);
        } else if view.finishing && view.is_idle {
            return;
        }
    }
}
