//! What tests take for the answer of a server, and that it is written as programs know it.

use super::*;
use serde_json::Value;

impl HubStatus {
    /// One whose second worker is behind.
    fn example() -> Self {
        let reader = |worker: u16, behind_bytes| HubReader {
            worker,
            pid: 70 + u32::from(worker),
            behind_bytes,
        };
        let workers = vec![reader(0, 0), reader(1, 4096)];
        Self { pid: Some(73), epoch: 7, offset: 12, topics: 3, patterns: 1, workers }
    }
}

impl ListenerStatus {
    pub(crate) fn example(address: &str, protocol: &str) -> Self {
        Self { address: address.to_owned(), protocol: protocol.to_owned() }
    }
}

impl Permits {
    /// Each of two workers has as many.
    fn example() -> Self {
        let share = |worker: u16| PermitShare { worker, pid: 70 + u32::from(worker), held: 12 };
        let workers = [0, 1].map(share).into();
        Self { limit: 123, debt: 0, free: 99, credit: 0, held: 24, workers }
    }
}

impl Status {
    /// For tests of what is made of one: two workers, one of which drains.
    pub(crate) fn example() -> Self {
        let worker = |number: u16, state: &str| WorkerStatus {
            worker: number,
            pid: 70 + u32::from(number),
            generation: 2,
            state: state.to_owned(),
            uptime_ms: 69_000,
            connections: 12,
            connections_blocked: 1,
            oldest_blocked_ms: 5,
            inbox_bytes: 20_000,
            outbox_bytes: 5_000_000,
            messages_waiting: 6,
            handlers_busy: 2,
            oldest_handler_ms: 3,
            handler_times: vec![
                HandlerTime { up_to_us: Some(10), turns: 4 },
                HandlerTime { up_to_us: None, turns: 0 },
            ],
            heartbeat_age_ms: Some(8),
            send_semaphore: Some(1),
            counters: [("frames_received", 1000), ("frames_sent", 1000)].into_iter().collect(),
        };
        Self {
            master: MasterStatus {
                pid: 1,
                version: "9.9".to_owned(),
                uptime_ms: 5000,
                generation: 2,
                listen: vec!["127.0.0.1:1".to_owned()],
                listeners: vec![ListenerStatus::example("127.0.0.1:1", "chappe")],
                unreachable: Vec::new(),
                stopping: false,
                log_level: "info".to_owned(),
                warnings: Vec::new(),
            },
            reload: ReloadStatus {
                count: 1,
                last: Some(LastReload { outcome: ReloadOutcome::Ok, reason: None, at: 1 }),
            },
            hub: Some(HubStatus::example()),
            metrics: Some(MetricsStatus { address: "127.0.0.1:9".to_owned(), pid: Some(72) }),
            workers: vec![worker(0, "serving"), worker(1, "draining")],
            vacancies: vec![Vacancy { worker: 2, due_in_ms: 100 }],
            limits: Limits { worker_descriptors: 1024, worker_connections: 896 },
            semaphores: Semaphores { worker_ready: Some(0), connection_permits: Some(99) },
            permits: Some(Permits::example()),
            totals: Some([("frames_received", 2000), ("workers_died", 0)].into_iter().collect()),
            codes: [(0, 1990, "loop"), (16, 10, "threads"), (17, 0, "blocking")]
                .map(|(code, calls, runs)| CodeStatus {
                    code: Some(code),
                    calls,
                    errors: calls % 100 / 10,
                    timed: calls,
                    p50_us: (calls > 0).then_some(1),
                    p99_us: (calls > 0).then_some(20_000),
                    runs: Some(runs.to_owned()),
                    on_loop: u32::from(runs == "loop"),
                    workers: 2,
                })
                .into(),
        }
    }
}

/// The pointer of each value; of a list, that of its first element.
fn keys(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            object.iter().for_each(|(key, value)| keys(value, &format!("{at}/{key}"), found));
        }
        Value::Array(list) if !list.is_empty() => keys(&list[0], &format!("{at}/0"), found),
        _ => found.push(at.to_owned()),
    }
}

/// Programs read them: a key is added here, and never renamed or removed.
const KEYS: &str = "
        codes/0/calls codes/0/code codes/0/errors codes/0/on_loop codes/0/p50_us codes/0/p99_us
        codes/0/runs codes/0/timed codes/0/workers
        hub/epoch hub/offset hub/patterns hub/pid hub/topics
        hub/workers/0/behind_bytes hub/workers/0/pid hub/workers/0/worker
        limits/worker_connections limits/worker_descriptors
        master/generation master/listen/0 master/listeners/0/address master/listeners/0/protocol
        master/log_level master/pid master/stopping
        master/unreachable master/uptime_ms master/version master/warnings
        metrics/address metrics/pid
        permits/credit permits/debt permits/free permits/held permits/limit
        permits/workers/0/held permits/workers/0/pid permits/workers/0/worker
        reload/count reload/last/at reload/last/outcome reload/last/reason
        semaphores/connection_permits semaphores/worker_ready
        totals/frames_received totals/workers_died
        vacancies/0/due_in_ms vacancies/0/worker
        workers/0/connections workers/0/connections_blocked
        workers/0/counters/frames_received workers/0/counters/frames_sent
        workers/0/generation workers/0/handler_times/0/turns workers/0/handler_times/0/up_to_us
        workers/0/handlers_busy workers/0/heartbeat_age_ms workers/0/inbox_bytes
        workers/0/messages_waiting workers/0/oldest_blocked_ms workers/0/oldest_handler_ms workers/0/outbox_bytes
        workers/0/pid workers/0/send_semaphore workers/0/state workers/0/uptime_ms workers/0/worker";

#[test]
fn the_keys_are_those_that_programs_know() {
    let value = serde_json::to_value(Status::example()).unwrap();
    let mut found = Vec::new();
    keys(&value, "", &mut found);
    found.sort_unstable();
    let mut expected: Vec<_> = KEYS.split_whitespace().map(|key| format!("/{key}")).collect();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn a_status_is_read_as_it_was_written() {
    let status = Status::example();
    let mut value = serde_json::to_value(&status).unwrap();
    assert_eq!(serde_json::from_value::<Status>(value.clone()).unwrap(), status);
    value["master"]["new"] = 7.into();
    assert_eq!(serde_json::from_value::<Status>(value.clone()).unwrap(), status);
    for nothing in ["metrics", "permits", "totals"] {
        value[nothing] = Value::Null;
    }
    let read = serde_json::from_value::<Status>(value.clone()).unwrap();
    assert_eq!(serde_json::to_value(read).unwrap()["metrics"], Value::Null);
    value["workers"][0].as_object_mut().unwrap().remove("state");
    let error = serde_json::from_value::<Status>(value).unwrap_err().to_string();
    assert!(error.contains("missing field `state`"), "{error}");
}
