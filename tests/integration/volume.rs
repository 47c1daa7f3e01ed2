//! Many messages over many connections through small buffers: whatever a
//! hand-over between two writers loses, doubles or reorders shows here.

use chappe_client::{BODY_BYTES_MAX, CODE_ECHO, Connection};

use chappe_testkit::{Numbered, TestServer, small_buffers};

const CONNECTIONS: u32 = 50;
const MESSAGES: u32 = 2000; // each; 100 000 together

/// Such a window is smaller than a segment of the loopback interface: the kernel opens it
/// by timers that double, so a large frame may take many seconds.
const SMALL_BUFFERS: &str = "[send]
outbox_max_bytes = \"256KiB\"
[timeouts]
frame = \"2m\"
[[listen]]
address = \"127.0.0.1:0\"
receive_buffer = 4096
send_buffer = 4096
";

/// Mostly small, now and then large, and both ends of the range.
fn message(stream: u32, number: u32) -> Numbered {
    let seed = (u64::from(stream) << 32 | u64::from(number)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let random = usize::try_from(seed >> 40).expect("24 bits");
    let bytes = match (number, random % 200) {
        (0, _) => 0,
        (1, _) => BODY_BYTES_MAX,
        (_, 0) => random % (BODY_BYTES_MAX + 1),
        (_, 1..=20) => random % 4096,
        _ => random % 200,
    };
    Numbered { stream, number, bytes }
}

/// Sends all without waiting and receives all, each on a thread of its own.
fn exchange(client: Connection, stream: u32) {
    let (mut sender, mut receiver) = client.split();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..MESSAGES {
                sender.queue(CODE_ECHO, &message(stream, number).body()).expect("sent");
            }
            sender.flush().expect("sent");
        });
        for number in 0..MESSAGES {
            let expected = message(stream, number).body();
            let reply = receiver.receive();
            let reply =
                reply.unwrap_or_else(|e| panic!("connection {stream}, reply {number}: {e}"));
            assert!(
                reply.code == CODE_ECHO && reply.body == expected,
                "connection {stream}, reply {number}: code {}, {} bytes instead of {}",
                reply.code,
                reply.body.len(),
                expected.len(),
            );
        }
    });
}

#[test]
fn a_hundred_thousand_echoes_come_back_in_order_and_byte_exact() {
    let server = TestServer::start("hundred_thousand_echoes", SMALL_BUFFERS);
    let workers = server.worker_pids();
    std::thread::scope(|scope| {
        for stream in 0..CONNECTIONS {
            let client = small_buffers(server.address, 4096);
            scope.spawn(move || exchange(client, stream));
        }
    });
    let all = u64::from(CONNECTIONS * MESSAGES);
    server.wait_status("/totals/frames_sent", |sent| sent == all);
    let status = server.status_json();
    assert_eq!(status["totals"]["frames_received"], all);
    assert_eq!(status["totals"]["bytes_sent"], status["totals"]["bytes_received"]);
    for never in ["messages_expired", "messages_dropped", "protocol_errors", "workers_died"] {
        assert_eq!(status["totals"][never], 0, "{never}");
    }
    // The hand-over to the event loop and back was part of it.
    assert!(status["totals"]["sends_blocked"].as_u64() > Some(100), "{status:#}");
    assert_eq!(server.worker_pids(), workers);
}
