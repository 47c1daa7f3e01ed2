//! The first listeners: passed to us by whoever started us, or bound.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Failure;
use crate::config::Config;
use crate::listen::{Bound, ListenError, Passed};

/// How long a taken address is tried again: the workers of a master that has just
/// been killed still have it until they have noticed.
const TAKEN_MAX: Duration = Duration::from_millis(500);
/// How often.
const TAKEN_RETRY: Duration = Duration::from_millis(10);

/// One listener for each `[[listen]]`. What was passed is taken for the table with
/// its address; what is passed and has no table is a mistake of whoever passed it,
/// since connections to it would wait for ever.
pub(super) fn open(config: &Config, mut passed: Vec<Passed>) -> Result<Vec<Bound>, Failure> {
    let mut listeners = Vec::with_capacity(config.listen.len());
    let until = Instant::now() + TAKEN_MAX;
    let workers = config.effective_worker_processes();
    for options in &config.listen {
        let fits = |passed: &Passed| passed.address == options.address;
        let listener = match passed.iter().position(fits) {
            Some(index) => Bound::adopt(passed.swap_remove(index), options),
            None => bind(options, workers, until)?,
        };
        listeners.push(listener);
    }
    let left: Vec<String> = passed.iter().map(|passed| passed.address.to_string()).collect();
    if left.is_empty() {
        return Ok(listeners);
    }
    Err(Failure::Refused(format!(
        "LISTEN_FDS has sockets that no [[listen]] table names: {}; write the addresses as they \
         stand in the socket unit",
        left.join(" ")
    )))
}

fn bind(
    options: &crate::config::Listen,
    workers: u16,
    until: Instant,
) -> Result<Bound, ListenError> {
    loop {
        let listening = Bound::bind(options, workers);
        match listening.and_then(|bound| bound.listen().map(|()| bound)) {
            Err(error) if error.is_taken() && Instant::now() < until => sleep(TAKEN_RETRY),
            result => return result,
        }
    }
}
