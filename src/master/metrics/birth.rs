//! What the metrics process is born with, and what it does until it serves: as a worker's
//! `Birth`, with less.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use chappe_shm::Zone;
use chappe_sys::privileges::{self, Identity};
use chappe_sys::process::{self, ExitReason, Forked};

use crate::channel::{Channel, MasterEnd};
use crate::config::LogLevel;
use crate::listen::Bound;
use crate::logging::{self, Copies};
use crate::metrics::{self, Facts};

/// What it gets of the master.
#[derive(Debug)]
pub(in crate::master) struct Outfit {
    pub(in crate::master) zone: Arc<Zone>,
    /// When the master was.
    pub(in crate::master) started: Instant,
    /// Where log lines go besides their files.
    pub(in crate::master) copies: Copies,
    /// Whom it becomes; `None`: it stays who the master is.
    pub(in crate::master) identity: Option<Identity>,
}

/// Made before the fork; it moves into the new process.
#[derive(Debug)]
pub(super) struct Birth {
    start: metrics::Start,
    copies: Copies,
    identity: Option<Identity>,
}

impl Birth {
    /// With the master's end of its channel. `endpoint` stays the master's.
    pub(super) fn new(outfit: Outfit, endpoint: &Bound) -> io::Result<(Self, MasterEnd)> {
        let Outfit { zone, started, copies, identity } = outfit;
        let (master_end, channel) = Channel::pair()?;
        let listener = endpoint.listeners_of(0, 1)?.pop().ok_or(io::ErrorKind::NotFound)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started_at = now.saturating_sub(started.elapsed());
        let facts = Facts {
            version: env!("CARGO_PKG_VERSION"),
            started_at_ms: u64::try_from(started_at.as_millis()).unwrap_or(u64::MAX),
        };
        let listener = TcpListener::from(listener.socket);
        let start = metrics::Start { zone, channel, listener, facts };
        Ok((Self { start, copies, identity }, master_end))
    }

    /// In the new process.
    pub(super) fn begin(self, forked: &Forked) -> ExitReason {
        self.settle_in(forked).map_or(ExitReason::CannotBoot, metrics::run)
    }

    /// In the order of a worker. It has no log: the file of the
    /// master's is not its own, and the master logs its start and end.
    fn settle_in(self, forked: &Forked) -> io::Result<metrics::Start> {
        let Self { start, copies, identity } = self;
        logging::set_level(LogLevel::Off).map_err(io::Error::other)?;
        start.zone.close_descriptor();
        let streams = (io::stdin(), io::stdout(), io::stderr());
        let keep = [
            streams.0.as_fd(),
            streams.1.as_fd(),
            streams.2.as_fd(),
            start.channel.as_fd(),
            start.listener.as_fd(),
        ];
        process::close_all_except(forked, &keep)?;
        process::redirect_stdin_stdout_to_null()?;
        if copies == Copies::None {
            process::redirect_stderr_to_null()?;
        }
        crate::program::set_title("metrics process");
        if let Some(identity) = identity {
            identity.assume(forked)?;
        }
        privileges::give_up_new_privileges(forked)?;
        start.zone.forbid_writes(forked)?;
        Ok(start)
    }
}
