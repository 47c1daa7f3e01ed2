//! Where a running server is found, whatever has happened to its file since it started.
//!
//! A server that runs must be reached with a file that a reload would refuse: above all to be
//! stopped. So of the files only a few paths count here, mistakes become a warning, and what the
//! parser can save of a broken file is taken. Overrides are as strict as ever: one that
//! is typed is meant for this call.

use std::path::{Path, PathBuf};

use super::files::{self, Broken, Reader};
use super::place::Notes;
use super::settings::Settings;
use super::{Config, ConfigErrors, absolute_prefix, check, overrides};

/// What a command has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// `control_socket`.
    ControlSocket,
    /// `pid_file`.
    PidFile,
    /// `log.directory`.
    Logs,
}

impl Need {
    fn key(self) -> &'static str {
        match self {
            Self::ControlSocket => "control_socket",
            Self::PidFile => "pid_file",
            Self::Logs => "log.directory",
        }
    }
}

/// The paths by which a server is reached, all of them absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Located {
    /// The file that holds the master's pid and its lock.
    pub(crate) pid_file: PathBuf,
    /// The Unix socket through which commands reach the master.
    pub(crate) control_socket: PathBuf,
    /// The directory of the logs.
    pub(crate) log_directory: PathBuf,
    /// What is wrong with the files, in one line, and what was made of that.
    pub(crate) warning: Option<String>,
}

impl From<&Config> for Located {
    fn from(config: &Config) -> Self {
        Self {
            pid_file: config.pid_file.clone(),
            control_socket: config.control_socket.clone(),
            log_directory: config.log.directory.clone(),
            warning: None,
        }
    }
}

impl Located {
    fn of(&self, need: Need) -> &Path {
        match need {
            Need::ControlSocket => &self.control_socket,
            Need::PidFile => &self.pid_file,
            Need::Logs => &self.log_directory,
        }
    }
}

/// Loads the configuration, like [`load`](super::load), but a file with mistakes is no failure as
/// long as it exists.
///
/// A file that is not there, or has no text, is one: it tells of a wrong directory or a slip in
/// the file's name, and the defaults could name another server. Nor is there a guess where a
/// broken file names the key and its value cannot be had. `need` may then be overridden.
///
/// # Errors
/// All mistakes of the overrides; or what is wrong with the file, if nothing can be had of it.
pub(crate) fn locate(
    path: &Path,
    prefix: &Path,
    overrides: &[String],
    need: Need,
) -> Result<Located, ConfigErrors> {
    let mut settings = Settings::default();
    let (mut unread, mut faults) = (Notes::default(), Notes::default());
    let is_there = Reader::new(&mut settings, &mut unread, Broken::Salvage).file(path, None);
    overrides::apply(overrides, &mut settings, &mut faults);
    files::check_listeners(&settings, &mut faults);
    let mut wrong = Notes::default();
    let prefix = absolute_prefix(prefix, &mut wrong);
    wrong.into_result()?;
    let is_partial = settings.is_partial;
    let written = settings.keys.get(need.key()).map(|setting| setting.place.clone());
    let is_overridden = written.as_ref().is_some_and(|place| place.origin.is_override());
    let config = check::check(settings, &prefix, &mut faults, &mut Notes::default());
    let (faults, of_overrides) = faults.split();
    of_overrides.into_result()?;

    let mut located = Located::from(&config);
    let key = need.key();
    // A value that was refused does not count, and a name that is wrong may have been meant for this.
    let is_unsure = !is_overridden
        && match &written {
            Some(place) => is_partial || faults.has(place),
            None => !unread.is_empty(),
        };
    // What a broken file has lost leads to mistakes that aren't there.
    if !is_partial {
        unread.append(faults);
    }
    let Some(fault) = unread.into_lines().into_iter().next() else { return Ok(located) };
    // Only a file that was read can be read again: a pipe would be waited for.
    let is_lost = is_there && written.is_none() && is_partial && mentions(path, key);
    if (!is_there || is_lost) && !is_overridden {
        let hint = format!("{fault}; a server can be found by --set {key}=PATH all the same");
        return Err(ConfigErrors::one(hint));
    }
    let made_of_it = if is_unsure {
        format!("{key} is taken to be {}", located.of(need).display())
    } else {
        "a start or a reload would be refused".to_owned()
    };
    located.warning = Some(format!("{fault}; {made_of_it}"));
    Ok(located)
}

/// Whether the file names the key, in whatever table, outside of comments.
fn mentions(path: &Path, key: &str) -> bool {
    let name = key.rsplit('.').next().unwrap_or(key);
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().any(|line| line.split('#').next().is_some_and(|code| code.contains(name)))
}
