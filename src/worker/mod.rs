//! One worker process: connects the event loop, the handler threads and the send
//! thread, and between turns of the loop carries out what signals and the master
//! ask for.
//!
//! Runs in a process that was just forked and has one thread; the other threads
//! are started here, with all signals blocked, so that signals reach the event
//! loop's thread only. Returns when the worker has stopped, drained or failed.

mod orders;
mod signals;
mod threads;

use crate::channel::{self, Message, ReceivedParcel};
use crate::config::{self, Config};
use crate::handler::{Born, Definition, Running};
use crate::listen::Listener;
use crate::logging;
use crate::net::{EventLoop, ListenSocket, Settings, SocketOptions, Watched};
use crate::program;
use crate::protocol;
use crate::topics::{Joined, Topics};
use chappe_engine::{Engine, Goodbye, Hooks, Limits, SlowReader};
use chappe_shm::{Counter, Orders, Slot, Stage};
use chappe_sys::clock::Moment;
use chappe_sys::limits;
use chappe_sys::process::ExitReason;
use chappe_sys::signals::{self as sys_signals, Signals};
use signals::{Action, action_of};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use threads::Threads;

/// How often an ending worker checks whether its threads have ended.
const ENDING_POLL: Duration = Duration::from_millis(10);

const SIGNALS: Watched = Watched(0);
const CHANNEL: Watched = Watched(1);

/// What a worker gets from the master at its start.
pub(crate) struct Start<'a> {
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
    /// Checked already.
    pub(crate) config: Arc<Config>,
    /// Its part of the topics, if there is a hub.
    pub(crate) topics: Option<Joined>,
    /// The application.
    pub(crate) definition: &'a dyn Definition,
}

/// Runs a worker to its end.
pub(crate) fn run(start: Start<'_>) -> ExitReason {
    chappe_sys::crash::begin_worker();
    let number = start.number;
    let mut worker = match Worker::boot(start) {
        Ok(worker) => worker,
        Err(error) => {
            log::error!(target: "worker.boot_failed", "worker {number} cannot boot: {error}");
            return ExitReason::CannotBoot;
        }
    };
    let ended = worker.run();
    if let Some(topics) = &worker.topics {
        topics.leave();
    }
    match ended {
        Ok(()) => ExitReason::Stopped,
        Err(error) => {
            log::error!(target: "worker.failed", "worker {number} failed: {error}");
            ExitReason::Failed
        }
    }
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Ready, and does not accept yet.
    Waiting,
    /// Accepts connections.
    Serving,
    /// Accepts no more. Goes on until all connections are closed, at most until then.
    Draining(Moment),
    /// No connection is left. Goes on until the threads have ended, at most until then.
    Ending(Moment),
}

struct Worker {
    number: u16,
    slot: Slot,
    channel: channel::WorkerEnd,
    signals: Signals,
    event_loop: EventLoop,
    threads: Threads,
    application: Arc<dyn Running>,
    life: Life,
    shutdown_timeout: Duration,
    drain_spread: Duration,
    topics: Option<Arc<Topics>>,
    /// The log level that the master has last ordered.
    log_level: Option<u8>,
    /// Lost log lines that are counted already.
    lines_lost: u64,
}

impl Worker {
    fn boot(start: Start<'_>) -> io::Result<Self> {
        let Start { number, generation, slot, channel, listeners, config, topics, definition } =
            start;
        // Signals are blocked since before the fork; the threads started below
        // inherit that.
        let signals = Signals::new(&signals::taken())?;
        chappe_sys::memory::keep_for_reuse();
        let engine = Arc::new(Engine::new(
            &limits_of(&config),
            slot.send_semaphore().into(),
            protocol::of_listeners(&config),
            slot.shared_counters(),
        )?);
        let with_options = |listener: Listener| {
            let options = socket_options(&listener, &config);
            (listen_socket(listener), options)
        };
        let listeners = listeners.into_iter().map(with_options).collect();
        let join = |joined| Topics::new(joined, &config, &engine, slot.shared_counters());
        let (topics, speaker) = topics.map(join).transpose()?.unzip();
        let of_worker = topics.clone();
        let born = Born {
            number,
            generation,
            config: &config,
            counters: slot.shared_counters(),
            figures: match config.worker.fuse {
                true => slot.app_figures(),
                false => slot.app_figures().without_loop(),
            },
            engine: &engine,
            topics,
        };
        let application = definition.start(born).map_err(io::Error::other)?;
        let event_loop = EventLoop::new(
            settings(&config, application.hooks()),
            listeners,
            Arc::clone(&engine),
            Arc::clone(&application).serve(),
            slot.clone(),
        )?;
        event_loop.watch(signals.as_fd(), SIGNALS)?;
        event_loop.watch(channel.as_fd(), CHANNEL)?;
        threads::log_start("event-loop");
        let count = config.worker.handler_threads;
        let serve = Arc::clone(&application).serve();
        let threads = Threads::start(count, &serve, &engine, &slot, speaker)?;
        sys_signals::unblock()?;
        // Counted first: a process that has seen the post finds it counted.
        event_loop.count(Counter::WorkerReadyPosts, 1);
        slot.mark_ready();
        channel.send(Message::Ready)?;
        log::info!(target: "worker.ready", "worker ready worker={number} generation={generation}");
        Ok(Self {
            number,
            slot,
            channel,
            signals,
            event_loop,
            threads,
            application,
            life: Life::Waiting,
            shutdown_timeout: config.worker_shutdown_timeout,
            // Connections that get their goodbye last must still have time to finish.
            drain_spread: config.worker_drain_spread.min(config.worker_shutdown_timeout / 2),
            topics: of_worker,
            log_level: None,
            lines_lost: 0,
        })
    }

    /// The only loop, with the only sleep, of the worker's main thread.
    fn run(&mut self) -> io::Result<()> {
        let mut woken = Vec::new();
        loop {
            let until = match self.life {
                Life::Waiting | Life::Serving => None,
                Life::Draining(until) => Some(until),
                // The end of a thread does not wake the loop. Waiting for one is rare.
                Life::Ending(until) => Some(until.min(Moment::now() + ENDING_POLL)),
            };
            let timer = self.application.next_timer();
            self.event_loop.turn(until.into_iter().chain(timer).min(), &mut woken)?;
            if timer.is_some_and(|at| Moment::now() >= at) {
                Arc::clone(&self.application).run_timers();
            }
            let lost = logging::lines_lost();
            self.event_loop.count(Counter::LogLinesLost, lost - self.lines_lost);
            self.lines_lost = lost;
            for watched in woken.drain(..) {
                let stops = match watched {
                    SIGNALS => self.on_signals(),
                    _ => {
                        self.on_master_messages()?;
                        false
                    }
                };
                if stops {
                    let connections = self.event_loop.connections();
                    log::info!(target: "worker.stops", "worker stops connections={connections}");
                    if matches!(self.life, Life::Draining(_)) {
                        // A drain that is cut short, for the next reload or by an operator.
                        self.event_loop.count(Counter::ConnectionsCut, connections as u64);
                    }
                    // First: no hook of a connection that is closed now is to run.
                    self.threads.stop();
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

    /// Continues the end of a drain. Returns true when the worker may exit: what its
    /// threads still do ends with the process.
    fn has_ended(&mut self) -> bool {
        if let Life::Draining(until) = self.life
            && self.event_loop.is_empty()
            && self.application.has_stopped()
        {
            self.threads.stop();
            self.life = Life::Ending(until);
        }
        let (Life::Draining(until) | Life::Ending(until)) = self.life else { return false };
        if matches!(self.life, Life::Ending(_)) && self.threads.are_gone() {
            log::info!(target: "worker.drained", "worker drained");
            return true;
        }
        let is_late = Moment::now() >= until;
        if is_late {
            let left = self.event_loop.connections();
            log::warn!(target: "worker.cut", "worker_shutdown_timeout is over, cutting connections={left}");
            self.event_loop.count(Counter::ConnectionsCut, left as u64);
            self.threads.stop();
            self.event_loop.close_all();
        }
        is_late
    }

    /// Acts on pending signals. Returns true if the worker has to stop at once.
    fn on_signals(&mut self) -> bool {
        for signal in self.signals.pending() {
            match action_of(signal) {
                Action::Terminate => return true,
                Action::Drain => self.start_drain("SIGQUIT", Goodbye::Stopping),
                Action::ReopenLogs => self.send_to_master(Message::AskReopen, 0, None),
                Action::Nothing => {}
            }
        }
        false
    }

    /// Acts on the master's messages, and then on its orders in the slot: whatever message
    /// has come, the channel may have been too full for the one that rings.
    fn on_master_messages(&mut self) -> io::Result<()> {
        while let Some(received) = self.channel.try_receive_parcel()? {
            match received {
                ReceivedParcel::Parcel(parcel) => self.carry_out(parcel),
                ReceivedParcel::Nonsense => {
                    log::warn!(target: "master.nonsense", "received an invalid message from the master");
                }
                ReceivedParcel::Closed => {
                    // It stays readable from now on.
                    self.event_loop.unwatch(self.channel.as_fd())?;
                    log::warn!(target: "master.gone", "the master is gone, draining");
                    self.start_drain("the master's death", Goodbye::Stopping);
                    break;
                }
            }
        }
        self.follow_orders()
    }

    fn follow_orders(&mut self) -> io::Result<()> {
        let Orders { stage, log_level } = self.slot.orders();
        if let Some(place) = log_level
            && self.log_level.replace(place) != Some(place)
        {
            logging::follow_level(place.into());
        }
        match stage {
            Stage::Wait => {}
            Stage::Serve => self.serve()?,
            Stage::Drain => self.start_drain("the master", Goodbye::Stopping),
            Stage::DrainForReload => self.start_drain("a reload", Goodbye::Reloading),
        }
        Ok(())
    }

    fn serve(&mut self) -> io::Result<()> {
        if self.life == Life::Waiting {
            self.event_loop.serve()?;
            self.slot.mark_serving();
            self.application.serving();
            self.life = Life::Serving;
            log::info!(target: "worker.serves", "worker serves");
        }
        Ok(())
    }

    fn start_drain(&mut self, by: &str, reason: Goodbye) {
        if matches!(self.life, Life::Draining(_) | Life::Ending(_)) {
            return;
        }
        log::info!(target: "worker.drains", "worker drains, asked by {by} connections={}", self.event_loop.connections());
        self.life = Life::Draining(Moment::now() + self.shutdown_timeout);
        program::set_title(&format!("worker process {} (draining)", self.number));
        let spread = if reason == Goodbye::Reloading { self.drain_spread } else { Duration::ZERO };
        self.event_loop.start_drain(reason, spread);
        // Only now that the listening sockets are closed: a reload may wait for an address.
        self.slot.mark_draining();
        Arc::clone(&self.application).stopping();
    }
}

fn listen_socket(listener: Listener) -> ListenSocket {
    match listener.local {
        config::Address::Tcp(_) => ListenSocket::Tcp(listener.socket.into()),
        config::Address::Unix(_) => ListenSocket::Unix(listener.socket.into()),
    }
}

fn socket_options(listener: &Listener, config: &Config) -> SocketOptions {
    let options = &listener.options;
    let is_unix = matches!(listener.local, config::Address::Unix(_));
    SocketOptions {
        listener: place_of(options, config),
        // Paths have no SO_REUSEPORT.
        shared: is_unix || options.accept == config::Accept::Shared,
        keepalive: options.keepalive,
        receive_buffer: options.receive_buffer,
        send_buffer: options.send_buffer,
        notsent_lowat: config.send.notsent_lowat,
    }
}

/// The place of a listener in the configuration, of which each has one: there are 64 at most.
fn place_of(options: &config::Listen, config: &Config) -> u8 {
    let place = config.listen.iter().position(|listen| listen == options);
    place.and_then(|place| u8::try_from(place).ok()).unwrap_or(0)
}

fn limits_of(config: &Config) -> Limits {
    let Config { worker, inbox, send, .. } = config;
    Limits {
        inbox_messages_max: inbox.max_messages,
        inbox_bytes_max: inbox.max_bytes,
        inbox_total_bytes_max: inbox.total_max_bytes,
        outbox_bytes_max: send.outbox_max_bytes,
        outbox_total_bytes_max: send.outbox_total_max_bytes,
        slow_reader: match send.slow_reader {
            config::SlowReader::Close => SlowReader::Close,
            config::SlowReader::DropNewest => SlowReader::DropNewest,
        },
        deferred_max: worker.deferred_max as usize,
    }
}

fn settings(config: &Config, hooks: Hooks) -> Settings {
    let config::Timeouts { idle, frame, handshake, deferred, linger } = config.timeouts;
    Settings {
        connections_max: connections_max(config),
        frame_bytes_max: config.frame.max_bytes,
        idle,
        frame,
        handshake,
        deferred,
        linger,
        outbox_age_max: config.send.outbox_max_age,
        fuse: config.worker.fuse,
        hooks,
        messages_per_second: config.limits.messages_per_second,
        messages_burst: config.limits.messages_burst,
        bytes_per_second: config.limits.bytes_per_second,
        connections_per_ip: config.limits.connections_per_ip,
    }
}

/// Connections that the worker takes at most. If descriptors allow fewer than are
/// configured, the master has warned of it.
fn connections_max(config: &Config) -> usize {
    let descriptors = limits::descriptors().unwrap_or(u64::MAX);
    config.effective_worker_connections(descriptors) as usize
}
