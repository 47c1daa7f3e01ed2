//! What is to be done about generations, and when: requests are notes, and one at a
//! time becomes an act. Pure, so that every state meets every event in a test.
//!
//! ```text
//! starting ── started ──▶ steady ◀── over ── reloading
//!                           └──── due: reload ──▶
//! any ── stop ──▶ stopping
//! ```

/// What the master is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Busy {
    /// The first workers are not serving yet.
    Starting,
    /// Nothing.
    Steady,
    /// A new generation is on its way.
    Reloading,
    /// The end.
    Stopping,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody wants a reload.
    Reload,
    /// A request for more workers, or, if negative, for fewer.
    Resize(i32),
    /// The first workers serve.
    Started,
    /// The running reload has come to its end, whatever end that was.
    Over,
    /// The server stops.
    Stop,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is due now.
    Now,
    /// It is noted and due later.
    Later,
    /// It will not be done.
    Refused,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// A change of the number of workers.
    Resize(i32),
    /// A reload; it lasts until [`Event::Over`].
    Reload,
}

/// What is going on, and what was requested in the meantime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    busy: Busy,
    /// A burst of requests is one note: the file is read after the last of them.
    wants_reload: bool,
    wants_workers: i32,
}

impl Plan {
    pub(super) fn new() -> Self {
        Self { busy: Busy::Starting, wants_reload: false, wants_workers: 0 }
    }

    pub(super) fn note(&mut self, event: Event) -> Verdict {
        let when = match self.busy {
            Busy::Steady => Verdict::Now,
            Busy::Starting | Busy::Reloading => Verdict::Later,
            Busy::Stopping => Verdict::Refused,
        };
        match (event, self.busy) {
            (Event::Stop, _) => {
                *self = Self { busy: Busy::Stopping, wants_reload: false, wants_workers: 0 };
                Verdict::Now
            }
            (_, Busy::Stopping) => Verdict::Refused,
            (Event::Reload, _) => {
                self.wants_reload = true;
                when
            }
            (Event::Resize(by), _) => {
                self.wants_workers = self.wants_workers.saturating_add(by);
                when
            }
            (Event::Started, Busy::Starting) | (Event::Over, Busy::Reloading) => {
                self.busy = Busy::Steady;
                Verdict::Now
            }
            (Event::Started | Event::Over, _) => Verdict::Refused,
        }
    }

    /// The next thing to do, once. A resize comes first: the reload may have another
    /// number of workers in it, which then holds.
    pub(super) fn due(&mut self) -> Option<Due> {
        if self.busy != Busy::Steady {
            return None;
        }
        if self.wants_workers != 0 {
            return Some(Due::Resize(std::mem::take(&mut self.wants_workers)));
        }
        if std::mem::take(&mut self.wants_reload) {
            self.busy = Busy::Reloading;
            return Some(Due::Reload);
        }
        None
    }

    /// A resize turned out to need a new generation: now that is what is going on.
    pub(super) fn resize_is_reload(&mut self) {
        debug_assert_eq!(self.busy, Busy::Steady);
        self.busy = Busy::Reloading;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_BUSY: [Busy; 4] = [Busy::Starting, Busy::Steady, Busy::Reloading, Busy::Stopping];
    const EVENTS: [Event; 6] = [
        Event::Reload,
        Event::Resize(1),
        Event::Resize(-1),
        Event::Started,
        Event::Over,
        Event::Stop,
    ];

    fn plans() -> impl Iterator<Item = Plan> {
        ALL_BUSY.into_iter().flat_map(|busy| {
            [false, true].into_iter().flat_map(move |wants_reload| {
                (-1..=1).map(move |wants_workers| Plan { busy, wants_reload, wants_workers })
            })
        })
    }

    #[test]
    fn every_state_meets_every_event() {
        for (before, event) in plans().flat_map(|plan| EVENTS.map(|event| (plan, event))) {
            let mut plan = before;
            let verdict = plan.note(event);
            let context = format!("{before:?} and {event:?} → {verdict:?}, {plan:?}");
            match (event, before.busy) {
                (Event::Stop, _) => {
                    assert_eq!(plan.busy, Busy::Stopping, "{context}");
                    assert_eq!(plan.due(), None, "nothing is begun any more: {context}");
                }
                (_, Busy::Stopping) => {
                    assert_eq!((verdict, plan), (Verdict::Refused, before), "{context}");
                }
                (Event::Reload | Event::Resize(_), busy) => {
                    let now = busy == Busy::Steady;
                    assert_eq!(verdict == Verdict::Now, now, "{context}");
                    assert_ne!(verdict, Verdict::Refused, "{context}");
                    assert_eq!(plan.busy, busy, "{context}");
                    if event == Event::Reload {
                        assert!(plan.wants_reload, "{context}");
                        assert_eq!(plan.wants_workers, before.wants_workers, "{context}");
                    } else {
                        assert_eq!(plan.wants_reload, before.wants_reload, "{context}");
                        assert!((plan.wants_workers - before.wants_workers).abs() == 1);
                    }
                }
                (Event::Started, Busy::Starting) | (Event::Over, Busy::Reloading) => {
                    assert_eq!(plan, Plan { busy: Busy::Steady, ..before }, "{context}");
                }
                (Event::Started | Event::Over, _) => assert_eq!(plan, before, "{context}"),
            }
        }
    }

    #[test]
    fn what_is_due_is_due_once_and_a_reload_keeps_the_rest_waiting() {
        for before in plans() {
            let mut plan = before;
            let mut done = Vec::new();
            while let Some(due) = plan.due() {
                done.push(due);
                assert!(done.len() <= 2, "{before:?}");
            }
            let mut expected = Vec::new();
            if before.busy == Busy::Steady && before.wants_workers != 0 {
                expected.push(Due::Resize(before.wants_workers));
            }
            if before.busy == Busy::Steady && before.wants_reload {
                expected.push(Due::Reload);
            }
            assert_eq!(done, expected, "{before:?}");
        }
    }

    #[test]
    fn a_burst_while_reloading_is_one_more_reload() {
        let mut plan = Plan::new();
        plan.note(Event::Started);
        assert_eq!(plan.note(Event::Reload), Verdict::Now);
        assert_eq!(plan.due(), Some(Due::Reload));
        for _ in 0..50 {
            assert_eq!(plan.note(Event::Reload), Verdict::Later);
            assert_eq!(plan.due(), None);
        }
        plan.note(Event::Over);
        assert_eq!(plan.due(), Some(Due::Reload));
        plan.note(Event::Over);
        assert_eq!(plan.due(), None);
    }
}
