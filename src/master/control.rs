//! The control socket: a line with a JSON object in, a line with one out.
//!
//! Runs inside the master's loop and never sleeps: sockets don't block, a request
//! has 64 KiB and 5 seconds, and no more than 16 clients are let in at a time, so
//! that none of them can keep the master from its work. It knows nothing of what is
//! asked: requests go out as values, and the master gives back the answers, at once
//! or when it has them. A long answer goes on in files, which are read as the client
//! takes them.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::LogLevel;
use crate::sys::unix_socket;
use crate::throttle::Throttle;

const CLIENTS_MAX: usize = 16;
/// How many of them may wait for an outcome; the others' places stay free for `status`.
const WAITING_MAX: usize = CLIENTS_MAX / 2;
const REQUEST_BYTES_MAX: usize = 64 << 10;
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
/// For how long nobody is let in after an accept that failed, most likely for lack of a
/// descriptor: the listener stays readable, and the master would turn for nothing else.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How many failures of accept are told in ten seconds.
const WARNINGS_TOLD: u32 = 2;
/// Of an answer's files: how much is in memory for one client.
const PIECE_BYTES: u64 = 64 << 10;
/// How many writes one client gets before it is the next one's turn.
const PIECES_AT_ONCE: usize = 16;

/// What a client asks for.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase", tag = "command", deny_unknown_fields)]
pub(super) enum Request {
    /// Who runs, and what was counted.
    Status {},
    /// The fast stop.
    Stop {},
    /// The graceful stop.
    Quit {},
    /// Log files to be opened anew. With `wait` the answer comes when all are.
    Reopen {
        #[serde(default)]
        wait: bool,
    },
    /// Another level for all logs, until the next start.
    #[serde(rename = "log-level")]
    LogLevel { level: LevelName },
    /// Who is connected; with `slow`, who is blocked.
    Connections {
        #[serde(default)]
        slow: bool,
    },
    /// The end of a connection.
    Kick { id: u64 },
    /// A reload; the answer is its outcome.
    Reload {},
}

/// A log level as in the configuration.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub(super) struct LevelName(pub(super) LogLevel);

impl TryFrom<String> for LevelName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let found = LogLevel::ALL.into_iter().find(|level| level.name() == name);
        found.map(Self).ok_or_else(|| format!("there is no log level `{name}`"))
    }
}

/// What the master says to a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// This.
    Now(Value),
    /// Something, once it knows: [`ControlSocket::resolve`] with the same number.
    Later(u64),
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    request: Vec<u8>,
    /// Empty until the request is complete; what is left of the answer then.
    answer: Vec<u8>,
    /// What follows the answer.
    files: VecDeque<File>,
    deadline: Instant,
    state: ClientState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientState {
    Asking,
    /// For the outcome with this number.
    Waiting(u64),
    Hearing,
    Done,
}

/// The listening socket and whoever is connected.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    path: PathBuf,
    /// Device and inode of the socket file, to know later if it is still ours.
    identity: Option<(u64, u64)>,
    listener: UnixListener,
    clients: Vec<Client>,
    /// Nobody is let in before: an accept has failed.
    paused_until: Option<Instant>,
    warnings: Throttle,
}

impl ControlSocket {
    /// Binds. A socket left behind by a master that is gone is removed, so the pid
    /// file's lock must be held: nobody else can be using the path then.
    ///
    /// # Errors
    /// Of the directory, of bind, or when something else lies at the path.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::FileTypeExt;
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => {
                return Err(io::Error::new(
                    ErrorKind::AlreadyExists,
                    "there is something that is no socket",
                ));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let backlog = i32::try_from(CLIENTS_MAX).unwrap_or(i32::MAX);
        let listener =
            UnixListener::from(unix_socket::bind(path, unix_socket::MODE_PRIVATE, backlog)?);
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path),
            listener,
            clients: Vec::new(),
            paused_until: None,
            warnings: Throttle::new(WARNINGS_TOLD),
        })
    }

    /// What the master's poll has to look at, for what. `answer_one` and `accept`
    /// find out themselves which of them it was.
    pub(super) fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut interests: Vec<_> = self
            .clients
            .iter()
            .map(|client| {
                let flags = match client.state {
                    // One that waits has no more to say, but may go.
                    ClientState::Asking | ClientState::Waiting(_) => PollFlags::POLLIN,
                    ClientState::Hearing | ClientState::Done => PollFlags::POLLOUT,
                };
                (client.stream.as_fd(), flags)
            })
            .collect();
        // When all places are taken the others wait in the backlog.
        if self.clients.len() < CLIENTS_MAX && self.paused_until.is_none() {
            interests.push((self.listener.as_fd(), PollFlags::POLLIN));
        }
        interests
    }

    /// When the next client has had its time, or the next one may come in.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let has_deadline = |client: &&Client| !matches!(client.state, ClientState::Waiting(_));
        let clients = self.clients.iter().filter(has_deadline).map(|client| client.deadline);
        clients.chain(self.paused_until).min()
    }

    /// Lets clients in, reads, answers complete requests by `answer`, writes, and
    /// ends those that are done or had their time.
    pub(super) fn turn(&mut self, now: Instant, mut answer: impl FnMut(Request) -> Answer) {
        self.accept(now);
        let is_waiting = |client: &Client| matches!(client.state, ClientState::Waiting(_));
        let mut waiting = self.clients.iter().filter(|client| is_waiting(client)).count();
        for client in &mut self.clients {
            match client.state {
                ClientState::Asking => {
                    client.read(|request| {
                        if request == (Request::Reload {}) && waiting >= WAITING_MAX {
                            let error = "too many wait for a reload already";
                            return Answer::Now(json!({ "error": error }));
                        }
                        answer(request)
                    });
                    waiting += usize::from(is_waiting(client));
                }
                ClientState::Waiting(_) => client.note_departure(),
                ClientState::Hearing | ClientState::Done => {}
            }
            if client.state == ClientState::Hearing {
                client.write(now);
            }
            if client.deadline <= now && !is_waiting(client) {
                client.state = ClientState::Done;
            }
        }
        self.clients.retain(|client| client.state != ClientState::Done);
    }

    /// The answer that goes on in files, for the one that waits for it.
    pub(super) fn resolve_with(&mut self, number: u64, reply: &Value, files: VecDeque<File>) {
        let waits = |client: &&mut Client| client.state == ClientState::Waiting(number);
        if let Some(client) = self.clients.iter_mut().find(waits) {
            client.deadline = Instant::now() + REQUEST_TIME_MAX;
            client.files = files;
            client.reply(reply);
        }
    }

    /// Tells whoever waits for it how it went.
    pub(super) fn resolve(&mut self, number: u64, outcome: &Value) {
        let now = Instant::now();
        for client in &mut self.clients {
            if client.state == ClientState::Waiting(number) {
                client.deadline = now + REQUEST_TIME_MAX;
                client.reply(outcome);
                client.write(now);
            }
        }
        self.clients.retain(|client| client.state != ClientState::Done);
    }

    fn accept(&mut self, now: Instant) {
        if self.paused_until.is_some_and(|until| until > now) {
            return;
        }
        self.paused_until = None;
        while self.clients.len() < CLIENTS_MAX {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    if let Some(held) = self.warnings.admit(now) {
                        log::warn!("cannot accept on the control socket: {error}{held}");
                    }
                    self.paused_until = Some(now + ACCEPT_PAUSE);
                    return;
                }
            };
            if let Err(error) = stream.set_nonblocking(true).and_then(|()| check_peer(&stream)) {
                if let Some(held) = self.warnings.admit(now) {
                    log::warn!("a control client was turned away: {error}{held}");
                }
                continue;
            }
            self.clients.push(Client {
                stream,
                request: Vec::new(),
                answer: Vec::new(),
                files: VecDeque::new(),
                deadline: now + REQUEST_TIME_MAX,
                state: ClientState::Asking,
            });
        }
    }

    /// Removes the socket file, if it is still ours. Connected clients see the end.
    pub(crate) fn remove(self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // It may have gone in between, which is just as well.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|there| (there.dev(), there.ino()))
}

/// The file's mode keeps strangers out; this also holds if somebody changes it.
fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let uid = getsockopt(stream, sockopt::PeerCredentials)?.uid();
    if uid == 0 || uid == geteuid().as_raw() {
        Ok(())
    } else {
        Err(io::Error::new(ErrorKind::PermissionDenied, format!("uid {uid} is not allowed")))
    }
}

impl Client {
    fn read(&mut self, mut answer: impl FnMut(Request) -> Answer) {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.state = ClientState::Done;
                    return;
                }
                Ok(bytes) => self.request.extend_from_slice(&chunk[..bytes]),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.state = ClientState::Done;
                    return;
                }
            }
            if let Some(end) = self.request.iter().position(|&byte| byte == b'\n') {
                let reply = match serde_json::from_slice(&self.request[..end]) {
                    Ok(request) => answer(request),
                    Err(error) => Answer::Now(json!({ "error": format!("bad request: {error}") })),
                };
                match reply {
                    Answer::Now(reply) => self.reply(&reply),
                    Answer::Later(number) => self.state = ClientState::Waiting(number),
                }
                return;
            }
            if self.request.len() >= REQUEST_BYTES_MAX {
                self.reply(&json!({ "error": "bad request: longer than 64 KiB" }));
                return;
            }
        }
    }

    /// While it waits: nobody is kept a place for who has gone.
    fn note_departure(&mut self) {
        let mut rest = [0; 4096];
        match self.stream.read(&mut rest) {
            // More than one request is more than was agreed on.
            Ok(_) => self.state = ClientState::Done,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.state = ClientState::Done,
        }
    }

    fn reply(&mut self, reply: &Value) {
        self.answer = reply.to_string().into_bytes();
        self.answer.push(b'\n');
        self.state = ClientState::Hearing;
    }

    /// Writes what the client takes. Each piece that it takes gives it more time.
    fn write(&mut self, now: Instant) {
        for _ in 0..PIECES_AT_ONCE {
            if self.answer.is_empty() && !self.next_piece() {
                break;
            }
            match self.stream.write(&self.answer) {
                Ok(bytes) => {
                    self.answer.drain(..bytes);
                    self.deadline = now + REQUEST_TIME_MAX;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.answer.clear();
                    self.files.clear();
                }
            }
        }
        if !self.answer.is_empty() || !self.files.is_empty() {
            return;
        }
        // Not only close: a worker that is just being forked has a copy of this
        // descriptor, and the client would not see the end until that is closed.
        let _ = self.stream.shutdown(Shutdown::Both);
        self.state = ClientState::Done;
    }

    /// Reads a piece of the files into the empty answer. False when there is none.
    fn next_piece(&mut self) -> bool {
        while let Some(file) = self.files.front_mut() {
            match file.take(PIECE_BYTES).read_to_end(&mut self.answer) {
                Ok(bytes) if bytes > 0 => return true,
                Ok(_) => {}
                Err(error) => log::warn!("an answer is cut short: {error}"),
            }
            self.files.pop_front();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    fn ask(socket: &mut ControlSocket, path: &Path, request: &[u8]) -> String {
        let mut client = unix_socket::connect(path).unwrap();
        let _cut_short = client.write_all(request);
        for _ in 0..3 {
            socket.turn(Instant::now(), |request| {
                Answer::Now(json!({ "asked": format!("{request:?}") }))
            });
        }
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).unwrap();
        line
    }

    fn bound() -> (tempfile::TempDir, PathBuf, ControlSocket) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/chappe.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        (directory, path, socket)
    }

    #[test]
    fn requests_are_answered_in_one_line() {
        let (_directory, path, mut socket) = bound();
        for (request, answer) in [
            (&b"{\"command\":\"status\"}\n"[..], "{\"asked\":\"Status\"}\n"),
            (b"{\"command\":\"stop\"}\n", "{\"asked\":\"Stop\"}\n"),
            (b"{\"command\":\"quit\"}\n", "{\"asked\":\"Quit\"}\n"),
            (b"{\"command\":\"kick\",\"id\":7}\n", "{\"asked\":\"Kick { id: 7 }\"}\n"),
            (
                b"{\"command\":\"log-level\",\"level\":\"debug\"}\n",
                "{\"asked\":\"LogLevel { level: LevelName(Debug) }\"}\n",
            ),
        ] {
            assert_eq!(ask(&mut socket, &path, request), answer);
            assert!(socket.clients.is_empty());
        }
    }

    #[test]
    fn junk_is_answered_with_an_error() {
        let (_directory, path, mut socket) = bound();
        for request in [
            &b"\n"[..],
            b"status\n",
            b"{\"command\":\"reboot\"}\n",
            b"{\"command\":\"log-level\",\"level\":\"loud\"}\n",
            b"\xff\xfe\n",
        ] {
            assert!(ask(&mut socket, &path, request).contains("bad request"), "{request:?}");
        }
        let endless = vec![b' '; REQUEST_BYTES_MAX];
        assert!(ask(&mut socket, &path, &endless).contains("64 KiB"));
    }

    #[test]
    fn an_answer_can_come_later_and_go_on_in_files() {
        let (_directory, path, mut socket) = bound();
        let mut client = unix_socket::connect(&path).unwrap();
        client.write_all(b"{\"command\":\"connections\"}\n").unwrap();
        let now = Instant::now();
        socket.turn(now, |_| Answer::Later(7));
        let nobody = |_| unreachable!("nobody asks");
        socket.turn(now + 2 * REQUEST_TIME_MAX, nobody);
        assert_eq!((socket.clients.len(), socket.next_deadline()), (1, None));
        let mut files = VecDeque::new();
        for text in [&b"one\n"[..], b"", &[b'x'; 100_000]] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            files.push_back(file);
        }
        socket.resolve_with(8, &json!({}), VecDeque::new());
        socket.resolve_with(7, &json!({ "ok": true }), files);
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            text
        });
        while !socket.clients.is_empty() {
            socket.turn(Instant::now(), nobody);
        }
        let text = reader.join().unwrap();
        assert!(text.starts_with("{\"ok\":true}\none\nxxx"), "{text:.40}");
        assert_eq!(text.len(), "{\"ok\":true}\none\n".len() + 100_000);
    }

    #[test]
    fn a_waiting_client_that_goes_away_is_forgotten() {
        let (_directory, path, mut socket) = bound();
        let mut client = unix_socket::connect(&path).unwrap();
        client.write_all(b"{\"command\":\"reopen\",\"wait\":true}\n").unwrap();
        socket.turn(Instant::now(), |_| Answer::Later(1));
        assert_eq!(socket.clients.len(), 1);
        drop(client);
        socket.turn(Instant::now(), |_| Answer::Later(1));
        assert!(socket.clients.is_empty());
    }

    #[test]
    fn clients_beyond_the_maximum_wait_and_silent_ones_have_their_time() {
        let (_directory, path, mut socket) = bound();
        let silent: Vec<_> =
            (0..=CLIENTS_MAX).map(|_| unix_socket::connect(&path).unwrap()).collect();
        let now = Instant::now();
        let nobody = |_| unreachable!("nobody asks");
        socket.turn(now, nobody);
        assert_eq!(socket.clients.len(), CLIENTS_MAX);
        assert_eq!(socket.interests().len(), CLIENTS_MAX);
        assert_eq!(socket.next_deadline(), Some(now + REQUEST_TIME_MAX));
        socket.turn(now + REQUEST_TIME_MAX, nobody);
        assert!(socket.clients.is_empty());
        socket.turn(now + REQUEST_TIME_MAX, nobody);
        assert_eq!(socket.clients.len(), 1);
        drop(silent);
        socket.turn(now + REQUEST_TIME_MAX, nobody);
        assert!(socket.clients.is_empty());
    }

    #[test]
    fn who_waits_is_told_the_outcome_and_has_no_deadline() {
        let (_directory, path, mut socket) = bound();
        let mut clients: Vec<_> =
            (0..=WAITING_MAX).map(|_| unix_socket::connect(&path).unwrap()).collect();
        for client in &mut clients {
            client.write_all(b"{\"command\":\"reload\"}\n").unwrap();
        }
        let now = Instant::now();
        socket.turn(now, |_| Answer::Later(7));
        // One too many was told so.
        let mut last = String::new();
        BufReader::new(clients.pop().unwrap()).read_line(&mut last).unwrap();
        assert!(last.contains("too many"), "{last}");
        assert_eq!(socket.clients.len(), WAITING_MAX);
        assert_eq!(socket.next_deadline(), None);
        drop(clients.pop());
        socket.turn(now + 2 * REQUEST_TIME_MAX, |_| unreachable!("nobody asks"));
        assert_eq!(socket.clients.len(), WAITING_MAX - 1);
        socket.resolve(8, &json!({}));
        assert_eq!(socket.clients.len(), WAITING_MAX - 1);
        socket.resolve(7, &json!({ "ok": true }));
        assert!(socket.clients.is_empty());
        for client in clients {
            let mut line = String::new();
            BufReader::new(client).read_line(&mut line).unwrap();
            assert_eq!(line, "{\"ok\":true}\n");
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        let (directory, path, socket) = bound();
        drop(socket);
        assert!(path.exists());
        ControlSocket::bind(&path).unwrap().remove();
        assert!(!path.exists());
        let file = directory.path().join("precious");
        fs::write(&file, "text").unwrap();
        assert!(ControlSocket::bind(&file).is_err());
        assert!(file.exists());
    }
}
