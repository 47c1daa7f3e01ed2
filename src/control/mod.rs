//! What is said over the control socket: a line with a JSON object in, a line with one out.
//!
//! [`Request`] is what a client may ask for; [`Status`], [`Listed`], [`Reloaded`] and
//! [`Accepted`] are what the master answers, or [`Refused`]; [`Reply`] is any of them. Both sides
//! use these types, so that neither looks for a key by its name. The metrics page is told by
//! them, too, and each worker writes its lines of a list as a [`ConnectionRow`]. Nothing here
//! opens a socket.
//!
//! Keys are added and never renamed. A client must not trip over a key that it does not
//! know, so answers are read leniently; a server must not carry out half of what it was
//! asked for, so requests are read strictly. A key that comes after the first release gets
//! `#[serde(default)]`, for answers of a server that does not have it yet.

mod figures;
mod reply;
mod request;
mod status;
mod topics;

pub use reply::{Accepted, Listed, Refused, Reloaded, Reply, ReplyError, read};
pub use request::{LevelName, Request, RequestError};
pub use status::{
    CodeStatus, ConnectionRow, Counters, HandlerTime, HubReader, HubStatus, LastReload, Limits,
    ListenerStatus, MasterStatus, MetricsStatus, PermitShare, Permits, ReloadOutcome, ReloadStatus,
    Semaphores, Status, Vacancy, WorkerStatus,
};
pub use topics::{TopicLine, TopicRow, TopicWorker};
