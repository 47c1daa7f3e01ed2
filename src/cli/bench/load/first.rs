//! The exchange of a connection's first frame: while the socket still blocks, and not a byte
//! more than its answer is read. What the server sends behind that belongs to the run.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use chappe_client::{BodyTooLong, CODE_GOODBYE, Frame};
use chappe_wire::{HEADER_BYTES, Header, encode};

use super::lane::CODE_SERVER_MIN;
use crate::cli::first::First;

/// Why a connection has no part in the run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirstError {
    #[error(transparent)]
    Body(#[from] BodyTooLong),
    #[error("its first frame was answered by {0}")]
    Refused(String),
    #[error("its first frame was not answered within {0:?}")]
    Unanswered(Duration),
    #[error("its first frame was not answered")]
    Broken(#[source] io::Error),
}

impl First {
    /// Sends it on this new connection, which is the `number`th, and waits for the answer,
    /// which must not be an error. The socket blocks until then.
    pub(super) fn exchange(
        &self,
        stream: &mut TcpStream,
        number: u64,
        timeout: Duration,
    ) -> Result<(), FirstError> {
        let frame = encode(self.code, &self.body(number))?;
        stream.set_nonblocking(false).map_err(FirstError::Broken)?;
        let answer = exchange(stream, &frame, timeout).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => FirstError::Unanswered(timeout),
            _ => FirstError::Broken(error),
        })?;
        stream.set_nonblocking(true).map_err(FirstError::Broken)?;
        if let Some(error) = answer.as_error() {
            return Err(FirstError::Refused(error.to_string()));
        }
        if let Some(goodbye) = answer.as_goodbye() {
            return Err(FirstError::Refused(goodbye.to_string()));
        }
        Ok(())
    }
}

/// Writes the frame and reads up to the first frame that can be its answer.
fn exchange(stream: &mut TcpStream, frame: &[u8], timeout: Duration) -> io::Result<Frame> {
    let deadline = Instant::now() + timeout;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(frame)?;
    loop {
        let answer = read_frame(stream, deadline)?;
        if !(CODE_SERVER_MIN..CODE_GOODBYE).contains(&answer.code) {
            return Ok(answer);
        }
    }
}

fn read_frame(stream: &mut TcpStream, deadline: Instant) -> io::Result<Frame> {
    let mut header = [0; HEADER_BYTES];
    read_all(stream, &mut header, deadline)?;
    let invalid = |text| io::Error::new(io::ErrorKind::InvalidData, text);
    let header = Header::read(&header).expect("as many bytes as a header has");
    let bytes = usize::from(header.length).checked_sub(HEADER_BYTES);
    let mut body = vec![0; bytes.ok_or_else(|| invalid("a frame shorter than its header"))?];
    read_all(stream, &mut body, deadline)?;
    if !header.verify(&body) {
        return Err(invalid("a frame with a wrong checksum"));
    }
    Ok(Frame { code: header.code, body: body.into() })
}

/// As `read_exact`, with one deadline for all of it.
fn read_all(stream: &mut TcpStream, mut wanted: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !wanted.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(wanted) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => wanted = &mut wanted[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_client::CODE_ECHO;
    use chappe_wire::{ErrorNumber, error_frame};
    use std::net::TcpListener;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    /// The outcome of a first frame that was answered by these bytes, and both ends.
    fn answered_by(
        bytes: &[u8],
        timeout: Duration,
    ) -> (Result<(), FirstError>, TcpStream, TcpStream) {
        let (mut near, mut far) = pair();
        far.write_all(bytes).unwrap();
        let first: First = "16:user{n}".parse().unwrap();
        let outcome = first.exchange(&mut near, 7, timeout);
        (outcome, near, far)
    }

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn what_comes_behind_the_answer_is_left_for_the_run() {
        let answer = encode(16, b"welcome").unwrap();
        let push = encode(CODE_ECHO, b"news").unwrap();
        let (outcome, mut near, mut far) = answered_by(&[&answer[..], &push[..]].concat(), LONG);
        outcome.unwrap();
        let mut asked = [0; HEADER_BYTES + 5];
        far.read_exact(&mut asked).unwrap();
        assert_eq!(asked, encode(16, b"user7").unwrap()[..]);
        let mut rest = [0; 12];
        // What has arrived is there at once: the socket does not block any more.
        near.read_exact(&mut rest).unwrap();
        assert_eq!(rest, push[..]);
        assert_eq!(near.read(&mut rest).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_error_is_told_in_the_words_of_the_server() {
        let refusal = error_frame(ErrorNumber::HandlerFailed, Some(16), "wrong password");
        let (outcome, ..) = answered_by(&refusal, LONG);
        let text = outcome.unwrap_err().to_string();
        assert!(text.ends_with("for code 16: wrong password"), "{text}");
    }

    #[test]
    fn a_server_that_says_nothing_is_left_after_the_time_out() {
        let (outcome, ..) = answered_by(b"\0", Duration::from_millis(30));
        assert!(matches!(outcome, Err(FirstError::Unanswered(_))), "{outcome:?}");
    }
}
