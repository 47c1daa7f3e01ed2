//! What an application does that belongs to no connection: its timers, and its `stopping`
//! hook. Handler threads do it, since it may wait.

use super::Service;
use super::application::Application;
use super::timers::{Due, Timer};
use super::worker::Worker;
use chappe_shm::{Count as _, Counter};
use chappe_sys::clock::Moment;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl<S: Service> Application<S> {
    pub(super) fn worker(&self) -> &Worker<S> {
        &self.worker
    }

    /// Lists the timers that are due.
    pub(super) fn submit_timers(self: &Arc<Self>) {
        let Due { timers, missed } = self.worker.timers().take_due(Moment::now());
        if missed > 0 {
            self.counters.add(Counter::TimerTicksMissed, missed);
        }
        for timer in timers {
            let application = Arc::clone(self);
            self.worker.engine().submit(Box::new(move || application.run_timer(&timer)));
        }
    }

    fn run_timer(&self, timer: &Timer<S>) {
        // It may have waited for a thread since before the drain.
        if self.worker.timers().is_stopped() {
            return;
        }
        let run = AssertUnwindSafe(|| (timer.action)(&self.service, &self.worker));
        match catch_unwind(run) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.counters.add(Counter::HandlerErrors, 1);
                self.report_timer(&error);
            }
            Err(panic) => {
                self.counters.add(Counter::HandlerPanics, 1);
                self.report_panic("a timer", 0, &*panic);
            }
        }
        timer.end_run();
    }

    /// The worker begins to drain: no timer runs any more, and the service hears of it.
    pub(super) fn stop(self: &Arc<Self>) {
        self.worker.begin_stopping();
        if !self.has_stopped() {
            let application = Arc::clone(self);
            self.worker.engine().submit(Box::new(move || application.run_stopping()));
        }
    }

    fn run_stopping(&self) {
        let hook = AssertUnwindSafe(|| self.service.stopping(&self.worker));
        if let Err(panic) = catch_unwind(hook) {
            self.counters.add(Counter::HandlerPanics, 1);
            self.report_panic("stopping", 0, &*panic);
        }
        // Release: a thread that sees it, sees what the hook has done.
        self.has_stopped.store(true, Ordering::Release);
        self.worker.wake_loop();
    }

    /// Whether the `stopping` hook has returned, or the service has no such hook.
    pub(super) fn has_stopped(&self) -> bool {
        self.has_stopped.load(Ordering::Acquire)
    }
}
