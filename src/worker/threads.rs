//! The threads of a worker beside its event loop.

use super::placement::{Place, Placement};
use crate::dispatch::{DispatchPath, HandlerThread};
use crate::handler::Application;
use crate::send::{SendPath, send_thread};
use chappe_shm::{Slot, ThreadRole};
use chappe_sys::clock::monotonic_us;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// See the module. They end when they are told to.
#[derive(Debug)]
pub(super) struct Threads {
    joins: Vec<JoinHandle<()>>,
    dispatch: Arc<DispatchPath>,
    send: Arc<SendPath>,
}

impl Threads {
    /// Starts `handlers` handler threads and the send thread.
    pub(super) fn start(
        handlers: u16,
        application: &Arc<Application>,
        dispatch: &Arc<DispatchPath>,
        send: &Arc<SendPath>,
        slot: &Slot,
        placement: Placement,
    ) -> io::Result<Self> {
        let mut joins = Vec::new();
        for number in 0..handlers {
            let thread = HandlerThread::new(number, Arc::clone(dispatch), slot.clone());
            let application = Arc::clone(application);
            let place = if number == 0 { Place::Home } else { Place::Anywhere };
            let body = move || {
                placement.settle(place);
                thread.run(&*application, monotonic_us);
            };
            joins.push(spawn(format!("handler-{number}"), body)?);
        }
        let counters = slot.counters(ThreadRole::SendThread);
        let path = Arc::clone(send);
        let body = move || {
            placement.settle(Place::Home);
            send_thread::run(&path, &counters);
        };
        joins.push(spawn("sender".to_owned(), body)?);
        Ok(Self { joins, dispatch: Arc::clone(dispatch), send: Arc::clone(send) })
    }

    /// Tells all of them to end. Each finishes what it is in; a handler may take
    /// long, so nobody waits for it here.
    pub(super) fn stop(&self) {
        self.dispatch.run_list().stop();
        self.send.list().stop();
    }

    /// Whether all of them have ended.
    pub(super) fn are_gone(&self) -> bool {
        self.joins.iter().all(JoinHandle::is_finished)
    }
}

/// A worker that lost one of its threads is a corpse that still accepts: a panic
/// outside of a handler ends the process, and the master replaces it.
fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.clone()).spawn(move || {
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            log::error!("thread {name} panicked, the worker aborts");
            std::process::abort();
        }
    })
}
