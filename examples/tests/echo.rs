//! The example `echo`.

use chappe::testing::{TestError, TestServer};

#[test]
fn what_is_sent_comes_back() -> Result<(), TestError> {
    let server = TestServer::of(env!("CARGO_BIN_EXE_echo")).start()?;
    let reply = server.client()?.call(16, b"hello")?;
    assert_eq!((reply.code, &reply.body[..]), (16, &b"hello"[..]));
    server.stop()
}
