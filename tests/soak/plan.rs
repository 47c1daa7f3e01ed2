//! What a client is going to do: drawn by lot, kind by kind.

use std::net::IpAddr;
use std::time::Duration;

use crate::random::Random;

/// Kinds of clients, each with something that a server can get wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sends as much as the socket takes and reads at once.
    Fast,
    /// Sends as fast, and reads 10 to 100 KB a second.
    Slow,
    /// Reads nothing for some seconds: less than a slow peer is closed after, or more.
    Never,
    /// Resets its connection in the middle of whatever it does.
    Reset,
    /// Sends all, shuts down its sending side, and only then begins to read.
    HalfClose,
    /// Writes a byte or a few at a time.
    Bytes,
    /// Frames up to the longest there are.
    Large,
    /// A few questions, one at a time with pauses, and gone.
    Visit,
    /// A wrong checksum among right ones: an error and the end, but not before.
    Junk,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Fast,
        Self::Slow,
        Self::Never,
        Self::Reset,
        Self::HalfClose,
        Self::Bytes,
        Self::Large,
        Self::Visit,
        Self::Junk,
    ];
}

/// How a client reads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reading {
    Fast,
    /// Bytes a second.
    Slow(u32),
    /// Nothing for this time, then fast.
    After(Duration),
    /// Nothing until all is sent, then fast.
    WhenSent,
}

/// One connection from its begin to its end.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    /// The address it comes from, if it is not to be the kernel's choice.
    pub(crate) source: Option<IpAddr>,
    pub(crate) frames: u32,
    /// The longest body.
    pub(crate) body_bytes: usize,
    /// The most that one write(2) takes, and the longest pause after it.
    pub(crate) write_bytes: usize,
    pub(crate) write_pause_ms: u64,
    /// How many questions may be open at a time.
    pub(crate) window: usize,
    pub(crate) reading: Reading,
    /// SO_RCVBUF and SO_SNDBUF.
    pub(crate) buffer: Option<usize>,
    /// When it resets the connection.
    pub(crate) reset_after: Option<Duration>,
    /// Asks nothing more after a goodbye; otherwise it sends all that it was going to.
    pub(crate) heeds_goodbye: bool,
    /// Which frame has a wrong checksum.
    pub(crate) junk_at: Option<u32>,
    /// Leaves when all is answered, without a half close before.
    pub(crate) leaves_at_once: bool,
}

impl Plan {
    pub(crate) fn draw(random: &mut Random) -> Self {
        let kind = random.of(&Kind::ALL);
        let mut plan = Self {
            kind,
            source: None,
            frames: 0,
            body_bytes: 0,
            write_bytes: 64 * 1024,
            write_pause_ms: 0,
            window: usize::MAX,
            reading: Reading::Fast,
            buffer: random.one_in(3).then(|| random.size(4 * 1024, 16 * 1024)),
            reset_after: None,
            heeds_goodbye: random.one_in(2),
            junk_at: None,
            leaves_at_once: false,
        };
        let mut counts = |from, to| u32::try_from(random.pick(from, to)).expect("a small number");
        match kind {
            Kind::Fast => (plan.frames, plan.body_bytes) = (counts(100, 5000), 300),
            Kind::Slow => {
                // No longer than some seconds in all: a drain has an end.
                let rate = counts(10, 100) * 1000;
                plan.reading = Reading::Slow(rate);
                plan.body_bytes = 2000;
                plan.frames = rate * counts(1, 4) / 1000;
            }
            Kind::Never => (plan.frames, plan.body_bytes) = (counts(50, 2000), 2000),
            Kind::Reset => (plan.frames, plan.body_bytes) = (counts(10, 5000), 2000),
            Kind::HalfClose => (plan.frames, plan.body_bytes) = (counts(1, 300), 200),
            Kind::Bytes => (plan.frames, plan.body_bytes) = (counts(1, 40), 40),
            Kind::Large => (plan.frames, plan.body_bytes) = (counts(5, 60), 65_527),
            Kind::Visit => (plan.frames, plan.body_bytes) = (counts(1, 8), 100),
            Kind::Junk => (plan.frames, plan.body_bytes) = (counts(2, 400), 200),
        }
        plan.finish(random);
        plan
    }

    fn finish(&mut self, random: &mut Random) {
        match self.kind {
            Kind::Slow => self.buffer = Some(random.size(4 * 1024, 16 * 1024)),
            Kind::Never => {
                self.buffer = Some(random.size(4 * 1024, 16 * 1024));
                self.reading = Reading::After(random.ms(100, 9000));
            }
            Kind::Reset => {
                self.reset_after = Some(random.ms(0, 1500));
                self.reading = random.of(&[
                    Reading::Fast,
                    Reading::Slow(50_000),
                    Reading::After(Duration::from_secs(60)),
                ]);
            }
            Kind::HalfClose => self.reading = Reading::WhenSent,
            Kind::Bytes => {
                self.write_bytes = random.size(1, 3);
                self.write_pause_ms = random.pick(0, 4);
            }
            Kind::Visit => {
                self.window = 1;
                self.write_pause_ms = random.pick(0, 400);
                self.leaves_at_once = random.one_in(2);
            }
            Kind::Junk => {
                self.junk_at = Some(u32::try_from(random.pick(1, 400)).expect("small"));
                self.write_bytes = random.of(&[100, 1000, 64 * 1024]);
            }
            Kind::Fast if random.one_in(3) => self.window = random.size(1, 64),
            Kind::Fast | Kind::Large => {}
        }
    }
}
