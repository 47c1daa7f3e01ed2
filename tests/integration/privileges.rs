//! Whom workers become when root starts the server.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use chappe_client::CODE_ECHO;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Group, Pid, User, geteuid};

use chappe_testkit::site::{command, configuration, finish, program};
use chappe_testkit::{TestServer, fresh_dir};

/// Whether this test can run; says why not.
fn is_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        println!("skipped: only root can become somebody else");
    }
    is_root
}

/// A line of `/proc/PID/status`, in words.
fn status(pid: i32, name: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.expect("the line").split_whitespace().map(str::to_owned).collect()
}

#[track_caller]
fn assert_is(pid: i32, user: &User, gid: Gid) {
    // Real, effective, saved and file system id: no way back in any of them.
    assert_eq!(status(pid, "Uid"), vec![user.uid.to_string(); 4]);
    assert_eq!(status(pid, "Gid"), vec![gid.to_string(); 4]);
    let name = std::ffi::CString::new(user.name.as_str()).expect("a name");
    let mut groups = nix::unistd::getgrouplist(&name, gid).expect("groups");
    groups.sort_by_key(|gid| gid.as_raw());
    let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
    assert_eq!(status(pid, "Groups"), groups);
    assert_eq!(status(pid, "NoNewPrivs"), ["1"]);
    assert_eq!(status(pid, "CapEff"), ["0000000000000000"]);
}

#[test]
fn workers_become_nobody_and_the_master_stays_root() {
    if !is_root() {
        return;
    }
    let server = TestServer::start("privileges_default", "");
    let nobody = User::from_name("nobody").expect("looked up").expect("there is one");
    let before = server.worker_pids();
    for &pid in &before {
        assert_is(pid, &nobody, nobody.gid);
    }
    assert_eq!(status(server.pid(), "Uid"), vec!["0"; 4]);
    let said = format!("workers become user nobody uid={} gid={}", nobody.uid, nobody.gid);
    let log = server.read("logs/master.log");
    let line = log.lines().find(|line| line.contains(&said)).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("INFO") && line.contains("by default") && line.contains("writable"));
    // A replacement is nobody as well, and both write to logs that root has made.
    kill(Pid::from_raw(before[0]), Signal::SIGKILL).expect("a worker");
    let after = server.wait_workers(2, &before[..1]);
    let new = after.iter().find(|pid| !before.contains(pid)).expect("a replacement");
    server.wait_event("worker-0", "worker.serves", &format!(" {new} worker.serves: "));
    for &pid in &after {
        assert_is(pid, &nobody, nobody.gid);
    }
    assert_eq!(server.connect().call(CODE_ECHO, b"served").expect("an answer").body, "served");
}

#[test]
fn a_group_takes_the_place_of_the_users_own() {
    if !is_root() {
        return;
    }
    let server = TestServer::start("privileges_group", "user = \"daemon:tty\"\n");
    let user = User::from_name("daemon").expect("looked up").expect("there is one");
    let group = Group::from_name("tty").expect("looked up").expect("there is one");
    for pid in server.worker_pids() {
        assert_is(pid, &user, group.gid);
    }
}

#[test]
fn an_empty_user_stays_root_without_a_way_to_more() {
    if !is_root() {
        return;
    }
    let server = TestServer::start("privileges_root", "user = \"\"\n");
    for pid in server.worker_pids() {
        assert_eq!(status(pid, "Uid"), vec!["0"; 4]);
        assert_eq!(status(pid, "NoNewPrivs"), ["1"]);
    }
}

#[test]
fn unknown_names_are_mistakes_with_a_place() {
    if !is_root() {
        return;
    }
    let names = [
        ("no-such-user", "there is no user \"no-such-user\""),
        ("nobody:no-such-group", "there is no group \"no-such-group\""),
    ];
    let dir = fresh_dir("privileges_unknown");
    for (name, reason) in names {
        let toml = format!("user = \"{name}\"\n");
        fs::write(dir.join("chappe.toml"), configuration(&toml)).expect("the configuration");
        for arguments in [&["-t"][..], &["-T"], &["--foreground"], &[]] {
            let call = finish(command(&dir).args(arguments));
            assert_eq!((call.code, call.stdout.as_str()), (Some(2), ""), "{call:?}");
            // The harness has put a line in front of it.
            let place = format!("chappe.toml:2:8: user is \"{name}\": {reason}");
            assert!(call.stderr.contains(&place), "{arguments:?}: {call:?}");
        }
    }
    let call = finish(command(&dir).args(["-t", "--set", "user=no-such-user"]));
    assert!(call.stderr.contains("--set user=no-such-user: user is"), "{call:?}");
}

#[test]
fn without_root_a_written_user_is_ignored_with_a_warning() {
    if !is_root() {
        return;
    }
    let nobody = User::from_name("nobody").expect("looked up").expect("there is one");
    let dir = tempfile::tempdir().expect("a directory");
    // Where everybody may run it.
    let copy = dir.path().join("chappe");
    // Not by this process: a child that another test forks at this moment would have the copy
    // open for writing, and what is so cannot be executed (ETXTBSY).
    let copied = Command::new("cp").arg(program("chappe")).arg(&copy).status();
    assert!(copied.expect("cp").success());
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), mode).expect("our directory");
    let check = |user: &str| {
        let mut command = Command::new(&copy);
        fs::write(dir.path().join("chappe.toml"), user).expect("the configuration");
        command.uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw()).current_dir(dir.path());
        finish(command.args(["-t", "-c", "chappe.toml"]))
    };
    let call = check("user = \"no-such-user\"\n");
    assert_eq!(call.code, Some(0), "{call:?}");
    assert!(call.stderr.contains("chappe.toml:1:8: user is ignored"), "{call:?}");
    let call = check("");
    assert_eq!(call.code, Some(0), "{call:?}");
    assert!(!call.stderr.contains("user"), "a default is no wish: {call:?}");
}

#[test]
fn a_root_that_may_not_change_users_starts_nothing() {
    if !is_root() {
        return;
    }
    let dir = fresh_dir("privileges_half_root");
    fs::write(dir.join("chappe.toml"), configuration("")).expect("the configuration");
    let chappe = command(&dir);
    // As in a container that has taken this right away.
    let mut limited = Command::new("setpriv");
    limited.args(["--bounding-set", "-setuid", "--inh-caps", "-setuid"]);
    limited.arg(chappe.get_program()).args(chappe.get_args()).arg("--foreground");
    let start = finish(&mut limited);
    assert_eq!((start.code, start.stdout.as_str()), (Some(1), ""), "{start:?}");
    assert!(start.stderr.contains("ended before it was ready"), "{start:?}");
    let log = fs::read_to_string(dir.join("logs/worker-0.log")).expect("a log")
        + &fs::read_to_string(dir.join("logs/worker-1.log")).expect("a log");
    let reason = "cannot become the user: setresuid: Operation not permitted";
    let is_it = |line: &str| line.contains(" worker.boot_failed: ") && line.contains(reason);
    assert!(log.lines().any(is_it), "{log}");
}
