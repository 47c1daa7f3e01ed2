//! What a service does at its times. The event loop looks at the clock, handler threads run
//! what is due.

use super::worker::Worker;
use super::{Outcome, Service};
use chappe_sys::clock::{Moment, SharedMoment};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The shortest period: a shorter one would keep the event loop awake.
const PERIOD_MIN: Duration = Duration::from_millis(1);

/// What is run at a time.
pub(super) type Action<S> = dyn Fn(&S, &Worker<S>) -> Outcome + Send + Sync;

/// The timers of one worker. They run from when it serves until it begins to drain.
pub(super) struct Timers<S: Service> {
    /// When the first is due. The loop looks at it in each of its turns.
    next: SharedMoment,
    state: Mutex<State<S>>,
}

enum State<S: Service> {
    /// The worker does not serve yet: the times begin when it does.
    Waiting(Vec<(Duration, Arc<Timer<S>>)>),
    /// By when they are due, and in the order in which they were made.
    Running {
        due: BTreeMap<(Moment, u64), Arc<Timer<S>>>,
        made: u64,
    },
    Stopped,
}

pub(super) struct Timer<S: Service> {
    pub(super) action: Box<Action<S>>,
    period: Option<Duration>,
    /// A run of it is listed, or runs.
    is_busy: AtomicBool,
}

impl<S: Service> Timer<S> {
    fn new(action: Box<Action<S>>, period: Option<Duration>) -> Arc<Self> {
        let period = period.map(|period| period.max(PERIOD_MIN));
        Arc::new(Self { action, period, is_busy: AtomicBool::new(false) })
    }

    /// Its run is over.
    pub(super) fn end_run(&self) {
        // Release: the next run, on another thread, comes after this one.
        self.is_busy.store(false, Ordering::Release);
    }
}

/// The timers that are to be run now.
pub(super) struct Due<S: Service> {
    pub(super) timers: Vec<Arc<Timer<S>>>,
    /// Ticks that are skipped.
    pub(super) missed: u64,
}

impl<S: Service> Timers<S> {
    pub(super) fn new() -> Self {
        Self { next: SharedMoment::default(), state: Mutex::new(State::Waiting(Vec::new())) }
    }

    /// Runs an action each period, the first time a period from now. True if the event loop
    /// has to be woken for it.
    pub(super) fn every(&self, period: Duration, action: Box<Action<S>>) -> bool {
        self.add(period.max(PERIOD_MIN), Timer::new(action, Some(period)))
    }

    /// Runs an action once. True if the event loop has to be woken for it.
    pub(super) fn after(&self, delay: Duration, action: Box<Action<S>>) -> bool {
        self.add(delay, Timer::new(action, None))
    }

    fn add(&self, delay: Duration, timer: Arc<Timer<S>>) -> bool {
        let mut state = self.state.lock();
        match &mut *state {
            State::Waiting(timers) => timers.push((delay, timer)),
            State::Running { due, made } => {
                *made += 1;
                due.insert((Moment::now() + delay, *made), timer);
            }
            State::Stopped => {}
        }
        self.note_next(&state)
    }

    /// Sets when the loop has to look. True if that is earlier than it was.
    fn note_next(&self, state: &State<S>) -> bool {
        let next = match state {
            State::Running { due, .. } => due.first_key_value().map(|((at, _), _)| *at),
            State::Waiting(_) | State::Stopped => None,
        };
        let was = self.next.get();
        self.next.set(next);
        next.is_some_and(|next| was.is_none_or(|was| next < was))
    }

    /// When the first is due.
    #[inline]
    pub(super) fn next(&self) -> Option<Moment> {
        self.next.get()
    }

    /// The worker serves: the times begin.
    pub(super) fn begin(&self, now: Moment) {
        let mut state = self.state.lock();
        if let State::Waiting(timers) = &mut *state {
            let timers = std::mem::take(timers).into_iter();
            let due: BTreeMap<_, _> =
                timers.zip(0..).map(|((delay, timer), nth)| ((now + delay, nth), timer)).collect();
            let made = due.len() as u64;
            *state = State::Running { due, made };
            self.note_next(&state);
        }
    }

    /// The worker begins to drain: nothing runs any more that is not running.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        let stopped = std::mem::replace(&mut *state, State::Stopped);
        self.note_next(&state);
        drop(state);
        // What they hold is the application's: not dropped under the lock.
        drop(stopped);
    }

    pub(super) fn is_stopped(&self) -> bool {
        matches!(&*self.state.lock(), State::Stopped)
    }

    /// Takes what is due. A tick that comes while the run of the last one goes on is
    /// skipped, and so are those that passed while nobody looked.
    pub(super) fn take_due(&self, now: Moment) -> Due<S> {
        let mut taken = Due { timers: Vec::new(), missed: 0 };
        let mut state = self.state.lock();
        if let State::Running { due, .. } = &mut *state {
            while let Some(first) = due.first_entry().filter(|first| first.key().0 <= now) {
                let ((at, nth), timer) = first.remove_entry();
                if let Some(period) = timer.period {
                    let late = now.since(at).as_nanos();
                    let passed = u64::try_from(late / period.as_nanos()).unwrap_or(u64::MAX);
                    taken.missed += passed;
                    let rest = u64::try_from(late % period.as_nanos()).unwrap_or(0);
                    let next = now + period.saturating_sub(Duration::from_nanos(rest));
                    due.insert((next, nth), Arc::clone(&timer));
                }
                if timer.is_busy.swap(true, Ordering::Acquire) {
                    taken.missed += 1;
                } else {
                    taken.timers.push(timer);
                }
            }
        }
        self.note_next(&state);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn nothing() -> Box<Action<()>> {
        Box::new(|(), _| Ok(()))
    }

    /// How many run, and how many ticks are skipped.
    fn due(timers: &Timers<()>, now: Moment) -> (usize, u64) {
        let Due { timers, missed } = timers.take_due(now);
        (timers.len(), missed)
    }

    #[test]
    fn times_begin_when_the_worker_serves_and_end_with_the_drain() {
        let (timers, now) = (Timers::<()>::new(), Moment::now());
        assert!(!timers.every(10 * MS, nothing()) && !timers.after(5 * MS, nothing()));
        assert_eq!((timers.next(), due(&timers, now + 99 * MS)), (None, (0, 0)));
        timers.begin(now);
        assert_eq!(timers.next(), Some(now + 5 * MS));
        assert_eq!(due(&timers, now + 4 * MS), (0, 0));
        assert_eq!(due(&timers, now + 5 * MS), (1, 0));
        assert_eq!(timers.next(), Some(now + 10 * MS));
        timers.stop();
        assert_eq!((timers.next(), due(&timers, now + 99 * MS)), (None, (0, 0)));
        assert!(!timers.after(MS, nothing()) && timers.is_stopped());
    }

    #[test]
    fn a_tick_during_a_run_is_skipped_and_so_are_those_that_passed() {
        let (timers, now) = (Timers::<()>::new(), Moment::now());
        timers.begin(now);
        timers.every(10 * MS, nothing());
        let first = timers.next().expect("it is running");
        let taken = timers.take_due(first);
        assert_eq!((taken.timers.len(), taken.missed), (1, 0));
        assert_eq!(due(&timers, first + 10 * MS), (0, 1));
        taken.timers[0].end_run();
        // Three ticks have come by now, and there is one run for them; the next is in time.
        assert_eq!(due(&timers, first + 41 * MS), (1, 2));
        assert_eq!(timers.next(), Some(first + 50 * MS));
    }

    #[test]
    fn the_loop_is_woken_for_an_earlier_one_only() {
        let (timers, now) = (Timers::<()>::new(), Moment::now());
        timers.begin(now);
        assert!(timers.after(1000 * MS, nothing()));
        assert!(!timers.every(2000 * MS, nothing()));
        assert!(timers.every(Duration::ZERO, nothing()));
        let at = timers.next().expect("it is running");
        assert_eq!(due(&timers, at), (1, 0));
        assert_eq!(timers.next(), Some(at + PERIOD_MIN));
    }
}
