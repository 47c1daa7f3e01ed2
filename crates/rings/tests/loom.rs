//! Models of every hand-over through a ring, run by loom through each order in which two or
//! three processes can meet (up to a bound of preemptions), with a process that dies at each
//! of its steps. The code under test is the crate's own: `--cfg loom` swaps only
//! `chappe_rings::sync`.
//!
//! A model that cannot fail proves nothing: each file of `tests/faults` is a change of the
//! code that one of these models has to find. `scripts/loom` runs it all.
#![cfg(loom)]

mod models;
