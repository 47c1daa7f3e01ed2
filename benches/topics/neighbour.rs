//! A connection that has nothing to do with topics: how long it waits for its answers.

use crate::protocol::Protocol;
use crate::{histogram, now};
use hdrhistogram::Histogram;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// Between two of its requests.
const PAUSE: Duration = Duration::from_millis(1);

const WAITS: u8 = 0;
const QUIET: u8 = 1;
const BUSY: u8 = 2;
const OVER: u8 = 3;

/// What it is told to do.
#[derive(Debug)]
pub(crate) struct Neighbour(AtomicU8);

impl Neighbour {
    pub(crate) fn new() -> Self {
        Self(AtomicU8::new(WAITS))
    }

    fn set(&self, what: u8) {
        self.0.store(what, Ordering::Relaxed);
    }

    /// Nobody publishes: for this time.
    pub(crate) fn measure_quiet(&self, time: Duration) {
        self.set(QUIET);
        std::thread::sleep(time);
        self.set(WAITS);
    }

    /// Somebody does.
    pub(crate) fn measure_busy(&self) {
        self.set(BUSY);
    }

    pub(crate) fn stop(&self) {
        self.set(WAITS);
    }

    pub(crate) fn end(&self) {
        self.set(OVER);
    }

    /// Asks until the end: its times, quiet and busy.
    pub(crate) fn ask(
        &self,
        protocol: Protocol,
        to: SocketAddr,
    ) -> io::Result<[Histogram<u64>; 2]> {
        let mut stream = protocol.connect(to)?;
        let mut ping = Vec::new();
        protocol.ping(&mut ping);
        let (mut quiet, mut busy) = (histogram(), histogram());
        let mut input = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let phase = self.0.load(Ordering::Relaxed);
            if phase == OVER {
                return Ok([quiet, busy]);
            }
            let began = now();
            stream.write_all(&ping)?;
            loop {
                let length = protocol.answer(&input).map_err(io::Error::other)?;
                if let Some(length) = length {
                    input.drain(..length);
                    break;
                }
                let received = stream.read(&mut piece)?;
                if received == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                input.extend_from_slice(&piece[..received]);
            }
            let took = ((now() - began) / 1000).max(1);
            match phase {
                QUIET => quiet.saturating_record(took),
                BUSY => busy.saturating_record(took),
                _ => {}
            }
            std::thread::sleep(PAUSE);
        }
    }
}
