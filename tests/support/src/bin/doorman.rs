//! A server with a service whose hooks are short, but when a client asks for a long one.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chappe::{
    Call, Client, CloseReason, Deny, NoConfig, Outcome, Routes, Server, Service, StartError, Worker,
};
use chappe_testkit::pause;

/// The next `connected` takes long.
const TAKE_LONG: u16 = 16;
/// How many have come, and how many have gone.
const COUNT: u16 = 17;

#[derive(Default)]
struct Doorman {
    takes_long: AtomicBool,
    came: AtomicU64,
    went: AtomicU64,
}

impl Service for Doorman {
    type Config = NoConfig;
    type State = ();

    fn start(_worker: &Worker<Self>) -> Result<Self, StartError> {
        Ok(Self::default())
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.on(TAKE_LONG, take_long).on(COUNT, count);
    }

    fn connected(&self, _client: &Client) -> Result<(), Deny> {
        if self.takes_long.swap(false, Ordering::Relaxed) {
            pause(Duration::from_millis(5), "a hook that takes long");
        }
        self.came.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn closed(&self, _client: &Client, (): (), _why: CloseReason) {
        self.went.fetch_add(1, Ordering::Relaxed);
    }
}

fn take_long(service: &Doorman, (): &mut (), call: &mut Call<'_, Doorman>) -> Outcome {
    service.takes_long.store(true, Ordering::Relaxed);
    call.reply(TAKE_LONG, b"")
}

fn count(service: &Doorman, (): &mut (), call: &mut Call<'_, Doorman>) -> Outcome {
    let (came, went) = (service.came.load(Ordering::Relaxed), service.went.load(Ordering::Relaxed));
    call.reply(COUNT, format!("{came} {went}").as_bytes())
}

fn main() -> ExitCode {
    Server::of::<Doorman>().main()
}
