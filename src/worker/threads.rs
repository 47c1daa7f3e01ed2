//! The threads of a worker other than its event loop.

use crate::topics::Speaker;
use chappe_engine::{Batch, Engine, Place, Serve, Source, Turns, Work};
use chappe_shm::{Slot, ThreadRole};
use chappe_sys::clock::Moment;
use chappe_sys::limits;
use nix::unistd::gettid;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// The handler threads and the send thread. They end after [`Threads::stop`].
#[derive(Debug)]
pub(super) struct Threads {
    joins: Vec<JoinHandle<()>>,
    engine: Arc<Engine>,
}

impl Threads {
    /// Starts `handlers` handler threads and the send thread.
    pub(super) fn start(
        handlers: u16,
        application: &Arc<dyn Serve>,
        engine: &Arc<Engine>,
        slot: &Slot,
        speaker: Option<Speaker>,
    ) -> io::Result<Self> {
        // Threads inherit it.
        schedule_as_batch();
        let mut joins = Vec::new();
        for number in 0..handlers {
            let (slot, engine) = (slot.clone(), Arc::clone(engine));
            let application = Arc::clone(application);
            let body = move || handle(number, &*application, &engine, &slot);
            joins.push(spawn(format!("handler-{number}"), body)?);
        }
        let counters = slot.counters(ThreadRole::SendThread);
        let sends = Arc::clone(engine);
        let body = move || match speaker {
            Some(speaker) => sends.run_send_thread(&counters, speaker),
            None => sends.run_send_thread(&counters, ()),
        };
        joins.push(spawn("sender".to_owned(), body)?);
        Ok(Self { joins, engine: Arc::clone(engine) })
    }

    /// Makes all of them end. Each finishes its current work first. That can take a
    /// handler long, so this does not wait for it.
    pub(super) fn stop(&self) {
        self.engine.stop();
    }

    /// Whether all of them have ended.
    pub(super) fn are_gone(&self) -> bool {
        self.joins.iter().all(JoinHandle::is_finished)
    }
}

/// A handler thread: takes what is listed, a connection's turn or a job of the application,
/// does it, and publishes in the worker's slot since when it has been busy and how long turns
/// took.
fn handle(number: u16, application: &dyn Serve, engine: &Engine, slot: &Slot) {
    let counters = slot.counters(ThreadRole::Handler(number));
    let mut batch = Batch::default();
    let mut turns = Turns::new(application, &counters, Place::Thread, &mut batch);
    while let Some(work) = engine.next_to_handle() {
        let begun = Moment::now();
        slot.handler_started(number, begun.millis());
        match work {
            Work::Turn(mailbox) => {
                // What is left to do is for the event loop only.
                let turned = turns.run(&mailbox, Source::Inbox, begun);
                let took_us = turned.ended.since(begun).as_micros();
                slot.handler_finished(number, u64::try_from(took_us).unwrap_or(u64::MAX));
            }
            Work::Job(job) => {
                job();
                slot.handler_idle(number);
            }
        }
    }
}

/// SCHED_BATCH, sched(7): a thread that is woken does not interrupt the one that woke it,
/// which has more to hand over.
fn schedule_as_batch() {
    if let Err(error) = limits::schedule_as_batch() {
        log::warn!(target: "setting.no_effect", "the worker's threads cannot be set to SCHED_BATCH: {error}");
    }
}

/// The number by which the kernel, `ps -L` and strace know the calling thread.
pub(super) fn log_start(name: &str) {
    log::debug!(target: "thread.started", "thread started name={name} tid={}", gettid());
}

/// A worker that has lost one of its threads would still accept connections, and not serve
/// them. So a panic outside of a handler ends the process, and the master replaces it.
fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name.clone()).spawn(move || {
        log_start(&name);
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            log::error!(target: "thread.panicked", "thread {name} panicked, the worker aborts");
            std::process::abort();
        }
    })
}
