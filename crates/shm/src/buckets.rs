//! Times in fixed buckets: what can be counted without a lock and added up over threads.

/// The bucket that a time belongs to: the first whose bound it does not exceed, or the one
/// behind the last bound.
pub(super) fn bucket_of(bounds_us: &[u64], took_us: u64) -> usize {
    // Most times are short, and found at once.
    bounds_us.iter().position(|&bound| took_us <= bound).unwrap_or(bounds_us.len())
}

/// The bound that `hundredths` of what is counted did not exceed. `None`: nothing was
/// counted, or it is behind the last bound.
pub(super) fn percentile_us(bounds_us: &[u64], counts: &[u64], hundredths: u64) -> Option<u64> {
    let all: u128 = counts.iter().map(|&count| u128::from(count)).sum();
    let rank = (all * u128::from(hundredths)).div_ceil(100).max(1);
    let mut so_far = 0;
    let place = counts.iter().position(|&count| {
        so_far += u128::from(count);
        so_far >= rank
    });
    bounds_us.get(place?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: [u64; 3] = [1, 10, 100];

    #[test]
    fn a_time_is_in_the_first_bucket_that_it_fits_in() {
        let of = |us| bucket_of(&BOUNDS, us);
        assert_eq!([0, 1, 2, 10, 11, 100, 101, u64::MAX].map(of), [0, 0, 1, 1, 2, 2, 3, 3]);
    }

    #[test]
    fn a_percentile_is_the_bound_of_its_bucket() {
        let rows = [
            ([0, 0, 0, 0], 50, None),
            ([1, 0, 0, 0], 50, Some(1)),
            ([1, 0, 0, 0], 99, Some(1)),
            ([50, 50, 0, 0], 50, Some(1)),
            ([49, 51, 0, 0], 50, Some(10)),
            ([98, 0, 2, 0], 99, Some(100)),
            ([98, 0, 0, 2], 99, None),
            ([u64::MAX, 0, u64::MAX, 0], 99, Some(100)),
        ];
        for (counts, hundredths, expected) in rows {
            assert_eq!(percentile_us(&BOUNDS, &counts, hundredths), expected, "{counts:?}");
        }
    }
}
