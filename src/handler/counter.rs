//! Counters of an application.

use chappe_shm::AppCounter;

/// A counter of the application's own, named in [`super::Service::routes`] by
/// [`super::Routes::counter`] and obtained from [`super::Worker::counter`]. Cheap to clone, and for
/// any thread of its worker.
///
/// It is shown with the others, as `app_NAME`: by `chappe status` and `chappe top`, as
/// `chappe_app_NAME_total` for Prometheus, and on the metrics page. It counts since the start
/// of the server, of all workers together, and keeps what workers that are gone have counted,
/// after a reload or a crash.
///
/// ```
/// use chappe::{Call, Client, Counter, Deny, NoConfig, Outcome, Routes, Service, StartError, Worker};
///
/// struct Shop {
///     sold: Counter,
/// }
///
/// impl Service for Shop {
///     type Config = NoConfig;
///     type State = ();
///
///     fn routes(routes: &mut Routes<Self>) {
///         routes.counter("sold").on(16, buy);
///     }
///
///     fn start(worker: &Worker<Self>) -> Result<Self, StartError> {
///         Ok(Self { sold: worker.counter("sold") })
///     }
///
///     fn connected(&self, _client: &Client) -> Result<(), Deny> {
///         Ok(())
///     }
/// }
///
/// fn buy(shop: &Shop, _state: &mut (), call: &mut Call<'_, Shop>) -> Outcome {
///     shop.sold.add(1);
///     call.reply(16, b"thank you")
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Counter {
    pub(super) inner: AppCounter,
}

impl Counter {
    /// Adds `n`; wraps around after 2^64. An atomic addition in memory that all threads of the
    /// worker share, and no system call.
    ///
    /// ```
    /// # use chappe::*;
    /// # struct App;
    /// # impl Service for App {
    /// #     type Config = NoConfig;
    /// #     type State = ();
    /// #     fn start(_: &Worker<Self>) -> Result<Self, StartError> { Ok(Self) }
    /// #     fn routes(routes: &mut Routes<Self>) {
    /// #         routes.on(16, store).counter("bytes_stored");
    /// #     }
    /// #     fn connected(&self, _: &Client) -> Result<(), Deny> { Ok(()) }
    /// # }
    /// fn store(_: &App, _: &mut (), call: &mut Call<'_, App>) -> Outcome {
    ///     // Or kept, by the service.
    ///     let bytes = call.worker().counter("bytes_stored");
    ///     // `app_bytes_stored` of `chappe status`
    ///     bytes.add(call.body().len() as u64);
    ///     call.reply(16, b"")
    /// }
    /// # assert!(testing::call(&App, &mut (), 16, b"body").error.is_none());
    /// ```
    pub fn add(&self, n: u64) {
        self.inner.add(n);
    }
}
