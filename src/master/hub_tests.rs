use super::*;
use crate::channel::WorkerEnd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};

/// A keeper whose hub is a process that does nothing, and its end of the channel.
fn keeper() -> (HubKeeper, Deadlines, Child, WorkerEnd) {
    let mut deadlines = Deadlines::default();
    let mut keeper = HubKeeper::new(&Config::default(), &mut deadlines).unwrap();
    let child = Command::new("sleep").arg("1000").spawn().unwrap();
    let hub_end = take_on(&mut keeper, Pid::from_raw(i32::try_from(child.id()).unwrap()));
    (keeper, deadlines, child, hub_end)
}

fn take_on(keeper: &mut HubKeeper, pid: Pid) -> WorkerEnd {
    let (channel, hub_end) = Channel::pair().unwrap();
    let (started, log) = (Instant::now(), OwedLog::default());
    let watch = Watch::default();
    keeper.helper = Some(Helper { pid, channel, started, is_ready: false, log, watch });
    hub_end
}

fn heard(hub_end: &WorkerEnd) -> Vec<(Message, u64, bool)> {
    let mut heard = Vec::new();
    while let Some(ReceivedParcel::Parcel(parcel)) = hub_end.try_receive_parcel().unwrap() {
        heard.push((parcel.message, parcel.value, parcel.file.is_some()));
    }
    heard
}

fn end(mut child: Child) -> Option<i32> {
    // If it was killed already this changes nothing.
    child.kill().unwrap();
    child.wait().unwrap().signal()
}

#[test]
fn a_hub_is_stuck_that_has_work_and_makes_no_round_between_five_looks() {
    let mut watch = Watch::default();
    let rows = [
        // It has work since some time before the first look.
        (7, true, false),
        (7, true, false),
        (7, true, false),
        (7, true, false),
        (8, true, false),
        (8, true, false),
        (8, true, false),
        (8, true, false),
        (8, true, true),
        (8, true, true),
        (9, true, false),
        (9, true, false),
        (9, true, false),
        (9, true, false),
        // It had none in between.
        (9, false, false),
        (9, true, false),
        (9, true, false),
        (9, true, false),
        (9, true, false),
        (9, true, true),
        (9, false, false),
        (9, false, false),
        (9, false, false),
        (9, false, false),
        (9, false, false),
        (9, false, false),
    ];
    for (look, (rounds, has_work, is_stuck)) in rows.into_iter().enumerate() {
        assert_eq!(watch.is_stuck(rounds, has_work), is_stuck, "look {look}");
    }
}

/// What a hub does between two looks of the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// It has not begun to work.
    Begins,
    Rounds,
    /// It sleeps, and its time to wake up by itself is not there.
    Sleeps,
    /// It sleeps, and does not hear that it is called.
    IsDeaf,
    /// It does not come back from where it is.
    Hangs,
}

#[test]
fn a_hub_that_stands_is_killed_and_one_that_works_or_sleeps_is_not() {
    for (does, is_killed) in [
        (Does::Begins, true),
        (Does::Rounds, false),
        (Does::Sleeps, false),
        (Does::IsDeaf, true),
        (Does::Hangs, true),
    ] {
        let (mut keeper, mut deadlines, mut child, _hub_end) = keeper();
        let pen = Pen::map(&keeper.figures).unwrap();
        // As the one before has left it.
        pen.note_asleep(matches!(does, Does::Begins | Does::Sleeps | Does::IsDeaf));
        keeper.helper.as_mut().unwrap().is_ready = does != Does::Begins;
        if does == Does::IsDeaf {
            keeper.board.semaphore().post();
        }
        let mut now = Instant::now();
        for _ in 0..6 {
            keeper.look(now, &mut deadlines);
            assert_eq!(deadlines.at(What::Hub), Some(now + LOOK_EVERY));
            now += LOOK_EVERY;
            if does == Does::Rounds {
                pen.note(Figures::default());
            }
        }
        if is_killed {
            // It would last for a quarter of an hour.
            assert_eq!(child.wait().unwrap().signal(), Some(9), "{does:?}");
        } else {
            assert_eq!(child.try_wait().unwrap(), None, "{does:?}");
            end(child);
        }
    }
}

#[test]
fn a_hub_that_cannot_start_is_tried_again_after_a_pause_that_grows() {
    let (mut keeper, mut deadlines, child, _hub_end) = keeper();
    let pid = keeper.helper.as_ref().unwrap().pid;
    let other = Pid::from_raw(pid.as_raw() + 1);
    assert!(!keeper.ended(other, Death::Failed, "exit=1", &mut deadlines), "not the hub");
    let mut pauses = Vec::new();
    for _ in 0..4 {
        let _hub_end = take_on(&mut keeper, pid);
        assert!(keeper.ended(pid, Death::Failed, "exit=1", &mut deadlines));
        assert!(!keeper.is_ready() && !keeper.is_process(pid));
        pauses.push(keeper.pause.as_millis());
        assert!(deadlines.at(What::Hub) > Some(Instant::now()), "not at once");
    }
    assert_eq!(pauses, [100, 200, 400, 800]);
    end(child);
}

#[test]
fn the_hub_learns_of_lives_and_says_when_they_are_over() {
    let (mut keeper, _deadlines, child, hub_end) = keeper();
    let births = [3, 4].map(|place| keeper.begin_life(place).unwrap());
    let [one, two] = births.map(|birth| birth.id);
    assert_eq!((one.place(), two.place()), (3, 4));
    let begins = |id: LifeId| (Message::LifeBegins, id.0, true);
    assert_eq!(heard(&hub_end), [begins(one), begins(two)]);
    assert_eq!((keeper.behind(3), keeper.behind(5)), (Some(0), None));
    keeper.end_life(3);
    keeper.end_life(3);
    assert_eq!(heard(&hub_end), [(Message::LifeEnds, one.0, false)], "it ends once");
    assert_eq!(keeper.behind(3), None);
    let say = |message, id: LifeId| hub_end.send_parcel(message, id.0, None).unwrap();
    say(Message::Ready, LifeId(0));
    // Who is dead cannot be killed: another one may have its place.
    say(Message::LifeIsCorrupt, one);
    say(Message::LifeIsCorrupt, two);
    say(Message::LifeIsCorrupt, two);
    let (heard, corrupt) = keeper.hear();
    assert!(matches!(heard[..], [Heard::Ready]), "{heard:?}");
    assert_eq!(corrupt, [4]);
    assert!(keeper.is_ready() && !keeper.has_lives());
    end(child);
}

#[test]
fn a_hub_that_takes_nothing_in_is_killed() {
    let (keeper, _deadlines, mut child, _hub_end) = keeper();
    // Far more than there is room for.
    (0..100_000).for_each(|_| keeper.set_level(LogLevel::Info));
    assert_eq!(child.wait().unwrap().signal(), Some(9));
}

#[test]
fn a_log_is_handed_over_and_offered_again_to_who_could_not_take_it() {
    let (mut keeper, mut deadlines, child, hub_end) = keeper();
    let pid = keeper.helper.as_ref().unwrap().pid;
    let log = Arc::new(tempfile::tempfile().unwrap());
    let asked = keeper.hand_log(7, log, &mut deadlines).unwrap();
    assert_eq!(asked, Asked { number: None, pid });
    assert_eq!(asked.to_string(), format!("the hub (pid {pid})"));
    assert_eq!(heard(&hub_end), [(Message::SwapLog, 7, true)]);
    assert!(!keeper.log_answered(8, true, &mut deadlines), "that was no log's");
    assert!(keeper.log_answered(7, false, &mut deadlines));
    assert!(deadlines.at(What::Log(pid)).is_some());
    keeper.dismiss(&mut deadlines);
    assert_eq!(deadlines.next(), None);
    assert_eq!(end(child), Some(9));
}
