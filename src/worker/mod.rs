//! One worker process: wires the event loop, the handler threads and the send
//! thread, and decides between turns of the loop what signals and the master
//! ask for.
//!
//! Runs in a process that was just forked and has one thread; the other threads
//! are started here, with all signals blocked, so that signals reach the event
//! loop's thread only. Never returns before it is told to stop, drained, or
//! broken.

mod orders;
mod placement;
mod signals;
mod threads;

use crate::channel::{self, Message, ReceivedParcel};
use crate::config::{self, Config};
use crate::dispatch::{DispatchPath, InboxLimits};
use crate::handler::{Application, Handlers, Serve, WorkerInfo};
use crate::listen::Listener;
use crate::logging;
use crate::net::{Acceptor, EventLoop, Settings, SocketOptions, Watched};
use crate::send::{CallList, Entry, SendLimits, SendList, SendPath, SlowReader};
use chappe_shm::{Counter, Slot};
use chappe_sys::limits;
use chappe_sys::process::ExitReason;
use chappe_sys::signals::{self as sys_signals, Signals};
use chappe_wire::{Goodbye, goodbye_frame};
use placement::{Place, Placement};
use signals::{Asked, asked_by};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use threads::Threads;

/// What a peer is told whose backlog was given up.
const TOO_SLOW: &str = "more was queued than may be, and you read too slowly";

/// How often an ending worker looks whether its threads are gone.
const ENDING_POLL: Duration = Duration::from_millis(10);

const SIGNALS: Watched = Watched(0);
const CHANNEL: Watched = Watched(1);

/// What the master hands to a worker.
#[derive(Debug)]
pub(crate) struct Start {
    /// 0 and up.
    pub(crate) number: u16,
    /// Counts reloads, from 1.
    pub(crate) generation: u64,
    /// The worker's place in the zone.
    pub(crate) slot: Slot,
    /// The worker's end of the channel to the master.
    pub(crate) channel: channel::WorkerEnd,
    /// Bound and listening, shared by all workers.
    pub(crate) listeners: Vec<Listener>,
    /// Checked.
    pub(crate) config: Arc<Config>,
    /// Of the application.
    pub(crate) handlers: Handlers,
}

/// Runs a worker to its end.
pub(crate) fn run(start: Start) -> ExitReason {
    chappe_sys::crash::begin_worker();
    let number = start.number;
    let mut worker = match Worker::boot(start) {
        Ok(worker) => worker,
        Err(error) => {
            log::error!("worker {number} cannot boot: {error}");
            return ExitReason::CannotBoot;
        }
    };
    match worker.run() {
        Ok(()) => ExitReason::Stopped,
        Err(error) => {
            log::error!("worker {number} failed: {error}");
            ExitReason::Failed
        }
    }
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Ready, and does not accept yet.
    Waiting,
    Serving,
    /// Until all connections are gone, or this time has come.
    Draining(Instant),
    /// No connection is left: until the threads are gone, or this time has come.
    Ending(Instant),
}

struct Worker {
    number: u16,
    slot: Slot,
    channel: channel::WorkerEnd,
    signals: Signals,
    event_loop: EventLoop,
    threads: Threads,
    stage: Stage,
    shutdown_timeout: Duration,
    drain_spread: Duration,
    /// Log lines lost so far, as counted.
    lines_lost: u64,
}

impl Worker {
    fn boot(start: Start) -> io::Result<Self> {
        let Start { number, generation, slot, channel, listeners, config, handlers } = start;
        // Signals are blocked since before the fork; the threads started below
        // inherit that.
        let signals = Signals::new(&signals::taken())?;
        let limits = InboxLimits {
            messages_max: config.inbox.max_messages,
            bytes_max: config.inbox.max_bytes,
        };
        let placement = Placement::new(&config, number);
        let dispatch =
            Arc::new(DispatchPath::new(limits, config.inbox.total_max_bytes, placement.wake()));
        let list = SendList::new(slot.send_semaphore().into());
        let send = Arc::new(SendPath::new(
            list,
            CallList::new()?,
            send_limits(&config),
            Entry { bytes: goodbye_frame(Goodbye::TooSlow, TOO_SLOW), frames: 1 },
            slot.shared_counters(),
        ));
        let listeners = listeners
            .into_iter()
            .map(|listener| {
                let options = socket_options(&listener, &config);
                (acceptor(listener), options)
            })
            .collect();
        let worker = WorkerInfo { number, pid: nix::unistd::getpid().as_raw(), generation };
        let application = Arc::new(Application::new(handlers, worker));
        let event_loop = EventLoop::new(
            settings(&config),
            listeners,
            Arc::clone(&dispatch),
            Arc::clone(&send),
            Arc::clone(&application) as Arc<dyn Serve>,
            slot.clone(),
        )?;
        event_loop.watch(signals.as_fd(), SIGNALS)?;
        event_loop.watch(channel.as_fd(), CHANNEL)?;
        let count = config.worker.handler_threads;
        let threads = Threads::start(count, &application, &dispatch, &send, &slot, placement)?;
        // After the others, which would inherit it.
        placement.settle(Place::Home);
        sys_signals::unblock()?;
        slot.mark_ready();
        channel.send(Message::Ready)?;
        log::info!("worker ready worker={number} generation={generation}");
        Ok(Self {
            number,
            slot,
            channel,
            signals,
            event_loop,
            threads,
            stage: Stage::Waiting,
            shutdown_timeout: config.worker_shutdown_timeout,
            // Whoever is told last shall still have time to finish.
            drain_spread: config.worker_drain_spread.min(config.worker_shutdown_timeout / 2),
            lines_lost: 0,
        })
    }

    /// The only loop, with the only sleep, of the worker's main thread.
    fn run(&mut self) -> io::Result<()> {
        let mut woken = Vec::new();
        loop {
            let until = match self.stage {
                Stage::Waiting | Stage::Serving => None,
                Stage::Draining(until) => Some(until),
                // A thread's end is no event; a handler that blocks is rare.
                Stage::Ending(until) => Some(until.min(Instant::now() + ENDING_POLL)),
            };
            self.event_loop.turn(until, &mut woken)?;
            let lost = logging::lines_lost();
            self.event_loop.count(Counter::LogLinesLost, lost - self.lines_lost);
            self.lines_lost = lost;
            for watched in woken.drain(..) {
                let stops = match watched {
                    SIGNALS => self.hear_signals(),
                    _ => self.hear_master()?,
                };
                if stops {
                    log::info!("worker stops connections={}", self.event_loop.connections());
                    self.event_loop.close_all();
                    return Ok(());
                }
            }
            self.hand_over_lists();
            if self.has_ended() {
                return Ok(());
            }
        }
    }

    /// Goes on with the end of a drain. True when the worker may leave: what its
    /// threads still do ends with the process.
    fn has_ended(&mut self) -> bool {
        if let Stage::Draining(until) = self.stage
            && self.event_loop.is_empty()
        {
            self.threads.stop();
            self.stage = Stage::Ending(until);
        }
        let (Stage::Draining(until) | Stage::Ending(until)) = self.stage else { return false };
        if matches!(self.stage, Stage::Ending(_)) && self.threads.are_gone() {
            log::info!("worker drained");
            return true;
        }
        let is_late = Instant::now() >= until;
        if is_late {
            let left = self.event_loop.connections();
            log::warn!("worker_shutdown_timeout is over, cutting connections={left}");
            self.event_loop.count(Counter::ConnectionsCut, left as u64);
            self.event_loop.close_all();
        }
        is_late
    }

    /// True if the worker is to stop at once.
    fn hear_signals(&mut self) -> bool {
        for signal in self.signals.pending() {
            match asked_by(signal) {
                Asked::Terminate => return true,
                Asked::Drain => self.start_drain("SIGQUIT", Goodbye::Stopping),
                Asked::ReopenLogs => self.say(Message::AskReopen, 0, None),
                Asked::Nothing => {}
            }
        }
        false
    }

    /// True if the worker is to stop at once.
    fn hear_master(&mut self) -> io::Result<bool> {
        while let Some(received) = self.channel.try_receive_parcel()? {
            match received {
                ReceivedParcel::Parcel(parcel) => match parcel.message {
                    Message::Serve => self.serve()?,
                    Message::Drain => self.start_drain("the master", Goodbye::Stopping),
                    Message::DrainForReload => {
                        self.start_drain("a reload", Goodbye::Reloading);
                    }
                    Message::Terminate => return Ok(true),
                    _ => self.carry_out(parcel),
                },
                ReceivedParcel::Closed => {
                    // Readable for ever from now on.
                    self.event_loop.unwatch(self.channel.as_fd())?;
                    log::warn!("the master is gone, draining");
                    self.start_drain("the master's death", Goodbye::Stopping);
                    break;
                }
            }
        }
        Ok(false)
    }

    fn serve(&mut self) -> io::Result<()> {
        if self.stage == Stage::Waiting {
            self.event_loop.serve()?;
            self.slot.mark_serving();
            self.stage = Stage::Serving;
            log::info!("worker serves");
        }
        Ok(())
    }

    fn start_drain(&mut self, by: &str, reason: Goodbye) {
        if matches!(self.stage, Stage::Draining(_) | Stage::Ending(_)) {
            return;
        }
        log::info!("worker drains, asked by {by} connections={}", self.event_loop.connections());
        self.stage = Stage::Draining(Instant::now() + self.shutdown_timeout);
        self.slot.mark_draining();
        chappe_sys::set_title(&format!("chappe: worker process {} (draining)", self.number));
        let spread = if reason == Goodbye::Reloading { self.drain_spread } else { Duration::ZERO };
        self.event_loop.start_drain(reason, spread);
    }
}

fn acceptor(listener: Listener) -> Acceptor {
    match listener.local {
        config::Address::Tcp(_) => Acceptor::Tcp(listener.socket.into()),
        config::Address::Unix(_) => Acceptor::Unix(listener.socket.into()),
    }
}

fn socket_options(listener: &Listener, config: &Config) -> SocketOptions {
    let options = &listener.options;
    let is_unix = matches!(listener.local, config::Address::Unix(_));
    SocketOptions {
        // There is no reuseport for paths.
        shared: is_unix || options.accept == config::Accept::Shared,
        keepalive: options.keepalive,
        receive_buffer: options.receive_buffer,
        send_buffer: options.send_buffer,
        notsent_lowat: config.send.notsent_lowat,
    }
}

fn send_limits(config: &Config) -> SendLimits {
    let config::Send { outbox_max_bytes, outbox_total_max_bytes, slow_reader, .. } = config.send;
    let slow_reader = match slow_reader {
        config::SlowReader::Close => SlowReader::Close,
        config::SlowReader::DropNewest => SlowReader::DropNewest,
    };
    SendLimits { bytes_max: outbox_max_bytes, total_bytes_max: outbox_total_max_bytes, slow_reader }
}

fn settings(config: &Config) -> Settings {
    let config::Timeouts { idle, frame, handshake, linger, .. } = config.timeouts;
    Settings {
        connections_max: connections_max(config),
        frame_bytes_max: config.frame.max_bytes,
        idle,
        frame,
        handshake,
        linger,
        outbox_age_max: config.send.outbox_max_age,
        fuse: config.worker.fuse,
        messages_per_second: config.limits.messages_per_second,
        messages_burst: config.limits.messages_burst,
        bytes_per_second: config.limits.bytes_per_second,
        connections_per_ip: config.limits.connections_per_ip,
    }
}

/// The master has told the operator if it is less than what is configured.
fn connections_max(config: &Config) -> usize {
    let descriptors = limits::descriptors().unwrap_or(u64::MAX);
    config.effective_worker_connections(descriptors) as usize
}
