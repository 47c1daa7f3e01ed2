use super::*;
use chappe_engine::sync::Semaphore;
use chappe_engine::{
    Cause, Engine, Goodbye, Limits, Login, Names, Peer, Refusal, SlowReader, Socket, TopicKind,
    TopicQuery,
};
use chappe_shm::SharedCounters;
use chappe_sys::clock::Moment;
use std::io::{self, IoSlice};

#[derive(Debug)]
struct Sink;

impl Socket for Sink {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }
}

/// A connection, and an application whose password is `sesame`, or which has none.
struct Peers {
    mailbox: Arc<Mailbox>,
    has_gate: bool,
    is_admitted: bool,
    dialect: u8,
    passwords: bool,
    /// What was asked of topics.
    asked: Vec<String>,
}

impl Host for Peers {
    fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }
    fn is_admitted(&self) -> bool {
        self.is_admitted
    }
    fn shut_gate(&mut self) {
        self.is_admitted &= !self.has_gate;
    }
    fn dialect(&self) -> u8 {
        self.dialect
    }
    fn set_dialect(&mut self, dialect: u8) {
        self.dialect = dialect;
    }
    fn authenticate(&mut self, user: &[u8], password: &[u8]) -> Login {
        match (self.passwords, password) {
            (false, _) => Login::Unknown,
            (true, b"sesame") => {
                self.is_admitted = true;
                Login::Admitted
            }
            (true, b"panic") => Login::Panicked,
            (true, _) => Login::Denied(format!("no {}", String::from_utf8_lossy(user))),
        }
    }
    fn subscribe(
        &mut self,
        _: &Opened<'_>,
        kind: TopicKind,
        names: &[&[u8]],
    ) -> Result<(), Refusal> {
        self.topics("subscribe", Some(kind), names)
    }
    fn unsubscribe(
        &mut self,
        _: &Opened<'_>,
        kind: Option<TopicKind>,
        names: &[&[u8]],
    ) -> Result<(), Refusal> {
        self.topics("unsubscribe", kind, names)
    }
    fn query(&mut self, _: &Opened<'_>, query: TopicQuery<'_>) -> Result<(), Refusal> {
        self.topics(&format!("{query:?}"), None, &[])
    }
    fn publish(
        &mut self,
        _: &Opened<'_>,
        kind: TopicKind,
        topic: &[u8],
        payload: &[u8],
    ) -> Result<(), Refusal> {
        self.topics("publish", Some(kind), &[topic, payload])
    }
}

fn resp(is_admin: bool) -> Arc<dyn Protocol> {
    let settings = vec![("timeouts.idle".to_owned(), "5m".to_owned())];
    Resp::of_worker(Facts::new(settings))(is_admin)
}

fn mailbox(protocol: &Arc<dyn Protocol>, id: u64) -> Arc<Mailbox> {
    let limits = Limits {
        inbox_messages_max: 1,
        inbox_bytes_max: 1000,
        inbox_total_bytes_max: 1000,
        outbox_bytes_max: 1000,
        outbox_total_bytes_max: 1000,
        slow_reader: SlowReader::DropNewest,
        deferred_max: 1,
    };
    let permits: Semaphore = chappe_sys::Semaphore::new(0).unwrap().into();
    let protocols = vec![Arc::clone(protocol)];
    let engine = Engine::new(&limits, permits, protocols, SharedCounters::detached()).unwrap();
    let peer = Peer::Tcp(([127, 0, 0, 1], 40_000 + u16::try_from(id).unwrap()).into());
    let names = Names { id, token: id, peer, listener: 0, connected_at: Moment::now() };
    let mailbox = Arc::new(Mailbox::new(names, Arc::new(Sink), Arc::new(engine)));
    protocol.accepted(&mailbox);
    mailbox
}

impl Peers {
    fn topics(
        &mut self,
        what: &str,
        kind: Option<TopicKind>,
        names: &[&[u8]],
    ) -> Result<(), Refusal> {
        let names: Vec<_> = names.iter().map(|name| String::from_utf8_lossy(name)).collect();
        match &*names.join(" ") {
            "wrong" => Err(Refusal::Invalid("no name".into())),
            "secret" => Err(Refusal::NotAllowed("not you".into())),
            names => {
                self.asked.push(format!("{what} {kind:?} {names}"));
                Ok(())
            }
        }
    }

    fn new(protocol: &Arc<dyn Protocol>) -> Self {
        let (has_gate, is_admitted, dialect, passwords) = (false, true, RESP2, true);
        let (mailbox, asked) = (mailbox(protocol, 7), Vec::new());
        Self { mailbox, has_gate, is_admitted, dialect, passwords, asked }
    }

    fn gated(protocol: &Arc<dyn Protocol>) -> Self {
        Self { has_gate: true, is_admitted: false, ..Self::new(protocol) }
    }

    /// What comes of one line.
    fn ask(&mut self, line: &str) -> (Served, String) {
        let line = format!("{line}\r\n");
        let (mut batch, mailbox) = (Batch::default(), Arc::clone(&self.mailbox));
        let protocol = mailbox.protocol();
        let opened = protocol.open(line.as_bytes()).expect("a command");
        assert_eq!(opened.length, line.len());
        let served = protocol.command(&opened, self, &mut batch).expect("no message");
        let (bytes, replies) = batch.take();
        assert_eq!(replies, u32::from(!bytes.is_empty()), "one reply");
        (served, String::from_utf8(bytes.to_vec()).unwrap())
    }

    fn answer(&mut self, line: &str) -> String {
        let (served, text) = self.ask(line);
        assert!(matches!(served, Served::Answered | Served::Switched), "{line}: {served:?}");
        text
    }
}

fn notice(notice: &Notice) -> Option<String> {
    let (bytes, messages) = resp(false).notice_alone(notice)?;
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!(text.matches("\r\n").count(), messages as usize);
    Some(text)
}

#[test]
fn notices_are_those_of_the_table() {
    for (problem, expected) in [
        (Problem::Malformed, "-ERR Protocol error: why\r\n"),
        (Problem::BadChecksum, "-ERR Protocol error: why\r\n"),
        (Problem::Incomplete, "-ERR Protocol error: why\r\n"),
        (Problem::UnknownCode, "-ERR unknown message code 77\r\n"),
        (Problem::HandlerFailed, "-ERR why\r\n"),
        (Problem::TooFast, "-ERR why\r\n"),
        (Problem::BusyInside, "-ERR why\r\n"),
        (Problem::Busy, "-ERR max number of clients reached\r\n"),
        (Problem::NotAdmitted, "-NOAUTH Authentication required.\r\n"),
        (Problem::Denied, "-NOPERM why\r\n"),
    ] {
        let error = Notice::Error { problem, code: Some(77), text: "why".into() };
        assert_eq!(notice(&error).as_deref(), Some(expected), "{problem:?}");
    }
    let too_fast = notice(&Notice::TooFast { codes: vec![1, 2] });
    assert_eq!(too_fast.unwrap(), "-ERR above the rate limit\r\n".repeat(2));
    let (reason, text) = (Goodbye::Stopping, "stopping".into());
    assert_eq!(notice(&Notice::Goodbye { reason, text }), None);
}

#[test]
fn a_call_is_a_message_and_all_else_a_command() {
    let resp = resp(false);
    let open = |bytes: &'static [u8]| resp.open(bytes).unwrap();
    let call = open(b"*3\r\n$11\r\nchappe.CALL\r\n$2\r\n16\r\n$4\r\na\r\nb\r\nPING\r\n");
    assert_eq!((call.code, call.body, call.length, call.joins), (16, &b"a\r\nb"[..], 40, true));
    let call = open(b"CHAPPE.CALL 65279\r\n");
    assert_eq!((call.code, call.body, call.joins), (65_279, &b""[..], true));
    for command in [
        &b"PING\r\n"[..],
        b"CHAPPE.CALL 65280 x\r\n",
        b"CHAPPE.CALL x\r\n",
        b"CHAPPE.CALL -1\r\n",
        b"CHAPPE.CALL\r\n",
        b"CHAPPE.CALL 1 2 3\r\n",
        b"CHAPPE.CALL 1 \"a b\"\r\n",
        b"\r\n",
        b"*0\r\n",
    ] {
        let opened = open(command);
        let expected = (CODE_COMMAND, command.len(), false);
        assert_eq!((opened.code, opened.length, opened.joins), expected);
    }
    assert_eq!(open(b"AUTH x\r\n").code, CODE_SLOW_COMMAND);
    assert_eq!(open(b"HELLO 3\r\n").code, CODE_COMMAND);
    assert_eq!(open(b"HELLO 3 AUTH a b\r\n").code, CODE_SLOW_COMMAND);
    assert!(resp.open(b"*1\r\n$4\r\nPIN").is_none());
    assert!(resp.open(b"*1\r\n$x\r\n").is_none());
}

#[test]
fn what_it_opens_is_what_it_frames() {
    let resp = resp(false);
    let stream = b"PING\r\n*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\n*0\r\n\r\nCHAPPE.CALL 1 x\r\n";
    for end in 0..=stream.len() {
        let (mut rest, mut opened) = (&stream[..end], 0);
        while let Some(message) = resp.open(rest) {
            rest = &rest[message.length..];
            opened += 1;
        }
        let framed = resp.frame(&stream[..end]);
        assert_eq!((framed.messages, framed.whole_bytes), (opened, end - rest.len()), "{end}");
    }
}

#[test]
fn the_replies_to_a_call_are_one() {
    let resp = resp(false);
    let joined = |replies: &[&[u8]], dialect| {
        let mut batch = Batch::default();
        batch.append(b"+before\r\n");
        let begin = batch.mark();
        replies.iter().for_each(|body| resp.reply(16, body, None, &mut batch).unwrap());
        resp.join(dialect, begin, &mut batch);
        let (bytes, messages) = batch.take();
        assert_eq!(messages, 2);
        String::from_utf8(bytes.to_vec()).unwrap().replace("+before\r\n", "")
    };
    assert_eq!(joined(&[], RESP2), "$-1\r\n");
    assert_eq!(joined(&[], RESP3), "_\r\n");
    assert_eq!(joined(&[b"a"], RESP2), "$1\r\na\r\n");
    assert_eq!(joined(&[b"a", b"", b"c\r\n"], RESP3), "*3\r\n$1\r\na\r\n$0\r\n\r\n$3\r\nc\r\n\r\n");
    let too_long = vec![0; BODY_BYTES_MAX + 1];
    let mut batch = Batch::default();
    assert!(resp.reply(16, &too_long, None, &mut batch).is_err() && batch.is_empty());
    assert!(resp.reply(16, &too_long[1..], None, &mut batch).is_ok());
}

#[test]
fn pushes_are_of_version_3() {
    let resp = resp(false);
    assert_eq!(resp.push_form(RESP2), None);
    assert_eq!(resp.push_form(RESP3), Some(PushForm::Resp3));
    let mut batch = Batch::default();
    push(16, b"hi", &mut batch).unwrap();
    let (bytes, messages) = batch.take();
    assert_eq!((&bytes[..], messages), (&b">3\r\n+chappe\r\n:16\r\n$2\r\nhi\r\n"[..], 1));
}

#[test]
fn hello_changes_the_version_and_reset_takes_it_back() {
    let resp = resp(false);
    let mut peer = Peers::new(&resp);
    let greeting = peer.answer("HELLO");
    assert!(greeting.starts_with("*14\r\n$6\r\nserver\r\n$5\r\nredis\r\n"), "{greeting}");
    let (served, greeting) = peer.ask("HELLO 3 SETNAME me");
    assert_eq!((served, peer.dialect), (Served::Switched, RESP3));
    assert!(greeting.starts_with("%7\r\n"), "{greeting}");
    assert!(greeting.contains("$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:7\r\n"), "{greeting}");
    assert_eq!(peer.answer("CLIENT GETNAME"), "$2\r\nme\r\n");
    assert_eq!(peer.ask("HELLO 3").0, Served::Answered, "nothing has changed");
    let (served, text) = peer.ask("RESET");
    assert_eq!((served, &*text, peer.dialect), (Served::Switched, "+RESET\r\n", RESP2));
    assert_eq!(peer.answer("CLIENT GETNAME"), "$-1\r\n");
}

#[test]
fn little_is_possible_before_the_gate() {
    let resp = resp(true);
    let mut peer = Peers::gated(&resp);
    let noauth = "-NOAUTH Authentication required.\r\n".to_owned();
    for line in
        ["ECHO a", "TIME", "INFO", "CLIENT ID", "COMMAND", "CONFIG GET *", "NOTHING", "SELECT 0"]
    {
        assert_eq!(peer.ask(line), (Served::NotAdmitted, noauth.clone()), "{line}");
    }
    assert_eq!(peer.answer("PING"), "+PONG\r\n");
    assert_eq!(peer.answer("PING a"), "$1\r\na\r\n");
    assert!(peer.answer("HELLO").starts_with("-NOAUTH HELLO must be called"));
    assert_eq!(peer.answer("AUTH wrong"), "-WRONGPASS no default\r\n");
    assert_eq!(peer.answer("HELLO 3 AUTH me wrong"), "-WRONGPASS no me\r\n");
    assert_eq!(peer.dialect, RESP2, "and it is not done in part");
    assert_eq!(peer.answer("AUTH sesame"), "+OK\r\n");
    assert_eq!(peer.answer("ECHO a"), "$1\r\na\r\n");
    assert_eq!(peer.answer("RESET"), "+RESET\r\n");
    assert_eq!(peer.ask("ECHO a").0, Served::NotAdmitted);
    assert!(peer.answer("HELLO 3 AUTH me sesame").starts_with("%7\r\n"));
    assert_eq!(peer.answer("ECHO a"), "$1\r\na\r\n");
    assert_eq!(peer.ask("AUTH panic"), (Served::Panicked, "-ERR the service panicked\r\n".into()));
    peer.passwords = false;
    assert!(peer.answer("AUTH x").starts_with("-ERR AUTH <password> called without any password"));
    assert_eq!(peer.ask("QUIT"), (Served::End(Cause::PeerClosed), "+OK\r\n".into()));
}

#[test]
fn a_line_of_http_gets_no_answer_and_the_end() {
    let resp = resp(false);
    for line in ["POST / HTTP/1.1", "Host: example.com"] {
        let served = Peers::new(&resp).ask(line);
        assert_eq!(served, (Served::End(Cause::ProtocolError), String::new()));
    }
}

#[test]
fn a_connection_sees_itself_and_an_admin_all() {
    for (is_admin, seen) in [(false, 1), (true, 2)] {
        let resp = resp(is_admin);
        let mut peer = Peers::new(&resp);
        let other = mailbox(&resp, 8);
        let list = peer.answer("CLIENT LIST");
        assert_eq!(list.matches("id=").count(), seen);
        assert_eq!(peer.answer("CLIENT LIST ID 8").matches("id=").count(), seen - 1);
        assert!(peer.answer("CLIENT INFO").contains("id=7 addr=127.0.0.1:40007 name= age="));
        assert_eq!(peer.answer("CLIENT KILL ID 8"), format!(":{}\r\n", seen - 1));
        assert_eq!(other.view().cause, is_admin.then_some(Cause::Kicked));
        let no_client = if is_admin { "+OK\r\n" } else { "-ERR No such client\r\n" };
        assert_eq!(peer.answer("CLIENT KILL 127.0.0.1:40008"), no_client);
        assert_eq!(peer.answer("CLIENT KILL ID 7"), ":0\r\n", "SKIPME");
        let own = peer.ask("CLIENT KILL ID 7 SKIPME no");
        assert_eq!(own, (Served::End(Cause::Kicked), ":1\r\n".to_owned()));
        resp.gone(8);
        assert_eq!(peer.answer("CLIENT LIST").matches("id=").count(), 1);
        let config = peer.answer("CONFIG GET time*");
        assert_eq!(config.starts_with("*2\r\n$13\r\ntimeouts.idle\r\n$2\r\n5m\r\n"), is_admin);
        assert_eq!(config.starts_with("-NOPERM "), !is_admin);
    }
}

#[test]
fn names_are_kept_until_the_connection_is_gone() {
    let resp = resp(false);
    let mut peer = Peers::new(&resp);
    assert_eq!(peer.answer("CLIENT SETNAME me"), "+OK\r\n");
    assert_eq!(peer.answer("CLIENT SETINFO lib-name redis-py"), "+OK\r\n");
    assert_eq!(peer.answer("CLIENT SETINFO LIB-VER 5.0"), "+OK\r\n");
    assert!(peer.answer("CLIENT INFO").contains(" name=me "));
    assert!(peer.answer("CLIENT INFO").ends_with("lib-name=redis-py lib-ver=5.0\n\r\n"));
    for bad in [r#"CLIENT SETNAME "a b""#, r#"CLIENT SETNAME "a\n""#] {
        assert_eq!(peer.answer(bad), format!("-ERR {}\r\n", clients::BAD_NAME));
    }
    resp.gone(7);
    assert_eq!(peer.answer("CLIENT GETNAME"), "$-1\r\n");
}

#[test]
fn info_has_what_clients_look_for() {
    let resp = resp(false);
    let mut peer = Peers::new(&resp);
    let info = peer.answer("INFO");
    for line in ["redis_version:7.0.15", "loading:0", "role:master", "connected_clients:1"] {
        assert!(info.contains(&format!("\r\n{line}\r\n")), "{info}");
    }
    let clients = peer.answer("INFO clients keyspace");
    assert_eq!(clients, "$46\r\n# Clients\r\nconnected_clients:1\r\n\r\n# Keyspace\r\n\r\n");
    peer.dialect = RESP3;
    assert_eq!(peer.answer("INFO persistence"), "=30\r\ntxt:# Persistence\r\nloading:0\r\n\r\n");
}

#[test]
fn topics_are_asked_for_and_answered_later() {
    let resp = resp(false);
    let mut peer = Peers::new(&resp);
    for (line, asked) in [
        ("SUBSCRIBE a b", "subscribe Some(Topic) a b"),
        ("PSUBSCRIBE a?", "subscribe Some(Pattern) a?"),
        ("SSUBSCRIBE a", "subscribe Some(Shard) a"),
        ("UNSUBSCRIBE", "unsubscribe Some(Topic) "),
        ("PUNSUBSCRIBE a?", "unsubscribe Some(Pattern) a?"),
        ("SUNSUBSCRIBE", "unsubscribe Some(Shard) "),
        ("PUBLISH a hello", "publish Some(Topic) a hello"),
        ("SPUBLISH a hello", "publish Some(Shard) a hello"),
    ] {
        assert_eq!(peer.ask(line), (Served::Submitted, String::new()), "{line}");
        assert_eq!(peer.asked.pop().as_deref(), Some(asked));
    }
    assert_eq!(peer.answer("SUBSCRIBE wrong"), "-ERR no name\r\n");
    assert_eq!(peer.answer("SUBSCRIBE secret"), "-NOPERM not you\r\n");
    let text = "-ERR wrong number of arguments for 'publish' command\r\n";
    assert_eq!(peer.answer("PUBLISH a"), text);
}

#[test]
fn a_listener_of_version_2_may_do_little_else() {
    let resp = resp(false);
    let mut peer = Peers::new(&resp);
    peer.mailbox.note_subscriptions(1);
    let refused = |name: &str| {
        format!(
            "-ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / \
             RESET are allowed in this context\r\n"
        )
    };
    for (line, name) in [("ECHO a", "echo"), ("PUBLISH a b", "publish"), ("HELLO 3", "hello")] {
        assert_eq!(peer.answer(line), refused(name));
    }
    assert_eq!(
        resp.refuses_call(RESP2).map(|text| format!("-ERR {text}\r\n")),
        Some(refused("chappe.call"))
    );
    assert_eq!(peer.answer("PING"), "*2\r\n$4\r\npong\r\n$0\r\n\r\n");
    assert_eq!(peer.answer("PING hi"), "*2\r\n$4\r\npong\r\n$2\r\nhi\r\n");
    assert_eq!(peer.ask("SUBSCRIBE b").0, Served::Submitted);
    // Version 3 tells messages and replies apart.
    peer.dialect = RESP3;
    assert_eq!(peer.answer("PING"), "+PONG\r\n");
    assert_eq!(peer.answer("ECHO a"), "$1\r\na\r\n");
    assert_eq!(resp.refuses_call(RESP3), None);
    // The end of its subscriptions is the answer.
    assert_eq!(peer.ask("RESET"), (Served::Submitted, String::new()));
    assert_eq!((peer.dialect, peer.asked.pop().as_deref()), (RESP2, Some("unsubscribe None ")));
    peer.mailbox.note_subscriptions(0);
    assert_eq!(peer.answer("RESET"), "+RESET\r\n");
}
