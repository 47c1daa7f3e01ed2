//! The master: forks workers, watches them, replaces them, stops them.
//!
//! One thread for its whole life, and one place where it sleeps: `Master::sleep`,
//! a poll over its signals, the channels of its workers and the control socket,
//! until the next deadline. It never touches a client's connection and names nothing of what
//! workers do: that is a function it is handed.
//!
//! ```text
//! sleep → signals (reap first) → channels → control socket → deadlines → plan → sleep
//!
//! Supervisor   workers, their places, the shared memory        Deadlines   one queue
//! Generations  who serves, who is to, plan, history            Metrics     its process
//! Desk         control socket, clients, orders to workers      Manager     systemd
//! Logs         files, rotation, level
//! ```
//!
//! Each of them owns its state and reaches into no other: the loop (`turn`) hands events
//! down and gets back the outcomes. What concerns several of them is read from top to
//! bottom in one file: a start in `start`, a reload in `reload`, a stop in `stop`, a worker's
//! end in `supervisor::reap`.

mod assignment;
mod control;
mod deadlines;
mod desk;
mod generations;
mod hub;
mod logs;
mod manager;
mod metrics;
mod owners;
mod pid_file;
mod plan;
mod reload;
mod resize;
mod sleep;
mod start;
mod state;
mod status;
mod stop;
mod stopping;
mod supervisor;
mod turn;

use std::io;

use chappe_sys::process::ExitReason;

pub use assignment::Assignment;
pub(crate) use control::ControlSocket;
pub(crate) use metrics::bind as bind_metrics;
pub(crate) use owners::{Setup, Site, StartError};
pub(crate) use pid_file::{PidFile, PidFileError};

use crate::config::Address;
use owners::Master;

/// Runs the master until it was told to stop and every worker is gone. `on_ready`
/// is called once, when every worker accepts; an error stops the server again.
///
/// # Errors
/// [`StartError`] when the first workers did not come up; never later.
pub(crate) fn run(
    setup: Setup,
    control: ControlSocket,
    site: Site<'_>,
    run_worker: &dyn Fn(Assignment) -> ExitReason,
    on_ready: impl FnOnce(&[Address]) -> io::Result<()>,
) -> Result<(), StartError> {
    let mut master = Master::new(setup, control, site, run_worker)?;
    let result = master.start(on_ready).and_then(|is_up| {
        master.supervise();
        if is_up { Ok(()) } else { Err(StartError::Interrupted) }
    });
    if let Err(error) = &result {
        log::error!(target: "start.failed", "start failed: {error}");
        master.supervisor.kill_and_reap_all();
    }
    master.metrics.end();
    if let Some(hub) = master.supervisor.hub_mut() {
        hub.end();
    }
    master.desk.close();
    log::info!(target: "master.stopped", "master stopped");
    result
}
