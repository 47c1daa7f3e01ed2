//! The load generator: against the real server, and against servers of this file that
//! answer wrongly, late, or not at all.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chappe_client::{CODE_ECHO, CODE_ERROR, CODE_PING, Connection, Frame};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;
use serde_json::Value;

use chappe_testkit::site::{command, finish, program};
use chappe_testkit::{Finished, TestServer, fresh_dir, pause, wait_until};

/// A run that is over soon, as JSON.
const SHORT: [&str; 6] = ["bench", "--json", "--warmup", "100ms", "--duration", "500ms"];

fn object(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e} in {finished:?}"))
}

#[track_caller]
fn clean(finished: &Finished) -> Value {
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{finished:?}");
    let report = object(finished);
    assert_eq!(report["errors"], serde_json::json!({}));
    assert_eq!(report["complete"], true);
    report
}

/// How often a kind of error occurred.
fn errors(report: &Value, kind: &str) -> u64 {
    report["errors"][kind]["count"].as_u64().unwrap_or(0)
}

/// The load of an application: a login on each connection, then a body of its own.
#[test]
fn a_body_and_a_first_frame_can_be_given() {
    let server = TestServer::start("bench_given", "");
    let line = ["--connections", "3", "--body", "hello", "--first", "1:user{n}"];
    let report = clean(&server.run(&[&SHORT[..], &line].concat()));
    assert_eq!(report["size"], 5);
    // Each has sent its first frame and at least one more.
    assert!(report["replies"].as_u64() >= Some(3), "{report:#}");
    let refused = server.run(&[&SHORT[..], &["--first", "99:who"]].concat());
    assert_eq!(refused.code, Some(1));
    let expected =
        "is left out: its first frame was answered by error 3 (unknown code) for code 99";
    assert!(refused.stderr.contains("connection 1 of 50"), "{refused:?}");
    assert!(refused.stderr.contains(expected), "{refused:?}");
    let unread = server.run(&["bench", "--file", "/nowhere/body"]);
    assert_eq!(unread.code, Some(1));
    assert!(
        unread.stderr.starts_with("chappe: cannot read the body: /nowhere/body: "),
        "{unread:?}"
    );
}

#[test]
fn a_closed_loop_is_measured_on_both_sides() {
    let server = TestServer::start("bench_closed", "[worker]\nfuse = false\n");
    let line = ["--connections", "8", "--pipeline", "4", "--system-calls"];
    let run = server.run(&[&SHORT[..], &line].concat());
    let report = clean(&run);
    let replies = report["replies"].as_u64().expect("replies");
    assert!(replies > 100, "{report:#}");
    // Warm-up and the first ping are more.
    assert!(server.total("frames_received") > replies);
    let latency = |name: &str| report["latency_us"][name].as_f64().expect("a latency");
    let ordered = ["p50", "p90", "p99", "p99_9", "max"].map(latency);
    assert!(ordered.is_sorted() && ordered[0] > 0.0, "{ordered:?}");
    assert_eq!(report["server"]["pids"].as_array().map(Vec::len), Some(2));
    for figure in ["/server/cpu_ns_per_message", "/client/cpu_ns_per_message"] {
        assert!(report.pointer(figure).and_then(Value::as_f64) > Some(0.0), "{figure}");
    }
    // Where perf is not, or may not: why.
    let calls = report["server"]["system_calls_per_message"].as_f64();
    let why = report["server"]["system_calls_missing"].as_str();
    assert!(calls.is_some_and(|calls| calls > 0.0) != why.is_some(), "{calls:?} {why:?}");
    // At most one post a message; with four under way on each connection, less.
    let posts = report["counters"]["semaphore_posts_per_1000"].as_f64().expect("posts");
    assert!(posts > 0.0 && posts <= 1001.0, "{posts}");
}

#[test]
fn the_report_for_people_names_what_the_json_names() {
    let server = TestServer::start("bench_text", "");
    let run = server.run(&["bench", "--warmup", "0s", "--duration", "200ms", "--code", "0"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "no bar without a terminal");
    for word in ["p50 ", "p99.9 ", "CPU a message", "semaphore posts", "errors    none"] {
        assert!(run.stdout.contains(word), "{word} in {}", run.stdout);
    }
    assert!(!run.stdout.contains('\x1b'));
}

#[test]
fn the_server_of_a_unix_socket_is_known_by_whatever_name() {
    let toml = "[[listen]]\naddress = \"127.0.0.1:0\"\n[[listen]]\naddress = \"unix:b.sock\"\n";
    let server = TestServer::start("bench_unix", toml);
    let absolute = format!("unix:{}", server.dir.join("b.sock").display());
    for to in ["unix:b.sock", "unix:./run/../b.sock", &absolute] {
        let mut bench = command(&server.dir);
        let bench = bench.current_dir(&server.dir).args(SHORT).args(["--to", to]);
        let report = clean(&finish(bench));
        assert_eq!(report["server"]["pids"].as_array().map(Vec::len), Some(2), "{to}");
        assert_eq!(report["server_missing"], Value::Null);
        assert!(report["counters"].is_object(), "{report:#}");
    }
}

#[test]
fn a_terminal_gets_a_bar_and_the_report_stays_clean() {
    let server = TestServer::start("bench_bar", "");
    let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None).expect("a pseudo terminal");
    fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("flags");
    let mut child = Command::new(program("chappe"))
        .args(SHORT)
        .args(["--connections", "2", "--to", &server.address.to_string()])
        .current_dir(&server.dir)
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(pty.slave)
        .spawn()
        .expect("it starts");
    let mut terminal = File::from(pty.master);
    let (mut seen, mut part) = (String::new(), [0; 4096]);
    wait_until("the run is over", || {
        while let Ok(bytes @ 1..) = terminal.read(&mut part) {
            seen.push_str(&String::from_utf8_lossy(&part[..bytes]));
        }
        child.try_wait().expect("our own child").is_some()
    });
    while let Ok(bytes @ 1..) = terminal.read(&mut part) {
        seen.push_str(&String::from_utf8_lossy(&part[..bytes]));
    }
    let output = child.wait_with_output().expect("it has ended");
    assert!(output.status.success(), "{seen}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one object, no bar");
    assert_eq!(report["complete"], true);
    for word in ["warming up", "measuring", "%"] {
        assert!(seen.contains(word), "{word} in {seen:?}");
    }
}

#[test]
fn a_server_that_is_not_known_is_told_why() {
    let server = TestServer::start("bench_known", "");
    let other = TestServer::start("bench_unknown", "");
    let to = other.address.to_string();
    let line = ["bench", "--warmup", "0s", "--duration", "1s", "--to", &to];
    let why = format!("listens on {}, not on {to}", server.address);
    let run = server.run(&line);
    assert!(run.stdout.contains("server    left out: the server of "), "{run:?}");
    assert!(run.stdout.contains(&why), "{run:?}");
    let report = clean(&server.run(&[&line[..], &["--json"]].concat()));
    assert!(report["server_missing"].as_str().is_some_and(|text| text.ends_with(&why)));
    assert_eq!(report["server"], Value::Null);
    let nowhere = fresh_dir("bench_nowhere");
    let run = finish(command(&nowhere).args(line));
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stdout.contains("No such file"), "{run:?}");
}

#[test]
fn an_open_loop_sends_what_is_due_and_no_more() {
    let server = TestServer::start("bench_open", "");
    let run = server.run(&[&SHORT[..], &["--connections", "3", "--rate", "1000"]].concat());
    let report = clean(&run);
    // 1000 a second for half a second, whatever the machine does in that time; one more
    // or less is where the window's ends fall.
    let replies = report["replies"].as_u64().expect("replies");
    assert!((499..=501).contains(&replies), "{replies}");
}

#[test]
fn every_size_and_code_is_verified() {
    let server = TestServer::start("bench_sizes", "");
    for line in ["--size 0", "--size 1", "--size 65527 --pipeline 9", "--code 2", "--code 3"] {
        let words: Vec<&str> = line.split(' ').collect();
        let run = server.run(&[&SHORT[..], &["--connections", "2"], &words].concat());
        assert!(clean(&run)["replies"].as_u64() > Some(0), "{line}");
    }
}

#[test]
fn idle_slow_and_paced_connections_are_there_and_told_of() {
    const TOML: &str = "[send]\noutbox_max_bytes = \"64KiB\"\n";
    let server = TestServer::start("bench_sides", TOML);
    let others = "--connections 2 --idle 20 --slow-readers 5 --paced-reader 200000 \
        --paced-bytes 60000";
    let words: Vec<&str> = others.split_whitespace().collect();
    let report = clean(&server.run(&[&SHORT[..], &words].concat()));
    assert_eq!(report["idle"]["connections"], 20);
    assert_eq!(report["idle"]["closed_by_server"], 0);
    assert_eq!(report["slow_readers"]["full"], 5);
    assert_eq!(report["slow_readers"]["closed_by_server"], 0);
    // More than the outbox holds: the server stopped reading them.
    assert!(report["slow_readers"]["bytes_sent"].as_u64() > Some(5 * 65_536), "{report:#}");
    let paced = &report["paced_reader"];
    assert_eq!(paced["replies_right"], paced["replies_asked"]);
    assert_eq!(paced["bytes_received"], paced["bytes_asked"]);
    server.wait_status("/totals/reads_paused", |paused| paused >= 5);
}

#[test]
fn a_paced_reader_that_has_not_got_all_is_an_error() {
    let server = TestServer::start("bench_paced_late", "");
    let others = ["--connections", "1", "--paced-reader", "100", "--paced-bytes", "60000"];
    let run = server.run(&[&SHORT[..], &others].concat());
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("the paced reader has 0 of 15 replies"), "{run:?}");
}

// --- bad input ---

#[test]
fn a_wrong_command_line_is_told_before_anything_is_done() {
    let dir = fresh_dir("bench_usage");
    for line in ["--connections 0", "--size 65528", "--duration 0s", "--rate 0", "--what"] {
        let run = finish(command(&dir).arg("bench").args(line.split(' ')));
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{line}: {run:?}");
    }
}

#[test]
fn a_wrong_port_is_an_error_that_names_it() {
    let dir = fresh_dir("bench_wrong_port");
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("ours");
    let run = finish(command(&dir).args(["bench", "--to", &nobody.to_string()]));
    assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""));
    let expected = format!("cannot connect to {nobody} (the address of --to): ");
    assert!(run.stderr.contains(&expected), "{run:?}");
    let run = finish(command(&dir).args(["bench", "--to", "unix:nowhere.sock"]));
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("unix:nowhere.sock"), "{run:?}");
}

#[test]
fn another_protocol_is_told_from_a_server_of_ours() {
    let answers: [&[u8]; 4] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\0\x08\0\x09\0\0\0\0",
        b"",
    ];
    for answer in answers {
        let serve = |mut stream: TcpStream| stream.write_all(answer).expect("sent");
        let run = against(serve, &["--timeout", "2s"]);
        assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""));
        assert!(run.stderr.contains("does not answer a ping"), "{run:?}");
    }
    // One that says nothing at all and stays.
    let silent = |stream: TcpStream| {
        let mut frames = Connection::from_stream(stream, None).expect("a client");
        while frames.receive().is_ok() {}
    };
    let run = against(silent, &["--timeout", "100ms"]);
    assert!(run.stderr.contains("nothing within 100ms"), "{run:?}");
}

#[test]
fn a_server_without_permits_refuses_in_its_own_words() {
    let server = TestServer::start("bench_busy", "max_connections = 1\n");
    let mut holder = server.connect();
    assert_eq!(holder.call(CODE_PING, b"").expect("a pong").code, CODE_PING);
    let run = server.run(&SHORT);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("refuses: error 6 (busy)"), "{run:?}");
}

#[test]
fn a_server_that_stops_in_the_middle_leaves_a_part_of_a_report() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let server = TestServer::start(&format!("bench_dies_{signal}"), "");
        let run = std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                let line = ["bench", "--json", "--warmup", "0s", "--duration", "60s"];
                server.run(&[&line[..], &["--connections", "5"]].concat())
            });
            // Well into the window, which begins some 20 ms after the first request.
            server.wait_status("/totals/frames_received", |frames| frames > 10_000);
            if signal == Signal::SIGKILL {
                // No goodbye and no drain: the kernel alone ends the connections.
                let group = nix::unistd::Pid::from_raw(server.pid());
                nix::sys::signal::killpg(group, signal).expect("our own processes");
            } else {
                server.signal(signal);
            }
            run.join().expect("it does not panic")
        });
        assert_eq!(run.code, Some(1), "{run:?}");
        let report = object(&run);
        assert_eq!(report["complete"], false);
        assert!(report["replies"].as_u64() > Some(0), "{report:#}");
        assert!(report["seconds"].as_f64() < Some(60.0), "{report:#}");
        assert!(!report["errors"].as_object().expect("errors").is_empty());
        assert!(run.stderr.contains("the server ended connections"), "{}", run.stderr);
    }
}

#[test]
fn more_connections_than_descriptors_is_an_error_at_once() {
    let server = TestServer::start("bench_descriptors", "");
    let run = |connections: &str| {
        let program = program("chappe");
        let line = format!(
            "ulimit -n 64 && exec {program} bench --to {} --warmup 0s --duration 100ms \
             --connections {connections}",
            server.address
        );
        finish(Command::new("sh").args(["-c", &line]).current_dir(&server.dir))
    };
    assert_eq!(run("32").code, Some(0));
    let refused = run("33");
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""));
    assert!(refused.stderr.contains("33 connections need more descriptors"), "{refused:?}");
}

// --- servers that are wrong on purpose ---

/// Runs a short bench, one connection unless `line` says otherwise, against a server
/// that does this with each of its connections.
fn against(serve: impl Fn(TcpStream) + Sync, line: &[&str]) -> Finished {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let dir = fresh_dir(&format!("bench_against_{number}"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address: SocketAddr = listener.local_addr().expect("ours");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while let Ok((stream, _)) = listener.accept() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                scope.spawn(|| serve(stream));
            }
        });
        let to = address.to_string();
        let words = [&SHORT[..], &["--connections", "1", "--to", &to], line].concat();
        // The later of two values of a flag would be refused, so the defaults give way.
        let words = if line.contains(&"--connections") {
            [&SHORT[..], &["--to", &to], line].concat()
        } else {
            words
        };
        let run = finish(command(&dir).args(words));
        is_over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(address));
        run
    })
}

/// A server that answers pings rightly and the rest by `answer`, which is given each
/// message's number and ends the connection with `false`.
fn echoing(
    answer: impl Fn(&mut Connection, Frame, u64) -> bool + Sync,
) -> impl Fn(TcpStream) + Sync {
    move |stream| {
        let mut frames = Connection::from_stream(stream, None).expect("a client");
        let mut number = 0;
        while let Ok(frame) = frames.receive() {
            if frame.code == CODE_PING {
                let _ = frames.send(CODE_PING, b"");
            } else if !answer(&mut frames, frame, number) {
                return;
            } else {
                number += 1;
            }
        }
    }
}

/// Sends a frame; a client that has left is no failure of this server.
fn send(frames: &mut Connection, code: u16, body: &[u8]) -> bool {
    frames.send(code, body).is_ok()
}

#[test]
fn each_wrong_reply_is_seen() {
    type Answer = fn(&mut Connection, Frame, u64) -> bool;
    let cases: [(&str, Answer); 5] = [
        ("wrong_content", |frames, frame, number| {
            let mut body = frame.body.to_vec();
            body[40] ^= u8::from(number == 7);
            send(frames, CODE_ECHO, &body)
        }),
        ("wrong_length", |frames, frame, number| {
            send(frames, CODE_ECHO, &frame.body[usize::from(number == 7)..])
        }),
        ("server_error", |frames, frame, number| match number {
            7 => send(frames, CODE_ERROR, b"\0\x04\0\x01failed"),
            _ => send(frames, CODE_ECHO, &frame.body),
        }),
        ("bad_checksum", |frames, frame, number| {
            let mut encoded = chappe_wire::encode(CODE_ECHO, &frame.body).unwrap().to_vec();
            encoded[4] ^= u8::from(number == 7);
            frames.send_bytes(&encoded).is_ok()
        }),
        ("surplus", |frames, frame, number| {
            let sent = send(frames, CODE_ECHO, &frame.body);
            sent && (number != 7 || send(frames, CODE_ECHO, &frame.body))
        }),
    ];
    for (kind, answer) in cases {
        let run = against(echoing(answer), &[]);
        assert_eq!(run.code, Some(1), "{kind}: {run:?}");
        let report = object(&run);
        // The second copy of a reply is one too many, or stands where the next should.
        let seen = if kind == "surplus" {
            errors(&report, "surplus") + errors(&report, "wrong_order") > 0
        } else {
            errors(&report, kind) == 1
        };
        assert!(seen, "{kind}: {report:#}");
        assert!(report["replies"].as_u64() > Some(7), "the others are right: {report:#}");
        assert_eq!(report["complete"], true);
    }
}

/// A chat: what others say comes between the replies, and is no fault.
#[test]
fn what_is_pushed_is_counted_apart() {
    let push = |frames: &mut Connection, frame: Frame, _: u64| {
        send(frames, 99, b"news") && send(frames, CODE_ECHO, &frame.body) && send(frames, 99, b"")
    };
    let run = against(echoing(push), &["--pipeline", "4"]);
    let report = clean(&run);
    let (replies, unasked) = (report["replies"].as_u64(), report["unasked"].as_u64());
    assert!(unasked >= replies && replies > Some(7), "{report:#}");
}

/// As a push, and then nothing answers the request.
#[test]
fn a_reply_of_the_wrong_code_leaves_its_request_unanswered() {
    let wrong = |frames: &mut Connection, frame: Frame, number: u64| {
        send(frames, if number == 7 { 99 } else { CODE_ECHO }, &frame.body)
    };
    let run = against(echoing(wrong), &["--pipeline", "2", "--timeout", "700ms"]);
    let report = object(&run);
    assert_eq!((run.code, report["unasked"].as_u64()), (Some(1), Some(1)), "{report:#}");
    assert!(errors(&report, "unanswered") + errors(&report, "wrong_order") > 0, "{report:#}");
}

#[test]
fn replies_in_the_wrong_order_are_seen() {
    let kept = std::sync::Mutex::new(None::<Frame>);
    let swap = |frames: &mut Connection, frame: Frame, number: u64| match number {
        8 => {
            *kept.lock().unwrap() = Some(frame);
            true
        }
        9 => {
            let first = kept.lock().unwrap().take().expect("the one before");
            send(frames, CODE_ECHO, &frame.body) && send(frames, CODE_ECHO, &first.body)
        }
        _ => send(frames, CODE_ECHO, &frame.body),
    };
    let run = against(echoing(swap), &["--pipeline", "2"]);
    assert_eq!((run.code, errors(&object(&run), "wrong_order")), (Some(1), 2), "{run:?}");
}

#[test]
fn a_reply_on_a_strangers_connection_is_seen() {
    let last = std::sync::Mutex::new(None::<Frame>);
    let mix = |frames: &mut Connection, frame: Frame, _: u64| {
        // What another connection sent last, if there was anything.
        let other = last.lock().unwrap().replace(frame.clone());
        send(frames, CODE_ECHO, &other.unwrap_or(frame).body)
    };
    let run = against(echoing(mix), &["--connections", "2"]);
    assert_eq!(run.code, Some(1));
    assert!(errors(&object(&run), "wrong_connection") > 0, "{run:?}");
}

#[test]
fn a_connection_that_is_cut_counts_what_it_owed() {
    let cut = |frames: &mut Connection, frame: Frame, number: u64| {
        number < 20 && send(frames, CODE_ECHO, &frame.body)
    };
    let run = against(echoing(cut), &["--warmup", "0s", "--pipeline", "3"]);
    assert_eq!(run.code, Some(2), "a flag can be given once: {run:?}");
    let run = against(echoing(cut), &["--pipeline", "3"]);
    let report = object(&run);
    assert_eq!((run.code, report["complete"].as_bool()), (Some(1), Some(false)));
    assert_eq!(errors(&report, "unanswered"), 3, "{report:#}");
    assert_eq!(errors(&report, "closed") + errors(&report, "broken"), 1, "{report:#}");
}

#[test]
fn a_server_that_stalls_is_seen_by_an_open_loop_in_every_request_that_was_due() {
    // Half a second of nothing, once, well after the warm-up: of the requests that
    // fell due in that time, one after the other would only ever be one.
    let stalled = AtomicBool::new(false);
    let stall = |frames: &mut Connection, frame: Frame, number: u64| {
        if number == 200 && !stalled.swap(true, Ordering::SeqCst) {
            pause(Duration::from_millis(500), "the server stalls");
        }
        send(frames, CODE_ECHO, &frame.body)
    };
    // Even where only one request may be under way: the others wait here, and their
    // time has begun.
    for pipeline in ["1", "1024"] {
        stalled.store(false, Ordering::SeqCst);
        let run = against(echoing(stall), &["--rate", "1000", "--pipeline", pipeline]);
        let report = clean(&run);
        // 500 requests in half a second; the stall takes at least the last 400 ms of it.
        let p50 = report["latency_us"]["p50"].as_f64().expect("a latency");
        assert!(p50 > 100_000.0, "pipeline {pipeline}: {report:#}");
    }
}

#[test]
fn a_request_that_is_never_answered_is_an_error_and_a_latency() {
    let mute = |frames: &mut Connection, frame: Frame, number: u64| {
        number >= 300 || send(frames, CODE_ECHO, &frame.body)
    };
    let run = against(echoing(mute), &["--rate", "1000", "--timeout", "700ms"]);
    let report = object(&run);
    assert_eq!((run.code, report["complete"].as_bool()), (Some(1), Some(true)));
    assert!(errors(&report, "unanswered") > 200, "{report:#}");
    let longest = report["latency_us"]["max"].as_f64().expect("a latency");
    assert!(longest > 700_000.0, "{report:#}");
}
