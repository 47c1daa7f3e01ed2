//! The list of topics, for an operator: JSON objects, one on each line, in a file in memory that
//! cannot change any more.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use chappe_shm::Zone;
use chappe_topics::{Filter, Hub, Kind};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::topics::LifeId;

/// The longest list; what does not fit is counted in its last line.
const LIST_BYTES_MAX: usize = 1 << 20;
/// Less than that is left for the last line.
const LAST_LINE_BYTES: usize = 64;

const SEALS: SealFlag =
    SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW).union(SealFlag::F_SEAL_WRITE);

/// # Errors
/// No memory or no descriptor is left.
pub(super) fn file_of(hub: &Hub, zone: &Arc<Zone>) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create("chappe-topics", flags)?);
    let worker_of = |life: u64| {
        let report = zone.claimed_slot(LifeId(life).place())?.report();
        Some((report.worker, report.pid))
    };
    file.write_all(text_of(hub.names(), worker_of).as_bytes())?;
    // The master takes only what can't change any more.
    fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(file)
}

/// A line for each name, and one for how many were left out. `worker_of` is the number and the
/// process of a life's worker, if it still has one.
fn text_of(
    names: impl Iterator<Item = (Filter, Vec<(u64, u32)>)>,
    worker_of: impl Fn(u64) -> Option<(u16, u32)>,
) -> String {
    let (mut text, mut left_out) = (String::new(), 0_u64);
    for (filter, lives) in names {
        let line = line_of(&filter, &lives, &worker_of);
        if text.len() + line.len() + LAST_LINE_BYTES > LIST_BYTES_MAX {
            left_out += 1;
        } else {
            text.push_str(&line);
        }
    }
    if left_out > 0 {
        let _ = writeln!(text, "{{\"left_out\":{left_out}}}");
    }
    text
}

fn line_of(
    filter: &Filter,
    lives: &[(u64, u32)],
    worker_of: impl Fn(u64) -> Option<(u16, u32)>,
) -> String {
    let kind = match filter.kind() {
        Kind::Topic => "topic",
        Kind::Pattern => "pattern",
        Kind::Shard => "shard",
    };
    let subscribers: u64 = lives.iter().map(|(_, count)| u64::from(*count)).sum();
    let name = serde_json::Value::from(filter.written());
    let worker = |&(life, count): &(u64, u32)| {
        let (worker, pid) = worker_of(life)?;
        Some(format!("{{\"worker\":{worker},\"pid\":{pid},\"subscribers\":{count}}}"))
    };
    let workers: Vec<_> = lives.iter().filter_map(worker).collect();
    let workers = workers.join(",");
    format!(
        "{{\"topic\":{name},\"kind\":\"{kind}\",\"subscribers\":{subscribers},\
         \"workers\":[{workers}]}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filter(text: &str) -> Filter {
        Filter::parse(text.as_bytes()).unwrap()
    }

    fn lines(text: &str) -> Vec<serde_json::Value> {
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn each_name_is_a_line_with_its_workers() {
        let names = [(filter("a\"\\b"), vec![(7, 2), (8, 1)]), (filter("ro*"), vec![(9, 4)])];
        let workers = [(7, (0, 77)), (8, (1, 78))];
        let worker_of = |life| workers.iter().find(|it| it.0 == life).map(|it| it.1);
        let expected = [
            json!({"topic": "a\"\\b", "kind": "topic", "subscribers": 3, "workers": [
                {"worker": 0, "pid": 77, "subscribers": 2},
                {"worker": 1, "pid": 78, "subscribers": 1},
            ]}),
            // Its worker is gone, and the hub has not heard of it.
            json!({"topic": "ro*", "kind": "pattern", "subscribers": 4, "workers": []}),
        ];
        assert_eq!(lines(&text_of(names.into_iter(), worker_of)), expected);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let names = (0..5000).map(|n| (filter(&format!("{n:0>255}")), vec![(1, 1)]));
        let text = text_of(names, |_| Some((0, 1)));
        assert!(text.len() <= LIST_BYTES_MAX);
        let lines = lines(&text);
        let (last, listed) = lines.split_last().unwrap();
        assert_eq!(last, &json!({"left_out": 5000 - listed.len()}));
    }
}
