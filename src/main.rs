//! The `chappe` binary: the stock server.
fn main() {}
