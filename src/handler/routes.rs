//! Which handler has which message code.

use super::{Call, Code, Outcome, Service};
use crate::protocol::{CODE_APPLICATION_MAX, CODE_APPLICATION_MIN};
use std::sync::Arc;

/// A handler of a service, as it is called.
pub(super) type Handler<S> =
    dyn Fn(&S, &mut <S as Service>::State, &mut Call<'_, S>) -> Outcome + Send + Sync;

/// The handlers of a service, by message code: [`Service::routes`] fills it.
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
/// Each method panics on a code outside of 16..=65279, and on a code that has a handler
/// already. Both are mistakes in the program, and found when it starts.
pub struct Routes<S: Service> {
    pub(super) routes: Vec<Route<S>>,
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
        Self { routes: self.routes.clone() }
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
        Self { routes: Vec::new() }
    }

    /// Those of the service.
    pub(crate) fn of_service() -> Self {
        let mut routes = Self::new();
        S::routes(&mut routes);
        routes
    }

    /// Handles the messages of a code. The handler begins on the handler threads and moves to
    /// the event loop once its calls have proven short: 64 in a row of 20 microseconds at
    /// most. One that takes more than 200 there, or waits, sends it back.
    #[track_caller]
    pub fn on<F>(&mut self, code: Code, handler: F) -> &mut Self
    where
        F: Fn(&S, &mut S::State, &mut Call<'_, S>) -> Outcome + Send + Sync + 'static,
    {
        self.add(code, Arc::new(handler), RoutePace::Measured, false)
    }

    /// Handles the messages of a code with a handler that may wait, for a disk, a lock or
    /// another server: it never runs on the event loop.
    #[track_caller]
    pub fn blocking<F>(&mut self, code: Code, handler: F) -> &mut Self
    where
        F: Fn(&S, &mut S::State, &mut Call<'_, S>) -> Outcome + Send + Sync + 'static,
    {
        self.add(code, Arc::new(handler), RoutePace::Blocking, false)
    }

    /// Handles the messages of a code also before the connection is admitted. As soon as
    /// there is one such code, everything else but a ping is refused (error 8) until
    /// [`Call::admit`].
    #[track_caller]
    pub fn before_admit<F>(&mut self, code: Code, handler: F) -> &mut Self
    where
        F: Fn(&S, &mut S::State, &mut Call<'_, S>) -> Outcome + Send + Sync + 'static,
    {
        self.add(code, Arc::new(handler), RoutePace::Measured, true)
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
