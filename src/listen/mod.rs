//! Listening sockets: bound by the master before the first fork, inherited by
//! every worker, and never closed while their address stays configured.
//!
//! Nothing here accepts; a listener is a socket and the words it was made from.

mod socket_file;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use chappe_sys::activation;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};
use thiserror::Error;

use crate::config::{self, Address};
use socket_file::SocketFile;

/// Why an address can't be listened on.
#[derive(Debug, Error)]
pub(crate) enum ListenError {
    /// The kernel said no.
    #[error("cannot listen on {address}: {cause}")]
    Bind {
        /// As it stands in the configuration.
        address: Address,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A descriptor was passed to us that is not a listening socket.
    #[error("descriptor {number}, passed by LISTEN_FDS, is not a listening socket: {cause}")]
    Passed {
        /// The descriptor, from 3.
        number: usize,
        /// What it is, or what the kernel said.
        cause: io::Error,
    },
    /// One of the above, with the key that asks for it.
    #[error("{key}: {error}")]
    Named {
        /// The key, behind its place.
        key: String,
        /// What was wrong.
        error: Box<ListenError>,
    },
}

impl ListenError {
    /// Whether somebody else listens there.
    pub(crate) fn is_taken(&self) -> bool {
        match self {
            Self::Bind { cause, .. } => cause.kind() == io::ErrorKind::AddrInUse,
            Self::Named { error, .. } => error.is_taken(),
            Self::Passed { .. } => false,
        }
    }

    /// With the key that asks for the address.
    pub(crate) fn of(self, key: String) -> Self {
        Self::Named { key, error: Box::new(self) }
    }
}

/// A listening, non-blocking socket, as a worker gets it.
#[derive(Debug)]
pub(crate) struct Listener {
    /// The socket.
    pub(crate) socket: OwnedFd,
    /// Where it really listens: with the port that the kernel chose for port 0.
    pub(crate) local: Address,
    /// How its connections are to be treated.
    pub(crate) options: config::Listen,
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A listening socket from the program that started us: systemd's socket activation.
#[derive(Debug)]
pub(crate) struct Passed {
    socket: OwnedFd,
    /// Where it listens.
    pub(crate) address: Address,
}

impl Passed {
    /// The sockets that were passed to this process, in their order. Once.
    ///
    /// # Errors
    /// [`ListenError::Passed`] for anything that is no listening stream socket.
    pub(crate) fn take() -> Result<Vec<Self>, ListenError> {
        let wrong = |number, cause| ListenError::Passed { number, cause };
        let passed = activation::take().map_err(|cause| wrong(activation::FIRST, cause))?;
        let examine = |(nth, socket): (usize, OwnedFd)| {
            let address = activation::listening_address(&socket)
                .map_err(|cause| wrong(activation::FIRST + nth, cause))?;
            let address = match address {
                activation::Address::Ip(address) => Address::Tcp(address),
                activation::Address::Path(path) => Address::Unix(path),
            };
            Ok(Self { socket, address })
        };
        passed.into_iter().enumerate().map(examine).collect()
    }
}

/// One `[[listen]]`, as the master holds it: one socket for all workers, or with
/// `accept = "reuseport"` at least one for each worker number.
///
/// A generation has its own descriptors, also of sockets that it shares with the
/// one before: dropping one generation closes nothing that the other uses.
///
/// Sockets are only ever added while the server runs. One that is closed takes the
/// connects in its queue with it, so when there are fewer workers than sockets,
/// socket K belongs to worker K modulo workers.
#[derive(Debug)]
pub(crate) struct Bound {
    sockets: Vec<OwnedFd>,
    /// Where it listens, as in [`Listener`].
    pub(crate) local: Address,
    /// The options of its connections, as in [`Listener`].
    pub(crate) options: config::Listen,
    /// The file of a Unix socket that was made here. It goes with the last generation
    /// that listens there, in the process that owns it.
    file: Option<Arc<SocketFile>>,
}

impl Bound {
    /// Binds, and does not listen: until [`Bound::listen`] nobody can connect, so
    /// that it can still be given up without a trace. A Unix socket listens at once,
    /// since only that tells it from a stale one; one at which nobody listens any more
    /// is replaced.
    ///
    /// # Errors
    /// The address is taken, forbidden, or not this machine's.
    pub(crate) fn bind(options: &config::Listen, workers: u16) -> Result<Self, ListenError> {
        let (first, local, file) = match &options.address {
            Address::Tcp(address) => bind_tcp(*address, options)
                .map(|(socket, local)| (socket, Address::Tcp(local), None)),
            Address::Unix(path) => SocketFile::bind(path, options.backlog)
                .map(|(socket, file)| (socket, Address::Unix(path.clone()), Some(file))),
        }
        .map_err(failed(options))?;
        let options = options.clone();
        let mut bound = Self { sockets: vec![first], local, options, file: file.map(Arc::new) };
        bound.grow(workers)?;
        Ok(bound)
    }

    /// A socket that listened before we were started.
    ///
    /// # Errors
    /// What more workers need can't be bound.
    pub(crate) fn adopt(
        passed: Passed,
        options: &config::Listen,
        workers: u16,
    ) -> Result<Self, ListenError> {
        let Passed { socket, address } = passed;
        let options = options.clone();
        let mut bound = Self { sockets: vec![socket], local: address, options, file: None };
        bound.grow(workers)?;
        Ok(bound)
    }

    /// Makes this process the one whose drop of the listener removes the file of a
    /// Unix socket: the one that binds, until it has forked the master.
    pub(crate) fn own_file(&mut self) {
        if let Some(file) = self.file.as_mut().and_then(Arc::get_mut) {
            file.own();
        }
    }

    /// The file of a Unix socket is left to another process.
    pub(crate) fn leave_file(&mut self) {
        if let Some(file) = self.file.as_mut().and_then(Arc::get_mut) {
            file.leave();
        }
    }

    /// These sockets for the next generation, with its options.
    ///
    /// # Errors
    /// No descriptor is left, or what more workers need can't be bound.
    pub(crate) fn stay(&self, options: &config::Listen, workers: u16) -> Result<Self, ListenError> {
        let sockets = self
            .sockets
            .iter()
            .map(OwnedFd::try_clone)
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed(options))?;
        let (local, file) = (self.local.clone(), self.file.clone());
        let mut bound = Self { sockets, local, options: options.clone(), file };
        bound.grow(workers)?;
        Ok(bound)
    }

    /// False of a Unix socket whose file was deleted, or is another one's by now.
    pub(crate) fn is_reachable(&self) -> bool {
        self.file.as_ref().is_none_or(|file| file.is_there())
    }

    /// Makes sure that each of `workers` workers has a socket.
    ///
    /// # Errors
    /// The kernel refuses one more.
    pub(crate) fn grow(&mut self, workers: u16) -> Result<(), ListenError> {
        // A Unix socket has one queue, whatever the configuration says.
        if let Address::Tcp(local) = self.local
            && self.options.accept == config::Accept::Reuseport
        {
            while self.sockets.len() < usize::from(workers) {
                let more = bind_tcp(local, &self.options).map_err(failed(&self.options))?;
                self.sockets.push(more.0);
            }
        }
        Ok(())
    }

    /// All its descriptors.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(AsFd::as_fd)
    }

    /// How many sockets there are.
    pub(crate) fn sockets(&self) -> usize {
        self.sockets.len()
    }

    /// Closes all sockets after the first `sockets`, which may only be those that have just been
    /// made: the others take the connects in their queue with them.
    pub(crate) fn shrink(&mut self, sockets: usize) {
        self.sockets.truncate(sockets);
    }

    /// Lets connects in. On a socket that listens it only changes the backlog.
    ///
    /// # Errors
    /// Somebody else has begun to listen there since the bind.
    pub(crate) fn listen(&self) -> Result<(), ListenError> {
        let backlog = i32::try_from(self.options.backlog).unwrap_or(i32::MAX);
        // More than the kernel's somaxconn is cut down by the kernel.
        let backlog = Backlog::new(backlog).unwrap_or(Backlog::MAXALLOWABLE);
        self.sockets
            .iter()
            .try_for_each(|socket| listen(socket, backlog))
            .map_err(|errno| failed(&self.options)(errno.into()))
    }

    /// Closes a Unix socket that is new with this generation, which is given up: nobody
    /// can connect any more, and what waits in its queue is closed now. The workers
    /// that have it, too, may take a while to go.
    pub(crate) fn give_up(&self) {
        // What stays has the same file as in the generation that serves.
        let is_new = self.file.as_ref().is_some_and(|file| Arc::strong_count(file) == 1);
        for socket in self.sockets.iter().filter(|_| is_new) {
            socket_file::refuse_all(socket);
        }
    }

    /// Whether each of `workers` workers has one socket, and none has two.
    pub(crate) fn is_even(&self, workers: u16) -> bool {
        self.is_shared() || self.sockets.len() == usize::from(workers)
    }

    fn is_shared(&self) -> bool {
        self.options.accept == config::Accept::Shared || matches!(self.local, Address::Unix(_))
    }

    /// What one worker listens on, as descriptors of its own.
    ///
    /// # Errors
    /// `EMFILE`: no descriptor is left.
    pub(crate) fn listeners_of(&self, number: u16, workers: u16) -> io::Result<Vec<Listener>> {
        self.sockets_of(number, workers)
            .map(|socket| {
                Ok(Listener {
                    socket: socket.try_clone()?,
                    local: self.local.clone(),
                    options: self.options.clone(),
                })
            })
            .collect()
    }

    /// The sockets of one worker.
    fn sockets_of(&self, number: u16, workers: u16) -> impl Iterator<Item = &OwnedFd> {
        let is_shared = self.is_shared();
        self.sockets
            .iter()
            .enumerate()
            .filter(move |(nth, _)| {
                is_shared || nth % usize::from(workers.max(1)) == usize::from(number)
            })
            .map(|(_, socket)| socket)
    }
}

fn failed(options: &config::Listen) -> impl Fn(io::Error) -> ListenError {
    let address = options.address.clone();
    move |cause| ListenError::Bind { address: address.clone(), cause }
}

fn bind_tcp(address: SocketAddr, options: &config::Listen) -> io::Result<(OwnedFd, SocketAddr)> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    // Non-blocking: with several workers on one socket the connection may be gone
    // to another one by the time that this one accepts.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Stream, flags, None)?;
    // Connections of a server that just ended linger in TIME_WAIT and would keep
    // the next one from its address. It does not let two servers share it.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if options.accept == config::Accept::Reuseport {
        setsockopt(&socket, sockopt::ReusePort, &true)?;
    }
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &options.ipv6only)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    let listener = TcpListener::from(socket);
    let local = listener.local_addr()?;
    Ok((listener.into(), local))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn options(address: &str) -> config::Listen {
        config::Listen {
            address: Address::Tcp(address.parse().unwrap()),
            ..config::Listen::default()
        }
    }

    fn listening(options: &config::Listen, workers: u16) -> Bound {
        let bound = Bound::bind(options, workers).unwrap();
        bound.listen().unwrap();
        bound
    }

    #[test]
    fn port_zero_becomes_a_port_and_the_configured_text_stays() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let bound = Bound::bind(&options(address), 2).unwrap();
            let Address::Tcp(local) = bound.local else { panic!("{:?}", bound.local) };
            assert_ne!(local.port(), 0);
            assert!(TcpStream::connect(local).is_err(), "it does not listen yet");
            bound.listen().unwrap();
            TcpStream::connect(local).unwrap();
            let listeners = bound.listeners_of(1, 2).unwrap();
            assert_eq!(listeners.len(), 1);
            assert_eq!(listeners[0].options.address.to_string(), address);
        }
    }

    #[test]
    fn a_taken_address_is_named_with_the_kernels_reason() {
        let first = listening(&options("127.0.0.1:0"), 1);
        let taken = options(&first.local.to_string());
        let error = Bound::bind(&taken, 1).unwrap_err();
        assert!(error.is_taken());
        let text = error.to_string();
        assert!(text.contains(&first.local.to_string()), "{text}");
        assert!(text.contains("Address already in use"), "{text}");
        let named = error.of("f:1:2: listen.0.address".to_owned());
        assert!(named.is_taken());
        assert_eq!(named.to_string(), format!("f:1:2: listen.0.address: {text}"));
    }

    #[test]
    fn what_stays_listens_on_when_the_generation_before_is_gone() {
        let first = listening(&options("127.0.0.1:0"), 1);
        let Address::Tcp(local) = first.local else { panic!("{:?}", first.local) };
        let next = first.stay(&options("127.0.0.1:0"), 4).unwrap();
        drop(first);
        TcpStream::connect(local).unwrap();
        assert_eq!(next.sockets.len(), 1);
    }

    #[test]
    fn with_reuseport_every_socket_has_a_worker_whatever_their_numbers() {
        let reuseport =
            config::Listen { accept: config::Accept::Reuseport, ..options("127.0.0.1:0") };
        let bound = listening(&reuseport, 5);
        assert!(bound.is_even(5));
        for workers in 1..=5 {
            let fds = |number| bound.sockets_of(number, workers).map(AsRawFd::as_raw_fd);
            let mut all: Vec<_> = (0..workers).flat_map(fds).collect();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), 5, "{workers} workers");
        }
        let next = bound.stay(&reuseport, 7).unwrap();
        assert_eq!(next.sockets.len(), 7);
        assert!(!next.is_even(6));
    }
}
