//! The example `chat`.

use chappe::client::Connection;
use chappe::testing::{TestError, TestServer};
use std::collections::BTreeMap;

/// The text of the next frame with this code; what comes before it is left out.
fn next(client: &mut Connection, code: u16) -> Result<String, TestError> {
    loop {
        let frame = client.receive()?;
        if frame.code == code {
            return Ok(String::from_utf8_lossy(&frame.body).into_owned());
        }
    }
}

#[test]
fn who_comes_is_heard_in_all_workers_and_remembered() -> Result<(), TestError> {
    let folder = tempfile::tempdir().expect("a folder");
    let (database, program) = (folder.path().join("db"), env!("CARGO_BIN_EXE_chat"));
    let start = |tick| {
        let own = format!("[application]\ndatabase = {database:?}\ntick_ms = {tick}\n");
        let config = format!("worker_processes = 2\nuser = \"\"\n{own}");
        TestServer::of(program).config(&config).start()
    };
    let server = start(3_600_000)?;
    assert_eq!(server.client()?.call(17, b"hello")?.as_error().expect("no login").number, 8);
    // One in each worker.
    let mut guests = BTreeMap::new();
    for n in 0..1000 {
        let mut guest = server.client()?;
        guest.send(16, format!("user{n} secret lobby").as_bytes())?;
        assert_eq!(next(&mut guest, 16)?, "0");
        guest.send(3, b"")?;
        let worker = next(&mut guest, 3)?.lines().next().map(str::to_owned);
        guests.entry(worker).or_insert((n, guest));
        if guests.len() == 2 {
            break;
        }
    }
    let [(a, mut anna), (b, mut ben)]: [_; 2] =
        guests.into_values().collect::<Vec<_>>().try_into().expect("two workers");
    ben.send(17, b"good morning")?;
    assert_eq!(next(&mut ben, 17)?, "1");
    assert_eq!(next(&mut anna, 18)?, format!("user{b}: good morning"));
    anna.send(17, b"good evening")?;
    assert_eq!(next(&mut ben, 18)?, format!("user{b}: good morning"));
    assert_eq!(next(&mut ben, 18)?, format!("user{a}: good evening"));
    drop(ben);
    assert_eq!(next(&mut anna, 18)?, format!("user{a}: good evening"));
    while next(&mut anna, 19)? != format!("user{b} goes") {}
    server.stop()?;
    let server = start(100)?;
    let wrong = server.client()?.call(16, format!("user{b} wrong lobby").as_bytes())?;
    assert_eq!(wrong.as_error().expect("denied").number, 8);
    let mut ben = server.client()?;
    ben.send(16, format!("user{b} secret lobby").as_bytes())?;
    assert_eq!((next(&mut ben, 16)?, next(&mut ben, 20)?), ("1".to_owned(), "2".to_owned()));
    server.stop()
}
