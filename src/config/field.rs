//! How one key is read from TOML into its field, and written back.
//!
//! A [`Field`] holds a typed way to its place in the configuration, so that a size cannot end
//! up in a duration: the compiler checks the schema. Pure; must never panic on any value.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::model::{
    Accept, Address, CpuAffinity, LogLevel, Protocol, SlowReader, TopicAccess, User,
    WORKER_PROCESSES_MAX, WorkerProcesses,
};
use super::tree::Tree;
use super::value;

/// Most characters of a wrong value that a message repeats.
const FOUND_CHARS_MAX: usize = 60;

/// The way from a table to one of its fields.
pub(super) type At<T, V> = fn(&mut T) -> &mut V;

/// What a number may be: `min..=max`, and 0 too where that has a meaning of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) zero: bool,
    pub(super) min: u64,
    pub(super) max: u64,
}

impl Bounds {
    pub(super) const fn range(min: u64, max: u64) -> Self {
        Self { zero: false, min, max }
    }

    pub(super) const fn zero_or(min: u64, max: u64) -> Self {
        Self { zero: true, min, max }
    }

    fn hold(self, number: u64) -> bool {
        (self.zero && number == 0) || (self.min..=self.max).contains(&number)
    }

    fn allows_zero(self) -> bool {
        self.hold(0)
    }
}

/// An unsigned field of any width.
#[derive(Debug)]
pub(super) enum Number<T: 'static> {
    U16(At<T, u16>),
    U32(At<T, u32>),
    U64(At<T, u64>),
    Usize(At<T, usize>),
}

impl<T> Number<T> {
    /// `false`: the number doesn't fit.
    fn set(&self, target: &mut T, number: u64) -> bool {
        fn put<N: TryFrom<u64>>(field: &mut N, number: u64) -> bool {
            N::try_from(number).map(|number| *field = number).is_ok()
        }
        match self {
            Self::U16(at) => put(at(target), number),
            Self::U32(at) => put(at(target), number),
            Self::U64(at) => put(at(target), number),
            Self::Usize(at) => put(at(target), number),
        }
    }

    fn get(&self, target: &mut T) -> u64 {
        match self {
            Self::U16(at) => (*at(target)).into(),
            Self::U32(at) => (*at(target)).into(),
            Self::U64(at) => *at(target),
            Self::Usize(at) => *at(target) as u64,
        }
    }
}

/// One of a few words.
pub(super) trait Choice {
    fn words(&self) -> Vec<&'static str>;
    fn word(&self) -> &'static str;
    /// `false`: there is no such word.
    fn choose(&mut self, word: &str) -> bool;
}

/// The words of an enum, in the order in which they are shown.
pub(super) trait Words: Copy + PartialEq + 'static {
    const WORDS: &'static [(&'static str, Self)];
}

impl<W: Words> Choice for W {
    fn words(&self) -> Vec<&'static str> {
        W::WORDS.iter().map(|(word, _)| *word).collect()
    }

    fn word(&self) -> &'static str {
        W::WORDS.iter().find(|(_, choice)| choice == self).map_or("", |(word, _)| word)
    }

    fn choose(&mut self, word: &str) -> bool {
        let found = W::WORDS.iter().find(|(known, _)| *known == word);
        found.map(|(_, choice)| *self = *choice).is_some()
    }
}

impl Words for LogLevel {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
        ("off", Self::Off),
    ];
}

impl Words for Protocol {
    const WORDS: &'static [(&'static str, Self)] =
        &[("chappe", Self::Chappe), ("resp", Self::Resp)];
}

impl Words for TopicAccess {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("off", Self::Off),
        ("subscribe", Self::Subscribe),
        ("on", Self::On),
        ("auto", Self::Auto),
    ];
}

impl Words for Accept {
    const WORDS: &'static [(&'static str, Self)] =
        &[("shared", Self::Shared), ("reuseport", Self::Reuseport)];
}

impl Words for SlowReader {
    const WORDS: &'static [(&'static str, Self)] =
        &[("close", Self::Close), ("drop-newest", Self::DropNewest)];
}

impl Words for CpuAffinity {
    const WORDS: &'static [(&'static str, Self)] = &[("off", Self::Off), ("auto", Self::Auto)];
}

/// What a key takes, and where it goes. Bounds of sizes are bytes, those of times milliseconds.
pub(super) enum Field<T: 'static> {
    Flag(At<T, bool>),
    Processes(At<T, WorkerProcesses>),
    Integer(Number<T>, Bounds),
    Size(Number<T>, Bounds),
    SizeOrOff(At<T, Option<u64>>, Bounds),
    Time(At<T, Duration>, Bounds),
    TimeOrOff(At<T, Option<Duration>>, Bounds),
    Choice(fn(&mut T) -> &mut dyn Choice),
    Path(At<T, PathBuf>),
    Address(At<T, Address>),
    AddressOrOff(At<T, Option<SocketAddr>>),
    User(At<T, Option<User>>),
    /// Consumed while files are read; nothing of it is left in the configuration.
    Include,
}

impl<T: Default> Field<T> {
    /// Puts `found` into its field, or says `is 0, must be 1..=128`.
    pub(super) fn read(&self, target: &mut T, found: &Tree) -> Result<(), String> {
        let hint = match self.try_read(target, found) {
            Ok(()) => return Ok(()),
            Err(hint) => hint,
        };
        let right_type = match self {
            Self::Integer(..) | Self::Processes(_) => matches!(found, Tree::Integer(..)),
            _ => true,
        };
        let an_integer = if right_type { "" } else { "an integer, " };
        let separator = if hint.is_empty() { "" } else { "; " };
        let shown = show_found(found);
        Err(format!("is {shown}, must be {an_integer}{}{separator}{hint}", self.allowed()))
    }

    fn try_read(&self, target: &mut T, found: &Tree) -> Result<(), String> {
        let set = |done: bool| if done { Ok(()) } else { Err(String::new()) };
        match self {
            Self::Flag(at) => *at(target) = found.as_bool().ok_or("")?,
            Self::Processes(at) => *at(target) = read_processes(found).ok_or("")?,
            Self::Integer(number, bounds) => {
                let read = found.as_u64().filter(|n| bounds.hold(*n)).ok_or("")?;
                return set(number.set(target, read));
            }
            Self::Size(number, bounds) => {
                return set(number.set(target, read_size(found, *bounds)?));
            }
            Self::SizeOrOff(at, bounds) => {
                *at(target) = Some(read_size(found, *bounds)?).filter(|bytes| *bytes != 0);
            }
            Self::Time(at, bounds) => *at(target) = read_time(found, *bounds)?,
            Self::TimeOrOff(at, bounds) => {
                *at(target) = Some(read_time(found, *bounds)?).filter(|time| !time.is_zero());
            }
            Self::Choice(at) => return set(at(target).choose(found.as_str().ok_or("")?)),
            Self::Path(at) => *at(target) = value::read_path(found.as_str().ok_or("")?)?,
            Self::Address(at) => *at(target) = value::read_address(found.as_str().ok_or("")?)?,
            Self::AddressOrOff(at) => {
                *at(target) = value::read_tcp_address(found.as_str().ok_or("")?)?;
            }
            Self::User(at) => *at(target) = value::read_user(found.as_str().ok_or("")?)?,
            Self::Include => {}
        }
        Ok(())
    }

    /// What may be written, as messages and the manual say it.
    pub(super) fn allowed(&self) -> String {
        match self {
            Self::Flag(_) => "true or false".into(),
            Self::Processes(_) => format!("1..={WORKER_PROCESSES_MAX} or \"auto\""),
            Self::Integer(_, Bounds { zero, min, max }) => {
                format!("{}{min}..={max}", if *zero { "0 or " } else { "" })
            }
            Self::Size(_, bounds) => allowed_size(*bounds, "0 or "),
            Self::SizeOrOff(_, bounds) => allowed_size(*bounds, "0 (off) or "),
            Self::Time(_, bounds) => allowed_time(*bounds, "\"0\" or "),
            Self::TimeOrOff(_, bounds) => allowed_time(*bounds, "\"0\" (off) or "),
            Self::Choice(at) => {
                let quoted: Vec<String> =
                    at(&mut T::default()).words().iter().map(|word| format!("{word:?}")).collect();
                match quoted.as_slice() {
                    [others @ .., last] if !others.is_empty() => {
                        format!("{} or {last}", others.join(", "))
                    }
                    _ => quoted.concat(),
                }
            }
            Self::Path(_) => "a path".into(),
            Self::Address(_) => "\"IPv4:port\", \"[IPv6]:port\" or \"unix:path\"".into(),
            Self::AddressOrOff(_) => "\"IPv4:port\", \"[IPv6]:port\" or \"\" (off)".into(),
            Self::User(_) => "\"user\", \"user:group\" or \"\" (stay root)".into(),
            Self::Include => "an array of paths and globs".into(),
        }
    }

    /// Makes the field of `to` what it is in `from`, whose `&mut` is only the way to it.
    pub(super) fn copy(&self, from: &mut T, to: &mut T) {
        fn put<T, V: Clone>(at: At<T, V>, from: &mut T, to: &mut T) {
            at(to).clone_from(at(from));
        }
        match self {
            Self::Flag(at) => put(*at, from, to),
            Self::Processes(at) => put(*at, from, to),
            Self::Integer(number, _) | Self::Size(number, _) => {
                number.set(to, number.get(from));
            }
            Self::SizeOrOff(at, _) => put(*at, from, to),
            Self::Time(at, _) => put(*at, from, to),
            Self::TimeOrOff(at, _) => put(*at, from, to),
            Self::Choice(at) => {
                at(to).choose(at(from).word());
            }
            Self::Path(at) => put(*at, from, to),
            Self::Address(at) => put(*at, from, to),
            Self::AddressOrOff(at) => put(*at, from, to),
            Self::User(at) => put(*at, from, to),
            Self::Include => {}
        }
    }

    /// The field as TOML. `&mut` only because that is the way to a field.
    pub(super) fn write(&self, target: &mut T) -> String {
        let quote = |text: String| toml::Value::String(text).to_string();
        match self {
            Self::Flag(at) => at(target).to_string(),
            Self::Processes(at) => match *at(target) {
                WorkerProcesses::Auto => "\"auto\"".into(),
                WorkerProcesses::Count(count) => count.to_string(),
            },
            Self::Integer(number, _) => number.get(target).to_string(),
            Self::Size(number, _) => write_size(number.get(target)),
            Self::SizeOrOff(at, _) => write_size(at(target).unwrap_or(0)),
            Self::Time(at, _) => quote(value::write_duration(*at(target))),
            Self::TimeOrOff(at, _) => quote(value::write_duration(at(target).unwrap_or_default())),
            Self::Choice(at) => quote(at(target).word().into()),
            Self::Path(at) => quote(at(target).to_string_lossy().into_owned()),
            Self::Address(at) => quote(at(target).to_string()),
            Self::AddressOrOff(at) => {
                quote(at(target).map_or_else(String::new, |address| address.to_string()))
            }
            Self::User(at) => quote(value::write_user(at(target).as_ref())),
            Self::Include => "[]".into(),
        }
    }
}

/// A wrong value as a message repeats it: short, and on one line.
pub(super) fn show_found(found: &Tree) -> String {
    let text = match found {
        Tree::String(text) => {
            let mut shown: String = text.chars().take(FOUND_CHARS_MAX).collect();
            if shown.len() < text.len() {
                shown.push('…');
            }
            return format!("{shown:?}");
        }
        Tree::Integer(text, _) | Tree::Float(text) => text.clone(),
        Tree::Boolean(flag) => flag.to_string(),
        Tree::Datetime(when) => when.to_string(),
        Tree::Array(_) => "an array".into(),
        Tree::Table(_) => "a table".into(),
    };
    match text.char_indices().nth(FOUND_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn read_processes(found: &Tree) -> Option<WorkerProcesses> {
    if found.as_str() == Some("auto") {
        return Some(WorkerProcesses::Auto);
    }
    let count = u16::try_from(found.as_u64()?).ok()?;
    (1..=WORKER_PROCESSES_MAX).contains(&count).then_some(WorkerProcesses::Count(count))
}

fn read_size(found: &Tree, bounds: Bounds) -> Result<u64, String> {
    let bytes = match found.as_str() {
        Some(text) => value::read_size(text)?,
        None => found.as_u64().ok_or("")?,
    };
    if bounds.hold(bytes) { Ok(bytes) } else { Err(String::new()) }
}

/// A bare 0 needs no unit, so it is taken where 0 is allowed; any other number needs one.
fn read_time(found: &Tree, bounds: Bounds) -> Result<Duration, String> {
    let (min, max) = (Duration::from_millis(bounds.min), Duration::from_millis(bounds.max));
    let time = match found {
        Tree::String(text) => value::read_duration(text)?,
        Tree::Integer(..) if bounds.allows_zero() && found.as_u64() == Some(0) => Duration::ZERO,
        Tree::Integer(..) => {
            let seconds = found.as_u64().filter(|n| (1..=max.as_secs()).contains(n));
            return Err(format!("write a unit, such as \"{}s\"", seconds.unwrap_or(30)));
        }
        _ => return Err(String::new()),
    };
    let holds = (bounds.zero && time.is_zero()) || (min..=max).contains(&time);
    if holds { Ok(time) } else { Err(String::new()) }
}

fn write_size(bytes: u64) -> String {
    let text = value::write_size(bytes);
    if text.ends_with('B') { format!("{text:?}") } else { text }
}

fn allowed_size(bounds: Bounds, zero: &str) -> String {
    let (min, max) = (value::write_size(bounds.min), value::write_size(bounds.max));
    format!("{}a size from {min} to {max}", if bounds.zero { zero } else { "" })
}

fn allowed_time(bounds: Bounds, zero: &str) -> String {
    let [min, max] = [bounds.min, bounds.max]
        .map(|milliseconds| value::write_duration(Duration::from_millis(milliseconds)));
    format!("{}a duration from {min:?} to {max:?}", if bounds.zero { zero } else { "" })
}
