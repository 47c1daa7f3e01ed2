//! A peer that has said all it had to say still wants its answers.

use chappe_client::{BODY_BYTES_MAX, CODE_ECHO, CODE_PING, ClientError};

use chappe_testkit::{Numbered, TestServer, drain, small_buffers};

#[test]
fn all_pings_are_answered_after_the_peers_fin() {
    let server = TestServer::start("pings_after_fin", "");
    // More than once: what is read together with the FIN differs from run to run.
    for _ in 0..50 {
        let mut client = server.connect();
        let pings = chappe_wire::encode(CODE_PING, b"").unwrap().repeat(50);
        client.send_bytes(&pings).unwrap();
        client.shutdown_write().unwrap();
        let (replies, end) = drain(&mut client);
        assert_eq!(replies.len(), 50);
        assert!(matches!(end, ClientError::Closed), "{end:?}");
    }
}

#[test]
fn large_echoes_are_flushed_after_the_peers_fin() {
    let toml =
        "[[listen]]\naddress = \"127.0.0.1:0\"\nsend_buffer = 16384\nreceive_buffer = 16384\n";
    let server = TestServer::start("large_echoes_after_fin", toml);
    let client = small_buffers(server.address, 16 * 1024);
    let (mut sender, mut receiver) = client.split();
    let message = |number| Numbered { stream: 0, number, bytes: BODY_BYTES_MAX };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..20 {
                sender.send(CODE_ECHO, &message(number).body()).unwrap();
            }
            sender.shutdown_write().unwrap();
        });
        for number in 0..20 {
            assert!(receiver.receive().unwrap().body == message(number).body(), "reply {number}");
        }
        let end = receiver.receive().unwrap_err();
        assert!(matches!(end, ClientError::Closed), "{end:?}");
    });
}

#[test]
fn replies_that_wait_in_the_server_outlive_the_fin() {
    // The replies fill both sockets before the first is read, so the FIN comes
    // while the server is blocked on writing.
    let toml = "[[listen]]\naddress = \"127.0.0.1:0\"\nsend_buffer = 4096\n";
    let server = TestServer::start("replies_outlive_fin", toml);
    let mut client = small_buffers(server.address, 4096);
    let message = |number| Numbered { stream: 0, number, bytes: 40_000 };
    for number in 0..8 {
        client.send(CODE_ECHO, &message(number).body()).unwrap();
    }
    client.shutdown_write().unwrap();
    server.wait_status("/totals/sends_blocked", |blocked| blocked > 0);
    for number in 0..8 {
        assert!(client.receive().unwrap().body == message(number).body(), "reply {number}");
    }
    assert!(matches!(client.receive(), Err(ClientError::Closed)));
}

#[test]
fn a_connection_without_a_word_ends_with_a_fin() {
    let server = TestServer::start("without_a_word", "");
    let mut client = server.connect();
    client.shutdown_write().unwrap();
    assert!(matches!(client.receive(), Err(ClientError::Closed)));
}
