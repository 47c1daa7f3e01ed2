//! Begun frames and the memory that all of them share: a client that goes on with its frame
//! is answered, however many others have begun one and do not go on.

use std::fmt::Display;
use std::time::{Duration, Instant};

use chappe_client::{CODE_ECHO, ClientError, Connection, ErrorNumber};
use chappe_wire::encode;

use chappe_testkit::{DEADLINE, Numbered, TestServer, pause};

/// A sixty-fourth of the default. That begun frames run out of time is no help here.
const TOML: &str = "worker_processes = 1
[inbox]
max_bytes = \"256KiB\"
total_max_bytes = \"4MiB\"
[timeouts]
frame = \"1h\"
";

const TOTAL_MAX_BYTES: usize = 4 << 20;

/// What a stalled client's frame would have if it were whole.
const STALLED_BYTES: usize = 62_008;

/// Of those who go on, what each echo takes in turn.
const BYTES: [usize; 2] = [2000, 60_000];
const GO_ON: u32 = 8;
const ECHOES: u32 = 24;

/// They write this much at a time, as over a network, and pause.
const PIECE_BYTES: usize = 15_000;
const PAUSE: Duration = Duration::from_millis(10);
/// The first of them is on a slower one.
const LONG_PAUSE: Duration = Duration::from_millis(50);

/// One echo, in pieces.
fn echo(client: &mut Connection, stream: u32, number: u32) -> Result<(), String> {
    let bytes = BYTES[usize::try_from(number % 2).expect("small")];
    let body = Numbered { stream, number, bytes }.body();
    let text = |error: &dyn Display| error.to_string();
    for piece in encode(CODE_ECHO, &body).expect("it fits").chunks(PIECE_BYTES) {
        client.send_bytes(piece).map_err(|error| text(&error))?;
        let time = if stream == 0 { LONG_PAUSE } else { PAUSE };
        pause(time, "the frame arrives in pieces, as over a network");
    }
    let reply = client.receive().map_err(|error| text(&error))?;
    match reply.as_error() {
        Some(error) => Err(text(&error)),
        None if reply.code == CODE_ECHO && reply.body == body => Ok(()),
        None => Err(format!("code {} and {} bytes", reply.code, reply.body.len())),
    }
}

/// All echoes over this one connection: how long they took, or how many came and what
/// came then.
fn go_on(client: &mut Connection, stream: u32) -> Result<Duration, String> {
    let start = Instant::now();
    for number in 0..ECHOES {
        let echoed = echo(client, stream, number);
        let elapsed = start.elapsed();
        let late = if elapsed < DEADLINE { Ok(()) } else { Err("too late".to_owned()) };
        let after = |what| format!("client {stream}: {number} echoes, after {elapsed:.1?}: {what}");
        echoed.and(late).map_err(after)?;
    }
    Ok(start.elapsed())
}

/// Whether a stalled client was closed, which must be after the right error.
#[track_caller]
fn is_closed(client: &mut Connection) -> bool {
    client.set_timeout(Some(Duration::from_millis(1))).expect("a time-out");
    match client.receive() {
        Err(ClientError::TimedOut(_)) => false,
        Ok(frame) if frame.as_error().is_some_and(|it| it.is(ErrorNumber::FrameTimeout)) => true,
        other => panic!("{other:?}"),
    }
}

/// `stalled` clients send `bytes` bytes of a large frame, and then nothing more.
fn check(test: &str, stalled: usize, bytes: usize) {
    assert!(stalled * bytes > TOTAL_MAX_BYTES && bytes < STALLED_BYTES);
    let server = TestServer::start(test, TOML);
    let mut clients: Vec<_> = (0..GO_ON).map(|stream| (stream, server.connect())).collect();
    for (stream, client) in &mut clients {
        (0..2).for_each(|number| echo(client, *stream, number).expect("there is room"));
    }
    let begun = encode(CODE_ECHO, &[7; STALLED_BYTES - 8]).expect("it fits").slice(..bytes);
    let mut stalled: Vec<_> = (0..stalled).map(|_| server.connect()).collect();
    let ends: Vec<_> = std::thread::scope(|scope| {
        let all = clients.iter_mut();
        let all = all.map(|(stream, client)| scope.spawn(move || go_on(client, *stream)));
        let threads: Vec<_> = all.collect();
        for client in &mut stalled {
            // Less than the kernel's own buffers: sent at once, whether it is read or not.
            client.send_bytes(&begun).expect("sent");
        }
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let closed = stalled.iter_mut().filter_map(|client| is_closed(client).then_some(())).count();
    println!("{closed} of {} that stalled were closed", stalled.len());
    let cut: Vec<_> = ends.iter().filter_map(|end| end.as_ref().err()).collect();
    assert!(cut.is_empty(), "without all of their {ECHOES} echoes: {cut:#?}");
    println!("all echoes in {ends:.1?}");
    assert!(closed > 0, "there was room for all");
}

/// They want twice as much memory as there is; each of them holds more than any other client.
#[test]
fn who_goes_on_is_answered_beside_larger_frames_that_do_not() {
    check("begun_larger", 140, 62_000);
}

/// Each of them holds less than a client in the middle of a large frame.
#[test]
fn who_goes_on_is_answered_beside_smaller_frames_that_do_not() {
    check("begun_smaller", 280, 20_000);
}
