//! What connections have missed that resume: one pass of a second reader over the ring, for all
//! who have asked by then. Those who ask while it is on its way wait for the next one.

use crate::index::Index;
use crate::name::Filter;
use crate::record::{Message, Record};
use chappe_rings::{Broadcast, Corrupt, Found, Reader};
use std::sync::Arc;

/// Records that are read before something else has its turn.
const RECORDS_A_STEP: usize = 512;

/// How much may be gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayLimits {
    /// Bytes for a subscription.
    pub each_bytes: usize,
    /// Bytes for all subscriptions of a pass.
    pub total_bytes: usize,
}

/// A message that somebody has missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    offset: u64,
    record: Arc<[u8]>,
}

impl Missed {
    /// Its place in the log.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What was published.
    ///
    /// # Panics
    /// Never: it was read before.
    #[must_use]
    pub fn message(&self) -> Message<'_> {
        Record::read(&self.record).expect("it was read before").request.message
    }
}

/// A subscription that resumes.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Of the connection.
    pub(crate) id: u64,
    pub(crate) filter: Filter,
    /// Of the last message that it has.
    pub(crate) from: u64,
}

/// What a connection gets that has waited.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) id: u64,
    /// `None`: not all of it is there, or it is too much.
    pub(crate) missed: Option<Vec<Missed>>,
}

#[derive(Debug)]
struct Gathered {
    wanted: Wanted,
    bytes: usize,
    missed: Option<Vec<Missed>>,
}

#[derive(Debug)]
struct Pass {
    /// `None`: nothing that is wanted is there.
    reader: Option<Reader>,
    by_filter: Index<Vec<usize>>,
    gathered: Vec<Gathered>,
    bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Replays {
    limits: ReplayLimits,
    waiting: Vec<Wanted>,
    pass: Option<Pass>,
    record: Vec<u8>,
}

impl Replays {
    pub(crate) fn new(limits: ReplayLimits) -> Self {
        Self { limits, waiting: Vec::new(), pass: None, record: Vec::new() }
    }

    pub(crate) fn want(&mut self, wanted: impl IntoIterator<Item = Wanted>) {
        self.waiting.extend(wanted);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.pass.is_none() && self.waiting.is_empty()
    }

    /// Reads on, up to the message of this offset, which is the last one that was delivered.
    /// Returns those who have waited, once it is reached.
    ///
    /// # Errors
    /// [`Corrupt`]: the hub has written what no correct one writes.
    pub(crate) fn step(&mut self, ring: &Broadcast, offset: u64) -> Result<Vec<Replayed>, Corrupt> {
        if self.pass.is_none() && !self.waiting.is_empty() {
            self.pass = Some(Pass::new(ring, std::mem::take(&mut self.waiting))?);
        }
        let Some(pass) = &mut self.pass else { return Ok(Vec::new()) };
        for _ in 0..RECORDS_A_STEP {
            if !pass.read(offset, self.limits, &mut self.record)? {
                let gathered = self.pass.take().map(|pass| pass.gathered).unwrap_or_default();
                let done = gathered.into_iter();
                return Ok(done
                    .map(|it| Replayed { id: it.wanted.id, missed: it.missed })
                    .collect());
            }
        }
        Ok(Vec::new())
    }
}

impl Pass {
    fn new(ring: &Broadcast, mut wanted: Vec<Wanted>) -> Result<Self, Corrupt> {
        wanted.sort_by_key(|wanted| wanted.from);
        let (mut by_filter, mut gathered) = (Index::<Vec<usize>>::default(), Vec::new());
        let mut reader = None;
        for wanted in wanted {
            if reader.is_none() {
                reader = ring.reader_behind(wanted.from)?;
            }
            let missed = reader.is_some().then(Vec::new);
            if missed.is_some() {
                let place = gathered.len();
                match by_filter.get_mut(&wanted.filter) {
                    Some(places) => places.push(place),
                    None => by_filter.insert(wanted.filter.clone(), vec![place]),
                }
            }
            gathered.push(Gathered { wanted, bytes: 0, missed });
        }
        Ok(Self { reader, by_filter, gathered, bytes: 0 })
    }

    /// Reads a record. False: it has read all up to this offset.
    fn read(
        &mut self,
        offset: u64,
        limits: ReplayLimits,
        record: &mut Vec<u8>,
    ) -> Result<bool, Corrupt> {
        let Some(reader) = self.reader.as_mut().filter(|reader| reader.offset() < offset) else {
            return Ok(false);
        };
        match reader.next(record)? {
            Found::Record => {}
            Found::Nothing => return Ok(false),
            Found::Lapped(_) => {
                self.reader = None;
                self.gathered.iter_mut().for_each(|it| it.missed = None);
                return Ok(false);
            }
        }
        let (offset, topic) = (reader.offset(), Record::read(record)?.request.message.topic);
        let mut shared = None;
        for &place in self.by_filter.matching(topic).flatten() {
            let it = &mut self.gathered[place];
            let Some(missed) = it.missed.as_mut().filter(|_| it.wanted.from < offset) else {
                continue;
            };
            it.bytes += record.len();
            self.bytes += record.len();
            if it.bytes > limits.each_bytes || self.bytes > limits.total_bytes {
                self.bytes -= it.bytes;
                it.missed = None;
                continue;
            }
            let record = shared.get_or_insert_with(|| Arc::from(&record[..]));
            missed.push(Missed { offset, record: Arc::clone(record) });
        }
        Ok(true)
    }
}
