//! What was heard, held against what was sent.

use std::collections::{BTreeMap, BTreeSet};

use super::publisher::{Fate, Name, Sent};
use super::subscriber::Heard;
use super::{NOBODY, TOPICS, matches};

/// Of one round no more is reported.
const TOLD_MAX: usize = 20;

/// Returns what is wrong. `skipped` messages may be missing that were taken without an answer.
pub(super) fn judge(all_sent: &[Vec<Sent>], all_heard: &[Heard], skipped: u64) -> Vec<String> {
    let sent: BTreeMap<Name, Sent> =
        all_sent.iter().flatten().map(|sent| (sent.name, *sent)).collect();
    let mut wrong = Vec::new();
    let mut log = BTreeMap::new();
    for heard in all_heard {
        check_stream(heard, &mut log, &mut wrong);
    }
    for heard in all_heard {
        check_whole(heard, &log, &sent, skipped, &mut wrong);
    }
    check_log(&log, &sent, &mut wrong);
    match all_heard.iter().find(|heard| heard.wanted == ["*"]) {
        Some(heard) => check_offsets(heard, &mut wrong),
        None => wrong.push("nobody has heard everything".to_owned()),
    }
    wrong.truncate(TOLD_MAX);
    wrong
}

/// Each offset is one message for all; a subscriber has each once, and those of a topic
/// in their order.
fn check_stream(heard: &Heard, log: &mut BTreeMap<u64, (usize, Name)>, wrong: &mut Vec<String>) {
    let wanted = heard.wanted;
    let mut last = [heard.begin; TOPICS.len()];
    for &(offset, topic, name) in &heard.messages {
        if offset <= last[topic] {
            let behind = last[topic];
            wrong.push(format!("{wanted:?}: {name:?} at {offset} came behind {behind}"));
        }
        last[topic] = offset;
        let known = *log.entry(offset).or_insert((topic, name));
        if known != (topic, name) {
            wrong.push(format!("{wanted:?}: {name:?} at {offset}, where another has {known:?}"));
        }
        if !wanted.iter().any(|it| matches(it, TOPICS[topic])) {
            wrong.push(format!("{wanted:?} got {name:?} of {}", TOPICS[topic]));
        }
    }
}

/// It has all that it is to have, which all others have as well, and nothing that was refused.
fn check_whole(
    heard: &Heard,
    log: &BTreeMap<u64, (usize, Name)>,
    sent: &BTreeMap<Name, Sent>,
    skipped: u64,
    wrong: &mut Vec<String>,
) {
    let wanted = heard.wanted;
    let names: BTreeSet<Name> = heard.messages.iter().map(|(.., name)| *name).collect();
    for (offset, (topic, name)) in log {
        let is_wanted = wanted.iter().any(|it| matches(it, TOPICS[*topic]));
        if is_wanted && !names.contains(name) {
            let around = around(heard, *offset);
            wrong.push(format!("{wanted:?} lacks {name:?} at {offset}, another has it; {around}"));
        }
    }
    let mut missing = 0;
    for sent in sent.values() {
        let is_wanted = wanted.iter().any(|it| matches(it, TOPICS[sent.topic]));
        let is_there = names.contains(&sent.name);
        match sent.fate {
            Fate::Known(None) if is_wanted && !is_there && missing < skipped => missing += 1,
            Fate::Known(_) if is_wanted && !is_there => {
                wrong.push(format!("{wanted:?} lacks {sent:?}"));
            }
            Fate::Refused if is_there => wrong.push(format!("{wanted:?} has {sent:?}")),
            Fate::Known(_) | Fate::Unknown | Fate::Refused => {}
        }
    }
    for name in names {
        if name.publisher != NOBODY && !sent.contains_key(&name) {
            wrong.push(format!("{wanted:?} has {name:?}, which nobody has sent in this round"));
        }
    }
}

/// What it has got before and behind a message that it lacks, and where it has resumed.
fn around(heard: &Heard, offset: u64) -> String {
    let behind = heard.messages.iter().position(|it| it.0 > offset);
    let at = behind.unwrap_or(heard.messages.len());
    let shown = at.saturating_sub(3)..(at + 3).min(heard.messages.len());
    let offsets: Vec<u64> = heard.messages[shown].iter().map(|it| it.0).collect();
    let near = heard.resumed.iter().filter(|(count, _)| count.abs_diff(at) < 100);
    format!("message {at} would be; {offsets:?}; resumed {:?}", near.collect::<Vec<_>>())
}

/// Offsets are those that were answered, a message has one alone, and those of one connection are
/// in its order.
fn check_log(
    log: &BTreeMap<u64, (usize, Name)>,
    sent: &BTreeMap<Name, Sent>,
    wrong: &mut Vec<String>,
) {
    let mut offsets = BTreeMap::new();
    let mut last: BTreeMap<(u32, u32), u32> = BTreeMap::new();
    for (&offset, &(topic, name)) in log {
        if name.publisher == NOBODY {
            continue;
        }
        if let Some(before) = offsets.insert(name, offset) {
            wrong.push(format!("{name:?} is at {before} and at {offset}"));
        }
        if let Some(sent) = sent.get(&name) {
            let is_right = match sent.fate {
                Fate::Known(Some(answered)) => answered == offset,
                Fate::Known(None) | Fate::Unknown | Fate::Refused => true,
            };
            if !is_right || sent.topic != topic {
                wrong.push(format!("{sent:?} came at {offset} in {}", TOPICS[topic]));
            }
        }
        let before = last.insert((name.publisher, name.connection), name.number);
        if before.is_some_and(|before| before >= name.number) {
            wrong.push(format!("{name:?} at {offset} came behind number {before:?}"));
        }
    }
}

/// Nothing else is published: one that hears everything misses no offset.
fn check_offsets(heard: &Heard, wrong: &mut Vec<String>) {
    let offsets: BTreeSet<u64> = heard.messages.iter().map(|(offset, ..)| *offset).collect();
    let Some(&last) = offsets.last() else { return };
    let missing: Vec<_> =
        (heard.begin + 1..=last).filter(|offset| !offsets.contains(offset)).take(5).collect();
    if !missing.is_empty() {
        wrong.push(format!("{:?} lacks the offsets {missing:?}", heard.wanted));
    }
}
