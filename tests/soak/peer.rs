//! One client: a socket that does not block, one poll(2), and a record of every
//! byte that it is owed.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use chappe_wire::{
    CODE_ECHO, CODE_ERROR, CODE_GOODBYE, CODE_PING, CODE_TIME, CODE_WHO, ErrorNumber, HEADER_BYTES,
    Header, append_frame, encode, parse_notice,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

use crate::plan::{Plan, Reading};
use crate::random::Random;
use crate::world::{Outcome, World};
use chappe_testkit::Numbered;

/// Nothing at all may take longer.
const STUCK: Duration = Duration::from_secs(20);
/// `send.outbox_max_age` of the server, less what clocks may differ.
pub(crate) const AGE_MAX: Duration = Duration::from_millis(3900);
/// For how long a draining server waits for another byte.
const QUIET: Duration = Duration::from_millis(250);
/// No handler has it: answered by an error.
const CODE_NOBODYS: u16 = 999;
/// A slow reader reads no less at a time.
const SIP_BYTES: usize = 512;

/// What one frame is to be answered with.
#[derive(Clone, Copy, Debug)]
enum Owed {
    Who,
    Ping,
    Time,
    Echo(Numbered),
    Error,
    /// An error too, and the end.
    Junk,
}

pub(crate) struct Peer<'a> {
    world: &'a World,
    plan: &'a Plan,
    random: &'a mut Random,
    stream: TcpStream,
    local: SocketAddr,
    number: u32,
    began: Instant,
    progress: Instant,
    /// Frames made so far, and what of them is not written yet.
    made: u32,
    unwritten: BytesMut,
    /// Where frames end in the stream, of those that are not written to their end.
    ends: VecDeque<u64>,
    written: u64,
    whole: u64,
    write_at: Instant,
    wrote_at: Instant,
    socket_is_full: bool,
    was_quiet: bool,
    is_write_over: bool,
    owed: VecDeque<Owed>,
    input: BytesMut,
    answered: u64,
    answered_bytes: u64,
    read_at: Instant,
    longest_pause: Duration,
    credit_at: Instant,
    goodbye: bool,
    /// It got an error for its junk.
    was_refused: bool,
    worker: Option<i32>,
    /// How many workers had been killed when it connected.
    kills: u64,
}

/// Connects and does what the plan says.
pub(crate) fn run(world: &World, plan: &Plan, random: &mut Random) {
    let mut peer = match Peer::connect(world, plan, random) {
        Ok(peer) => peer,
        Err(what) => return world.fail(format!("{what}; {plan:?}")),
    };
    let outcome = peer.live();
    world.note(|seen| {
        let kind = plan.kind as usize;
        seen.connects += 1;
        seen.asked += peer.whole;
        seen.answered[kind] += peer.answered;
        seen.bytes[kind] += peer.answered_bytes;
        seen.goodbyes += u64::from(peer.goodbye);
        seen.paused_long += u64::from(peer.longest_pause >= AGE_MAX);
        if let Ok(outcome) = outcome {
            seen.outcomes[kind][outcome as usize] += 1;
        }
    });
    if let Err(what) = outcome {
        world.fail(format!("{what}; {}", peer.describe()));
    }
}

impl<'a> Peer<'a> {
    fn connect(world: &'a World, plan: &'a Plan, random: &'a mut Random) -> Result<Self, String> {
        let failed = |errno| format!("a connect failed: {errno}");
        let family = AddressFamily::Inet;
        let socket =
            socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
        if let Some(bytes) = plan.buffer {
            setsockopt(&socket, sockopt::RcvBuf, &bytes).map_err(failed)?;
            setsockopt(&socket, sockopt::SndBuf, &bytes).map_err(failed)?;
        }
        if let Some(source) = plan.source {
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true).map_err(failed)?;
            let source = SockaddrStorage::from(SocketAddr::from((source, 0)));
            bind(socket.as_raw_fd(), &source).map_err(failed)?;
        }
        let (began, kills) = (Instant::now(), world.kills());
        connect(socket.as_raw_fd(), &SockaddrStorage::from(world.address)).map_err(failed)?;
        let stream = TcpStream::from(socket);
        let local = stream.local_addr().map_err(|error| error.to_string())?;
        stream.set_nonblocking(true).map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let now = Instant::now();
        Ok(Self {
            world,
            plan,
            random,
            stream,
            local,
            number: world.next_stream(),
            began,
            progress: now,
            made: 0,
            unwritten: BytesMut::new(),
            ends: VecDeque::new(),
            written: 0,
            whole: 0,
            write_at: now,
            wrote_at: began,
            socket_is_full: false,
            was_quiet: false,
            is_write_over: false,
            owed: VecDeque::new(),
            input: BytesMut::new(),
            answered: 0,
            answered_bytes: 0,
            read_at: now,
            longest_pause: Duration::ZERO,
            credit_at: now,
            goodbye: false,
            was_refused: false,
            worker: None,
            kills,
        })
    }

    /// Until the end of the connection.
    fn live(&mut self) -> Result<Outcome, String> {
        loop {
            let now = Instant::now();
            if self.plan.reset_after.is_some_and(|after| now >= self.began + after) {
                return self.reset();
            }
            if now - self.progress > STUCK {
                return Err(format!("nothing happened for {STUCK:?}"));
            }
            self.make();
            if self.has_left() {
                return Ok(if self.goodbye { Outcome::Drained } else { Outcome::Whole });
            }
            let may_write = !self.unwritten.is_empty() && now >= self.write_at;
            let readable = self.may_read(now);
            let events = self.wait(may_write, readable > 0)?;
            if events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
                // The server has gone: all that is left is what the kernel holds.
                self.is_write_over = true;
                self.unwritten.clear();
                return self.read_to_the_end();
            }
            if may_write && events.contains(PollFlags::POLLOUT) {
                self.write()?;
            }
            if readable > 0 && events.contains(PollFlags::POLLIN) && !self.read(readable)? {
                return self.ended(None);
            }
        }
    }

    /// Makes frames, as far as the plan lets it, and ends its side behind the last.
    fn make(&mut self) {
        let stops = self.was_refused || (self.goodbye && self.plan.heeds_goodbye);
        while !self.is_write_over
            && !stops
            && self.made < self.plan.frames
            && self.owed.len() < self.plan.window
            && self.unwritten.len() < 64 * 1024
        {
            self.make_one();
        }
        let is_all = stops || self.made >= self.plan.frames;
        if is_all && self.unwritten.is_empty() && !self.is_write_over && !self.plan.leaves_at_once {
            // It fails if the server was first; then reading tells.
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
            self.is_write_over = true;
        }
    }

    fn make_one(&mut self) {
        let body = |bytes| Numbered { stream: self.number, number: self.made, bytes };
        let owed = match self.made {
            0 => Owed::Who,
            made if self.plan.junk_at == Some(made) => Owed::Junk,
            _ => match self.random.pick(0, 19) {
                0 => Owed::Ping,
                1 => Owed::Time,
                2 => Owed::Error,
                _ => Owed::Echo(body(self.random.size(0, self.plan.body_bytes))),
            },
        };
        let out = &mut self.unwritten;
        match owed {
            Owed::Who => append_frame(out, CODE_WHO, b""),
            Owed::Ping => append_frame(out, CODE_PING, b"whatever"),
            Owed::Time => append_frame(out, CODE_TIME, b""),
            Owed::Error => append_frame(out, CODE_NOBODYS, b"for nobody"),
            Owed::Junk => {
                out.extend_from_slice(&[0, 9, 0, 1, 1, 2, 3, 4, b'?']);
                Ok(())
            }
            Owed::Echo(numbered) => append_frame(out, CODE_ECHO, &numbered.body()),
        }
        .expect("no body is too long");
        self.made += 1;
        self.owed.push_back(owed);
        self.ends.push_back(self.written + self.unwritten.len() as u64);
    }

    /// All is answered, and it does not wait for the server's end.
    fn has_left(&self) -> bool {
        let stops = self.goodbye && self.plan.heeds_goodbye;
        self.plan.leaves_at_once && self.owed.is_empty() && (stops || self.made >= self.plan.frames)
    }

    /// How many bytes it would read now.
    fn may_read(&mut self, now: Instant) -> usize {
        const ALL: usize = 64 * 1024;
        match self.plan.reading {
            Reading::Fast => ALL,
            Reading::After(pause) if now < self.began + pause => 0,
            Reading::WhenSent if !self.is_write_over => 0,
            Reading::After(_) | Reading::WhenSent => ALL,
            Reading::Slow(rate) => {
                let since = (now - self.credit_at).as_micros();
                let credit = since * u128::from(rate) / 1_000_000;
                let credit = usize::try_from(credit).unwrap_or(ALL).min(8 * 1024);
                if credit < SIP_BYTES { 0 } else { credit }
            }
        }
    }

    fn wait(&self, may_write: bool, may_read: bool) -> Result<PollFlags, String> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLOUT, may_write);
        wanted.set(PollFlags::POLLIN, may_read);
        let mut polled = [PollFd::new(self.stream.as_fd(), wanted)];
        // Pauses are short, and how exactly they are kept does not matter.
        let is_pausing = !may_read || (!may_write && !self.unwritten.is_empty());
        let timeout = if is_pausing { 2_u8 } else { 50 };
        match poll(&mut polled, PollTimeout::from(timeout)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(format!("poll: {errno}")),
        }
        Ok(polled[0].revents().unwrap_or(PollFlags::empty()))
    }

    fn write(&mut self) -> Result<(), String> {
        let begin = Instant::now();
        let piece = self.unwritten.len().min(self.plan.write_bytes);
        match self.stream.write(&self.unwritten[..piece]) {
            Ok(written) => {
                let now = Instant::now();
                // Bytes that the kernel still held back were no silence.
                if !self.socket_is_full && now - self.wrote_at >= QUIET {
                    self.was_quiet = true;
                }
                (self.wrote_at, self.progress) = (begin, now);
                self.socket_is_full = written < piece;
                self.unwritten.advance(written);
                self.written += written as u64;
                while self.ends.front().is_some_and(|end| *end <= self.written) {
                    self.ends.pop_front();
                    self.whole += 1;
                }
                if self.plan.write_pause_ms > 0 {
                    self.write_at = now + self.random.ms(0, self.plan.write_pause_ms);
                }
                Ok(())
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => {
                    self.socket_is_full = true;
                    Ok(())
                }
                ErrorKind::Interrupted => Ok(()),
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                    self.is_write_over = true;
                    self.unwritten.clear();
                    Ok(())
                }
                _ => Err(format!("write: {error}")),
            },
        }
    }

    /// Reads once. False at the end of the stream.
    fn read(&mut self, bytes: usize) -> Result<bool, String> {
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer[..bytes]) {
            Ok(0) => Ok(false),
            Ok(received) => {
                let now = Instant::now();
                self.longest_pause = self.longest_pause.max(now - self.read_at);
                (self.read_at, self.progress, self.credit_at) = (now, now, now);
                self.input.extend_from_slice(&buffer[..received]);
                self.open()?;
                Ok(true)
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(true),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Ok(false),
                _ => Err(format!("read: {error}")),
            },
        }
    }

    fn read_to_the_end(&mut self) -> Result<Outcome, String> {
        let reset = self.stream.take_error().ok().flatten();
        while Instant::now() - self.progress < STUCK {
            if self.wait(false, true)?.is_empty() {
                continue;
            }
            if !self.read(64 * 1024)? {
                return self.ended(reset);
            }
        }
        Err("a connection that has ended does not end".to_owned())
    }

    /// Takes whole frames off the input, each of which must be the next that is owed.
    fn open(&mut self) -> Result<(), String> {
        while let Some(header) = Header::read(&self.input) {
            let length = usize::from(header.length);
            if length < HEADER_BYTES {
                return Err(format!("a frame of {length} bytes"));
            }
            if self.input.len() < length {
                break;
            }
            let frame = self.input.split_to(length);
            self.take(header, &frame)?;
        }
        Ok(())
    }

    fn take(&mut self, header: Header, frame: &[u8]) -> Result<(), String> {
        let body = &frame[HEADER_BYTES..];
        if !header.verify(body) {
            return Err(format!("a checksum is wrong: {header:?}"));
        }
        if header.code == CODE_GOODBYE {
            if self.goodbye || !self.world.may_have_drained(self.began) {
                return Err(format!("a goodbye too much: {:?}", parse_notice::<1>(body)));
            }
            self.goodbye = true;
            return Ok(());
        }
        let Some(owed) = self.owed.pop_front() else {
            return Err(format!("a frame that nobody asked for: {header:?}"));
        };
        let is_error = |number: ErrorNumber, code: u16| {
            let numbers = parse_notice::<2>(body).map(|(found, _)| found);
            header.code == CODE_ERROR && numbers == Some([number as u16, code])
        };
        let is_right = match owed {
            Owed::Echo(numbered) => expected(CODE_ECHO, &numbered.body())? == *frame,
            Owed::Ping => expected(CODE_PING, b"")? == *frame,
            Owed::Time => header.code == CODE_TIME && body.len() == 8,
            Owed::Who => header.code == CODE_WHO && self.is_served_by(body),
            Owed::Error => is_error(ErrorNumber::UnknownCode, CODE_NOBODYS),
            Owed::Junk => is_error(ErrorNumber::BadChecksum, CODE_ECHO),
        };
        if !is_right {
            let text = String::from_utf8_lossy(&body[..body.len().min(100)]).into_owned();
            return Err(format!("owed {owed:?}, got {header:?} {text:?}"));
        }
        self.answered += 1;
        self.answered_bytes += frame.len() as u64;
        if matches!(owed, Owed::Junk) {
            // Nothing behind it is answered.
            self.was_refused = true;
            self.owed.clear();
        }
        if self.answered > self.whole {
            return Err("a reply to what was not sent".to_owned());
        }
        Ok(())
    }

    /// Keeps who serves it. False if this was said to somebody else.
    fn is_served_by(&mut self, body: &[u8]) -> bool {
        let text = String::from_utf8_lossy(body);
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        self.worker = field("pid").and_then(|pid| pid.parse().ok());
        let id = field("connection").and_then(|id| id.parse().ok());
        let peer = field("peer").and_then(|peer| peer.parse().ok());
        self.worker.is_some()
            && peer == Some(self.local)
            && id.is_some_and(|id| self.world.is_new_id(id))
    }

    /// Closes with a reset, which throws away what both sides have queued.
    fn reset(&mut self) -> Result<Outcome, String> {
        let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.stream, sockopt::Linger, &at_once).map_err(|errno| errno.to_string())?;
        self.longest_pause = self.longest_pause.max(self.read_at.elapsed());
        Ok(Outcome::Reset)
    }

    /// The stream is over: was all there, or is there a documented reason?
    fn ended(&mut self, reset: Option<std::io::Error>) -> Result<Outcome, String> {
        self.longest_pause = self.longest_pause.max(self.read_at.elapsed());
        self.check_rest()?;
        // A frame that was not written to its end is owed nothing.
        let is_whole = self.answered == self.whole && self.input.is_empty() && reset.is_none();
        let is_done = self.is_write_over && self.made == self.plan.frames && self.owed.is_empty();
        if self.was_refused && self.input.is_empty() {
            return Ok(Outcome::Whole);
        }
        let is_drained = self.world.may_have_drained(self.began);
        if is_whole && is_done {
            return Ok(if self.goodbye { Outcome::Drained } else { Outcome::Whole });
        }
        if is_whole && self.goodbye {
            return Ok(Outcome::Drained);
        }
        let was_killed = match self.worker {
            Some(worker) => self.world.was_killed(worker),
            None => self.world.kills() > self.kills,
        };
        if was_killed {
            Ok(Outcome::Killed)
        } else if self.longest_pause >= AGE_MAX {
            Ok(Outcome::Slow)
        } else if is_drained && self.was_quiet {
            Ok(Outcome::Late)
        } else if is_drained && self.began.elapsed() >= crate::SHUTDOWN_TIMEOUT / 2 {
            Ok(Outcome::Cut)
        } else {
            Err(format!("ended before all was answered, {reset:?}"))
        }
    }

    /// Half a frame at the end must be the first half of what was to come.
    fn check_rest(&self) -> Result<(), String> {
        let rest = &self.input[..];
        let next = match self.owed.front() {
            Some(Owed::Echo(numbered)) => expected(CODE_ECHO, &numbered.body())?,
            Some(Owed::Ping) => expected(CODE_PING, b"")?,
            _ => return Ok(()),
        };
        let code = Header::read(rest).map(|header| header.code);
        if next.starts_with(rest) || code == Some(CODE_GOODBYE) || rest.len() < HEADER_BYTES {
            Ok(())
        } else {
            Err("the last half frame is not the next one".to_owned())
        }
    }

    fn describe(&self) -> String {
        format!(
            "stream {} {} worker {:?} after {:?}: made {} written {} answered {} owed {} \
             unwritten {} goodbye {} quiet {} write over {} longest pause {:?} {:?}",
            self.number,
            self.local,
            self.worker,
            self.began.elapsed(),
            self.made,
            self.whole,
            self.answered,
            self.owed.len(),
            self.unwritten.len(),
            self.goodbye,
            self.was_quiet,
            self.is_write_over,
            self.longest_pause,
            self.plan
        )
    }
}

fn expected(code: u16, body: &[u8]) -> Result<bytes::Bytes, String> {
    encode(code, body).map_err(|error| error.to_string())
}
