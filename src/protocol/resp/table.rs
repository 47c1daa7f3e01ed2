//! The commands, by name.

use super::words::Words;
use std::borrow::Cow;

/// What a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Command {
    /// Not answered.
    Nothing,
    Unknown,
    /// A line of HTTP: somebody's browser was tricked into this.
    Http,
    Ping,
    Echo,
    Time,
    Hello,
    Auth,
    Select,
    Client,
    Info,
    Describe,
    Config,
    Reset,
    Quit,
    Call,
    Subscribe,
    SubscribePattern,
    SubscribeShard,
    Unsubscribe,
    UnsubscribePattern,
    UnsubscribeShard,
    Publish,
    PublishShard,
    PubSub,
}

/// A row of `COMMAND`.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) command: Command,
    /// How many words it has, the name included; negative: at least that many.
    pub(super) arity: i32,
    /// It may be used before the gate.
    pub(super) is_before_gate: bool,
    pub(super) flags: &'static [&'static str],
    pub(super) summary: &'static str,
}

const fn row(
    name: &'static str,
    command: Command,
    arity: i32,
    flags: &'static [&'static str],
    summary: &'static str,
) -> Row {
    Row { name, command, arity, is_before_gate: false, flags, summary }
}

impl Row {
    const fn before_gate(mut self) -> Self {
        self.is_before_gate = true;
        self
    }
}

const FAST: &[&str] = &["loading", "stale", "fast"];
const SLOW: &[&str] = &["loading", "stale"];
const LISTENING: &[&str] = &["pubsub", "noscript", "loading", "stale"];
const PUBLISHING: &[&str] = &["pubsub", "loading", "stale", "fast"];
const CONNECTING: &[&str] = &["noscript", "loading", "stale", "fast", "no_auth"];

/// In the order of their names.
pub(super) static ROWS: &[Row] = &[
    row("auth", Command::Auth, -2, CONNECTING, "Authenticate to the server").before_gate(),
    row("chappe.call", Command::Call, -2, SLOW, "Call a handler of the application"),
    row("client", Command::Client, -2, SLOW, "Ask about connections, and name one's own"),
    row("command", Command::Describe, -1, SLOW, "Ask about commands"),
    row("config", Command::Config, -2, SLOW, "Ask about the configuration"),
    row("echo", Command::Echo, 2, FAST, "Echo the given string"),
    row("hello", Command::Hello, -1, CONNECTING, "Handshake with the server").before_gate(),
    row("info", Command::Info, -1, SLOW, "Get information about the server"),
    row("ping", Command::Ping, -1, FAST, "Ping the server").before_gate(),
    row(
        "psubscribe",
        Command::SubscribePattern,
        -2,
        LISTENING,
        "Listen for messages of channels that are like a pattern",
    ),
    row("publish", Command::Publish, 3, PUBLISHING, "Post a message to a channel"),
    row("pubsub", Command::PubSub, -2, PUBLISHING, "Ask which channels have subscribers"),
    row(
        "punsubscribe",
        Command::UnsubscribePattern,
        -1,
        LISTENING,
        "Stop listening for messages of patterns",
    ),
    row("quit", Command::Quit, -1, CONNECTING, "Close the connection").before_gate(),
    row("reset", Command::Reset, 1, CONNECTING, "Reset the connection").before_gate(),
    row("select", Command::Select, 2, FAST, "Change the selected database: there is one"),
    row("spublish", Command::PublishShard, 3, PUBLISHING, "Post a message to a shard channel"),
    row(
        "ssubscribe",
        Command::SubscribeShard,
        -2,
        LISTENING,
        "Listen for messages of shard channels",
    ),
    row("subscribe", Command::Subscribe, -2, LISTENING, "Listen for messages of channels"),
    row(
        "sunsubscribe",
        Command::UnsubscribeShard,
        -1,
        LISTENING,
        "Stop listening for messages of shard channels",
    ),
    row("time", Command::Time, 1, FAST, "Return the current server time"),
    row("unsubscribe", Command::Unsubscribe, -1, LISTENING, "Stop listening for messages"),
];

/// The longest name of a command, and room.
const NAME_BYTES_MAX: usize = 16;

impl Command {
    /// The command of this name, in any case.
    #[inline]
    pub(super) fn named(name: &[u8]) -> Self {
        let mut upper = [0; NAME_BYTES_MAX];
        let Some(upper) = upper.get_mut(..name.len()) else { return Self::Unknown };
        upper.copy_from_slice(name);
        upper.make_ascii_uppercase();
        match &*upper {
            b"PING" => Self::Ping,
            b"ECHO" => Self::Echo,
            b"CHAPPE.CALL" => Self::Call,
            b"TIME" => Self::Time,
            b"HELLO" => Self::Hello,
            b"AUTH" => Self::Auth,
            b"SELECT" => Self::Select,
            b"CLIENT" => Self::Client,
            b"INFO" => Self::Info,
            b"COMMAND" => Self::Describe,
            b"CONFIG" => Self::Config,
            b"RESET" => Self::Reset,
            b"QUIT" => Self::Quit,
            b"SUBSCRIBE" => Self::Subscribe,
            b"PSUBSCRIBE" => Self::SubscribePattern,
            b"SSUBSCRIBE" => Self::SubscribeShard,
            b"UNSUBSCRIBE" => Self::Unsubscribe,
            b"PUNSUBSCRIBE" => Self::UnsubscribePattern,
            b"SUNSUBSCRIBE" => Self::UnsubscribeShard,
            b"PUBLISH" => Self::Publish,
            b"SPUBLISH" => Self::PublishShard,
            b"PUBSUB" => Self::PubSub,
            b"POST" | b"HOST:" => Self::Http,
            _ => Self::Unknown,
        }
    }

    pub(super) fn row(self) -> Option<&'static Row> {
        ROWS.iter().find(|row| row.command == self)
    }

    /// Whether this command may wait for the application, or takes long.
    fn is_slow(self, words: usize, is_admin: bool) -> bool {
        match self {
            Self::Auth => true,
            // With a password.
            Self::Hello => words > 2,
            // Of all connections, and all keys.
            Self::Client | Self::Config => is_admin,
            _ => false,
        }
    }
}

impl Row {
    /// With its subcommand, if it has such.
    pub(super) fn full_name(&self, words: Words<'_>) -> Cow<'static, str> {
        let has_subcommands =
            matches!(self.command, Command::Client | Command::Config | Command::PubSub);
        match words.iter().nth(1).filter(|_| has_subcommands) {
            Some(word) => {
                let word = String::from_utf8_lossy(&word).to_ascii_lowercase();
                format!("{}|{word}", self.name).into()
            }
            None => self.name.into(),
        }
    }

    pub(super) fn takes(&self, words: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { words >= least } else { words == least }
    }
}

/// What is known of a command when it is opened: as the checksum of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hint {
    pub(super) command: Command,
    pub(super) words: u16,
    pub(super) is_line: bool,
}

const COMMANDS: [Command; 25] = [
    Command::Nothing,
    Command::Unknown,
    Command::Http,
    Command::Ping,
    Command::Echo,
    Command::Time,
    Command::Hello,
    Command::Auth,
    Command::Select,
    Command::Client,
    Command::Info,
    Command::Describe,
    Command::Config,
    Command::Reset,
    Command::Quit,
    Command::Call,
    Command::Subscribe,
    Command::SubscribePattern,
    Command::SubscribeShard,
    Command::Unsubscribe,
    Command::UnsubscribePattern,
    Command::UnsubscribeShard,
    Command::Publish,
    Command::PublishShard,
    Command::PubSub,
];

impl Hint {
    pub(super) fn pack(self) -> u32 {
        u32::from(self.words) << 16 | u32::from(self.is_line) << 8 | self.command as u32
    }

    pub(super) fn unpack(packed: u32) -> Self {
        let [words_high, words_low, is_line, command] = packed.to_be_bytes();
        Self {
            command: COMMANDS.get(usize::from(command)).copied().unwrap_or(Command::Unknown),
            words: u16::from_be_bytes([words_high, words_low]),
            is_line: is_line != 0,
        }
    }

    pub(super) fn is_slow(self, is_admin: bool) -> bool {
        self.command.is_slow(self.words.into(), is_admin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_found_by_its_name_in_any_case() {
        for row in ROWS {
            assert_eq!(Command::named(row.name.as_bytes()), row.command);
            assert_eq!(Command::named(row.name.to_uppercase().as_bytes()), row.command);
            assert_eq!(row.command.row().unwrap().name, row.name);
        }
        assert!(ROWS.is_sorted_by_key(|row| row.name));
        for unknown in [&b""[..], b"pin", b"pingg", b"a name that is longer than any"] {
            assert_eq!(Command::named(unknown), Command::Unknown);
        }
    }

    #[test]
    fn a_hint_comes_back_as_it_was() {
        for command in COMMANDS {
            for (words, is_line) in [(0, false), (2048, true)] {
                let hint = Hint { command, words, is_line };
                assert_eq!(Hint::unpack(hint.pack()), hint);
            }
        }
    }
}
