//! What the kernel says of a process: children, threads, descriptors, memory.

use std::collections::BTreeMap;
use std::fs;

/// The fields of `/proc/PID/stat` that the tests use.
struct Stat {
    state: char,
    parent: i32,
    group: i32,
}

fn stat(pid: i32) -> Option<Stat> {
    read_stat(&format!("/proc/{pid}/stat"))
}

fn read_stat(path: &str) -> Option<Stat> {
    let text = fs::read_to_string(path).ok()?;
    // The name stands in brackets and may hold anything, brackets too.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    Some(Stat { state, parent, group })
}

/// Whether the process runs; one that only waits to be reaped does not.
pub fn is_running(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Whether a stop signal has reached every thread: kill(2) returns before it has.
pub fn is_stopped(pid: i32) -> bool {
    let threads = threads(pid);
    let stat = |thread| read_stat(&format!("/proc/{pid}/task/{thread}/stat"));
    let is_stopped = |thread: &i32| stat(*thread).is_some_and(|stat| stat.state == 'T');
    !threads.is_empty() && threads.keys().all(is_stopped)
}

/// All running processes that `is_wanted` wants, in ascending order.
fn running(is_wanted: impl Fn(&Stat) -> bool) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc is there");
    let mut pids: Vec<i32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| {
            stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X') && is_wanted(&stat))
        })
        .collect();
    pids.sort_unstable();
    pids
}

/// The running children of a process.
pub fn children(parent: i32) -> Vec<i32> {
    running(|stat| stat.parent == parent)
}

/// The running children of a master that are workers, by what they call themselves.
pub fn workers(master: i32) -> Vec<i32> {
    let is_worker = |pid: &i32| title(*pid).contains(": worker process ");
    children(master).into_iter().filter(is_worker).collect()
}

/// What a process calls itself; nothing if it is gone.
fn title(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The running processes of a group: a server's, even if their parent is another one by now.
pub fn group(leader: i32) -> Vec<i32> {
    running(|stat| stat.group == leader)
}

/// Open descriptors by number, with what each is, as the kernel names it:
/// `socket:[1234]`, `anon_inode:[eventpoll]`, `/path/of/a/file`.
pub fn open_descriptors(pid: i32) -> BTreeMap<i32, String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeMap::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            Some((number, target.to_string_lossy().into_owned()))
        })
        .collect()
}

/// What the kernel notes of each mapping of a file whose name begins so: `rd wr sh mr mw`, where
/// `mw` says that mprotect(2) may make it writable.
pub fn mapping_flags(pid: i32, name: &str) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let start = format!("/memfd:{name}");
    let mut found = Vec::new();
    let mut is_meant = false;
    for line in maps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags: ") {
            found.extend(is_meant.then(|| flags.to_owned()));
        } else if line.split_whitespace().next().is_some_and(|word| !word.ends_with(':')) {
            is_meant = line.contains(&start);
        }
    }
    found
}

/// Whether the process can read or write (`rw-s`), or only read (`r--s`), each mapping of a
/// file whose name begins so.
pub fn mapping_rights(pid: i32, name: &str) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let of_file = maps.lines().filter(|line| line.contains(name));
    of_file.filter_map(|line| Some(line.split(' ').nth(1)?.to_owned())).collect()
}

/// The names of the process's threads, by thread id.
pub fn threads(pid: i32) -> BTreeMap<i32, String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return BTreeMap::new() };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let id = entry.file_name().to_str()?.parse().ok()?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            Some((id, name.trim_end().to_owned()))
        })
        .collect()
}

/// Resident memory in bytes; 0 if the process is gone.
pub fn resident_bytes(pid: i32) -> u64 {
    memory_bytes(pid, "VmRSS:")
}

/// Address space in bytes; 0 if the process is gone.
pub fn address_space_bytes(pid: i32) -> u64 {
    memory_bytes(pid, "VmSize:")
}

fn memory_bytes(pid: i32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix(field));
    kib.and_then(|kib| kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The inodes of listening TCP sockets, as they stand in `socket:[…]`.
pub fn listening_inodes() -> Vec<String> {
    /// A TCP socket's state in `/proc/net/tcp`.
    const LISTEN: &str = "0A";
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| {
            let inode = |line: &str| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                (*fields.get(3)? == LISTEN).then(|| fields[9].to_owned())
            };
            table.lines().skip(1).filter_map(inode).collect::<Vec<_>>()
        })
        .collect()
}

/// The inodes of Unix sockets, as they stand in `socket:[…]`.
pub fn unix_inodes() -> Vec<String> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    table
        .lines()
        .skip(1)
        .filter_map(|line| Some(line.split_whitespace().nth(6)?.to_owned()))
        .collect()
}
