//! `chappe bench`: the load generator's command line, its progress bar, its report.
//!
//! Runs on the command's one thread; the load itself is in [`load`]. Standard
//! output gets the report and nothing else; the bar goes to a terminal only.

mod load;
mod report;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use chappe_client::{BODY_BYTES_MAX, CODE_ECHO, CODE_PING, Code};
use clap::builder::RangedU64ValueParser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::body;
use super::first::FirstArgs;
use super::output::print_error;
use super::send::chain;
use super::server::{Destination, ToArgs, parse_timeout};
use load::{Expect, LoadError, Paced, Plan, Step, Watch};

/// Requests under way on a connection when they fall due by the clock.
const OPEN_PIPELINE: u32 = 1024;

/// Measure a server: load, and every reply checked.
///
/// Without --rate each connection sends its next request when a reply makes room
/// (closed loop); with it requests are due by the clock, and each is timed from the
/// moment it was due. Exit code 0 only if every request was answered correctly.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) to: ToArgs,
    /// Connections that are measured
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: u32,
    /// Requests under way at once on each connection [default: 1; with --rate 1024]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pipeline: Option<u32>,
    /// The body of each request as text
    #[arg(long, value_name = "TEXT", group = "source", conflicts_with = "size")]
    body: Option<String>,
    /// The body of each request out of a file
    #[arg(long, value_name = "FILE", group = "source", conflicts_with = "size")]
    file: Option<PathBuf>,
    #[command(flatten)]
    first: FirstArgs,
    /// Bytes of each request's body, no two of them alike
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = body_bytes())]
    size: usize,
    /// The message code
    #[arg(long, value_name = "N", default_value_t = CODE_ECHO)]
    code: Code,
    /// The code of the replies [default: that of the requests]. Frames of other codes are
    /// counted as unasked: an application has pushed them
    #[arg(long, value_name = "N")]
    reply_code: Option<Code>,
    /// What a right reply is [default: empty for code 0, any for 2 and 3, else echo]
    #[arg(long, value_name = "WHAT")]
    expect: Option<ExpectName>,
    /// Requests a second, over all connections
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: Option<u64>,
    /// Load before the measurement
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_time)]
    warmup: Duration,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_timeout)]
    duration: Duration,
    /// How long to wait for each connection, and for the last replies
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_timeout)]
    timeout: Duration,
    /// Connections that send one ping and then stay idle
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000))]
    idle: u32,
    /// Connections that send and never read; full before the measurement begins
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100_000))]
    slow_readers: u32,
    /// Bytes of the slow readers' bodies
    #[arg(long, value_name = "BYTES", default_value_t = 16_384, value_parser = body_bytes())]
    slow_size: usize,
    /// One more connection that reads this many bytes a second
    #[arg(long, value_name = "BYTES", requires = "paced_bytes", value_parser = RangedU64ValueParser::<usize>::new().range(20..=1_000_000_000))]
    paced_reader: Option<usize>,
    /// How many bytes of echoes it asks for
    #[arg(long, value_name = "BYTES", requires = "paced_reader", value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    paced_bytes: Option<u64>,
    /// A process of the server, for its processor time and memory; can be repeated
    /// [default: those that the control socket reports]
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    server_pid: Vec<i32>,
    /// Have perf(1) count the server's system calls, which costs the server a little
    #[arg(long)]
    system_calls: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// As `Expect`, by the names of the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ExpectName {
    /// The request's body
    Echo,
    /// No body
    Empty,
    /// Any body; order and content can't be checked
    Any,
}

fn body_bytes() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(..=BODY_BYTES_MAX as u64)
}

fn parse_time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// The server's counters by name, if it can be asked.
pub(crate) type Counters<'a> = dyn FnMut() -> Option<BTreeMap<String, u64>> + 'a;

impl BenchArgs {
    fn plan(&self, to: &str, known_pids: &[i32]) -> io::Result<Plan> {
        let body = match (&self.body, &self.file) {
            (Some(text), _) => Some(body::of_text(text)?),
            (None, Some(path)) => Some(body::of_file(path)?),
            (None, None) => None,
        };
        let pipeline = self.pipeline.unwrap_or(if self.rate.is_some() { OPEN_PIPELINE } else { 1 });
        let pids = if self.server_pid.is_empty() { known_pids } else { &self.server_pid };
        let paced = self.paced_reader.zip(self.paced_bytes);
        Ok(Plan {
            to: to.to_owned(),
            connections: self.connections,
            pipeline: pipeline as usize,
            body_bytes: body.as_ref().map_or(self.size, Vec::len),
            body,
            first: self.first.first.clone(),
            code: self.code,
            reply_code: self.reply_code.unwrap_or(self.code),
            expect: self.expectation(),
            rate: self.rate,
            warmup: self.warmup,
            duration: self.duration,
            timeout: self.timeout,
            idle: self.idle,
            slow_readers: self.slow_readers,
            slow_body_bytes: self.slow_size,
            paced: paced.map(|(bytes_per_second, bytes)| Paced { bytes_per_second, bytes }),
            server_pids: pids.to_vec(),
            counts_system_calls: self.system_calls,
        })
    }

    fn expectation(&self) -> Expect {
        match (self.expect, self.code) {
            (Some(ExpectName::Echo), _) => Expect::Echo,
            (Some(ExpectName::Empty), _) | (None, CODE_PING) => Expect::Empty,
            (Some(ExpectName::Any), _) | (None, 2 | 3) => Expect::Any,
            (None, _) => Expect::Echo,
        }
    }
}

/// Runs the command; the exit code is 0 or 1. `known_pids` and `counters` are the
/// server's, if it is one that can be asked; otherwise why not.
pub(crate) fn run(
    args: &BenchArgs,
    to: &Destination,
    known_pids: Result<Vec<i32>, String>,
    counters: &mut Counters<'_>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let (known_pids, unknown) = match known_pids {
        Ok(pids) => (pids, None),
        // With processes named on the command line the control socket is not needed.
        Err(why) => (Vec::new(), Some(why).filter(|_| args.server_pid.is_empty())),
    };
    let plan = match args.plan(&to.address, &known_pids) {
        Ok(plan) => plan,
        Err(error) => {
            print_error(err, &format!("cannot read the body: {error}"));
            return 1;
        }
    };
    let mut screen = Screen { bar: bar(), counters };
    let result = load::run(&plan, &mut screen);
    screen.bar.finish_and_clear();
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            let error = match error {
                LoadError::Connect(error) => LoadError::Connect(to.explain(error)),
                other => other,
            };
            print_error(err, &chain(&error));
            return 1;
        }
    };
    let text = if args.json {
        format!("{}\n", report::json(&plan, &report, unknown.as_deref()))
    } else {
        report::text(&plan, &report, unknown.as_deref())
    };
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    for failure in report::failures(&plan, &report) {
        // For a script that reads only stderr.
        print_error(err, &failure);
    }
    match printed {
        Ok(()) => u8::from(!report.is_clean()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 1,
        Err(error) => {
            print_error(err, &format!("cannot print: {error}"));
            1
        }
    }
}

/// What a person sees while it runs: nothing, unless stderr is a terminal.
struct Screen<'a, 'b> {
    bar: ProgressBar,
    counters: &'a mut Counters<'b>,
}

fn bar() -> ProgressBar {
    let is_seen = io::stderr().is_terminal();
    let target = if is_seen { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{msg:>12} [{bar:40}] {percent:>3}%")
        .expect("a template that indicatif knows")
        .progress_chars("=> ");
    ProgressBar::with_draw_target(Some(1), target).with_style(style)
}

impl Watch for Screen<'_, '_> {
    fn progress(&mut self, step: Step, done: Duration, of: Duration) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.bar.set_message(match step {
            Step::Connecting => "connecting",
            Step::Filling => "filling",
            Step::WarmUp => "warming up",
            Step::Measuring => "measuring",
            Step::Draining => "last replies",
        });
        self.bar.set_length(millis(of).max(1));
        self.bar.set_position(millis(done.min(of)));
    }

    fn counters(&mut self) -> Option<BTreeMap<String, u64>> {
        (self.counters)()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchArgs, clap::Error> {
        Line::try_parse_from(["bench"].into_iter().chain(line.split_whitespace()))
            .map(|line| line.args)
    }

    #[test]
    fn each_number_is_taken_at_its_bounds_and_not_beyond() {
        for (name, least, most) in [
            ("--connections", 1, 100_000),
            ("--pipeline", 1, 65_536),
            ("--size", 0, 65_527),
            ("--code", 0, 65_535),
            ("--rate", 1, 10_000_000),
            ("--idle", 0, 100_000),
            ("--slow-readers", 0, 100_000),
            ("--slow-size", 0, 65_527),
            ("--paced-bytes 1 --paced-reader", 20, 1_000_000_000),
            ("--paced-reader 20 --paced-bytes", 1, 1 << 40),
            ("--server-pid", 1, i64::from(i32::MAX)),
        ] {
            for right in [least, most] {
                assert!(parse(&format!("{name} {right}")).is_ok(), "{name} {right}");
            }
            for wrong in [least - 1, most + 1] {
                let error = parse(&format!("{name}={wrong}")).expect_err("out of range");
                assert_eq!(error.exit_code(), 2, "{name} {wrong}");
            }
        }
    }

    #[test]
    fn times_are_checked() {
        assert_eq!(parse("--warmup 0s").unwrap().warmup, Duration::ZERO);
        for wrong in ["--duration 0s", "--timeout 0s", "--duration soon", "--warmup -1s"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_body_is_given_once() {
        let plan = |line: &str| parse(line).unwrap().plan("x:1", &[]);
        let given = plan("--code 17 --body hello --first 16:user{n}").unwrap();
        assert_eq!((given.body_bytes, given.body.as_deref()), (5, Some(&b"hello"[..])));
        assert_eq!(given.first, Some("16:user{n}".parse().unwrap()));
        let error = plan("--file /nowhere/body").unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/body: "), "{error}");
        for wrong in ["--body x --size 1", "--file x --size 1", "--body x --file y", "--first x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pace_needs_an_amount() {
        assert!(parse("--paced-reader 10000").is_err());
        assert!(parse("--paced-bytes 10000").is_err());
        let paced = parse("--paced-reader 10 --paced-bytes 2000000");
        assert!(paced.is_err(), "too slow to read 20 times a second");
        assert!(parse("stray").is_err());
    }

    #[test]
    fn what_is_not_said_follows_from_what_is() {
        let plan = |line: &str| parse(line).unwrap().plan("x:1", &[7]).unwrap();
        assert_eq!((plan("").pipeline, plan("--rate 5").pipeline), (1, 1024));
        assert_eq!(plan("--rate 5 --pipeline 3").pipeline, 3);
        assert_eq!(plan("").to, "x:1");
        assert_eq!(plan("").expect, Expect::Echo);
        assert_eq!(plan("--code 0").expect, Expect::Empty);
        assert_eq!(plan("--code 2").expect, Expect::Any);
        assert_eq!(plan("--code 16").expect, Expect::Echo);
        assert_eq!(plan("--code 16 --expect any").expect, Expect::Any);
        assert_eq!(plan("--code 16").reply_code, 16);
        assert_eq!(plan("--code 16 --reply-code 17").reply_code, 17);
        assert_eq!(plan("").server_pids, [7]);
        assert_eq!(plan("--server-pid 1 --server-pid 2").server_pids, [1, 2]);
    }
}
