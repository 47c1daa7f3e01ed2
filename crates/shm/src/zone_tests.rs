use super::*;
use crate::ThreadRole;

#[test]
fn ready_is_told_by_state_and_bell() {
    let zone = Zone::create(1).unwrap();
    let slot = zone.claim_slot(3, 7).unwrap();
    assert_eq!(slot.state(), SlotState::Starting);
    slot.mark_ready();
    assert!(zone.worker_ready().try_wait());
    assert!(!zone.worker_ready().try_wait());
    for rings in [3, SLOTS, SLOTS + 1] {
        (0..rings).for_each(|_| zone.worker_ready().post());
        zone.silence_ready();
        assert_eq!(zone.worker_ready().value(), u32::from(rings > SLOTS), "{rings}");
    }
    let report = slot.report();
    assert_eq!((report.worker, report.generation), (3, 7));
    assert_eq!(report.state, SlotState::Ready);
}

#[test]
fn who_has_the_descriptor_has_the_same_zone() {
    let zone = Zone::create(5).unwrap();
    let slot = zone.claim_slot(3, 7).unwrap();
    assert!(slot.permits().try_take());
    slot.counters(ThreadRole::EventLoop).add(Counter::FramesReceived, 40);
    slot.mark_ready();

    let again = Zone::from_descriptor(zone.descriptor().unwrap()).unwrap();
    let reports = again.reports();
    assert_eq!(reports.len(), 1);
    assert_eq!((reports[0].worker, reports[0].generation), (3, 7));
    assert_eq!(again.totals().unwrap().get(Counter::FramesReceived), 40);
    assert_eq!((again.limit(), again.free_permits()), (5, 4));
    assert!(again.worker_ready().try_wait());
    // What the one does the other sees.
    let next = again.claim_slot(4, 8).unwrap();
    assert_ne!(next.index(), slot.index());
    assert_eq!(zone.reports().len(), 2);
    again.set_limit(2);
    assert_eq!((zone.limit(), zone.debt(), zone.free_permits()), (2, 0, 1));
    assert_eq!((next.connection_ids(1), slot.connection_ids(1)), (1, 2));
}

#[test]
fn a_process_can_give_the_descriptor_up_and_keep_the_zone() {
    let zone = Zone::create(5).unwrap();
    zone.close_descriptor();
    zone.close_descriptor();
    assert_eq!(zone.descriptor().unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(zone.connection_permits().value(), 5);
}

#[test]
fn more_permits_than_a_semaphore_can_have_are_an_error() {
    let error = Zone::create(Semaphore::VALUE_MAX + 1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn totals_stay_when_a_worker_goes_and_its_slot_is_used_again() {
    for free in [Zone::free, Zone::free_at_stop] {
        let zone = Zone::create(1).unwrap();
        let slot = zone.claim_slot(0, 1).unwrap();
        let (one, two) =
            (slot.counters(ThreadRole::EventLoop), slot.counters(ThreadRole::Handler(127)));
        one.add(Counter::FramesReceived, 40);
        two.add(Counter::FramesReceived, 2);
        let total = |zone: &Zone| zone.totals().unwrap().get(Counter::FramesReceived);
        assert_eq!(total(&zone), 42);
        free(&zone, &slot);
        free(&zone, &slot);
        assert_eq!(total(&zone), 42);
        for _ in 0..SLOTS {
            let next = zone.claim_slot(0, 1).unwrap();
            assert_eq!(next.counter_values().get(Counter::FramesReceived), 0);
            zone.free(&next);
        }
        assert_eq!(total(&zone), 42);
        zone.count(Counter::WorkersDied, 1);
        assert_eq!(zone.totals().unwrap().get(Counter::WorkersDied), 1);
    }
}

#[test]
fn totals_are_refused_in_the_middle_of_a_change() {
    let zone = Zone::create(1).unwrap();
    zone.change_totals(|_| assert_eq!(zone.totals(), None));
    assert!(zone.totals().is_some());
}

#[test]
fn slots_are_reused_as_late_as_possible_and_run_out() {
    let zone = Zone::create(1).unwrap();
    let first = zone.claim_slot(0, 1).unwrap();
    zone.free(&first);
    let slots: Vec<_> = (0..SLOTS).map(|_| zone.claim_slot(0, 1).unwrap()).collect();
    assert_eq!(slots[0].index(), first.index() + 1);
    assert_eq!(slots[SLOTS - 1].index(), first.index());
    assert!(zone.claim_slot(0, 1).is_none());
}

#[test]
fn the_memory_of_a_slot_goes_back_when_its_worker_ends() {
    let zone = Zone::create(1).unwrap();
    let file = std::fs::File::from(zone.descriptor().unwrap());
    let kibibytes = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) / 2;
    let before = kibibytes();
    for number in 0..100 {
        let slot = zone.claim_slot(number, 1).unwrap();
        (0..128).for_each(|thread| {
            slot.counters(ThreadRole::Handler(thread)).add(Counter::FramesSent, 1)
        });
        assert!(kibibytes() > before + 40, "of one worker");
        zone.free(&slot);
    }
    assert!(kibibytes() < before + 40, "{} KiB, {before} before", kibibytes());
    assert_eq!(zone.own_totals().get(Counter::FramesSent), 100 * 128);
}

#[test]
fn a_claimed_slot_has_a_fresh_send_semaphore() {
    let zone = Zone::create(1).unwrap();
    for _ in 0..=SLOTS {
        let slot = zone.claim_slot(0, 1).unwrap();
        assert_eq!(slot.send_semaphore().value(), 0);
        slot.send_semaphore().post();
        zone.free(&slot);
    }
}

#[test]
fn connection_ids_start_at_one_and_never_repeat() {
    let zone = Zone::create(1).unwrap();
    let (one, two) = (zone.claim_slot(0, 1).unwrap(), zone.claim_slot(1, 1).unwrap());
    assert_eq!(one.connection_ids(100), 1);
    assert_eq!(two.connection_ids(100), 101);
    assert_eq!(one.connection_ids(1), 201);
}

#[test]
fn a_report_shows_busy_handlers_and_connections() {
    let zone = Zone::create(1).unwrap();
    let slot = zone.claim_slot(0, 1).unwrap();
    let _counters = (slot.counters(ThreadRole::Handler(0)), slot.counters(ThreadRole::Handler(5)));
    let now = clock::monotonic_ms();
    slot.handler_started(0, now);
    slot.handler_started(5, now.saturating_sub(500));
    slot.set_connections(9);
    let report = slot.report();
    assert_eq!((report.handlers_busy, report.connections), (2, 9));
    assert!(report.oldest_handler_ms >= 500.min(now - 1));
    slot.handler_finished(0, 1);
    slot.handler_finished(5, 1);
    assert_eq!(slot.report().oldest_handler_ms, 0);
}
