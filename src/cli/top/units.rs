//! Numbers as the screen shows them: three digits that count and a letter, five characters
//! at most, so that columns stay narrow and right-aligned numbers can be compared.

const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];

/// `999`, `1.23k`, `45.6M`, `789G`. A thousand is 1000, for bytes too.
pub(super) fn short(number: u64) -> String {
    if number < 1000 {
        return number.to_string();
    }
    // Three digits, rounded down: 999 999 is not yet a million.
    let digits = number.ilog10();
    let three = number / 10_u64.pow(digits - 2);
    let unit = UNITS[(digits / 3 - 1) as usize];
    match digits % 3 {
        0 => format!("{}.{:02}{unit}", three / 100, three % 100),
        1 => format!("{}.{}{unit}", three / 10, three % 10),
        _ => format!("{three}{unit}"),
    }
}

/// What stands for a number that is not known.
pub(super) fn dash() -> String {
    "-".to_owned()
}

/// A count per second, in three digits and a unit; `-` if it is not known.
pub(super) fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate > 0.0 && rate < 9.95 => format!("{rate:.1}"),
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is not negative, and one beyond u64 is shown as the most"
        )]
        Some(rate) => short(rate.round() as u64),
    }
}

/// Of one CPU: `0.0`, `45.2`, `213`.
pub(super) fn percent(share: Option<f64>) -> String {
    match share {
        None => "-".to_owned(),
        Some(share) if share < 99.95 => format!("{share:.1}"),
        Some(share) => format!("{share:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_count() {
        let rows = [
            (0, "0"),
            (999, "999"),
            (1000, "1.00k"),
            (9_999, "9.99k"),
            (10_000, "10.0k"),
            (99_999, "99.9k"),
            (100_000, "100k"),
            (999_999, "999k"),
            (1_000_000, "1.00M"),
            (12_345_678, "12.3M"),
            (u64::MAX, "18.4E"),
        ];
        for (number, text) in rows {
            assert_eq!(short(number), text);
            assert!(text.len() <= 5, "{text}");
        }
    }

    #[test]
    fn rates_and_shares_show_what_is_little() {
        assert_eq!(rate(None), "-");
        assert_eq!(rate(Some(0.0)), "0");
        assert_eq!(rate(Some(0.25)), "0.2");
        assert_eq!(rate(Some(9.94)), "9.9");
        assert_eq!(rate(Some(9.96)), "10");
        assert_eq!(rate(Some(12.6)), "13");
        assert_eq!(percent(None), "-");
        assert_eq!((percent(Some(0.04)), percent(Some(99.96))), ("0.0".into(), "100".into()));
    }
}
