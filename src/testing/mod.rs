//! Tests of an application: its own program, started as a server, and clients that talk to it.
//!
//! With the feature `testing`, in the `[dev-dependencies]` of the application. A test starts
//! the program that cargo has built, in the foreground, on a port that the kernel picks, in a
//! folder of its own, and ends it however the test ends:
//!
//! ```no_run
//! use chappe::testing::{TestError, TestServer};
//!
//! # fn test() -> Result<(), TestError> {
//! let server = TestServer::of("target/debug/chatd") // env!("CARGO_BIN_EXE_chatd")
//!     .config("[application]\ngreeting = \"hello\"\n")
//!     .start()?;
//! let mut client = server.client()?;
//! assert_eq!(&client.call(16, b"user")?.body[..], b"hello user");
//! server.reload()?;
//! server.stop()
//! # }
//! ```
//!
//! [`call`] runs one handler without a process, for what a handler decides by itself.
//!
//! Nothing here sleeps for a fixed time: each call returns once what it waits for has
//! happened, or after [`DEADLINE`] with an error that says what was awaited.

mod alone;
mod error;
mod server;

pub use alone::{Answer, Refusal, call, client, worker};
pub use error::TestError;
pub use server::{DEADLINE, Setup, TestServer};
