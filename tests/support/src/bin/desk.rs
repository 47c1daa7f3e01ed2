//! A server with a service that defers its replies.

use std::process::ExitCode;

use chappe::Server;
use chappe_testkit::desk::Desk;

fn main() -> ExitCode {
    Server::of::<Desk>().main()
}
