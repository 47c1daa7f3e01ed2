//! The `chappe` binary: the stock server.
#[cfg(not(loom))]
fn main() {}

#[cfg(loom)]
fn main() {}
