//! `CLIENT`: what connections say of themselves, and the end of one.
//!
//! Without `resp_admin` a connection sees and ends itself alone; with it all RESP connections
//! of its worker.

use super::answer::{Arguments, Ask, integer, is_word};
use super::registry::{self, Card};
use chappe_engine::{Cause, Goodbye, Mailbox, Notice, Served};
use chappe_sys::clock::Moment;
use std::fmt::Write as _;
use std::sync::Arc;

pub(super) const BAD_NAME: &str =
    "Client names cannot contain spaces, newlines or special characters.";

/// Which connections a `CLIENT KILL` is for.
#[derive(Debug, Default)]
struct Filter {
    id: Option<u64>,
    address: Option<String>,
    spares_itself: bool,
}

impl Filter {
    fn is_for(&self, mailbox: &Mailbox) -> bool {
        self.id.is_none_or(|id| id == mailbox.id())
            && self.address.as_ref().is_none_or(|address| *address == mailbox.peer().to_string())
    }
}

pub(super) fn answer(ask: &mut Ask<'_>, arguments: &Arguments<'_>) -> Served {
    let [subcommand, rest @ ..] = arguments else { return ask.wrong_count("client") };
    let id = ask.host.mailbox().id();
    let name = String::from_utf8_lossy(subcommand).to_ascii_lowercase();
    let registry = &ask.resp.registry;
    match (&*name, rest) {
        ("id", []) => ask.out.integer(id),
        ("getname", []) => match registry.card(id).name {
            name if name.is_empty() => ask.out.null(),
            name => ask.out.bulk(&name),
        },
        ("setname", [name]) if registry::is_name(name) => {
            registry.write(id, |card| card.name = (**name).into());
            ask.out.simple("OK");
        }
        ("setname", [_]) => ask.out.error("ERR", BAD_NAME),
        ("setinfo", [key, value]) => set_info(ask, key, value),
        ("info", []) => {
            let text = line(ask.host.mailbox(), ask.host.dialect(), &registry.card(id));
            ask.out.verbatim(&text);
        }
        ("list", rest) => list(ask, rest),
        ("kill", [address]) => return kill_address(ask, address),
        ("kill", [_, _, ..]) => return kill(ask, rest),
        ("id" | "getname" | "setname" | "setinfo" | "info" | "kill", _) => {
            return ask.wrong_count(&format!("client|{name}"));
        }
        _ => return ask.unknown_subcommand("CLIENT", subcommand),
    }
    Served::Answered
}

fn set_info(ask: &mut Ask<'_>, key: &[u8], value: &[u8]) {
    let id = ask.host.mailbox().id();
    let (is_library, is_version) = (is_word(key, "LIB-NAME"), is_word(key, "LIB-VER"));
    let shown = String::from_utf8_lossy(key);
    if !is_library && !is_version {
        return ask.out.error("ERR", &format!("Unrecognized option '{shown}'"));
    }
    if !registry::is_name(value) {
        let text = format!("{shown} cannot contain spaces, newlines or special characters.");
        return ask.out.error("ERR", &text);
    }
    ask.resp.registry.write(id, |card| {
        let field = if is_library { &mut card.library } else { &mut card.version };
        *field = value.into();
    });
    ask.out.simple("OK");
}

/// All that this connection may see: itself, or all RESP connections of the worker.
fn visible(ask: &Ask<'_>) -> Vec<(Arc<Mailbox>, Card)> {
    if ask.resp.is_admin {
        return ask.resp.registry.all();
    }
    let own = Arc::clone(ask.host.mailbox());
    let card = ask.resp.registry.card(own.id());
    vec![(own, card)]
}

fn list(ask: &mut Ask<'_>, filter: &Arguments<'_>) {
    let mut ids = None;
    match filter {
        [] => {}
        [key, kind] if is_word(key, "TYPE") => {
            let is_known = ["normal", "master", "replica", "slave", "pubsub"]
                .iter()
                .any(|it| is_word(kind, it));
            if !is_known {
                let kind = String::from_utf8_lossy(kind);
                return ask.out.error("ERR", &format!("Unknown client type '{kind}'"));
            }
            if !is_word(kind, "normal") {
                ids = Some(Vec::new());
            }
        }
        [key, list @ ..] if is_word(key, "ID") && !list.is_empty() => {
            let parsed: Option<Vec<_>> = list.iter().map(|id| integer(id)).collect();
            if parsed.is_none() {
                return ask.out.error("ERR", "Invalid client ID");
            }
            ids = parsed;
        }
        _ => return ask.out.error("ERR", "syntax error"),
    }
    let mut text = String::new();
    for (mailbox, card) in visible(ask) {
        let is_wanted =
            |ids: &Vec<i64>| i64::try_from(mailbox.id()).is_ok_and(|id| ids.contains(&id));
        if ids.as_ref().is_none_or(is_wanted) {
            let is_own = mailbox.id() == ask.host.mailbox().id();
            let dialect = if is_own { ask.host.dialect() } else { mailbox.dialect() };
            text += &line(&mailbox, dialect, &card);
        }
    }
    ask.out.verbatim(&text);
}

/// One connection, as Redis describes it, without what there is nothing of here.
fn line(mailbox: &Mailbox, dialect: u8, card: &Card) -> String {
    let age = Moment::now().since(mailbox.connected_at()).as_secs();
    let [name, library, version] =
        [&card.name, &card.library, &card.version].map(|text| String::from_utf8_lossy(text));
    let mut text = String::new();
    let written = writeln!(
        text,
        "id={} addr={} name={name} age={age} flags=N db=0 sub=0 psub=0 ssub=0 omem={} \
         user=default resp={} lib-name={library} lib-ver={version}",
        mailbox.id(),
        mailbox.peer(),
        mailbox.view().outbox_bytes,
        if dialect == super::RESP3 { 3 } else { 2 },
    );
    debug_assert!(written.is_ok(), "a string takes everything");
    text
}

/// `CLIENT KILL addr`: the old form, of one.
fn kill_address(ask: &mut Ask<'_>, address: &[u8]) -> Served {
    let address = Some(String::from_utf8_lossy(address).into_owned());
    let filter = Filter { address, ..Filter::default() };
    let (killed, is_own) = end_all(ask, &filter);
    if killed == 0 {
        return ask.refuse("ERR", "No such client");
    }
    ask.out.simple("OK");
    if is_own { Served::End(Cause::Kicked) } else { Served::Answered }
}

/// `CLIENT KILL filter value …`: how many.
fn kill(ask: &mut Ask<'_>, mut rest: &Arguments<'_>) -> Served {
    let mut filter = Filter { spares_itself: true, ..Filter::default() };
    loop {
        rest = match rest {
            [] => break,
            [key, id, rest @ ..] if is_word(key, "ID") => {
                let id = integer(id).and_then(|id| u64::try_from(id).ok()).filter(|id| *id > 0);
                if id.is_none() {
                    return ask.refuse("ERR", "client-id should be greater than 0");
                }
                filter.id = id;
                rest
            }
            [key, address, rest @ ..] if is_word(key, "ADDR") => {
                filter.address = Some(String::from_utf8_lossy(address).into_owned());
                rest
            }
            [key, word, rest @ ..] if is_word(key, "SKIPME") => {
                filter.spares_itself = match () {
                    () if is_word(word, "yes") => true,
                    () if is_word(word, "no") => false,
                    () => return ask.refuse("ERR", "syntax error"),
                };
                rest
            }
            _ => return ask.refuse("ERR", "syntax error"),
        };
    }
    let (killed, is_own) = end_all(ask, &filter);
    ask.out.integer(killed);
    if is_own { Served::End(Cause::Kicked) } else { Served::Answered }
}

/// Ends those that may be seen and are meant; its own connection behind the reply. How many
/// these are, and whether it is one of them.
fn end_all(ask: &Ask<'_>, filter: &Filter) -> (usize, bool) {
    let own = ask.host.mailbox().id();
    let (mut killed, mut is_own) = (0, false);
    for (mailbox, _) in visible(ask) {
        let spares = filter.spares_itself && mailbox.id() == own;
        if spares || !filter.is_for(&mailbox) {
            continue;
        }
        killed += 1;
        if mailbox.id() == own {
            is_own = true;
        } else {
            let (reason, text) = (Goodbye::Kicked, "CLIENT KILL".into());
            mailbox.end_from_thread(Cause::Kicked, Notice::Goodbye { reason, text });
        }
    }
    (killed, is_own)
}
