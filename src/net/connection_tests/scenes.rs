//! What a peer sees of a connection, and when.

use super::*;
use chappe_shm::Counter;

const NS: Duration = Duration::from_nanos(1);
const MS: Duration = Duration::from_millis(1);
const READS: Interest = Interest::In { reads: true, writes: false };
const WRITES: Interest = Interest::In { reads: false, writes: true };

impl World {
    /// Something happens at this time, and nothing a nanosecond before.
    #[track_caller]
    fn due(&mut self, since: Moment, after: Duration) {
        let seen = |it: &Self| (it.mailbox.view(), it.calls().1);
        let before = seen(self);
        self.fire(since + (after - NS));
        self.with(|connection, key, reactor| connection.on_timer(key, reactor));
        assert_eq!(seen(self), before, "too early");
        self.fire(since + after);
        assert_ne!(seen(self), before, "too late");
    }

    /// Of recv(2) and send(2).
    fn calls(&self) -> (usize, usize) {
        let at = self.script.at.lock();
        (at.reads, at.writes)
    }

    fn count(&self, counter: Counter) -> u64 {
        self.reactor.counters.value(counter)
    }

    /// What the peer receives, once the other threads are done.
    #[track_caller]
    fn says(&mut self, expected: &[&str]) {
        self.threads();
        let (sent, mut said) = (std::mem::take(&mut self.script.at.lock().sent), Vec::new());
        let mut rest = &sent[..];
        while let Some(Opened { code, body, length, .. }) = self.mailbox.protocol().open(rest) {
            said.push(match code {
                65534 => format!("goodbye {}", body[1]),
                65535 => format!("error {}", body[1]),
                code => format!("{code} {}", String::from_utf8_lossy(body)),
            });
            rest = &rest[length..];
        }
        assert_eq!((said, rest.len()), (expected.iter().map(|it| it.to_string()).collect(), 0));
    }
}

#[test]
fn whole_messages_of_one_read_leave_in_one_send_and_change_nothing_else() {
    let mut it = World::new(settings(true), false);
    let idle = Some(it.now + 60 * S);
    for _ in 0..3 {
        it.bring([frame(1, "a"), frame(FAILS, "b"), frame(9, "c")].concat());
    }
    let changes = it.script.at.lock().changes;
    assert_eq!((it.calls(), changes, it.watched()), ((3, 3), 1, READS));
    assert_eq!((it.reactor.timers.len(), it.reactor.timers.next()), (1, idle));
    it.says(&["1 a", "error 4", "9 c"].repeat(3));
}

#[test]
fn a_message_is_answered_once_wherever_the_reads_cut_the_stream() {
    let stream = [frame(1, "a"), frame(1, "bc"), frame(1, "hello")].concat();
    for fuse in [true, false] {
        for size in 1..=stream.len() {
            let mut it = World::new(settings(fuse), false);
            stream.chunks(size).for_each(|piece| it.bring(piece));
            it.says(&["1 a", "1 bc", "1 hello"]);
            assert_eq!((it.reactor.engine.inbox_total().used(), it.watched()), (0, READS));
        }
    }
}

#[test]
fn two_and_a_half_messages_are_two_answers_and_a_begun_message() {
    for fuse in [true, false] {
        let mut it = World::new(settings(fuse), false);
        it.bring(&[frame(1, "a"), frame(1, "bc"), frame(1, "hello")].concat()[..22]);
        it.says(&["1 a", "1 bc"]);
        let framer = &it.table[it.key].framer;
        assert_eq!((framer.part().len(), framer.held_bytes()), (3, 8), "up to its header");
        assert_eq!(it.reactor.engine.inbox_total().used(), 8);
        assert_eq!((it.reactor.timers.len(), it.count(Counter::FramesReceived)), (2, 2));
    }
}

#[test]
fn after_a_malformed_length_the_peer_is_told_and_its_fin_awaited() {
    for fuse in [true, false] {
        let mut it = World::new(settings(fuse), false);
        it.bring([&frame(1, "a")[..], &[0, 7, 9]].concat());
        it.says(&["1 a", "error 1"]);
        let finished = it.script.at.lock().finished;
        assert_eq!((it.stage(), it.watched(), finished), (Stage::Lingering, READS, 1));
        it.bring(frame(1, "not read"));
        it.fin();
        assert_eq!((it.is_gone(), it.mailbox.view().cause), (true, Some(Cause::ProtocolError)));
        assert_eq!(it.count(Counter::ProtocolErrors), 1);
        it.says(&[]);
    }
}

#[test]
fn a_fin_inside_of_a_message_is_told_before_the_end() {
    for fuse in [true, false] {
        let mut it = World::new(settings(fuse), false);
        it.bring(&frame(1, "half")[..9]);
        it.fin();
        it.says(&["error 7"]);
        assert_eq!((it.is_gone(), it.script.at.lock().finished), (true, 1));
        assert_eq!(it.count(Counter::ProtocolErrors), 1);
    }
}

#[test]
fn what_is_queued_or_handled_at_a_fin_is_sent_before_the_end() {
    let mut it = World::new(settings(true), false);
    it.sends([Ok(3), Ok(2)]);
    it.bring(frame(1, "queued"));
    it.fin();
    it.event(OUT);
    let finished = it.script.at.lock().finished;
    assert_eq!((it.stage(), it.watched(), finished), (Stage::Flushing, WRITES, 0));
    it.event(OUT);
    assert_eq!((it.is_gone(), it.script.at.lock().finished), (true, 1));
    it.says(&["1 queued"]);
    let mut it = World::new(settings(true), false);
    it.hold_handler();
    it.fin();
    assert_eq!((it.stage(), it.script.at.lock().finished), (Stage::Answering, 0));
    it.let_go();
    assert_eq!((it.is_gone(), it.script.at.lock().finished), (true, 1));
    it.says(&["16 s"]);
}

#[test]
fn above_the_high_mark_reading_pauses_until_the_low_one() {
    // A reply is charged with its header and 128 bytes, the mark is 2000 bytes.
    for (bytes, is_above) in [(1865, false), (1866, true)] {
        let mut it = World::new(settings(true), false);
        it.sends([Ok(1)]);
        it.bring(frame(1, &"x".repeat(bytes)));
        assert_eq!(it.watched(), Interest::In { reads: !is_above, writes: true });
        assert_eq!(it.count(Counter::ReadsPaused), u64::from(is_above));
        if !is_above {
            continue;
        }
        it.bring(frame(1, "an event that comes late"));
        assert_eq!(it.calls().0, 1);
        it.sends([Ok(1000), Ok(1), Ok(1)]);
        it.event(OUT);
        assert_eq!((it.mailbox.view().outbox_bytes, it.watched()), (1001, WRITES));
        it.event(OUT);
        assert_eq!(it.watched(), Interest::In { reads: true, writes: true });
        it.event(OUT | IN);
        assert_eq!(it.watched(), Interest::In { reads: true, writes: true });
        it.event(OUT);
        assert_eq!((it.watched(), it.count(Counter::ReadsPaused)), (READS, 1));
        assert_eq!((it.calls().0, it.count(Counter::FramesSent)), (2, 2));
    }
}

#[test]
fn a_send_without_memory_is_tried_again_by_a_timer() {
    let mut it = World::new(settings(false), false);
    it.sends([Err(Errno::ENOBUFS), Err(Errno::ENOMEM), Err(Errno::EINTR)]);
    it.push(1);
    let start = it.now;
    assert_eq!((it.watched(), it.calls().1), (READS, 1));
    it.fire(start + (10 * MS - NS));
    assert_eq!(it.calls().1, 1);
    it.fire(start + 10 * MS);
    assert_eq!((it.watched(), it.calls().1), (READS, 2));
    it.due(start, 20 * MS);
    assert_eq!((it.calls().1, it.mailbox.view().is_idle), (4, true));
    it.says(&["9 x"]);
}

#[test]
fn a_broken_send_takes_the_connection_out_and_its_loss_is_counted() {
    let mut it = World::new(settings(true), false);
    it.sends([Err(Errno::EPIPE)]);
    it.bring([frame(1, "a"), frame(1, "b")].concat());
    assert!(it.is_gone());
    assert_eq!((it.count(Counter::MessagesExpired), it.count(Counter::FramesSent)), (2, 0));
    let mut it = World::new(settings(true), false);
    it.sends([Ok(10), Err(Errno::ECONNRESET)]);
    it.bring([frame(1, "a"), frame(1, "b")].concat());
    it.event(OUT);
    assert_eq!((it.is_gone(), it.mailbox.view().cause), (true, Some(Cause::PeerReset)));
    assert_eq!(it.count(Counter::MessagesExpired), 2, "they were one entry");
}

#[test]
fn each_clock_of_a_silent_peer_runs_out_at_its_time() {
    let half = &frame(1, "half")[..9];
    for (handshake, bytes, after, said, counter) in [
        (Some(5 * S), &[][..], 5 * S, "goodbye 6", Counter::ClosedHandshake),
        (Some(5 * S), half, 5 * S, "goodbye 6", Counter::ClosedHandshake),
        (Some(11 * S), half, 10 * S, "error 7", Counter::ClosedFrameTimeout),
        (None, half, 10 * S, "error 7", Counter::ClosedFrameTimeout),
        (None, &[], 60 * S, "goodbye 3", Counter::ClosedIdle),
        (Some(5 * S), &frame(1, ""), 60 * S, "goodbye 3", Counter::ClosedIdle),
    ] {
        let mut it = World::new(Settings { handshake, ..settings(false) }, false);
        let start = it.now;
        if !bytes.is_empty() {
            it.bring(bytes);
        }
        let answered: &[_] = if bytes.len() == 8 { &["1 "] } else { &[] };
        it.says(answered);
        it.due(start, after);
        it.says(&[said]);
        assert_eq!((it.count(counter), it.stage()), (1, Stage::Lingering));
        it.due(start + after, 2 * S);
        assert!(it.is_gone(), "it has lingered for long enough");
    }
}

#[test]
fn each_byte_moves_the_idle_clock_and_none_that_of_a_message() {
    let mut it = World::new(settings(false), false);
    let start = it.now;
    it.now = start + 50 * S;
    it.bring(frame(1, ""));
    it.says(&["1 "]);
    it.fire(start + 105 * S);
    it.bring(&frame(1, "half")[..9]);
    it.now = start + 114 * S;
    it.bring([b'a']);
    it.due(start + 105 * S, 10 * S);
    it.says(&["error 7"]);
    let mut it = World::new(settings(false), false);
    it.now = start + 50 * S;
    it.bring(frame(1, ""));
    it.says(&["1 "]);
    it.due(start + 50 * S, 60 * S);
    it.says(&["goodbye 3"]);
}

#[test]
fn a_drained_connection_is_told_at_its_time_and_ended_once_quiet() {
    let mut it = World::new(settings(false), false);
    let start = it.now;
    it.with(|connection, key, reactor| connection.drain_at(key, start + 3 * S, reactor));
    it.due(start, 3 * S);
    it.says(&["goodbye 1"]);
    assert_eq!(it.stage(), Stage::Open);
    let mut it = World::new(settings(false), false);
    it.drain();
    it.says(&["goodbye 1"]);
    let (quiet, now) = (it.reactor.timers.next().unwrap(), Moment::now());
    assert!(quiet >= it.now + 250 * MS && quiet <= now + 250 * MS);
    it.due(it.now, quiet.since(it.now));
    assert_eq!((it.stage(), it.mailbox.view().cause), (Stage::Lingering, Some(Cause::Stopping)));
    it.due(quiet, 2 * S);
    it.says(&[]);
}

#[test]
fn a_goodbye_waits_for_a_connection_that_is_not_read_but_a_second_at_most() {
    let mut it = World::new(settings(false), false);
    it.finds(Ok(frame(1, "before")));
    it.block(Ok(1), 2500);
    it.drain();
    let start = it.now;
    it.fire(start + 10 * MS);
    it.fire(start + 995 * MS);
    it.due(start, 1005 * MS);
    it.sends([]);
    it.event(OUT);
    assert!(it.mailbox.view().is_idle && !it.mailbox.view().is_handled);
}

#[test]
fn a_blocked_peer_has_its_time_again_with_each_byte_it_takes() {
    let mut it = World::new(Settings { idle: None, ..settings(false) }, false);
    let start = it.now;
    it.block(Ok(3), 9);
    it.fire(start + 29 * S);
    it.script.at.lock().acknowledged = 1;
    it.fire(start + 30 * S);
    it.due(start, 60 * S);
    assert_eq!((it.is_gone(), it.mailbox.view().cause), (true, Some(Cause::TooSlow)));
    assert_eq!((it.count(Counter::ClosedSlow), it.count(Counter::MessagesExpired)), (1, 1));
}

#[test]
fn what_came_in_time_is_served_however_late_it_is_read() {
    let (whole, handshake) = (frame(1, "late"), Some(5 * S));
    for (cut, after) in [(0, 5 * S), (0, 60 * S), (9, 10 * S)] {
        for fuse in [true, false] {
            let handshake = handshake.filter(|handshake| *handshake == after);
            let mut it = World::new(Settings { handshake, ..settings(fuse) }, false);
            let start = it.now;
            if cut > 0 {
                it.bring(&whole[..cut]);
            }
            it.finds(Ok(whole[cut..].to_vec()));
            it.fire(start + after);
            it.says(&["1 late"]);
            assert_eq!((it.stage(), it.watched()), (Stage::Open, READS));
        }
    }
    let mut it = World::new(settings(false), false);
    it.drain();
    it.says(&["goodbye 1"]);
    it.finds(Ok(whole));
    it.fire(it.reactor.timers.next().unwrap());
    it.says(&["1 late"]);
    assert_eq!(it.stage(), Stage::Open);
}

#[test]
fn the_peers_clocks_stand_still_while_reading_is_paused() {
    let half = &frame(1, "half")[..9];
    for (handshake, bytes, due, said) in [
        (Some(5 * S), &[][..], 105, "goodbye 6"),
        (None, half, 110, "error 7"),
        (None, &[], 160, "goodbye 3"),
    ] {
        let changed = Settings { handshake, outbox_age_max: 999 * S, ..settings(false) };
        let mut it = World::new(changed, false);
        let start = it.now;
        if !bytes.is_empty() {
            it.bring(bytes);
        }
        it.now = start + 3 * S;
        it.block(Ok(1), 2500);
        assert_eq!((it.watched(), it.count(Counter::ReadsPaused)), (WRITES, 1));
        it.fire(start + 102 * S);
        assert_eq!(it.stage(), Stage::Open);
        it.now = start + 103 * S;
        it.event(OUT);
        it.script.at.lock().sent.clear();
        it.due(start, due * S);
        it.says(&[said]);
    }
}

#[test]
fn a_connection_is_read_when_the_inbox_total_has_room_again() {
    let mut it = World::new(settings(false), false);
    it.bring(&frame(1, "half")[..9]);
    _ = it.reactor.engine.inbox_total().charge(4000);
    it.bring(&frame(1, "half")[9..]);
    assert_eq!((it.calls().0, it.script.unread_bytes()), (1, 3));
    assert_eq!(it.watched(), Interest::In { reads: false, writes: false });
    it.fire(it.now + 600 * S);
    it.reactor.engine.inbox_total().release(4000);
    it.settle();
    assert_eq!(it.watched(), READS);
    it.event(IN);
    it.says(&["1 half"]);
    // A connection that holds nothing may bring what fits into a few bytes.
    _ = it.reactor.engine.inbox_total().charge(4001);
    it.bring(frame(1, "small"));
    it.says(&["1 small"]);
    it.bring(frame(1, &"x".repeat(600)));
    assert_eq!(it.script.unread_bytes(), 608 - 512);
    it.reactor.engine.inbox_total().release(4001);
}

#[test]
fn what_a_unix_peer_sent_before_it_closed_is_read_as_there_is_room() {
    for fuse in [true, false] {
        let mut it = World::new(settings(fuse), true);
        for messages in [10, 10, 1] {
            it.finds(Ok(frame(1, "x").repeat(messages)));
        }
        it.finds(Ok(vec![]));
        it.event(HUP | IN);
        assert_eq!((it.watched(), it.is_gone()), (Interest::Out, fuse));
        it.says(&["1 x"; 21]);
        assert!(it.is_gone());
        for end in [Err(Errno::ECONNRESET), Err(Errno::EINTR)] {
            let mut it = World::new(settings(fuse), true);
            it.finds(Ok(frame(1, "x")));
            it.finds(end);
            it.event(HUP | IN);
            assert!(it.is_gone(), "broken, or no end that we know");
        }
    }
}

#[test]
fn a_hang_up_elsewhere_is_the_end_at_once() {
    for flags in [HUP, ERR, HUP | ERR | IN | OUT] {
        for is_unix in [false, true] {
            let mut it = World::new(settings(false), is_unix);
            it.block(Ok(3), 9);
            it.finds(Ok(frame(1, "x")));
            it.event(flags);
            assert_eq!((it.is_gone(), it.watched()), (true, Interest::Out));
            assert_eq!((it.calls().0, it.count(Counter::MessagesExpired)), (0, 1));
        }
    }
}

#[test]
fn a_panic_or_a_bad_checksum_is_told_and_what_came_behind_is_lost() {
    let mut bad = frame(1, "bad");
    bad[9] ^= 1;
    for (last, said) in [(frame(PANICS, ""), "error 4"), (bad, "error 2")] {
        for fuse in [true, false] {
            let mut it = World::new(settings(fuse), false);
            it.bring([frame(1, "a"), last.clone(), frame(1, "b").repeat(3)].concat());
            it.says(&["1 a", said]);
            let finished = it.script.at.lock().finished;
            assert_eq!((it.stage(), it.watched(), finished), (Stage::Lingering, READS, 1));
            assert_eq!(it.count(Counter::MessagesExpired), 3);
            it.fin();
            assert!(it.is_gone());
        }
    }
}

#[test]
fn above_the_rate_messages_are_refused_in_place_and_ten_seconds_of_it_are_the_end() {
    for fuse in [true, false] {
        let mut it = World::new(Settings { messages_per_second: 1, ..settings(fuse) }, false);
        let start = it.now;
        it.bring(frame(1, "a").repeat(5));
        it.says(&["1 a", "1 a", "error 5", "error 5", "error 5"]);
        assert_eq!(it.count(Counter::FramesRateLimited), 3);
        for half in 1..20 {
            it.now = start + half * S / 2;
            it.bring(frame(1, "b").repeat(3));
            let said = if half % 2 == 0 { "1 b" } else { "error 5" };
            it.says(&[said, "error 5", "error 5"]);
        }
        it.now = start + (10 * S - NS);
        it.bring(frame(1, "c"));
        it.says(&["error 5"]);
        it.now = start + 10 * S;
        it.bring(frame(1, "d").repeat(5));
        it.says(&["error 5"]);
        assert_eq!((it.stage(), it.count(Counter::MessagesExpired)), (Stage::Lingering, 4));
    }
}

#[test]
fn a_connection_that_epoll_has_no_memory_for_is_gone() {
    let mut it = World::new(settings(true), false);
    it.fails.store(true, Relaxed);
    it.connect(false, HELD);
    assert_eq!((it.is_gone(), it.mailbox.view().cause), (true, Some(Cause::OutOfMemory)));
    it.connect(false, HELD);
    it.fails.store(true, Relaxed);
    it.sends([Ok(3)]);
    it.bring(frame(1, "a"));
    assert_eq!((it.is_gone(), it.count(Counter::MessagesExpired)), (true, 1));
}

#[test]
fn who_is_seen_off_stays_until_its_fin_its_time_or_a_mebibyte() {
    let mut it = World::new(settings(true), false);
    it.connect(false, Held::default());
    assert_eq!((it.stage(), it.watched()), (Stage::Lingering, READS));
    it.bring(frame(1, "not read"));
    it.fin();
    assert!(it.is_gone());
    it.connect(false, Held::default());
    it.due(it.now, 2 * S);
    assert!(it.is_gone());
    it.connect(false, Held::default());
    for _ in 0..16 {
        assert!(!it.is_gone());
        it.bring([0; 65_536]);
    }
    assert!(it.is_gone());
    it.says(&[]);
}

#[test]
fn a_deferred_reply_is_given_at_its_place_and_nothing_waits_but_its_connection() {
    for fuse in [true, false] {
        let mut it = World::new(settings(fuse), false);
        it.bring([frame(1, "a"), frame(LATER, "b"), frame(1, "c")].concat());
        it.says(&["1 a"]);
        assert_eq!(it.watched(), READS);
        it.bring(frame(1, "d"));
        it.fin();
        it.says(&[]);
        assert!(TICKETS.with_borrow_mut(VecDeque::pop_front).unwrap().resume(Box::new(())));
        it.says(&["19 b", "1 c", "1 d"]);
        assert_eq!(it.script.at.lock().finished, 1);
    }
}

#[test]
fn a_deferred_reply_has_its_time_and_each_its_own() {
    let mut it = World::new(Settings { idle: None, ..settings(false) }, false);
    it.bring([frame(LATER, "a"), frame(LATER, "b"), frame(1, "c")].concat());
    for expected in [&["error 4"][..], &["error 4", "1 c"]] {
        it.says(&[]);
        let since = it.mailbox.view().waits_since.unwrap();
        it.due(since, 4 * S);
        it.says(expected);
    }
    assert!(TICKETS.with_borrow(|tickets| tickets.iter().all(Ticket::is_void)));
}

#[test]
fn a_wait_ends_with_its_peer() {
    for is_unix in [true, false] {
        let mut it = World::new(settings(false), is_unix);
        it.bring([frame(LATER, "a"), frame(LATER, "b")].concat());
        it.threads();
        it.meets(Ok(vec![]), HUP | IN);
        it.threads();
        assert!(it.is_gone());
        assert_eq!(it.count(Counter::MessagesExpired), 2);
        assert!(TICKETS.with_borrow(|tickets| tickets.iter().all(Ticket::is_void)));
    }
}
