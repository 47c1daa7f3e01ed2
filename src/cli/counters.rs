//! Which counters belong together, and what is made of the buckets that handlers' times
//! are counted in. For `status` and `top`, which show the same sections.

use crate::control::HandlerTime;

/// The sections in which counters of the server are shown, each with its counters. One that
/// another version of the server has, and that is in none of them, is shown in [`OTHERS`].
pub(super) const SECTIONS: &[(&str, &[&str])] = &[
    (
        "connections",
        &[
            "connections_accepted",
            "connections_closed",
            "connections_refused",
            "connections_refused_per_ip",
            "connections_uncounted",
            "connections_kicked",
            "connections_cut",
            "closed_slow",
            "closed_idle",
            "closed_handshake",
            "closed_frame_timeout",
            "accept_errors",
        ],
    ),
    (
        "messages",
        &[
            "frames_received",
            "frames_sent",
            "frames_rate_limited",
            "messages_pushed",
            "messages_expired",
            "messages_dropped",
            "messages_published",
            "messages_delivered",
            "messages_lapped",
            "messages_lost",
            "messages_skipped",
            "resumes_whole",
            "resumes_refused",
            "topics_denied",
            "hub_bells",
            "protocol_errors",
            "handler_errors",
            "handler_panics",
            "handlers_demoted",
            "timer_ticks_missed",
            "messages_deferred",
            "deferred_dropped",
            "deferred_expired",
            "deferred_refused",
        ],
    ),
    (
        "sockets",
        &[
            "bytes_received",
            "bytes_sent",
            "send_calls",
            "partial_sends",
            "sends_blocked",
            "reads_paused",
        ],
    ),
    ("server", &["workers_died", "workers_stuck", "drains_cut", "log_lines_lost"]),
    (SEMAPHORES, &[SEND_POSTS, READY_POSTS, PERMIT_POSTS]),
];

/// The section of the posts, which stand beside the values of their semaphores.
pub(super) const SEMAPHORES: &str = "semaphores";
pub(super) const SEND_POSTS: &str = "semaphore_posts";
pub(super) const READY_POSTS: &str = "worker_ready_posts";
pub(super) const PERMIT_POSTS: &str = "connection_permit_posts";

/// The section of the application's own counters.
pub(super) const APPLICATION: &str = "application";
const APPLICATION_PREFIX: &str = "app_";

/// What no other section has.
pub(super) const OTHERS: &str = "others";

/// The section of a counter.
pub(super) fn section_of(counter: &str) -> &'static str {
    if counter.starts_with(APPLICATION_PREFIX) {
        return APPLICATION;
    }
    let found = SECTIONS.iter().find(|(_, names)| names.contains(&counter));
    found.map_or(OTHERS, |(section, _)| section)
}

/// As wide as the longest name of a counter of the server.
const NAME_WIDTH: usize = 26;

/// How wide a column of these names is; applications may have longer ones.
pub(super) fn name_width<'a>(names: impl Iterator<Item = &'a str>) -> usize {
    names.map(str::len).max().unwrap_or(0).max(NAME_WIDTH)
}

/// Sums of rows of the same bounds, one after the other.
pub(super) fn add_times(sum: &mut Vec<HandlerTime>, more: &[HandlerTime]) {
    if sum.is_empty() {
        sum.extend_from_slice(more);
        return;
    }
    for (row, more) in sum.iter_mut().zip(more) {
        row.turns = row.turns.saturating_add(more.turns);
    }
}

/// How many turns there were.
pub(super) fn turns(times: &[HandlerTime]) -> u64 {
    times.iter().map(|row| row.turns).fold(0, u64::saturating_add)
}

/// The bound that `hundredths` of the turns did not exceed: `≤100us`, `>10s`, or
/// `-` if there were none. The buckets know no more than this.
pub(super) fn percentile(times: &[HandlerTime], hundredths: u64) -> String {
    let turns = u128::from(turns(times));
    let rank = (turns * u128::from(hundredths)).div_ceil(100);
    if rank == 0 {
        return "-".to_owned();
    }
    let mut so_far = 0;
    let mut below_us = 0;
    for row in times {
        so_far += u128::from(row.turns);
        match row.up_to_us {
            Some(bound_us) if so_far >= rank => return format!("≤{}", micros(bound_us)),
            Some(bound_us) => below_us = bound_us,
            None => break,
        }
    }
    format!(">{}", micros(below_us))
}

/// `10us`, `5ms`, `10s`: the bounds are whole numbers of a unit.
pub(super) fn micros(us: u64) -> String {
    match us {
        0..1000 => format!("{us}us"),
        1000..1_000_000 => format!("{}ms", us / 1000),
        _ => format!("{}s", us / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(turns: [u64; 4]) -> Vec<HandlerTime> {
        let bounds = [Some(10), Some(1000), Some(10_000_000), None];
        let rows = bounds.into_iter().zip(turns);
        rows.map(|(up_to_us, turns)| HandlerTime { up_to_us, turns }).collect()
    }

    #[test]
    fn a_percentile_is_the_bound_of_its_bucket() {
        let rows = [
            ([0, 0, 0, 0], 50, "-"),
            ([1, 0, 0, 0], 50, "≤10us"),
            ([1, 0, 0, 0], 99, "≤10us"),
            ([50, 50, 0, 0], 50, "≤10us"),
            ([49, 51, 0, 0], 50, "≤1ms"),
            ([99, 0, 1, 0], 99, "≤10us"),
            ([98, 0, 2, 0], 99, "≤10s"),
            ([0, 0, 0, 1], 50, ">10s"),
            ([u64::MAX, u64::MAX, 0, 0], 99, "≤10us"),
        ];
        for (turns, hundredths, expected) in rows {
            assert_eq!(percentile(&times(turns), hundredths), expected, "{turns:?}");
        }
    }

    #[test]
    fn rows_are_added_bound_by_bound() {
        let mut sum = Vec::new();
        add_times(&mut sum, &times([1, 2, 3, 4]));
        add_times(&mut sum, &times([10, 20, 30, 40]));
        assert_eq!((sum.clone(), turns(&sum)), (times([11, 22, 33, 44]), 110));
    }

    #[test]
    fn each_counter_is_in_one_section() {
        let names: Vec<_> = SECTIONS.iter().flat_map(|(_, names)| *names).collect();
        let mut once = names.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), names.len());
        assert_eq!((section_of("workers_died"), section_of("of_tomorrow")), ("server", OTHERS));
        assert_eq!(section_of("app_workers_died"), APPLICATION);
        let longest = names.iter().map(|name| name.len()).max();
        assert_eq!(longest, Some(NAME_WIDTH));
    }
}
