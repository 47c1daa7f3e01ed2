//! One worker more, one fewer: TTIN and TTOU. It holds until the configured number
//! changes, or until a restart.

use std::time::Instant;

use chappe_shm::Stage;

use super::plan::{Event, Verdict};
use super::stop::CUT_GRACE;
use super::{Master, Vacancy};
use crate::config::WORKER_PROCESSES_MAX;
use crate::listen::{Bound, ListenError};
use crate::logging::{self, Role};

impl Master<'_> {
    pub(super) fn request_resize(&mut self, by: i32, signal: &str) {
        match self.plan.note(Event::Resize(by)) {
            Verdict::Now => {}
            Verdict::Later => log::info!("{signal} is noted, it comes after the reload"),
            Verdict::Refused => log::warn!("{signal} refused: the server is stopping"),
        }
    }

    pub(super) fn resize(&mut self, by: i32) {
        let before = self.workers_wanted;
        let wanted = (i32::from(before) + by).clamp(1, i32::from(WORKER_PROCESSES_MAX));
        let wanted = u16::try_from(wanted).unwrap_or(before);
        if wanted == before {
            let bound = if by < 0 { "there is one worker only" } else { "there are 1024 workers" };
            log::warn!("workers stay as they are: {bound} workers={before}");
            return;
        }
        log::info!("workers={wanted}, before={before}");
        // With a socket for each worker number afterwards, whoever runs goes on with
        // the one that has its number, and nobody's socket is left alone.
        let are_even = |workers| self.listeners.iter().all(|bound| bound.is_even(workers));
        let has_socket = are_even(wanted) || (wanted > before && are_even(before));
        if has_socket && self.has_peer_tables(wanted.saturating_sub(before)) {
            let result = if wanted > before { self.add_workers(wanted) } else { Ok(()) };
            match result {
                Ok(()) => self.remove_workers(wanted),
                Err(reason) => log::error!("workers stay as they are: {reason}"),
            }
            return;
        }
        // A worker's own socket has connects in its queue and nobody else to take
        // them: the others must be forked anew to have it, or to have a table of addresses
        // mapped that is not there yet.
        let what = if has_socket { "tables of addresses" } else { "sockets" };
        log::info!("{what} are handed out anew, so this takes a new generation");
        self.plan.resize_is_reload();
        self.manager.reloading();
        match self.resized_candidate(wanted) {
            Ok(candidate) => self.start_candidate(candidate),
            Err(failure) => self.report_failure(&failure, &[]),
        }
    }

    /// Whether there is a table of addresses for each of `more` workers, which those that
    /// run have mapped, too. True while no address is limited.
    fn has_peer_tables(&self, more: u16) -> bool {
        self.config.limits.connections_per_ip == 0
            || self.zone.free_peer_tables() >= usize::from(more)
    }

    fn add_workers(&mut self, wanted: u16) -> Result<(), String> {
        let mut logs = Vec::new();
        for number in self.worker_logs.len()..usize::from(wanted) {
            let number = u16::try_from(number).unwrap_or(u16::MAX);
            let log = logging::open(&self.config.log.directory, Role::Worker(number));
            logs.push(log.map_err(|error| error.to_string())?);
        }
        grow_all(&mut self.listeners, wanted).map_err(|error| error.to_string())?;
        self.worker_logs.extend(logs);
        let now = Instant::now();
        self.vacancies
            .extend((self.workers_wanted..wanted).map(|number| Vacancy { number, due: now }));
        self.set_wanted(wanted);
        Ok(())
    }

    fn remove_workers(&mut self, wanted: u16) {
        let until = Instant::now() + self.config.worker_shutdown_timeout + CUT_GRACE;
        self.vacancies.retain(|vacancy| vacancy.number < wanted);
        for worker in &mut self.workers {
            let is_current = worker.generation == self.generation && worker.leaves_by.is_none();
            if is_current && worker.number >= wanted {
                log::info!("worker is drained worker={} pid={}", worker.number, worker.pid);
                worker.drain(Stage::DrainForReload, until);
            }
        }
        self.set_wanted(wanted);
    }

    fn set_wanted(&mut self, wanted: u16) {
        self.workers_wanted = wanted;
        self.pauses.resize(usize::from(wanted), std::time::Duration::ZERO);
    }
}

/// A socket for each of so many workers on each listener, or none on any: one that
/// listened and belonged to nobody would take connects that nobody accepts.
fn grow_all(listeners: &mut [Bound], workers: u16) -> Result<(), ListenError> {
    let before: Vec<usize> = listeners.iter().map(Bound::sockets).collect();
    let grown = listeners
        .iter_mut()
        .try_for_each(|bound| bound.grow(workers))
        // Only now, when there are enough of all.
        .and_then(|()| listeners.iter().try_for_each(Bound::listen));
    if grown.is_err() {
        for (bound, sockets) in listeners.iter_mut().zip(before) {
            bound.shrink(sockets);
        }
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Accept, Address};
    use std::net::TcpStream;

    fn reuseport() -> Bound {
        let address = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let options =
            config::Listen { address, accept: Accept::Reuseport, ..config::Listen::default() };
        let bound = Bound::bind(&options, 1).unwrap();
        bound.listen().unwrap();
        bound
    }

    #[test]
    fn one_listener_that_cannot_grow_keeps_all_as_they_were() {
        let (first, second) = (reuseport(), reuseport());
        let Address::Tcp(local) = first.local else { panic!("{:?}", first.local) };
        let mut listeners = vec![first, second];
        grow_all(&mut listeners, 2).unwrap();
        assert_eq!(listeners.iter().map(Bound::sockets).collect::<Vec<_>>(), [2, 2]);
        // Nobody has this address, so there is no third socket for it.
        listeners[1].local = Address::Tcp("192.0.2.1:9".parse().unwrap());
        assert!(grow_all(&mut listeners, 3).is_err());
        assert_eq!(listeners.iter().map(Bound::sockets).collect::<Vec<_>>(), [2, 2]);
        TcpStream::connect(local).unwrap();
    }
}
