//! The figures of each message code as text, for `status` and `top`.

use super::counters::micros;
use crate::control::CodeStatus;

/// The code, or that these are all that have no row of their own.
pub(super) fn name(code: &CodeStatus) -> String {
    code.code.map_or_else(|| "others".to_owned(), |code| code.to_string())
}

/// `≤50us`, `>100s`, or `-` as long as no call was timed.
pub(super) fn time(code: &CodeStatus, percentile_us: Option<u64>) -> String {
    match percentile_us {
        Some(bound_us) => format!("≤{}", micros(bound_us)),
        None if code.timed > 0 => ">100s".to_owned(),
        None => "-".to_owned(),
    }
}

/// `loop`, `loop in 1 of 2 workers`, `threads`, `blocking`.
pub(super) fn runs(code: &CodeStatus) -> String {
    let CodeStatus { runs, on_loop, workers, .. } = code;
    match runs {
        None => "-".to_owned(),
        Some(runs) if *on_loop > 0 && on_loop < workers => {
            format!("{runs} in {on_loop} of {workers} workers")
        }
        Some(runs) => runs.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: CodeStatus = CodeStatus {
        code: Some(16),
        calls: 1,
        errors: 0,
        timed: 0,
        p50_us: None,
        p99_us: None,
        runs: None,
        on_loop: 0,
        workers: 0,
    };

    #[test]
    fn a_time_is_a_bound_and_none_is_told_from_one_beyond_the_last() {
        let timed = |timed| CodeStatus { timed, ..CODE };
        let texts = [(0, None), (1, Some(500)), (1, Some(20_000)), (1, None)]
            .map(|(count, bound)| time(&timed(count), bound));
        assert_eq!(texts, ["-", "≤500us", "≤20ms", ">100s"]);
    }

    #[test]
    fn where_it_runs_has_the_workers_if_they_differ() {
        let of = |name: &str, on_loop, workers| {
            runs(&CodeStatus { runs: Some(name.to_owned()), on_loop, workers, ..CODE })
        };
        assert_eq!(of("loop", 2, 2), "loop");
        assert_eq!(of("loop", 1, 2), "loop in 1 of 2 workers");
        assert_eq!(
            (of("threads", 0, 2), of("blocking", 0, 2)),
            ("threads".into(), "blocking".into())
        );
        assert_eq!(
            (runs(&CODE), name(&CodeStatus { code: None, ..CODE })),
            ("-".into(), "others".into())
        );
    }
}
