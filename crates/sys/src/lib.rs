//! Every line of Chappe that talks to the operating system without a safe crate in
//! between, behind safe names.
//!
//! It is called from every thread of every process. Nothing here decides
//! anything: no policy, no logging, no configuration. Each `unsafe` block names
//! the contract of what it calls and who keeps it, so that the other crates need none.

#![expect(
    unsafe_code,
    reason = "the one crate that talks to the operating system without a safe one in between"
)]

pub mod activation;
pub mod clock;
pub mod crash;
pub mod limits;
pub mod memory;
pub mod notify;
pub mod privileges;
pub mod process;
pub mod random;
pub mod regular_file;
mod semaphore;
mod shared;
mod shared_layout;
mod shared_mapping;
pub mod signals;
pub mod socket;
pub mod stderr;
mod stopwatch;
mod title;
pub mod unix_socket;
mod usage;

pub use semaphore::{Semaphore, SemaphorePlace};
pub use shared::Shared;
pub use shared_layout::{LayoutDigest, SharedLayout};
pub use shared_mapping::{SharedArray, SharedFile, SharedMapping};
pub use stopwatch::Stopwatch;
pub use title::{prepare_title, set_title};
pub use usage::Usage;
