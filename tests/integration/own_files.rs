//! What somebody else has put where the server's own files are to be.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use chappe_testkit::site::{Finished, command, configuration, finish, program};
use chappe_testkit::{TestServer, fresh_dir};

/// A lock on the whole file, in the name of this process.
fn lock(file: &File, kind: libc::c_int) {
    let short = |constant: libc::c_int| libc::c_short::try_from(constant).expect("a small one");
    let lock = libc::flock {
        l_type: short(kind),
        l_whence: short(libc::SEEK_SET),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_SETLK(&lock)).expect("nobody else has it");
}

fn refused(directory: &Path, arguments: &[&str]) -> String {
    let outcome = finish(command(directory).args(arguments));
    let Finished { code, stdout, stderr } = &outcome;
    assert_eq!((*code, stdout.as_str()), (Some(1), ""), "{outcome:?}");
    stderr.clone()
}

#[test]
fn the_pid_file_is_the_masters_alone() {
    let server = TestServer::start("own_files_pid_mode", "");
    let there = fs::metadata(server.dir.join("run/chappe.pid")).unwrap();
    assert_eq!(there.permissions().mode() & 0o777, 0o600);
    drop(server);
    // One that an older version has left.
    let directory = fresh_dir("own_files_pid_left");
    fs::write(directory.join("chappe.toml"), configuration("")).unwrap();
    fs::create_dir(directory.join("run")).unwrap();
    let path = directory.join("run/chappe.pid");
    fs::write(&path, "1\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(finish(&mut command(&directory)).code, Some(0));
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    let stop = finish(command(&directory).args(["stop", "--wait"]));
    assert_eq!((mode & 0o777, stop.code), (0o600, Some(0)), "{stop:?}");
}

#[test]
fn who_may_only_read_the_pid_file_is_no_master() {
    let directory = fresh_dir("own_files_reader");
    fs::write(directory.join("chappe.toml"), configuration("")).unwrap();
    fs::create_dir(directory.join("run")).unwrap();
    let path = directory.join("run/chappe.pid");
    fs::write(&path, "1\n").unwrap();
    let stranger = File::open(&path).unwrap();
    lock(&stranger, libc::F_RDLCK);
    for arguments in [&["-s", "reopen"][..], &["-s", "stop"], &["status"]] {
        let said = refused(&directory, arguments);
        assert!(said.contains("no master is running"), "{said}");
    }
    let said = refused(&directory, &[]);
    let pid = std::process::id();
    assert!(said.contains(&format!("process {pid} has locked it for reading")), "{said}");
    assert!(said.contains("run/chappe.pid") && !said.contains("already running"), "{said}");
    drop(stranger);
    assert_eq!(finish(&mut command(&directory)).code, Some(0));
    assert_eq!(finish(command(&directory).args(["stop", "--wait"])).code, Some(0));
}

/// What is put at a path, and what is said of it.
fn put(path: &Path, what: &str) -> &'static str {
    let elsewhere = path.with_extension("elsewhere");
    match what {
        "fifo" => {
            mkfifo(path, Mode::S_IRWXU).expect("nothing is there");
            "is a FIFO, and must be a regular file"
        }
        "directory" => {
            fs::create_dir(path).expect("nothing is there");
            "is a directory, and must be a regular file"
        }
        "symlink" => {
            fs::write(&elsewhere, "precious\n").expect("nothing is there");
            symlink(&elsewhere, path).expect("nothing is there");
            "is a symbolic link, and must be a regular file"
        }
        "dangling" => {
            symlink(path.with_extension("nowhere"), path).expect("nothing is there");
            "is a symbolic link, and must be a regular file"
        }
        _ => {
            fs::write(&elsewhere, "precious\n").expect("nothing is there");
            fs::hard_link(&elsewhere, path).expect("nothing is there");
            "has 2 names (hard links), and must have one"
        }
    }
}

#[test]
fn a_start_opens_regular_files_of_its_own_and_nothing_else() {
    for name in ["logs/master.log", "logs/worker-1.log", "run/chappe.pid"] {
        for what in ["fifo", "directory", "symlink", "dangling", "link"] {
            let directory = fresh_dir("own_files_start");
            fs::write(directory.join("chappe.toml"), configuration("")).unwrap();
            fs::create_dir(directory.join("run")).unwrap();
            fs::create_dir(directory.join("logs")).unwrap();
            let path = directory.join(name);
            let expected = put(&path, what);
            let mut commands = vec![&[][..], &["--foreground"]];
            if name.ends_with("pid") && what != "link" {
                commands.push(&["-s", "stop"]);
            }
            for arguments in commands {
                let said = refused(&directory, arguments);
                assert!(said.contains(expected), "{what} {arguments:?}: {said}");
                assert!(said.contains(name), "{what} {arguments:?}: {said}");
            }
            let elsewhere = fs::read_to_string(path.with_extension("elsewhere"));
            assert_eq!(elsewhere.unwrap_or("precious\n".to_owned()), "precious\n");
            assert!(!path.with_extension("nowhere").exists());
        }
    }
}

#[test]
fn a_reopen_keeps_the_old_log_where_the_new_one_is_no_file() {
    let server = TestServer::start("own_files_reopen", "");
    let path = server.dir.join("logs/worker-0.log");
    for what in ["fifo", "symlink", "link"] {
        fs::remove_file(&path).unwrap();
        let expected = put(&path, what);
        let reopen = server.run(&["reopen", "--wait"]);
        assert_eq!(reopen.code, Some(1), "{reopen:?}");
        assert!(reopen.stderr.contains(expected), "{reopen:?}");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(server.run(&["reopen", "--wait"]).code, Some(0));
}

#[test]
fn what_is_no_log_is_left_out_of_the_logs_and_said() {
    let server = TestServer::start("own_files_logs", "");
    let logs = server.dir.join("logs");
    let mut expected = Vec::new();
    for (number, what) in (70..).zip(["fifo", "directory", "symlink"]) {
        let path = logs.join(format!("worker-{number}.log"));
        expected.push((format!("worker-{number}.log"), put(&path, what)));
    }
    mkfifo(&logs.join("master.log.1"), Mode::S_IRWXU).unwrap();
    let shown = server.run(&["logs", "-n", "100"]);
    assert_eq!(shown.code, Some(0), "{shown:?}");
    assert!(shown.stdout.contains("worker serves") && !shown.stdout.contains("precious"));
    for (name, why) in expected {
        let line = shown.stderr.lines().find(|line| line.contains(&name));
        assert!(line.is_some_and(|line| line.contains(why)), "{shown:?}");
    }
    assert!(shown.stderr.contains("master.log.1"), "{shown:?}");
    let only = server.run(&["logs", "-w", "70"]);
    assert_eq!((only.code, only.stdout.as_str()), (Some(1), ""), "{only:?}");
    assert!(only.stderr.contains("is a FIFO"), "{only:?}");
}

#[test]
fn a_control_socket_that_was_deleted_is_told_from_one_that_was_changed() {
    let server = TestServer::start("own_files_socket", "");
    fs::remove_file(server.dir.join("run/chappe.sock")).unwrap();
    for arguments in [&["status"][..], &["reload"], &["stop"]] {
        let said = refused(&server.dir, arguments);
        assert!(said.contains("run/chappe.sock was deleted"), "{said}");
        assert!(said.contains(&format!("pid {}", server.pid())), "{said}");
        assert!(said.contains("chappe -s") && !said.contains("was changed"), "{said}");
    }
    // What it says helps.
    assert_eq!(server.run(&["-s", "reload"]).code, Some(0));
    server.wait_event("master", "reload.done", "generation=2");
}

#[test]
fn a_start_without_proc_names_it() {
    let directory = fresh_dir("own_files_proc");
    fs::write(directory.join("chappe.toml"), configuration("")).unwrap();
    let hidden = "mount -t tmpfs none /proc && exec \"$0\" \"$@\"";
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "sh", "-c", hidden, &program("chappe"), "--foreground", "-p"])
        .arg(&directory);
    unshare.arg("-c").arg(directory.join("chappe.toml")).stdin(Stdio::null());
    let start = finish(&mut unshare);
    if start.stderr.contains("unshare: ") || start.stderr.contains("mount: ") {
        println!("skipped: no namespace can be made here");
        return;
    }
    assert_eq!((start.code, start.stdout.as_str()), (Some(1), ""), "{start:?}");
    let last = start.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("/proc/self/task") && last.contains("/proc mounted"), "{start:?}");
}
