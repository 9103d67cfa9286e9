use std::fs;
use std::fs::OpenOptions;
use std::io::Write;

use tempfile::TempDir;

use super::head::HeadFile;
use super::head::Heads;
use super::head::Mark;
use super::*;
use crate::digest::Digest;

/// A log in a state directory of its own.
struct Log {
    folder: TempDir,
    full: u64,
}

impl Log {
    fn new() -> Self {
        Self::rotated_at(FULL)
    }

    fn rotated_at(full: u64) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), full }
    }

    fn path(&self) -> PathBuf {
        default_file(self.folder.path())
    }

    fn key(&self) -> LocalKey {
        LocalKey::new([7; 32])
    }

    /// Another process, as far as files and locks can tell.
    fn audit(&self) -> Arc<Audit> {
        let settings = Settings { file: self.path(), copies: Vec::new(), directory: None };
        Audit::with_limit(settings, self.folder.path(), self.key(), self.full)
    }

    fn write(&self, names: impl IntoIterator<Item = u32>) {
        let audit = self.audit();
        audit.require().unwrap();
        names.into_iter().for_each(|name| audit.record(mounted(name)).unwrap());
    }

    fn verify(&self) -> Verification {
        self.verify_with(Anchor::default())
    }

    fn verify_with(&self, anchor: Anchor) -> Verification {
        verify(&self.path(), self.folder.path(), self.key(), &anchor).unwrap()
    }

    #[track_caller]
    fn holds(&self, lines: u64) -> Verification {
        let result = self.verify();
        assert_eq!((result.lines, &result.error), (lines, &None));
        result
    }

    #[track_caller]
    fn is_broken(&self, word: &str) {
        let error = self.verify().error.expect("the log is broken");
        assert!(error.contains(word), "{error:?} lacks {word:?}");
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    fn set_lines(&self, lines: &[&str]) {
        fs::write(self.path(), lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    }

    fn events(&self) -> Vec<String> {
        lines(&self.path()).unwrap().map(|line| line.unwrap().0.event).collect()
    }

    fn append_raw(&self, bytes: &[u8]) {
        OpenOptions::new().append(true).open(self.path()).unwrap().write_all(bytes).unwrap();
    }

    fn chain(&self) -> Chain {
        Chain {
            head: chain::head_path(self.folder.path(), &self.path()),
            path: self.path(),
            key: self.key(),
            full: self.full,
        }
    }

    /// What a writer says in the head before it writes `bytes` after what is there, and no more.
    fn intend(&self, bytes: &[u8]) {
        let chain = self.chain();
        let heads = head::read(&chain.head, &chain.key).unwrap();
        let Heads::Known(from, _) = &heads else { panic!("{heads:?}") };
        let file = HeadFile::open(&chain.head, &chain.key, &heads, from).unwrap();
        let line = bytes.strip_suffix(b"\n").unwrap();
        let (sequence, hash, len) = (from.sequence + 1, Digest::of(line), from.len + bytes.len() as u64);
        file.intend(from, &Mark { sequence, hash, len, rotated: from.rotated }).unwrap();
    }

    /// The next line, as a writer would write it.
    fn next_line(&self) -> Vec<u8> {
        let end = self.verify();
        let actor = Actor::here(None);
        let previous = end.head.unwrap_or(line::NOTHING);
        let line = line::write(end.sequence + 1, previous, "2026-01-02T03:04:05Z", &actor, &mounted(0)).unwrap();
        format!("{line}\n").into_bytes()
    }
}

fn kit(name: u32) -> Kit {
    Kit { reference: format!("kit:{name}"), digest: Digest::of(&name.to_le_bytes()) }
}

fn mounted(name: u32) -> Event {
    Event::Mounted { kit: kit(name) }
}

fn mismatch(name: u32) -> Event {
    Event::mismatch(&kit(name), None, "sha256:a", "sha256:b", "cache".into())
}

#[test]
fn a_log_that_nobody_touched_holds() {
    let log = Log::new();
    let empty = log.holds(0);
    assert_eq!(empty.head, None);
    log.write(0..3);
    log.write(3..5);
    let result = log.holds(5);
    assert_eq!(result.head, Some(Digest::of(log.text().lines().last().unwrap().as_bytes())));
    assert!(result.notes.is_empty(), "{result:?}");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(log.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_log_without_an_event_touches_nothing() {
    let log = Log::new();
    let audit = log.audit();
    audit.require().unwrap();
    drop(audit);
    assert_eq!(fs::read_dir(log.folder.path()).unwrap().count(), 0);
}

#[test]
fn every_change_is_found() {
    let log = Log::new();
    log.write(0..5);
    let text = log.text();
    let lines: Vec<_> = text.lines().collect();
    let [a, b, c, d, e] = lines[..] else { panic!() };
    for (changed, word) in [
        (&[a, b, d, e][..], "line 3 is expected"),
        (&[b, c, d, e], "line 1 is expected"),
        (&[a, c, b, d, e], "line 2 is expected"),
        (&[a, b, c, d], "lines are missing"),
        (&[a], "lines are missing"),
        (&[], "lines are missing"),
        (&[a, b, c, c, d, e], "line 4 is expected"),
        (&[a, b, c, d, e, e], "line 6 is expected"),
        (&[a, b, &c.replace("kit:2", "kit:3"), d, e], "one of the two was changed"),
        (&[a, b, c, d, &e.replace("kit:4", "kit:3")], "lines are missing, or were added"),
        (&[a, b, "", c, d, e], "no line of an audit log"),
        (&[a, b, "{}", c, d, e], "no line of an audit log"),
    ] {
        log.set_lines(changed);
        log.is_broken(word);
    }
    fs::write(log.path(), text.strip_suffix('\n').unwrap()).unwrap();
    log.is_broken("no whole line");
    fs::write(log.path(), &text[..text.len() - 40]).unwrap();
    log.is_broken("no whole line");
    fs::write(log.path(), format!("{text}x")).unwrap();
    log.is_broken("no whole line");
    fs::remove_file(log.path()).unwrap();
    log.is_broken("lines are missing");
    fs::write(log.path(), &text).unwrap();
    log.holds(5);
    fs::remove_file(log.folder.path().join("audit.head")).unwrap();
    log.is_broken("knows no end of it");
}

#[test]
fn a_chain_that_was_written_anew_is_found_by_its_head() {
    let log = Log::new();
    log.write(0..3);
    let head = log.verify().head;
    let forged = Log::new();
    forged.write(5..8);
    fs::copy(forged.path(), log.path()).unwrap();
    log.is_broken("should end with line 3");
    // Whoever has the key can forge the head too; then an anchor outside tells.
    fs::copy(forged.folder.path().join("audit.head"), log.folder.path().join("audit.head")).unwrap();
    log.holds(3);
    let anchored = log.verify_with(Anchor { head, start: None });
    assert!(anchored.error.unwrap().contains("is not in the log"));
}

#[test]
fn an_old_head_is_in_the_log_for_ever() {
    let log = Log::rotated_at(2000);
    log.write(0..3);
    let head = log.verify().head;
    log.write(3..30);
    assert_eq!(log.verify_with(Anchor { head, start: None }).error, None);
    let other = Some(Digest::of(b"other"));
    assert!(log.verify_with(Anchor { head: other, start: None }).error.is_some());
}

#[test]
fn the_writer_tells_of_a_log_that_was_changed_and_goes_on() {
    let log = Log::new();
    log.write(0..4);
    let text = log.text();
    let first = text.lines().next().unwrap();
    log.set_lines(&[first]);
    log.write(4..6);
    assert_eq!(log.events(), ["mounted", "broken", "mounted", "mounted"]);
    // For ever: nothing that is written later makes it whole again.
    log.is_broken("line 2 is expected");
    // The numbers say how much is gone.
    assert!(log.text().lines().nth(1).unwrap().contains("\"sequence\":5,"), "{}", log.text());
}

#[test]
fn a_lost_head_is_told_in_the_log() {
    let log = Log::new();
    log.write(0..2);
    fs::remove_file(log.folder.path().join("audit.head")).unwrap();
    log.write(2..3);
    log.is_broken("knows no end of it");
    assert_eq!(log.events(), ["mounted", "mounted", "broken", "mounted"]);
}

#[test]
fn the_log_of_another_place_is_verified_as_far_as_it_tells() {
    let log = Log::new();
    log.write(0..3);
    let copy = log.folder.path().join("copy.log");
    fs::copy(log.path(), &copy).unwrap();
    let result = verify(&copy, log.folder.path(), log.key(), &Anchor::default()).unwrap();
    assert_eq!((result.lines, result.error), (3, None));
    assert!(result.notes[0].contains("cut off"), "{:?}", result.notes);
}

#[test]
fn files_are_rotated_without_breaking_the_chain() {
    let log = Log::rotated_at(1000);
    log.write(0..20);
    let files = files::all(&log.path()).unwrap();
    assert!(files.len() > 3, "{files:?}");
    log.holds(20);
    for file in &files[..files.len() - 1] {
        let len = fs::metadata(file).unwrap().len();
        assert!((1000..2000).contains(&len), "{file:?} has {len} bytes");
    }
    // A file that is missing anywhere is found.
    for file in &files {
        let kept = fs::read(file).unwrap();
        fs::remove_file(file).unwrap();
        assert!(log.verify().error.is_some(), "{file:?} is missing");
        fs::write(file, kept).unwrap();
    }
    log.holds(20);
    // Unless it was archived, and its end is known.
    let archived = fs::read_to_string(&files[0]).unwrap();
    fs::remove_file(&files[0]).unwrap();
    let start = Some(Digest::of(archived.lines().last().unwrap().as_bytes()));
    let result = log.verify_with(Anchor { head: None, start });
    assert_eq!((result.error, result.lines, result.sequence), (None, 20 - archived.lines().count() as u64, 20));
    log.write(20..22);
    assert_eq!(log.verify_with(Anchor { head: None, start }).error, None);
}

#[test]
fn many_writers_make_one_chain() {
    let log = Log::rotated_at(5000);
    std::thread::scope(|threads| {
        for name in 0..6 {
            let log = &log;
            threads.spawn(move || log.write((0..20).map(|number| name * 100 + number)));
        }
    });
    log.holds(120);
    let mut kits: Vec<_> = lines(&log.path()).unwrap().map(|line| line.unwrap().0.reference.unwrap()).collect();
    kits.sort_unstable();
    kits.dedup();
    assert_eq!(kits.len(), 120);
}

#[test]
fn a_writer_that_died_in_the_middle_of_a_line_is_no_tampering() {
    let log = Log::new();
    log.write(0..2);
    let line = log.next_line();
    for torn in [0, 1, line.len() / 2, line.len() - 1] {
        let before = log.events().len() as u64;
        let line = log.next_line();
        log.intend(&line);
        log.append_raw(&line[..torn]);
        let result = log.holds(before);
        assert_eq!(result.notes.len(), usize::from(torn > 0), "{result:?}");
        log.write(2..3);
        log.holds(before + 1 + u64::from(torn > 0));
        if torn > 0 {
            let name = format!("audit.log.torn-{}", before + 1);
            assert_eq!(fs::read(log.folder.path().join(name)).unwrap(), line[..torn]);
        }
    }
    assert_eq!(log.events().iter().filter(|event| *event == "repaired").count(), 3);
}

#[test]
fn a_writer_that_died_behind_a_line_has_written_it() {
    let log = Log::new();
    log.write(0..2);
    let line = log.next_line();
    log.intend(&line);
    log.append_raw(&line);
    log.holds(3);
    log.write(2..3);
    log.holds(4);
}

#[test]
fn a_line_that_was_cut_is_no_crash() {
    let log = Log::new();
    log.write(0..3);
    let text = log.text();
    // What a crash would leave, but nobody was about to write anything.
    fs::write(log.path(), &text[..text.len() - 10]).unwrap();
    log.is_broken("no whole line");
    log.write(3..4);
    assert!(log.events().contains(&"broken".to_owned()));
}

#[test]
fn a_writer_that_died_while_it_rotated_loses_nothing() {
    for steps in [1, 2] {
        let log = Log::rotated_at(1000);
        while fs::metadata(log.path()).map_or(0, |metadata| metadata.len()) < 1000 {
            log.write(0..1);
        }
        let before = log.verify().lines;
        fs::hard_link(log.path(), files::rotated(&log.path(), 1)).unwrap();
        if steps == 2 {
            fs::remove_file(log.path()).unwrap();
            fs::write(log.path(), "").unwrap();
        }
        log.holds(before);
        log.write(1..3);
        log.holds(before + 2);
        assert_eq!(files::all(&log.path()).unwrap().len(), 2);
    }
}

#[test]
fn a_log_that_cannot_be_written_is_an_error_only_where_one_is_required() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["/dev/full".into(), folder.path().to_owned(), "/proc/audit.log".into()] {
        let settings = Settings { file, copies: Vec::new(), directory: None };
        let audit = Audit::new(settings, folder.path(), LocalKey::new([7; 32]));
        audit.record(mounted(1)).unwrap();
        assert!(audit.trouble().is_some());
        audit.require().unwrap_err();
        let error = audit.record(mounted(1)).unwrap_err();
        assert!(ledger::chain(&*error).contains("cannot write the audit log"), "{error}");
    }
}

#[test]
fn a_full_disk_leaves_the_log_whole() {
    let log = Log::new();
    log.write(0..1);
    let line = log.next_line();
    // As if a write had been cut short and could not be taken back.
    log.intend(&line);
    log.append_raw(&line[..20]);
    log.holds(1);
    log.write(1..2);
    log.holds(3);
}

#[test]
fn the_same_mismatch_again_is_left_out() {
    let log = Log::new();
    let audit = log.audit();
    for _ in 0..50 {
        audit.record_soon(mismatch(1));
        audit.record_soon(mismatch(2));
    }
    drop(audit);
    log.holds(2);
}

#[test]
fn what_is_to_be_recorded_soon_comes_before_what_is_recorded_after_it() {
    let log = Log::new();
    let audit = log.audit();
    (0..20).for_each(|name| audit.record_soon(mounted(name)));
    audit.record(mounted(20)).unwrap();
    let kits: Vec<_> = lines(&log.path()).unwrap().map(|line| line.unwrap().0.reference.unwrap()).collect();
    assert_eq!(kits, (0..21).map(|name| format!("kit:{name}")).collect::<Vec<_>>());
}

#[test]
fn long_texts_of_a_policy_are_cut() {
    let log = Log::new();
    let reasons = vec!["ä".repeat(10_000); 100];
    let event =
        Event::Decision { kit: kit(1), verdict: "deny".into(), rules: Vec::new(), identities: Vec::new(), reasons };
    log.audit().record(event).unwrap();
    log.holds(1);
    assert!(log.text().len() < 32 * 1024 && log.text().contains("and 84 more"), "{}", log.text().len());
}

#[test]
fn a_hostile_log_is_read_without_harm() {
    let log = Log::new();
    log.write(0..1);
    let line = log.text();
    for bytes in [
        vec![b'x'; 3 << 20],
        vec![b'\n'; 1000],
        vec![0; 1000],
        b"\xff\xfe\n".to_vec(),
        line.replace("\"sequence\":1", "\"sequence\":18446744073709551615").into_bytes(),
        line.replace("\"sequence\":1", "\"sequence\":-1").into_bytes(),
        line.replace("sha256:0", "sha256:G").into_bytes(),
        format!("{{\"sequence\":1,{}", &line[1..]).into_bytes(),
        "[".repeat(100_000).into_bytes(),
    ] {
        fs::write(log.path(), &bytes).unwrap();
        assert!(log.verify().error.is_some());
        assert!(lines(&log.path()).unwrap().all(|line| line.is_ok()));
        log.write(1..2);
        assert!(log.verify().error.is_some());
        fs::remove_file(log.folder.path().join("audit.head")).unwrap();
    }
}
