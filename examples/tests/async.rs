//! The example `async`.

use chappe::testing::{TestError, TestServer};
use std::time::{Duration, Instant};

const ASK: u16 = 16;

fn server() -> Result<TestServer, TestError> {
    // One thread: questions that had to wait for it would be answered one after the other.
    let config = "worker_processes = 1\nworker.handler_threads = 1\n";
    TestServer::of(env!("CARGO_BIN_EXE_async")).config(config).start()
}

#[test]
fn many_questions_are_under_way_at_a_time() -> Result<(), TestError> {
    const CLIENTS: u32 = 200;
    let server = server()?;
    let mut clients = (0..CLIENTS).map(|_| server.client()).collect::<Result<Vec<_>, _>>()?;
    let begun = Instant::now();
    for client in &mut clients {
        client.send(ASK, b"paris")?;
    }
    for client in &mut clients {
        assert_eq!(&client.receive()?.body[..], b"1: paris? yes");
    }
    let one_by_one = CLIENTS * Duration::from_millis(50);
    assert!(begun.elapsed() < one_by_one / 2, "{:?}", begun.elapsed());
    server.stop()
}

#[test]
fn answers_keep_the_order_of_the_questions() -> Result<(), TestError> {
    let server = server()?;
    let mut client = server.client()?;
    for question in [&b"a"[..], b"slow b", b"\xff", b"c"] {
        client.send(ASK, question)?;
    }
    assert_eq!(&client.receive()?.body[..], b"1: a? yes");
    let late = client.receive()?;
    let error = late.as_error().expect("an error");
    assert_eq!((error.number, &*error.text), (4, "nobody knows in time"));
    assert_eq!(client.receive()?.as_error().map(|error| error.number), Some(4));
    assert_eq!(&client.receive()?.body[..], b"2: c? yes");
    server.stop()
}
