//! `chappe subscribe` and `chappe publish`: topics from the command line.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use chappe_client::{CODE_PING, ClientError, Connection, Incoming, TopicMessage};

use super::body;
use super::output::{harmless_line, print_error};
use super::send::chain;
use super::server::{Destination, ServerArgs};

/// So often a subscriber gives a sign of life, and wants one: a server closes connections that
/// say nothing.
const PING_EVERY: Duration = Duration::from_secs(10);

/// Subscribe to topics, and print what is published until interrupted
///
/// A line is the topic, a space and the message; what would steer a terminal or end the line is
/// written as an escape. Lost messages are reported on standard error. Ends with exit code 1
/// when the server closes the connection.
#[derive(Debug, clap::Args)]
pub(crate) struct SubscribeArgs {
    /// A topic; with a * at its end all topics that begin so
    #[arg(value_name = "TOPIC", required = true)]
    topics: Vec<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Publish a message to a topic, and print how many subscriptions it has reached
#[derive(Debug, clap::Args)]
pub(crate) struct PublishArgs {
    /// The topic
    #[arg(value_name = "TOPIC")]
    topic: String,
    /// The message as text; - reads it from standard input; without it the message is empty
    #[arg(value_name = "BODY")]
    body: Option<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Why one of the two failed.
#[derive(Debug, thiserror::Error)]
enum TopicsError {
    #[error("cannot read the body")]
    Body(#[source] io::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{topic}")]
    Topic { topic: String, source: ClientError },
    #[error("cannot print")]
    Print(#[source] io::Error),
}

/// Runs `subscribe`; returns the exit code.
pub(crate) fn subscribe(
    args: &SubscribeArgs,
    to: &Destination,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let connected = args.server.connect(to).map_err(TopicsError::from);
    let ended = connected.and_then(|mut connection| {
        for topic in &args.topics {
            let refused = |source| TopicsError::Topic { topic: topic.clone(), source };
            connection.subscribe(topic).map_err(refused)?;
        }
        print_messages(&mut connection, PING_EVERY, out, err)
    });
    exit_code(ended, err)
}

/// Runs `publish`; returns the exit code.
pub(crate) fn publish(
    args: &PublishArgs,
    to: &Destination,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let read = match args.body.as_deref() {
        None => Ok(Vec::new()),
        Some("-") => body::read(io::stdin().lock()),
        Some(text) => body::of_text(text),
    };
    let done = read.map_err(TopicsError::Body).and_then(|payload| {
        let answer = args.server.connect(to)?.publish(&args.topic, &payload)?;
        let unit = if answer.subscribers == 1 { "subscriber" } else { "subscribers" };
        let line = format!("{} {unit}, offset {}\n", answer.subscribers, answer.offset);
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).map_err(TopicsError::Print)
    });
    exit_code(done, err)
}

fn exit_code(done: Result<(), TopicsError>, err: &mut dyn Write) -> u8 {
    match done {
        Ok(()) => 0,
        // The reader of our output has left, as `head` does: that is the end and no failure.
        Err(TopicsError::Print(e)) if e.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            print_error(err, &chain(&error));
            1
        }
    }
}

/// Prints until the connection ends, which is an error.
fn print_messages(
    connection: &mut Connection,
    ping_every: Duration,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<(), TopicsError> {
    let (mut ping_at, mut is_alive) = (Instant::now() + ping_every, true);
    loop {
        let left = ping_at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            if !is_alive {
                return Err(ClientError::TimedOut(ping_every).into());
            }
            connection.send(CODE_PING, b"")?;
            (ping_at, is_alive) = (Instant::now() + ping_every, false);
            continue;
        }
        connection.set_timeout(Some(left))?;
        match connection.next_message() {
            Ok(incoming) => {
                is_alive = true;
                print_incoming(&incoming, out, err).map_err(TopicsError::Print)?;
            }
            Err(ClientError::TimedOut(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn print_incoming(incoming: &Incoming, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<()> {
    match incoming {
        Incoming::Message(TopicMessage { topic, body, .. }) => {
            let mut line = harmless_line(&[topic.as_bytes(), b" ", body].concat());
            line.push(b'\n');
            // At once: the next one may be long in coming.
            out.write_all(&line)?;
            out.flush()?;
        }
        Incoming::Gap { lost } => print_error(err, &format!("at most {lost} messages are lost")),
        Incoming::Frame(frame) => {
            if let Some(goodbye) = frame.as_goodbye() {
                print_error(err, &goodbye.to_string());
            } else if let Some(error) = frame.as_error() {
                print_error(err, &error.to_string());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use clap::Parser;

    use super::*;
    use chappe_client::{CODE_ERROR, CODE_GAP, CODE_GOODBYE, CODE_MESSAGE, CODE_SUBSCRIBE};

    #[derive(Parser)]
    enum Line {
        Subscribe(SubscribeArgs),
        Publish(PublishArgs),
    }

    /// Runs the command against a server of one connection; what it returns is exit code,
    /// output, errors.
    fn run_against(
        line: &[&str],
        serve: impl FnOnce(&mut Connection) + Send,
    ) -> (u8, String, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let line = Line::parse_from([&["chappe"], line].concat());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let stream = listener.accept().unwrap().0;
                serve(&mut Connection::from_stream(stream, None).unwrap());
            });
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let to = &Destination::new(address, "of the test");
            let code = match &line {
                Line::Subscribe(args) => subscribe(args, to, &mut out, &mut err),
                Line::Publish(args) => publish(args, to, &mut out, &mut err),
            };
            (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
        })
    }

    fn confirm(frames: &mut Connection) {
        assert_eq!(frames.receive().unwrap().code, CODE_SUBSCRIBE);
        frames.send(CODE_SUBSCRIBE, &[0; 21]).unwrap();
    }

    fn message(offset: u8, topic: &str, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(topic.len()).unwrap();
        [&[0, 0, 0, 0, 0, 0, 0, offset, length], topic.as_bytes(), payload].concat()
    }

    #[test]
    fn each_message_is_a_line() {
        let (code, out, err) = run_against(&["subscribe", "a", "news.*"], |frames| {
            confirm(frames);
            confirm(frames);
            frames.send(CODE_MESSAGE, &message(1, "a", b"hello")).unwrap();
            frames.send(CODE_MESSAGE, &message(2, "a", b"\x1b[2J\nred\xff")).unwrap();
            frames.send(CODE_GAP, &[0, 0, 0, 0, 0, 0, 0, 2]).unwrap();
            frames.send(20, b"no message of a topic").unwrap();
            frames.send(CODE_MESSAGE, &message(5, "news.x", b"")).unwrap();
            frames.send(CODE_GOODBYE, b"\0\x02").unwrap();
        });
        assert_eq!(out, "a hello\na \\x1b[2J\\x0ared\\xff\nnews.x \n");
        let expected = "chappe: at most 2 messages are lost\n\
            chappe: goodbye 2 (reloading, connect again)\n\
            chappe: the server closed the connection\n";
        assert_eq!((code, err.as_str()), (1, expected));
    }

    #[test]
    fn a_topic_that_is_refused_is_named() {
        let (code, out, err) = run_against(&["subscribe", "a", "$b"], |frames| {
            confirm(frames);
            frames.receive().unwrap();
            frames.send(CODE_ERROR, b"\0\x0a\0\x04not yours").unwrap();
        });
        let expected = "chappe: $b: error 10 (not allowed) for code 4: not yours\n";
        assert_eq!((code, out.as_str(), err.as_str()), (1, "", expected));
    }

    #[test]
    fn a_subscriber_gives_signs_of_life_and_wants_them() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut ours = Connection::from_socket(ours.into(), None).unwrap();
        let mut theirs = Connection::from_socket(theirs.into(), None).unwrap();
        let server = std::thread::spawn(move || {
            for _ in 0..2 {
                assert_eq!(theirs.receive().unwrap().code, CODE_PING);
                theirs.send(CODE_PING, b"").unwrap();
            }
            // The third one gets no answer.
            assert_eq!(theirs.receive().unwrap().code, CODE_PING);
            theirs
        });
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let every = Duration::from_millis(50);
        let ended = print_messages(&mut ours, every, &mut out, &mut err).unwrap_err();
        assert_eq!(ended.to_string(), "nothing within 50ms");
        assert!(out.is_empty() && err.is_empty());
        drop(server.join().unwrap());
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
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut ours = Connection::from_socket(ours.into(), None).unwrap();
        let mut theirs = Connection::from_socket(theirs.into(), None).unwrap();
        theirs.send(CODE_MESSAGE, &message(1, "a", b"hello")).unwrap();
        let mut err = Vec::new();
        let ended = print_messages(&mut ours, PING_EVERY, &mut Gone, &mut err);
        assert_eq!((exit_code(ended, &mut err), err.is_empty()), (0, true));
    }

    #[test]
    fn a_publish_says_whom_it_has_reached() {
        let answer = |subscribers| [0, 0, 0, 0, 0, 0, 0, 42, 0, 0, 0, subscribers];
        for (line, body, subscribers, said) in [
            (&["publish", "a", "hello"][..], &b"\x01ahello"[..], 1, "1 subscriber, offset 42\n"),
            (&["publish", "a"], b"\x01a", 3, "3 subscribers, offset 42\n"),
        ] {
            let (code, out, err) = run_against(line, |frames| {
                let frame = frames.receive().unwrap();
                assert_eq!(frame.body, body);
                frames.send(frame.code, &answer(subscribers)).unwrap();
            });
            assert_eq!((code, out.as_str(), err.as_str()), (0, said, ""));
        }
        let long = "x".repeat(256);
        let (code, _, err) = run_against(&["publish", &long], |_| {});
        let expected = "chappe: a topic of 256 bytes is too long, 255 is the most\n";
        assert_eq!((code, err.as_str()), (1, expected));
    }

    #[test]
    fn what_is_missing_is_a_wrong_command_line() {
        for line in [
            &["chappe", "subscribe"][..],
            &["chappe", "publish"],
            &["chappe", "publish", "a", "b", "c"],
        ] {
            assert_eq!(Line::try_parse_from(line).err().map(|e| e.exit_code()), Some(2));
        }
    }
}
