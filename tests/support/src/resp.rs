//! A client that speaks RESP by the byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::wait::DEADLINE;

/// A connection to a RESP listener.
#[derive(Debug)]
pub struct Resp(TcpStream);

impl Resp {
    /// Connects, with the tests' deadline for each read.
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
        stream.set_nodelay(true).expect("no delay");
        Self(stream)
    }

    /// Sends these bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("sent");
    }

    /// The next bytes, which must be these.
    #[track_caller]
    pub fn expect(&mut self, expected: &[u8]) {
        let mut bytes = vec![0; expected.len()];
        let mut read = 0;
        while read < bytes.len() {
            match self.0.read(&mut bytes[read..]).expect("a reply") {
                0 => break,
                more => read += more,
            }
            // Told at once: a reply that is too short would be waited for.
            if bytes[..read] != expected[..read] {
                break;
            }
        }
        let (bytes, expected) = (bytes[..read].escape_ascii(), expected.escape_ascii());
        assert_eq!(bytes.to_string(), expected.to_string());
    }

    /// Sends a command, as words of a line, and expects this reply.
    #[track_caller]
    pub fn ask(&mut self, line: &str, expected: &str) {
        self.send(format!("{line}\r\n").as_bytes());
        self.expect(expected.as_bytes());
    }

    /// Sends a command, as words of a line, and returns what is answered: one line, and behind
    /// a length so many bytes.
    #[track_caller]
    pub fn text(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n").as_bytes());
        let head = self.line();
        let Some(length) = head.strip_prefix(['$', '=']).filter(|length| !length.starts_with('-'))
        else {
            return head;
        };
        let length: usize = length.parse().expect("a length");
        let mut body = vec![0; length + 2];
        self.0.read_exact(&mut body).expect("the body");
        String::from_utf8(body[..length].to_vec()).expect("UTF-8")
    }

    /// The next line, without its end.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while !line.ends_with(b"\r\n") {
            self.0.read_exact(&mut byte).expect("a line");
            line.push(byte[0]);
        }
        line.truncate(line.len() - 2);
        String::from_utf8(line).expect("UTF-8")
    }

    /// The next value, whole, as its bytes.
    #[track_caller]
    pub fn value(&mut self) -> String {
        let head = self.line();
        let mut value = format!("{head}\r\n");
        let number = head[1..].parse::<i64>().unwrap_or(0);
        match &head[..1] {
            "*" | ">" | "~" => (0..number).for_each(|_| value += &self.value()),
            "%" => (0..number * 2).for_each(|_| value += &self.value()),
            "$" | "=" if number >= 0 => {
                let mut body = vec![0; usize::try_from(number).expect("a length") + 2];
                self.0.read_exact(&mut body).expect("the body");
                value += &String::from_utf8(body).expect("UTF-8");
            }
            _ => {}
        }
        value
    }

    /// What is answered to these bytes, and whether the connection ends with it.
    #[track_caller]
    pub fn exchange(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        const MARK: &[u8] = b"$7\r\n--end--\r\n";
        // What a client of version 2 gets in front of it that has subscriptions.
        const PONG: &[u8] = b"*2\r\n$4\r\npong\r\n";
        self.send(&[bytes, b"*2\r\n$4\r\nPING\r\n$7\r\n--end--\r\n"].concat());
        let (mut reply, mut buffer) = (Vec::new(), [0; 65_536]);
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => return (reply, true),
                Ok(more) => reply.extend_from_slice(&buffer[..more]),
                Err(error) => panic!("{error} after {}", reply.escape_ascii()),
            }
            if let Some(reply) = reply.strip_suffix(MARK) {
                return (reply.strip_suffix(PONG).unwrap_or(reply).to_vec(), false);
            }
        }
    }

    /// Nothing more comes, and the connection ends cleanly.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => assert_eq!(rest.escape_ascii().to_string(), ""),
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("it stays open"),
            Err(error) => panic!("{error}"),
        }
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        &self.0
    }
}
