//! The zone as Prometheus reads it: the text format 0.0.4. Names are for good.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use chappe_shm::{
    CODE_BOUNDS_US, CodeReport, Counter, HANDLER_BOUNDS_US, HubFigures, SlotReport, SlotState, Zone,
};
use chappe_sys::{Usage, clock};

/// What the zone does not tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// Of this program.
    pub(crate) version: &'static str,
    /// When the master was started, in milliseconds since 1970.
    pub(crate) started_at_ms: u64,
}

/// All of it; `None` when the totals can't be read, since the master was killed while
/// it was changing them.
pub(super) fn render(zone: &Arc<Zone>, facts: &Facts) -> Option<String> {
    let (totals, figures) = (zone.totals()?, zone.figures()?);
    let mut text = Text::default();
    for &counter in Counter::ALL {
        let name = format!("chappe_{}_total", counter.name());
        text.family(&name, "counter", counter.help());
        text.sample(&name, "", totals.get(counter));
    }
    for (name, &value) in zone.catalog().counters().iter().zip(figures.counters()) {
        let name = format!("chappe_app_{name}_total");
        text.family(&name, "counter", "A counter of the application.");
        text.sample(&name, "", value);
    }
    master(&mut text, zone, facts);
    if let Some(figures) = zone.hub() {
        hub(&mut text, figures);
    }
    let reports = zone.reports();
    let name = "chappe_workers";
    text.family(name, "gauge", "Workers of all generations, by state.");
    for state in [SlotState::Starting, SlotState::Serving, SlotState::Draining] {
        let is_there = |report: &&SlotReport| report.state.name() == state.name();
        let count = reports.iter().filter(is_there).count();
        text.sample(name, &format!("{{state=\"{}\"}}", state.name()), count as u64);
    }
    workers(&mut text, &reports);
    handler_times(&mut text, &reports);
    codes(&mut text, &zone.code_reports(&figures));
    Some(text.0)
}

fn master(text: &mut Text, zone: &Arc<Zone>, facts: &Facts) {
    let history = zone.history();
    let mut one = |name: &str, kind, help, value| {
        text.family(name, kind, help);
        text.sample(name, "", value);
    };
    let help = "When the master was started, in seconds since 1970.";
    one("chappe_start_time_seconds", "gauge", help, facts.started_at_ms / 1000);
    let help = "The generation of workers that serves: 1, and one more with each reload.";
    one("chappe_generation", "gauge", help, history.generation);
    one("chappe_reloads_total", "counter", "Reloads, successful or not.", history.reloads);
    let help = "Reloads that failed: the old generation stayed.";
    one("chappe_reloads_failed_total", "counter", help, history.reloads_failed);
    if let Some((is_ok, at_ms)) = history.last {
        let help = "Whether the last reload went well.";
        one("chappe_last_reload_successful", "gauge", help, u64::from(is_ok));
        let help = "When the last reload was over, in seconds since 1970.";
        one("chappe_last_reload_time_seconds", "gauge", help, at_ms / 1000);
    }
    let help = "Maximum number of connections, over all workers.";
    one("chappe_connections_limit", "gauge", help, u64::from(zone.limit()));
    text.family("chappe_build_info", "gauge", "Always 1; the version is a label.");
    text.sample("chappe_build_info", &format!("{{version=\"{}\"}}", facts.version), 1);
    let name = "chappe_semaphore_value";
    text.family(name, "gauge", "The value of a semaphore that all processes share.");
    let semaphores = [
        ("worker_ready", zone.worker_ready().value()),
        ("connection_permits", zone.free_permits()),
    ];
    for (semaphore, value) in semaphores {
        text.sample(name, &format!("{{semaphore=\"{semaphore}\"}}"), u64::from(value));
    }
}

fn hub(text: &mut Text, figures: HubFigures) {
    let HubFigures { epoch, offset, topics, patterns } = figures;
    let mut one = |name: &str, help, value| {
        let name = format!("chappe_hub_{name}");
        text.family(&name, "gauge", help);
        text.sample(&name, "", value);
    };
    let help = "What tells the offsets of one log of messages from those of another one.";
    one("epoch", help, epoch);
    one("offset", "The offset of the last message of topics.", offset);
    one("topics", "Topics and patterns that somebody subscribes to.", topics);
    one("patterns", "The patterns among them.", patterns);
}

/// A gauge of a worker, and how two are put together.
type Gauge = (&'static str, &'static str, fn(&SlotReport, u64) -> u64, fn(u64, u64) -> u64);

const SUM: fn(u64, u64) -> u64 = u64::saturating_add;

const GAUGES: &[Gauge] = &[
    ("connections", "Open connections.", |r, _| u64::from(r.connections), SUM),
    (
        "connections_blocked",
        "Connections whose socket is full.",
        |r, _| u64::from(r.gauges.blocked),
        SUM,
    ),
    (
        "oldest_blocked_milliseconds",
        "How long the longest-blocked connection has been blocked.",
        |r, _| r.gauges.oldest_blocked_ms,
        u64::max,
    ),
    ("inbox_bytes", "Received and not handled.", |r, _| r.gauges.inbox_bytes, SUM),
    ("outbox_bytes", "Queued and not sent.", |r, _| r.gauges.outbox_bytes, SUM),
    (
        "messages_waiting",
        "Messages that wait for a deferred reply.",
        |r, _| u64::from(r.gauges.waiting),
        SUM,
    ),
    (
        "topics_behind_bytes",
        "Published to topics, and not read by the worker yet.",
        |r, _| r.behind_bytes,
        u64::max,
    ),
    ("handlers_busy", "Handler threads inside a turn.", |r, _| u64::from(r.handlers_busy), SUM),
    (
        "oldest_handler_milliseconds",
        "How long the oldest of these turns has been running.",
        |r, _| r.oldest_handler_ms,
        u64::max,
    ),
    (
        "heartbeat_age_milliseconds",
        "Time since the event loop's last heartbeat; 0 before the first.",
        |r, now_ms| if r.heartbeat_ms == 0 { 0 } else { now_ms.saturating_sub(r.heartbeat_ms) },
        u64::max,
    ),
    (
        "cpu_milliseconds",
        "Time on a CPU, of the threads that live.",
        |r, _| usage(r).map_or(0, |usage| usage.cpu_ns / 1_000_000),
        SUM,
    ),
    (
        "memory_bytes",
        "Memory that no other process has.",
        |r, _| usage(r).map_or(0, |usage| usage.anonymous_bytes),
        SUM,
    ),
    (
        "uptime_milliseconds",
        "Since the worker was started.",
        |r, now_ms| now_ms.saturating_sub(r.started_at_ms),
        u64::max,
    ),
];

/// As far as the kernel tells.
fn usage(report: &SlotReport) -> Option<Usage> {
    Usage::of(&[i32::try_from(report.pid).ok()?])
}

/// Two workers may have one number for a while: after TTOU and TTIN the first of them
/// still drains. A series that is there twice would spoil the whole answer, so these
/// are shown as one.
fn workers(text: &mut Text, reports: &[SlotReport]) {
    let now_ms = clock::monotonic_ms();
    for (name, help, value, join) in GAUGES {
        let mut values: BTreeMap<(u64, u16), u64> = BTreeMap::new();
        for report in reports {
            let value = value(report, now_ms);
            let place = values.entry((report.generation, report.worker));
            place.and_modify(|sum| *sum = join(*sum, value)).or_insert(value);
        }
        let name = format!("chappe_worker_{name}");
        text.family(&name, "gauge", help);
        for ((generation, worker), value) in values {
            let labels = format!("{{worker=\"{worker}\",generation=\"{generation}\"}}");
            text.sample(&name, &labels, value);
        }
    }
}

/// What is known of turns is in which bucket each was: there is no sum of their times.
fn handler_times(text: &mut Text, reports: &[SlotReport]) {
    let name = "chappe_worker_handler_turn_seconds";
    let help = "How long turns of handler threads took: some messages of a connection each.";
    text.family(name, "histogram", help);
    let mut values = BTreeMap::new();
    for report in reports {
        let sums = values.entry((report.generation, report.worker)).or_insert([0; BUCKETS]);
        for (sum, count) in sums.iter_mut().zip(report.handler_times) {
            *sum = SUM(*sum, count);
        }
    }
    for ((generation, worker), counts) in values {
        let labels = format!("worker=\"{worker}\",generation=\"{generation}\"");
        text.histogram(name, &labels, &HANDLER_BOUNDS_US, &counts);
    }
}

/// `code="16"`, or `code="others"` for those that have no row of their own.
fn label_of(report: &CodeReport) -> String {
    let code = report.code.map_or_else(|| "others".to_owned(), |code| code.to_string());
    format!("code=\"{code}\"")
}

/// A figure of a code: its name, kind and help, and its value.
type CodeFigure = (&'static str, &'static str, &'static str, fn(&CodeReport) -> u64);

const CODE_FIGURES: &[CodeFigure] = &[
    ("code_calls_total", "counter", "Calls of the handler of a code.", |it| it.values.calls),
    (
        "code_errors_total",
        "counter",
        "Those of the calls that returned an error or panicked.",
        |it| it.values.errors,
    ),
    (
        "code_workers_on_loop",
        "gauge",
        "Workers that run the handler of a code on the event loop.",
        |it| it.on_loop.into(),
    ),
];

fn codes(text: &mut Text, reports: &[CodeReport]) {
    for (name, kind, help, value) in CODE_FIGURES {
        let name = format!("chappe_{name}");
        text.family(&name, kind, help);
        for report in reports {
            text.sample(&name, &format!("{{{}}}", label_of(report)), value(report));
        }
    }
    let name = "chappe_code_call_seconds";
    let help = "How long calls took, of those that were timed.";
    text.family(name, "histogram", help);
    for report in reports.iter().filter(|report| report.values.timed() > 0) {
        text.histogram(name, &label_of(report), &CODE_BOUNDS_US, &report.values.times);
    }
}

const BUCKETS: usize = HANDLER_BOUNDS_US.len() + 1;

/// `0.00001`, `1`: exact, which a division of floats is not.
fn seconds(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Writing to a String can't fail.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // What HELP needs escaped.
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// The series of one histogram; `counts` has one more than there are bounds.
    fn histogram(&mut self, name: &str, labels: &str, bounds_us: &[u64], counts: &[u64]) {
        let mut so_far = 0;
        let bounds = bounds_us.iter().map(|&us| seconds(us));
        for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(counts) {
            so_far = SUM(so_far, *count);
            let labels = format!("{{{labels},le=\"{bound}\"}}");
            self.sample(&format!("{name}_bucket"), &labels, so_far);
        }
        self.sample(&format!("{name}_count"), &format!("{{{labels}}}"), so_far);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_shm::{Catalog, History, Runs, ThreadRole};
    use std::collections::BTreeSet;
    use std::time::Duration;

    const FACTS: Facts = Facts { version: "9.9", started_at_ms: 5_000 };

    fn value(text: &str, series: &str) -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap())
    }

    #[test]
    fn every_counter_has_its_series_and_its_help() {
        let zone = Zone::create(100).unwrap();
        let slot = zone.claim_slot(0, 1).unwrap();
        slot.counters(ThreadRole::EventLoop).add(Counter::FramesReceived, 42);
        zone.count(Counter::WorkersDied, 3);
        let text = render(&zone, &FACTS).unwrap();
        for counter in Counter::ALL {
            let name = format!("chappe_{}_total", counter.name());
            assert!(value(&text, &name).is_some(), "{name}");
            let help = format!("# HELP {name} {}\n# TYPE {name} counter\n", counter.help());
            assert!(text.contains(&help), "{help}");
            assert!(counter.help().ends_with('.') && !counter.help().contains("  "), "{help}");
        }
        assert_eq!(value(&text, "chappe_frames_received_total"), Some(42));
        assert_eq!(value(&text, "chappe_workers_died_total"), Some(3));
    }

    #[test]
    fn each_line_is_well_formed_and_no_series_is_there_twice() {
        let zone = Zone::create(100).unwrap();
        let last = Some((false, 7_999));
        let history = History { generation: 4, reloads: 3, reloads_failed: 2, last };
        zone.tell_history(&history);
        // The same number and generation twice, as after TTOU and TTIN.
        for (worker, connections) in [(0, 1), (1, 10), (1, 100)] {
            let slot = zone.claim_slot(worker, 4).unwrap();
            slot.set_connections(connections);
            slot.set_queued(7, 70, 3);
            slot.tell_behind(u64::from(connections));
            slot.set_blocked(2, 1);
        }
        zone.tell_hub(Some(HubFigures { epoch: u64::MAX, offset: 9, topics: 3, patterns: 1 }));
        let text = render(&zone, &FACTS).unwrap();
        let mut seen = BTreeSet::new();
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                family = rest.split(' ').next().unwrap().to_owned();
                assert!(seen.insert(format!("# {family}")), "{family} twice");
                continue;
            }
            if line.starts_with("# HELP ") {
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(series.starts_with(&family), "{line} under {family}");
            value.parse::<u64>().unwrap();
            assert!(seen.insert(series.to_owned()), "{series} twice");
        }
        let of = |name: &str, worker: u16| {
            let series = format!("chappe_worker_{name}{{worker=\"{worker}\",generation=\"4\"}}");
            value(&text, &series).unwrap()
        };
        assert_eq!((of("connections", 0), of("connections", 1)), (1, 110));
        assert_eq!((of("inbox_bytes", 1), of("outbox_bytes", 1)), (14, 140));
        assert_eq!(of("messages_waiting", 1), 6);
        assert_eq!((of("topics_behind_bytes", 0), of("topics_behind_bytes", 1)), (1, 100));
        let hub = |name: &str| value(&text, &format!("chappe_hub_{name}"));
        assert_eq!([hub("epoch"), hub("offset")], [Some(u64::MAX), Some(9)]);
        assert_eq!([hub("topics"), hub("patterns")], [Some(3), Some(1)]);
        assert_eq!(value(&text, "chappe_workers{state=\"starting\"}"), Some(3));
        assert_eq!(value(&text, "chappe_reloads_failed_total"), Some(2));
        assert_eq!(value(&text, "chappe_last_reload_successful"), Some(0));
        assert_eq!(value(&text, "chappe_last_reload_time_seconds"), Some(7));
        let permits = "chappe_semaphore_value{semaphore=\"connection_permits\"}";
        assert_eq!(value(&text, permits), Some(100));
    }

    #[test]
    fn turns_are_counted_up_to_each_bound() {
        let bounds: Vec<_> = HANDLER_BOUNDS_US.iter().map(|&us| seconds(us)).collect();
        assert_eq!(bounds, ["0.00001", "0.0001", "0.001", "0.01", "0.1", "1", "10"]);
        let zone = Zone::create(1).unwrap();
        let slot = zone.claim_slot(3, 1).unwrap();
        let _line = slot.counters(ThreadRole::Handler(0));
        for took_us in [5, 10, 11, 20_000_000] {
            slot.handler_finished(0, took_us);
        }
        let text = render(&zone, &FACTS).unwrap();
        let of = |suffix: &str, more: &str| {
            let labels = format!("worker=\"3\",generation=\"1\"{more}");
            let name = format!("chappe_worker_handler_turn_seconds_{suffix}");
            value(&text, &format!("{name}{{{labels}}}")).unwrap()
        };
        assert_eq!(of("bucket", ",le=\"0.00001\""), 2);
        assert_eq!(of("bucket", ",le=\"0.0001\""), 3);
        assert_eq!(of("bucket", ",le=\"10\""), 3);
        assert_eq!((of("bucket", ",le=\"+Inf\""), of("count", "")), (4, 4));
    }

    #[test]
    fn what_the_application_counts_has_its_series() {
        let names = ["logins", "sold"].map(str::to_owned);
        let zone = Zone::for_application(1, Catalog::new(names.into(), (0..300).collect()));
        let zone = zone.unwrap();
        let figures = zone.claim_slot(0, 1).unwrap().app_figures();
        figures.counter("sold").unwrap().add(3);
        for code in [16, 298, 299] {
            figures.called(figures.catalog().row_of(code), 7);
        }
        let row = figures.catalog().row_of(16);
        figures.failed(row);
        figures.set_runs(row, Runs::Loop);
        figures.took(row, Duration::from_micros(40));
        let text = render(&zone, &FACTS).unwrap();
        let of = |series: &str| value(&text, &format!("chappe_{series}"));
        assert_eq!((of("app_logins_total"), of("app_sold_total")), (Some(0), Some(3)));
        assert_eq!(of("code_calls_total{code=\"16\"}"), Some(7));
        assert_eq!(of("code_calls_total{code=\"17\"}"), Some(0));
        assert_eq!(of("code_calls_total{code=\"others\"}"), Some(14));
        assert_eq!(of("code_errors_total{code=\"16\"}"), Some(1));
        assert_eq!(of("code_workers_on_loop{code=\"16\"}"), Some(1));
        assert_eq!(of("code_call_seconds_bucket{code=\"16\",le=\"0.00002\"}"), Some(0));
        assert_eq!(of("code_call_seconds_bucket{code=\"16\",le=\"0.00005\"}"), Some(1));
        assert_eq!(of("code_call_seconds_count{code=\"16\"}"), Some(1));
        assert_eq!(of("code_call_seconds_count{code=\"17\"}"), None, "nothing was timed");
    }

    #[test]
    fn a_reload_that_never_was_is_not_told() {
        let text = render(&Zone::create(1).unwrap(), &FACTS).unwrap();
        assert!(!text.contains("last_reload"), "{text}");
        assert!(!text.contains("chappe_hub_epoch"), "nor is a hub that there is not: {text}");
        assert_eq!(value(&text, "chappe_start_time_seconds"), Some(5));
    }
}
