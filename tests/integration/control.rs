//! What is said over the control socket, also by and to another version.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use chappe::control::{self, ReplyError, Status};
use serde::Deserialize;

use crate::support::server::{Finished, command, finish};
use crate::support::{TestServer, fresh_dir};

/// What is answered to a line.
fn answer(server: &TestServer, line: &str) -> String {
    let mut stream =
        UnixStream::connect(server.dir.join("run/chappe.sock")).expect("the control socket");
    stream.write_all(line.as_bytes()).expect("the control socket");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the control socket");
    answer
}

#[test]
fn a_status_has_the_keys_of_its_type_and_no_others() {
    let toml = "[metrics]\naddress = \"127.0.0.1:0\"\n";
    let server = TestServer::start("control_status", toml);
    assert_eq!(server.command(&["reload"]).code, Some(0));
    let json = server.status_json();
    let status = Status::deserialize(&json).unwrap();
    assert_eq!(serde_json::to_value(&status).unwrap(), json);
    assert!(status.metrics.is_some() && status.reload.last.is_some(), "{json:#}");
    assert_eq!(status.master.pid, u32::try_from(server.pid()).unwrap());
}

#[test]
fn a_client_of_another_version_is_told_what_this_one_knows() {
    let server = TestServer::start("control_newer_client", "");
    let version = env!("CARGO_PKG_VERSION");
    for (line, expected) in [
        ("{\"command\":\"upgrade\"}\n", format!("chappe {version} has no command `upgrade`")),
        ("{\"command\":\"kick\",\"peer\":\"x\"}\n", "`kick` is not as chappe".to_owned()),
        ("{\"command\":\"status\",\"deep\":1}\n", "unknown field `deep`".to_owned()),
    ] {
        let error = control::read::<Status>(&answer(&server, line)).unwrap_err();
        assert!(matches!(&error, ReplyError::Refused(_)), "{error}");
        let error = error.to_string();
        assert!(error.contains(&expected) && error.contains("another version"), "{error}");
    }
}

/// Runs a command against a server that says this, whatever it is asked.
fn against(directory: &Path, says: &str, arguments: &[&str]) -> Finished {
    let path = directory.join("run/chappe.sock");
    let listener = UnixListener::bind(&path).expect("the control socket");
    let finished = std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut stream = listener.accept().expect("the control socket").0;
            let mut request = [0; 1000];
            assert!(stream.read(&mut request).expect("the control socket") > 0);
            stream.write_all(says.as_bytes()).expect("the control socket");
        });
        finish(command(directory).args(arguments))
    });
    std::fs::remove_file(path).expect("the control socket");
    finished
}

#[test]
fn a_server_of_another_version_is_told_from_a_broken_one() {
    let directory = fresh_dir("control_newer_server");
    std::fs::write(directory.join("chappe.toml"), "").unwrap();
    std::fs::create_dir(directory.join("run")).unwrap();
    let status = "{\"master\":{\"pid\":1,\"version\":\"9.1.0\"},\"workers\":{}}\n";
    let told = against(&directory, status, &["status"]);
    assert_eq!((told.code, told.stdout.as_str()), (Some(1), ""), "{told:?}");
    let version = env!("CARGO_PKG_VERSION");
    for part in ["chappe 9.1.0", &format!("this program, chappe {version}"), "status --json"] {
        assert!(told.stderr.contains(part), "{told:?}");
    }
    let json = against(&directory, status, &["status", "--json"]);
    assert_eq!((json.code, json.stdout.as_str()), (Some(0), status), "{json:?}");
    for (says, arguments, expected) in [
        ("{\"done\":true}\n", &["kick", "7"][..], "missing field `ok`"),
        ("{\"ok\":true}\n", &["reload"], "missing field `generation`"),
        ("{\"ok\":true}\n", &["connections"], "missing field `missing_workers`"),
        ("HTTP/1.1 400 Bad Request\r\n", &["status"], "makes no sense: HTTP/1.1 400"),
        ("", &["status"], "hung up, without an answer"),
    ] {
        let told = against(&directory, says, arguments);
        assert_eq!((told.code, told.stdout.as_str()), (Some(1), ""), "{told:?}");
        assert!(told.stderr.contains(expected), "{told:?}");
    }
    let list = "{\"ok\":true,\"missing_workers\":0}\n{\"id\":3}\n";
    let told = against(&directory, list, &["connections"]);
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.stderr.contains("1 line of the list can't be read"), "{told:?}");
}
