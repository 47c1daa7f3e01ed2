//! The control socket: a line with a JSON object in, a line with one out.
//!
//! Runs inside the master's loop and never sleeps: sockets don't block, a request
//! has 64 KiB and 5 seconds, and no more than 16 clients are let in at a time, so
//! that none of them can keep the master from its work. It knows nothing of what is
//! asked: requests go out as values, and the master gives back the answers, at once
//! or when it has them. A long answer goes on in lists, which are read as the client
//! takes them.

mod client;
mod list;

use chappe_sys::clock::Moment;
use std::collections::VecDeque;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chappe_sys::unix_socket;
use nix::poll::PollFlags;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use client::{Client, ClientState};
pub(super) use list::List;

use crate::control::Reply;
pub(super) use crate::control::Request;
use crate::throttle::Throttle;

const CLIENTS_MAX: usize = 16;
/// How many of them may wait for an outcome; the others' places stay free for `status`.
const WAITING_MAX: usize = CLIENTS_MAX / 2;
const REQUEST_BYTES_MAX: usize = 64 << 10;
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
/// For how long nobody is let in after an accept that failed, most likely for lack of a
/// descriptor: the listener stays readable, and the master would turn for nothing else.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How many failures of accept are logged in ten seconds.
const WARNINGS_TOLD: u32 = 2;
/// Of an answer's lists: how much is in memory for one client.
const PIECE_BYTES: usize = 64 << 10;
/// How many writes one client gets before it is the next one's turn.
const PIECES_AT_ONCE: usize = 16;

/// Whether the answer may come later.
fn may_wait(request: Request) -> bool {
    match request {
        Request::Reload {}
        | Request::Connections { .. }
        | Request::Kick { .. }
        | Request::Topics {} => true,
        Request::Reopen { wait } => wait,
        Request::Status {} | Request::Stop {} | Request::Quit {} | Request::LogLevel { .. } => {
            false
        }
    }
}

/// What the master says to a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// This.
    Now(Reply),
    /// Something, once it knows: [`ControlSocket::resolve`] with the same number.
    Later(u64),
}

/// The listening socket and the clients that are connected.
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
    /// file's lock must be held: nobody with the same pid file can be about to bind.
    ///
    /// # Errors
    /// Of the directory, of bind, or when something else lies at the path, such as the
    /// socket of a master with another pid file.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::FileTypeExt;
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        match fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => {
                if unix_socket::is_live(path)? {
                    let text = "another server answers there";
                    return Err(io::Error::new(ErrorKind::AddrInUse, text));
                }
                fs::remove_file(path)?;
            }
            Ok(_) => {
                return Err(io::Error::new(
                    ErrorKind::AlreadyExists,
                    "a file that is not a socket is already there",
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
        let mut interests: Vec<_> =
            self.clients.iter().map(|client| (client.stream.as_fd(), client.interest())).collect();
        // When all places are taken the others wait in the backlog.
        if self.clients.len() < CLIENTS_MAX && self.paused_until.is_none() {
            interests.push((self.listener.as_fd(), PollFlags::POLLIN));
        }
        interests
    }

    /// When the next client has had its time, or the next one may come in.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let has_deadline = |client: &&Client| !client.is_waiting();
        let clients = self.clients.iter().filter(has_deadline).map(|client| client.deadline);
        clients.chain(self.paused_until).min()
    }

    /// Lets clients in, reads, answers complete requests by `answer`, writes, and
    /// ends those that are done or had their time.
    pub(super) fn turn(&mut self, now: Instant, mut answer: impl FnMut(Request) -> Answer) {
        self.accept(now);
        let mut waiting = self.clients.iter().filter(|client| client.is_waiting()).count();
        for client in &mut self.clients {
            match client.state {
                ClientState::Asking => {
                    client.read(|request| {
                        if may_wait(request) && waiting >= WAITING_MAX {
                            let error =
                                "too many clients are already waiting for an answer, try again";
                            return Answer::Now(Reply::refused(error));
                        }
                        waiting += usize::from(may_wait(request));
                        answer(request)
                    });
                }
                ClientState::Waiting(_) => client.note_departure(),
                ClientState::Hearing | ClientState::Done => {}
            }
            if client.state == ClientState::Hearing {
                client.write(now);
            }
            if client.deadline <= now && !client.is_waiting() {
                client.state = ClientState::Done;
            }
        }
        self.clients.retain(|client| client.state != ClientState::Done);
    }

    /// The answer for the client that waits for it; it goes on in the lists.
    pub(super) fn resolve(&mut self, number: u64, reply: &Reply, lists: VecDeque<List>) {
        let now = Instant::now();
        let waits = |client: &&mut Client| client.state == ClientState::Waiting(number);
        if let Some(client) = self.clients.iter_mut().find(waits) {
            client.deadline = now + REQUEST_TIME_MAX;
            client.lists = lists;
            client.reply(reply);
            client.write(now);
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
                    if let Some(held) = self.warnings.admit(Moment::now()) {
                        log::warn!(target: "control.accept_failed", "cannot accept on the control socket: {error}{held}");
                    }
                    self.paused_until = Some(now + ACCEPT_PAUSE);
                    return;
                }
            };
            if let Err(error) = stream.set_nonblocking(true).and_then(|()| check_peer(&stream)) {
                if let Some(held) = self.warnings.admit(Moment::now()) {
                    log::warn!(target: "control.refused", "a control client was turned away: {error}{held}");
                }
                continue;
            }
            self.clients.push(Client::new(stream, now + REQUEST_TIME_MAX));
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::Shutdown;

    fn ask(socket: &mut ControlSocket, path: &Path, request: &[u8]) -> String {
        let mut client = unix_socket::connect(path).unwrap();
        let _cut_short = client.write_all(request);
        for _ in 0..3 {
            socket.turn(Instant::now(), |request| {
                Answer::Now(Reply::refused(format!("{request:?}")))
            });
        }
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).unwrap();
        line
    }

    /// Any answer.
    fn reply() -> Reply {
        Reply::refused("no")
    }

    const REPLY: &str = "{\"error\":\"no\"}\n";

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
            (&b"{\"command\":\"status\"}\n"[..], "{\"error\":\"Status\"}\n"),
            (b"{\"command\":\"stop\"}\n", "{\"error\":\"Stop\"}\n"),
            (b"{\"command\":\"quit\"}\n", "{\"error\":\"Quit\"}\n"),
            (b"{\"command\":\"kick\",\"id\":7}\n", "{\"error\":\"Kick { id: 7 }\"}\n"),
            (
                b"{\"command\":\"log-level\",\"level\":\"debug\"}\n",
                "{\"error\":\"LogLevel { level: LevelName(Debug) }\"}\n",
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
        let lists: VecDeque<_> =
            [&b"one\n"[..], b"", &[b'x'; 100_000]].into_iter().map(list::tests::of).collect();
        socket.resolve(8, &reply(), VecDeque::new());
        socket.resolve(7, &reply(), lists);
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            text
        });
        while !socket.clients.is_empty() {
            socket.turn(Instant::now(), nobody);
        }
        let text = reader.join().unwrap();
        assert!(text.starts_with(&format!("{REPLY}one\nxxx")), "{text:.40}");
        assert_eq!(text.len(), REPLY.len() + "one\n".len() + 100_000);
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
    fn a_client_that_has_closed_its_writing_end_waits_on() {
        let (_directory, path, mut socket) = bound();
        let mut client = unix_socket::connect(&path).unwrap();
        client.write_all(b"{\"command\":\"reload\"}\n").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let now = Instant::now();
        socket.turn(now, |_| Answer::Later(1));
        for _ in 0..3 {
            socket.turn(now, |_| unreachable!("nobody asks"));
        }
        let mut fds: Vec<_> = socket
            .interests()
            .into_iter()
            .map(|(fd, flags)| nix::poll::PollFd::new(fd, flags))
            .collect();
        assert_eq!(nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO), Ok(0), "no spinning");
        let gone = unix_socket::connect(&path).unwrap();
        (&gone).write_all(b"{\"command\":\"reload\"}\n").unwrap();
        gone.shutdown(Shutdown::Write).unwrap();
        socket.turn(now, |_| Answer::Later(2));
        socket.turn(now, |_| unreachable!("nobody asks"));
        assert_eq!(socket.clients.len(), 2);
        drop(gone);
        socket.turn(now, |_| unreachable!("nobody asks"));
        assert_eq!(socket.clients.len(), 1);
        socket.resolve(1, &reply(), VecDeque::new());
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).unwrap();
        assert_eq!(line, REPLY);
    }

    #[test]
    fn whatever_is_waited_for_some_places_stay_free() {
        let kick = &b"{\"command\":\"kick\",\"id\":9}\n"[..];
        let list = b"{\"command\":\"connections\"}\n";
        let reopen = b"{\"command\":\"reopen\",\"wait\":true}\n";
        for request in [kick, list, reopen] {
            let (_directory, path, mut socket) = bound();
            let mut clients: Vec<_> =
                (0..CLIENTS_MAX).map(|_| unix_socket::connect(&path).unwrap()).collect();
            for client in &mut clients {
                client.write_all(request).unwrap();
            }
            socket.turn(Instant::now(), |_| Answer::Later(7));
            assert_eq!(socket.clients.len(), WAITING_MAX);
            let answer = ask(&mut socket, &path, b"{\"command\":\"status\"}\n");
            assert_eq!(answer, "{\"error\":\"Status\"}\n");
        }
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
        let mut number = 0;
        socket.turn(now, |_| {
            number += 1;
            Answer::Later(number)
        });
        // The client that was one too many got an error.
        let mut last = String::new();
        BufReader::new(clients.pop().unwrap()).read_line(&mut last).unwrap();
        assert!(last.contains("too many"), "{last}");
        assert_eq!(socket.clients.len(), WAITING_MAX);
        assert_eq!(socket.next_deadline(), None);
        drop(clients.pop());
        socket.turn(now + 2 * REQUEST_TIME_MAX, |_| unreachable!("nobody asks"));
        assert_eq!(socket.clients.len(), WAITING_MAX - 1);
        socket.resolve(number + 1, &reply(), VecDeque::new());
        assert_eq!(socket.clients.len(), WAITING_MAX - 1);
        for number in 1..=number {
            socket.resolve(number, &Reply::refused(number), VecDeque::new());
        }
        assert!(socket.clients.is_empty());
        for (number, client) in (1..).zip(clients) {
            let mut line = String::new();
            BufReader::new(client).read_line(&mut line).unwrap();
            assert_eq!(line, format!("{{\"error\":\"{number}\"}}\n"));
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        let (directory, path, socket) = bound();
        let error = ControlSocket::bind(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse, "another master's");
        assert!(path.exists());
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
