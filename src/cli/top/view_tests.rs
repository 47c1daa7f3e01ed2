//! The screen, drawn into a buffer instead of a terminal, at the sizes that people have.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chappe_sys::Usage;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::{Key, Sample, Top};
use crate::control::{Status, WorkerStatus};

fn drawn(top: &Top, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| top.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| {
        let cells = (0..width).map(|x| buffer[(x, y)].symbol());
        cells.collect::<String>().trim_end().to_owned()
    };
    (0..height).map(line).collect()
}

fn status(frames: u64) -> Status {
    let mut status = Status::example();
    for worker in &mut status.workers {
        let counters = [("frames_received", frames), ("frames_sent", frames)];
        worker.counters = counters.into_iter().collect();
        worker.handler_times[1].turns = frames;
    }
    let totals = [
        ("frames_received", 2 * frames),
        ("connections_accepted", 7),
        ("workers_died", 0),
        ("semaphore_posts", frames),
    ];
    status.totals = Some(totals.into_iter().collect());
    status
}

const SLOW: &str = "{\"id\":17,\"worker\":1,\"peer\":\"[::1]:9\",\"state\":\"open\",\
    \"connected_ms\":69000,\"received_bytes\":1,\"sent_bytes\":2,\"queued_bytes\":917632,\
    \"blocked_ms\":21000}\n";

/// Two looks, a second apart.
fn top_of(change: impl Fn(&mut Status)) -> Top {
    let (start, mut top) = (Instant::now(), Top::new(4));
    for (nth, frames) in [(0, 1000), (1, 13_500)] {
        let mut status = status(frames);
        change(&mut status);
        let used = |pid: u32| {
            let cpu_ns = u64::from(pid) * u64::from(nth) * 10_000_000;
            (pid, Usage { cpu_ns, anonymous_bytes: 5_000_000, ..Usage::default() })
        };
        let usage: BTreeMap<_, _> = Sample::pids(&status).into_iter().map(used).collect();
        let at = start + nth * Duration::from_secs(1);
        top.hear(Ok(Sample::new(at, status, Ok(SLOW), usage)));
    }
    top
}

fn top() -> Top {
    top_of(|_| {})
}

#[test]
fn the_screen_of_80_columns() {
    let expected = "\
chappe 9.9, master pid 1, up 5s, generation 2; reloads 1, the last ok
messages 25.0k/s in 0/s out  bytes 0/s in 0/s out
cpu [|||||||||||   ] 287/400%  permits [|||           ] 24/123  mem 25.0M
permits 123 = 99 free + 24 held (worker 0: 12, worker 1: 12)
worker_ready 0 (0)  connection_permits 99 (0)  send 1 1 (13.5k)  12.5k posts/s

process        pid state     cpu%   mem conns  full  in/s out/s    p99 outbox
master           1            1.0 5.00M
worker 0        70 serving   70.0 5.00M    12     1 12.5k 12.5k  >10us  5.00M
worker 1        71 draining  71.0 5.00M    12     1 12.5k 12.5k  >10us  5.00M
hub             73           73.0 5.00M
metrics         72           72.0 5.00M

counter                    total    /s  counter                    total    /s
connections_accepted           7     0  semaphore_posts            13.5k 12.5k
frames_received            27.0k 25.0k



 slow id worker peer                  state     queued blocked
      17      1 [::1]:9               open        917k     21s
q quit w worker c cpu m mem n conns i in o out r reverse z zeros jk scroll";
    let lines = drawn(&top(), 80, 22);
    assert_eq!(lines, expected.lines().collect::<Vec<_>>(), "{}", lines.join("\n"));
}

#[test]
fn the_busiest_codes_are_shown_where_there_is_room() {
    let first = std::cell::Cell::new(true);
    let mut top = top_of(|status| {
        // Code 16 is called a thousand times between the two looks.
        status.codes[1].calls += if first.replace(false) { 0 } else { 1000 };
    });
    let text = |top: &Top, height| drawn(top, 80, height).join("\n");
    assert!(!text(&top, 22).contains("calls/s"));
    let one = text(&top, 23);
    let rows = [
        "  code calls/s  calls errors     p50     p99 runs",
        "    16   1.00k  1.01k      1    ≤1us   ≤20ms threads",
        "     0       0  1.99k      9    ≤1us   ≤20ms loop in 1 of 2 workers",
    ];
    let [head, busy, quiet] = rows.map(str::to_owned);
    assert!(one.contains(&format!("\n\n{head}\n{busy}\n\ncounter")), "{one}");
    let both = text(&top, 24);
    assert!(both.contains(&format!("\n{head}\n{busy}\n{quiet}\n\ncounter")), "{both}");
    top.press(Key::Letter(b'z'));
    let all = text(&top, 31);
    assert!(
        all.contains(&format!("{quiet}\n    17       0      0      0       -       - blocking\n")),
        "{all}"
    );
}

#[test]
fn a_narrow_screen_has_what_matters_and_a_wide_one_all() {
    let narrow = drawn(&top(), 60, 20).join("\n");
    for part in [
        "process        pid state     cpu%   mem conns  in/s out/s",
        "permits [",
        "worker 1",
        "q quit w worker",
    ] {
        assert!(narrow.contains(part), "{part}: {narrow}");
    }
    assert!(narrow.contains("ready 0 (0)  permits 99 (0)  send 1 1 (13.5k)"), "{narrow}");
    assert!(!narrow.contains("outbox"), "{narrow}");
    let wide = drawn(&top(), 160, 50).join("\n");
    for part in [
        "gen",
        "up",
        "B in/s",
        "B out/s",
        "sem posts posts/s",
        "busy",
        "p50",
        "inbox",
        "jk scroll",
        "posts/s\n",
    ] {
        assert!(wide.contains(part), "{part}: {wide}");
    }
}

#[test]
fn a_counter_is_shown_by_its_whole_name() {
    let longest = ["connections_refused_per_ip".to_owned(), format!("app_{}", "x".repeat(40))];
    for name in longest {
        let totals = [(&*name, 12_345_678), ("workers_died", 1)];
        let top = top_of(|status| status.totals = Some(totals.into_iter().collect()));
        let lines = drawn(&top, 80, 24);
        let line = format!("{name} 12.3M");
        assert!(lines.iter().any(|shown| shown.starts_with(&line)), "{lines:#?}");
    }
}

#[test]
fn many_workers_leave_room_for_the_counters_and_are_scrolled() {
    let mut top = top_of(|status| {
        let first = status.workers[0].clone();
        let worker = |number: u16| WorkerStatus {
            worker: number,
            pid: 100 + u32::from(number),
            ..first.clone()
        };
        status.workers = (0..64).map(worker).collect();
    });
    let lines = drawn(&top, 80, 24);
    let text = lines.join("\n");
    assert!(text.contains("worker 3 ") && !text.contains("worker 40"), "{text}");
    assert!(text.contains("frames_received") && text.contains("[::1]:9"), "{text}");
    assert!(lines[3].starts_with("permits 123 = 99 free + 24 held"), "{text}");
    assert!(lines[4].contains("  send up to 1 ("), "{text}");
    for _ in 0..1000 {
        top.press(Key::Down);
    }
    let text = drawn(&top, 80, 24).join("\n");
    assert!(text.contains("worker 63") && text.contains("metrics"), "{text}");
}

#[test]
fn a_problem_is_said_and_the_last_numbers_stay() {
    let mut top = top();
    top.hear(Err("no master is running".to_owned()));
    let lines = drawn(&top, 80, 24);
    assert_eq!(lines[5], "no master is running; trying again");
    assert!(lines.iter().any(|line| line.contains("serving")), "{lines:#?}");
    let mut first = Top::default();
    assert_eq!(drawn(&first, 80, 9)[0], "chappe top: asking the master");
    first.hear(Err("no master is running".to_owned()));
    assert_eq!(drawn(&first, 80, 9)[1], "no master is running; trying again");
}

#[test]
fn no_size_is_a_panic() {
    for (width, height) in [(0, 0), (1, 1), (10, 3), (39, 2), (79, 5), (400, 120)] {
        drawn(&top(), width, height);
    }
}
