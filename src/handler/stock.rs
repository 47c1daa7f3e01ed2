//! The handlers of the stock server: codes 0 to 3. All of them are quick.

use super::{Handler, Outcome, Replies, Request, WorkerInfo};
use crate::protocol::{CODE_ECHO, CODE_PING, CODE_TIME, CODE_WHO};
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) enum Stock {
    /// Answers with an empty frame of the same code, whatever the body.
    Ping,
    /// Answers with the same body.
    Echo,
    /// Answers with u64 milliseconds since the Unix epoch.
    Time,
    /// Answers with the worker that serves this connection, one `name=value` per line.
    Who(WorkerInfo),
}

impl Handler for Stock {
    fn handle(&self, request: &Request<'_>, replies: &mut Replies<'_>) -> Outcome {
        match self {
            Self::Ping => replies.send(CODE_PING, b""),
            Self::Echo => replies.send(CODE_ECHO, request.body()),
            Self::Time => {
                // A clock before 1970 or after the year 584 million gives the end of the range.
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
                replies.send(CODE_TIME, &ms.to_be_bytes())
            }
            Self::Who(WorkerInfo { number, pid, generation }) => {
                let connection = request.connection();
                let text = format!(
                    "worker={number}\npid={pid}\ngeneration={generation}\nconnection={}\npeer={}\n",
                    connection.id, connection.peer
                );
                replies.send(CODE_WHO, text.as_bytes())
            }
        }
    }

    fn is_quick(&self) -> bool {
        true
    }
}
