//! What a client asks for.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::LogLevel;

/// What a client asks for.
///
/// ```
/// # use chappe::control::*;
/// assert_eq!(Request::Kick { id: 7 }.to_line(), "{\"command\":\"kick\",\"id\":7}\n");
/// ```
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "command", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// Who runs, and what was counted. The answer is a [`Status`](super::Status).
    Status {},
    /// The fast stop.
    Stop {},
    /// The graceful stop.
    Quit {},
    /// Log files to be reopened.
    Reopen {
        /// The answer comes when all are.
        #[serde(default)]
        wait: bool,
    },
    /// Another level for all logs, until the next start.
    #[serde(rename = "log-level")]
    LogLevel {
        /// By its name in the configuration.
        level: LevelName,
    },
    /// Who is connected. The answer is [`Listed`](super::Listed), and after it a line for
    /// each connection.
    Connections {
        /// Only those whose socket is full.
        #[serde(default)]
        slow: bool,
    },
    /// The end of a connection.
    Kick {
        /// Which one.
        id: u64,
    },
    /// What is subscribed to. The answer is [`Listed`](super::Listed), and after it a
    /// [`TopicLine`](super::TopicLine) for each name.
    Topics {},
    /// A reload; the answer is its outcome, [`Reloaded`](super::Reloaded).
    Reload {},
}

/// Every command there is, for the error about an unknown one.
const COMMANDS: [&str; 9] =
    ["status", "stop", "quit", "reopen", "log-level", "connections", "kick", "topics", "reload"];

/// Why a request can't be carried out. The text is for the client.
///
/// ```
/// # use chappe::control::*;
/// let text = |line: &[u8]| Request::read(line).unwrap_err().to_string();
/// assert!(text(b"status").starts_with("bad request: it must be one JSON object in one line"));
/// assert!(text(br#"{"command":"go"}"#).contains("has no command `go`, only status, stop"));
/// assert!(text(br#"{"command":"kick"}"#).contains("missing field `id`"));
/// ```
#[derive(Debug, Error)]
pub enum RequestError {
    /// It is no JSON object.
    #[error("bad request: it must be one JSON object in one line: {0}")]
    NoObject(#[source] serde_json::Error),
    /// It is an object without a command.
    #[error("bad request: the object has no `command`, which is one of {}", COMMANDS.join(", "))]
    NoCommand,
    /// There is no such command, or not in this version.
    #[error(
        "bad request: chappe {version} has no command `{0}`, only {commands}; a client of \
         another version may have more",
        version = env!("CARGO_PKG_VERSION"),
        commands = COMMANDS.join(", ")
    )]
    UnknownCommand(String),
    /// What belongs to the command is missing, wrong, or not known in this version.
    #[error(
        "bad request: the command `{command}` is not in a form that chappe {version} \
         understands: {cause}; the client may be of another version",
        version = env!("CARGO_PKG_VERSION")
    )]
    Unreadable {
        /// Which command.
        command: String,
        /// What is wrong with it.
        cause: serde_json::Error,
    },
}

impl Request {
    /// Reads a line.
    ///
    /// ```
    /// # use chappe::control::*;
    /// assert_eq!(Request::read(br#"{"command":"kick","id":7}"#)?, Request::Kick { id: 7 });
    /// let unknown = Request::read(br#"{"command":"stop","soon":true}"#);
    /// // Not carried out in part.
    /// assert!(matches!(unknown, Err(RequestError::Unreadable { .. })));
    /// # Ok::<(), RequestError>(())
    /// ```
    ///
    /// # Errors
    /// [`RequestError`], for the client.
    pub fn read(line: &[u8]) -> Result<Self, RequestError> {
        let cause = match serde_json::from_slice(line) {
            Ok(request) => return Ok(request),
            Err(cause) => cause,
        };
        // Something is wrong with it. What, decides what the client hears.
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(line).map_err(RequestError::NoObject)?;
        let command = object.get("command").and_then(serde_json::Value::as_str);
        match command {
            None => Err(RequestError::NoCommand),
            Some(command) if COMMANDS.contains(&command) => {
                Err(RequestError::Unreadable { command: command.to_owned(), cause })
            }
            // A name is short; this is no place for a text of somebody's.
            Some(command) => {
                Err(RequestError::UnknownCommand(command.chars().take(40).collect::<String>()))
            }
        }
    }

    /// The name of its command.
    ///
    /// ```
    /// # use chappe::control::*;
    /// // For a log, without its arguments.
    /// assert_eq!(Request::Kick { id: 7 }.command(), "kick");
    /// ```
    #[must_use]
    pub fn command(&self) -> &'static str {
        match self {
            Self::Status {} => "status",
            Self::Stop {} => "stop",
            Self::Quit {} => "quit",
            Self::Reopen { .. } => "reopen",
            Self::LogLevel { .. } => "log-level",
            Self::Connections { .. } => "connections",
            Self::Kick { .. } => "kick",
            Self::Topics {} => "topics",
            Self::Reload {} => "reload",
        }
    }

    /// As a line for the socket.
    ///
    /// ```
    /// # use chappe::control::*;
    /// assert_eq!(Request::Status {}.to_line(), "{\"command\":\"status\"}\n");
    /// ```
    #[must_use]
    pub fn to_line(&self) -> String {
        let text = serde_json::to_string(self).expect("an object of plain values");
        text + "\n"
    }
}

/// A log level as in the configuration.
///
/// ```
/// # use chappe::control::*;
/// let level = LevelName::try_from("debug".to_owned())?;
/// let line = Request::LogLevel { level }.to_line();
/// assert_eq!(line, "{\"command\":\"log-level\",\"level\":\"debug\"}\n");
/// assert!(LevelName::try_from("loud".to_owned()).is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct LevelName(pub(crate) LogLevel);

impl LevelName {
    /// All names.
    ///
    /// ```
    /// # use chappe::control::*;
    /// assert_eq!(LevelName::names(), ["off", "error", "warn", "info", "debug", "trace"]);
    /// ```
    #[must_use]
    pub fn names() -> [&'static str; LogLevel::ALL.len()] {
        LogLevel::ALL.map(LogLevel::name)
    }
}

impl TryFrom<String> for LevelName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let found = LogLevel::ALL.into_iter().find(|level| level.name() == name);
        found.map(Self).ok_or_else(|| format!("there is no log level `{name}`"))
    }
}

impl From<LevelName> for String {
    fn from(level: LevelName) -> Self {
        level.0.name().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> [(Request, &'static str); 9] {
        let level = LevelName(LogLevel::Debug);
        [
            (Request::Status {}, r#"{"command":"status"}"#),
            (Request::Stop {}, r#"{"command":"stop"}"#),
            (Request::Quit {}, r#"{"command":"quit"}"#),
            (Request::Reopen { wait: true }, r#"{"command":"reopen","wait":true}"#),
            (Request::LogLevel { level }, r#"{"command":"log-level","level":"debug"}"#),
            (Request::Connections { slow: true }, r#"{"command":"connections","slow":true}"#),
            (Request::Kick { id: 7 }, r#"{"command":"kick","id":7}"#),
            (Request::Topics {}, r#"{"command":"topics"}"#),
            (Request::Reload {}, r#"{"command":"reload"}"#),
        ]
    }

    #[test]
    fn each_request_is_written_as_it_always_was_and_read_back() {
        for (request, line) in all() {
            assert_eq!(request.to_line(), format!("{line}\n"));
            assert_eq!(Request::read(line.as_bytes()).unwrap(), request);
            assert!(COMMANDS.contains(&request.command()));
            assert!(line.contains(request.command()));
        }
        let bare = |line: &str| Request::read(line.as_bytes()).unwrap();
        assert_eq!(bare(r#"{"command":"reopen"}"#), Request::Reopen { wait: false });
        assert_eq!(bare(r#"{"command":"connections"}"#), Request::Connections { slow: false });
    }

    #[test]
    fn a_request_that_is_not_known_is_answered_with_what_is() {
        let text = |line: &[u8]| Request::read(line).unwrap_err().to_string();
        let version = env!("CARGO_PKG_VERSION");
        let unknown = text(br#"{"command":"upgrade","to":"x"}"#);
        assert!(
            unknown.starts_with(&format!("bad request: chappe {version} has no command `upgrade`")),
            "{unknown}"
        );
        assert!(unknown.contains("kick, topics, reload; a client of another"), "{unknown}");
        let more = text(br#"{"command":"status","deep":true}"#);
        assert!(more.contains("`status`") && more.contains("`deep`"), "{more}");
        assert!(more.ends_with("the client may be of another version"), "{more}");
        let less = text(br#"{"command":"kick"}"#);
        assert!(less.contains("`kick`") && less.contains("missing field `id`"), "{less}");
        let loud = text(br#"{"command":"log-level","level":"loud"}"#);
        assert!(loud.contains("there is no log level `loud`"), "{loud}");
        for line in [&b""[..], b"status", b"\xff\xfe", b"[1]", b"\"status\""] {
            assert!(text(line).contains("one JSON object"), "{}", text(line));
        }
        for line in [&b"{}"[..], br#"{"command":7}"#] {
            assert!(text(line).contains("has no `command`"), "{}", text(line));
        }
        let long = format!("{{\"command\":\"{}\"}}", "x".repeat(5000));
        assert!(text(long.as_bytes()).len() < 300);
    }
}
