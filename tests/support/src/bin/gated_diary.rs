//! The same as `diary`, behind a gate.

use std::process::ExitCode;

use chappe::Server;
use chappe_testkit::diary::Diary;

fn main() -> ExitCode {
    Server::of::<Diary<true>>().main()
}
