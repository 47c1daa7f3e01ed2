//! What can go wrong around a test.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::client::ClientError;

/// Why a server did not do what a test wanted from it.
///
/// ```no_run
/// # use chappe::testing::{TestError, TestServer};
/// # fn test() {
/// let refused = TestServer::of("target/debug/chatd").config("no_such_key = 1\n").start();
/// match refused {
///     Err(TestError::Start { output, .. }) => assert!(output.contains("no_such_key")),
///     other => panic!("{other:?}"),
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestError {
    /// The configuration of the test is not TOML.
    #[error("the configuration of the test")]
    Config(#[source] Box<toml::de::Error>),
    /// Its folder or one of its files could not be made.
    #[error("the folder of the test")]
    Folder(#[source] io::Error),
    /// The program could not be run.
    #[error("cannot run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The server ended before it was ready.
    #[error("the server did not start ({status}):\n{output}")]
    Start {
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to its standard error and its logs.
        output: String,
    },
    /// A command of the program failed.
    #[error("`{command}` failed ({status}):\n{output}")]
    Command {
        /// The command's name and arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error.
        output: String,
    },
    /// It has not happened within [`DEADLINE`](super::DEADLINE).
    #[error("not within {:?}: {what}", super::DEADLINE)]
    Late {
        /// What was awaited.
        what: String,
    },
    /// An answer of the server that is not understood.
    #[error("{what}: {text:?}")]
    Answer {
        /// What it was meant to be.
        what: &'static str,
        /// What it was.
        text: String,
    },
    /// There is no such worker.
    #[error("no worker {0} serves")]
    NoWorker(u16),
    /// A client of the test.
    #[error(transparent)]
    Client(#[from] ClientError),
}
