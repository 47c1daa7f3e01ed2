//! A server with a service that writes down what it is called for.

use std::process::ExitCode;

use chappe::Server;
use chappe_testkit::diary::Diary;

fn main() -> ExitCode {
    Server::of::<Diary<false>>().main()
}
