use super::super::tests::{TestPeer, engine};
use super::super::topics::OfWorker;
use super::*;
use crate::handler::{Deny, NoConfig, StartError};
use crate::protocol::encode;

fn application() -> Application<()> {
    let mut routes = Routes::<()>::new();
    routes.on(16, |(), (), call| {
        call.reply(16, call.body())?;
        call.reply(16, call.body())
    });
    routes.on(17, |(), (), call| {
        call.reply(17, b"half an answer")?;
        Err(HandlerError::new("out of ink"))
    });
    routes.on(18, |(), (), call| {
        call.reply(18, b"half an answer")?;
        panic!("planned by the test");
    });
    routes.on(19, |(), (), call| {
        call.reply(19, b"half an answer")?;
        Err(Deny::close("not you"))?
    });
    routes.on(20, |(), (), call| {
        call.reply(20, b"an answer")?;
        call.close("enough");
        call.close("the first text is told");
        call.reply(20, b"behind the end").expect_err("it is over");
        Ok(())
    });
    routes.on(21, |(), (), call| {
        call.close("enough");
        Err(HandlerError::new("out of ink"))
    });
    application_of((), routes, NoConfig {})
}

fn application_of<S: Service>(service: S, routes: Routes<S>, config: S::Config) -> Application<S> {
    let figures = AppFigures::detached(routes.catalog());
    let worker = Worker::new(2, 1, config, engine(), figures.clone(), OfWorker::Off);
    let counters = SharedCounters::detached();
    Application::new(service, routes, worker, Arc::default(), false, counters, figures)
}

fn serve(bytes: &[u8]) -> (Served, Vec<(Code, Vec<u8>)>) {
    serve_by(&application(), bytes, &mut None)
}

fn serve_by<S: Service>(
    application: &Application<S>,
    bytes: &[u8],
    session: &mut Option<Box<Session>>,
) -> (Served, Vec<(Code, Vec<u8>)>) {
    let (peer, mut batch) = (TestPeer::new(9), Batch::default());
    let opened = peer.mailbox.protocol().open(bytes).expect("a whole message");
    let found = application.find(opened.code);
    let served = application.serve(found, &peer.message(opened, None), session, &mut batch);
    (served, peer.answers(&mut batch))
}

/// The two numbers and the text of an error.
fn error_of(replies: &[(Code, Vec<u8>)]) -> ([u8; 4], &str) {
    let [(65_535, body)] = replies else { panic!("an error: {replies:?}") };
    let (numbers, text) = body.split_first_chunk().expect("two numbers");
    (*numbers, std::str::from_utf8(text).expect("text"))
}

#[test]
fn stock_codes_answer_as_the_protocol_says() {
    let ping = serve(&encode(0, b"ignored").unwrap());
    assert_eq!(ping, (Served::Answered, vec![(0, vec![])]));
    let echo = serve(&encode(1, b"body").unwrap());
    assert_eq!(echo, (Served::Answered, vec![(1, b"body".to_vec())]));
    let (_, time) = serve(&encode(2, b"").unwrap());
    assert_eq!((time[0].0, time[0].1.len()), (2, 8));
    let (_, who) = serve(&encode(3, b"").unwrap());
    let pid = std::process::id();
    let lines = format!("worker=2\npid={pid}\ngeneration=1\nconnection=9\npeer=127.0.0.1:40000\n");
    assert_eq!(who, vec![(3, lines.into_bytes())]);
}

#[test]
fn a_handler_may_answer_more_than_once() {
    let (served, replies) = serve(&encode(16, b"x").unwrap());
    assert_eq!((served, replies.len()), (Served::Answered, 2));
}

#[test]
fn errors_take_the_place_of_the_replies_of_their_message() {
    let (served, replies) = serve(&encode(17, b"").unwrap());
    assert_eq!((served, error_of(&replies)), (Served::Failed, ([0, 4, 0, 17], "out of ink")));
    let (served, replies) = serve(&encode(18, b"").unwrap());
    let expected = ([0, 4, 0, 18], "the handler panicked");
    assert_eq!((served, error_of(&replies)), (Served::Panicked, expected));
    let (served, replies) = serve(&encode(15, b"").unwrap());
    let expected = ([0, 3, 0, 15], "no handler for code 15");
    assert_eq!((served, error_of(&replies)), (Served::UnknownCode, expected));
}

#[test]
fn a_denial_takes_the_place_of_the_replies_and_ends_the_connection() {
    let (served, replies) = serve(&encode(19, b"").unwrap());
    assert_eq!(served, Served::End(Cause::Denied));
    assert_eq!(error_of(&replies), ([0, 8, 0, 19], "not you"));
}

#[test]
fn a_close_stands_behind_the_replies() {
    let (served, replies) = serve(&encode(20, b"").unwrap());
    assert_eq!(served, Served::End(Cause::ByApplication));
    let goodbye = [&[0, 7][..], b"enough"].concat();
    assert_eq!(replies, [(20, b"an answer".to_vec()), (65_534, goodbye)]);
}

#[test]
fn an_error_does_not_take_a_close_back() {
    let (served, mut replies) = serve(&encode(21, b"").unwrap());
    assert_eq!(served, Served::End(Cause::ByApplication));
    let goodbye = [&[0, 7][..], b"enough"].concat();
    assert_eq!(replies.pop(), Some((65_534, goodbye)));
    assert_eq!(error_of(&replies), ([0, 4, 0, 21], "out of ink"));
}

#[test]
fn a_wrong_checksum_is_refused_also_on_an_empty_body() {
    let mut frame = encode(0, b"").unwrap().to_vec();
    frame[7] = 1;
    let (served, replies) = serve(&frame);
    assert_eq!((served, error_of(&replies).0), (Served::BadChecksum, [0, 2, 0, 0]));
}

/// Asks for a secret of two bytes, and counts the messages of each connection.
struct Gated;

impl Service for Gated {
    type Config = NoConfig;
    type State = u32;

    fn start(_: &Worker<Self>) -> Result<Self, StartError> {
        Ok(Self)
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.before_admit(16, |_, count, call| {
            *count += 1;
            match call.body() {
                b"ok" => call.admit(),
                b"no" => {
                    call.admit();
                    Err("an error does not admit")?;
                }
                _ => {}
            }
            call.reply(16, &count.to_be_bytes())
        });
        routes.on(17, |_, count, call| call.reply(17, &count.to_be_bytes()));
    }

    fn connected(&self, _: &Client) -> Result<u32, Deny> {
        Ok(0)
    }
}

#[test]
fn before_it_is_admitted_a_connection_may_do_little() {
    let application = application_of(Gated, Routes::of_service(), NoConfig {});
    let peer = TestPeer::new(9);
    let session =
        || Some(application.connected(&peer.mailbox, &mut Batch::default()).expect("let in"));
    let count = |n: u32| n.to_be_bytes().to_vec();
    // Also codes that nobody handles: who is not admitted learns nothing.
    for code in [17, 1, 2, 3, 4, 18, 65_279] {
        let (served, replies) = serve_by(&application, &encode(code, b"").unwrap(), &mut session());
        assert_eq!(served, Served::NotAdmitted, "code {code}");
        let [high, low] = code.to_be_bytes();
        assert_eq!(error_of(&replies), ([0, 8, high, low], "not admitted yet"));
    }
    let mut session = session();
    let mut serve =
        |code, body: &[u8]| serve_by(&application, &encode(code, body).unwrap(), &mut session);
    assert_eq!(serve(0, b""), (Served::Answered, vec![(0, vec![])]));
    assert_eq!(serve(16, b"x"), (Served::Answered, vec![(16, count(1))]));
    assert_eq!(serve(16, b"no").0, Served::Failed);
    assert_eq!(serve(16, b"ok"), (Served::Answered, vec![(16, count(3))]));
    assert_eq!(serve(17, b""), (Served::Answered, vec![(17, count(3))]));
    assert_eq!(serve(18, b"").0, Served::UnknownCode);
    assert_eq!(serve(16, b"again"), (Served::Answered, vec![(16, count(4))]));
}

#[test]
fn a_failed_message_does_not_admit() {
    let application = application_of(Gated, Routes::of_service(), NoConfig {});
    let peer = TestPeer::new(9);
    let mut session = application.connected(&peer.mailbox, &mut Batch::default()).ok();
    let mut serve =
        |code, body: &[u8]| serve_by(&application, &encode(code, body).unwrap(), &mut session).0;
    assert_eq!(serve(16, b"no"), Served::Failed);
    assert_eq!(serve(17, b""), Served::NotAdmitted);
}
