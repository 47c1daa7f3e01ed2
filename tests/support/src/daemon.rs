//! A server in the background.

use std::net::SocketAddr;
use std::ops::Deref;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::site::{Finished, Site};
use super::wait::wait_until;

/// A server that went to the background. Dropping it kills what is left of it.
#[derive(Debug)]
pub struct Daemon {
    site: Site,
    /// How the launcher ended.
    pub start: Finished,
    /// The master's process id.
    pub master: i32,
}

impl Site {
    /// Starts the program in the background; returns when its launcher has ended.
    #[track_caller]
    pub fn start_daemon(&self) -> Daemon {
        let start = self.run(&[]);
        let pid_file = self.read("run/chappe.pid");
        let master = pid_file.trim().parse().unwrap_or_else(|_| {
            panic!("no pid in {pid_file:?}: {start:?}\n{}", self.log("master"))
        });
        Daemon { site: self.clone(), start, master }
    }

    /// Processes that have a file of this directory open, whatever their parent is by now.
    pub fn processes(&self) -> Vec<Pid> {
        let dir = self.dir.to_string_lossy();
        let has_file_open = |number: &i32| {
            let Ok(fds) = std::fs::read_dir(format!("/proc/{number}/fd")) else { return false };
            fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
                .any(|target| target.to_string_lossy().starts_with(&*dir))
        };
        let entries = std::fs::read_dir("/proc").expect("/proc is there");
        let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        numbers.filter(has_file_open).map(Pid::from_raw).collect()
    }

    /// Waits until no process of a server is left here, and checks its files.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        wait_until("nothing is left running", || self.processes().is_empty());
        assert!(!self.path("run/chappe.pid").exists());
        assert!(!self.path("run/chappe.sock").exists());
    }
}

impl Daemon {
    /// The address in the line that the launcher printed.
    pub fn address(&self) -> SocketAddr {
        let mut words = self.start.stdout.split(|c: char| c.is_whitespace() || c == ',');
        words.find_map(|word| word.parse().ok()).expect("an address")
    }
}

impl Deref for Daemon {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _gone = kill(pid, Signal::SIGKILL);
        }
        if std::thread::panicking() {
            self.print_files(&["chappe.toml"]);
        } else {
            wait_until("the daemon is gone", || self.processes().is_empty());
        }
    }
}
