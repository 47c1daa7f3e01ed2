//! `chappe top`: the terminal, and the looks at the master.
//!
//! Two threads: this one has the screen and the keys and never waits for the master;
//! the other asks it once a second, as `status` and `connections --slow` do.
//!
//! Keys are read here and not by the library that draws: its reader takes the end of a
//! terminal for nothing, and tries again without a pause.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal, Read};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use chappe_sys::Usage;
use chappe_sys::signals::Signals;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use ratatui::DefaultTerminal;

use super::master_client::{self, MasterClient};
use super::{Failure, locate};
use crate::cli::{Common, Key, Sample, Top, keys_of};
use crate::config::{Located, Need};
use crate::control::Request;
use crate::program;

/// How often the master is asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How soon an answer, or another size of the screen, is noticed; a key or a signal is at
/// once.
const TURN_MS: u8 = 100;
/// What else ends it. The screen is given back for each of them.
const STOPPING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];

pub(super) fn top(common: &Common) -> Result<(), Failure> {
    let located = locate(common, Need::ControlSocket)?;
    if !io::stdout().is_terminal() {
        return Err(Failure::Refused(format!(
            "top needs a terminal; `{} status --watch` works without one",
            program::get().name
        )));
    }
    let mut signals = Signals::new(&STOPPING).map_err(Failure::system("signal handlers"))?;
    let mut keys = keys().map_err(Failure::system("terminal"))?;
    let samples = look(located).map_err(Failure::system("a thread"))?;
    // From here on a panic gives the screen back, too.
    let mut terminal = ratatui::try_init().map_err(Failure::system("terminal"))?;
    let result = show(&mut terminal, &mut keys, &samples, &mut signals);
    let restored = ratatui::try_restore();
    if restored.is_err() {
        // It has a cursor to show, and tells of a terminal that does not show it by a panic.
        std::mem::forget(terminal);
    }
    result.and(restored).map_err(Failure::system("terminal"))
}

/// Where keys come from: the terminal whose settings were changed to get them one by one.
fn keys() -> io::Result<File> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return stdin.as_fd().try_clone_to_owned().map(File::from);
    }
    File::open("/dev/tty")
}

fn show(
    terminal: &mut DefaultTerminal,
    keys: &mut File,
    samples: &Receiver<Result<Sample, String>>,
    signals: &mut Signals,
) -> io::Result<()> {
    let mut top = Top::new(thread::available_parallelism().map_or(0, usize::from));
    loop {
        // What is as before is not written again.
        terminal.draw(|frame| top.draw(frame))?;
        let mut fds = [
            PollFd::new(keys.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        let has_keys = match poll(&mut fds, PollTimeout::from(TURN_MS)) {
            Ok(_) => fds[0].any().unwrap_or(false),
            Err(nix::errno::Errno::EINTR) => false,
            Err(errno) => return Err(errno.into()),
        };
        let pressed = if has_keys { typed(keys)? } else { Vec::new() };
        if !signals.pending().is_empty() || pressed.into_iter().any(|key| top.press(key)) {
            return Ok(());
        }
        samples.try_iter().for_each(|heard| top.hear(heard));
    }
}

/// The keys that were typed.
fn typed(keys: &mut File) -> io::Result<Vec<Key>> {
    let mut typed = [0; 256];
    match keys.read(&mut typed) {
        Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "it was closed")),
        Ok(bytes) => Ok(keys_of(&typed[..bytes])),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Looks until nobody wants to see any more. The process does not wait for its end.
fn look(located: Located) -> io::Result<Receiver<Result<Sample, String>>> {
    let (seen, samples) = sync_channel(1);
    thread::Builder::new().name("look".to_owned()).spawn(move || {
        while seen.send(sample(&located).map_err(|failure| failure.to_string())).is_ok() {
            sleep(LOOK_EVERY);
        }
    })?;
    Ok(samples)
}

fn sample(located: &Located) -> Result<Sample, Failure> {
    let status = master_client::status(located)?;
    let at = Instant::now();
    let slow = Request::Connections { slow: true };
    let slow = MasterClient::connect(located).and_then(|client| client.list(slow));
    let slow = slow.map(|(_, lines)| lines).map_err(|failure| failure.to_string());
    let slow = slow.as_deref().map_err(Clone::clone);
    // Where another user's processes can't be looked at, the columns stay empty.
    let used = |pid: u32| Some((pid, Usage::of(&[i32::try_from(pid).ok()?])?));
    let usage = Sample::pids(&status).into_iter().filter_map(used).collect();
    Ok(Sample::new(at, status, slow, usage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_has_ended_is_an_error() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut keys = File::from(reader);
        nix::unistd::write(&writer, b"x").unwrap();
        assert_eq!(typed(&mut keys).unwrap(), [Key::Letter(b'x')]);
        drop(writer);
        assert_eq!(typed(&mut keys).unwrap_err().to_string(), "it was closed");
    }
}
