//! A server with handlers of its own, as an application builds one: handlers that
//! answer, fail, panic, block and push.

pub mod pushes;

use std::time::{Duration, Instant};

use chappe::{Handler, HandlerError, Outcome, Replies, Request, Server};

use crate::{gate, pause};

/// Answers twice, with the body.
pub const TWICE: u16 = 16;
/// Answers, and fails.
pub const FAIL: u16 = 17;
/// Panics.
pub const PANIC: u16 = 18;
/// Waits at the gate that the body names, then answers.
pub const HOLD: u16 = 19;
/// Takes two milliseconds and answers nothing.
pub const QUIET: u16 = 20;
/// Says that it is quick, and takes as many milliseconds as the body's one byte says.
pub const BOASTS: u16 = 21;

/// Says that it is quick, and computes for 300 microseconds.
pub const COMPUTES: u16 = 22;

struct Computes;

impl Handler for Computes {
    fn handle(&self, _: &Request<'_>, replies: &mut Replies) -> Outcome {
        let began = Instant::now();
        while began.elapsed() < Duration::from_micros(300) {
            std::hint::spin_loop();
        }
        replies.send(COMPUTES, b"")
    }

    fn is_quick(&self) -> bool {
        true
    }
}

struct Boasts;

impl Handler for Boasts {
    fn handle(&self, request: &Request<'_>, replies: &mut Replies) -> Outcome {
        let time = Duration::from_millis(request.body()[0].into());
        pause(time, "a handler that says it is quick and waits");
        replies.send(BOASTS, b"")
    }

    fn is_quick(&self) -> bool {
        true
    }
}

/// Returns the worker's free memory to the kernel, then answers.
pub const GIVE_BACK: u16 = 23;

/// The server, with all of these.
pub fn server() -> Server {
    pushes::handlers(Server::new())
        .on(TWICE, |request: &Request<'_>, replies: &mut Replies| -> Outcome {
            replies.send(TWICE, request.body())?;
            replies.send(TWICE, request.body())
        })
        .on(FAIL, |_: &Request<'_>, replies: &mut Replies| -> Outcome {
            replies.send(FAIL, b"half an answer")?;
            Err(HandlerError::new("out of ink"))
        })
        .on(PANIC, |_: &Request<'_>, _: &mut Replies| -> Outcome { panic!("planned") })
        .on(HOLD, |request: &Request<'_>, replies: &mut Replies| -> Outcome {
            gate::wait(request.body());
            replies.send(HOLD, b"")
        })
        .on(BOASTS, Boasts)
        .on(COMPUTES, Computes)
        .on(QUIET, |_: &Request<'_>, _: &mut Replies| -> Outcome {
            pause(Duration::from_millis(2), "a handler that takes its time");
            Ok(())
        })
        .on(GIVE_BACK, |_: &Request<'_>, replies: &mut Replies| -> Outcome {
            chappe_sys::memory::give_back();
            replies.send(GIVE_BACK, b"")
        })
}
