//! What answers a command.

use super::table::{Command, Hint, Row};
use super::words::Words;
use super::write::Out;
use super::{NOAUTH, RESP2, RESP3, Resp, about, clients, registry, topics};
use chappe_engine::{Batch, Cause, Host, Login, Opened, Served, TopicKind};
use chappe_wire::BODY_BYTES_MAX;
use std::borrow::Cow;
use std::time::{SystemTime, UNIX_EPOCH};

/// The Redis whose behaviour this is.
pub(super) const REDIS_VERSION: &str = "7.0.15";

const NOT_AN_INTEGER: &str = "value is not an integer or out of range";
/// The user of an `AUTH` that names none.
const DEFAULT_USER: &[u8] = b"default";
const WRONG_PASSWORD: &str = "invalid username-password pair or user is disabled.";
const NO_PASSWORD: &str = "AUTH <password> called without any password configured for the \
                           default user. Are you sure your configuration is correct?";
const LOGIN_FIRST: &str = "HELLO must be called with the client already authenticated, \
                           otherwise the HELLO <proto> AUTH <user> <pass> option can be used to \
                           authenticate the client and select the RESP protocol version at the \
                           same time";

/// How many bytes of an unknown command, and of its arguments, are repeated in the error.
const SHOWN_BYTES_MAX: usize = 128;

/// One command on its way to its answer.
pub(super) struct Ask<'a> {
    pub(super) resp: &'a Resp,
    pub(super) opened: &'a Opened<'a>,
    pub(super) host: &'a mut dyn Host,
    pub(super) out: Out<'a>,
}

/// The words behind the name.
pub(super) type Arguments<'a> = [Cow<'a, [u8]>];

/// Answers a command, with one reply.
pub(super) fn answer(
    resp: &Resp,
    opened: &Opened<'_>,
    host: &mut dyn Host,
    batch: &mut Batch,
) -> Served {
    let hint = Hint::unpack(opened.checksum);
    let is_resp3 = host.dialect() == RESP3;
    // A client of version 2 that listens takes no replies but those of a few commands.
    let only_listens = !is_resp3 && host.mailbox().subscriptions() > 0;
    if (hint.command, hint.words) == (Command::Ping, 1) && !only_listens {
        batch.append(b"+PONG\r\n");
        return Served::Answered;
    }
    match hint.command {
        Command::Nothing => return Served::Answered,
        Command::Http => {
            log::debug!(
                target: "resp.http", "conn={} has sent a line of HTTP: it is closed",
                host.mailbox().id()
            );
            return Served::End(Cause::ProtocolError);
        }
        _ => {}
    }
    let count = usize::from(hint.words);
    let words = match hint.is_line {
        true => Words::Line { count, line: opened.body },
        false => Words::Array { count, bytes: opened.body },
    };
    let served = {
        let out = Out { bytes: batch.buffer(), is_resp3 };
        Ask { resp, opened, host, out }.answer(hint.command, words, only_listens)
    };
    if served != Served::Submitted {
        batch.count();
    }
    served
}

impl Ask<'_> {
    fn answer(&mut self, command: Command, words: Words<'_>, only_listens: bool) -> Served {
        let row = command.row();
        if !row.is_some_and(|row| row.is_before_gate) && !self.host.is_admitted() {
            self.out.error("NOAUTH", NOAUTH);
            return Served::NotAdmitted;
        }
        let Some(row) = row else { return self.unknown(words) };
        if !row.takes(words.count()) {
            return self.wrong_count(row.name);
        }
        if only_listens && !topics::is_for_listeners(command) {
            return self.refuse("ERR", &topics::only_listens(&row.full_name(words)));
        }
        let arguments: Vec<_> = words.iter().skip(1).collect();
        if only_listens && command == Command::Ping && arguments.len() < 2 {
            topics::pong(&mut self.out, arguments.first().map_or(b"", |text| text));
            return Served::Answered;
        }
        self.known(row, &arguments)
    }

    fn known(&mut self, row: &Row, arguments: &Arguments<'_>) -> Served {
        match row.command {
            Command::Ping => match arguments {
                [] => self.out.simple("PONG"),
                [text] => self.out.bulk(text),
                _ => return self.wrong_count(row.name),
            },
            Command::Echo => self.out.bulk(&arguments[0]),
            Command::Time => self.time(),
            Command::Select => match integer(&arguments[0]) {
                Some(0) => self.out.simple("OK"),
                Some(_) => self.out.error("ERR", "DB index is out of range"),
                None => self.out.error("ERR", NOT_AN_INTEGER),
            },
            Command::Quit => {
                self.out.simple("OK");
                return Served::End(Cause::PeerClosed);
            }
            Command::Reset => return self.reset(),
            Command::Auth => return self.auth(arguments),
            Command::Hello => return self.hello(arguments),
            Command::Call => return self.wrong_call(row, arguments),
            Command::Client => return clients::answer(self, arguments),
            Command::Info => about::info(self, arguments),
            Command::Describe => return about::command(self, arguments),
            Command::Config => return about::config(self, arguments),
            Command::Subscribe => return self.subscribe(TopicKind::Topic, arguments),
            Command::SubscribePattern => return self.subscribe(TopicKind::Pattern, arguments),
            Command::SubscribeShard => return self.subscribe(TopicKind::Shard, arguments),
            Command::Unsubscribe => return self.unsubscribe(TopicKind::Topic, arguments),
            Command::UnsubscribePattern => return self.unsubscribe(TopicKind::Pattern, arguments),
            Command::UnsubscribeShard => return self.unsubscribe(TopicKind::Shard, arguments),
            Command::PubSub => return self.about_topics(arguments),
            Command::Publish => return self.publish(TopicKind::Topic, arguments),
            Command::PublishShard => return self.publish(TopicKind::Shard, arguments),
            Command::Nothing | Command::Unknown | Command::Http => {
                unreachable!("they have no row")
            }
        }
        Served::Answered
    }

    fn time(&mut self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.out.array(2);
        self.out.bulk(since.as_secs().to_string().as_bytes());
        self.out.bulk(since.subsec_micros().to_string().as_bytes());
    }

    fn reset(&mut self) -> Served {
        self.resp.registry.forget(self.host.mailbox().id());
        self.host.shut_gate();
        let switched = self.switch(RESP2);
        if self.host.mailbox().subscriptions() > 0 {
            // The end of the last one is the answer.
            let asked = self.host.unsubscribe(self.opened, None, &[]);
            return self.asked(asked);
        }
        self.out.simple("RESET");
        switched
    }

    fn auth(&mut self, arguments: &Arguments<'_>) -> Served {
        let (user, password) = match arguments {
            [password] => (DEFAULT_USER, password),
            [user, password] => (&**user, password),
            _ => {
                self.out.error("ERR", "syntax error");
                return Served::Answered;
            }
        };
        if let Some(refused) = self.log_in(user, password) {
            return refused;
        }
        self.out.simple("OK");
        Served::Answered
    }

    /// `Some`: the login was refused, and the peer gets the reason.
    fn log_in(&mut self, user: &[u8], password: &[u8]) -> Option<Served> {
        match self.host.authenticate(user, password) {
            Login::Admitted => return None,
            Login::Unknown if user == DEFAULT_USER => self.out.error("ERR", NO_PASSWORD),
            Login::Unknown => self.out.error("WRONGPASS", WRONG_PASSWORD),
            Login::Denied(text) => self.out.error("WRONGPASS", &text),
            Login::Panicked => {
                self.out.error("ERR", "the service panicked");
                return Some(Served::Panicked);
            }
        }
        Some(Served::Answered)
    }

    fn hello(&mut self, arguments: &Arguments<'_>) -> Served {
        let mut dialect = self.host.dialect();
        if let Some(version) = arguments.first() {
            dialect = match integer(version) {
                Some(2) => RESP2,
                Some(3) => RESP3,
                Some(_) => return self.refuse("NOPROTO", "unsupported protocol version"),
                None => {
                    let text = "Protocol version is not an integer or out of range";
                    return self.refuse("ERR", text);
                }
            };
        }
        let (mut login, mut name) = (None, None);
        let mut rest = arguments.get(1..).unwrap_or_default();
        loop {
            rest = match rest {
                [] => break,
                [option, user, password, rest @ ..] if is_word(option, "AUTH") => {
                    login = Some((user, password));
                    rest
                }
                [option, word, rest @ ..] if is_word(option, "SETNAME") => {
                    if !registry::is_name(word) {
                        return self.refuse("ERR", clients::BAD_NAME);
                    }
                    name = Some(word);
                    rest
                }
                [option, ..] => {
                    let option = String::from_utf8_lossy(option);
                    return self.refuse("ERR", &format!("Syntax error in HELLO option '{option}'"));
                }
            };
        }
        if let Some((user, password)) = login
            && let Some(refused) = self.log_in(user, password)
        {
            return refused;
        }
        if !self.host.is_admitted() {
            return self.refuse("NOAUTH", LOGIN_FIRST);
        }
        if let Some(name) = name {
            let id = self.host.mailbox().id();
            self.resp.registry.write(id, |card| card.name = (**name).into());
        }
        self.out.is_resp3 = dialect == RESP3;
        self.greet();
        self.switch(dialect)
    }

    fn greet(&mut self) {
        let id = self.host.mailbox().id();
        self.out.map(7);
        for (key, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
            self.out.bulk(key.as_bytes());
            self.out.bulk(value.as_bytes());
        }
        self.out.bulk(b"proto");
        self.out.integer(if self.out.is_resp3 { 3 } else { 2 });
        self.out.bulk(b"id");
        self.out.integer(id);
        for (key, value) in [("mode", "standalone"), ("role", "master")] {
            self.out.bulk(key.as_bytes());
            self.out.bulk(value.as_bytes());
        }
        self.out.bulk(b"modules");
        self.out.array(0);
    }

    fn switch(&mut self, dialect: u8) -> Served {
        if dialect == self.host.dialect() {
            return Served::Answered;
        }
        self.host.set_dialect(dialect);
        Served::Switched
    }

    pub(super) fn refuse(&mut self, kind: &str, text: &str) -> Served {
        self.out.error(kind, text);
        Served::Answered
    }

    pub(super) fn wrong_count(&mut self, name: &str) -> Served {
        let text = format!("wrong number of arguments for '{name}' command");
        self.refuse("ERR", &text)
    }

    pub(super) fn unknown_subcommand(&mut self, command: &str, subcommand: &[u8]) -> Served {
        let shown = shown(subcommand, SHOWN_BYTES_MAX);
        let text = format!("unknown subcommand '{shown}'. Try {command} HELP.");
        self.refuse("ERR", &text)
    }

    fn unknown(&mut self, words: Words<'_>) -> Served {
        let mut words = words.iter();
        let name = words.next().unwrap_or_default();
        let mut arguments = String::new();
        for word in words {
            if arguments.len() >= SHOWN_BYTES_MAX {
                break;
            }
            let word = shown(&word, SHOWN_BYTES_MAX - arguments.len());
            arguments.push('\'');
            arguments.push_str(&word);
            arguments.push_str("' ");
        }
        let name = shown(&name, SHOWN_BYTES_MAX);
        let text = format!("unknown command '{name}', with args beginning with: {arguments}");
        self.out.error("ERR", &text);
        Served::UnknownCode
    }

    /// A `CHAPPE.CALL` that no handler can have.
    fn wrong_call(&mut self, row: &Row, arguments: &Arguments<'_>) -> Served {
        if arguments.len() > 2 {
            return self.wrong_count(row.name);
        }
        let code = integer(&arguments[0]);
        match code {
            None => return self.refuse("ERR", NOT_AN_INTEGER),
            Some(code) if !(0..=i64::from(chappe_wire::CODE_APPLICATION_MAX)).contains(&code) => {
                self.out.error("ERR", &format!("unknown message code {code}"));
                return Served::UnknownCode;
            }
            Some(_) => {}
        }
        if arguments.get(1).is_some_and(|body| body.len() > BODY_BYTES_MAX) {
            return self.refuse("ERR", &format!("a body has at most {BODY_BYTES_MAX} bytes"));
        }
        self.refuse("ERR", "a quoted body is for an array, not for an inline command")
    }
}

/// A whole word that is a number.
pub(super) fn integer(word: &[u8]) -> Option<i64> {
    match super::scan::number(&[word, b"\r\n"].concat()) {
        super::scan::Header::Number(number, used) if used == word.len() + 2 => number,
        _ => None,
    }
}

pub(super) fn is_word(word: &[u8], expected: &str) -> bool {
    word.eq_ignore_ascii_case(expected.as_bytes())
}

/// As printf(3) shows a string.
fn shown(word: &[u8], bytes_max: usize) -> Cow<'_, str> {
    let end = word.iter().position(|byte| *byte == 0).unwrap_or(word.len());
    String::from_utf8_lossy(&word[..end.min(bytes_max)])
}
