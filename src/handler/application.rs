//! One worker's handlers by code, and what is done with a message: its checksum is
//! compared, its handler is called, and it is answered or refused with the reason.

use super::call::{Call, Deferral};
use super::client::Client;
use super::deferred::Resumed;
use super::frames::{Way, trace};
use super::outcome::Failure;
use super::own_turn::OwnTurn;
use super::pace::Tempo;
use super::registered::Registered;
use super::routes::{Route, RoutePace, Routes};
use super::stock;
use super::worker::Worker;
use super::{Code, HandlerError, Outcome, Service, other, watch};
use crate::protocol::CODE_PING;
use crate::throttle::Throttle;
use chappe_engine::{
    Batch, Cause, Found, Goodbye, HookCall, Mailbox, Message, Notice, Pace, Problem,
    QUICK_TIME_MAX, Serve, Served, Session,
};
use chappe_shm::{AppFigures, CodeRow, Count, Counter, SharedCounters};
use chappe_sys::clock::Moment;
use parking_lot::Mutex;
use std::any::Any;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Panics that are logged within ten seconds; of further ones only the number is.
const PANICS_LOGGED_MAX: u32 = 5;

/// The application of one worker: its service, its handlers and the stock ones.
pub(crate) struct Application<S: Service> {
    pub(super) service: S,
    pub(super) worker: Worker<S>,
    /// The addresses of the listeners, for [`Client::listener`].
    pub(super) listeners: Arc<[String]>,
    /// By code.
    pub(super) handlers: Vec<Registered<S>>,
    /// Where the calls of each of them are counted. Not beside them: the search for a code
    /// goes over those.
    rows: Vec<CodeRow>,
    /// Connections have to be admitted.
    pub(super) has_gate: bool,
    /// `connected` and `closed` are to be called.
    pub(super) has_hooks: bool,
    /// Where these two run.
    connected: Tempo,
    closed: Tempo,
    /// Shared by all handler threads: a message that causes a panic may come again and
    /// again.
    panics: Mutex<Throttle>,
    /// As often as panics: of timers that return an error.
    failures: Mutex<Throttle>,
    /// Any of its threads may count.
    pub(super) counters: SharedCounters,
    pub(super) figures: AppFigures,
    /// The `stopping` hook has returned, or the service has no such hook.
    pub(super) has_stopped: AtomicBool,
}

impl<S: Service> Application<S> {
    /// Adds the stock handlers to those of the application.
    pub(crate) fn new(
        service: S,
        mut routes: Routes<S>,
        worker: Worker<S>,
        listeners: Arc<[String]>,
        has_hooks: bool,
        counters: SharedCounters,
        figures: AppFigures,
    ) -> Self {
        let has_gate = routes.have_gate();
        stock::add(&mut routes);
        let register = |route: Route<S>| Registered::new(route, &figures);
        let codes = routes.routes.iter().map(|route| route.code);
        let rows = codes.map(|code| figures.catalog().row_of(code)).collect();
        let handlers = routes.routes.into_iter().map(register).collect();
        let throttle = || Mutex::new(Throttle::new(PANICS_LOGGED_MAX));
        let has_stopped = AtomicBool::new(!has_hooks);
        Self {
            service,
            worker,
            listeners,
            handlers,
            rows,
            has_gate,
            has_hooks,
            connected: Tempo::of_hook(),
            closed: Tempo::of_hook(),
            panics: throttle(),
            failures: throttle(),
            counters,
            figures,
            has_stopped,
        }
    }

    fn place_of(&self, code: Code) -> Option<usize> {
        self.handlers.binary_search_by_key(&code, |registered| registered.route.code).ok()
    }

    fn tempo_of(&self, hook: HookCall) -> &Tempo {
        match hook {
            HookCall::Connected => &self.connected,
            HookCall::Closed(_) => &self.closed,
        }
    }

    /// Whether a message has to wait for an admission that its connection does not have.
    pub(super) fn is_gated(
        &self,
        code: Code,
        place: Option<usize>,
        session: Option<&Session>,
    ) -> bool {
        let is_before = || {
            let route = place.map(|place| &self.handlers[place].route);
            code == CODE_PING || route.is_some_and(|route| route.is_before_admit)
        };
        self.has_gate && session.is_some_and(|session| !session.is_admitted) && !is_before()
    }

    /// Calls a handler, or what continues its message, with the value that the service keeps
    /// for the connection.
    #[inline]
    fn call(
        &self,
        handler: impl FnOnce(&S, &mut S::State, &mut Call<'_, S>) -> Outcome,
        session: Option<&mut Session>,
        call: &mut Call<'_, S>,
    ) -> Result<Outcome, Box<dyn Any + Send>> {
        let mut no_state = ();
        let state: Option<&mut S::State> = match session {
            Some(session) => session.value.downcast_mut(),
            None => (&mut no_state as &mut dyn Any).downcast_mut(),
        };
        let state = state.expect("the state has the type that the service declares");
        // A panic may leave the handler's own data inconsistent, which is the handler's
        // concern. The replies are ours, and they are taken back.
        catch_unwind(AssertUnwindSafe(|| handler(&self.service, state, call)))
    }

    /// What a handler has come to that has done more than to answer: an error takes the place
    /// of its replies, and what it wants for the connection is done.
    #[cold]
    fn finish(
        &self,
        outcome: Result<Outcome, Box<dyn Any + Send>>,
        message: &Message<'_>,
        session: Option<&mut Session>,
        call: &mut Call<'_, S>,
    ) -> Served {
        let (id, code) = (message.mailbox.id(), message.opened.code);
        let deferral = call.deferral();
        if deferral == Deferral::Deferred && (call.closes() || !matches!(outcome, Ok(Ok(())))) {
            message.mailbox.withdraw();
        }
        let (problem, text, served) = match outcome {
            Ok(Ok(())) if deferral == Deferral::Refused => {
                let text = "too many replies are deferred (worker.deferred_max)".to_owned();
                (Problem::BusyInside, text, Served::Answered)
            }
            Ok(Ok(())) => {
                if message.opened.joins && deferral == Deferral::None {
                    call.replies.join(session.as_deref());
                }
                call.replies.take_pushes();
                if let Some(session) = session {
                    session.is_admitted |= call.admits;
                }
                if deferral == Deferral::None && call.asks_topics() {
                    return Served::Deferred;
                }
                let goes_on = match deferral {
                    Deferral::Deferred => Served::Deferred,
                    Deferral::Submitted => Served::Submitted,
                    Deferral::None | Deferral::Refused => Served::Answered,
                };
                return close(message, call).map_or(goes_on, Served::End);
            }
            Ok(Err(HandlerError(Failure::Denied(text)))) => {
                log::debug!(target: "handler.denied", "conn={id} denied: {text} code={code}");
                (Problem::Denied, text, Served::End(Cause::Denied))
            }
            Ok(Err(HandlerError(Failure::NotAllowed(text)))) => {
                log::debug!(target: "handler.denied", "conn={id} not allowed: {text} code={code}");
                (Problem::NotAllowed, text, Served::Answered)
            }
            Ok(Err(error)) => {
                let text = error.to_string();
                log::debug!(target: "handler.failed", "conn={id} handler failed: {text} code={code}");
                (Problem::HandlerFailed, text, Served::Failed)
            }
            Err(panic) => {
                self.report_panic(&format!("the handler of code {code}"), id, &*panic);
                (Problem::HandlerFailed, "the handler panicked".to_owned(), Served::Panicked)
            }
        };
        refuse(message, problem, text, call.replies.take_back());
        if matches!(served, Served::Failed | Served::Panicked) {
            self.figures.failed(self.figures.catalog().row_of(code));
        }
        if !matches!(served, Served::Failed | Served::Answered) {
            return served;
        }
        let Some(cause) = close(message, call) else { return served };
        self.counters.add(Counter::HandlerErrors, u64::from(served == Served::Failed));
        Served::End(cause)
    }

    pub(super) fn report_timer(&self, error: &HandlerError) {
        if let Some(held) = self.failures.lock().admit(Moment::now()) {
            log::warn!(target: "timer.failed", "a timer failed: {error}{held}");
        }
    }

    pub(super) fn report_panic(&self, what: &str, id: u64, panic: &(dyn Any + Send)) {
        let held = self.panics.lock().admit(Moment::now());
        let Some(held) = held else { return };
        log::error!(target: "handler.panicked", "conn={id} {what} panicked: {}{held}", panic_text(panic));
    }
}

impl<S: Service> Serve for Application<S> {
    fn find(&self, code: Code) -> Found {
        let place = self.place_of(code);
        let pace =
            place.map_or_else(|| other::pace_of(code), |place| self.handlers[place].tempo.pace());
        Found { pace, place }
    }

    fn gone(&self, id: u64) {
        if let Some(topics) = self.worker.topics().hub() {
            topics.gone(id);
        }
    }

    fn woken(&self) {
        watch::stop();
    }

    fn suspect(&self, codes: &mut dyn Iterator<Item = Code>, took: Duration) {
        let places: BTreeSet<usize> = codes.filter_map(|code| self.place_of(code)).collect();
        let own = watch::own_time(took);
        let is_alone = places.len() == 1 && own > QUICK_TIME_MAX;
        for place in places {
            let Registered { route, tempo } = &self.handlers[place];
            match route.pace {
                // They are known to be short, whatever a turn has taken.
                RoutePace::Stock => {}
                _ if is_alone => {
                    let changed = tempo.record_turn(own, self.figures.calls(self.rows[place]));
                    self.note(place, changed, own);
                }
                _ => tempo.suspect(),
            }
        }
    }

    fn record(&self, found: Found, time: Duration) {
        if let Some(place) = found.place {
            self.note(place, self.handlers[place].tempo.record(time), time);
        }
    }

    fn called(&self, place: usize, calls: u32) {
        self.figures.called(self.rows[place], calls.into());
    }

    fn took(&self, place: usize, time: Duration) {
        self.figures.took(self.rows[place], time);
    }

    fn serve(
        &self,
        found: Found,
        message: &Message<'_>,
        session: &mut Option<Box<Session>>,
        batch: &mut Batch,
    ) -> Served {
        let opened = &message.opened;
        trace(Way::Handled, message.mailbox.id(), opened.code, opened.body);
        if !message.protocol.is_intact(opened) {
            let text = format!("the body's CRC-32 is not {:08x}", opened.checksum);
            refuse(message, Problem::BadChecksum, text, batch);
            return Served::BadChecksum;
        }
        let Some(place) = found.place else { return self.serve_other(message, session, batch) };
        if self.is_gated(opened.code, found.place, session.as_deref()) {
            return refuse_unadmitted(message, batch);
        }
        if opened.joins
            && let Some(text) = only_listens(message, session.as_deref())
        {
            refuse(message, Problem::HandlerFailed, text.to_owned(), batch);
            return Served::Answered;
        }
        let Route { handler, pace, .. } = &self.handlers[place].route;
        if found.pace == Pace::Quick && *pace == RoutePace::Measured {
            watch::start();
        }
        let mut call = Call::new(message, &self.worker, &self.listeners, batch);
        let _turn = OwnTurn::begin(message.mailbox.id());
        let outcome = self.call(&**handler, session.as_deref_mut(), &mut call);
        if matches!(outcome, Ok(Ok(()))) && call.is_plain() {
            if opened.joins {
                call.replies.join(session.as_deref());
            }
            call.replies.take_pushes();
            return Served::Answered;
        }
        self.finish(outcome, message, session.as_deref_mut(), &mut call)
    }

    fn resume(
        &self,
        value: Box<dyn Any + Send>,
        message: &Message<'_>,
        session: &mut Option<Box<Session>>,
        batch: &mut Batch,
    ) -> Served {
        let resumed = value.downcast::<Resumed<S>>();
        let Resumed { then, kept } = *resumed.expect("tickets of a worker are for its one service");
        trace(Way::Resumed, message.mailbox.id(), message.opened.code, message.opened.body);
        let mut call = Call::new(message, &self.worker, &self.listeners, batch);
        call.replies.put_back(&kept);
        let _turn = OwnTurn::begin(message.mailbox.id());
        let outcome = self.call(then, session.as_deref_mut(), &mut call);
        self.finish(outcome, message, session.as_deref_mut(), &mut call)
    }

    fn hook_pace(&self, hook: HookCall) -> Pace {
        self.tempo_of(hook).pace()
    }

    fn record_hook(&self, hook: HookCall, time: Duration) {
        let tempo = self.tempo_of(hook);
        self.note_change(hook_name(hook), tempo, tempo.record(time), time);
    }

    fn connected(&self, mailbox: &Arc<Mailbox>, batch: &mut Batch) -> Result<Box<Session>, Cause> {
        let client = Client::new(mailbox, &self.listeners);
        let (problem, text, cause) =
            match catch_unwind(AssertUnwindSafe(|| self.service.connected(&client))) {
                Ok(Ok(state)) => {
                    let (value, is_admitted) = (Box::new(state), !self.has_gate);
                    return Ok(Box::new(Session { value, is_admitted, dialect: 0 }));
                }
                Ok(Err(deny)) => (Problem::Denied, deny.text, Cause::Denied),
                Err(panic) => {
                    self.report_panic("connected", mailbox.id(), &*panic);
                    self.counters.add(Counter::HandlerPanics, 1);
                    let text = "the service panicked".to_owned();
                    (Problem::HandlerFailed, text, Cause::HandlerPanicked)
                }
            };
        let notice = Notice::Error { problem, code: None, text: text.into() };
        mailbox.protocol().notice(&notice, batch);
        Err(cause)
    }

    fn closed(&self, mailbox: &Arc<Mailbox>, session: Option<Box<Session>>, cause: Cause) {
        let Some(state) = session.and_then(|session| session.value.downcast().ok()) else {
            return;
        };
        let client = Client::new(mailbox, &self.listeners);
        let hook = AssertUnwindSafe(|| self.service.closed(&client, *state, cause.into()));
        if let Err(panic) = catch_unwind(hook) {
            self.report_panic("closed", mailbox.id(), &*panic);
            self.counters.add(Counter::HandlerPanics, 1);
        }
    }
}

fn hook_name(hook: HookCall) -> &'static str {
    match hook {
        HookCall::Connected => "hook=connected",
        HookCall::Closed(_) => "hook=closed",
    }
}

/// Why a handler is not called for a connection that has subscriptions.
#[cold]
fn only_listens(message: &Message<'_>, session: Option<&Session>) -> Option<&'static str> {
    let dialect = session.map_or(0, |session| session.dialect);
    let listens = message.mailbox.subscriptions() > 0;
    if listens { message.protocol.refuses_call(dialect) } else { None }
}

/// Tells a peer that it has to be admitted first.
pub(super) fn refuse_unadmitted(message: &Message<'_>, batch: &mut Batch) -> Served {
    refuse(message, Problem::NotAdmitted, "not admitted yet".to_owned(), batch);
    Served::NotAdmitted
}

/// Appends an error for the peer, in the place of the replies to a message.
pub(super) fn refuse(message: &Message<'_>, problem: Problem, text: String, batch: &mut Batch) {
    let (id, code) = (message.mailbox.id(), message.opened.code);
    log::trace!(target: "conn.error", "conn={id} error answered problem={problem:?} code={code}: {text}");
    let notice = Notice::Error { problem, code: Some(code), text: text.into() };
    message.protocol.notice(&notice, batch);
}

/// Appends the goodbye of a call whose handler ends the connection, and says so.
fn close<S: Service>(message: &Message<'_>, call: &mut Call<'_, S>) -> Option<Cause> {
    let (reason, text) = (Goodbye::ByApplication, call.take_close()?.into());
    message.protocol.notice(&Notice::Goodbye { reason, text }, call.replies.batch());
    Some(Cause::ByApplication)
}

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

#[cfg(test)]
#[path = "application_tests.rs"]
mod tests;
