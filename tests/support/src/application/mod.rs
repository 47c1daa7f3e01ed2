//! A server with handlers of its own, as an application builds one: handlers that
//! answer, fail, panic, block and push.

pub mod pushes;

use std::time::Duration;

use chappe::{HandlerError, Server};

use crate::{gate, pause};

/// Answers twice, with the body, and counts both answers as `answers`.
pub const TWICE: u16 = 16;
/// Answers, and fails.
pub const FAIL: u16 = 17;
/// Panics.
pub const PANIC: u16 = 18;
/// Waits at the gate that the body names, then answers.
pub const HOLD: u16 = 19;
/// Takes two milliseconds and answers nothing.
pub const QUIET: u16 = 20;
/// Returns the worker's free memory to the kernel, then answers.
pub const GIVE_BACK: u16 = 23;
/// Does nothing.
pub const NOTHING: u16 = 90;
/// Waits at the gate that the body names, if it names one; as far as anybody knows it is quick.
pub const SOMETIMES: u16 = 91;

/// The server, with all of these.
pub fn server() -> Server<()> {
    pushes::handlers(Server::new())
        .counter("answers")
        .counter("never")
        .on(TWICE, |call| {
            call.worker().counter("answers").add(2);
            call.reply(TWICE, call.body())?;
            call.reply(TWICE, call.body())
        })
        .on(FAIL, |call| {
            call.reply(FAIL, b"half an answer")?;
            Err(HandlerError::new("out of ink"))
        })
        .on(PANIC, |_| panic!("planned"))
        .blocking(HOLD, |call| {
            gate::wait(call.body());
            call.reply(HOLD, b"")
        })
        .blocking(QUIET, |_| {
            pause(Duration::from_millis(2), "a handler that takes its time");
            Ok(())
        })
        .on(NOTHING, |_| Ok(()))
        .on(SOMETIMES, |call| {
            if !call.body().is_empty() {
                gate::wait(call.body());
            }
            Ok(())
        })
        .on(GIVE_BACK, |call| {
            chappe_sys::memory::give_back();
            call.reply(GIVE_BACK, b"")
        })
}
