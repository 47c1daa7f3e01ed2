//! Start-up order, and what each call of the command line comes to.
//!
//! The only place that sees both sides: it hands the workers' function to the
//! master, which never names it. Runs in the launcher, before there is a thread or
//! a worker; after `start` has come back the process is a master that has ended.

#[cfg(feature = "bench")]
mod bench;
mod commands;
mod descriptors;
mod identity;
mod launcher;
mod listeners;
mod master_client;
mod start;
mod target;
#[cfg(feature = "top")]
mod top;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use chappe_shm::Catalog;
use chappe_sys::process::ExitReason;
use clap::error::ErrorKind;
use thiserror::Error;

use crate::cli::{self, Arguments, Command, Common};
use crate::config::{self, ConfigErrors, Loaded, Located, Need};
use crate::control::Request;
use crate::handler::Definition;
use crate::master::{Assignment, PidFileError};
use crate::program::{self, Program};
use crate::worker;

// There are slots for all workers of all generations that can be alive.
const _: () =
    assert!(chappe_shm::GENERATIONS * config::WORKER_PROCESSES_MAX as usize <= chappe_shm::SLOTS);

/// Done.
const DONE: u8 = 0;
/// Anything that failed, other than the following.
const FAILED: u8 = 1;
/// A wrong command line or a wrong configuration.
const WRONG_INPUT: u8 = 2;

/// Why a call failed; `Display` is what the person gets to see.
#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Listen(#[from] crate::listen::ListenError),
    #[error(transparent)]
    Logging(#[from] crate::logging::LoggingError),
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    #[error(transparent)]
    Start(#[from] crate::master::StartError),
    #[error("{step}: {cause}")]
    System { step: String, cause: std::io::Error },
    #[error(transparent)]
    Daemonize(#[from] daemonize::Error),
    /// `new` has not made one.
    #[error("{0}")]
    Project(String),
    /// The server has found the configuration wrong.
    #[error("{0}")]
    RefusedConfig(String),
    /// The server says why.
    #[error("{0}")]
    Refused(String),
}

impl Failure {
    fn system(step: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let step = step.into();
        move |cause| Self::System { step, cause }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::RefusedConfig(_) => WRONG_INPUT,
            _ => FAILED,
        }
    }
}

/// The whole command line of the server, with an application. Here
/// the two paths are joined: what the master assigns is what a worker starts with.
pub(crate) fn main(definition: &dyn Definition) -> ExitCode {
    let check = |loaded: &Loaded| definition.check(loaded).map_err(of_an_application);
    let run_worker = |assignment| {
        let Assignment { number, generation, slot, channel, listeners, config, topics } =
            assignment;
        worker::run(worker::Start {
            number,
            generation,
            slot,
            channel,
            listeners,
            config,
            topics,
            definition,
        })
    };
    let catalog = &definition.catalog();
    run_hosted(std::env::args_os(), Hosted { check: &check, run_worker: &run_worker, catalog })
}

/// The stock program has no application: such a file is that of another program.
fn of_an_application(errors: ConfigErrors) -> ConfigErrors {
    let Program { name, is_stock, .. } = program::get();
    if !is_stock {
        return errors;
    }
    ConfigErrors::one(format!(
        "{errors}; [application] belongs to an application, which is a program of its own: start it, \
         or check the file, with that program and not with `{name}`"
    ))
}

/// Does what the command line asks for, with workers that run `run_worker`. The first of
/// `arguments` is the program's name. Returns the exit code.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    run_worker: impl Fn(Assignment) -> ExitReason,
) -> ExitCode {
    let (run_worker, catalog) = (&run_worker, &Catalog::default());
    run_hosted(arguments, Hosted { check: &|_| Ok(()), run_worker, catalog })
}

/// What an application has against a configuration.
type Check<'a> = &'a dyn Fn(&Loaded) -> Result<(), ConfigErrors>;

/// What the workers run, as far as a start needs it.
#[derive(Clone, Copy)]
struct Hosted<'a> {
    check: Check<'a>,
    run_worker: &'a dyn Fn(Assignment) -> ExitReason,
    catalog: &'a Catalog,
}

fn run_hosted(arguments: impl IntoIterator<Item = OsString>, hosted: Hosted<'_>) -> ExitCode {
    let parsed = cli::parse(arguments).and_then(Arguments::checked);
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help goes to stdout and mistakes to stderr; either may be closed.
            let _ = error.print();
            let asked_for = matches!(error.kind(), ErrorKind::DisplayHelp);
            return ExitCode::from(if asked_for { DONE } else { WRONG_INPUT });
        }
    };
    match act(&arguments, hosted) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            print_error(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    }
}

fn act(arguments: &Arguments, hosted: Hosted<'_>) -> Result<u8, Failure> {
    let common = &arguments.common;
    let done = if arguments.version || arguments.build {
        commands::version(arguments.build)
    } else if arguments.test || arguments.dump {
        commands::test(arguments, hosted.check)
    } else if let Some(signal) = arguments.signal {
        commands::signal(common, signal)
    } else {
        match &arguments.command {
            // These have exit codes of their own.
            Some(Command::Send(send)) => return commands::send(common, send),
            Some(Command::Subscribe(topics)) => return commands::subscribe(common, topics),
            Some(Command::Publish(publish)) => return commands::publish(common, publish),
            #[cfg(feature = "bench")]
            Some(Command::Bench(bench)) => return bench::bench(common, bench),
            None => start::start(arguments, hosted),
            Some(Command::New(project)) => commands::new(project),
            Some(Command::Connections(list)) => commands::connections(common, *list),
            Some(Command::Topics(list)) => commands::topics(common, *list),
            Some(Command::Kick { id }) => commands::tell(common, Request::Kick { id: *id }),
            Some(Command::Logs(logs)) => commands::logs(common, *logs),
            Some(Command::LogLevel { level }) => {
                commands::tell(common, Request::LogLevel { level: *level })
            }
            Some(Command::Reopen { wait }) => {
                commands::tell(common, Request::Reopen { wait: *wait })
            }
            Some(Command::Status(status)) => commands::status(common, *status),
            #[cfg(feature = "top")]
            Some(Command::Top) => top::top(common),
            Some(Command::Stop(stop)) => commands::stop(common, Request::Stop {}, *stop),
            Some(Command::Reload) => commands::reload(common),
            Some(Command::Quit(stop)) => commands::stop(common, Request::Quit {}, *stop),
        }
    };
    done.map(|()| DONE)
}

/// A message for a person, each of its lines marked as ours.
fn print_error(text: &str) {
    use std::io::Write;
    let mut err = std::io::stderr().lock();
    for line in text.lines() {
        // A closed stderr leaves nobody to tell.
        let _ = writeln!(err, "{}: {line}", program::get().name);
    }
}

/// The prefix as an absolute path, and the configuration file under it.
fn paths(common: &Common) -> Result<(PathBuf, PathBuf), Failure> {
    let prefix = common.prefix.clone().unwrap_or_else(|| PathBuf::from("."));
    let prefix = std::path::absolute(&prefix)
        .map_err(Failure::system(format!("prefix {}", prefix.display())))?;
    let file = prefix.join(&common.config);
    Ok((prefix, file))
}

fn load(common: &Common) -> Result<Loaded, Failure> {
    let (prefix, file) = paths(common)?;
    Ok(config::load(&file, &prefix, &common.set)?)
}

/// Where the running server is. Mistakes in its file are printed as warnings, and no reason to fail.
fn locate(common: &Common, need: Need) -> Result<Located, Failure> {
    let located = locate_quietly(common, need)?;
    warn_of(&located);
    Ok(located)
}

fn locate_quietly(common: &Common, need: Need) -> Result<Located, Failure> {
    let (prefix, file) = paths(common)?;
    Ok(config::locate(&file, &prefix, &common.set, need)?)
}

fn warn_of(located: &Located) {
    if let Some(warning) = &located.warning {
        print_error(&format!("warning: {warning}"));
    }
}

/// Writes to standard output.
fn say(line: &str) -> Result<(), Failure> {
    cli::print_line(line).map(drop).map_err(Failure::system("standard output"))
}
