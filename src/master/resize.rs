//! One worker more, one fewer: TTIN and TTOU. It holds until the configured number
//! changes, or until a restart.

use std::time::Instant;

use super::deadlines::What;
use super::generations::Failure;
use super::owners::Master;
use super::plan::{Event, Verdict};
use super::stop::CUT_GRACE;
use crate::config::WORKER_PROCESSES_MAX;

impl Master<'_> {
    pub(super) fn request_resize(&mut self, by: i32, signal: &str) {
        match self.generations.note(Event::Resize(by)) {
            Verdict::Now => {}
            Verdict::Later => {
                log::info!(target: "signal.deferred", "{signal} is deferred until the reload is over")
            }
            Verdict::Refused => {
                log::warn!(target: "signal.refused", "{signal} refused: the server is stopping")
            }
        }
    }

    pub(super) fn resize(&mut self, by: i32) {
        let before = self.generations.current().workers;
        let wanted = wanted_workers(before, by);
        if wanted == before {
            let bound = if by < 0 { "there is one worker only" } else { "there are 1024 workers" };
            log::warn!(target: "workers.kept", "workers stay as they are: {bound} workers={before}");
            return;
        }
        log::info!(target: "workers.changed", "workers={wanted}, before={before}");
        // With a socket for each worker number afterwards, each running worker keeps the
        // one that has its number, and no socket is left without a worker.
        let listeners = &self.generations.current().listeners;
        let are_even = |workers| listeners.iter().all(|bound| bound.is_even(workers));
        let has_socket = are_even(wanted) || (wanted > before && are_even(before));
        if has_socket && self.has_peer_tables(wanted.saturating_sub(before)) {
            let result = if wanted > before { self.add_workers(before, wanted) } else { Ok(()) };
            match result {
                Ok(()) => self.remove_workers(wanted),
                Err(reason) => {
                    log::error!(target: "workers.failed", "workers stay as they are: {reason}")
                }
            }
            return;
        }
        // A worker's own socket has connects in its queue and nobody else to take
        // them: the others must be forked again to have it, or to have a table of addresses
        // mapped that is not there yet.
        let what = if has_socket { "tables of addresses" } else { "sockets" };
        log::info!(target: "workers.renewed", "{what} are handed out again, which takes a new generation");
        self.generations.resize_is_reload();
        self.manager.reloading();
        match self.resized_candidate(wanted) {
            Ok(candidate) => self.begin_candidate(candidate),
            Err(failure) => self.report_failure(&failure, &[]),
        }
    }

    /// Whether there is a table of addresses for each of `more` workers, which those that
    /// run have mapped, too. True while no address is limited.
    fn has_peer_tables(&self, more: u16) -> bool {
        self.generations.current().config.limits.connections_per_ip == 0
            || self.supervisor.zone().free_peer_tables() >= usize::from(more)
    }

    fn add_workers(&mut self, before: u16, wanted: u16) -> Result<(), Failure> {
        self.logs.grow(wanted).map_err(Failure::other)?;
        self.generations.grow_listeners(wanted).map_err(Failure::Listen)?;
        let now = Instant::now();
        (before..wanted).for_each(|number| self.deadlines.set(What::Vacancy(number), now));
        Ok(())
    }

    fn remove_workers(&mut self, wanted: u16) {
        let current = self.generations.current();
        let until = Instant::now() + current.config.worker_shutdown_timeout + CUT_GRACE;
        self.supervisor.drain_from(current.number, wanted, until, &mut self.deadlines);
        self.generations.resize(wanted);
        self.supervisor.set_numbers(wanted);
        self.check_core_state();
    }
}

/// Within what a server may have. A burst of signals is one change, of any size.
fn wanted_workers(before: u16, by: i32) -> u16 {
    let wanted = i32::from(before).saturating_add(by).clamp(1, i32::from(WORKER_PROCESSES_MAX));
    u16::try_from(wanted).unwrap_or(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_worker_at_least_and_no_more_than_may_be() {
        let most = WORKER_PROCESSES_MAX;
        for (before, by, wanted) in [
            (2, 1, 3),
            (2, -1, 1),
            (1, -1, 1),
            (1, i32::MIN, 1),
            (most, 1, most),
            (3, i32::MAX, most),
            (7, 0, 7),
        ] {
            assert_eq!(wanted_workers(before, by), wanted, "{before} and {by}");
        }
    }
}
