//! The example `accounts`.

use chappe::client::Connection;
use chappe::testing::{TestError, TestServer};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const REGISTER: u16 = 16;
const LOGIN: u16 = 17;

fn request(name: &str, password: &str) -> Vec<u8> {
    let mut body = vec![0; 96];
    body[..name.len()].copy_from_slice(name.as_bytes());
    body[56..56 + password.len()].copy_from_slice(password.as_bytes());
    body
}

/// What the answer says; the rest of it is the name and zeros.
fn ask(client: &mut Connection, code: u16, name: &str, password: &str) -> Result<u32, TestError> {
    let answer = client.call(code, &request(name, password))?;
    assert_eq!(answer.code, code, "{answer:?}");
    let (result, rest) = answer.body.split_first_chunk().expect("four bytes");
    assert_eq!(rest, &request(name, "")[..56]);
    Ok(u32::from_be_bytes(*result))
}

#[test]
fn an_account_is_made_once_and_outlives_the_workers() -> Result<(), TestError> {
    let folder = tempfile::tempdir().expect("a folder");
    // Started by root, workers are somebody else.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("ours");
    let config =
        format!("worker_processes = 2\n[application]\ndatabase = {:?}\n", folder.path().join("db"));
    let server = TestServer::of(env!("CARGO_BIN_EXE_accounts")).config(&config).start()?;
    let mut client = server.client()?;
    assert_eq!(ask(&mut client, LOGIN, "anna", "secret")?, 2);
    assert_eq!(ask(&mut client, REGISTER, "anna", "secret")?, 0);
    assert_eq!(ask(&mut client, REGISTER, "anna", "other")?, 1);
    assert_eq!(ask(&mut client, LOGIN, "anna", "other")?, 2);
    assert_eq!(ask(&mut client, LOGIN, "anna", "secret")?, 0);
    // A name and a password of full length, without a zero behind them.
    let (name, password) = ("n".repeat(56), "p".repeat(40));
    assert_eq!(ask(&mut client, REGISTER, &name, &password)?, 0);
    for number in 0..2 {
        server.kill_worker(number)?;
    }
    assert_eq!(ask(&mut server.client()?, LOGIN, "anna", "secret")?, 0);
    for wrong in [&request("", "secret")[..], &request("a\0b", "c"), b"short", &[0xff; 96]] {
        let refused = server.client()?.call(LOGIN, wrong)?;
        assert_eq!(refused.as_error().map(|error| error.number), Some(4), "{refused:?}");
    }
    server.stop()
}

#[test]
fn a_database_that_cannot_be_opened_fails_the_start() {
    let config = "[application]\ndatabase = \"/nowhere/db\"\n";
    let server = TestServer::of(env!("CARGO_BIN_EXE_accounts")).config(config);
    let text = server.start().map(drop).expect_err("no database").to_string();
    assert!(text.contains("unable to open database file"), "{text}");
}

/// Its own name and version, wherever the program speaks to a person.
#[test]
fn the_program_goes_by_its_own_name() -> Result<(), TestError> {
    let config = "user = \"\"\n[application]\ndatabase = \"db\"\n";
    let server = TestServer::of(env!("CARGO_BIN_EXE_accounts")).config(config).start()?;
    let status = server.run(&["status"])?;
    let head = format!("accounts {}, master pid ", env!("CARGO_PKG_VERSION"));
    assert!(status.starts_with(&head), "{status}");
    // What belongs to the server's own binary is no part of it.
    assert!(!server.run(&["--help"])?.contains("new project"));
    let refused = server.run(&["new", "folder"]).unwrap_err().to_string();
    assert!(refused.contains("unrecognized subcommand 'new'"), "{refused}");
    let refused = server.run(&["send", "--code", "17"]).unwrap_err().to_string();
    assert!(refused.contains("accounts: 1 of 1 frames were answered by an error"), "{refused}");
    let refused = server.run(&["bench", "--file", "/nowhere/body"]).unwrap_err().to_string();
    assert!(refused.contains("accounts: cannot read the body: "), "{refused}");
    server.stop()
}
