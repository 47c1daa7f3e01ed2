//! From the command line to a serving master, in one function.
//!
//! What can fail with a plain reason comes first, while there is a terminal to say
//! it on: configuration, a second instance, descriptors, ports, logs. The lock of
//! the pid file comes after daemonizing: it does not survive a fork, so the process
//! that goes on must take it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use chappe_sys::activation;
use chappe_sys::notify::Notifier;
use chappe_sys::process::{self, ExitReason};
use chappe_sys::stderr::Stderr;

use super::descriptors;
use super::identity::{self, Become};
use super::launcher::{self, Report, Side};
use super::listeners;
use super::{Failure, Hosted, load, paths, say};
use crate::cli::{Arguments, Common};
use crate::config::{self, Address, Config, ConfigErrors, Loaded};
use crate::listen::{Bound, Passed};
use crate::logging::{self, Copies, Role};
use crate::master::{self, ControlSocket, PidFile, PidFileError, Setup, Site};
use crate::program;

/// What is open before the process leaves the terminal.
struct Prepared {
    common: AtStart,
    /// What the master gets.
    setup: Setup,
    master_log: Arc<std::fs::File>,
    /// Whom workers become, for the log.
    workers_are: Option<String>,
}

impl Prepared {
    /// All that a daemon goes on with.
    fn descriptors<'a>(&'a self, report: &'a Report) -> Vec<BorrowedFd<'a>> {
        let mut kept = vec![report.as_fd(), self.master_log.as_fd()];
        let Setup { worker_logs, listeners, metrics, .. } = &self.setup;
        kept.extend(worker_logs.iter().map(|log| log.as_fd()));
        kept.extend(listeners.iter().chain(metrics).flat_map(Bound::descriptors));
        kept
    }
}

pub(super) fn start(arguments: &Arguments, hosted: Hosted<'_>) -> Result<(), Failure> {
    chappe_sys::signals::ignore_file_size_signal().map_err(Failure::system("SIGXFSZ"))?;
    chappe_sys::signals::report_children().map_err(Failure::system("SIGCHLD"))?;
    let prepared = prepare(arguments, hosted)?;
    if prepared.setup.copies != Copies::None {
        return become_master(prepared, hosted, |addresses, _config| {
            // A parent that has closed the pipe does not want to know.
            let _ = say(&format!("ready {}", join(addresses)));
            Ok(())
        });
    }
    // In the foreground they come with the copy of the log.
    for warning in &prepared.setup.warnings {
        super::print_error(&format!("warning: {warning}"));
    }
    match launcher::daemonize()? {
        Side::Launcher(line) => {
            let mut prepared = prepared;
            prepared.setup.listeners.iter_mut().for_each(Bound::leave_file);
            // The server runs, whether or not this line can be printed.
            if let Err(failure) = say(&line) {
                super::print_error(&format!("{failure}, but: {line}"));
            }
            Ok(())
        }
        Side::Daemon(report) => process::run_daemon(|forked| {
            // What the parent process had open must not live as long as the server: a lock,
            // a pipe that somebody reads to its end.
            let streams = (io::stdin(), io::stdout(), io::stderr());
            let mut kept = prepared.descriptors(&report);
            kept.extend([streams.0.as_fd(), streams.1.as_fd(), streams.2.as_fd()]);
            let closed = process::close_all_except(&forked, &kept);
            drop(kept);
            match closed {
                Ok(()) => become_daemon(prepared, hosted, report),
                Err(error) => {
                    report.failed(&format!("cannot close inherited descriptors: {error}"));
                    ExitReason::Failed
                }
            }
        }),
    }
}

/// All that can be opened and checked on the terminal.
fn prepare(arguments: &Arguments, hosted: Hosted<'_>) -> Result<Prepared, Failure> {
    let mut loaded = load(&arguments.common)?;
    (hosted.check)(&loaded)?;
    refuse_threads()?;
    let is_foreground = arguments.foreground || !loaded.config.daemon;
    if !is_foreground && activation::is_there() {
        return Err(Failure::Refused(
            "sockets were passed (LISTEN_FDS), but a daemon is not the process that they were \
             passed to: start with --foreground"
                .to_owned(),
        ));
    }
    refuse_second_instance(&loaded.config)?;
    let mut warnings = std::mem::take(&mut loaded.warnings);
    let whom = identity::of(&loaded)?;
    let workers_are = identity::said(&loaded, &whom);
    let identity = match whom {
        Become::Somebody(identity) => Some(identity),
        Become::Nobody => None,
        Become::Ignored(warning) => {
            warnings.push(warning);
            None
        }
    };
    warnings.extend(descriptors::raise_limit());
    warnings.extend(descriptors::warnings(&loaded.config));
    let passed = if is_foreground { Passed::take()? } else { Vec::new() };
    let listeners = listeners::open(&loaded, passed)?;
    let metrics = listeners::open_metrics(&loaded)?;
    let config = Arc::new(loaded.config);
    let directory = &config.log.directory;
    let master_log = logging::open(directory, Role::Master)?;
    let worker_logs = (0..config.effective_worker_processes())
        .map(|number| logging::open(directory, Role::Worker(number)))
        .collect::<Result<Vec<_>, _>>()?;
    let manager = match is_foreground.then(Notifier::from_environment) {
        None => None,
        Some(Ok(manager)) => manager,
        Some(Err(error)) => {
            warnings.push(format!("the service manager cannot be notified: {error}"));
            None
        }
    };
    let copies = if is_foreground { Copies::Stderr(Stderr::prepare()) } else { Copies::None };
    let common = AtStart::new(&arguments.common)?;
    let catalog = hosted.catalog.clone();
    let setup = Setup {
        config,
        catalog,
        listeners,
        worker_logs,
        metrics,
        copies,
        warnings,
        identity,
        manager,
    };
    Ok(Prepared { common, setup, master_log, workers_are })
}

/// Where the configuration is, for a reload: the working directory may become another
/// than that of the shell that started it.
struct AtStart {
    prefix: PathBuf,
    file: PathBuf,
    overrides: Vec<String>,
}

impl AtStart {
    fn new(common: &Common) -> Result<Self, Failure> {
        let (prefix, file) = paths(common)?;
        Ok(Self { prefix, file, overrides: common.set.clone() })
    }

    fn load(&self) -> Result<Loaded, ConfigErrors> {
        config::load(&self.file, &self.prefix, &self.overrides)
    }
}

/// A fork copies the locks that other threads hold, and not the threads that would let go.
fn refuse_threads() -> Result<(), Failure> {
    let count = process::current_thread_count().map_err(|cause| {
        let text = format!("cannot read /proc/self/task: {cause}; a server needs /proc mounted");
        Failure::Refused(text)
    })?;
    if count == 1 {
        return Ok(());
    }
    Err(Failure::Refused(format!(
        "the program has {} threads besides the first one, but a server forks: start threads in \
         Service::start, after the fork",
        count - 1
    )))
}

/// The record lock is asked, not taken: the launcher's would be gone with it.
fn refuse_second_instance(config: &Config) -> Result<(), Failure> {
    match PidFile::holder(&config.pid_file) {
        Ok(pid) => {
            let path = config.pid_file.display().to_string();
            Err(PidFileError::Held { path, pid }.into())
        }
        Err(PidFileError::NotRunning(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn become_daemon(prepared: Prepared, hosted: Hosted<'_>, report: Report) -> ExitReason {
    let mut report = Some(report);
    let result = become_master(prepared, hosted, |addresses, config| {
        let heard = report.take().map_or(Ok(()), |report| {
            report.ready(&format!(
                "{} started: listening on {}, master pid {}, logs in {}",
                program::get().name,
                join(addresses),
                std::process::id(),
                config.log.directory.display(),
            ))
        });
        // Nobody looks at the terminal's stderr any more; the log has it all. What
        // can fail here is opening /dev/null, and then stderr just stays.
        let _ = process::redirect_stderr_to_null();
        heard
    });
    match result {
        Ok(()) => ExitReason::Stopped,
        Err(failure) => {
            if let Some(report) = report {
                report.failed(&failure.to_string());
            }
            ExitReason::Failed
        }
    }
}

/// In the process that stays: lock, control socket, log; then it is the master.
fn become_master(
    prepared: Prepared,
    hosted: Hosted<'_>,
    on_ready: impl FnOnce(&[Address], &Config) -> io::Result<()>,
) -> Result<(), Failure> {
    let Prepared { common, mut setup, master_log, workers_are } = prepared;
    setup.listeners.iter_mut().for_each(Bound::own_file);
    let config = Arc::clone(&setup.config);
    let pid_file = PidFile::lock(&config.pid_file)?;
    let result = (|| {
        logging::init(Role::Master, master_log, config.log.level, setup.copies)?;
        for warning in &setup.warnings {
            log::warn!(target: "config.warning", "{warning}");
        }
        if let Some(text) = workers_are {
            log::info!(target: "workers.user", "{text}");
        }
        // Titles are a comfort: a server without them is a server.
        if let Err(error) = chappe_sys::prepare_title() {
            log::warn!(target: "setting.no_effect", "process titles are not available: {error}");
        }
        program::set_title("master process");
        // Relative paths of the application mean what all others in the configuration mean.
        std::env::set_current_dir(&common.prefix)
            .map_err(Failure::system(format!("prefix {}", common.prefix.display())))?;
        let path = &config.control_socket;
        let control = ControlSocket::bind(path)
            .map_err(Failure::system(format!("control socket {}", path.display())))?;
        let load = || {
            let loaded = common.load()?;
            (hosted.check)(&loaded)?;
            Ok(loaded)
        };
        let site = Site { load: &load, warnings: &descriptors::warnings };
        master::run(setup, control, site, hosted.run_worker, |addresses| {
            on_ready(addresses, &config)
        })?;
        Ok(())
    })();
    pid_file.remove();
    result
}

fn join(addresses: &[Address]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
