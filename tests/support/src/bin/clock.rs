//! A server with a service that has timers.

use std::process::ExitCode;

use chappe::Server;
use chappe_testkit::clock::Clock;

fn main() -> ExitCode {
    Server::of::<Clock>().main()
}
