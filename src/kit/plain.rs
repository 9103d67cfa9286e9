//! What YAML takes plain text for: the rules of Go's yaml.v3, which decides by them what to quote.
//!
//! Text that would come back as something else than text has to be quoted. Beyond YAML 1.2 these rules
//! know the booleans and base-60 numbers of YAML 1.1, and what Go's `strconv` takes for a number.

/// Whether plain text stays text when it is read back.
pub fn stays_text(text: &str) -> bool {
    !is_word(text) && !is_old_boolean(text) && !is_number(text) && !is_timestamp(text) && !is_base_60(text)
}

fn is_word(text: &str) -> bool {
    const WORDS: [&str; 23] = [
        "", "~", "null", "Null", "NULL", "true", "True", "TRUE", "false", "False", "FALSE", ".nan", ".NaN", ".NAN",
        ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF",
    ];
    WORDS.contains(&text)
}

fn is_old_boolean(text: &str) -> bool {
    const WORDS: [&str; 16] =
        ["y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "n", "N", "no", "No", "NO", "off", "Off", "OFF"];
    WORDS.contains(&text)
}

fn is_number(text: &str) -> bool {
    match text.bytes().next() {
        // Only these go through `strconv.ParseFloat` as they are, with Go's rule for underscores: each
        // between two digits.
        Some(b'.') => {
            let digits = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
            let bytes = text.as_bytes();
            let between = |at: usize| digits(bytes.get(at.wrapping_sub(1))) && digits(bytes.get(at + 1));
            text.bytes().enumerate().all(|(at, byte)| byte != b'_' || between(at)) && is_float(&text.replace('_', ""))
        }
        Some(b'+' | b'-' | b'0'..=b'9') => {
            let text = text.replace('_', "");
            is_integer(&text) || is_float(&text) || is_signed_behind_its_prefix(&text)
        }
        _ => false,
    }
}

/// `strconv.ParseInt` or `ParseUint` with base 0.
fn is_integer(text: &str) -> bool {
    let (negative, signed, magnitude) = match text.as_bytes().first() {
        Some(b'-') => (true, true, text.get(1..)),
        Some(b'+') => (false, true, text.get(1..)),
        _ => (false, false, Some(text)),
    };
    let magnitude = magnitude.unwrap_or_default();
    let prefixed = |base, digits: &'static [char]| {
        magnitude.strip_prefix('0').and_then(|rest| rest.strip_prefix(digits)).map(|rest| (base, rest))
    };
    let (base, digits) = prefixed(16, &['x', 'X'])
        .or_else(|| prefixed(2, &['b', 'B']))
        .or_else(|| prefixed(8, &['o', 'O']))
        .or_else(|| magnitude.strip_prefix('0').filter(|rest| !rest.is_empty()).map(|rest| (8, rest)))
        .unwrap_or((10, magnitude));
    // Rust takes a sign here, and Go does not.
    if !digits.starts_with(|first: char| first.is_digit(base)) {
        return false;
    }
    let limit = match (negative, signed) {
        (true, _) => 1 << 63,
        (false, true) => i64::MAX as u64,
        (false, false) => u64::MAX,
    };
    u64::from_str_radix(digits, base).is_ok_and(|value| value <= limit)
}

/// `0b` and `0o` with a sign behind the prefix, which yaml.v3 parses a second time by hand.
fn is_signed_behind_its_prefix(text: &str) -> bool {
    let parse = |prefix, base| {
        let digits = text.strip_prefix(prefix)?;
        let signed = digits.starts_with(['+', '-']);
        signed.then(|| i64::from_str_radix(digits, base).is_ok())
    };
    parse("0b", 2).or_else(|| parse("0o", 8)).unwrap_or(false)
}

/// `^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`, and small enough for a float.
fn is_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let mantissa_is_good = match mantissa.split_once('.') {
        Some(("", fraction)) => !fraction.is_empty() && digits(fraction),
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => !mantissa.is_empty() && digits(mantissa),
    };
    let exponent_is_good = exponent.is_none_or(|exponent| !exponent.is_empty() && digits(exponent));
    mantissa_is_good && exponent_is_good && text.parse().is_ok_and(f64::is_finite)
}

/// `^[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?$`
fn is_base_60(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let Some((first, rest)) = unsigned.split_once(':') else { return false };
    let (rest, fraction) = rest.split_once('.').unwrap_or((rest, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let group = |group: &str| match group.as_bytes() {
        [one] => one.is_ascii_digit(),
        [ten, one] => (b'0'..=b'5').contains(ten) && one.is_ascii_digit(),
        _ => false,
    };
    first.starts_with(|byte: char| byte.is_ascii_digit())
        && digits(first)
        && digits(fraction)
        && rest.split(':').all(group)
}

/// What Go's `time.Parse` takes with the layouts `2006-1-2T15:4:5.999999999Z07:00`, the same with a small
/// `t`, `2006-1-2 15:4:5.999999999` and `2006-1-2`.
fn is_timestamp(text: &str) -> bool {
    parse_timestamp(text).is_some()
}

fn parse_timestamp(text: &str) -> Option<()> {
    let bytes = text.as_bytes();
    let (year, rest) = bytes.split_at_checked(4)?;
    if !year.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let year: u32 = std::str::from_utf8(year).ok()?.parse().ok()?;
    let (month, rest) = short_number(rest.strip_prefix(b"-")?)?;
    let (day, rest) = short_number(rest.strip_prefix(b"-")?)?;
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days).contains(&day) {
        return None;
    }
    match rest {
        [] => Some(()),
        [b'T' | b't', rest @ ..] => zone(time(rest)?),
        // Go skips any number of spaces for the one of the layout.
        [b' ', rest @ ..] => time(without_spaces(rest)).filter(|rest| rest.is_empty()).map(drop),
        _ => None,
    }
}

fn without_spaces(bytes: &[u8]) -> &[u8] {
    let spaces = bytes.iter().take_while(|byte| **byte == b' ').count();
    bytes.get(spaces..).unwrap_or_default()
}

/// One or two digits.
fn short_number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let digit = |byte: u8| u32::from(byte) - u32::from(b'0');
    match bytes {
        [ten @ b'0'..=b'9', one @ b'0'..=b'9', rest @ ..] => Some((digit(*ten) * 10 + digit(*one), rest)),
        [one @ b'0'..=b'9', rest @ ..] => Some((digit(*one), rest)),
        _ => None,
    }
}

/// Hours, minutes, seconds and a fraction; gives what follows.
fn time(bytes: &[u8]) -> Option<&[u8]> {
    let (hour, rest) = short_number(bytes)?;
    let (minute, rest) = short_number(rest.strip_prefix(b":")?)?;
    let (second, rest) = short_number(rest.strip_prefix(b":")?)?;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    match rest {
        [b'.' | b',', digits @ ..] if digits.first().is_some_and(u8::is_ascii_digit) => {
            let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
            digits.get(count..)
        }
        _ => Some(rest),
    }
}

/// `Z`, or hours and minutes of two digits each.
fn zone(bytes: &[u8]) -> Option<()> {
    let two = |bytes: &[u8], limit| {
        short_number(bytes).is_some_and(|(number, rest)| bytes.len() == 2 && rest.is_empty() && number <= limit)
    };
    match bytes {
        [b'Z'] => Some(()),
        [b'+' | b'-', h1, h2, b':', m1, m2] => (two(&[*h1, *h2], 24) && two(&[*m1, *m2], 60)).then_some(()),
        _ => None,
    }
}

/// A number as Go's `strconv.FormatFloat(number, 'g', -1, 64)` prints it: the shortest digits that come
/// back as the same number, with an exponent from a million upwards and below a ten-thousandth.
pub fn format_float(number: f64) -> String {
    let shortest = format!("{number:e}");
    let digits = shortest.bytes().take_while(|byte| *byte != b'e').filter(u8::is_ascii_digit).count();
    // Where two texts of that length are as near as each other, Go takes the even one.
    let even = format!("{number:.*e}", digits.saturating_sub(1));
    let scientific = if even.parse() == Ok(number) { even } else { shortest };
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |mantissa| ("-", mantissa));
    let digits = mantissa.replace('.', "");
    match usize::try_from(exponent + 1) {
        Ok(0) | Err(_) => format!("{sign}0.{}{digits}", "0".repeat(exponent.unsigned_abs() as usize - 1)),
        Ok(whole) if digits.len() <= whole => format!("{sign}{digits:0<whole$}"),
        Ok(whole) => {
            let (whole, fraction) = digits.split_at_checked(whole).unwrap_or_default();
            format!("{sign}{whole}.{fraction}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_reads_as_something_else_is_not_text() {
        for text in [
            "",
            "~",
            "Null",
            "TRUE",
            "false",
            ".NaN",
            "+.inf",
            "y",
            "No",
            "oN",
            "OFF",
            "0",
            "-1",
            "+0x1F",
            "0777",
            "0888",
            "0b1",
            "0o7",
            "0b-1",
            "1_000",
            "1.",
            ".5",
            "-.5e3",
            "1e5",
            "18446744073709551616",
            "1:20",
            "-1:59:3.5_",
            "2001-1-1",
            "2000-02-29",
            "2001-1-1T1:2:3Z",
            "2001-1-1t1:2:3.25-07:00",
            "2001-01-01   01:02:03,5",
        ] {
            assert_eq!(stays_text(text), text == "oN", "{text:?}");
        }
        for text in [
            "a",
            "nULL",
            "yep",
            "+.nan",
            "<<",
            "=",
            "1.0.0",
            "v1",
            "0x",
            "0xg",
            "-0b-1",
            "1e400",
            "1:60",
            ":5",
            "_1",
            ".",
            "._1",
            "2001-02-29",
            "2001-13-1",
            "2001-1-1T1:2:3",
            "2001-1-1 24:0:0",
            "20011-1-1",
            "0x1ffffffffffffffff",
            "é",
        ] {
            assert!(stays_text(text), "{text:?}");
        }
    }

    #[test]
    fn floats_are_printed_as_go_prints_them() {
        for (number, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (128.0, "128"),
            (100000.0, "100000"),
            (-123456.5, "-123456.5"),
            (1e6, "1e+06"),
            (123456789.0, "1.23456789e+08"),
            (0.1, "0.1"),
            (0.00012345, "0.00012345"),
            (0.00001, "1e-05"),
            (1.5e300, "1.5e+300"),
            (5e-324, "5e-324"),
            (-1_138_771_982_299_558.2, "-1.1387719822995582e+15"),
        ] {
            assert_eq!(format_float(number), text);
        }
    }
}
