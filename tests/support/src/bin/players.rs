//! A server whose workers only play.

use std::process::ExitCode;

fn main() -> ExitCode {
    chappe::prefork::run(std::env::args_os(), chappe_testkit::players::play)
}
