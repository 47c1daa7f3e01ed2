//! What is reported to the service manager, as sd_notify(3) has it: lines in a
//! datagram to the Unix socket that NOTIFY_SOCKET names, a path or, after `@`, an
//! abstract name. The crate `sd-notify` knows paths only, and its sends can block;
//! the master must not.
//!
//! Nobody has to listen: a report that fails is logged by the caller and forgotten.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// How often signs of life are given at the most: a manager that waits for less than twice
/// this is one that makes a mistake, and must not be served by a loop that does nothing else.
const PING_PAUSE_MIN: Duration = Duration::from_millis(10);

/// The line to the service manager, and the pulse that it expects.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    manager: SocketAddr,
    watchdog: Option<Watchdog>,
}

#[derive(Clone, Copy, Debug)]
struct Watchdog {
    /// A half of the time after which the manager would kill us.
    every: Duration,
    due: Instant,
}

impl Notifier {
    /// The line that the environment names, if there is one. To be called in the
    /// process that was started: the watchdog waits for that one.
    ///
    /// # Errors
    /// When the address makes no sense, or there is no descriptor left.
    pub fn from_environment() -> io::Result<Option<Self>> {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(None);
        };
        let ours = env::var("WATCHDOG_PID")
            .map_or(Ok(true), |pid| pid.parse().map(|pid: u32| pid == std::process::id()));
        let limit = env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        let limit = limit.filter(|_| ours == Ok(true)).map(Duration::from_micros);
        Self::new(&name, limit).map(Some)
    }

    fn new(name: &OsStr, limit: Option<Duration>) -> io::Result<Self> {
        let manager = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path if path.starts_with(b"/") => SocketAddr::from_pathname(name)?,
            _ => {
                let text = "NOTIFY_SOCKET is neither an absolute path nor an abstract name";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let watchdog = limit
            .filter(|limit| !limit.is_zero())
            .map(|limit| Watchdog { every: (limit / 2).max(PING_PAUSE_MIN), due: Instant::now() });
        Ok(Self { socket, manager, watchdog })
    }

    /// Tells something: lines such as `READY=1`. Never sleeps.
    ///
    /// # Errors
    /// Nobody listens, or the manager is behind with its reading.
    pub fn tell(&self, lines: &str) -> io::Result<()> {
        self.socket.send_to_addr(lines.as_bytes(), &self.manager).map(drop)
    }

    /// When the next sign of life is due.
    #[must_use]
    pub fn next_ping(&self) -> Option<Instant> {
        self.watchdog.map(|watchdog| watchdog.due)
    }

    /// Gives a sign of life, if one is due.
    ///
    /// # Errors
    /// Those of [`tell`](Self::tell); the next one is due as if it had been told.
    pub fn ping(&mut self, now: Instant) -> io::Result<()> {
        match &mut self.watchdog {
            Some(watchdog) if watchdog.due <= now => {
                watchdog.due = now + watchdog.every;
                self.tell("WATCHDOG=1")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 200];
        let bytes = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..bytes]).into_owned()
    }

    #[test]
    fn lines_reach_a_path_and_an_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        Notifier::new(path.as_os_str(), None).unwrap().tell("READY=1\n").unwrap();
        assert_eq!(heard(&by_path), "READY=1\n");

        let name = format!("chappe-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        let notifier = Notifier::new(OsStr::new(&format!("@{name}")), None).unwrap();
        notifier.tell("STATUS=up\n").unwrap();
        assert_eq!(heard(&by_name), "STATUS=up\n");
        assert!(Notifier::new(OsStr::new("relative"), None).is_err());
    }

    #[test]
    fn the_watchdog_is_fed_at_half_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut notifier = Notifier::new(path.as_os_str(), Some(Duration::from_secs(10))).unwrap();
        let start = notifier.next_ping().unwrap();
        notifier.ping(start).unwrap();
        assert_eq!(heard(&manager), "WATCHDOG=1");
        assert_eq!(notifier.next_ping(), Some(start + Duration::from_secs(5)));
        notifier.ping(start + Duration::from_secs(4)).unwrap();
        manager.set_nonblocking(true).unwrap();
        assert!(manager.recv(&mut [0; 9]).is_err(), "not due yet");
    }

    #[test]
    fn no_watchdog_makes_signs_of_life_come_closer_than_the_shortest_pause() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let mut notifier = Notifier::new(path.as_os_str(), Some(Duration::from_micros(1))).unwrap();
        let start = notifier.next_ping().unwrap();
        let mut pings = 0;
        for ms in 0..100 {
            notifier.ping(start + Duration::from_millis(ms)).unwrap();
            pings += u32::from(manager.recv(&mut [0; 20]).is_ok());
        }
        assert_eq!(pings, 10, "in 100 ms");
    }

    #[test]
    fn a_manager_that_does_not_read_never_blocks_us() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(path.as_os_str(), None).unwrap();
        let refused = (0..100_000).find_map(|_| notifier.tell("STATUS=x").err());
        assert_eq!(refused.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
