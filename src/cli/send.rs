//! `chappe send`: frames out, replies printed. A real client, also for scripts.
//!
//! One thread writes and this one reads, so no body is too big and no count too
//! high: whatever the server's limits are, its replies are always read. What
//! keeps the writer from running ahead is the server, by not reading. Once all is
//! answered it can listen: what the server sends unasked is printed too.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use chappe_client::{CODE_GOODBYE, ClientError, Code, Connection, Frame, Receiver, Sender};

use super::body;
use super::first::{First, FirstArgs};
use super::output::{print_error, steers_terminal};
use super::server::{Destination, ServerArgs, parse_timeout};

/// The first of the codes that belong to the server itself.
const CODE_SERVER_MIN: Code = 65280;
/// The last of them that is no answer to a frame: only errors are.
const CODE_SERVER_MAX: Code = CODE_GOODBYE;

/// Send frames and print the replies.
///
/// Exit code 0 only if each frame was answered, and none by an error. What comes while it
/// listens does not count.
#[derive(Debug, clap::Args)]
pub(crate) struct SendArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// The message code
    #[arg(long, value_name = "N", default_value_t = 1)]
    code: Code,
    /// The body as text
    #[arg(long, value_name = "TEXT", group = "source")]
    body: Option<String>,
    /// The body out of a file
    #[arg(long, value_name = "FILE", group = "source")]
    file: Option<PathBuf>,
    /// The body out of standard input
    #[arg(value_name = "-", value_parser = parse_stdin, group = "source")]
    stdin: Option<String>,
    #[command(flatten)]
    first: FirstArgs,
    /// How many times to send it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Then listen for this long, and print what comes
    #[arg(long, value_name = "TIME", value_parser = parse_timeout)]
    listen: Option<Duration>,
}

/// What stands alone is mostly meant to be the body.
fn parse_stdin(text: &str) -> Result<String, String> {
    match text {
        "-" => Ok(text.to_owned()),
        _ => Err("the body is given by --body TEXT or --file FILE; a - reads it from standard \
                  input"
            .to_owned()),
    }
}

/// Why `chappe send` failed.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("cannot read the body")]
    Body(#[source] io::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the first frame was answered by {0}")]
    FirstRefused(String),
    #[error("the first frame was not answered")]
    FirstUnanswered(#[source] ClientError),
    #[error("{answered} of {count} frames were answered")]
    Unanswered { answered: u64, count: u64, source: ClientError },
    #[error("cannot print")]
    Print(#[source] io::Error),
}

/// Runs the command; the exit code is 0 or 1.
pub(crate) fn run(
    args: &SendArgs,
    to: &Destination,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    match exchange(args, to, out) {
        Ok(Outcome { errors: 0 }) => 0,
        Ok(Outcome { errors }) => {
            // The replies have said it already; this is for a reader of stderr alone.
            print_error(
                err,
                &format!("{errors} of {} frames were answered by an error", args.count),
            );
            1
        }
        // The reader of our output has left, as `head` does, and wants no message.
        Err(SendError::Print(e)) if e.kind() == io::ErrorKind::BrokenPipe => 1,
        Err(error) => {
            print_error(err, &chain(&error));
            1
        }
    }
}

/// How it went, once each frame was answered.
struct Outcome {
    /// How many of the answers were error frames.
    errors: u64,
}

fn exchange(args: &SendArgs, to: &Destination, out: &mut dyn Write) -> Result<Outcome, SendError> {
    let body = read_body(args).map_err(SendError::Body)?;
    let mut client = args.server.connect(to)?;
    if let Some(first) = &args.first.first {
        exchange_first(first, &mut client, out)?;
    }
    let (mut sender, mut receiver) = client.split();
    // Only the wait for a reply is bounded: the writer may wait as long as
    // replies come, for this side to print them above all.
    sender.set_timeout(None)?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| send_all(sender, args, &body));
        let outcome = print_replies(&mut receiver, args.count, out).and_then(|outcome| {
            args.listen.map_or(Ok(()), |time| listen(&mut receiver, time, out))?;
            Ok(outcome)
        });
        // However reading ended, the writer must not wait for it any longer.
        receiver.shutdown();
        // What broke the writing shows on the reading side, and better.
        let _ = writer.join().expect("the writer does not panic");
        outcome
    })
}

/// Sends the first frame, prints its answer, and fails if that is an error.
fn exchange_first(
    first: &First,
    client: &mut Connection,
    out: &mut dyn Write,
) -> Result<(), SendError> {
    client.send(first.code, &first.body(1))?;
    loop {
        let frame = client.receive().map_err(SendError::FirstUnanswered)?;
        if let Some(error) = frame.as_error() {
            return Err(SendError::FirstRefused(error.to_string()));
        }
        if let Some(goodbye) = frame.as_goodbye() {
            return Err(SendError::FirstRefused(goodbye.to_string()));
        }
        if !is_of_server(frame.code) {
            return print_frame("first reply", &frame, out).map_err(SendError::Print);
        }
        print_unasked(&frame, out).map_err(SendError::Print)?;
    }
}

/// Whether a frame of this code answers no other frame.
fn is_of_server(code: Code) -> bool {
    (CODE_SERVER_MIN..=CODE_SERVER_MAX).contains(&code)
}

fn send_all(mut sender: Sender, args: &SendArgs, body: &[u8]) -> Result<(), ClientError> {
    for _ in 0..args.count {
        sender.queue(args.code, body)?;
    }
    sender.flush()
}

/// Prints until each frame was answered.
fn print_replies(
    receiver: &mut Receiver,
    count: u64,
    out: &mut dyn Write,
) -> Result<Outcome, SendError> {
    let mut errors = 0;
    let mut answered = 0;
    while answered < count {
        let frame = receiver.receive().map_err(|source| SendError::Unanswered {
            answered,
            count,
            source,
        })?;
        if let Some(error) = frame.as_error() {
            errors += 1;
            answered += 1;
            writeln!(out, "reply {answered}: {error}").map_err(SendError::Print)?;
        } else if is_of_server(frame.code) {
            print_unasked(&frame, out).map_err(SendError::Print)?;
        } else {
            answered += 1;
            let title = format!("reply {answered}");
            print_frame(&title, &frame, out).map_err(SendError::Print)?;
        }
        if !receiver.has_frame() {
            // The next one may be long in coming.
            out.flush().map_err(SendError::Print)?;
        }
    }
    Ok(Outcome { errors })
}

/// Prints what comes, until the time is over or the server has closed the connection.
fn listen(receiver: &mut Receiver, time: Duration, out: &mut dyn Write) -> Result<(), SendError> {
    let deadline = Instant::now() + time;
    loop {
        out.flush().map_err(SendError::Print)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        receiver.set_timeout(Some(left))?;
        match receiver.receive() {
            Ok(frame) => print_unasked(&frame, out).map_err(SendError::Print)?,
            Err(ClientError::TimedOut(_)) => return Ok(()),
            Err(ClientError::Closed) => {
                return writeln!(out, "the server closed the connection").map_err(SendError::Print);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What answers no frame: a message of the application, or of the server itself.
fn print_unasked(frame: &Frame, out: &mut dyn Write) -> io::Result<()> {
    if let Some(error) = frame.as_error() {
        writeln!(out, "{error}")
    } else if let Some(goodbye) = frame.as_goodbye() {
        writeln!(out, "{goodbye}")
    } else if frame.code >= CODE_SERVER_MIN {
        print_frame("server", frame, out)
    } else {
        print_frame("message", frame, out)
    }
}

/// A title line, then the body: as text where it is text, else as a hex dump.
fn print_frame(title: &str, frame: &Frame, out: &mut dyn Write) -> io::Result<()> {
    let bytes = frame.body.len();
    let unit = if bytes == 1 { "byte" } else { "bytes" };
    writeln!(out, "{title}: code {}, {bytes} {unit}", frame.code)?;
    match printable(&frame.body) {
        Some("") => Ok(()),
        Some(text) if text.ends_with('\n') => write!(out, "{text}"),
        Some(text) => writeln!(out, "{text}"),
        None => hex_dump(&frame.body, out),
    }
}

/// The body as text, unless it holds what could steer a terminal.
fn printable(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    text.chars().all(|c| matches!(c, '\n' | '\t') || !steers_terminal(c)).then_some(text)
}

/// Sixteen bytes a line: offset, hex, and the printable ASCII among them.
fn hex_dump(body: &[u8], out: &mut dyn Write) -> io::Result<()> {
    use std::fmt::Write as _;
    for (number, line) in body.chunks(16).enumerate() {
        let mut hex = String::new();
        for (at, byte) in line.iter().enumerate() {
            let gap = if at == 8 { "  " } else { " " };
            let _ = write!(hex, "{gap}{byte:02x}");
        }
        let ascii: String = line
            .iter()
            .map(|b| if (0x20..0x7f).contains(b) { char::from(*b) } else { '.' })
            .collect();
        writeln!(out, "{:08x} {hex:<49} |{ascii}|", number * 16)?;
    }
    Ok(())
}

fn read_body(args: &SendArgs) -> io::Result<Vec<u8>> {
    match args {
        SendArgs { body: Some(text), .. } => body::of_text(text),
        SendArgs { file: Some(path), .. } => body::of_file(path),
        SendArgs { stdin: Some(_), .. } => body::read(io::stdin().lock()),
        _ => Ok(Vec::new()),
    }
}

/// An error with all of its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use clap::Parser;

    use super::*;
    use chappe_client::{BODY_BYTES_MAX, CODE_ERROR};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SendArgs,
    }

    fn destination(address: SocketAddr) -> Destination {
        Destination::new(address, "of the test")
    }

    /// Runs the command against a server of one connection; what it returns is
    /// exit code, output, errors.
    fn run_against(
        line: &[&str],
        serve: impl FnOnce(&mut Connection) + Send,
    ) -> (u8, String, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let line = Line::parse_from([&["send"], line].concat());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let stream = listener.accept().unwrap().0;
                let mut frames = Connection::from_stream(stream, None).unwrap();
                serve(&mut frames);
            });
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let code = run(&line.args, &destination(address), &mut out, &mut err);
            (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
        })
    }

    fn echo(frames: &mut Connection) {
        while let Ok(frame) = frames.receive() {
            frames.send(frame.code, &frame.body).unwrap();
        }
    }

    #[test]
    fn text_is_printed_as_text() {
        let (code, out, err) = run_against(&["--body", "hello", "--count", "2"], echo);
        assert_eq!((code, err.as_str()), (0, ""));
        assert_eq!(out, "reply 1: code 1, 5 bytes\nhello\nreply 2: code 1, 5 bytes\nhello\n");
    }

    #[test]
    fn an_empty_reply_has_its_title_alone() {
        let (code, out, _) = run_against(&["--code", "0"], echo);
        assert_eq!((code, out.as_str()), (0, "reply 1: code 0, 0 bytes\n"));
    }

    #[test]
    fn other_bytes_are_dumped() {
        let (_, out, _) = run_against(&["--body", "\u{1b}[2J and more than a line"], echo);
        let expected = "reply 1: code 1, 25 bytes\n\
            00000000  1b 5b 32 4a 20 61 6e 64  20 6d 6f 72 65 20 74 68 |.[2J and more th|\n\
            00000010  61 6e 20 61 20 6c 69 6e  65                      |an a line|\n";
        assert_eq!(out, expected);
    }

    /// What would turn the order of letters around is no text for a terminal either.
    #[test]
    fn letters_that_turn_the_text_around_are_dumped() {
        for letter in ['\u{202e}', '\u{202a}', '\u{2066}', '\u{2069}', '\u{200f}', '\u{61c}'] {
            let (_, out, _) = run_against(&["--body", &format!("a{letter}b")], echo);
            assert!(!out.contains(letter) && out.contains("\n00000000  61 "), "{out:?}");
        }
        let (_, out, _) = run_against(&["--body", "\u{645}\u{631}"], echo);
        assert!(out.ends_with("\u{645}\u{631}\n"), "{out:?}");
    }

    #[test]
    fn a_first_frame_is_answered_before_anything_else_is_sent() {
        let line = ["--first", "16:user{n}", "--body", "hello"];
        let (code, out, err) = run_against(&line, |frames| {
            let first = frames.receive().unwrap();
            assert_eq!((first.code, &first.body[..]), (16, &b"user1"[..]));
            frames.send(65281, b"news").unwrap();
            frames.send(16, b"welcome").unwrap();
            echo(frames);
        });
        let expected = "server: code 65281, 4 bytes\nnews\nfirst reply: code 16, 7 bytes\nwelcome\n\
            reply 1: code 1, 5 bytes\nhello\n";
        assert_eq!((code, out.as_str(), err.as_str()), (0, expected, ""));
    }

    #[test]
    fn an_error_in_answer_to_the_first_frame_ends_it() {
        let line = ["--first", "16:wrong", "--body", "hello"];
        let (code, out, err) = run_against(&line, |frames| {
            frames.receive().unwrap();
            frames.send(CODE_ERROR, b"\0\x04\0\x10who?").unwrap();
            assert!(
                matches!(frames.receive(), Err(ClientError::Closed)),
                "nothing was sent behind"
            );
        });
        let expected = "chappe: the first frame was answered by error 4 (handler failed) for code 16: \
            who?\n";
        assert_eq!((code, out.as_str(), err.as_str()), (1, "", expected));
    }

    #[test]
    fn many_big_bodies_never_deadlock() {
        let body = "x".repeat(BODY_BYTES_MAX);
        let path = std::env::temp_dir().join(format!("chappe-send-{}", std::process::id()));
        std::fs::write(&path, &body).unwrap();
        let line = ["--count", "300", "--file", path.to_str().unwrap()];
        let (code, out, _) = run_against(&line, |frames| {
            // Nothing is answered before all of it was sent into this server.
            let all: Vec<_> = (0..300).map(|_| frames.receive().unwrap()).collect();
            for frame in all {
                frames.send(frame.code, &frame.body).unwrap();
            }
            assert!(matches!(frames.receive(), Err(ClientError::Closed)));
        });
        std::fs::remove_file(path).unwrap();
        assert_eq!((code, out.lines().count()), (0, 600));
    }

    #[test]
    fn what_comes_unasked_is_printed_while_it_listens() {
        let (code, out, err) = run_against(&["--listen", "30s"], |frames| {
            frames.receive().unwrap();
            for (code, body) in [(1, &b"yes"[..]), (20, b"news"), (65535, b"\0\x06\xff\xffbusy")] {
                frames.send(code, body).unwrap();
            }
            frames.send(CODE_GOODBYE, b"\0\x01see you").unwrap();
        });
        let expected = "reply 1: code 1, 3 bytes\nyes\nmessage: code 20, 4 bytes\nnews\n\
            error 6 (busy): busy\ngoodbye 1 (stopping): see you\n\
            the server closed the connection\n";
        assert_eq!((code, out.as_str(), err.as_str()), (0, expected, ""));
    }

    #[test]
    fn it_listens_for_as_long_as_it_is_told() {
        let (code, out, err) = run_against(&["--listen", "30ms"], |frames| {
            let frame = frames.receive().unwrap();
            frames.send(frame.code, &frame.body).unwrap();
            assert!(matches!(frames.receive(), Err(ClientError::Closed)), "the command leaves");
        });
        assert_eq!((code, out.as_str(), err.as_str()), (0, "reply 1: code 1, 0 bytes\n", ""));
    }

    #[test]
    fn an_error_frame_is_told_in_words_and_fails() {
        let (code, out, err) = run_against(&["--code", "99"], |frames| {
            frames.receive().unwrap();
            frames.send(CODE_ERROR, b"\0\x03\0\x63no handler").unwrap();
        });
        assert_eq!(out, "reply 1: error 3 (unknown code) for code 99: no handler\n");
        assert_eq!((code, err.as_str()), (1, "chappe: 1 of 1 frames were answered by an error\n"));
    }

    #[test]
    fn a_goodbye_is_no_answer() {
        let (code, out, err) = run_against(&["--count", "2"], |frames| {
            let frame = frames.receive().unwrap();
            frames.send(frame.code, &frame.body).unwrap();
            frames.receive().unwrap();
            frames.send(CODE_GOODBYE, b"\0\x01see you").unwrap();
        });
        assert_eq!(out, "reply 1: code 1, 0 bytes\ngoodbye 1 (stopping): see you\n");
        let expected = "chappe: 1 of 2 frames were answered: the server closed the connection\n";
        assert_eq!((code, err.as_str()), (1, expected));
    }

    #[test]
    fn a_silent_server_is_left_after_the_time_out() {
        let (code, _, err) = run_against(&["--timeout", "30ms"], |frames| {
            frames.receive().unwrap();
            assert!(matches!(frames.receive(), Err(ClientError::Closed)));
        });
        assert_eq!(
            (code, err.as_str()),
            (1, "chappe: 0 of 1 frames were answered: nothing within 30ms\n")
        );
    }

    #[test]
    fn a_reader_that_leaves_ends_it_quietly() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let line = Line::parse_from(["send", "--count", "100000"]);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let stream = listener.accept().unwrap().0;
                let mut frames = Connection::from_stream(stream, None).unwrap();
                while let Ok(frame) = frames.receive() {
                    if frames.send(frame.code, &frame.body).is_err() {
                        return;
                    }
                }
            });
            let mut err = Vec::new();
            assert_eq!(run(&line.args, &destination(address), &mut Gone, &mut err), 1);
            assert!(err.is_empty());
        });
    }

    #[test]
    fn one_source_of_the_body_is_enough() {
        assert!(Line::try_parse_from(["send", "--body", "x", "-"]).is_err());
        assert!(Line::try_parse_from(["send", "--file", "x", "--body", "y"]).is_err());
        let stray = Line::try_parse_from(["send", "stray"]).map(|_| ()).unwrap_err().to_string();
        assert!(stray.contains("the body is given by --body TEXT"), "{stray}");
        assert!(Line::try_parse_from(["send", "--count", "0"]).is_err());
        assert!(Line::try_parse_from(["send", "--timeout", "0s"]).is_err());
        assert!(Line::try_parse_from(["send", "-"]).unwrap().args.stdin.is_some());
    }
}
