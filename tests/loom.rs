//! Models of every hand-over between the threads of a worker, run by loom
//! through each order in which the threads can meet (up to a bound of
//! preemptions). The code under test is the server's own: `--cfg loom` swaps
//! only `chappe::sync`.
//!
//! Each model is also run with a fault planted, and has to fail then: a model
//! that cannot fail proves nothing. `scripts/loom` runs it all.
#![cfg(loom)]

mod models;
