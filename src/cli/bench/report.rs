//! The report of a run: for people, and as one JSON object whose keys stay. Pure.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::load::{Plan, Report};

/// Counters of the server that tell what a message cost on the send path.
const PER_THOUSAND: [&str; 4] = ["semaphore_posts", "send_calls", "partial_sends", "sends_blocked"];

/// Why the server's figures are missing although its processes are known.
const UNREADABLE: &str = "its processes can't be read, or are gone";

const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99_9", 0.999)];

/// One object. `unknown` is why the server's processes are.
pub(super) fn json(plan: &Plan, report: &Report, unknown: Option<&str>) -> Value {
    let faults: Map<String, Value> = report
        .faults
        .iter()
        .map(|(fault, count, first)| {
            (fault.name().to_owned(), json!({ "count": count, "first": first }))
        })
        .collect();
    json!({
        "to": report.target.to_string(),
        "loop": if plan.rate.is_some() { "open" } else { "closed" },
        "connections": plan.connections,
        "pipeline": plan.pipeline,
        "size": plan.body_bytes,
        "code": plan.code,
        "rate": plan.rate,
        "complete": report.is_complete,
        "seconds": report.seconds,
        "replies": report.replies,
        "replies_per_second": per_second(report),
        "latency_us": latency(report),
        "unasked": report.unasked,
        "errors": faults,
        "idle": { "connections": plan.idle, "closed_by_server": report.idle_closed },
        "slow_readers": {
            "connections": plan.slow_readers,
            "full": report.slow_full,
            "closed_by_server": report.slow_closed,
            "bytes_sent": report.slow_bytes_sent,
        },
        "paced_reader": report.paced.as_ref().map(|paced| json!({
            "bytes_asked": paced.bytes_asked,
            "bytes_received": paced.bytes_received,
            "replies_asked": paced.replies_asked,
            "replies_right": paced.replies_right,
            "seconds": paced.seconds,
            "error": paced.fault,
        })),
        "client": report.client.map(|used| json!({
            "cpu_ns_per_message": per_message(report, used.cpu_ns),
            "cpu_share": used.cpu_ns as f64 / 1e9 / report.looked_seconds,
            "latest_send_us": report.late_ns_max as f64 / 1e3,
        })),
        "server": report.server.map(|used| json!({
            "pids": plan.server_pids,
            "cpu_ns_per_message": per_message(report, used.cpu_ns),
            "cpu_share": used.cpu_ns as f64 / 1e9 / report.looked_seconds,
            "voluntary_switches_per_message": per_message(report, used.voluntary_switches),
            "involuntary_switches_per_message": per_message(report, used.involuntary_switches),
            "system_calls_per_message": system_calls(report).ok().flatten(),
            "system_calls_missing": system_calls(report).err(),
            "anonymous_bytes_before": report.memory.map(|(before, _)| before),
            "anonymous_bytes_most": report.memory.map(|(_, most)| most),
        })),
        "server_missing": report.server.is_none().then_some(unknown.unwrap_or(UNREADABLE)),
        "counters": counters(report),
    })
}

/// Some lines.
pub(super) fn text(plan: &Plan, report: &Report, unknown: Option<&str>) -> String {
    let mut text = String::new();
    let mode = match plan.rate {
        Some(rate) => format!("open loop, {rate} requests/s"),
        None => format!("closed loop, {} under way on each", plan.pipeline),
    };
    // Writing to a String can't fail.
    let _ = writeln!(
        text,
        "{}: connections {}, {mode}, code {}, bodies of {} bytes",
        report.target, plan.connections, plan.code, plan.body_bytes
    );
    let cut = if report.is_complete { "" } else { ", cut short" };
    line(
        &mut text,
        "replies",
        &format!("{} in {:.2} s{cut}: {:.0}/s", report.replies, report.seconds, per_second(report)),
    );
    if !report.latencies.is_empty() {
        let mut times: Vec<String> = QUANTILES
            .iter()
            .map(|(name, quantile)| {
                let time = time(report.latencies.value_at_quantile(*quantile));
                format!("{} {time}", name.replace('_', "."))
            })
            .collect();
        times.push(format!("max {}", time(report.latencies.max())));
        line(&mut text, "latency", &times.join("  "));
    }
    if report.unasked > 0 {
        let value = format!("{} frames of other codes than the replies'", report.unasked);
        line(&mut text, "unasked", &value);
    }
    sides(&mut text, plan, report);
    costs(&mut text, plan, report, unknown);
    if report.faults.is_empty() {
        line(&mut text, "errors", "none");
    }
    for (fault, count, first) in report.faults.iter() {
        line(&mut text, "errors", &format!("{} {count}, the first: {first}", fault.name()));
    }
    text
}

/// What makes the exit code 1, a sentence each.
pub(super) fn failures(plan: &Plan, report: &Report) -> Vec<String> {
    let mut all = Vec::new();
    if !report.is_complete {
        let planned = plan.duration.as_secs_f64();
        all.push(format!(
            "the server ended connections: {:.2} s of {planned:.2} s were measured{}",
            report.seconds,
            if report.seconds < planned { "" } else { ", with fewer and fewer connections" },
        ));
    }
    let wrong: u64 = report.faults.iter().map(|(_, count, _)| count).sum();
    if wrong > 0 {
        all.push(format!("{wrong} errors; {} requests were answered correctly", report.replies));
    } else if report.replies == 0 {
        all.push("nothing was answered".to_owned());
    }
    if let Some(paced) = report.paced.as_ref().filter(|paced| !paced.is_whole()) {
        all.push(format!(
            "the paced reader has {} of {} replies{}",
            paced.replies_right,
            paced.replies_asked,
            paced.fault.as_ref().map_or(String::new(), |fault| format!(" ({fault})")),
        ));
    }
    all
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "  {name:<9} {value}");
}

/// The connections beside the measured ones.
fn sides(text: &mut String, plan: &Plan, report: &Report) {
    if plan.idle > 0 {
        let value = format!("{}, {} closed by the server", plan.idle, report.idle_closed);
        line(text, "idle", &value);
    }
    if plan.slow_readers > 0 {
        let value = format!(
            "{}, {} were full, {} closed by the server, {} sent by all of them",
            plan.slow_readers,
            report.slow_full,
            report.slow_closed,
            bytes(report.slow_bytes_sent),
        );
        line(text, "slow", &value);
    }
    if let Some(paced) = &report.paced {
        let value = format!(
            "{} of {} replies, {} of {} bytes in {:.1} s",
            paced.replies_right,
            paced.replies_asked,
            paced.bytes_received,
            paced.bytes_asked,
            paced.seconds,
        );
        line(text, "paced", &value);
    }
}

/// What it cost, on both sides.
fn costs(text: &mut String, plan: &Plan, report: &Report, unknown: Option<&str>) {
    let share = |cpu_ns: u64| cpu_ns as f64 / 1e7 / report.looked_seconds;
    if let Some(used) = report.client {
        let late = match plan.rate {
            Some(_) => {
                format!(", the latest request {} after it was due", time(report.late_ns_max))
            }
            None => String::new(),
        };
        let cost = per_message(report, used.cpu_ns);
        let value =
            format!("{} CPU a message, {:.0} % of a CPU{late}", cpu(cost), share(used.cpu_ns));
        line(text, "client", &value);
    }
    if let Some(used) = report.server {
        let switches = used.voluntary_switches + used.involuntary_switches;
        let value = format!(
            "{} CPU a message, {:.0} % of a CPU, {} context switches a message",
            cpu(per_message(report, used.cpu_ns)),
            share(used.cpu_ns),
            plain(per_message(report, switches)),
        );
        line(text, "server", &value);
        let value = match system_calls(report) {
            Ok(count) => format!("system calls {} a message", plain(count)),
            Err(why) => format!("system calls not counted ({why})"),
        };
        line(text, "", &value);
    } else {
        line(text, "server", &format!("left out: {}", unknown.unwrap_or(UNREADABLE)));
    }
    if let Some((before, most)) = report.memory {
        let value = format!("{} before, {} at the most", bytes(before), bytes(most));
        line(text, "memory", &value);
    }
    let counted: Vec<String> = counters(report)
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, each)| {
            let name = name.strip_suffix("_per_1000")?.replace('_', " ");
            Some(format!("{name} {:.2}", each.as_f64()?))
        })
        .collect();
    if !counted.is_empty() {
        line(text, "per 1000", &counted.join(", "));
    }
}

/// The send path's counters, for each thousand messages; null if the server could not
/// be asked.
fn counters(report: &Report) -> Value {
    let Some(counted) = &report.counters else { return Value::Null };
    let map: Map<String, Value> = PER_THOUSAND
        .iter()
        .filter_map(|name| {
            let each = per_message(report, *counted.get(*name)?)? * 1000.0;
            Some((format!("{name}_per_1000"), json!(each)))
        })
        .collect();
    Value::Object(map)
}

fn latency(report: &Report) -> Value {
    if report.latencies.is_empty() {
        return Value::Null;
    }
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let mut map: Map<String, Value> = QUANTILES
        .iter()
        .map(|(name, quantile)| {
            let value = report.latencies.value_at_quantile(*quantile);
            ((*name).to_owned(), json!(micros(value)))
        })
        .collect();
    map.insert("max".to_owned(), json!(micros(report.latencies.max())));
    map.insert("mean".to_owned(), json!(report.latencies.mean() / 1e3));
    Value::Object(map)
}

fn per_second(report: &Report) -> f64 {
    if report.seconds > 0.0 { report.replies as f64 / report.seconds } else { 0.0 }
}

/// For each message; why there is no figure, otherwise.
fn system_calls(report: &Report) -> Result<Option<f64>, &str> {
    match &report.system_calls {
        None => Err("not asked for: --system-calls"),
        Some(Ok(count)) => Ok(per_message(report, *count)),
        Some(Err(why)) => Err(why),
    }
}

/// `None` if nothing was answered.
fn per_message(report: &Report, sum: u64) -> Option<f64> {
    (report.answered > 0).then(|| sum as f64 / report.answered as f64)
}

fn plain(count: Option<f64>) -> String {
    count.map_or("-".to_owned(), |count| format!("{count:.3}"))
}

fn cpu(nanos: Option<f64>) -> String {
    nanos.map_or("-".to_owned(), |nanos| time(Duration::from_secs_f64(nanos / 1e9).as_nanos()))
}

/// Three digits or four, and a unit.
fn time(nanos: impl TryInto<u64>) -> String {
    let nanos = nanos.try_into().unwrap_or(u64::MAX);
    match nanos {
        0..10_000 => format!("{nanos} ns"),
        10_000..10_000_000 => format!("{:.1} µs", nanos as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} ms", nanos as f64 / 1e6),
        _ => format!("{:.1} s", nanos as f64 / 1e9),
    }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_a_unit_that_fits() {
        for (nanos, text) in [
            (0, "0 ns"),
            (9_999, "9999 ns"),
            (10_000, "10.0 µs"),
            (12_345_678, "12.3 ms"),
            (u64::from(u32::MAX) * 4, "17.2 s"),
        ] {
            assert_eq!(time(nanos), text);
        }
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(20_480), "20.0 KiB");
        assert_eq!(bytes(300 << 20), "300.0 MiB");
    }
}
