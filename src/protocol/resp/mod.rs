//! RESP, the protocol of Redis, versions 2 and 3: every Redis client is a client. What there
//! is of it, and where it differs, is in docs/RESP.md.
//!
//! `CHAPPE.CALL code [body]` is a message for a handler. All other commands are answered here
//! (`answer`), in the turn of their connection. A connection's dialect is its version.

mod about;
mod answer;
mod clients;
mod registry;
mod scan;
mod table;
mod topics;
mod words;
mod write;

use chappe_engine::{
    Asks, Batch, BodyTooLong, CODE_COMMAND, CODE_SLOW_COMMAND, Event, Framed, Host, Mailbox, Mark,
    Notice, Opened, Problem, Progress, Protocol, PushForm, Rest, Served,
};
use chappe_wire::{BODY_BYTES_MAX, CODE_APPLICATION_MAX};
use registry::Registry;
use scan::{Scan, scan, scan_on};
use std::borrow::Cow;
use std::sync::Arc;
use table::{Command, Hint};
use words::Words;
use write::Out;

pub(super) use about::Facts;

/// Version 2, in which each connection begins.
const RESP2: u8 = 0;
const RESP3: u8 = 1;

/// The text for a peer that has to log in first.
const NOAUTH: &str = "Authentication required.";

/// The RESP of one listener.
#[derive(Debug)]
pub(super) struct Resp {
    /// `resp_admin`: its clients see and end others.
    is_admin: bool,
    facts: Arc<Facts>,
    /// The RESP connections of all listeners of this worker.
    registry: Arc<Registry>,
}

impl Resp {
    /// For a worker's listeners: what makes one, with or without `resp_admin`.
    pub(super) fn of_worker(facts: Facts) -> impl Fn(bool) -> Arc<dyn Protocol> {
        let (facts, registry) = (Arc::new(facts), Arc::new(Registry::default()));
        move |is_admin| {
            let (facts, registry) = (Arc::clone(&facts), Arc::clone(&registry));
            Arc::new(Self { is_admin, facts, registry })
        }
    }
}

impl Protocol for Resp {
    fn frame(&self, stream: &[u8]) -> Framed {
        let (mut whole_bytes, mut messages) = (0, 0);
        let rest = loop {
            let left = &stream[whole_bytes..];
            if left.is_empty() {
                break Rest::Nothing;
            }
            match scan(left) {
                Scan::Whole { length, .. } => whole_bytes += length,
                Scan::Part { wanted } => break Rest::Part { wanted },
                Scan::Malformed(text) => break Rest::Malformed(text),
            }
            messages += 1;
        };
        Framed { whole_bytes, messages, rest }
    }

    fn frame_on(&self, begun: &[u8], input: &[u8], progress: &mut Progress) -> Rest {
        match scan_on(begun, input, progress) {
            Scan::Whole { .. } => Rest::Nothing,
            Scan::Part { wanted } => Rest::Part { wanted },
            Scan::Malformed(text) => Rest::Malformed(text),
        }
    }

    fn code_of_part(&self, _: &[u8]) -> Option<u16> {
        None
    }

    fn open<'a>(&self, messages: &'a [u8]) -> Option<Opened<'a>> {
        let Scan::Whole { length, words } = scan(messages) else { return None };
        let (command, body, is_line): (_, &[u8], _) = match words {
            Words::None => (Command::Nothing, &[], false),
            Words::Array { bytes, .. } => (name_of(words), bytes, false),
            Words::Line { line, .. } => (name_of(words), line, true),
        };
        if command == Command::Call
            && let Some((code, body)) = call(words)
        {
            return Some(Opened { code, body, checksum: 0, length, joins: true });
        }
        let words = u16::try_from(words.count()).unwrap_or(u16::MAX);
        let hint = Hint { command, words, is_line };
        let code = if hint.is_slow(self.is_admin) { CODE_SLOW_COMMAND } else { CODE_COMMAND };
        Some(Opened { code, body, checksum: hint.pack(), length, joins: false })
    }

    fn is_intact(&self, _: &Opened<'_>) -> bool {
        true
    }

    fn asks(&self, opened: &Opened<'_>) -> Option<Asks> {
        if opened.code == CODE_COMMAND { topics::asks(opened) } else { None }
    }

    fn reply(
        &self,
        _: u16,
        body: &[u8],
        _: Option<u32>,
        out: &mut Batch,
    ) -> Result<(), BodyTooLong> {
        if body.len() > BODY_BYTES_MAX {
            return Err(BodyTooLong { bytes: body.len(), max: BODY_BYTES_MAX });
        }
        // A bulk string is the same in both versions.
        Out { bytes: out.buffer(), is_resp3: false }.bulk(body);
        out.count();
        Ok(())
    }

    fn join(&self, dialect: u8, begin: Mark, out: &mut Batch) {
        let count = out.messages_since(begin);
        if count == 1 {
            return;
        }
        let mut head = Vec::new();
        let mut write = Out { bytes: &mut head, is_resp3: dialect == RESP3 };
        match count {
            0 => write.null(),
            count => write.array(count as usize),
        }
        out.join_since(begin, &head);
    }

    fn notice(&self, notice: &Notice, out: &mut Batch) {
        match notice {
            Notice::Error { problem, code, text } => {
                error(*problem, *code, text, out);
                out.count();
            }
            Notice::TooFast { codes } => {
                for code in codes {
                    error(Problem::TooFast, Some(*code), "above the rate limit", out);
                    out.count();
                }
            }
            // There is no word for it: the connection ends.
            Notice::Goodbye { .. } => {}
        }
    }

    fn event(&self, dialect: u8, event: &Event<'_>, out: &mut Batch) {
        topics::event(dialect, event, out);
    }

    fn names_subscription(&self) -> bool {
        true
    }

    fn may_only_listen(&self) -> bool {
        true
    }

    fn refuses_call(&self, dialect: u8) -> Option<&'static str> {
        (dialect == RESP2).then_some(topics::NO_CALL)
    }

    fn has_dialects(&self) -> bool {
        true
    }

    fn push_form(&self, dialect: u8) -> Option<PushForm> {
        (dialect == RESP3).then_some(PushForm::Resp3)
    }

    fn command(&self, opened: &Opened<'_>, host: &mut dyn Host, out: &mut Batch) -> Option<Served> {
        if !matches!(opened.code, CODE_COMMAND | CODE_SLOW_COMMAND) {
            return None;
        }
        Some(answer::answer(self, opened, host, out))
    }

    fn ends_unadmitted(&self) -> bool {
        false
    }

    fn accepted(&self, mailbox: &Arc<Mailbox>) {
        self.registry.add(mailbox);
    }

    fn gone(&self, id: u64) {
        self.registry.remove(id);
    }
}

/// A message that answers nothing, in RESP3.
///
/// # Errors
/// [`BodyTooLong`]; nothing was appended.
pub(super) fn push(code: u16, body: &[u8], out: &mut Batch) -> Result<(), BodyTooLong> {
    if body.len() > BODY_BYTES_MAX {
        return Err(BodyTooLong { bytes: body.len(), max: BODY_BYTES_MAX });
    }
    let mut write = Out { bytes: out.buffer(), is_resp3: true };
    write.push(3);
    write.simple("chappe");
    write.integer(code);
    write.bulk(body);
    out.count();
    Ok(())
}

fn name_of(words: Words<'_>) -> Command {
    words.iter().next().map_or(Command::Unknown, |name| Command::named(&name))
}

/// Code and body of a `CHAPPE.CALL` that a handler may have. The mistake in another is answered
/// when it is its turn.
fn call<'a>(words: Words<'a>) -> Option<(u16, &'a [u8])> {
    if !matches!(words.count(), 2 | 3) {
        return None;
    }
    let mut words = words.iter().skip(1);
    let code = code_of(&words.next()?)?;
    let body: &'a [u8] = match words.next() {
        None => &[],
        Some(Cow::Borrowed(body)) => body,
        // Out of quotes: there is no place to keep it.
        Some(Cow::Owned(_)) => return None,
    };
    (code <= CODE_APPLICATION_MAX && body.len() <= BODY_BYTES_MAX).then_some((code, body))
}

fn code_of(word: &[u8]) -> Option<u16> {
    u16::try_from(answer::integer(word)?).ok()
}

/// The table of docs/RESP.md.
fn error(problem: Problem, code: Option<u16>, text: &str, out: &mut Batch) {
    let mut write = Out { bytes: out.buffer(), is_resp3: false };
    match problem {
        Problem::Malformed | Problem::BadChecksum | Problem::Incomplete => {
            write.error("ERR", &format!("Protocol error: {text}"));
        }
        Problem::UnknownCode => match code {
            Some(code) => write.error("ERR", &format!("unknown message code {code}")),
            None => write.error("ERR", text),
        },
        Problem::HandlerFailed | Problem::TooFast | Problem::BusyInside => write.error("ERR", text),
        Problem::Busy => write.error("ERR", "max number of clients reached"),
        Problem::NotAdmitted => write.error("NOAUTH", NOAUTH),
        Problem::Denied | Problem::NotAllowed => write.error("NOPERM", text),
    }
}

#[cfg(test)]
#[path = "resp_tests.rs"]
mod tests;
