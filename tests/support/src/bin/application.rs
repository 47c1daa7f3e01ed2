//! A server with handlers of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    chappe_testkit::application::server().main()
}
