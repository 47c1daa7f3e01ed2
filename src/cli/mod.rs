//! What a person types, and what a person gets to see.
//!
//! Arguments as they stand on the command line, text for standard output. It does
//! nothing itself: `boot` acts on the arguments and hands the answers back here to
//! be shown. Runs in the launcher and in commands, never in master or worker.

#[cfg(feature = "bench")]
mod bench;
mod body;
mod codes;
mod connections;
mod counters;
mod first;
mod logs;
mod new;
mod output;
mod send;
mod server;
mod status;
#[cfg(feature = "top")]
mod top;
mod topics;
mod topics_table;

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, StyledStr, TypedValueParser};
use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;

#[cfg(feature = "bench")]
pub(crate) use bench::{BenchArgs, run as bench};
pub(crate) use connections::{ConnectionsArgs, Rows, connection_rows, connections_table};
pub(crate) use logs::{LogsArgs, logs};
pub(crate) use new::{NewArgs, new};
pub(crate) use output::{print, print_line, redrawn};
pub(crate) use send::{SendArgs, chain, run as send};
pub(crate) use server::Destination;
pub(crate) use status::{Zeros, outcome, table};
#[cfg(feature = "top")]
pub(crate) use top::{Key, Sample, Top, keys_of};
pub(crate) use topics::{PublishArgs, SubscribeArgs, publish, subscribe};
pub(crate) use topics_table::{Topics, TopicsArgs, topic_rows, topics_table};

use crate::control::LevelName;
use crate::program::{self, Program};

/// A pre-forked message server.
#[derive(Debug, Parser)]
#[command(disable_version_flag = true, max_term_width = 100)]
#[command(after_help = "Without a command, -t, -T, -s, -v and -V it starts the server.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,

    /// Check the configuration and say so
    #[arg(short = 't')]
    pub(crate) test: bool,

    /// Like -t, and print the configuration in effect, with all defaults
    #[arg(short = 'T')]
    pub(crate) dump: bool,

    /// With -t: say nothing but what is wrong
    #[arg(short = 'q')]
    pub(crate) quiet: bool,

    /// Send a signal to the running master and return at once; the command of the same name
    /// reports the outcome
    #[arg(short = 's', value_name = "SIGNAL")]
    pub(crate) signal: Option<SignalName>,

    /// Print the version
    #[arg(short = 'v', long = "version")]
    pub(crate) version: bool,

    /// Print the version and how it was built
    #[arg(short = 'V')]
    pub(crate) build: bool,

    /// Start without leaving the terminal; logs also go to stderr
    #[arg(long)]
    pub(crate) foreground: bool,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Reads a command line; its first word is how the program was called.
///
/// # Errors
/// What is wrong with it; also the help, which was asked for.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Arguments, clap::Error> {
    let Program { name, about, is_stock, .. } = program::get();
    let mut command =
        Arguments::command().name(name.as_str()).about(about.as_str()).long_about(None::<&str>);
    if !is_stock {
        command = command.mut_subcommand("new", |new| new.hide(true));
    }
    let matches = command.try_get_matches_from_mut(arguments).map_err(with_tip)?;
    if !is_stock && matches.subcommand_name() == Some("new") {
        let text = "unrecognized subcommand 'new'";
        return Err(command.error(clap::error::ErrorKind::InvalidSubcommand, text));
    }
    Arguments::from_arg_matches(&matches)
}

/// For those who know servers that are started by a command.
fn with_tip(mut error: clap::Error) -> clap::Error {
    const STARTS: [&str; 3] = ["start", "run", "serve"];
    let unknown = error.get(ContextKind::InvalidSubcommand);
    if matches!(unknown, Some(ContextValue::String(typed)) if STARTS.contains(&typed.as_str())) {
        let tip = StyledStr::from(format!("`{}` alone starts the server", program::get().name));
        // What only looks alike is no help.
        error.remove(ContextKind::SuggestedSubcommand);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

impl Arguments {
    /// Refuses what would be ignored: one who writes it expects it to count.
    pub(crate) fn checked(self) -> Result<Self, clap::Error> {
        let actions = [
            ("-t", self.test),
            ("-T", self.dump),
            ("-s", self.signal.is_some()),
            ("-v", self.version),
            ("-V", self.build),
            ("--foreground", self.foreground),
            ("a command", self.command.is_some()),
        ];
        let mut named = actions.iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name);
        let text = match (named.next(), named.next()) {
            // -T is a -t that says more, as with nginx.
            (Some(&"-t"), Some(&"-T")) if self.command.is_none() => return Ok(self),
            (Some(first), Some(second)) => format!("{first} and {second} do not go together"),
            _ if self.quiet && !self.test && !self.dump => "-q goes with -t or -T".to_owned(),
            _ => return Ok(self),
        };
        use clap::CommandFactory;
        Err(Self::command().error(clap::error::ErrorKind::ArgumentConflict, text))
    }
}

/// What every call takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// The configuration, under the prefix if it is relative
    #[arg(short = 'c', value_name = "FILE", default_value = "conf/chappe.toml", global = true)]
    pub(crate) config: PathBuf,

    /// What relative paths of the configuration are under; the current directory if not given
    #[arg(short = 'p', value_name = "PREFIX", global = true)]
    pub(crate) prefix: Option<PathBuf>,

    /// Override one key of the configuration; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", global = true)]
    pub(crate) set: Vec<String>,
}

/// The signals that -s knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SignalName {
    /// Stop now
    Stop,
    /// Stop gracefully
    Quit,
    /// Reopen the log files
    Reopen,
    /// Reload the configuration, if it is valid
    Reload,
}

/// Commands that get an answer from the running master.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    New(NewArgs),
    Send(SendArgs),
    Subscribe(SubscribeArgs),
    Publish(PublishArgs),
    Topics(TopicsArgs),
    #[cfg(feature = "bench")]
    Bench(BenchArgs),
    Connections(ConnectionsArgs),
    /// Close a connection, with a goodbye
    Kick {
        /// The connection, as `connections` and the logs name it
        id: u64,
    },
    Logs(LogsArgs),
    /// Change how much is logged, until the next start or change
    LogLevel {
        /// The least important level that is written
        #[arg(value_parser = level_parser())]
        level: LevelName,
    },
    /// Reopen the log files, after something moved them away
    Reopen {
        /// Return only when every process writes to its new file
        #[arg(long)]
        wait: bool,
    },
    Status(StatusArgs),
    /// Show workers, rates, counters and slow connections live; q quits
    #[cfg(feature = "top")]
    Top,
    /// Stop now: workers close their connections and go
    Stop(StopArgs),
    /// Reload the configuration, and wait for the outcome
    Reload,
    /// Stop gracefully: workers answer what they have received first
    Quit(StopArgs),
}

fn level_parser() -> impl TypedValueParser<Value = LevelName> {
    PossibleValuesParser::new(LevelName::names()).try_map(LevelName::try_from)
}

/// Show what runs: workers, semaphores, counters
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct StatusArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Show counters that are 0, too; the JSON object always has them
    #[arg(long)]
    pub(crate) all: bool,
    /// Show it again every second, until interrupted or the master is gone
    #[arg(long)]
    pub(crate) watch: bool,
}

/// What both stops take.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct StopArgs {
    /// Return only when the master is gone, however long that takes: connections that drain
    /// have worker_shutdown_timeout
    #[arg(long)]
    pub(crate) wait: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    /// A comment on a type stands in for the text of a command that has none.
    #[test]
    fn each_command_and_each_argument_says_what_it_does() {
        let mut command = Arguments::command();
        command.build();
        for command in std::iter::once(&command).chain(command.get_subcommands()) {
            let name = command.get_name();
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.contains(['`', '.']), "{name}: {about}");
            assert!(!about.starts_with("What "), "{name}: {about}");
            for argument in command.get_arguments().filter(|_| name != "help") {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!help.is_empty(), "{name} {}", argument.get_id());
            }
        }
    }

    #[test]
    fn common_arguments_stand_before_or_behind_the_command() {
        for line in ["chappe -c a.toml -p /x status", "chappe status -c a.toml -p /x"] {
            let arguments = parse(line).unwrap();
            assert_eq!(arguments.common.config, PathBuf::from("a.toml"));
            assert_eq!(arguments.common.prefix, Some(PathBuf::from("/x")));
        }
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        let checked = |line: &str| parse(line).and_then(Arguments::checked);
        for line in ["chappe", "chappe -t -q", "chappe -t -T", "chappe -T -q", "chappe -s stop"] {
            assert!(checked(line).is_ok(), "{line}");
        }
        for line in [
            "chappe -t -s stop",
            "chappe -t status",
            "chappe -s stop status",
            "chappe --foreground status",
            "chappe -q",
            "chappe -q -s stop",
            "chappe -v -T",
        ] {
            assert_eq!(checked(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn who_types_start_is_told_how_it_starts() {
        let told = |word: &str| {
            let words = ["chappe", word].map(OsString::from);
            super::parse(words).map(|_| ()).unwrap_err().to_string()
        };
        for word in ["start", "run", "serve"] {
            let told = told(word);
            assert!(told.contains(&format!("unrecognized subcommand '{word}'")), "{told}");
            assert!(told.contains("tip: `chappe` alone starts the server"), "{told}");
            assert!(!told.contains("similar"), "{told}");
        }
        assert!(told("statsu").contains("similar"), "a slip is another thing");
    }

    #[test]
    fn set_can_be_repeated_and_its_value_may_hold_anything() {
        let arguments = parse("chappe --set daemon=false --set listen.0.address=[::1]:0").unwrap();
        assert_eq!(arguments.common.set, ["daemon=false", "listen.0.address=[::1]:0"]);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        for line in ["chappe -s dance", "chappe reload now", "chappe -x", "chappe status --yaml"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
