//! The example `chat`.

use chappe::testing::{TestError, TestServer};

#[test]
fn who_comes_is_heard_seen_and_remembered() -> Result<(), TestError> {
    let folder = tempfile::tempdir().expect("a folder");
    let (database, program) = (folder.path().join("db"), env!("CARGO_BIN_EXE_chat"));
    let config = |tick| {
        format!(
            "worker_processes = 1\nuser = \"\"\n[application]\ndatabase = {database:?}\ntick_ms = {tick}\n"
        )
    };
    let server = TestServer::of(program).config(&config(3_600_000)).start()?;
    let (mut anna, mut ben) = (server.client()?, server.client()?);
    assert_eq!(server.client()?.call(17, b"hello")?.as_error().expect("no login").number, 8);
    assert_eq!(
        (&anna.call(16, b"anna secret")?.body[..], ben.call(16, b"ben hidden")?.code),
        (&b"0"[..], 16)
    );
    assert_eq!(&ben.call(17, b"good morning")?.body[..], b"1");
    assert_eq!(&anna.receive()?.body[..], b"ben: good morning");
    server.stop()?;
    let server = TestServer::of(program).config(&config(100)).start()?;
    let mut ben = server.client()?;
    assert_eq!(server.client()?.call(16, b"ben wrong")?.as_error().expect("denied").number, 8);
    assert_eq!(&ben.call(16, b"ben hidden")?.body[..], b"1");
    assert_eq!((ben.receive()?.code, &ben.receive()?.body[..]), (19, &b"ben"[..]));
    drop(ben);
    server.stop()
}
