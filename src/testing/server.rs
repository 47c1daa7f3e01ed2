//! The application's program as a server of one test.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::error::TestError;
use crate::client::Connection;
use crate::control::Status;

/// How long anything may take: a start, a reload, a stop, a reply. Long, for machines under
/// load; a test that succeeds does not wait for it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Between two looks at what announces itself to nobody.
const LOOK_EVERY: Duration = Duration::from_millis(5);

const CONFIG: &str = "chappe.toml";
const STDOUT: &str = "stdout.txt";
const STDERR: &str = "stderr.txt";

/// A server that is not started yet. Made by [`TestServer::of`].
///
/// ```no_run
/// # use chappe::testing::{TestError, TestServer};
/// # fn test() -> Result<(), TestError> {
/// let setup = TestServer::of("target/debug/chatd").config("[application]\ngreeting = \"hi\"\n");
/// // Each with a port of its own.
/// let (one, other) = (setup.clone().start()?, setup.start()?);
/// assert_ne!(one.address(), other.address());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Setup {
    program: PathBuf,
    config: String,
}

impl Setup {
    /// The configuration, as TOML; none means all defaults. If it has no `[[listen]]` the
    /// server listens at a port of 127.0.0.1 that the kernel picks, which is what a test
    /// wants: tests run side by side.
    ///
    /// Started by root, workers are `nobody`, who cannot enter the folder of a test (mode 0700): if
    /// they have to open files there, `user = ""` leaves them root.
    ///
    /// ```no_run
    /// # use chappe::testing::{TestError, TestServer};
    /// # fn test() -> Result<(), TestError> {
    /// let config = "worker_processes = 1\n[timeouts]\nidle = \"200ms\"\n";
    /// let server = TestServer::of("target/debug/chatd").config(config).start()?;
    /// // After 200 ms of silence.
    /// let goodbye = server.client()?.receive()?.as_goodbye();
    /// assert_eq!(goodbye.map(|goodbye| goodbye.name()), Some("idle"));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        toml.clone_into(&mut self.config);
        self
    }

    /// Starts the server, and returns once its workers serve.
    ///
    /// ```no_run
    /// # use chappe::testing::{TestError, TestServer};
    /// # fn test() -> Result<(), TestError> {
    /// let no_server = TestServer::of("true").start(); // this program ends at once
    /// assert!(matches!(no_server, Err(TestError::Start { .. })));
    /// let server = TestServer::of("target/debug/chatd").start()?;
    /// assert!(server.status()?.serving().count() > 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TestError::Config`] for what is not TOML, [`TestError::Folder`] if the files of the test
    /// cannot be made, [`TestError::Run`] if the program cannot be run, [`TestError::Start`] with the
    /// reason if the server ends instead, [`TestError::Late`] if it is not ready in time, and
    /// [`TestError::Answer`] if it listens at no TCP address.
    pub fn start(self) -> Result<TestServer, TestError> {
        let folder = TempDir::with_prefix("chappe-test-").map_err(TestError::Folder)?;
        let config = with_listener(&self.config)?;
        fs::write(folder.path().join(CONFIG), config).map_err(TestError::Folder)?;
        let file = |name| File::create(folder.path().join(name)).map_err(TestError::Folder);
        let (stdout, stderr) = (file(STDOUT)?, file(STDERR)?);
        let master = command(&self.program, folder.path())
            .arg("--foreground")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .map_err(|source| TestError::Run { program: self.program.clone(), source })?;
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut server = TestServer { program: self.program, master, address, folder };
        server.address = server.wait_ready()?;
        Ok(server)
    }
}

/// This configuration, with a listener if it has none.
fn with_listener(config: &str) -> Result<String, TestError> {
    let table: toml::Table = config.parse().map_err(|error| TestError::Config(Box::new(error)))?;
    let listener = "\n[[listen]]\naddress = \"127.0.0.1:0\"\n";
    let has_one = table.contains_key("listen");
    Ok(if has_one { config.to_owned() } else { format!("{config}{listener}") })
}

fn command(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("-p").arg(folder).arg("-c").arg(folder.join(CONFIG));
    command
}

/// A server of one test: the program in the foreground, in a folder and a process group of
/// its own. Dropping it kills all of its processes and removes the folder.
///
/// Its methods return once what they ask for has happened, and give up after [`DEADLINE`].
///
/// ```no_run
/// # use chappe::testing::{TestError, TestServer};
/// # fn test() -> Result<(), TestError> {
/// let server = TestServer::of("target/debug/chatd").config("worker_processes = 1\n").start()?;
/// let mut client = server.client()?;
/// server.kill_worker(0)?; // and another one serves
/// assert!(client.receive().is_err_and(|error| error.is_disconnect()));
/// assert_eq!(server.client()?.call(16, b"hello")?.body, "hello");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TestServer {
    program: PathBuf,
    master: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl TestServer {
    /// A server of this program: `env!("CARGO_BIN_EXE_name")` in a test of the package that
    /// has the binary `name`.
    ///
    /// ```no_run
    /// # use chappe::testing::{TestError, TestServer};
    /// # fn test() -> Result<(), TestError> {
    /// // In a test of the package: env!("CARGO_BIN_EXE_chatd").
    /// let server = TestServer::of("target/debug/chatd").start()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn of(program: impl Into<PathBuf>) -> Setup {
        Setup { program: program.into(), config: String::new() }
    }

    /// Where it listens: the first of its TCP addresses.
    ///
    /// ```no_run
    /// # use chappe::testing::{TestError, TestServer};
    /// # fn test() -> Result<(), TestError> {
    /// # let server = TestServer::of("target/debug/chatd").start()?;
    /// // For bytes that are no frames.
    /// let socket = std::net::TcpStream::connect(server.address());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The folder of all of its files. Relative paths of the configuration begin here.
    ///
    /// ```no_run
    /// # use chappe::testing::{TestError, TestServer};
    /// # fn test() -> Result<(), TestError> {
    /// let server = TestServer::of("target/debug/chatd").start()?;
    /// assert!(server.folder().join("run/chappe.sock").exists()); // the control socket
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A new connection to it, on which a call waits for [`DEADLINE`] at the most.
    ///
    /// ```no_run
    /// # use chappe::testing::{TestError, TestServer};
    /// # fn test() -> Result<(), TestError> {
    /// # let config = "worker_processes = 1\n";
    /// # let server = TestServer::of("target/debug/chatd").config(config).start()?;
    /// let (mut one, mut other) = (server.client()?, server.client()?);
    /// other.call(16, b"Ada")?; // answered: it is in the room by now
    /// one.send(17, b"hello")?;
    /// assert_eq!(other.receive()?.body, "hello");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Connection::connect`].
    pub fn client(&self) -> Result<Connection, TestError> {
        Ok(Connection::connect(self.address, DEADLINE)?)
    }

    /// Writes a new configuration, for [`TestServer::reload`].
    ///
    /// A configuration without a listener keeps the port, if the one before had none either;
    /// [`TestServer::address`] and `client` always mean the first one.
    ///
    /// ```no_run
    /// # use chappe::testing::{TestError, TestServer};
    /// # fn test() -> Result<(), TestError> {
    /// # let server = TestServer::of("target/debug/chatd").start()?;
    /// // Takes no effect yet.
    /// server.configure("[application]\ngreeting = \"good evening\"\n")?;
    /// server.reload()?;
    /// assert_eq!(server.client()?.call(16, b"")?.body, "good evening");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Setup::start`] for the configuration.
    pub fn configure(&self, toml: &str) -> Result<(), TestError> {
        let config = with_listener(toml)?;
        fs::write(self.folder.path().join(CONFIG), config).map_err(TestError::Folder)
    }

    /// Reloads it, and returns once the new workers serve.
    ///
    /// ```no_run
    /// # use chappe::testing::{TestError, TestServer};
    /// # fn test() -> Result<(), TestError> {
    /// # let server = TestServer::of("target/debug/chatd").start()?;
    /// let generation = server.status()?.master.generation;
    /// server.reload()?;
    /// assert_eq!(server.status()?.master.generation, generation + 1);
    /// server.configure("no_such_key = 1\n")?;
    /// // The old workers go on.
    /// assert!(matches!(server.reload(), Err(TestError::Command { .. })));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TestError::Command`] with the reason if the reload was refused or undone.
    pub fn reload(&self) -> Result<(), TestError> {
        self.run(&["reload"]).map(drop)
    }

    /// What `status` of the program says.
    ///
    /// ```no_run
    /// # use chappe::testing::{TestError, TestServer};
    /// # fn test() -> Result<(), TestError> {
    /// # let server = TestServer::of("target/debug/chatd").start()?;
    /// server.client()?.call(16, b"hello")?;
    /// let status = server.status()?;
    /// assert_eq!(status.total("connections_accepted"), 1);
    /// // A counter of the application's own.
    /// assert_eq!(status.total("app_greetings"), 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TestError::Command`] if the server cannot be asked.
    pub fn status(&self) -> Result<Status, TestError> {
        let text = self.run(&["status", "--json"])?;
        serde_json::from_str(&text)
            .map_err(|_| TestError::Answer { what: "not a status", text: text.clone() })
    }

    /// Kills a worker with SIGKILL, and returns once another one serves in its place.
    ///
    /// ```no_run
    /// # use chappe::testing::{TestError, TestServer};
    /// # fn test() -> Result<(), TestError> {
    /// # let server = TestServer::of("target/debug/chatd").start()?;
    /// server.kill_worker(0)?;
    /// assert_eq!(server.status()?.total("workers_died"), 1);
    /// assert!(matches!(server.kill_worker(99), Err(TestError::NoWorker(99))));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TestError::NoWorker`] if none with this number serves, [`TestError::Late`] if it is
    /// not replaced in time.
    pub fn kill_worker(&self, number: u16) -> Result<(), TestError> {
        let pid = |status: &Status| {
            status.serving().find(|worker| worker.worker == number).map(|worker| worker.pid)
        };
        let killed = pid(&self.status()?).ok_or(TestError::NoWorker(number))?;
        let process = Pid::from_raw(i32::try_from(killed).expect("a process id"));
        // ESRCH: it has ended by itself, which comes to the same.
        let _ = kill(process, Signal::SIGKILL);
        wait(&format!("another worker {number}"), || {
            Ok(pid(&self.status()?).filter(|pid| *pid != killed))
        })
        .map(drop)
    }

    /// All that its processes have logged, and written to standard error: in the foreground
    /// both come there, in the order of time.
    ///
    /// ```no_run
    /// # use chappe::testing::{TestError, TestServer};
    /// # fn test() -> Result<(), TestError> {
    /// # let server = TestServer::of("target/debug/chatd").start()?;
    /// server.reload()?;
    /// assert!(server.logs().contains("reload.done"), "{}", server.logs());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn logs(&self) -> String {
        String::from_utf8_lossy(&read(&self.folder.path().join(STDERR))).into_owned()
    }

    /// Stops the server: connections get a goodbye and are drained, and hooks have run when this
    /// returns.
    ///
    /// ```no_run
    /// # use chappe::testing::{TestError, TestServer};
    /// # fn test() -> Result<(), TestError> {
    /// # let server = TestServer::of("target/debug/chatd").start()?;
    /// let mut client = server.client()?;
    /// client.call(16, b"hello")?;
    /// server.stop()?; // `stopping` and `closed` have run
    /// assert_eq!(client.receive()?.as_goodbye().map(|goodbye| goodbye.reason), Some(1));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TestError::Late`] if it does not end in time, [`TestError::Command`] if it ends badly.
    pub fn stop(self) -> Result<(), TestError> {
        self.run(&["quit"])?;
        let status = wait("the server's end", || Ok(self.exit()))?;
        if status.success() {
            return Ok(());
        }
        let (command, output) = ("--foreground".to_owned(), self.logs());
        Err(TestError::Command { command, status, output })
    }

    /// Runs a command of the program against this server; returns what it printed.
    ///
    /// ```no_run
    /// # use chappe::testing::{TestError, TestServer};
    /// # fn test() -> Result<(), TestError> {
    /// # let server = TestServer::of("target/debug/chatd").start()?;
    /// assert_eq!(server.run(&["log-level", "debug"])?, "");
    /// // Nobody has this id: exit code 1.
    /// let error = server.run(&["kick", "123"]).unwrap_err();
    /// assert!(error.to_string().contains("there is no connection 123"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`TestError::Command`] if its exit code is not 0.
    pub fn run(&self, arguments: &[&str]) -> Result<String, TestError> {
        let file = || tempfile::tempfile().map_err(TestError::Folder);
        let handle = |file: &File| file.try_clone().map_err(TestError::Folder);
        // Not pipes: these would have to be read while it runs.
        let (mut stdout, mut stderr) = (file()?, file()?);
        let mut child = command(&self.program, self.folder.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(handle(&stdout)?)
            .stderr(handle(&stderr)?)
            .spawn()
            .map_err(|source| TestError::Run { program: self.program.clone(), source })?;
        let command = arguments.join(" ");
        let ended = wait(&format!("the end of `{command}`"), || Ok(ended(&mut child)));
        if ended.is_err() {
            // It may end at this moment, and is ours until it is waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
        let status = ended?;
        let (output, errors) = (written(&mut stdout)?, written(&mut stderr)?);
        if status.success() {
            Ok(output)
        } else {
            Err(TestError::Command { command, status, output: errors })
        }
    }

    /// Waits for the line `ready ADDRESS…`.
    fn wait_ready(&self) -> Result<SocketAddr, TestError> {
        let line = wait("the line `ready ADDRESS`", || {
            let line =
                String::from_utf8_lossy(&read(&self.folder.path().join(STDOUT))).into_owned();
            if line.contains('\n') {
                return Ok(Some(line));
            }
            match self.exit() {
                Some(status) => Err(TestError::Start { status, output: self.logs() }),
                None => Ok(None),
            }
        })?;
        let addresses = line.split_whitespace().skip(1);
        let address = addresses.filter_map(|address| address.parse().ok()).next();
        address.ok_or(TestError::Answer { what: "no TCP address in the server's line", text: line })
    }

    /// How the master has ended. It is not reaped: until [`Drop`] the number of its process
    /// group belongs to nothing else, even when all of the group have ended.
    fn exit(&self) -> Option<ExitStatus> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        // The raw form of a status: wait(2).
        match waitid(Id::Pid(self.group()), flags) {
            Ok(WaitStatus::Exited(_, code)) => Some(ExitStatus::from_raw(code << 8)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(ExitStatus::from_raw(signal as i32)),
            _ => None,
        }
    }

    fn group(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.master.id()).expect("a process id"))
    }
}

fn ended(child: &mut Child) -> Option<ExitStatus> {
    child.try_wait().expect("a child of this process that nothing else waits for")
}

/// What another process has written to the file.
fn written(file: &mut File) -> Result<String, TestError> {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(TestError::Folder)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Empty if it is not there.
fn read(file: &Path) -> Vec<u8> {
    fs::read(file).unwrap_or_default()
}

/// Looks until there is a value.
fn wait<T>(
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>, TestError>,
) -> Result<T, TestError> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            return Err(TestError::Late { what: what.to_owned() });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // ESRCH: all have ended, the master too.
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.master.wait();
        if std::thread::panicking() {
            eprintln!("--- logs of {}\n{}", self.program.display(), self.logs());
        }
    }
}
