//! Which handler has which message code.

use super::{Call, Code, Outcome, Service, stock};
use crate::protocol::{CODE_APPLICATION_MAX, CODE_APPLICATION_MIN};
use chappe_shm::{APP_COUNTERS_MAX, Catalog};
use std::sync::Arc;

/// The longest name of a counter.
const COUNTER_NAME_MAX: usize = 40;

/// A handler of a service, as it is called.
pub(super) type Handler<S> =
    dyn Fn(&S, &mut <S as Service>::State, &mut Call<'_, S>) -> Outcome + Send + Sync;

/// The handlers of a service, by message code, and the names of its counters:
/// [`Service::routes`] fills it.
///
/// A handler is a function or a closure of the service, the state of the connection, and the
/// [`Call`].
///
/// ```
/// # use chappe::{Call, Outcome, Routes, Service};
/// fn routes<S: Service>(routes: &mut Routes<S>) {
///     routes.on(16, hello).blocking(17, |_service, _state, call| {
///         std::thread::sleep(std::time::Duration::from_millis(20)); // it may wait
///         call.reply(17, b"awake")
///     });
/// }
///
/// fn hello<S: Service>(_: &S, _: &mut S::State, call: &mut Call<'_, S>) -> Outcome {
///     call.reply(16, call.body())
/// }
/// ```
///
/// # Panics
/// Each method panics on a code outside of 16..=65279, on a code that has a handler
/// already, on an invalid name of a counter, on one that is taken and on the 65th counter. All of
/// them are mistakes in the program, and found when it starts.
pub struct Routes<S: Service> {
    pub(super) routes: Vec<Route<S>>,
    counters: Vec<String>,
}

pub(super) struct Route<S: Service> {
    pub(super) code: Code,
    pub(super) handler: Arc<Handler<S>>,
    pub(super) pace: RoutePace,
    pub(super) is_before_admit: bool,
}

/// Where a handler runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RoutePace {
    /// On the event loop, always.
    Stock,
    /// Where its calls show that it should.
    Measured,
    /// On the handler threads only.
    Blocking,
}

impl<S: Service> Clone for Routes<S> {
    fn clone(&self) -> Self {
        Self { routes: self.routes.clone(), counters: self.counters.clone() }
    }
}

impl<S: Service> Clone for Route<S> {
    fn clone(&self) -> Self {
        Self { handler: Arc::clone(&self.handler), ..*self }
    }
}

impl<S: Service> std::fmt::Debug for Routes<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.routes.iter().map(|route| route.code)).finish()
    }
}

impl<S: Service> Routes<S> {
    pub(crate) fn new() -> Self {
        Self { routes: Vec::new(), counters: Vec::new() }
    }

    /// Those of the service.
    pub(crate) fn of_service() -> Self {
        let mut routes = Self::new();
        S::routes(&mut routes);
        routes
    }

    /// Handles the messages of a code. The handler begins on the handler threads and moves to
    /// the event loop once its calls have proven short: 64 in a row of 20 microseconds at
    /// most. One that takes more than 200 µs there, computing or waiting, sends it back; at the
    /// third time it stays on the handler threads until the next reload.
    ///
    /// ```
    /// # use chappe::*;
    /// fn routes<S: Service>(routes: &mut Routes<S>) {
    ///     routes
    ///         // The lowest code.
    ///         .on(16, |_service, _state, call| call.reply(16, call.body()))
    ///         // The highest; its answer is error 4.
    ///         .on(65_279, |_service, _state, _call| Err("not yet")?);
    /// }
    /// ```
    ///
    /// # Panics
    /// On a code outside of 16..=65279, and on one that has a handler already.
    #[track_caller]
    pub fn on<F>(&mut self, code: Code, handler: F) -> &mut Self
    where
        F: Fn(&S, &mut S::State, &mut Call<'_, S>) -> Outcome + Send + Sync + 'static,
    {
        self.add(code, Arc::new(handler), RoutePace::Measured, false)
    }

    /// Handles the messages of a code with a handler that may wait, for a disk, a lock or
    /// another server: it never runs on the event loop.
    ///
    /// ```
    /// # use chappe::*;
    /// fn routes<S: Service>(routes: &mut Routes<S>) {
    ///     routes.blocking(16, |_service, _state, call| {
    ///         let text = std::fs::read("motd.txt")?; // may wait for a disk
    ///         call.reply(16, &text)
    ///     });
    /// }
    /// ```
    ///
    /// # Panics
    /// On a code outside of 16..=65279, and on one that has a handler already.
    #[track_caller]
    pub fn blocking<F>(&mut self, code: Code, handler: F) -> &mut Self
    where
        F: Fn(&S, &mut S::State, &mut Call<'_, S>) -> Outcome + Send + Sync + 'static,
    {
        self.add(code, Arc::new(handler), RoutePace::Blocking, false)
    }

    /// Handles the messages of a code also before the connection is admitted. As soon as
    /// there is one such code, everything else but a ping is refused (error 8) **and ends the
    /// connection**, until [`Call::admit`]; `timeouts.handshake` (60 s) bounds how long that may
    /// take.
    ///
    /// ```
    /// # use chappe::*;
    /// fn routes<S: Service>(routes: &mut Routes<S>) {
    ///     routes
    ///         .before_admit(16, |_service, _state, call| {
    ///             if call.body() != b"sesame" { Err(Deny::close("wrong password"))? }
    ///             call.admit();
    ///             call.reply(16, b"welcome")
    ///         })
    ///         // Refused before that, as are the stock codes echo, time and who.
    ///         .on(17, |_service, _state, call| call.reply(17, call.body()));
    /// }
    /// ```
    ///
    /// # Panics
    /// On a code outside of 16..=65279, and on one that has a handler already.
    #[track_caller]
    pub fn before_admit<F>(&mut self, code: Code, handler: F) -> &mut Self
    where
        F: Fn(&S, &mut S::State, &mut Call<'_, S>) -> Outcome + Send + Sync + 'static,
    {
        self.add(code, Arc::new(handler), RoutePace::Measured, true)
    }

    /// Registers a handler that may wait and is open before the login, such as a login that asks a
    /// database: it never runs on the event loop. Otherwise like [`before_admit`](Self::before_admit).
    ///
    /// ```
    /// # use chappe::*;
    /// # fn is_right(_: &[u8]) -> std::io::Result<bool> { Ok(true) }
    /// fn routes<S: Service>(routes: &mut Routes<S>) {
    ///     routes.blocking_before_admit(16, |_service, _state, call| {
    ///         if !is_right(call.body())? { Err(Deny::close("wrong password"))? }
    ///         call.admit();
    ///         call.reply(16, b"welcome")
    ///     });
    /// }
    /// ```
    ///
    /// # Panics
    /// On a code outside of 16..=65279, and on one that has a handler already.
    #[track_caller]
    pub fn blocking_before_admit<F>(&mut self, code: Code, handler: F) -> &mut Self
    where
        F: Fn(&S, &mut S::State, &mut Call<'_, S>) -> Outcome + Send + Sync + 'static,
    {
        self.add(code, Arc::new(handler), RoutePace::Blocking, true)
    }

    /// Names a counter of the application, 64 at most; [`super::Worker::counter`] returns it.
    /// A name has letters of ASCII, digits and `_`, and 40 characters at most: it becomes part
    /// of the name of a Prometheus metric, `chappe_app_NAME_total`. The names are fixed at
    /// the start; a reload cannot change them.
    ///
    /// ```
    /// # use chappe::{Routes, Service};
    /// fn routes<S: Service>(routes: &mut Routes<S>) {
    ///     routes.counter("logins").counter("bytes_stored");
    /// }
    /// ```
    ///
    /// # Panics
    /// On an invalid name, on a name that is taken, and on the 65th.
    #[track_caller]
    pub fn counter(&mut self, name: &str) -> &mut Self {
        let is_fit = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
        assert!(
            (1..=COUNTER_NAME_MAX).contains(&name.len()) && name.bytes().all(is_fit),
            "{name:?} is not a valid name of a counter: it has 1 to {COUNTER_NAME_MAX} characters of \
             A to Z, a to z, 0 to 9 and _"
        );
        assert!(
            !self.counters.iter().any(|known| known == name),
            "counter {name:?} is named twice"
        );
        assert!(
            self.counters.len() < APP_COUNTERS_MAX,
            "counter {name:?} is one too many, an application has {APP_COUNTERS_MAX} at most"
        );
        self.counters.push(name.to_owned());
        self
    }

    /// What is counted of it, the stock handlers included.
    pub(super) fn catalog(&self) -> Catalog {
        let mut all = self.clone();
        stock::add(&mut all);
        let codes = all.routes.iter().map(|route| route.code);
        Catalog::new(all.counters, codes.collect())
    }

    #[track_caller]
    fn add(
        &mut self,
        code: Code,
        handler: Arc<Handler<S>>,
        pace: RoutePace,
        is_before_admit: bool,
    ) -> &mut Self {
        assert!(
            (CODE_APPLICATION_MIN..=CODE_APPLICATION_MAX).contains(&code),
            "message code {code} belongs to the server, applications have \
             {CODE_APPLICATION_MIN}..={CODE_APPLICATION_MAX}"
        );
        self.insert(Route { code, handler, pace, is_before_admit });
        self
    }

    #[track_caller]
    pub(super) fn insert(&mut self, route: Route<S>) {
        match self.routes.binary_search_by_key(&route.code, |route| route.code) {
            Ok(_) => panic!("message code {} has a handler already", route.code),
            Err(at) => self.routes.insert(at, route),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Whether connections have to be admitted.
    pub(super) fn have_gate(&self) -> bool {
        self.routes.iter().any(|route| route.is_before_admit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> Routes<()> {
        Routes::new()
    }

    #[test]
    #[should_panic(expected = "belongs to the server")]
    fn server_codes_are_not_for_applications() {
        routes().on(15, |(), (), _| Ok(()));
    }

    #[test]
    #[should_panic(expected = "has a handler already")]
    fn a_code_has_one_handler() {
        routes().on(16, |(), (), _| Ok(())).blocking(16, |(), (), _| Ok(()));
    }

    #[test]
    fn a_handler_before_the_gate_may_be_blocking() {
        let mut routes = routes();
        routes.blocking_before_admit(16, |(), (), _| Ok(())).before_admit(17, |(), (), _| Ok(()));
        let of = |route: &Route<()>| (route.code, route.pace, route.is_before_admit);
        let found: Vec<_> = routes.routes.iter().map(of).collect();
        assert_eq!(found, [(16, RoutePace::Blocking, true), (17, RoutePace::Measured, true)]);
        assert!(routes.have_gate());
    }

    #[test]
    fn each_counter_and_each_code_is_in_the_catalog() {
        let mut routes = routes();
        let longest = "x".repeat(COUNTER_NAME_MAX);
        routes.counter("logins").counter("2_Fast").counter(&longest).on(17, |(), (), _| Ok(()));
        let catalog = routes.catalog();
        assert_eq!(catalog.counters(), ["logins", "2_Fast", &*longest]);
        assert_eq!(
            catalog,
            Catalog::new(catalog.counters().to_vec(), vec![0, 1, 2, 3, 4, 5, 6, 9, 17])
        );
    }

    #[test]
    fn a_name_that_prometheus_would_not_take_is_none() {
        for name in
            ["", " ", "a-b", "a.b", "a b", "é", "a:b", "a\n", &"x".repeat(COUNTER_NAME_MAX + 1)]
        {
            let refused = std::panic::catch_unwind(|| drop(routes().counter(name).catalog()));
            let text = refused.expect_err(name);
            let text = text.downcast_ref::<String>().expect("a text");
            assert!(
                text.starts_with(&format!("{name:?} is not a valid name of a counter: ")),
                "{text}"
            );
        }
    }

    #[test]
    #[should_panic(expected = "counter \"logins\" is named twice")]
    fn a_name_has_one_counter() {
        routes().counter("logins").counter("logins");
    }

    fn numbered(count: usize) -> Catalog {
        let mut routes = routes();
        (0..count).for_each(|nth| drop(routes.counter(&nth.to_string()).catalog()));
        routes.catalog()
    }

    #[test]
    fn an_application_has_64_counters() {
        assert_eq!(numbered(APP_COUNTERS_MAX).counters().len(), 64);
    }

    #[test]
    #[should_panic(expected = "counter \"64\" is one too many, an application has 64 at most")]
    fn and_not_one_more() {
        let _ = numbered(APP_COUNTERS_MAX + 1);
    }
}
