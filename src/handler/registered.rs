//! A handler in its worker: where it runs, and where its calls are counted.

use super::Service;
use super::application::Application;
use super::pace::{Changed, Tempo};
use super::routes::{Route, RoutePace};
use chappe_shm::{AppFigures, Count as _, Counter, Runs};
use std::fmt::Display;
use std::time::Duration;

pub(super) struct Registered<S: Service> {
    pub(super) route: Route<S>,
    pub(super) tempo: Tempo,
}

impl<S: Service> Registered<S> {
    pub(super) fn new(route: Route<S>, figures: &AppFigures) -> Self {
        let tempo = match route.pace {
            RoutePace::Stock => Tempo::quick(),
            RoutePace::Measured => Tempo::proving(),
            RoutePace::Blocking => Tempo::slow(),
        };
        let registered = Self { route, tempo };
        registered.tell(figures);
        registered
    }

    /// Tells the others where it runs.
    fn tell(&self, figures: &AppFigures) {
        let runs = match self.route.pace {
            RoutePace::Blocking => Runs::Blocking,
            _ if self.tempo.pace().is_for_threads() => Runs::Threads,
            _ => Runs::Loop,
        };
        figures.set_runs(figures.catalog().row_of(self.route.code), runs);
    }
}

impl<S: Service> Application<S> {
    /// Logs where a handler runs from now on, if that has changed.
    pub(super) fn note(&self, place: usize, changed: Changed, time: Duration) {
        if changed == Changed::Nothing {
            return;
        }
        let registered = &self.handlers[place];
        registered.tell(&self.figures);
        let code = registered.route.code;
        self.note_change(format_args!("code={code}"), &registered.tempo, changed, time);
    }

    /// Logs and counts a change of pace, like [`Application::note`]; `what` names the handler or hook.
    pub(super) fn note_change(
        &self,
        what: impl Display,
        tempo: &Tempo,
        changed: Changed,
        time: Duration,
    ) {
        let took_us = time.as_micros();
        match (changed, tempo.is_slow()) {
            (Changed::Nothing, _) => {}
            (Changed::Promoted, _) => {
                log::debug!(target: "handler.promoted", "a handler now runs on the event loop {what}")
            }
            (Changed::Demoted, true) => log::warn!(
                target: "handler.demoted",
                "a handler was slow on the event loop too often; it stays on the handler \
                 threads {what} took_us={took_us}"
            ),
            (Changed::Demoted, false) => log::warn!(
                target: "handler.demoted",
                "a handler was slow on the event loop; it runs on the handler threads again \
                 {what} took_us={took_us}"
            ),
        }
        if changed == Changed::Demoted {
            self.counters.add(Counter::HandlersDemoted, 1);
        }
    }
}
