//! The outbox over every pair of state and event, and the flush routine against
//! a socket that follows a script.

use super::super::flush::{FLUSH_BYTES_MAX, IO_SLICES_MAX, flush};
use super::super::sink::send_half_on;
use super::*;
use crate::sync::Mutex as Lock;
use bytes::Bytes;
use chappe_shm::{Counter, ThreadCounters};
use std::io::{self, IoSlice};

/// Takes what its script says; then all.
#[derive(Debug, Default)]
struct Scripted {
    script: Lock<VecDeque<Result<usize, i32>>>,
    taken: Lock<Vec<u8>>,
    slices: Lock<Vec<usize>>,
}

impl Socket for Scripted {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        self.slices.lock().push(slices.len());
        let step = self.script.lock().pop_front().unwrap_or(Ok(usize::MAX));
        let sent = step.map_err(io::Error::from_raw_os_error)?.min(all.len());
        self.taken.lock().extend_from_slice(&all[..sent]);
        Ok(sent)
    }
}

/// Room for an entry of 9 bytes and one of 1.
const MARKS: Marks = Marks { high: 10 + 2 * ENTRY_COST, low: 5 + ENTRY_COST };

fn entry(bytes: &[u8]) -> Entry {
    Entry { bytes: Bytes::copy_from_slice(bytes), frames: 1 }
}

fn append(outbox: &Outbox, bytes: &[u8]) -> Result<Appended, Closed> {
    outbox.append(entry(bytes), Room::Free)
}

/// Drops the waiter that a test parks.
struct Parked;

impl Resume for Parked {
    fn resume(self: Arc<Self>) {}
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Idle,
    Ready,
    Sending,
    Blocked,
    Closed,
}

const STATES: [Is; 5] = [Is::Idle, Is::Ready, Is::Sending, Is::Blocked, Is::Closed];

/// An outbox in the given state; the writer, if the test has it.
fn outbox_in(state: Is) -> (Outbox, Option<Writer>) {
    let outbox = Outbox::new(Arc::new(Scripted::default()), Arc::new(MARKS));
    let mut writer = None;
    if state == Is::Closed {
        assert!(outbox.abort().is_some());
    } else if state != Is::Idle {
        _ = append(&outbox, b"ab").expect("open");
        if state != Is::Ready {
            writer = outbox.take_ready();
        }
        if state == Is::Blocked {
            _ = outbox.settle(writer.take().expect("just taken"), &Flushed::SocketFull);
        }
    }
    assert_eq!(state_of(&outbox), state);
    (outbox, writer)
}

fn state_of(outbox: &Outbox) -> Is {
    match outbox.state.lock().seat {
        Seat::Idle(_) => Is::Idle,
        Seat::Ready(_) => Is::Ready,
        Seat::Sending => Is::Sending,
        Seat::Blocked(..) => Is::Blocked,
        Seat::Closed => Is::Closed,
    }
}

#[test]
fn append_lists_exactly_from_idle() {
    for state in STATES {
        let (outbox, _writer) = outbox_in(state);
        match append(&outbox, b"x") {
            Ok(appended) => assert_eq!(appended.list, state == Is::Idle, "{state:?}"),
            Err(Closed) => assert_eq!(state, Is::Closed),
        }
        let after = if state == Is::Idle { Is::Ready } else { state };
        assert_eq!(state_of(&outbox), after, "{state:?}");
    }
}

#[test]
fn a_push_lists_exactly_from_idle_and_stops_at_the_high_mark() {
    for state in STATES {
        let (outbox, _writer) = outbox_in(state);
        match outbox.push(entry(b"x")) {
            Ok(pushed) => assert_eq!(pushed.list, state == Is::Idle, "{state:?}"),
            Err(refused) => assert_eq!((state, refused), (Is::Closed, Refused::Gone)),
        }
    }
    let (outbox, _) = outbox_in(Is::Idle);
    assert!(outbox.push(entry(&[0; 1000])).is_ok(), "one message always fits");
    assert_eq!(outbox.push(entry(b"x")), Err(Refused::Full));
    let (outbox, _) = outbox_in(Is::Idle);
    _ = outbox.push(entry(&[0; 4])).unwrap();
    assert_eq!(outbox.push(entry(&[0; 7])), Err(Refused::Full), "a byte too many");
    _ = outbox.push(entry(&[0; 6])).unwrap();
    let view = outbox.view();
    assert_eq!((view.queued_bytes, view.paused), (MARKS.high, false), "no request to leave unread");
    assert!(!outbox.finish());
    assert_eq!(outbox.push(entry(b"x")), Err(Refused::Finishing));
}

#[test]
fn a_cut_keeps_what_is_begun_and_says_one_thing_more() {
    for (state, begun) in [(Is::Idle, 0), (Is::Ready, 0), (Is::Blocked, 0), (Is::Blocked, 1)] {
        let outbox = Outbox::new(Arc::new(Scripted::default()), Arc::new(MARKS));
        let counters = ThreadCounters::detached();
        if state != Is::Idle {
            _ = append(&outbox, b"ab").unwrap();
        }
        if state == Is::Blocked {
            let mut writer = outbox.take_ready().unwrap();
            assert_eq!(writer.advance(begun), 0);
            _ = outbox.settle(writer, &Flushed::SocketFull);
            _ = append(&outbox, b"c").unwrap();
        }
        let queued = outbox.view().queued_bytes;
        let settled = outbox.cut(entry(b"!")).expect("open");
        assert_eq!(settled.list, state == Is::Idle, "{state:?}");
        assert!(settled.call && outbox.view().finishing && outbox.view().cut);
        let kept = if begun > 0 { 2 - begun + ENTRY_COST } else { 0 };
        assert_eq!(settled.released, queued - kept, "{state:?} {begun}");
        assert_eq!(outbox.view().queued_bytes, kept + 1 + ENTRY_COST);
        let lost = match (state, begun) {
            (Is::Blocked, 0) => 2,
            (Is::Idle, _) => 0,
            _ => 1,
        };
        assert_eq!(settled.lost_frames, lost, "{state:?} {begun}");
        assert!(outbox.cut(entry(b"!")).is_none() && append(&outbox, b"x").is_err());
        let mut writer = outbox.take_ready().or_else(|| outbox.take_blocked()).unwrap();
        let flushed = flush(&mut writer, &counters);
        assert_eq!(counters.value(Counter::FramesSent), 1 + u64::from(begun > 0));
        assert!(outbox.settle(writer, &flushed).call, "all is sent: the loop ends it");
        assert_eq!(outbox.view().queued_bytes, 0);
    }
}

#[test]
fn a_cut_under_a_writer_is_made_when_it_returns() {
    for begun in [0, 1] {
        let (outbox, writer) = outbox_in(Is::Sending);
        let mut writer = writer.unwrap();
        _ = append(&outbox, b"c").unwrap();
        let settled = outbox.cut(entry(b"!")).expect("open");
        assert_eq!((settled.lost_frames, settled.released), (1, 1 + ENTRY_COST));
        assert_eq!(writer.advance(begun), 0);
        let settled = outbox.settle(writer, &Flushed::SocketFull);
        let is_lost = begun == 0;
        assert_eq!(settled.lost_frames, u64::from(is_lost), "{begun}");
        let released = if is_lost { 2 + ENTRY_COST } else { begun };
        assert_eq!(settled.released, released);
        assert!(settled.blocked && settled.call && !settled.list);
        assert_eq!(outbox.abort().unwrap().lost_frames, 1 + u64::from(!is_lost));
    }
    assert!(outbox_in(Is::Closed).0.cut(entry(b"!")).is_none());
}

#[test]
fn only_ready_and_blocked_give_the_writer_away_each_to_its_own_taker() {
    for state in STATES {
        let (outbox, _writer) = outbox_in(state);
        let taken = if state == Is::Blocked {
            assert!(outbox.take_ready().is_none(), "not the send thread's");
            outbox.take_blocked()
        } else {
            assert!(outbox.take_blocked().is_none(), "a late EPOLLOUT: {state:?}");
            outbox.take_ready()
        };
        assert_eq!(taken.is_some(), matches!(state, Is::Ready | Is::Blocked), "{state:?}");
        if taken.is_some() {
            assert_eq!(state_of(&outbox), Is::Sending);
            assert!(outbox.take_ready().is_none() && outbox.take_blocked().is_none());
        }
    }
}

#[test]
fn finish_says_if_all_is_sent_and_nothing_is_taken_afterwards() {
    for state in STATES {
        let (outbox, _writer) = outbox_in(state);
        assert_eq!(outbox.finish(), state == Is::Idle, "{state:?}");
        assert_eq!(state_of(&outbox), state);
        assert_eq!(append(&outbox, b"x"), Err(Closed), "{state:?}");
    }
}

#[test]
fn abort_closes_at_once_unless_a_thread_writes() {
    for state in STATES {
        let (outbox, writer) = outbox_in(state);
        let settled = outbox.abort();
        assert_eq!(settled.is_none(), state == Is::Sending, "{state:?}");
        assert!(outbox.view().aborted);
        if let Some(settled) = settled {
            let is_queued = matches!(state, Is::Ready | Is::Blocked);
            let released = if is_queued { 2 + ENTRY_COST } else { 0 };
            let expected = (u64::from(is_queued), released);
            assert_eq!((settled.lost_frames, settled.released), expected);
            assert_eq!(state_of(&outbox), Is::Closed);
        }
        if let Some(writer) = writer {
            let settled = outbox.settle(writer, &Flushed::All);
            assert!(settled.call && !settled.list, "the loop hears that the writer is back");
            assert_eq!(state_of(&outbox), Is::Closed);
        }
        assert!(outbox.take_ready().is_none() && outbox.take_blocked().is_none());
    }
}

#[test]
fn settle_over_every_end_of_a_flush() {
    let ends = || {
        [
            Flushed::All,
            Flushed::ShareUsed,
            Flushed::SocketFull,
            Flushed::NoBuffers,
            Flushed::Broken(io::Error::from_raw_os_error(libc::EPIPE)),
        ]
    };
    for more in [false, true] {
        for finishing in [false, true] {
            for flushed in ends() {
                let (outbox, writer) = outbox_in(Is::Sending);
                if more {
                    assert!(!append(&outbox, b"more").unwrap().list, "the taker will see it");
                }
                if finishing {
                    assert!(!outbox.finish());
                }
                let settled = outbox.settle(writer.unwrap(), &flushed);
                let (state, list, call) = match flushed {
                    Flushed::All if !more => (Is::Idle, false, finishing),
                    Flushed::All | Flushed::ShareUsed => (Is::Ready, true, false),
                    Flushed::SocketFull | Flushed::NoBuffers => (Is::Blocked, false, true),
                    Flushed::Broken(_) => (Is::Closed, false, true),
                };
                let what = format!("{flushed:?} more={more} finishing={finishing}");
                assert_eq!(state_of(&outbox), state, "{what}");
                assert_eq!((settled.list, settled.call), (list, call), "{what}");
                assert_eq!(settled.blocked, state == Is::Blocked, "{what}");
            }
        }
    }
}

#[test]
fn reading_pauses_one_byte_above_the_high_mark_and_resumes_at_the_low_one() {
    let socket = Arc::new(Scripted::default());
    let outbox = Outbox::new(socket.clone(), Arc::new(MARKS));
    let counters = ThreadCounters::detached();
    _ = append(&outbox, &[1; 9]).unwrap();
    let at_max = append(&outbox, &[2; 1]).unwrap();
    assert!(!at_max.is_above_high && !at_max.call && !outbox.view().paused);
    let above = append(&outbox, &[3; 1]).unwrap();
    assert!(above.is_above_high && above.call && outbox.view().paused);
    let again = append(&outbox, &[4; 6]).unwrap();
    assert!(again.is_above_high && !again.call, "the loop is called once");
    assert_eq!(outbox.park(Arc::new(Parked)), Parking::Parked);

    // Three entries gone, and the last one whole: one byte above the low mark.
    socket.script.lock().extend([Ok(11), Ok(1)]);
    let mut writer = outbox.take_ready().unwrap();
    let flushed = flush(&mut writer, &counters);
    let settled = outbox.settle(writer, &flushed);
    assert!(outbox.view().paused && settled.resume.is_none());
    let mut writer = outbox.take_blocked().unwrap();
    let flushed = flush(&mut writer, &counters);
    let settled = outbox.settle(writer, &flushed);
    assert!(!outbox.view().paused && settled.call && settled.resume.is_some());
    assert_eq!(outbox.view().queued_bytes, 5 + ENTRY_COST);
    assert_eq!(outbox.view().sent_bytes, 12);
    assert_eq!(outbox.park(Arc::new(Parked)), Parking::GoOn);
}

#[test]
fn an_exhausted_total_pauses_at_once() {
    let (outbox, _) = outbox_in(Is::Idle);
    let appended = outbox.append(entry(b"x"), Room::Exhausted).unwrap();
    assert!(appended.call && !appended.is_above_high && outbox.view().paused);
}

#[test]
fn a_half_sent_message_is_continued_where_it_stopped_for_every_split() {
    for first in 1..6 {
        for second in 1..6 {
            let socket = Arc::new(Scripted::default());
            let outbox = Outbox::new(socket.clone(), Arc::new(MARKS));
            let counters = ThreadCounters::detached();
            socket.script.lock().extend([Ok(first), Err(libc::EAGAIN), Ok(second)]);
            _ = append(&outbox, b"one").unwrap();
            _ = append(&outbox, b"two").unwrap();
            let mut writer = outbox.take_ready().unwrap();
            loop {
                let flushed = flush(&mut writer, &counters);
                let is_done = matches!(flushed, Flushed::All);
                let settled = outbox.settle(writer, &flushed);
                if is_done && !settled.list {
                    break;
                }
                if !is_done {
                    // Comes while the first are half sent, and stays behind them.
                    _ = append(&outbox, b"3").unwrap();
                }
                writer = outbox.take_blocked().or_else(|| outbox.take_ready()).unwrap();
            }
            let taken = socket.taken.lock();
            assert!(taken.starts_with(b"onetwo"), "{taken:?}");
            assert!(taken[6..].iter().all(|byte| *byte == b'3'), "{taken:?}");
            assert_eq!(counters.value(Counter::FramesSent), 2 + taken[6..].len() as u64);
            assert_eq!(counters.value(Counter::BytesSent), taken.len() as u64);
            assert_eq!(outbox.view().queued_bytes, 0);
        }
    }
}

#[test]
fn many_messages_go_in_one_call_and_a_fair_share_at_a_time() {
    let socket = Arc::new(Scripted::default());
    let outbox = Outbox::new(socket.clone(), Arc::new(Marks { high: usize::MAX, low: 0 }));
    let counters = ThreadCounters::detached();
    for _ in 0..=IO_SLICES_MAX {
        _ = append(&outbox, b"x").unwrap();
    }
    let mut writer = outbox.take_ready().unwrap();
    assert!(matches!(flush(&mut writer, &counters), Flushed::All));
    assert_eq!(*socket.slices.lock(), [IO_SLICES_MAX, 1]);
    _ = outbox.settle(writer, &Flushed::All);

    _ = append(&outbox, &vec![1; FLUSH_BYTES_MAX]).unwrap();
    _ = append(&outbox, b"x").unwrap();
    let mut writer = outbox.take_ready().unwrap();
    assert!(matches!(flush(&mut writer, &counters), Flushed::ShareUsed));
    assert!(outbox.settle(writer, &Flushed::ShareUsed).list, "behind the others");
}

#[test]
fn each_error_of_send_has_its_end() {
    let cases = [
        (Err(libc::EAGAIN), "SocketFull"),
        (Err(libc::ENOBUFS), "NoBuffers"),
        (Err(libc::ENOMEM), "NoBuffers"),
        (Err(libc::EPIPE), "Broken"),
        (Err(libc::ECONNRESET), "Broken"),
        (Ok(0), "Broken"),
        (Err(libc::EINTR), "All"),
        (Ok(1), "SocketFull"),
    ];
    for (step, expected) in cases {
        let socket = Arc::new(Scripted::default());
        socket.script.lock().push_back(step);
        let outbox = Outbox::new(socket, Arc::new(MARKS));
        _ = append(&outbox, b"ab").unwrap();
        let mut writer = outbox.take_ready().unwrap();
        let flushed = format!("{:?}", flush(&mut writer, &ThreadCounters::detached()));
        assert!(flushed.starts_with(expected), "{step:?}: {flushed}");
    }
}

#[test]
fn a_connection_at_rest_owns_no_buffer() {
    let (outbox, _) = outbox_in(Is::Idle);
    for _ in 0..100 {
        _ = append(&outbox, b"x").unwrap();
    }
    let mut writer = outbox.take_ready().unwrap();
    let flushed = flush(&mut writer, &ThreadCounters::detached());
    _ = outbox.settle(writer, &flushed);
    let state = outbox.state.lock();
    let Seat::Idle(resting) = &state.seat else { panic!("all is sent") };
    assert!(resting.is_bare());
    assert_eq!(state.waiting.capacity(), 0);
}

/// While a thread has the writer for a message that is in no outbox.
#[test]
fn what_happens_meanwhile_is_settled_as_after_any_other_write() {
    type Event = fn(&Outbox);
    let meanwhile: [(Event, bool, bool, Is); 8] = [
        (|_| (), false, false, Is::Idle),
        (|outbox| _ = append(outbox, b"a"), true, false, Is::Ready),
        (|outbox| _ = outbox.append(entry(b"a"), Room::Exhausted), true, true, Is::Ready),
        (|outbox| _ = outbox.push(entry(b"a")), true, false, Is::Ready),
        (|outbox| _ = outbox.finish(), false, true, Is::Idle),
        (|outbox| _ = outbox.cut(entry(b"!")), true, false, Is::Ready),
        (|outbox| _ = outbox.abort(), false, true, Is::Closed),
        (
            |outbox| {
                _ = append(outbox, &[7; 10]);
                assert_eq!(outbox.park(Arc::new(Parked)), Parking::Parked);
            },
            true,
            false,
            Is::Ready,
        ),
    ];
    for (nth, (event, list, call, after)) in meanwhile.into_iter().enumerate() {
        let of = |settled: Option<Settled>, outbox: &Outbox| {
            let settled = settled.unwrap_or_default();
            (settled.list, settled.call, state_of(outbox))
        };
        let (sent, usual) = (outbox_in(Is::Idle).0, outbox_in(Is::Idle).0);
        let writers = [&sent, &usual].map(|outbox| outbox.take_idle().expect("idle"));
        event(&sent);
        event(&usual);
        let [of_sent, of_usual] = writers;
        let settled = sent.settle_sent(of_sent, 5);
        assert_eq!(settled.is_none(), nth == 0, "event {nth}: something is to be done");
        assert_eq!(of(settled, &sent), (list, call, after), "event {nth}");
        let settled = usual.settle(of_usual, &Flushed::All);
        assert_eq!(of(Some(settled), &usual), (list, call, after), "event {nth}");
        assert_eq!(sent.view().sent_bytes, 5);
        assert_eq!(sent.view().queued_bytes, usual.view().queued_bytes, "event {nth}");
    }
}

#[test]
fn a_message_in_no_outbox_is_queued_from_where_the_socket_stopped() {
    let whole = b"written through";
    let steps: [(Result<usize, i32>, Is); 5] = [
        (Ok(usize::MAX), Is::Idle),
        (Ok(3), Is::Blocked),
        (Err(libc::EAGAIN), Is::Blocked),
        (Err(libc::ENOBUFS), Is::Blocked),
        (Err(libc::EPIPE), Is::Closed),
    ];
    for (step, after) in steps {
        let socket = Arc::new(Scripted::default());
        let half = send_half_on(Arc::clone(&socket) as Arc<dyn Socket>);
        let counters = ThreadCounters::detached();
        socket.script.lock().push_back(step);
        assert!(half.write_through(whole, 2, &counters).is_some(), "nothing is in front of it");
        assert_eq!(state_of(half.outbox()), after, "{step:?}");
        if after == Is::Blocked {
            assert!(half.write_through(b"x", 1, &counters).is_none(), "it would overtake");
            half.cut(&counters).expect("open");
            half.flush_blocked(&counters);
            let kept: &[u8] = if step == Ok(3) { whole } else { b"" };
            assert_eq!(*socket.taken.lock(), [kept, b"goodbye"].concat(), "{step:?}");
        }
        let (sent, lost) =
            (counters.value(Counter::FramesSent), counters.value(Counter::MessagesExpired));
        let expected = match (step, after) {
            (_, Is::Idle) => (2, 0),
            (Ok(_), _) => (3, 0),
            (_, Is::Closed) => (0, 2),
            _ => (1, 2),
        };
        assert_eq!((sent, lost), expected, "{step:?}");
        assert_eq!(half.view().queued_bytes, 0);
    }
}
