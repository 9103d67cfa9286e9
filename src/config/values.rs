//! Sizes and durations as people write them.

use std::time::Duration;

/// No wait that is set may be longer than this: nobody means it, and clocks overflow.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Bytes: a number alone, or with one of `B`, `kB`, `KiB`, `MB`, `MiB`, … `TiB` behind it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: write 10GiB, 10GB or a number of bytes");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number = number.parse::<u64>().map_err(|_| wrong())?;
    let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000_u64.pow(2),
        "gb" => 1000_u64.pow(3),
        "tb" => 1000_u64.pow(4),
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is more bytes than there can be"))
}

/// How many: at least one.
pub fn parse_count(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("{text:?} is not a number from 1"))
}

/// A time: `8s`, `500ms`, `2m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration =
        humantime::parse_duration(text).map_err(|_| format!("{text:?} is not a duration: write 8s, 500ms or 2m"))?;
    match duration {
        Duration::ZERO => Err("no time at all is too short".into()),
        duration if duration > LONGEST => Err(format!("{text:?} is longer than a day")),
        duration => Ok(duration),
    }
}

/// How old something may be: `24h`, `30d`; `0s` for not at all.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| format!("{text:?} is not a duration: write 24h, 30d or 0s"))
}

/// On or off, as variables and `--name=VALUE` say it.
pub fn parse_switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("123", Some(123)),
            ("10B", Some(10)),
            ("10kB", Some(10_000)),
            ("10GB", Some(10_000_000_000)),
            ("10GiB", Some(10 << 30)),
            ("10 MiB", Some(10 << 20)),
            ("1tib", Some(1 << 40)),
            ("", None),
            ("GiB", None),
            ("-1", None),
            ("1.5GiB", None),
            ("10 apples", None),
            ("10G", None),
            ("99999999999999999999", None),
            ("99999999999TiB", None),
        ] {
            assert_eq!(parse_size(text).ok(), bytes, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, duration) in [
            ("8s", Some(Duration::from_secs(8))),
            ("500ms", Some(Duration::from_millis(500))),
            ("2m", Some(Duration::from_secs(120))),
            ("1h", Some(Duration::from_secs(3600))),
            ("0s", None),
            ("8", None),
            ("", None),
            ("-1s", None),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("eternity", None),
            ("584542046090y", None),
            ("18446744073709551615s", None),
        ] {
            assert_eq!(parse_duration(text).ok(), duration, "{text}");
        }
    }
}
