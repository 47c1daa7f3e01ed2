//! The first listeners: passed to us by the program that started us, or bound.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Failure;
use crate::config::Config;
use crate::listen::{Bound, ListenError, Passed};
use crate::master::bind_metrics;

/// How long a taken address is tried again: the workers of a master that has just
/// been killed still have it until they have noticed.
const TAKEN_MAX: Duration = Duration::from_millis(500);
/// How often.
const TAKEN_RETRY: Duration = Duration::from_millis(10);

/// One listener for each `[[listen]]`. What was passed is taken for the table with
/// its address; what is passed and has no table is a mistake of the program that
/// passed it, since connections to it would wait forever.
pub(super) fn open(config: &Config, mut passed: Vec<Passed>) -> Result<Vec<Bound>, Failure> {
    let workers = config.effective_worker_processes();
    let mut listeners = Vec::with_capacity(config.listen.len());
    let until = Instant::now() + TAKEN_MAX;
    for options in &config.listen {
        let fits = |passed: &Passed| passed.address == options.address;
        let listener = match passed.iter().position(fits) {
            Some(index) => Bound::adopt(passed.swap_remove(index), options, workers)?,
            None => bind(until, || Bound::bind(options, workers))?,
        };
        listeners.push(listener);
    }
    let left: Vec<String> = passed.iter().map(|passed| passed.address.to_string()).collect();
    if left.is_empty() {
        // Only now, when all are ours, does anybody get in.
        listeners.iter().try_for_each(Bound::listen)?;
        return Ok(listeners);
    }
    Err(Failure::Refused(format!(
        "LISTEN_FDS has sockets that no [[listen]] table names: {}; write the addresses as they \
         stand in the socket unit",
        left.join(" ")
    )))
}

/// Where metrics are served, if anywhere.
pub(super) fn open_metrics(config: &Config) -> Result<Option<Bound>, Failure> {
    let until = Instant::now() + TAKEN_MAX;
    let opened = bind(until, || {
        let bound = bind_metrics(config)?;
        bound.iter().try_for_each(Bound::listen)?;
        Ok(bound)
    });
    opened.map_err(|error| Failure::Refused(format!("metrics: {error}")))
}

fn bind<T>(until: Instant, bind: impl Fn() -> Result<T, ListenError>) -> Result<T, ListenError> {
    loop {
        match bind() {
            Err(error) if error.is_taken() && Instant::now() < until => sleep(TAKEN_RETRY),
            result => return result,
        }
    }
}
