//! RFC 3339 times in UTC with milliseconds, such as `2026-11-27T01:41:45.123Z`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;

/// Days since 1970-01-01 to year, month, day of the Gregorian calendar (Hinnant, "chrono-compatible low-level date
/// algorithms", `civil_from_days`).
fn civil(days: i64) -> (i64, u64, u64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month as u64, day as u64)
}

/// The reverse: `days_from_civil`.
fn days(year: i64, month: u64, day: u64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted = ((month + 9) % 12) as i64;
    let day_of_year = (153 * shifted + 2) / 5 + day as i64 - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// `2026-11-27T01:41:45.123Z`. Times before 1970 are shown as 1970-01-01, later than the year 9999 as its end.
pub fn rfc3339(time: SystemTime) -> String {
    let end = Duration::from_millis(253_402_300_799_999);
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().min(end);
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (year, month, day) = civil((seconds / DAY) as i64);
    let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Reads an RFC 3339 time in UTC (`Z`), with or without a fraction; also a bare day such as `2026-11-27`. `None` if it
/// is neither, or lies before 1970.
pub fn parse(text: &str) -> Option<SystemTime> {
    let number = |range: std::ops::Range<usize>| -> Option<u64> {
        let part = text.get(range)?;
        part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())?
    };
    let mark = |at: usize, want: &[u8]| text.as_bytes().get(at).is_some_and(|byte| want.contains(byte));
    if !text.is_ascii() || !mark(4, b"-") || !mark(7, b"-") {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let mut nanos = 0;
    let mut seconds = 0;
    if text.len() > 10 {
        if !mark(10, b"Tt ") || !mark(13, b":") || !mark(16, b":") {
            return None;
        }
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        // 60 is a leap second.
        if hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        seconds = hour * 3600 + minute * 60 + second;
        let rest = text.get(19..)?.strip_suffix(['Z', 'z'])?;
        if !rest.is_empty() {
            let digits = rest.strip_prefix('.')?;
            if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            nanos = digits.parse::<u32>().ok()? * 10_u32.pow(9 - digits.len() as u32);
        }
    }
    let count = days(year as i64, month, day);
    // A day that doesn't exist (month 13, 30 February) comes out as another one.
    if !(1..=12).contains(&month) || civil(count) != (year as i64, month, day) {
        return None;
    }
    let count = u64::try_from(count).ok()?;
    Some(UNIX_EPOCH + Duration::new(count * DAY + seconds, nanos))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn known_times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_795_743_705, "2026-11-27T01:41:45.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799, "9999-12-31T23:59:59.000Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(rfc3339(time), text);
            assert_eq!(parse(text), Some(time));
        }
    }

    #[test]
    fn every_day_of_four_centuries_goes_both_ways() {
        for count in -719_468..(146_097 * 2) {
            let (year, month, day) = civil(count);
            assert_eq!(days(year, month, day), count);
        }
    }

    #[test]
    fn fractions_and_bare_days() {
        assert_eq!(parse("1970-01-01T00:00:00.5Z"), Some(UNIX_EPOCH + Duration::from_millis(500)));
        assert_eq!(parse("1970-01-02"), Some(UNIX_EPOCH + Duration::from_secs(DAY)));
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_micros(1_999)), "1970-01-01T00:00:00.001Z");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "2026",
            "2026-13-01",
            "2026-02-30",
            "2026-00-10",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00+01:00",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00.1234567890Z",
            "+026-01-01",
            "1969-12-31T00:00:00Z",
            "2026-01-01T1:00:00Z",
            "2026-01-01Ä",
            "2026-01-01T00:00:00.-1Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
