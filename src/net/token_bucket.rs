//! A token bucket: a rate per second on average, and a burst at once. Pure.

use chappe_sys::clock::Moment;

/// Full at first.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenBucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    filled_at: Moment,
}

impl TokenBucket {
    /// A rate of 0 means no limit. A burst of 0 is one second's worth.
    pub(super) fn new(per_second: f64, burst: f64, now: Moment) -> Self {
        let burst = if burst > 0.0 { burst } else { per_second.max(1.0) };
        let burst = if per_second > 0.0 { burst } else { f64::INFINITY };
        Self { per_second, burst, tokens: burst, filled_at: now }
    }

    /// Whether `tokens` are there now; does not take them.
    pub(super) fn has(&mut self, tokens: f64, now: Moment) -> bool {
        let passed = now.since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.filled_at = now;
        self.tokens >= tokens
    }

    /// Takes tokens that [`TokenBucket::has`] has found.
    pub(super) fn take(&mut self, tokens: f64) {
        self.tokens -= tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn take(bucket: &mut TokenBucket, now: Moment) -> bool {
        let is_there = bucket.has(1.0, now);
        if is_there {
            bucket.take(1.0);
        }
        is_there
    }

    #[test]
    fn the_burst_passes_and_one_more_does_not() {
        let now = Moment::now();
        let mut bucket = TokenBucket::new(10.0, 25.0, now);
        assert_eq!((0..40).filter(|_| take(&mut bucket, now)).count(), 25);
        let later = now + Duration::from_millis(500);
        assert_eq!((0..40).filter(|_| take(&mut bucket, later)).count(), 5);
        let much_later = now + Duration::from_secs(100);
        assert_eq!((0..40).filter(|_| take(&mut bucket, much_later)).count(), 25);
    }

    #[test]
    fn no_rate_is_no_limit_and_no_burst_is_a_seconds_worth() {
        let now = Moment::now();
        let mut bucket = TokenBucket::new(0.0, 5.0, now);
        assert!((0..1000).all(|_| take(&mut bucket, now)));
        for (burst, at_once) in [(0.0, 10), (1.0, 1), (5.0, 5)] {
            let mut bucket = TokenBucket::new(10.0, burst, now);
            assert_eq!((0..40).filter(|_| take(&mut bucket, now)).count(), at_once);
        }
    }
}
