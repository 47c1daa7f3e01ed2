//! The handlers of the stock server: codes 0 to 3. All of them are quick.

use super::{Handler, Outcome, Replies, Request, WorkerInfo};
use crate::protocol::{CODE_ECHO, CODE_PING, CODE_TIME, CODE_WHO};
use std::time::{SystemTime, UNIX_EPOCH};

/// Answers with an empty frame of the same code, whatever the body.
pub(super) struct Ping;

impl Handler for Ping {
    fn handle(&self, _: &Request<'_>, replies: &mut Replies<'_>) -> Outcome {
        replies.send(CODE_PING, b"")
    }

    fn is_quick(&self) -> bool {
        true
    }
}

/// Answers with the same body.
pub(super) struct Echo;

impl Handler for Echo {
    fn handle(&self, request: &Request<'_>, replies: &mut Replies<'_>) -> Outcome {
        replies.send(CODE_ECHO, request.body())
    }

    fn is_quick(&self) -> bool {
        true
    }
}

/// Answers with u64 milliseconds since the Unix epoch.
pub(super) struct Time;

impl Handler for Time {
    fn handle(&self, _: &Request<'_>, replies: &mut Replies<'_>) -> Outcome {
        // A clock before 1970 or after the year 584 million gives the end of the range.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        replies.send(CODE_TIME, &ms.to_be_bytes())
    }

    fn is_quick(&self) -> bool {
        true
    }
}

/// Answers with the worker that serves this connection, one `name=value` per line.
pub(super) struct Who(pub(super) WorkerInfo);

impl Handler for Who {
    fn handle(&self, request: &Request<'_>, replies: &mut Replies<'_>) -> Outcome {
        let WorkerInfo { number, pid, generation } = self.0;
        let connection = request.connection();
        let text = format!(
            "worker={number}\npid={pid}\ngeneration={generation}\nconnection={}\npeer={}\n",
            connection.id, connection.peer
        );
        replies.send(CODE_WHO, text.as_bytes())
    }

    fn is_quick(&self) -> bool {
        true
    }
}
