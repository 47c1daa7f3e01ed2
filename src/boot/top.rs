//! `chappe top`: the terminal, and the looks at the master.
//!
//! Two threads: this one has the screen and the keys and never waits for the master;
//! the other asks it once a second, as `status` and `connections --slow` do.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use chappe_sys::signals::Signals;
use nix::sys::signal::Signal;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::master_client::{self, MasterClient};
use super::{Failure, locate};
use crate::cli::{Common, Sample, Top};
use crate::config::{Located, Need};

/// How often the master is asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How soon an answer or a signal is noticed; a key is at once.
const TURN_TIME_MAX: Duration = Duration::from_millis(100);
/// What else ends it. The screen is given back for each of them.
const STOPPING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];

pub(super) fn top(common: &Common) -> Result<(), Failure> {
    let located = locate(common, Need::ControlSocket)?;
    if !io::stdout().is_terminal() {
        return Err(Failure::Refused(
            "top needs a terminal; `chappe status --watch` writes to anything".to_owned(),
        ));
    }
    let mut signals = Signals::new(&STOPPING).map_err(Failure::system("signal handlers"))?;
    let samples = look(located).map_err(Failure::system("a thread"))?;
    // From here on a panic gives the screen back, too.
    let mut terminal = ratatui::try_init().map_err(Failure::system("terminal"))?;
    let result = show(&mut terminal, &samples, &mut signals);
    let restored = ratatui::try_restore();
    result.and(restored).map_err(Failure::system("terminal"))
}

fn show(
    terminal: &mut DefaultTerminal,
    samples: &Receiver<Result<Sample, String>>,
    signals: &mut Signals,
) -> io::Result<()> {
    let mut top = Top::default();
    loop {
        // What is as before is not written again.
        terminal.draw(|frame| top.draw(frame))?;
        if event::poll(TURN_TIME_MAX)? && is_end(&event::read()?) {
            return Ok(());
        }
        if !signals.pending().is_empty() {
            return Ok(());
        }
        samples.try_iter().for_each(|heard| top.hear(heard));
    }
}

/// A terminal in raw mode makes no signal of Ctrl-C.
fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('q') | KeyCode::Esc => true,
            KeyCode::Char('c') => is_control,
            _ => false,
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
    let slow = MasterClient::connect(located).and_then(|client| client.list(true));
    let slow = slow.map(|(_, lines)| lines).map_err(|failure| failure.to_string());
    Ok(Sample::new(at, status, slow.as_deref().map_err(Clone::clone)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    #[test]
    fn q_escape_and_control_c_end_it_and_nothing_else_does() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        for end in [
            key(KeyCode::Char('q'), KeyModifiers::NONE),
            key(KeyCode::Esc, KeyModifiers::NONE),
            key(KeyCode::Char('c'), KeyModifiers::CONTROL),
        ] {
            assert!(is_end(&end), "{end:?}");
        }
        for other in [
            key(KeyCode::Char('c'), KeyModifiers::NONE),
            key(KeyCode::Char('x'), KeyModifiers::CONTROL),
            Event::Resize(80, 24),
            Event::FocusLost,
        ] {
            assert!(!is_end(&other), "{other:?}");
        }
    }
}
