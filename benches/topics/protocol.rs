//! The three protocols, as far as a run needs them.

use chappe_wire::{
    CODE_ERROR, CODE_MESSAGE, CODE_PING, CODE_PUBLISH, CODE_SUBSCRIBE, HEADER_BYTES, Header,
    append_frame,
};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Protocol {
    Resp,
    Nats,
    Chappe,
}

/// What a subscriber gets, but for the payloads.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    topic: String,
    /// What stands before each payload, where it is always alike.
    head: Vec<u8>,
    size: usize,
}

/// What the input begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// A message of so many bytes.
    Message(usize, &'a [u8]),
    /// The server wants to know whether somebody is there.
    Ping(usize),
    /// More is to come.
    Nothing,
}

const NATS_PING: &[u8] = b"PING\r\n";
/// What the server is answered.
pub(crate) const NATS_PONG: &[u8] = b"PONG\r\n";

fn wrong(input: &[u8]) -> String {
    format!("the server said {:?}", String::from_utf8_lossy(&input[..input.len().min(120)]))
}

/// The bytes of a line, with its end.
fn line(input: &[u8]) -> Option<&[u8]> {
    let end = input.windows(2).position(|two| two == b"\r\n")?;
    Some(&input[..end + 2])
}

/// The first frame, if it is there.
fn frame(input: &[u8]) -> Option<(Header, &[u8])> {
    let header = Header::read(input)?;
    let frame = input.get(..usize::from(header.length))?;
    Some((header, frame))
}

impl Protocol {
    /// Connects, and says what has to be said first.
    pub(crate) fn connect(self, to: SocketAddr) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        if self == Self::Nats {
            stream.write_all(b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\nPING\r\n")?;
            read_until(&mut stream, |input| input.ends_with(NATS_PONG))?;
        }
        Ok(stream)
    }

    /// Subscribes, and waits until that is confirmed.
    pub(crate) fn subscribe(self, stream: &mut TcpStream, topic: &str) -> io::Result<()> {
        match self {
            Self::Resp => {
                let length = topic.len();
                write!(stream, "*2\r\n$9\r\nSUBSCRIBE\r\n${length}\r\n{topic}\r\n")?;
                read_until(stream, |input| input.ends_with(b":1\r\n"))
            }
            Self::Nats => {
                write!(stream, "SUB {topic} 1\r\nPING\r\n")?;
                read_until(stream, |input| input.ends_with(NATS_PONG))
            }
            Self::Chappe => {
                let mut out = bytes::BytesMut::new();
                append_frame(&mut out, CODE_SUBSCRIBE, &body_of(topic, b""))
                    .map_err(io::Error::other)?;
                stream.write_all(&out)?;
                read_until(stream, |input| {
                    frame(input).is_some_and(|(header, _)| header.code == CODE_SUBSCRIBE)
                })
            }
        }
    }

    /// What a subscriber of this topic gets.
    pub(crate) fn expected(self, topic: &str, size: usize) -> Expected {
        let length = topic.len();
        let head = match self {
            Self::Resp => {
                format!("*3\r\n$7\r\nmessage\r\n${length}\r\n{topic}\r\n${size}\r\n").into()
            }
            Self::Nats => format!("MSG {topic} 1 {size}\r\n").into(),
            Self::Chappe => Vec::new(),
        };
        Expected { topic: topic.to_owned(), head, size }
    }

    /// What the input of a subscriber begins with.
    ///
    /// # Errors
    /// What it should not.
    pub(crate) fn message<'a>(self, input: &'a [u8], it: &Expected) -> Result<Found<'a>, String> {
        if self == Self::Chappe {
            return native_message(input, it);
        }
        let (begin, bytes) = (it.head.len(), it.head.len() + it.size + 2);
        if input.len() >= bytes && input.starts_with(&it.head) {
            return Ok(Found::Message(bytes, &input[begin..bytes - 2]));
        }
        let common = input.len().min(begin);
        if input[..common] == it.head[..common] {
            return Ok(Found::Nothing);
        }
        let is_ping = self == Self::Nats && NATS_PING.starts_with(&input[..input.len().min(6)]);
        match (is_ping, input.len() >= NATS_PING.len()) {
            (true, true) => Ok(Found::Ping(NATS_PING.len())),
            (true, false) => Ok(Found::Nothing),
            (false, _) => Err(wrong(input)),
        }
    }

    /// Appends what publishes a message. NATS answers nothing.
    pub(crate) fn publish(self, out: &mut Vec<u8>, topic: &str, payload: &[u8]) {
        let (length, size) = (topic.len(), payload.len());
        match self {
            Self::Resp => {
                _ = write!(out, "*3\r\n$7\r\nPUBLISH\r\n${length}\r\n{topic}\r\n${size}\r\n");
                out.extend_from_slice(payload);
                out.extend_from_slice(b"\r\n");
            }
            Self::Nats => {
                _ = write!(out, "PUB {topic} {size}\r\n");
                out.extend_from_slice(payload);
                out.extend_from_slice(b"\r\n");
            }
            Self::Chappe => append_native(out, CODE_PUBLISH, &body_of(topic, payload)),
        }
    }

    /// Appends a request that does nothing.
    pub(crate) fn ping(self, out: &mut Vec<u8>) {
        match self {
            Self::Resp => out.extend_from_slice(b"*1\r\n$4\r\nPING\r\n"),
            Self::Nats => out.extend_from_slice(NATS_PING),
            Self::Chappe => append_native(out, CODE_PING, b""),
        }
    }

    /// How many bytes the first answer has, once it is there.
    ///
    /// # Errors
    /// It is an error.
    pub(crate) fn answer(self, input: &[u8]) -> Result<Option<usize>, String> {
        if self == Self::Chappe {
            return match frame(input) {
                Some((header, _)) if header.code == CODE_ERROR => Err(wrong(input)),
                Some((_, frame)) => Ok(Some(frame.len())),
                None => Ok(None),
            };
        }
        let Some(line) = line(input) else { return Ok(None) };
        let is_right = match self {
            Self::Nats => line == NATS_PONG || line == NATS_PING,
            Self::Resp | Self::Chappe => line[0] == b':' || line == b"+PONG\r\n",
        };
        if is_right { Ok(Some(line.len())) } else { Err(wrong(input)) }
    }

    /// Whether an answer of so many bytes is none, but a question of the server's.
    pub(crate) fn is_question(self, answer: &[u8]) -> bool {
        self == Self::Nats && answer == NATS_PING
    }

    /// Whether a publish is answered.
    pub(crate) fn answers(self) -> bool {
        self != Self::Nats
    }
}

fn body_of(topic: &str, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(topic.len()).expect("topics here are short");
    [&[length], topic.as_bytes(), payload].concat()
}

fn append_native(out: &mut Vec<u8>, code: u16, body: &[u8]) {
    out.extend_from_slice(&chappe_wire::encode(code, body).expect("payloads here are short"));
}

fn native_message<'a>(input: &'a [u8], it: &Expected) -> Result<Found<'a>, String> {
    let Some((header, frame)) = frame(input) else { return Ok(Found::Nothing) };
    let body = &frame[HEADER_BYTES..];
    let payload = body.get(9 + it.topic.len()..).filter(|payload| payload.len() == it.size);
    let is_right = header.code == CODE_MESSAGE
        && header.verify(body)
        && body.get(9..9 + it.topic.len()) == Some(it.topic.as_bytes());
    match payload {
        Some(payload) if is_right => Ok(Found::Message(frame.len(), payload)),
        _ => Err(wrong(input)),
    }
}

fn read_until(stream: &mut TcpStream, is_all: impl Fn(&[u8]) -> bool) -> io::Result<()> {
    let mut input = Vec::new();
    let mut piece = [0; 4096];
    while !is_all(&input) {
        let received = stream.read(&mut piece)?;
        if received == 0 {
            return Err(io::Error::other(wrong(&input)));
        }
        input.extend_from_slice(&piece[..received]);
    }
    Ok(())
}
