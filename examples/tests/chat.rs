//! The example `chat`.

use chappe::client::ClientError;
use chappe::testing::{TestError, TestServer};

const LOGIN: u16 = 16;
const SAY: u16 = 17;
const SAID: u16 = 18;
const CAME: u16 = 19;
const LEFT: u16 = 20;

fn server() -> Result<TestServer, TestError> {
    TestServer::of(env!("CARGO_BIN_EXE_chat")).config(include_str!("../chat.toml")).start()
}

#[test]
fn who_comes_speaks_and_leaves_is_heard() -> Result<(), TestError> {
    let server = server()?;
    let mut anna = server.client()?;
    assert_eq!(&anna.call(LOGIN, b"anna secret")?.body[..], b"welcome");
    let mut ben = server.client()?;
    ben.call(LOGIN, b"ben hidden")?;
    let mut hears = |code: u16, body: &[u8]| -> Result<(), TestError> {
        let heard = anna.receive()?;
        assert_eq!((heard.code, &heard.body[..]), (code, body));
        Ok(())
    };
    hears(CAME, b"ben")?;
    assert_eq!(&ben.call(SAY, b"good morning")?.body[..], b"1");
    hears(SAID, b"ben: good morning")?;
    drop(ben);
    hears(LEFT, b"ben")?;
    server.stop()
}

#[test]
fn the_door_is_closed_without_the_password() -> Result<(), TestError> {
    let server = server()?;
    for (code, body) in [(LOGIN, &b"anna wrong"[..]), (LOGIN, b"anna"), (SAY, b"hello")] {
        let mut client = server.client()?;
        let refused = client.call(code, body)?;
        let error = refused.as_error().expect("an error");
        assert_eq!(error.number, 8, "{error}");
        assert!(matches!(client.receive(), Err(ClientError::Closed)));
    }
    server.stop()
}

/// Its own name and version, wherever the program speaks to a person.
#[test]
fn the_program_goes_by_its_own_name() -> Result<(), TestError> {
    let server = server()?;
    let status = server.run(&["status"])?;
    let head = format!("chat {}, master pid ", env!("CARGO_PKG_VERSION"));
    assert!(status.starts_with(&head), "{status}");
    // What belongs to the server's own binary is no part of it.
    assert!(!server.run(&["--help"])?.contains("new project"));
    let refused = server.run(&["new", "folder"]).unwrap_err().to_string();
    assert!(refused.contains("unrecognized subcommand 'new'"), "{refused}");
    let refused = server.run(&["send", "--code", "17"]).unwrap_err().to_string();
    assert!(refused.contains("chat: 1 of 1 frames were answered by an error"), "{refused}");
    let refused = server.run(&["bench", "--file", "/nowhere/body"]).unwrap_err().to_string();
    assert!(refused.contains("chat: cannot read the body: "), "{refused}");
    server.stop()
}
