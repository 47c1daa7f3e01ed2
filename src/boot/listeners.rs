//! The first listeners: passed to us by the program that started us, or bound.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Failure;
use crate::config::Loaded;
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
pub(super) fn open(loaded: &Loaded, mut passed: Vec<Passed>) -> Result<Vec<Bound>, Failure> {
    let config = &loaded.config;
    let named = |index| move |error: ListenError| error.of(loaded.listener_key(index));
    let workers = config.effective_worker_processes();
    let mut listeners = Vec::with_capacity(config.listen.len());
    let until = Instant::now() + TAKEN_MAX;
    for (index, options) in config.listen.iter().enumerate() {
        let fits = |passed: &Passed| passed.address == options.address;
        let listener = match passed.iter().position(fits) {
            Some(place) => Bound::adopt(passed.swap_remove(place), options, workers),
            None => bind(until, || Bound::bind(options, workers)),
        };
        listeners.push(listener.map_err(named(index))?);
    }
    let left: Vec<String> = passed.iter().map(|passed| passed.address.to_string()).collect();
    if left.is_empty() {
        // Only now, when all are ours, does anybody get in.
        for (index, listener) in listeners.iter().enumerate() {
            listener.listen().map_err(named(index))?;
        }
        return Ok(listeners);
    }
    Err(Failure::Refused(format!(
        "LISTEN_FDS has sockets that no [[listen]] table names: {}; write the addresses as they \
         stand in the socket unit",
        left.join(" ")
    )))
}

/// Where metrics are served, if anywhere.
pub(super) fn open_metrics(loaded: &Loaded) -> Result<Option<Bound>, Failure> {
    let until = Instant::now() + TAKEN_MAX;
    let opened = bind(until, || {
        let bound = bind_metrics(&loaded.config)?;
        bound.iter().try_for_each(Bound::listen)?;
        Ok(bound)
    });
    Ok(opened.map_err(|error| error.of(loaded.key("metrics.address")))?)
}

fn bind<T>(until: Instant, bind: impl Fn() -> Result<T, ListenError>) -> Result<T, ListenError> {
    loop {
        match bind() {
            Err(error) if error.is_taken() && Instant::now() < until => sleep(TAKEN_RETRY),
            result => return result,
        }
    }
}
