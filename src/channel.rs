//! The line between the master and one worker: a pair of sockets that keeps
//! message boundaries. A message is one byte and a number, some with an open file.
//!
//! What a worker is to do stands in its slot of the zone, and the channel only rings:
//! [`Message::Orders`]. Besides its messages it tells of death: when one end is gone, the
//! other one sees it closed. The master uses its end in its loop and the worker's event loop
//! the other; neither ever sleeps in it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use chappe_sys::unix_socket;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

/// A message and its number.
const PARCEL_BYTES: usize = 1 + size_of::<u64>();

/// What is said on a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Message {
    /// Master to worker: your orders have changed, read them in your slot. They are to be
    /// read after any other message as well, since this one is not sent while the channel
    /// is full.
    Orders = b'O',
    /// Worker to master: look into my slot, I am ready.
    Ready = b'R',
    /// Master to worker or hub: this file is your log from now on. The number is a ticket.
    SwapLog = b'L',
    /// Worker to master: done with what this ticket asked for; perhaps with a file
    /// that holds the answer.
    Done = b'A',
    /// Worker to master: what this ticket asked for could not be done.
    NotDone = b'N',
    /// Worker or hub to master: have all logs reopened.
    AskReopen = b'o',
    /// Master to worker: list your connections. The number is a ticket.
    ListConnections = b'C',
    /// Master to worker: list the connections that are blocked. The number is a ticket.
    ListSlowConnections = b'c',
    /// Master to worker: close the connection with this id.
    Kick = b'K',
    /// Worker to master: the connection with this id is being closed.
    Kicked = b'k',
    /// Worker to master: there is no connection with this id here.
    NotKicked = b'n',
    /// Master to hub: the memory of a worker's life; the number is the name of that.
    LifeBegins = b'B',
    /// Master to hub: this life is over.
    LifeEnds = b'E',
    /// Hub to master: everything is read that this life has left.
    LifeIsRead = b'e',
    /// Hub to master: the worker of this life has written over its memory.
    LifeIsCorrupt = b'X',
    /// Master to hub: so many names there may be.
    NamesMax = b'M',
    /// Master to hub: log from the level in this place of the list on.
    LogLevel = b'l',
    /// Master to hub: list the topics. The number is a ticket.
    ListTopics = b't',
}

impl Message {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Orders,
            Self::Ready,
            Self::SwapLog,
            Self::Done,
            Self::NotDone,
            Self::AskReopen,
            Self::ListConnections,
            Self::ListSlowConnections,
            Self::Kick,
            Self::Kicked,
            Self::NotKicked,
            Self::LifeBegins,
            Self::LifeEnds,
            Self::LifeIsRead,
            Self::LifeIsCorrupt,
            Self::NamesMax,
            Self::LogLevel,
            Self::ListTopics,
        ]
        .into_iter()
        .find(|message| *message as u8 == byte)
    }
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The other end said this.
    Message(Message),
    /// The other end has sent an invalid message.
    Nonsense,
    /// The other end is gone, and nothing will come any more.
    Closed,
}

/// A message with what came with it.
#[derive(Debug)]
pub struct Parcel {
    /// What was said.
    pub message: Message,
    /// A number, 0 without one.
    pub value: u64,
    /// An open file. Missing although it was sent if the receiver may have no more
    /// descriptors.
    pub file: Option<OwnedFd>,
}

/// What came, with all that came with it.
#[derive(Debug)]
pub enum ReceivedParcel {
    /// The other end said this.
    Parcel(Parcel),
    /// The other end has sent an invalid message. Descriptors that came with it are closed.
    Nonsense,
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
        self.send_parcel(message, 0, None)
    }

    /// Says something with a number, and hands over an open file. Never sleeps.
    ///
    /// # Errors
    /// Those of [`ChannelEnd::send`].
    pub fn send_parcel(
        &self,
        message: Message,
        value: u64,
        file: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut bytes = [0; PARCEL_BYTES];
        bytes[0] = message as u8;
        bytes[1..].copy_from_slice(&value.to_le_bytes());
        unix_socket::send_message(self.socket.as_fd(), &bytes, file)
    }

    /// The next thing that came; `None` when there is nothing yet. Never sleeps.
    ///
    /// # Errors
    /// Of recvmsg.
    pub fn try_receive_parcel(&self) -> io::Result<Option<ReceivedParcel>> {
        let mut bytes = [0; PARCEL_BYTES];
        let message = match unix_socket::receive_message(self.socket.as_fd(), &mut bytes) {
            Ok(message) if message.bytes == 0 => return Ok(Some(ReceivedParcel::Closed)),
            Ok(message) => message,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::ConnectionReset => Ok(Some(ReceivedParcel::Closed)),
                    io::ErrorKind::WouldBlock => Ok(None),
                    _ => Err(error),
                };
            }
        };
        let mut descriptors = message.descriptors.into_iter();
        let file = descriptors.next();
        let is_whole = message.bytes == PARCEL_BYTES && !message.is_cut;
        let [kind, value @ ..] = bytes;
        Ok(Some(match Message::from_byte(kind) {
            Some(message) if is_whole && descriptors.next().is_none() => {
                let value = u64::from_le_bytes(value);
                ReceivedParcel::Parcel(Parcel { message, value, file })
            }
            _ => ReceivedParcel::Nonsense,
        }))
    }

    /// Receives a message if there is one, and closes a descriptor that comes with it; otherwise
    /// like [`ChannelEnd::try_receive_parcel`].
    ///
    /// # Errors
    /// Those of [`ChannelEnd::try_receive_parcel`].
    pub fn try_receive(&self) -> io::Result<Option<Received>> {
        Ok(self.try_receive_parcel()?.map(|received| match received {
            ReceivedParcel::Parcel(parcel) => Received::Message(parcel.message),
            ReceivedParcel::Nonsense => Received::Nonsense,
            ReceivedParcel::Closed => Received::Closed,
        }))
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
        let messages = [Message::Orders, Message::Kick, Message::ListConnections, Message::Orders];
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
        assert!(master.send(Message::Orders).is_err());
    }

    #[test]
    fn a_file_goes_over_and_is_the_receivers_own() {
        use std::io::{Read, Seek, Write};
        let (master, worker) = Channel::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        master.send_parcel(Message::SwapLog, u64::MAX, Some(file.as_fd())).unwrap();
        master.send(Message::Orders).unwrap();
        let received = worker.try_receive_parcel().unwrap();
        let Some(ReceivedParcel::Parcel(parcel)) = received else { panic!("{received:?}") };
        assert_eq!((parcel.message, parcel.value), (Message::SwapLog, u64::MAX));
        let mut theirs = std::fs::File::from(parcel.file.unwrap());
        file.write_all(b"text").unwrap();
        theirs.rewind().unwrap();
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "text");
        assert_eq!(worker.try_receive().unwrap(), Some(Received::Message(Message::Orders)));
        assert_eq!(worker.try_receive().unwrap(), None);
    }

    #[test]
    fn unheard_messages_do_not_hide_the_end() {
        let (master, worker) = Channel::pair().unwrap();
        master.send(Message::Orders).unwrap();
        drop(worker);
        assert_eq!(master.try_receive().unwrap(), Some(Received::Closed));
    }

    #[test]
    fn a_full_channel_refuses_instead_of_sleeping() {
        let (master, _worker) = Channel::pair().unwrap();
        let refused = (0..100_000).find_map(|_| master.send(Message::Orders).err());
        assert_eq!(refused.unwrap().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_no_message_is_nonsense() {
        let (master, worker) = Channel::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut whole = [0; PARCEL_BYTES];
        whole[0] = Message::Ready as u8;
        let too_long = [&whole[..], &[0]].concat();
        for bytes in [&[Message::Ready as u8][..], &whole[..8], &too_long, &[b'?'; PARCEL_BYTES]] {
            for file in [None, Some(null.as_fd())] {
                unix_socket::send_message(worker.socket.as_fd(), bytes, file).unwrap();
                assert_eq!(master.try_receive().unwrap(), Some(Received::Nonsense));
            }
        }
        unix_socket::send_message(worker.socket.as_fd(), &whole, None).unwrap();
        assert_eq!(master.try_receive().unwrap(), Some(Received::Message(Message::Ready)));
    }
}
