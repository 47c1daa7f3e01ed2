//! The cases: what state a connection is brought into, and how it ends there. Each
//! plays a batch of connections and returns how many it made.

use chappe_client::{CODE_ECHO, CODE_PING, CODE_WHO, ClientError, Connection, ErrorNumber};
use chappe_testkit::application::{HOLD, PANIC};
use chappe_testkit::{Gate, drain, receive_error};
use chappe_wire::{Header, encode};

use super::stage::{Close, Site, Stage, hold};

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) site: Site,
    /// How many connections are in that state at a time.
    pub(crate) batch: usize,
    /// Frames that the server sends to each of its own accord: at least, at most.
    pub(crate) own_frames: (u64, u64),
    /// Messages that each loses at least; none was lost by closing too late.
    pub(crate) loses: u64,
    /// Whether each is counted as closed for its slowness.
    pub(crate) slow: u64,
    pub(crate) play: fn(&Stage, usize) -> usize,
}

const fn case(name: &'static str, batch: usize, play: fn(&Stage, usize) -> usize) -> Case {
    Case { name, site: Site::Roomy, batch, own_frames: (0, 0), loses: 0, slow: 0, play }
}

impl Case {
    const fn at(self, site: Site) -> Self {
        Self { site, ..self }
    }

    const fn says(self, least: u64, most: u64) -> Self {
        Self { own_frames: (least, most), ..self }
    }

    const fn loses(self, messages: u64) -> Self {
        Self { loses: messages, ..self }
    }

    const fn counts_as_slow(self) -> Self {
        Self { slow: 1, ..self }
    }
}

/// As many as there are handler threads at [`Site::Roomy`].
const HANDLERS: usize = 32;

pub(crate) const CASES: &[Case] = &[
    case("silent, then FIN", 50, silent_fin),
    case("silent, then RST", 50, |stage, n| ends(stage, n, Close::Reset, |_| ())),
    case("half a frame, then RST", 50, half_frame_reset),
    case("half a frame, then FIN", 50, half_frame_fin).says(1, 1),
    case("answered, then close", 50, |stage, n| ends(stage, n, Close::Fin, answered)),
    case("answered, then RST", 50, |stage, n| ends(stage, n, Close::Reset, answered)),
    case("half close, all replies read", 50, half_close),
    case("half close, then RST", 50, half_close_reset),
    case("replies on their way, then RST", 50, burst_reset),
    case("replies unread, then close", 50, |stage, n| ends(stage, n, Close::Fin, answered_unread)),
    case("blocked, then RST", 50, blocked_reset).loses(1),
    case("blocked, then half close, then RST", 50, blocked_fin_reset).loses(1),
    case("blocked, then half close, all replies read", 50, blocked_fin),
    case("blocked, kicked", 50, blocked_kicked).loses(1).says(0, 1),
    case("stalled and paused, then RST", 25, stalled_reset).loses(1),
    case("running, then RST", HANDLERS, running_reset).loses(1),
    case("running, then half close", HANDLERS, running_fin),
    case("running, kicked", HANDLERS, running_kicked).says(1, 1),
    case("waiting for a handler thread, then RST", 3 * HANDLERS, waiting_reset),
    case("paused, unread input, then FIN, then RST", HANDLERS, paused_fin_reset).loses(1),
    case("paused, unread input, then FIN, all read", HANDLERS, paused_fin),
    case("a handler panics", 50, panics),
    case("bad checksum, more behind it", 50, bad_checksum),
    case("bad length, lingering, then FIN", 50, |stage, n| lingering(stage, n, Close::Fin))
        .says(1, 1),
    case("bad length, lingering, then RST", 50, |stage, n| lingering(stage, n, Close::Reset))
        .says(1, 1),
    case("bad length while blocked, then RST", 50, finishing_reset).says(1, 1).loses(1),
    case("Unix: silent, then close", 50, |stage, n| unix(stage, n, |_| ())),
    case("Unix: answered, then close", 50, |stage, n| unix(stage, n, answered)),
    case("Unix: replies on their way, then close", 50, |stage, n| unix(stage, n, burst)),
    case("Unix: blocked, then close", 50, unix_blocked).loses(1),
    case("handshake time-out", 200, handshake).at(Site::Hasty).says(1, 1),
    case("idle time-out", 200, idle).at(Site::Hasty).says(1, 1),
    case("frame time-out", 200, frame).at(Site::Hasty).says(1, 1),
    case("blocked for too long", 200, too_slow).at(Site::Hasty).loses(1).counts_as_slow(),
    case("lingering for too long", 200, lingers).at(Site::Hasty).says(1, 1),
    case("refused, then FIN", 50, |stage, n| refused(stage, n, Close::Fin)).at(Site::Full),
    case("refused, then RST", 50, |stage, n| refused(stage, n, Close::Reset)).at(Site::Full),
];

fn connect(stage: &Stage, count: usize, close: Close) -> Vec<Connection> {
    (0..count).map(|_| stage.connect(close)).collect()
}

/// Clients that send at once: where time-outs are short, none must wait for the others.
fn connect_and_send(stage: &Stage, count: usize, bytes: &[u8]) -> Vec<Connection> {
    let connect = |_| {
        let mut client = stage.connect(Close::Fin);
        client.send_bytes(bytes).expect("sent");
        client
    };
    (0..count).map(connect).collect()
}

/// One after the other: does something and closes.
fn ends(stage: &Stage, count: usize, close: Close, act: fn(&mut Connection)) -> usize {
    for _ in 0..count {
        act(&mut stage.connect(close));
    }
    count
}

fn unix(stage: &Stage, count: usize, act: fn(&mut Connection)) -> usize {
    for _ in 0..count {
        act(&mut stage.connect_unix());
    }
    count
}

#[track_caller]
fn assert_closed(client: &mut Connection) {
    let end = client.receive();
    assert!(matches!(end, Err(ClientError::Closed)), "{end:?}");
}

/// Waits until a total has grown by `more`, from when this was called.
struct Grows<'a> {
    stage: &'a Stage,
    pointer: &'static str,
    before: u64,
}

fn watch<'a>(stage: &'a Stage, pointer: &'static str) -> Grows<'a> {
    Grows { stage, pointer, before: stage.number(pointer) }
}

impl Grows<'_> {
    #[track_caller]
    fn by(&self, more: usize) {
        self.stage.wait(self.pointer, |now| now - self.before >= more as u64);
    }
}

fn echo(bytes: usize) -> bytes::Bytes {
    encode(CODE_ECHO, &vec![7; bytes]).expect("it fits")
}

fn id(client: &mut Connection) -> u64 {
    let who = client.call(CODE_WHO, b"").expect("a reply");
    let text = String::from_utf8_lossy(&who.body).into_owned();
    let id = text.lines().find_map(|line| line.strip_prefix("connection="));
    id.and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("no id in {text}"))
}

fn answered(client: &mut Connection) {
    assert_eq!(client.call(CODE_ECHO, b"a").expect("a reply").body, "a");
}

/// The replies lie in the client's socket when it closes: the kernel sends RST.
fn answered_unread(client: &mut Connection) {
    client.send_bytes(&echo(10).repeat(3)).expect("sent");
    assert_eq!(client.receive().expect("a reply").body.len(), 10);
}

/// Whatever the server is at when the client goes: reading, handling, ready, sending.
fn burst(client: &mut Connection) {
    client.send_bytes(&echo(1000).repeat(30)).expect("sent");
}

fn silent_fin(stage: &Stage, count: usize) -> usize {
    ends(stage, count, Close::Fin, |client| {
        client.shutdown_write().expect("open");
        assert_closed(client);
    })
}

fn half_frame_reset(stage: &Stage, count: usize) -> usize {
    let received = watch(stage, "/totals/bytes_received");
    let mut clients = connect(stage, count, Close::Reset);
    for client in &mut clients {
        client.send_bytes(&echo(100)[..50]).expect("sent");
    }
    received.by(50 * count);
    count
}

fn half_frame_fin(stage: &Stage, count: usize) -> usize {
    ends(stage, count, Close::Fin, |client| {
        client.send_bytes(&echo(100)[..50]).expect("sent");
        client.shutdown_write().expect("open");
        receive_error(client, ErrorNumber::FrameTimeout);
        assert_closed(client);
    })
}

fn half_close(stage: &Stage, count: usize) -> usize {
    ends(stage, count, Close::Fin, |client| {
        let pings = encode(CODE_PING, b"").expect("it fits").repeat(20);
        client.send_bytes(&pings).expect("sent");
        client.shutdown_write().expect("open");
        let (replies, end) = drain(client);
        assert_eq!(replies.len(), 20, "{end}");
    })
}

fn half_close_reset(stage: &Stage, count: usize) -> usize {
    ends(stage, count, Close::Reset, |client| {
        burst(client);
        client.shutdown_write().expect("open");
    })
}

fn burst_reset(stage: &Stage, count: usize) -> usize {
    for nth in 0..count {
        let mut client = stage.connect(Close::Reset);
        burst(&mut client);
        // The first replies are there or not: from round to round the reset meets
        // the server further on.
        for _ in 0..nth % 8 {
            client.receive().expect("a reply");
        }
    }
    count
}

/// Two replies of which the kernel takes one at most.
const LARGE: usize = 60_000;

/// Clients whose sockets are full.
fn blocked(stage: &Stage, count: usize, close: Close, replies: usize) -> Vec<Connection> {
    let blocked = watch(stage, "/totals/sends_blocked");
    let mut clients = connect(stage, count, close);
    let large = echo(LARGE);
    for client in &mut clients {
        for _ in 0..replies {
            client.send_bytes(&large).expect("sent");
        }
    }
    blocked.by(count);
    clients
}

fn blocked_reset(stage: &Stage, count: usize) -> usize {
    blocked(stage, count, Close::Reset, 2);
    count
}

fn blocked_fin_reset(stage: &Stage, count: usize) -> usize {
    for client in &mut blocked(stage, count, Close::Reset, 2) {
        client.shutdown_write().expect("open");
    }
    count
}

fn blocked_fin(stage: &Stage, count: usize) -> usize {
    let mut clients = blocked(stage, count, Close::Fin, 2);
    for client in &mut clients {
        client.shutdown_write().expect("open");
    }
    for client in &mut clients {
        for _ in 0..2 {
            assert_eq!(client.receive().expect("a reply").body.len(), LARGE);
        }
        assert_closed(client);
    }
    count
}

fn blocked_kicked(stage: &Stage, count: usize) -> usize {
    let full = watch(stage, "/totals/sends_blocked");
    let closed = watch(stage, "/totals/connections_closed");
    let mut clients = connect(stage, count, Close::Fin);
    let ids: Vec<u64> = clients.iter_mut().map(id).collect();
    for client in &mut clients {
        client.send_bytes(&echo(LARGE).repeat(2)).expect("sent");
    }
    full.by(count);
    for id in ids {
        stage.kick(id);
    }
    closed.by(count);
    count
}

fn stalled_reset(stage: &Stage, count: usize) -> usize {
    let paused = watch(stage, "/totals/reads_paused");
    let clients = blocked(stage, count, Close::Reset, 4);
    paused.by(count);
    drop(clients);
    count
}

/// Runs a handler for each client, and waits until all do.
fn running(stage: &Stage, clients: &mut [Connection]) -> Gate {
    let gate = stage.gate();
    for client in clients.iter_mut() {
        hold(&gate, client);
    }
    stage.wait("/workers/0/handlers_busy", |busy| busy == clients.len() as u64);
    gate
}

fn wait_released(stage: &Stage) {
    stage.wait("/workers/0/handlers_busy", |busy| busy == 0);
}

fn running_reset(stage: &Stage, count: usize) -> usize {
    let closed = watch(stage, "/totals/connections_closed");
    let mut clients = connect(stage, count, Close::Reset);
    let gate = running(stage, &mut clients);
    drop(clients);
    // None of them waits for its handler.
    closed.by(count);
    drop(gate);
    wait_released(stage);
    count
}

fn running_fin(stage: &Stage, count: usize) -> usize {
    let mut clients = connect(stage, count, Close::Fin);
    let gate = running(stage, &mut clients);
    for client in &mut clients {
        client.shutdown_write().expect("open");
    }
    gate.open();
    for client in &mut clients {
        assert_eq!(client.receive().expect("a reply").code, HOLD);
        assert_closed(client);
    }
    wait_released(stage);
    count
}

fn running_kicked(stage: &Stage, count: usize) -> usize {
    let mut clients = connect(stage, count, Close::Fin);
    let ids: Vec<u64> = clients.iter_mut().map(id).collect();
    let gate = running(stage, &mut clients);
    for id in ids {
        stage.kick(id);
    }
    gate.open();
    for client in &mut clients {
        assert_eq!(client.receive().expect("a reply").code, HOLD);
        assert!(client.receive().expect("a frame").as_goodbye().is_some());
        assert_closed(client);
    }
    wait_released(stage);
    count
}

/// A third holds all handler threads, two thirds wait for one.
fn waiting_reset(stage: &Stage, count: usize) -> usize {
    let closed = watch(stage, "/totals/connections_closed");
    let received = watch(stage, "/totals/frames_received");
    let mut clients = connect(stage, count, Close::Reset);
    let mut waiting = clients.split_off(count.min(HANDLERS));
    let gate = running(stage, &mut clients);
    for client in &mut waiting {
        burst(client);
    }
    received.by(clients.len() + 30 * waiting.len());
    let waited = waiting.len();
    drop(waiting);
    closed.by(waited);
    drop(clients);
    drop(gate);
    wait_released(stage);
    count
}

/// What a client sends behind the message that is handled: more than is read
/// before the inbox is full and reading pauses.
const BEHIND: usize = 100;

fn paused(stage: &Stage, clients: &mut [Connection]) -> Gate {
    let paused = watch(stage, "/totals/reads_paused");
    let gate = running(stage, clients);
    for client in clients.iter_mut() {
        client.send_bytes(&echo(1000).repeat(BEHIND)).expect("sent");
    }
    paused.by(clients.len());
    for client in clients {
        client.shutdown_write().expect("open");
    }
    gate
}

fn paused_fin_reset(stage: &Stage, count: usize) -> usize {
    let closed = watch(stage, "/totals/connections_closed");
    let mut clients = connect(stage, count, Close::Reset);
    let gate = paused(stage, &mut clients);
    drop(clients);
    closed.by(count);
    drop(gate);
    wait_released(stage);
    count
}

fn paused_fin(stage: &Stage, count: usize) -> usize {
    let mut clients = connect(stage, count, Close::Fin);
    let gate = paused(stage, &mut clients);
    gate.open();
    for client in &mut clients {
        let (replies, end) = drain(client);
        assert_eq!(replies.len(), 1 + BEHIND, "{end}");
    }
    wait_released(stage);
    count
}

fn panics(stage: &Stage, count: usize) -> usize {
    ends(stage, count, Close::Fin, |client| {
        receive_error_of(client, PANIC);
        assert_closed(client);
    })
}

fn receive_error_of(client: &mut Connection, code: u16) {
    client.send(code, b"").expect("sent");
    receive_error(client, ErrorNumber::HandlerFailed);
}

fn bad_checksum(stage: &Stage, count: usize) -> usize {
    ends(stage, count, Close::Fin, |client| {
        let mut damaged = echo(10).to_vec();
        damaged[12] ^= 1;
        client.send_bytes(&[&damaged[..], &echo(10).repeat(50)].concat()).expect("sent");
        receive_error(client, ErrorNumber::BadChecksum);
        assert_closed(client);
    })
}

fn bad_length() -> [u8; 8] {
    Header { length: 3, code: CODE_ECHO, crc32: 0 }.to_bytes()
}

/// The server has sent its last frame and waits for the peer's end.
fn lingering(stage: &Stage, count: usize, close: Close) -> usize {
    for _ in 0..count {
        let mut client = stage.connect(close);
        client.send_bytes(&bad_length()).expect("sent");
        receive_error(&mut client, ErrorNumber::BadLength);
        assert_closed(&mut client);
        client.send_bytes(b"and more").expect("the server still reads");
    }
    count
}

fn finishing_reset(stage: &Stage, count: usize) -> usize {
    let errors = watch(stage, "/totals/protocol_errors");
    let mut clients = blocked(stage, count, Close::Reset, 1);
    for client in &mut clients {
        client.send_bytes(&bad_length()).expect("sent");
    }
    errors.by(count);
    count
}

fn unix_blocked(stage: &Stage, count: usize) -> usize {
    let full = watch(stage, "/totals/sends_blocked");
    let mut clients: Vec<_> = (0..count).map(|_| stage.connect_unix()).collect();
    for client in &mut clients {
        client.send_bytes(&echo(LARGE)).expect("sent");
    }
    full.by(count);
    count
}

fn assert_goodbyes(clients: &mut [Connection]) {
    for client in clients {
        assert!(client.receive().expect("a frame").as_goodbye().is_some());
        assert_closed(client);
    }
}

fn handshake(stage: &Stage, count: usize) -> usize {
    assert_goodbyes(&mut connect(stage, count, Close::Fin));
    count
}

fn idle(stage: &Stage, count: usize) -> usize {
    let mut clients = connect_and_send(stage, count, &echo(1));
    for client in &mut clients {
        assert_eq!(client.receive().expect("a reply").body.len(), 1);
    }
    assert_goodbyes(&mut clients);
    count
}

fn frame(stage: &Stage, count: usize) -> usize {
    let begun = [&echo(1), &echo(9)[..12]].concat();
    for client in &mut connect_and_send(stage, count, &begun) {
        assert_eq!(client.receive().expect("a reply").body.len(), 1);
        receive_error(client, ErrorNumber::FrameTimeout);
        assert_closed(client);
    }
    count
}

fn too_slow(stage: &Stage, count: usize) -> usize {
    let slow = watch(stage, "/totals/closed_slow");
    let _clients = connect_and_send(stage, count, &echo(LARGE).repeat(2));
    slow.by(count);
    count
}

fn lingers(stage: &Stage, count: usize) -> usize {
    let closed = watch(stage, "/totals/connections_closed");
    let _clients = connect_and_send(stage, count, &bad_length());
    // They stay open on their side, and the server gives them up.
    closed.by(count);
    count
}

/// One client has the only permit.
fn refused(stage: &Stage, count: usize, close: Close) -> usize {
    let mut holder = stage.connect(Close::Fin);
    answered(&mut holder);
    for _ in 1..count {
        let mut client = stage.connect(close);
        receive_error(&mut client, ErrorNumber::Busy);
        assert_closed(&mut client);
    }
    drop(holder);
    // Its permit is the next batch's.
    stage.wait("/semaphores/connection_permits", |permits| permits == 1);
    count
}
