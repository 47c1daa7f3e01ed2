//! Calls that start nothing: they look at the configuration, or ask the master.

use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use chappe_sys::process::WatchedProcess;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;

use super::identity::{self, Become};
use super::master_client::MasterClient;
use super::target::destination;
use super::{Failure, descriptors, load, locate, locate_quietly, paths, say, warn_of};
use crate::cli::{
    self, Arguments, Common, ConnectionsArgs, LogsArgs, PublishArgs, Rows, SendArgs, SignalName,
    StatusArgs, StopArgs, SubscribeArgs, Topics, TopicsArgs,
};
use crate::config::{ConfigErrors, Located, Need};
use crate::control::{self, Accepted, Reloaded, ReplyError, Request, Status};
use crate::master::{PidFile, PidFileError};
use crate::program::{self, Program};

/// How often `stop --wait` looks at a lock.
const LOCK_LOOK: Duration = Duration::from_millis(20);
/// How often `status --watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);

pub(super) fn version(with_build: bool) -> Result<(), Failure> {
    let Program { name, version, .. } = program::get();
    say(&format!("{name} {version}"))?;
    if with_build {
        say(concat!("chappe: ", env!("CARGO_PKG_VERSION")))?;
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        say(&format!("profile: {profile}"))?;
        say(concat!("target: ", env!("CHAPPE_TARGET")))?;
        say(concat!("compiler: ", env!("CHAPPE_RUSTC")))?;
        say(concat!("needs: rust ", env!("CARGO_PKG_RUST_VERSION"), " or later to build"))?;
        say(&format!("features: {}", features()))?;
        say(&format!("largest frame: {} bytes", chappe_wire::FRAME_BYTES_MAX))?;
    }
    Ok(())
}

/// The optional parts that this build has.
fn features() -> String {
    let features = [
        ("bench", cfg!(feature = "bench")),
        ("pages", cfg!(feature = "pages")),
        ("top", cfg!(feature = "top")),
    ];
    let there: Vec<&str> =
        features.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| *name).collect();
    if there.is_empty() { "none".to_owned() } else { there.join(" ") }
}

/// `-t` and `-T`. As with nginx the verdict goes to stderr, since -T's stdout is a
/// file that can be read back.
pub(super) fn test(arguments: &Arguments, check: super::Check<'_>) -> Result<(), Failure> {
    let (_, file) = paths(&arguments.common)?;
    let loaded = load(&arguments.common)?;
    check(&loaded)?;
    let ignored = match identity::of(&loaded)? {
        Become::Ignored(warning) => Some(warning),
        Become::Somebody(_) | Become::Nobody => None,
    };
    let limits = descriptors::warnings(&loaded.config);
    if !arguments.quiet {
        for warning in loaded.warnings.iter().chain(&ignored).chain(&limits) {
            super::print_error(&format!("warning: {warning}"));
        }
        super::print_error(&format!("configuration {} is valid", file.display()));
    }
    if arguments.dump {
        let text = loaded.config.to_toml();
        cli::print(&text).map_err(Failure::system("standard output"))?;
    }
    Ok(())
}

/// `-s`: a signal to the process that holds the pid file's lock.
pub(super) fn signal(common: &Common, name: SignalName) -> Result<(), Failure> {
    // A wrong configuration is refused before anything is sent.
    let located = match name {
        SignalName::Reload => locate_to_reload(common)?,
        _ => locate_quietly(common, Need::PidFile)?,
    };
    let pid = match PidFile::holder(&located.pid_file) {
        // Nobody to signal there: what is wrong with the file is the answer.
        Err(error) if located.warning.is_some() => {
            load(common)?;
            return Err(error.into());
        }
        holder => holder?,
    };
    warn_of(&located);
    let signal = match name {
        SignalName::Stop => Signal::SIGTERM,
        SignalName::Quit => Signal::SIGQUIT,
        SignalName::Reopen => Signal::SIGUSR1,
        SignalName::Reload => Signal::SIGHUP,
    };
    kill(pid, signal).map_err(|errno| Failure::System {
        step: format!("send {signal} to the master (pid {pid})"),
        cause: errno.into(),
    })
}

/// `send` is a client like any other: it needs a server, or a configuration, only to know
/// where to, and not even that.
pub(super) fn send(common: &Common, arguments: &SendArgs) -> Result<u8, Failure> {
    let to = destination(common, arguments.server.to.address())?;
    Ok(cli::send(arguments, &to, &mut std::io::stdout(), &mut std::io::stderr()))
}

pub(super) fn subscribe(common: &Common, arguments: &SubscribeArgs) -> Result<u8, Failure> {
    let to = destination(common, arguments.server.to.address())?;
    Ok(cli::subscribe(arguments, &to, &mut std::io::stdout(), &mut std::io::stderr()))
}

pub(super) fn publish(common: &Common, arguments: &PublishArgs) -> Result<u8, Failure> {
    let to = destination(common, arguments.server.to.address())?;
    Ok(cli::publish(arguments, &to, &mut std::io::stdout(), &mut std::io::stderr()))
}

pub(super) fn status(common: &Common, arguments: StatusArgs) -> Result<(), Failure> {
    let located = locate(common, Need::ControlSocket)?;
    let zeros = if arguments.all { cli::Zeros::Shown } else { cli::Zeros::LeftOut };
    loop {
        let line = MasterClient::connect(&located)?.ask_for_line(Request::Status {})?;
        let mut text = match arguments.json {
            true => line,
            false => {
                let status = control::read::<Status>(&line).map_err(of_another_version)?;
                cli::table(&status, zeros)
            }
        };
        if arguments.watch && !arguments.json {
            text = cli::redrawn(&text);
        }
        let is_heard = cli::print(&text).map_err(Failure::system("standard output"))?;
        // The reader has left, as `head` does: that is the end and no failure.
        if !arguments.watch || !is_heard {
            return Ok(());
        }
        sleep(WATCH_EVERY);
    }
}

/// A program that reads the object may make more of it than this one does.
fn of_another_version(error: ReplyError) -> Failure {
    Failure::Refused(format!("{error}; `{} status --json` shows it as it is", program::get().name))
}

/// A new project. It needs neither a configuration nor a server.
pub(super) fn new(project: &cli::NewArgs) -> Result<(), Failure> {
    let said = cli::new(project).map_err(|error| Failure::Project(cli::chain(&error)))?;
    cli::print(&said).map(drop).map_err(Failure::system("standard output"))
}

/// A command whose answer is only whether it was done.
pub(super) fn tell(common: &Common, request: Request) -> Result<(), Failure> {
    let located = locate(common, Need::ControlSocket)?;
    MasterClient::connect(&located)?.ask::<Accepted>(request).map(drop)
}

/// The files are there whether a master runs or not.
pub(super) fn logs(common: &Common, arguments: LogsArgs) -> Result<(), Failure> {
    let directory = locate(common, Need::Logs)?.log_directory;
    let step = format!("logs in {}", directory.display());
    cli::logs(&directory, arguments).map_err(Failure::system(step))
}

/// The answer goes on behind its first line: a line a connection.
pub(super) fn connections(common: &Common, arguments: ConnectionsArgs) -> Result<(), Failure> {
    let located = locate(common, Need::ControlSocket)?;
    let request = Request::Connections { slow: arguments.slow };
    let (listed, lines) = MasterClient::connect(&located)?.list(request)?;
    if let Some(missing) = listed.missing {
        super::print_error(&format!("warning: no list from {missing}"));
    }
    let text = if arguments.json {
        lines
    } else {
        let Rows { rows, unread } = cli::connection_rows(&lines, arguments.slow);
        if let Some(unread) = unread {
            let name = &program::get().name;
            let text = format!("warning: {unread}; `{name} connections --json` shows all of them");
            super::print_error(&text);
        }
        cli::connections_table(&rows)
    };
    cli::print(&text).map(drop).map_err(Failure::system("standard output"))
}

/// As [`connections`]: a line a topic.
pub(super) fn topics(common: &Common, arguments: TopicsArgs) -> Result<(), Failure> {
    let located = locate(common, Need::ControlSocket)?;
    let (listed, lines) = MasterClient::connect(&located)?.list(Request::Topics {})?;
    if let Some(missing) = listed.missing {
        return Err(Failure::Refused(format!("no list from {missing}")));
    }
    let text = if arguments.json {
        lines
    } else {
        let Topics { rows, left_out, unread } = cli::topic_rows(&lines);
        if left_out > 0 {
            super::print_error(&format!(
                "warning: {left_out} more topics have no room in the list"
            ));
        }
        if let Some(unread) = unread {
            let name = &program::get().name;
            let text = format!("warning: {unread}; `{name} topics --json` shows all of them");
            super::print_error(&text);
        }
        cli::topics_table(&rows)
    };
    cli::print(&text).map(drop).map_err(Failure::system("standard output"))
}

pub(super) fn stop(common: &Common, request: Request, arguments: StopArgs) -> Result<(), Failure> {
    let located = locate(common, Need::ControlSocket)?;
    let client = MasterClient::connect(&located)?;
    // Taken hold of before it is ordered to stop: afterwards its number could already be
    // another process's.
    let master = if arguments.wait { Some(watch(client.stream(), &located)?) } else { None };
    client.ask::<Accepted>(request)?;
    match master {
        Some(Watched::Process(master)) => {
            master.wait().map_err(Failure::system("wait for the master"))
        }
        Some(Watched::Lock) => wait_for_lock(&located),
        None => Ok(()),
    }
}

/// Keys that say where a server is, to `reload` as well.
const WHERE: [&str; 3] = ["control_socket", "pid_file", "log.directory"];

/// A signal brings nothing back, so a wrong configuration is told here and not sent.
fn locate_to_reload(common: &Common) -> Result<Located, Failure> {
    let located = Located::from(&load(common)?.config);
    refuse_overrides(common)?;
    Ok(located)
}

/// An override is not brought to the server, which reads the files, with the overrides that it
/// was started with.
fn refuse_overrides(common: &Common) -> Result<(), Failure> {
    let key = |set: &str| set.split('=').next().unwrap_or(set).replace(char::is_whitespace, "");
    match common.set.iter().find(|set| !WHERE.contains(&key(set).as_str())) {
        None => Ok(()),
        Some(set) => Err(ConfigErrors::one(format!(
            "--set {set}: a reload reads the files, with what --set said at the start, and takes \
             none of its own: write it into the file; only {} can be set here, which say where \
             the server is",
            WHERE.join(", ")
        ))
        .into()),
    }
}

/// Waits for the outcome. A file that is wrong is brought to the server as well, whose log and
/// status then tell of the attempt; without a server it is told here.
pub(super) fn reload(common: &Common) -> Result<(), Failure> {
    let (located, wrong) = match load(common) {
        Ok(loaded) => (Located::from(&loaded.config), None),
        Err(wrong) => match locate_quietly(common, Need::ControlSocket) {
            Ok(located) => (located, Some(wrong)),
            Err(_) => return Err(wrong),
        },
    };
    refuse_overrides(common)?;
    let client = match MasterClient::connect(&located) {
        Ok(client) => client,
        Err(unreached) => return Err(wrong.unwrap_or(unreached)),
    };
    let outcome: Reloaded = client.ask(Request::Reload {})?;
    // The server has read another file, or may read what this user may not.
    if let Some(wrong) = wrong {
        super::print_error(&format!("warning: {wrong}"));
    }
    cli::print(&cli::outcome(&outcome)).map_err(Failure::system("standard output"))?;
    Ok(())
}

/// By what the master's end is seen.
enum Watched {
    Process(WatchedProcess),
    /// It is in another pid namespace and has no number here; but the kernel takes the
    /// pid file's lock from it when it ends.
    Lock,
}

/// The process at the other end: the kernel says which.
fn watch(stream: &UnixStream, located: &Located) -> Result<Watched, Failure> {
    let step = || Failure::system(format!("master at {}", located.control_socket.display()));
    let peer =
        getsockopt(stream, sockopt::PeerCredentials).map_err(|errno| step()(errno.into()))?;
    if peer.pid() > 0 {
        return WatchedProcess::open(Pid::from_raw(peer.pid()))
            .map(Watched::Process)
            .map_err(step());
    }
    match PidFile::holder(&located.pid_file) {
        Err(PidFileError::OtherNamespace(_)) => Ok(Watched::Lock),
        _ => Err(Failure::Refused(format!(
            "the master is in another pid namespace, and its pid file is not {}: its end can't \
             be waited for; nothing was asked of it",
            located.pid_file.display()
        ))),
    }
}

fn wait_for_lock(located: &Located) -> Result<(), Failure> {
    while !matches!(PidFile::holder(&located.pid_file), Err(PidFileError::NotRunning(_))) {
        sleep(LOCK_LOOK);
    }
    Ok(())
}
