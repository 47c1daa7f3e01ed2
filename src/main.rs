//! The `chappe` binary: the stock server, without handlers of an application.

#[cfg(not(loom))]
fn main() -> std::process::ExitCode {
    chappe::Server::new().main()
}

/// The models replace what a server is made of; they only use the library.
#[cfg(loom)]
fn main() {}
