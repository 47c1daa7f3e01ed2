//! A client for publish and subscribe, which speaks to Chappe, to redis-server and to
//! nats-server: what docs/PERFORMANCE.md says of topics is measured by it. One process has all
//! connections: *publishers*, *subscribers*, and a *neighbour* that has nothing to do with topics.
//!
//! A run is a phase of warm-up and one that is measured. Each phase publishes for a while and then
//! waits until every subscriber has had everything, so that what the server has used belongs to
//! the messages of this phase alone. Every message is checked: its frame, its order, and that none
//! is missing. Prints one object of JSON; exit code 1 if anything was wrong.

mod neighbour;
mod protocol;
mod publishers;
mod subscribers;
mod usage;

use clap::Parser;
use hdrhistogram::Histogram;
use neighbour::Neighbour;
use protocol::Protocol;
use publishers::{Publishers, Work};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use subscribers::{Subscribers, Views};
use usage::cpu_ns;

/// Nothing may take longer to arrive.
const DRAIN_MAX: Duration = Duration::from_secs(20);

#[derive(Debug, Parser)]
struct Options {
    /// What the server speaks.
    #[arg(long, value_enum)]
    protocol: Protocol,
    /// Where it listens.
    #[arg(long)]
    to: SocketAddr,
    /// Connections that subscribe, each to one topic.
    #[arg(long, default_value_t = 0)]
    subscribers: usize,
    /// Threads that read for them.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Topics, each with as many subscribers.
    #[arg(long, default_value_t = 1)]
    topics: usize,
    /// Connections that publish: each to its own part of the topics, or to one of few.
    #[arg(long, default_value_t = 1)]
    publishers: usize,
    /// Messages a second, of all publishers; 0: as fast as they are answered.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Messages that a publisher sends in one piece.
    #[arg(long, default_value_t = 1)]
    burst: u64,
    /// Without a rate: messages of a publisher that are not answered yet, at most.
    #[arg(long, default_value_t = 1)]
    window: usize,
    /// Without a rate: published messages that the slowest subscriber has not got yet, at most.
    #[arg(long, default_value_t = u64::MAX)]
    ahead: u64,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(24..))]
    size: u16,
    /// The publishers send pings, and publish nothing.
    #[arg(long)]
    ping: bool,
    /// Another connection, which is answered while nothing is published and while something is.
    #[arg(long)]
    neighbour: bool,
    /// How long is published.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// How long is published before it is measured.
    #[arg(long, default_value_t = 0.2)]
    warmup: f64,
    /// The server's processes.
    #[arg(long)]
    server_pid: Vec<u32>,
}

/// Nanoseconds, on a clock that does not go back.
fn now() -> u64 {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BEGIN.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Of microseconds up to a minute, in three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("these bounds are possible")
}

fn told(times: &Histogram<u64>) -> Value {
    if times.is_empty() {
        return Value::Null;
    }
    let [p50, p99] = [0.5, 0.99].map(|part| times.value_at_quantile(part));
    json!({ "count": times.len(), "p50": p50, "p99": p99, "max": times.max() })
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok((report, wrong)) => {
            println!("{report}");
            let Some(wrong) = wrong else { return ExitCode::SUCCESS };
            eprintln!("topics: {wrong}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("topics: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The report, and what was wrong.
fn run(options: &Options) -> Result<(Value, Option<String>), String> {
    now();
    let io = |error: std::io::Error| error.to_string();
    let names: Vec<String> = (0..options.topics).map(|nth| format!("topic-{nth:04}")).collect();
    let each = options.subscribers / options.topics;
    if each * options.topics != options.subscribers {
        return Err("each topic has as many subscribers".into());
    }
    let views = Views::new(options.threads);
    let subscribers = Subscribers::connect(options, &names)?;
    let mut publishers = Publishers::connect(options, &names, &views).map_err(io)?;
    let neighbour = Neighbour::new();
    std::thread::scope(|scope| {
        let groups = subscribers.split(options.threads);
        let reads: Vec<_> = groups
            .into_iter()
            .zip(views.all())
            .map(|(group, view)| scope.spawn(move || group.run(view)))
            .collect();
        let asks = options.neighbour.then(|| {
            let asking = (options.protocol, options.to, &neighbour);
            scope.spawn(move || asking.2.ask(asking.0, asking.1))
        });
        let measured = measure(options, each as u64, &mut publishers, &views, &neighbour);
        views.end();
        neighbour.end();
        let mut latency = histogram();
        let mut wrong = None;
        for read in reads {
            let (times, first_wrong) = read.join().map_err(|_| "a reader has panicked")?;
            latency.add(times).map_err(|error| error.to_string())?;
            wrong = wrong.or(first_wrong);
        }
        let asked = asks.map(|asks| asks.join().map_err(|_| "the neighbour has panicked"));
        let (mut report, missing) = measured?;
        report["latency_us"] = told(&latency);
        report["answer_us"] = told(publishers.times());
        if let Some(asked) = asked {
            let [quiet, busy] = asked?.map_err(io)?;
            report["neighbour_us"] = json!({ "quiet": told(&quiet), "busy": told(&busy) });
        }
        Ok((report, wrong.or(missing)))
    })
}

/// What a phase has done.
struct Phase {
    work: Work,
    deliveries: u64,
    seconds: f64,
    is_complete: bool,
}

fn measure(
    options: &Options,
    each: u64,
    publishers: &mut Publishers<'_>,
    views: &Views,
    neighbour: &Neighbour,
) -> Result<(Value, Option<String>), String> {
    let mut phase = |seconds: f64| -> Result<Phase, String> {
        let (began, had) = (now(), views.received());
        let time = Duration::from_secs_f64(seconds);
        let work = publishers.work(time).map_err(|error| error.to_string())?;
        let answered = now();
        let expected = had + work.published * each;
        let deadline = Instant::now() + DRAIN_MAX;
        while views.received() < expected && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let received = views.received();
        let ended = views.last().max(answered);
        Ok(Phase {
            work,
            deliveries: received - had,
            seconds: (ended - began) as f64 / 1e9,
            is_complete: received == expected,
        })
    };
    if options.warmup > 0.0 {
        phase(options.warmup)?;
    }
    if options.neighbour {
        neighbour.measure_quiet(Duration::from_secs_f64(options.seconds));
    }
    views.measure();
    let server = || options.server_pid.iter().map(|pid| cpu_ns(*pid)).sum::<u64>();
    let (server_before, own_before) = (server(), cpu_ns(std::process::id()));
    neighbour.measure_busy();
    let done = phase(options.seconds)?;
    neighbour.stop();
    let server_ns = server() - server_before;
    let own_ns = cpu_ns(std::process::id()) - own_before;
    let Phase { work, deliveries, seconds, is_complete } = done;
    let report = json!({
        "published": work.published,
        "answers": work.answers,
        "deliveries": deliveries,
        "seconds": seconds,
        "answers_per_second": work.answers as f64 / work.seconds,
        "deliveries_per_second": deliveries as f64 / seconds,
        "server_cpu_ns": server_ns,
        "server_cpu_share": server_ns as f64 / (seconds * 1e9),
        "client_cpu_share": own_ns as f64 / (seconds * 1e9),
    });
    let missing = (!is_complete).then(|| {
        let expected = work.published * each;
        format!("{deliveries} of {expected} deliveries have come")
    });
    Ok((report, missing))
}
