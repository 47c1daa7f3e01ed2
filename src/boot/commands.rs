//! Calls that start nothing: they look at the configuration, or ask the master.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use chappe_sys::process::WatchedProcess;
use chappe_sys::unix_socket;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::identity::{self, Become};
use super::{Failure, descriptors, load, locate, locate_quietly, paths, say, warn_of};
use crate::cli::{
    self, Arguments, Common, ConnectionsArgs, LogsArgs, SendArgs, SignalName, StatusArgs, StopArgs,
};
use crate::config::{Address, Located, Need};
use crate::master::{PidFile, PidFileError};

/// How long the master may take to answer; it answers between two wake-ups.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How often `stop --wait` looks at a lock.
const LOCK_LOOK: Duration = Duration::from_millis(20);
/// How often `status --watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// The longest answer: a status of 4096 workers is about 4 MiB.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

pub(super) fn version(with_build: bool) -> Result<(), Failure> {
    say(concat!("chappe ", env!("CARGO_PKG_VERSION")))?;
    if with_build {
        let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
        say(&format!("profile: {profile}"))?;
        say(concat!("target: ", env!("CHAPPE_TARGET")))?;
        say(concat!("compiler: ", env!("CHAPPE_RUSTC")))?;
        say(concat!("needs: rust ", env!("CARGO_PKG_RUST_VERSION"), " or later to build"))?;
        say(&format!("largest frame: {} bytes", chappe_wire::FRAME_BYTES_MAX))?;
    }
    Ok(())
}

/// `-t` and `-T`. As with nginx the verdict goes to stderr, since -T's stdout is a
/// file that can be read back.
pub(super) fn test(arguments: &Arguments) -> Result<(), Failure> {
    let (_, file) = paths(&arguments.common)?;
    let loaded = load(&arguments.common)?;
    let ignored = match identity::of(&loaded)? {
        Become::Ignored(warning) => Some(warning),
        Become::Somebody(_) | Become::Nobody => None,
    };
    let limits = descriptors::warnings(&loaded.config);
    if !arguments.quiet {
        for warning in loaded.warnings.iter().chain(&ignored).chain(&limits) {
            super::complain(&format!("warning: {warning}"));
        }
        super::complain(&format!("configuration {} is valid", file.display()));
    }
    if arguments.dump {
        let text = loaded.config.to_toml();
        cli::print(&text).map_err(Failure::system("standard output"))?;
    }
    Ok(())
}

/// `-s`: a signal to whoever holds the pid file's lock.
pub(super) fn signal(common: &Common, name: SignalName) -> Result<(), Failure> {
    // A wrong configuration is refused before anything is sent.
    let located = match name {
        SignalName::Reload => Located::from(&load(common)?.config),
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

/// `send` is a client like any other: it needs a configuration only to know where
/// to, and not even that.
pub(super) fn send(common: &Common, arguments: &SendArgs) -> Result<u8, Failure> {
    let to = if arguments.has_address() { None } else { first_listener(common)? };
    Ok(cli::send(arguments, to, &mut std::io::stdout(), &mut std::io::stderr()))
}

/// Where the server of this configuration listens; `None` without a configuration.
pub(super) fn first_listener(common: &Common) -> Result<Option<Address>, Failure> {
    let (_, file) = paths(common)?;
    if !file.exists() {
        return Ok(None);
    }
    let config = load(common)?.config;
    let mut address = match config.listen.first().map(|listen| listen.address.clone()) {
        Some(Address::Tcp(address)) => address,
        other => return Ok(other),
    };
    if address.port() == 0 {
        // Only the running server knows which port that became.
        let located = Located::from(&config);
        let status = ask(&mut connect(&located)?, "status", &located.control_socket)?;
        let listen = status["master"]["listen"][0].as_str().and_then(|text| text.parse().ok());
        address = listen.ok_or_else(|| Failure::Refused("the master does not listen".into()))?;
    }
    if address.ip().is_unspecified() {
        // "All addresses" is no address to connect to.
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(Some(Address::Tcp(address)))
}

pub(super) fn status(common: &Common, arguments: StatusArgs) -> Result<(), Failure> {
    let located = locate(common, Need::ControlSocket)?;
    loop {
        let mut stream = connect(&located)?;
        let status = ask(&mut stream, "status", &located.control_socket)?;
        let mut text = if arguments.json { format!("{status}\n") } else { cli::table(&status) };
        if arguments.watch && !arguments.json {
            text = cli::redrawn(&text);
        }
        let is_heard = cli::print(&text).map_err(Failure::system("standard output"))?;
        // Whoever read it has left, as `head` does: that is the end and no failure.
        if !arguments.watch || !is_heard {
            return Ok(());
        }
        sleep(WATCH_EVERY);
    }
}

/// A command whose answer is only whether it was done.
pub(super) fn tell(common: &Common, request: &Value) -> Result<(), Failure> {
    let located = locate(common, Need::ControlSocket)?;
    ask_for(&mut connect(&located)?, request, &located.control_socket).map(drop)
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
    let (answer, lines) = list(&located, arguments.slow)?;
    if let Some(missing) = answer["missing"].as_str() {
        super::complain(&format!("warning: no list from {missing}"));
    }
    let text = if arguments.json { lines } else { cli::connections_table(&lines, arguments.slow) };
    cli::print(&text).map(drop).map_err(Failure::system("standard output"))
}

/// The master's answer, and the lines of all workers.
pub(super) fn list(located: &Located, slow: bool) -> Result<(Value, String), Failure> {
    let (mut stream, path) = (connect(located)?, &located.control_socket);
    let request = json!({ "command": "connections", "slow": slow });
    let step = || Failure::system(format!("control socket {}", path.display()));
    stream.write_all(format!("{request}\n").as_bytes()).map_err(step())?;
    let mut reader = BufReader::new((&stream).take(ANSWER_BYTES_MAX));
    let mut first = String::new();
    reader.read_line(&mut first).map_err(step())?;
    let answer = understand(&first)?;
    let mut lines = String::new();
    reader.read_to_string(&mut lines).map_err(step())?;
    Ok((answer, lines))
}

pub(super) fn stop(common: &Common, command: &str, arguments: StopArgs) -> Result<(), Failure> {
    let located = locate(common, Need::ControlSocket)?;
    let path = &located.control_socket;
    let mut stream = connect(&located)?;
    // Taken hold of before it is told to go: afterwards its number could already be
    // another process's.
    let master = if arguments.wait { Some(watch(&stream, &located)?) } else { None };
    ask(&mut stream, command, path)?;
    match master {
        Some(Watched::Process(master)) => {
            master.wait().map_err(Failure::system("wait for the master"))
        }
        Some(Watched::Lock) => wait_for_lock(&located),
        None => Ok(()),
    }
}

/// Waits for the outcome. A configuration that is wrong is not even brought up.
pub(super) fn reload(common: &Common) -> Result<(), Failure> {
    let located = Located::from(&load(common)?.config);
    let path = &located.control_socket;
    let mut stream = connect(&located)?;
    // The master bounds it, by worker_ready_timeout; if it dies the connection ends.
    stream.set_read_timeout(None).map_err(Failure::system("control socket"))?;
    let outcome = ask(&mut stream, "reload", path)?;
    cli::print(&cli::outcome(&outcome)).map_err(Failure::system("standard output"))?;
    Ok(())
}

pub(super) fn connect(located: &Located) -> Result<UnixStream, Failure> {
    let path = &located.control_socket;
    let stream = unix_socket::connect(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => nobody_answers(located),
        _ => Failure::System { step: format!("control socket {}", path.display()), cause: error },
    })?;
    stream
        .set_read_timeout(Some(ANSWER_TIME_MAX))
        .and_then(|()| stream.set_write_timeout(Some(ANSWER_TIME_MAX)))
        .map_err(Failure::system("control socket"))?;
    Ok(stream)
}

/// Why: there may be a master all the same, with the control socket that was configured
/// when it started.
fn nobody_answers(located: &Located) -> Failure {
    let path = located.control_socket.display();
    Failure::Refused(match PidFile::holder(&located.pid_file) {
        Ok(pid) => format!(
            "nobody answers at {path}, but a master is running, pid {pid}: if control_socket was \
             changed since its start, give the old one with --set control_socket=PATH; the new \
             one needs a restart"
        ),
        Err(PidFileError::OtherNamespace(_)) => format!(
            "nobody answers at {path}, but a master is running in another pid namespace: \
             control_socket must be the one that it was started with"
        ),
        Err(_) => format!("no master is running (nobody answers at {path})"),
    })
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

pub(super) fn ask(stream: &mut UnixStream, command: &str, path: &Path) -> Result<Value, Failure> {
    ask_for(stream, &json!({ "command": command }), path)
}

fn ask_for(stream: &mut UnixStream, request: &Value, path: &Path) -> Result<Value, Failure> {
    let request = format!("{request}\n");
    let mut line = String::new();
    stream
        .write_all(request.as_bytes())
        .and_then(|()| BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut line))
        .map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => Failure::Refused(format!(
                "the master at {} did not answer within {ANSWER_TIME_MAX:?}",
                path.display()
            )),
            _ => Failure::system(format!("control socket {}", path.display()))(error),
        })?;
    understand(&line)
}

fn understand(line: &str) -> Result<Value, Failure> {
    if line.is_empty() {
        return Err(Failure::Refused("the master ended, or hung up, without an answer".into()));
    }
    let answer: Value = serde_json::from_str(line).map_err(|_| {
        Failure::Refused(format!("the master's answer makes no sense: {:.80}", line.trim_end()))
    })?;
    match answer["error"].as_str() {
        Some(error) if answer["wrong_configuration"] == true => {
            Err(Failure::RefusedConfig(error.to_owned()))
        }
        Some(error) => Err(Failure::Refused(error.to_owned())),
        None => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_understood_and_none_is_told_from_nonsense() {
        let text = |line| understand(line).unwrap_err().to_string();
        assert_eq!(understand("{\"ok\":true}\n").unwrap()["ok"], true);
        assert_eq!(text("{\"error\":\"no\"}\n"), "no");
        assert_eq!(text(""), "the master ended, or hung up, without an answer");
        assert_eq!(text("what\n"), "the master's answer makes no sense: what");
    }
}
