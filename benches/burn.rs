//! A server whose handlers compute or block, for the figures of docs/PERFORMANCE.md:
//! code 16 computes for 50 microseconds, codes 17 and 19 sleep for five milliseconds at each
//! thousandth message, code 18 does nothing, and all answer with the body. 17 is said to be
//! blocking, so it never runs on the event loop; where the others run is measured.

use chappe::{Call, Outcome, Server};
use std::cell::Cell;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const BURN: u16 = 16;
const SLEEP: u16 = 17;
const ECHO: u16 = 18;
const SLEEP_MEASURED: u16 = 19;

thread_local! {
    static HANDLED: Cell<u32> = const { Cell::new(0) };
}

fn main() -> ExitCode {
    Server::new()
        .on(BURN, burn)
        .on(ECHO, |call| call.reply(ECHO, call.body()))
        .on(SLEEP_MEASURED, sleep)
        .blocking(SLEEP, sleep)
        .main()
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
    call.reply(call.code(), call.body())
}
