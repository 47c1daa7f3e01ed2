//! Models of every hand-over between the threads of a worker, run by loom through each
//! order in which the threads can meet (up to a bound of preemptions). The code under
//! test is the server's own: `--cfg loom` swaps only `chappe_engine::sync`.
//!
//! A model that cannot fail proves nothing: each file of `tests/faults` is a change of the
//! code that one of these models has to find. `scripts/loom` runs it all.
#![cfg(loom)]

mod models;
