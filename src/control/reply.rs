//! What the master answers.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use super::Status;

/// Any answer, as the master sends it. A client knows which one it has asked for, and
/// reads that by [`read`].
///
/// ```
/// # use chappe::control::*;
/// let reply = Reply::Refused(Refused::because("there is no connection 7"));
/// assert_eq!(reply.to_line(), "{\"error\":\"there is no connection 7\"}\n");
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Reply {
    /// To [`Request::Status`](super::Request::Status).
    Status(Box<Status>),
    /// To whatever has no more to say.
    Accepted(Accepted),
    /// To [`Request::Connections`](super::Request::Connections) and
    /// [`Request::Topics`](super::Request::Topics).
    Listed(Listed),
    /// To [`Request::Reload`](super::Request::Reload).
    Reloaded(Reloaded),
    /// To anything.
    Refused(Refused),
}

impl Reply {
    /// Carried out, by this process.
    pub(crate) fn accepted() -> Self {
        Self::Accepted(Accepted { ok: true, pid: std::process::id() })
    }

    /// Not done, for this reason.
    pub(crate) fn refused(reason: impl ToString) -> Self {
        Self::Refused(Refused::because(reason))
    }

    /// As a line for the socket.
    ///
    /// ```
    /// # use chappe::control::*;
    /// let accepted: Accepted = read(r#"{"ok":true,"pid":70}"#)?;
    /// // With the end of the line.
    /// assert_eq!(Reply::Accepted(accepted).to_line(), "{\"ok\":true,\"pid\":70}\n");
    /// # Ok::<(), ReplyError>(())
    /// ```
    #[must_use]
    pub fn to_line(&self) -> String {
        let text = serde_json::to_string(self);
        text.expect("the answers have plain values and names for keys") + "\n"
    }
}

/// The command was carried out, or has begun to be.
///
/// ```
/// # use chappe::control::*;
/// let accepted: Accepted = read(r#"{"ok":true,"pid":70}"#)?; // to `quit`, for one
/// assert_eq!(accepted.pid, 70);
/// # Ok::<(), ReplyError>(())
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Accepted {
    /// Always true.
    pub ok: bool,
    /// The master's process.
    pub pid: u32,
}

/// A list follows: a line for each connection, or each topic, until the end.
///
/// ```
/// # use chappe::control::*;
/// let listed: Listed = read(r#"{"ok":true,"missing_workers":1,"missing":"worker 0"}"#)?;
/// if let Some(missing) = listed.missing {
///     eprintln!("{missing} has not answered: its connections are not in the list");
/// }
/// # Ok::<(), ReplyError>(())
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Listed {
    /// Always true.
    pub ok: bool,
    /// How many workers have sent no list, or 1 if the hub has sent none.
    pub missing_workers: u64,
    /// The workers that have sent no list, as text; absent if all have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// A reload that went well.
///
/// ```
/// # use chappe::control::*;
/// # let line = r#"{"ok":true,"generation":2,"workers":4,"ready_ms":12,
/// #     "changed":["timeouts.idle"],"restart":[],"warnings":[]}"#;
/// let Reloaded { generation, ready_ms, changed, restart, .. } = read(line)?;
/// println!("generation {generation} was ready after {ready_ms} ms, with new {changed:?}");
/// assert!(restart.is_empty(), "these take effect at the next start: {restart:?}");
/// # Ok::<(), ReplyError>(())
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Reloaded {
    /// Always true.
    pub ok: bool,
    /// The generation that serves now.
    pub generation: u64,
    /// How many workers the new generation has.
    pub workers: u64,
    /// How long it took until all of them were ready.
    pub ready_ms: u64,
    /// Keys whose new values are in effect.
    pub changed: Vec<String>,
    /// Keys that have changed in the file and take effect at the next start only.
    pub restart: Vec<String>,
    /// Warnings about the configuration.
    pub warnings: Vec<String>,
}

/// Nothing was done, or not all of it.
///
/// ```
/// # use chappe::control::*;
/// let answer = read::<Reloaded>(r#"{"error":"unknown key","wrong_configuration":true}"#);
/// let Err(ReplyError::Refused(refused)) = answer else { panic!("{answer:?}") };
/// assert_eq!((&*refused.error, refused.wrong_configuration), ("unknown key", Some(true)));
/// ```
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Refused {
    /// Why the request was refused, or what of it was not done.
    pub error: String,
    /// Whether it is the configuration that is wrong; only a reload says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrong_configuration: Option<bool>,
}

impl Refused {
    /// For this reason.
    ///
    /// ```
    /// # use chappe::control::*;
    /// let refused = Refused::because("a reload is under way");
    /// assert_eq!(refused.wrong_configuration, None);
    /// ```
    #[must_use]
    pub fn because(reason: impl ToString) -> Self {
        Self { error: reason.to_string(), wrong_configuration: None }
    }
}

/// Why a line is not the answer that was asked for.
///
/// ```
/// # use chappe::control::*;
/// let text = |line| read::<Accepted>(line).unwrap_err().to_string();
/// assert_eq!(text(r#"{"error":"there is no connection 7"}"#), "there is no connection 7");
/// assert_eq!(text(""), "the master ended, or hung up, without an answer");
/// assert!(text(r#"{"done":true}"#).contains("use the program of the server's version"));
/// ```
#[derive(Debug, Error)]
pub enum ReplyError {
    /// There is no answer.
    #[error("the master ended, or hung up, without an answer")]
    Nothing,
    /// The master says no.
    #[error("{}", .0.error)]
    Refused(Refused),
    /// It is not a JSON object.
    #[error("the master's answer is not valid: {0:.80}")]
    NoObject(String),
    /// It is an object of another kind than this program knows.
    #[error(
        "the answer of {} is not in a form that this program, chappe {version}, understands: \
         {cause}; use the program of the server's version",
        server_name(.server.as_deref()),
        version = env!("CARGO_PKG_VERSION")
    )]
    OtherVersion {
        /// The server's version, if the answer says so.
        server: Option<String>,
        /// What could not be read.
        cause: serde_json::Error,
    },
}

fn server_name(version: Option<&str>) -> String {
    match version {
        Some(version) => format!("the server, chappe {version},"),
        None => "the server".to_owned(),
    }
}

/// Reads the first line of an answer.
///
/// ```no_run
/// # use chappe::control::*;
/// # use std::io::{BufRead, BufReader, Write};
/// # use std::os::unix::net::UnixStream;
/// let mut socket = UnixStream::connect("run/chappe.sock")?;
/// socket.write_all(Request::Status {}.to_line().as_bytes())?;
/// let mut line = String::new();
/// BufReader::new(socket).read_line(&mut line)?;
/// println!("{} workers serve", read::<Status>(&line)?.serving().count());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The master's refusal, or that the line can't be read.
pub fn read<T: DeserializeOwned>(line: &str) -> Result<T, ReplyError> {
    if line.is_empty() {
        return Err(ReplyError::Nothing);
    }
    let Ok(Value::Object(object)) = serde_json::from_str(line) else {
        return Err(ReplyError::NoObject(line.trim_end().to_owned()));
    };
    let object = Value::Object(object);
    if let Ok(refused) = Refused::deserialize(&object) {
        return Err(ReplyError::Refused(refused));
    }
    T::deserialize(&object).map_err(|cause| ReplyError::OtherVersion {
        server: object["master"]["version"].as_str().map(str::to_owned),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Status;

    #[test]
    fn an_answer_is_understood_and_none_is_told_from_nonsense() {
        let text = |line| read::<Accepted>(line).unwrap_err().to_string();
        let accepted = read::<Accepted>("{\"ok\":true,\"pid\":7,\"new\":[]}\n").unwrap();
        assert_eq!(accepted, Accepted { ok: true, pid: 7 });
        assert_eq!(text("{\"error\":\"no\"}\n"), "no");
        assert_eq!(text(""), "the master ended, or hung up, without an answer");
        assert_eq!(text("what\n"), "the master's answer is not valid: what");
        assert_eq!(text("[7]\n"), "the master's answer is not valid: [7]");
        let wrong = "{\"error\":\"no\",\"wrong_configuration\":true}\n";
        let Err(ReplyError::Refused(refused)) = read::<Accepted>(wrong) else { panic!("refused") };
        assert_eq!(refused.wrong_configuration, Some(true));
    }

    #[test]
    fn an_answer_of_another_version_is_told_as_one() {
        let version = env!("CARGO_PKG_VERSION");
        let text = read::<Accepted>("{\"done\":true}\n").unwrap_err().to_string();
        let expected = format!(
            "the answer of the server is not in a form that this program, chappe {version}, \
             understands: missing field `ok`; use the program of the server's version"
        );
        assert_eq!(text, expected);
        let text = read::<Status>("{\"master\":{\"version\":\"9.1\"}}\n").unwrap_err().to_string();
        assert!(text.starts_with("the answer of the server, chappe 9.1, is not"), "{text}");
    }

    #[test]
    fn what_is_not_there_is_not_written() {
        assert_eq!(Reply::refused("why").to_line(), "{\"error\":\"why\"}\n");
        let listed = Reply::Listed(Listed { ok: true, missing_workers: 0, missing: None });
        assert_eq!(listed.to_line(), "{\"ok\":true,\"missing_workers\":0}\n");
    }

    #[test]
    fn each_answer_is_read_as_what_was_asked_for() {
        let status = Status::example();
        let line = Reply::Status(Box::new(status.clone())).to_line();
        assert_eq!(read::<Status>(&line).unwrap(), status);
        let listed = Listed { ok: true, missing_workers: 1, missing: Some("worker 0".into()) };
        let line = Reply::Listed(listed.clone()).to_line();
        assert_eq!(read::<Listed>(&line).unwrap(), listed);
        let line = Reply::accepted().to_line();
        assert_eq!(read::<Accepted>(&line).unwrap().pid, std::process::id());
        let told = Refused { error: "no".to_owned(), wrong_configuration: Some(true) };
        let line = Reply::Refused(told.clone()).to_line();
        let Err(ReplyError::Refused(refused)) = read::<Status>(&line) else { panic!("{line}") };
        assert_eq!(refused, told);
    }
}
