//! The `chappe` binary: the stock server, without handlers of an application.

fn main() -> std::process::ExitCode {
    chappe::Server::new().main()
}
