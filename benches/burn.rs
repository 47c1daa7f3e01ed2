//! A server whose handlers compute or block, for the figures of docs/PERFORMANCE.md:
//! code 16 computes for 50 microseconds, code 17 sleeps for five milliseconds at each
//! thousandth message, and both answer with the body. Neither comes to run on the event loop.

use chappe::{Call, Outcome, Server};
use std::cell::Cell;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const BURN: u16 = 16;
const SLEEP: u16 = 17;

thread_local! {
    static HANDLED: Cell<u32> = const { Cell::new(0) };
}

fn main() -> ExitCode {
    Server::new().on(BURN, burn).blocking(SLEEP, sleep).main()
}

fn burn(call: &mut Call<'_, ()>) -> Outcome {
    let until = Instant::now() + Duration::from_micros(50);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    call.reply(BURN, call.body())
}

fn sleep(call: &mut Call<'_, ()>) -> Outcome {
    let handled = HANDLED.get() + 1;
    HANDLED.set(handled % 1000);
    if handled == 1000 {
        std::thread::sleep(Duration::from_millis(5));
    }
    call.reply(SLEEP, call.body())
}
