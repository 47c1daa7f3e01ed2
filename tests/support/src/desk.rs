//! A service that defers its replies, and uses its tickets in each way that there is.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::mpsc::{self, Sender};
use std::thread;

use chappe::{
    Call, Client as Peer, CloseReason, Deferred, Deny, HandlerError, Outcome, Routes, Service,
    StartError, Worker,
};
use parking_lot::{Condvar, Mutex};
use serde::Deserialize;

use crate::gate;
use crate::wait::DEADLINE;

/// Is answered when its ticket, which has the body as its name, is given back: with the body.
pub const LATER: u16 = 16;
/// Gives the ticket of that name back, once it is there. Answers whether it was void.
pub const GIVE: u16 = 17;
/// Drops it.
pub const DROP: u16 = 18;
/// Defers, and does what the body says.
pub const ODD: u16 = 19;
/// Gives all tickets back. Answers how many there were, in four bytes.
pub const GIVE_ALL: u16 = 20;
/// Is answered by a thread that does so at once, or, without a body, by the handler itself.
pub const SOON: u16 = 21;
/// Is answered once the gate is open that the body names.
pub const GATED: u16 = 22;

/// What it is told by its configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where it writes down which connections are closed.
    journal: PathBuf,
}

/// The service.
#[derive(Debug)]
pub struct Desk {
    journal: File,
    kept: Mutex<BTreeMap<Vec<u8>, Deferred<Self>>>,
    has_more: Condvar,
    soon: Mutex<Sender<Deferred<Self>>>,
}

/// Answers a message with its body, and counts it.
fn answer(_: &Desk, answered: &mut u32, call: &mut Call<'_, Desk>) -> Outcome {
    *answered += 1;
    call.reply(call.code(), call.body())
}

impl Desk {
    /// Waits for the ticket of this name.
    fn take(&self, name: &[u8]) -> Result<Deferred<Self>, HandlerError> {
        let mut kept = self.kept.lock();
        loop {
            if let Some(ticket) = kept.remove(name) {
                return Ok(ticket);
            }
            if self.has_more.wait_for(&mut kept, DEADLINE).timed_out() {
                return Err(HandlerError::new("there is no such ticket"));
            }
        }
    }

    fn later(&self, _: &mut u32, call: &mut Call<'_, Self>) -> Outcome {
        let ticket = call.defer();
        // What is replaced is dropped without the lock.
        let replaced = self.kept.lock().insert(call.body().to_vec(), ticket);
        self.has_more.notify_all();
        drop(replaced);
        Ok(())
    }

    fn give(&self, _: &mut u32, call: &mut Call<'_, Self>) -> Outcome {
        let ticket = self.take(call.body())?;
        let is_void = ticket.is_void();
        ticket.resume(answer);
        call.reply(GIVE, if is_void { b"void" } else { b"given" })
    }

    fn odd(&self, _: &mut u32, call: &mut Call<'_, Self>) -> Outcome {
        if call.body() == b"in parts" {
            call.reply(ODD, b"one")?;
            call.defer().resume(|_, _, call| {
                call.reply(ODD, b"two")?;
                call.defer().resume(|_, _, call| call.reply(ODD, b"three"));
                Ok(())
            });
            return Ok(());
        }
        let ticket = call.defer();
        match call.body() {
            b"reply" => {
                let refused = call.reply(ODD, b"too late").expect_err("it is deferred");
                ticket.resume(move |_, _, call| call.reply(ODD, refused.to_string().as_bytes()));
            }
            b"twice" => {
                let second = call.defer();
                assert!(second.is_void() && !ticket.is_void());
                second.resume(|_, _, call| call.reply(ODD, b"the second"));
                ticket.resume(answer);
            }
            b"again" => ticket.resume(|_, _, call| {
                let again = call.defer();
                thread::spawn(|| again.resume(answer));
                Ok(())
            }),
            b"drop" => drop(ticket),
            b"fail" => {
                self.keep_void(ticket)?;
                Err("out of ink")?;
            }
            b"panic" => {
                self.keep_void(ticket)?;
                panic!("planned");
            }
            b"close" => {
                self.keep_void(ticket)?;
                call.close("enough");
            }
            b"fail later" => ticket.resume(|_, _, call| {
                call.reply(ODD, b"half an answer")?;
                Err("out of ink")?
            }),
            b"panic later" => ticket.resume(|_, _, _| panic!("planned")),
            b"deny later" => ticket.resume(|_, _, _| Err(Deny::close("not you"))?),
            b"close later" => ticket.resume(|desk, answered, call| {
                answer(desk, answered, call)?;
                call.close("enough");
                Ok(())
            }),
            _ => Err("unknown")?,
        }
        Ok(())
    }

    /// A ticket whose handler is about to end otherwise.
    fn keep_void(&self, ticket: Deferred<Self>) -> Outcome {
        assert!(!ticket.is_void());
        self.kept.lock().insert(b"odd".to_vec(), ticket);
        Ok(())
    }
}

impl Service for Desk {
    type Config = Config;
    type State = u32;

    fn start(worker: &Worker<Self>) -> Result<Self, StartError> {
        let journal =
            OpenOptions::new().create(true).append(true).open(&worker.config().journal)?;
        let (soon, waiting) = mpsc::channel::<Deferred<Self>>();
        thread::spawn(move || waiting.into_iter().for_each(|ticket| ticket.resume(answer)));
        let (kept, soon) = (Mutex::default(), Mutex::new(soon));
        Ok(Self { journal, kept, has_more: Condvar::new(), soon })
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.on(LATER, Self::later).blocking(GIVE, Self::give).on(ODD, Self::odd);
        routes.blocking(DROP, |desk, _, call| {
            drop(desk.take(call.body())?);
            call.reply(DROP, b"")
        });
        routes.on(GIVE_ALL, |desk, _, call| {
            let kept = std::mem::take(&mut *desk.kept.lock());
            let count = u32::try_from(kept.len())?;
            kept.into_values().for_each(|ticket| ticket.resume(answer));
            call.reply(GIVE_ALL, &count.to_be_bytes())
        });
        routes.on(SOON, |desk, _, call| {
            let (is_now, ticket) = (call.body().is_empty(), call.defer());
            if is_now {
                ticket.resume(answer);
                return Ok(());
            }
            Ok(desk.soon.lock().send(ticket)?)
        });
        routes.on(GATED, |_, _, call| {
            let (ticket, name) = (call.defer(), call.body_to_keep());
            thread::spawn(move || {
                gate::wait(&name);
                ticket.resume(answer);
            });
            Ok(())
        });
    }

    fn connected(&self, _: &Peer) -> Result<u32, Deny> {
        Ok(0)
    }

    fn closed(&self, _: &Peer, answered: u32, why: CloseReason) {
        let line = format!("closed {why:?} after {answered}\n");
        (&self.journal).write_all(line.as_bytes()).expect("the journal");
    }
}
