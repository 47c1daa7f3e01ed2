//! The server that the cases run against, and what is measured of its one worker.

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use chappe::control::Request;
use chappe_client::{CODE_ECHO, Connection, Frame};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use serde_json::Value;

use super::wait_some;
use chappe_testkit::application::{GIVE_BACK, HOLD};
use chappe_testkit::{DEADLINE, Gate, TestServer, proc, reset_on_close, wait_for};

/// Which server a case needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Site {
    /// Long time-outs, small buffers, totals that a leak of whole messages exhausts.
    Roomy,
    /// Time-outs so short that a batch can wait for one. The first frame has longest, or a
    /// machine under load would mistake one for the other.
    Hasty,
    /// A permit for one connection.
    Full,
}

impl Site {
    fn toml(self) -> &'static str {
        match self {
            Self::Roomy => {
                "[worker]\nhandler_threads = 32\n[inbox]\nmax_messages = 32\n\
                 total_max_bytes = \"16MiB\"\n\
                 [send]\noutbox_max_bytes = \"64KiB\"\noutbox_total_max_bytes = \"16MiB\"\n"
            }
            Self::Hasty => {
                "[timeouts]\nhandshake = \"300ms\"\nidle = \"200ms\"\nframe = \"150ms\"\n\
                 linger = \"150ms\"\n[send]\noutbox_max_age = \"150ms\"\n"
            }
            Self::Full => "",
        }
    }
}

/// How a client's close ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    Fin,
    Reset,
}

/// A running server.
pub(crate) struct Stage {
    server: TestServer,
    connects: Cell<u8>,
    gates: Cell<u32>,
}

/// What the worker has, and what was counted.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) worker: i32,
    pub(crate) descriptors: usize,
    pub(crate) permits: u64,
    status: Value,
}

impl Measured {
    pub(crate) fn total(&self, name: &str) -> u64 {
        let value = self.status["totals"][name].as_u64();
        value.unwrap_or_else(|| panic!("no total {name} in {:#}", self.status))
    }

    fn of_worker(&self, name: &str) -> u64 {
        self.status["workers"][0][name].as_u64().expect("a number")
    }
}

/// Has the client send a message whose handler waits at the gate.
pub(crate) fn hold(gate: &Gate, client: &mut Connection) {
    client.send(HOLD, gate.name()).expect("sent");
}

impl Stage {
    pub(crate) fn start(site: Site) -> Self {
        // Handlers open files of the test, which may be where only its user may.
        let permits = if site == Site::Full { "max_connections = 1\n" } else { "" };
        let toml = format!(
            "user = \"\"\nworker_processes = 1\n{permits}{}[log]\nlevel = \"info\"\n\
             [[listen]]\naddress = \"127.0.0.1:0\"\nsend_buffer = 4096\n\
             [[listen]]\naddress = \"unix:a.sock\"\nsend_buffer = 4096\n",
            site.toml()
        );
        let test = format!("closing_{site:?}");
        let server = TestServer::start_application(&test, &toml, |program| {
            // glibc gives each thread an arena of its own, and each keeps pages that it shares
            // with something in use: memory then grows for as long as each thread has not yet
            // met its worst round. With one arena, what grows is a leak.
            program.env("MALLOC_ARENA_MAX", "1");
            // With it the first panic loads the program's debug information, for good.
            program.env_remove("RUST_BACKTRACE");
        });
        Self { server, connects: Cell::new(0), gates: Cell::new(0) }
    }

    /// A client with small buffers, from one of 200 addresses: a port that waits in
    /// TIME_WAIT is taken for its own address only.
    pub(crate) fn connect(&self, close: Close) -> Connection {
        let host = 2 + self.connects.get() % 200;
        self.connects.set((host - 1) % 200);
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
            .expect("a socket");
        setsockopt(&socket, sockopt::RcvBuf, &(16 * 1024)).expect("SO_RCVBUF");
        if close == Close::Reset {
            reset_on_close(&socket);
        }
        let from = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, host), 0);
        bind(socket.as_raw_fd(), &SockaddrIn::from(from)).expect("an address of our own");
        let SocketAddr::V4(to) = self.server.address else { panic!("IPv4 first") };
        connect(socket.as_raw_fd(), &SockaddrIn::from(to)).expect("connected");
        Connection::from_stream(TcpStream::from(socket), Some(DEADLINE)).expect("a client")
    }

    pub(crate) fn connect_unix(&self) -> Connection {
        Connection::connect_unix(self.server.dir.join("a.sock"), DEADLINE).expect("connected")
    }

    /// A new gate, shut.
    pub(crate) fn gate(&self) -> Gate {
        let number = self.gates.get();
        self.gates.set(number + 1);
        Gate::new(self.server.dir.join(format!("gate-{number}")))
    }

    /// Asks over the control socket itself: a process for each question would take
    /// longer than the case.
    fn ask(&self, request: Request) -> Value {
        let path = self.server.dir.join("run/chappe.sock");
        let mut stream = UnixStream::connect(path).expect("the control socket");
        stream.write_all(request.to_line().as_bytes()).expect("asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e} in {answer}"))
    }

    pub(crate) fn kick(&self, id: u64) {
        let answer = self.ask(Request::Kick { id });
        assert!(answer.get("error").is_none(), "{answer}");
    }

    pub(crate) fn status(&self) -> Value {
        self.ask(Request::Status {})
    }

    /// A number in the status, by its JSON pointer.
    pub(crate) fn number(&self, pointer: &str) -> u64 {
        self.status().pointer(pointer).and_then(Value::as_u64).expect("a number")
    }

    #[track_caller]
    pub(crate) fn wait(&self, pointer: &str, is_right: impl Fn(u64) -> bool) {
        let mut last = 0;
        let held = wait_for(|| {
            last = self.number(pointer);
            is_right(last).then_some(())
        });
        assert!(held.is_some(), "{pointer} is still {last}");
    }

    pub(crate) fn measure(&self) -> Measured {
        let worker = self.server.worker_pids()[0];
        let status = self.status();
        Measured {
            worker,
            descriptors: proc::open_descriptors(worker).len(),
            permits: status["semaphores"]["connection_permits"].as_u64().expect("permits"),
            status,
        }
    }

    /// Waits until the `made` connections since `before` are gone, and everything
    /// that came with them is accounted for. `own_frames`: the fewest and the most
    /// that the server sends to each of its own accord.
    pub(crate) fn settle(
        &self,
        before: &Measured,
        made: usize,
        own_frames: (u64, u64),
    ) -> Measured {
        let made = made as u64;
        let mut seen = String::new();
        let settled = wait_for(|| {
            let now = self.measure();
            let grown = |name: &str| now.total(name) - before.total(name);
            let taken = grown("connections_accepted") + grown("connections_refused");
            let gone = grown("connections_closed") + grown("connections_refused");
            let received = grown("frames_received");
            let sent = grown("frames_sent");
            let ends = sent + grown("messages_expired") + grown("messages_dropped");
            let own = ends.wrapping_sub(received);
            seen = format!(
                "made {made} taken {taken} gone {gone} received {received} sent {sent} \
                 expired {} dropped {} open {} busy {}",
                grown("messages_expired"),
                grown("messages_dropped"),
                now.of_worker("connections"),
                now.of_worker("handlers_busy"),
            );
            let is_settled = taken == made
                && gone == made
                && (own_frames.0 * made..=own_frames.1 * made).contains(&own)
                && now.of_worker("connections") == 0
                && now.of_worker("handlers_busy") == 0
                && now.permits == before.permits
                && now.descriptors == before.descriptors;
            assert_eq!(now.total("workers_died"), 0, "{seen}");
            is_settled.then_some(now)
        });
        settled.unwrap_or_else(|| {
            let now = self.measure();
            panic!(
                "not settled: {seen} permits {} → {} descriptors {} → {}",
                before.permits, now.permits, before.descriptors, now.descriptors
            )
        })
    }

    /// Nothing is queued for connections that are gone. The worker reports once a second,
    /// so this is not asked after each case when there is no time.
    pub(crate) fn wait_empty(&self) {
        for gauge in ["connections_blocked", "inbox_bytes", "outbox_bytes"] {
            self.wait(&format!("/workers/0/{gauge}"), |value| value == 0);
        }
    }

    /// RssAnon: what the worker has allocated, without the program and shared memory. A
    /// worker keeps freed memory for reuse, up to 1 MiB a heap (`chappe_sys::memory`), which
    /// would hide a leak: it is returned to the kernel first.
    pub(crate) fn anonymous_bytes(&self) -> u64 {
        assert_eq!(self.visit(GIVE_BACK, b"").code, GIVE_BACK);
        let worker = self.server.worker_pids()[0];
        let text = fs::read_to_string(format!("/proc/{worker}/status")).expect("it runs");
        let kib = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = kib.and_then(|kib| kib.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.expect("RssAnon") * 1024
    }

    /// The next client finds a server that serves.
    pub(crate) fn prove_service(&self) {
        assert_eq!(self.visit(CODE_ECHO, b"next").body, "next");
    }

    /// The reply to a client that asks once and leaves. Nothing of it is left afterwards.
    fn visit(&self, code: u16, body: &[u8]) -> Frame {
        let before = self.measure();
        let mut client = self.connect(Close::Fin);
        let reply = client.call(code, body).expect("a reply");
        drop(client);
        wait_some("the visitor is gone", || {
            let now = self.measure();
            let closed = now.total("connections_closed") - before.total("connections_closed");
            (closed == 1 && now.permits == before.permits && now.descriptors == before.descriptors)
                .then_some(())
        });
        reply
    }
}
