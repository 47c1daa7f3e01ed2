//! The line between the master and one worker: a pair of sockets that keeps
//! message boundaries, one byte a message.
//!
//! Besides its messages it tells of death: when one end is gone, the other one
//! sees it closed. The master uses its end in its loop and the worker's event loop
//! the other; neither ever sleeps in it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};

/// What is said on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Message {
    /// Master to worker: accept connections.
    Serve = b'S',
    /// Master to worker: stop gracefully.
    Drain = b'D',
    /// Master to worker: another generation serves now; stop gracefully, spread over
    /// `worker_drain_spread`, and tell clients to connect again.
    DrainForReload = b'L',
    /// Master to worker: stop now.
    Terminate = b'T',
    /// Worker to master: look into my slot, I am ready.
    Ready = b'R',
}

impl Message {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Serve, Self::Drain, Self::DrainForReload, Self::Terminate, Self::Ready]
            .into_iter()
            .find(|message| *message as u8 == byte)
    }
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The other end said this.
    Message(Message),
    /// The other end is gone, and nothing will come any more.
    Closed,
}

/// One end of a channel.
#[derive(Debug)]
pub struct ChannelEnd {
    socket: OwnedFd,
}

/// The end that the master keeps.
pub(crate) type MasterEnd = ChannelEnd;

/// The end that a worker keeps.
pub type WorkerEnd = ChannelEnd;

/// Both ends, before the fork.
#[derive(Debug)]
pub(crate) struct Channel;

impl Channel {
    /// A new channel.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub(crate) fn pair() -> io::Result<(MasterEnd, WorkerEnd)> {
        // SOCK_SEQPACKET, not a stream: a message can't be cut or glued, and unlike
        // datagrams it tells when the other end is gone.
        let (master, worker) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        Ok((ChannelEnd { socket: master }, ChannelEnd { socket: worker }))
    }
}

impl ChannelEnd {
    /// Says something. Never sleeps.
    ///
    /// # Errors
    /// `BrokenPipe` when the other end is gone; `WouldBlock` when it has not listened
    /// for hundreds of messages.
    pub fn send(&self, message: Message) -> io::Result<()> {
        loop {
            match send(self.socket.as_raw_fd(), &[message as u8], MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next thing that came; `None` when there is nothing yet. Never sleeps.
    ///
    /// # Errors
    /// Of recv; `InvalidData` for a byte that is no message.
    pub fn try_receive(&self) -> io::Result<Option<Received>> {
        let mut byte = [0];
        loop {
            match recv(self.socket.as_raw_fd(), &mut byte, MsgFlags::empty()) {
                Ok(0) | Err(Errno::ECONNRESET) => return Ok(Some(Received::Closed)),
                Ok(_) => {
                    let message = Message::from_byte(byte[0])
                        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
                    return Ok(Some(Received::Message(message)));
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Readable when [`ChannelEnd::try_receive`] has something, the end included.
impl AsFd for ChannelEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_one_by_one() {
        let (master, worker) = Channel::pair().unwrap();
        let messages =
            [Message::Serve, Message::Drain, Message::DrainForReload, Message::Terminate];
        for message in messages {
            master.send(message).unwrap();
        }
        for message in messages {
            assert_eq!(worker.try_receive().unwrap(), Some(Received::Message(message)));
        }
        assert_eq!(worker.try_receive().unwrap(), None);
        worker.send(Message::Ready).unwrap();
        assert_eq!(master.try_receive().unwrap(), Some(Received::Message(Message::Ready)));
    }

    #[test]
    fn what_was_said_before_the_end_is_heard_and_then_the_end() {
        let (master, worker) = Channel::pair().unwrap();
        worker.send(Message::Ready).unwrap();
        drop(worker);
        assert_eq!(master.try_receive().unwrap(), Some(Received::Message(Message::Ready)));
        assert_eq!(master.try_receive().unwrap(), Some(Received::Closed));
        assert_eq!(master.try_receive().unwrap(), Some(Received::Closed));
        assert!(master.send(Message::Serve).is_err());
    }

    #[test]
    fn unheard_messages_do_not_hide_the_end() {
        let (master, worker) = Channel::pair().unwrap();
        master.send(Message::Serve).unwrap();
        drop(worker);
        assert_eq!(master.try_receive().unwrap(), Some(Received::Closed));
    }

    #[test]
    fn a_full_channel_refuses_instead_of_sleeping() {
        let (master, _worker) = Channel::pair().unwrap();
        let refused = (0..100_000).find_map(|_| master.send(Message::Serve).err());
        assert_eq!(refused.unwrap().kind(), io::ErrorKind::WouldBlock);
    }
}
