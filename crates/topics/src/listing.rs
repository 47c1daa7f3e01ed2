//! Lists of names with their subscribers, as the hub makes them and workers read them.

use crate::glob;
use crate::name::{Filter, Topic};
use crate::record::{Listed, PART_BYTES_MAX};
use crate::registry::{Place, Registry};

/// The longest list, in bytes; what does not fit is left out.
pub const LIST_BYTES_MAX: usize = 1 << 20;

/// A list on its way to a worker: each name is a length, its bytes, and a count.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) number: u64,
    bytes: Vec<u8>,
    at: usize,
}

impl Listing {
    pub(crate) fn new(
        number: u64,
        wanted: &Listed,
        registry: &Registry,
        count: impl Fn(Place) -> u32,
    ) -> Self {
        let mut bytes = Vec::new();
        let sum = |places: &[Place]| {
            places.iter().fold(0_u32, |sum, place| sum.saturating_add(count(*place)))
        };
        match wanted {
            Listed::Patterns => {
                bytes.push(0);
                let count = u32::try_from(registry.patterns()).unwrap_or(u32::MAX);
                bytes.extend_from_slice(&count.to_le_bytes());
            }
            Listed::Named(names) => {
                for name in names {
                    let places = registry.places(&Filter::from(name.topic()));
                    add(&mut bytes, name.topic(), sum(places));
                }
            }
            Listed::Like { is_shard, pattern } => {
                for (topic, places) in registry.topics() {
                    let is_like =
                        |pattern: &[u8]| glob::is_like(pattern, topic.as_str().as_bytes());
                    if topic.is_shard() == *is_shard
                        && !topic.is_reserved()
                        && pattern.as_deref().is_none_or(is_like)
                        && let count @ 1.. = sum(places)
                        && !add(&mut bytes, topic, count)
                    {
                        break;
                    }
                }
            }
        }
        Self { number, bytes, at: 0 }
    }

    /// The next part; empty at the end.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        let end = self.bytes.len().min(self.at + PART_BYTES_MAX);
        let part = self.bytes[self.at..end].to_vec();
        self.at = end;
        part
    }

    pub(crate) fn is_over(&self) -> bool {
        self.at == self.bytes.len()
    }
}

/// False: it has no room.
fn add(bytes: &mut Vec<u8>, topic: Topic<'_>, count: u32) -> bool {
    let name = topic.as_str().as_bytes();
    if bytes.len() + name.len() + 5 > LIST_BYTES_MAX {
        return false;
    }
    bytes.push(u8::try_from(name.len()).expect("a topic has at most 255 bytes"));
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&count.to_le_bytes());
    true
}

/// The names of a list, each with its subscribers.
pub fn names(mut bytes: &[u8]) -> impl Iterator<Item = (&str, u32)> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        let (count, rest) = rest.split_first_chunk()?;
        bytes = rest;
        Some((std::str::from_utf8(name).ok()?, u32::from_le_bytes(*count)))
    })
}
