//! A server whose handlers compute or block, for the figures of docs/PERFORMANCE.md:
//! code 16 computes for 50 microseconds, code 17 sleeps for five milliseconds at each
//! thousandth message, and both answer with the body. Neither says that it is quick.

use chappe::{Outcome, Replies, Request, Server};
use std::cell::Cell;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const BURN: u16 = 16;
const SLEEP: u16 = 17;

thread_local! {
    static HANDLED: Cell<u32> = const { Cell::new(0) };
}

fn main() -> ExitCode {
    Server::new().on(BURN, burn).on(SLEEP, sleep).main()
}

fn burn(request: &Request<'_>, replies: &mut Replies) -> Outcome {
    let until = Instant::now() + Duration::from_micros(50);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    replies.send(BURN, request.body())
}

fn sleep(request: &Request<'_>, replies: &mut Replies) -> Outcome {
    let handled = HANDLED.get() + 1;
    HANDLED.set(handled % 1000);
    if handled == 1000 {
        std::thread::sleep(Duration::from_millis(5));
    }
    replies.send(SLEEP, request.body())
}
