//! The rate limits of one connection: two token buckets, and for how long it has been
//! above them. Pure.

use super::settings::{Settings, TOO_FAST_MAX, TOO_FAST_QUIET};
use super::token_bucket::TokenBucket;
use chappe_sys::clock::Moment;

/// The rate limits of one connection.
#[derive(Debug)]
pub(super) struct Rates {
    messages: TokenBucket,
    bytes: TokenBucket,
    /// The first refused message of a time without a quiet second.
    too_fast_since: Option<Moment>,
    refused_at: Option<Moment>,
}

impl Rates {
    /// `None` if there is no limit at all.
    pub(super) fn new(settings: &Settings, now: Moment) -> Option<Box<Self>> {
        if settings.messages_per_second == 0 && settings.bytes_per_second == 0 {
            return None;
        }
        let (rate, burst) = (settings.messages_per_second, settings.messages_burst);
        let messages = TokenBucket::new(f64::from(rate), f64::from(burst), now);
        #[expect(clippy::cast_precision_loss, reason = "rates and sizes, not an account")]
        let (rate, frame) = (settings.bytes_per_second as f64, settings.frame_bytes_max as f64);
        // The largest frame always fits the bucket, or it could never pass.
        let bytes = TokenBucket::new(rate, frame.max(rate), now);
        Some(Box::new(Self { messages, bytes, too_fast_since: None, refused_at: None }))
    }

    /// Whether a message of this length may pass now. Both buckets give, or none.
    pub(super) fn admit(&mut self, length: usize, now: Moment) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "at most 65535")]
        let length = length as f64;
        // Both are filled up, whatever the first says.
        if self.messages.has(1.0, now) & self.bytes.has(length, now) {
            self.messages.take(1.0);
            self.bytes.take(length);
            return true;
        }
        let was_quiet = self.refused_at.is_none_or(|at| now.since(at) >= TOO_FAST_QUIET);
        if was_quiet {
            self.too_fast_since = Some(now);
        }
        self.refused_at = Some(now);
        false
    }

    /// Whether it has been above its rate for so long that it is closed.
    pub(super) fn persists(&self, now: Moment) -> bool {
        self.too_fast_since.is_some_and(|since| now.since(since) >= TOO_FAST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_engine::Hooks;
    use std::time::Duration;

    fn settings(messages_per_second: u32, bytes_per_second: u64) -> Settings {
        Settings {
            connections_max: 1,
            frame_bytes_max: 1000,
            idle: None,
            frame: Duration::from_secs(1),
            handshake: None,
            deferred: Duration::from_secs(20),
            linger: Duration::from_secs(1),
            outbox_age_max: Duration::from_secs(1),
            fuse: true,
            hooks: Hooks::None,
            messages_per_second,
            messages_burst: 0,
            bytes_per_second,
            connections_per_ip: 0,
        }
    }

    #[test]
    fn both_limits_hold_and_none_is_none() {
        let now = Moment::now();
        assert!(Rates::new(&settings(0, 0), now).is_none());
        let mut rates = Rates::new(&settings(5, 0), now).unwrap();
        assert_eq!((0..9).filter(|_| rates.admit(8, now)).count(), 5);
        // The burst in bytes is at least one frame of the largest size.
        let mut rates = Rates::new(&settings(0, 10), now).unwrap();
        assert!(rates.admit(1000, now));
        assert!(!rates.admit(8, now));
        assert!(rates.admit(8, now + Duration::from_secs(1)));
    }

    #[test]
    fn too_fast_persists_only_without_a_quiet_second() {
        let start = Moment::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut rates = Rates::new(&settings(1, 0), start).unwrap();
        // Ten a second against one: refused all the time.
        for ms in (0..=10_000).step_by(100) {
            let admitted = rates.admit(8, at(ms));
            assert_eq!(rates.persists(at(ms)), !admitted && ms >= 10_100, "{ms}");
        }
        rates.admit(8, at(10_100));
        assert!(rates.persists(at(10_100)));
        // One burst each three seconds never persists.
        let mut rates = Rates::new(&settings(1, 0), start).unwrap();
        for ms in (0..60_000).step_by(3000) {
            (0..4).for_each(|_| _ = rates.admit(8, at(ms)));
            assert!(!rates.persists(at(ms)));
        }
    }
}
