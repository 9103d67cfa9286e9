//! The records of a PAX extended header: `LENGTH KEY=VALUE\n`, checked as Go's `archive/tar` does.

/// What the records say about the next member; everything else in them is checked and dropped.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) size: Option<i64>,
    /// Seconds since 1970.
    pub(super) mtime: Option<i64>,
    /// Whether the member's data is not its content but GNU tar's notation of a file with holes.
    pub(super) sparse: bool,
}

impl Records {
    /// Reads all records; what is wrong with one is said in words. Of two with one key the last
    /// counts, and one without a value leaves the header's.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let mut records = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = split_record(bytes)?;
            records.take(key, value)?;
            bytes = rest;
        }
        Ok(records)
    }

    /// Whether they say anything about members that a listing shows.
    pub(super) fn describes_members(&self) -> bool {
        *self != Self::default()
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let is_text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
        if if is_text { value } else { key }.contains(&0) {
            return Err("a record has a NUL byte");
        }
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| value.to_vec()),
            b"size" => self.size = given.then(|| integer(value)).transpose()?,
            b"mtime" => self.mtime = given.then(|| seconds(value)).transpose()?,
            b"atime" | b"ctime" if given => {
                seconds(value)?;
            }
            b"uid" | b"gid" if given => {
                integer(value)?;
            }
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {}
        }
        Ok(())
    }
}

/// The key and value of a record, and the bytes behind it.
type Split<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits the first record off.
fn split_record(bytes: &[u8]) -> Result<Split<'_>, &'static str> {
    const MALFORMED: &str = "a record's length is wrong";
    let space = bytes.iter().position(|byte| *byte == b' ').ok_or(MALFORMED)?;
    let (digits, _) = bytes.split_at(space);
    let len = integer(digits).ok().and_then(|len| usize::try_from(len).ok()).ok_or(MALFORMED)?;
    let (record, rest) = bytes.split_at_checked(len).ok_or(MALFORMED)?;
    let record = record.get(space + 1..).and_then(|record| record.strip_suffix(b"\n")).ok_or(MALFORMED)?;
    let equals = record.iter().position(|byte| *byte == b'=').ok_or("a record has no `=`")?;
    let (key, value) = record.split_at(equals);
    if key.is_empty() {
        return Err("a record has no key");
    }
    Ok((key, value.get(1..).unwrap_or_default(), rest))
}

fn integer(text: &[u8]) -> Result<i64, &'static str> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or("a record's value is not a number")
}

/// The whole seconds of a time with a decimal fraction, which is checked.
fn seconds(text: &[u8]) -> Result<i64, &'static str> {
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = integer(parts.next().unwrap_or_default())?;
    match parts.next() {
        Some(fraction) if !fraction.iter().all(u8::is_ascii_digit) => Err("a record's value is not a number"),
        _ => Ok(seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_records_that_matter() {
        let records = Records::parse(b"12 path=a/b\n13 size=1000\n17 comment=a b=c\n20 mtime=1700000000.5\n");
        assert!(records.is_err(), "a wrong length");
        let records = Records::parse(b"12 path=a/b\n13 size=1000\n17 comment=a b=c\n22 mtime=1700000000.5\n").unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!((records.size, records.mtime, records.sparse), (Some(1000), Some(1_700_000_000), false));
        assert!(!Records::parse(b"17 comment=gitid\n").unwrap().describes_members());
        assert!(Records::parse(b"11 size=10\n").unwrap().describes_members());
        assert!(Records::parse(b"22 GNU.sparse.major=1\n").unwrap().sparse);
        assert_eq!(Records::parse(b"10 path=a\n8 path=\n").unwrap().path, None);
    }

    #[test]
    fn refuses_what_go_refuses() {
        for bytes in [
            &b"-5 path=x\n"[..],
            b"11 path 123\n",
            b"6 =x\n",
            b"5 =\n",
            b"99 path=x\n",
            b"0 path=x\n",
            b"2 path=x\n",
            b"10 path=xy",
            b"path=x\n",
            b"\0\0\0\0",
            b"11 path=a\0\n",
            b"10 k\0y=a\n",
            b"10 size=x\n",
            b"29 size=18446744073709551616\n",
            b"14 mtime=soon\n",
            b"13 mtime=1.x\n",
            b"9 uid=me\n",
            b"99999999999999999999 path=x\n",
        ] {
            assert!(Records::parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }
}
