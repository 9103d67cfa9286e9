//! Every operation on a mount against every failure of its source. Metadata answers at once; a read ends in time, in
//! data or in a clear error; a reader can be killed; umount and stop end; and when the source is back, so are the bytes.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;

use crate::support::faults::{Answer, Asked, Content, Faults};
use crate::support::host;
use crate::support::kit::{Kit, Packed};
use crate::support::kitfs::Kitfs;
use crate::support::mount::{Mount, attribute};
use crate::support::tree::Tree;

const SECOND: Duration = Duration::from_secs(1);

/// The longest that a read may wait for its source.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// What a loaded machine may need beyond what is promised.
const SLACK: Duration = Duration::from_secs(3);

/// A file whose layer nobody has read before the source fails, and one whose layer is here.
const COLD: &str = "model/weights.bin";
const WARM: &str = "data/rows.csv";

/// How a source fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    BlackHole,
    Stall,
    Trickle,
    Reset,
    NoSuchHost,
    NameServerHangs,
    Refused,
    TokenServerHangs,
    HelperHangs,
}

/// All but [`Failure::NameServerHangs`], which takes more.
const FAILURES: [Failure; 8] = [
    Failure::BlackHole,
    Failure::Stall,
    Failure::Trickle,
    Failure::Reset,
    Failure::NoSuchHost,
    Failure::Refused,
    Failure::TokenServerHangs,
    Failure::HelperHangs,
];

impl Failure {
    /// What the source answers while it fails, in place of `honest`.
    fn answer(self, asked: &Asked, honest: Answer) -> Answer {
        match self {
            Self::BlackHole => Answer::silence(),
            Self::Stall => honest.stall(1000),
            Self::Trickle => honest.trickle(SECOND),
            Self::Reset => honest.reset(1000),
            Self::NoSuchHost => {
                Answer::new(307).header("Location", format!("http://storage.invalid{}?signed", asked.path))
            }
            Self::NameServerHangs => {
                Answer::new(307).header("Location", format!("http://storage.example{}?signed", asked.path))
            }
            // It does not listen.
            Self::Refused => Answer::new(503),
            Self::TokenServerHangs if asked.path.starts_with("/token") => Answer::silence(),
            Self::TokenServerHangs => {
                let realm = format!(r#"Bearer realm="http://{}/token""#, asked.header("host").unwrap_or_default());
                Answer::new(401).header("WWW-Authenticate", realm)
            }
            Self::HelperHangs => Answer::new(401).header("WWW-Authenticate", r#"Basic realm="kits""#),
        }
    }

    /// What it answers while it does not fail.
    fn honest(self, asked: &Asked, content: &Content) -> Answer {
        let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("reader:secret"));
        match (self, asked.header("authorization")) {
            (Self::TokenServerHangs, _) if asked.path.starts_with("/token") => {
                Answer::new(200).body(r#"{"token":"good"}"#)
            }
            (Self::TokenServerHangs, sent) if sent != Some("Bearer good") => self.answer(asked, Answer::new(401)),
            (Self::HelperHangs, sent) if sent != Some(&basic) => self.answer(asked, Answer::new(401)),
            _ => content.answer(asked),
        }
    }
}

/// A source that can be made to fail, an installation, and a kit.
struct Row {
    failure: Failure,
    kit: Packed,
    kitfs: Kitfs,
    server: Faults,
    is_failing: Arc<AtomicBool>,
    reference: String,
}

impl Row {
    fn new(failure: Failure) -> Self {
        let kit = Kit::usual("usual").pack();
        let content = Content::of(&kit);
        let is_failing = Arc::new(AtomicBool::new(false));
        let fails = Arc::clone(&is_failing);
        let server = Faults::start(move |asked, _| {
            let honest = failure.honest(asked, &content);
            if fails.load(Ordering::SeqCst) {
                return failure.answer(asked, honest);
            }
            honest
        });
        let kitfs = Kitfs::new();
        let helpers = kitfs.path("helpers");
        std::fs::create_dir(&helpers).expect("our own directory");
        let helper = helpers.join("docker-credential-test");
        // Its processes are found by the name of this directory, and must not outlive the mount.
        let script = format!(
            "#!/bin/sh\nif [ -e {0}/hang ]; then sleep 600; fi\necho '{{\"Username\":\"reader\",\"Secret\":\"secret\"}}'\n",
            helpers.display()
        );
        std::fs::write(&helper, script).expect("our own directory");
        std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).expect("our own file");
        let kitfs = match failure {
            Failure::HelperHangs => {
                let config = format!(r#"{{"credHelpers":{{"{}":"test"}}}}"#, server.host());
                std::fs::write(kitfs.path("credentials.json"), config).expect("our own directory");
                let credentials = kitfs.path("credentials.json");
                let path = format!("{}:{}", helpers.display(), std::env::var("PATH").unwrap_or_default());
                kitfs.with("PATH", path).with("KITFS_REGISTRY_CONFIG", credentials)
            }
            _ => kitfs,
        };
        let kitfs = kitfs.with("KITFS_READ_TIMEOUT", "3s");
        let reference = format!("{}/kit:v1", server.host());
        Self { failure, kit, kitfs, server, is_failing, reference }
    }

    fn fail(&self) {
        std::fs::write(self.kitfs.path("helpers/hang"), "").expect("our own directory");
        self.is_failing.store(true, Ordering::SeqCst);
        if self.failure == Failure::Refused {
            self.server.close();
        }
    }

    fn recover(&self) {
        std::fs::remove_file(self.kitfs.path("helpers/hang")).expect("our own file");
        self.is_failing.store(false, Ordering::SeqCst);
        if self.failure == Failure::Refused {
            self.server.open();
        }
    }

    /// Runs something that has to end in time.
    #[track_caller]
    fn within<T>(&self, limit: Duration, what: &str, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = work();
        let took = began.elapsed();
        assert!(took < limit + SLACK, "{:?}: {what} took {took:?}, and {limit:?} is promised", self.failure);
        result
    }

    fn run(&self) {
        let mount = self.kitfs.mount(&self.reference);
        let second = self.kitfs.mount(&self.reference);
        std::fs::read(mount.at(WARM)).expect("the source is there");
        self.fail();
        std::thread::scope(|scope| {
            let metadata = scope.spawn(|| self.metadata_answers_at_once(&mount));
            let read = scope.spawn(|| self.a_read_ends(&mount));
            let fault = scope.spawn(|| self.a_fault_ends(&mount));
            let direct = scope.spawn(|| self.a_direct_read_ends(&mount));
            let killed = scope.spawn(|| self.readers_can_be_killed(&mount));
            let commands = scope.spawn(|| self.commands_end());
            for row in [metadata, read, fault, direct, killed, commands] {
                row.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            }
        });
        self.stop_ends(second);
        // A reader that joins an attempt which is lost already still gets its time.
        self.recover();
        self.within(2 * READ_TIMEOUT, "the first good read", || {
            assert!(
                host::soon(60, || std::fs::read(mount.at(COLD)).is_ok()),
                "{:?}: it never comes back",
                self.failure
            );
        });
        Tree::read(mount.path()).without("Kitfile").assert_is(&self.kit.tree, &format!("{:?}: back", self.failure));
        self.within(5 * SECOND, "umount", || mount.unmount());
        self.umount_ends_while_it_fails();
    }

    fn metadata_answers_at_once(&self, mount: &Mount<'_>) {
        let end = Instant::now() + READ_TIMEOUT;
        // While reads wait, all the time that they may.
        while Instant::now() < end {
            self.within(SECOND / 2, "metadata", || {
                let file = File::open(mount.at(COLD)).expect("open");
                file.metadata().expect("fstat");
                std::fs::metadata(mount.at("src/lib/util.py")).expect("stat");
                assert_eq!(std::fs::read_dir(mount.at("model")).expect("readdir").count(), 2);
                attribute(&mount.at(COLD), "user.kitfs.layer").expect("getxattr");
                assert_eq!(attribute(&mount.at(COLD), "user.kitfs.state").expect("getxattr"), "provisional");
                rustix::fs::statvfs(mount.path()).expect("statfs");
                rustix::fs::statvfs(mount.at(COLD)).expect("statfs");
                std::fs::read(mount.at(WARM)).expect("what is here is read");
                mount.status();
            });
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn a_read_ends(&self, mount: &Mount<'_>) {
        let error = self.within(READ_TIMEOUT, "read", || std::fs::read(mount.at(COLD)).expect_err("the source fails"));
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{:?}", self.failure);
        let error = mount.status()["last_error"].clone();
        let kind = error["kind"].as_str().unwrap_or_default();
        assert!(["unreachable", "denied"].contains(&kind), "{:?}: {error}", self.failure);
    }

    fn a_fault_ends(&self, mount: &Mount<'_>) {
        let child = reader("map", &mount.at(COLD));
        let status = self.within(READ_TIMEOUT, "a fault", || wait(child));
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{:?}: {status}", self.failure);
    }

    fn a_direct_read_ends(&self, mount: &Mount<'_>) {
        let child = reader("direct", &mount.at(COLD));
        let status = self.within(READ_TIMEOUT, "a direct read", || wait(child));
        assert_eq!(status.code(), Some(libc::EIO), "{:?}: {status}", self.failure);
    }

    fn readers_can_be_killed(&self, mount: &Mount<'_>) {
        // A failure is remembered for a second, and then there is something to wait for again.
        for way in ["read", "map", "direct"] {
            for _ in 0..5 {
                let mut child = reader(way, &mount.at(COLD));
                std::thread::sleep(Duration::from_millis(300));
                let is_waiting = child.try_wait().expect("our own child").is_none();
                child.kill().ok();
                self.within(SECOND, "the end of a reader that was killed", || wait(child));
                if is_waiting {
                    break;
                }
                std::thread::sleep(SECOND);
            }
        }
    }

    fn commands_end(&self) {
        // Each asks for the tag, for headers and for layers, verify for documents and signatures too; each has its time.
        for (questions, words) in
            [(3, &["ls", &self.reference][..]), (4, &["cat", &self.reference, COLD]), (7, &["verify", &self.reference])]
        {
            let output = self.within(questions * READ_TIMEOUT, words[0], || self.kitfs.run(words));
            let is_here = words[0] == "ls" && output.code == 0;
            assert!(is_here || [4, 7].contains(&output.code), "{:?}\n{output}", self.failure);
            assert!(is_here || !output.stderr.is_empty(), "{:?}\n{output}", self.failure);
        }
    }

    fn stop_ends(&self, mount: Mount<'_>) {
        let child = reader("read", &mount.at(COLD));
        let holder = mount.process("holder_pid");
        let worker = mount.process("pid");
        self.within(5 * SECOND, "the end of the daemon", || {
            let holder_id = rustix::process::Pid::from_raw(holder).expect("a process id");
            rustix::process::kill_process(holder_id, rustix::process::Signal::TERM).expect("it runs");
            assert!(host::soon(30, || !host::is_alive(holder) && !host::is_alive(worker)), "it runs on");
        });
        self.within(SECOND, "the end of its reader", || wait(child));
        mount.gone();
    }

    fn umount_ends_while_it_fails(&self) {
        // Another cache, so that the layer is cold again.
        let row = Self::new(self.failure);
        let mount = row.kitfs.mount(&row.reference);
        row.fail();
        let mut child = reader("read", &mount.at(COLD));
        std::thread::sleep(Duration::from_millis(300));
        child.kill().ok();
        row.within(SECOND, "the end of a reader that was killed", || wait(child));
        row.within(5 * SECOND, "umount", || mount.unmount());
    }
}

#[test]
fn what_is_here_is_read_beside_many_reads_that_hang() {
    const HANGING: u64 = 100;
    if !host::can_mount() {
        return;
    }
    let kit = Kit::usual("usual").pack();
    let content = Content::of(&kit);
    let (cold, is_silent) = (kit.layer("model.v1").digest.clone(), Arc::new(AtomicBool::new(false)));
    let silent = Arc::clone(&is_silent);
    let server = Faults::start(move |asked, _| match silent.load(Ordering::SeqCst) && asked.path.ends_with(&cold) {
        true => Answer::silence(),
        false => content.answer(asked),
    });
    let kitfs = Kitfs::new().with("KITFS_READ_TIMEOUT", "60s");
    let mount = kitfs.mount(&format!("{}/kit:v1", server.host()));
    // Its layer is here then, and the kernel has nothing of the file.
    let warm = File::open(mount.at(WARM)).expect("it is there");
    std::fs::read(mount.at(WARM)).expect("all is well");
    is_silent.store(true, Ordering::SeqCst);
    let hanging = File::open(mount.at(COLD)).expect("it is there");
    rustix::fs::fadvise(&hanging, 0, None, rustix::fs::Advice::Random).expect("a file");
    rustix::fs::fadvise(&warm, 0, None, rustix::fs::Advice::DontNeed).expect("a file");
    // Sooner than any of those that hang may give up.
    let is_done = |waits: &dyn Fn() -> bool| host::soon(30, waits);
    std::thread::scope(|scope| {
        let begins = scope.spawn(|| {
            for number in 0..HANGING {
                // A request of its own each, which nobody waits for.
                let page = std::num::NonZeroU64::new(4096);
                rustix::fs::fadvise(&hanging, number * 3 * 4096, page, rustix::fs::Advice::WillNeed).expect("a file");
            }
        });
        assert!(is_done(&|| begins.is_finished()), "so many cannot hang");
        let reads = scope.spawn(|| std::fs::read(mount.at(WARM)).expect("it is here").len());
        assert!(is_done(&|| reads.is_finished()), "it has to wait for the others");
        assert_eq!(reads.join().expect("it does not panic"), 70_000);
    });
    is_silent.store(false, Ordering::SeqCst);
    drop((warm, hanging));
    mount.unmount();
}

#[test]
fn nothing_hangs_whatever_the_source_does() {
    if !host::can_mount() {
        return;
    }
    std::thread::scope(|scope| {
        let rows: Vec<_> = FAILURES.map(|failure| scope.spawn(move || Row::new(failure).run())).into_iter().collect();
        for row in rows {
            row.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

#[test]
fn nothing_hangs_when_the_name_server_does() {
    if !host::can_mount() || !host::has("unshare") {
        return;
    }
    // One that takes questions, and answers none. The port is fixed, so the address is one that nobody else has.
    let [low, high, ..] = std::process::id().to_le_bytes();
    let free = (1..=254).find_map(|last| UdpSocket::bind((Ipv4Addr::new(127, high, low, last), 53)).ok());
    let server = free.expect("root may have the port of a name server");
    let mut settings = tempfile::NamedTempFile::new().expect("a temporary file");
    let address = server.local_addr().expect("our own socket").ip();
    writeln!(settings, "nameserver {address}\noptions timeout:30 attempts:1").expect("our own file");
    // With a resolv.conf of its own, and without the mounts of other tests, which it would keep alive.
    let inside = "umount -alt fuse.kitfs; mount --bind \"$1\" /etc/resolv.conf && \
                  exec \"$0\" --exact hangs::as_a_row_of_its_own --nocapture";
    let row = Command::new("unshare")
        .args(["-m", "sh", "-c", inside])
        .arg(std::env::current_exe().expect("the test's program"))
        .arg(settings.path())
        .env("KITFS_TEST_ROW", "name server")
        .output()
        .expect("unshare");
    let said = format!("{}{}", String::from_utf8_lossy(&row.stdout), String::from_utf8_lossy(&row.stderr));
    assert!(row.status.success() && said.contains("1 passed"), "{said}");
    server.set_nonblocking(true).expect("our own socket");
    server.recv(&mut [0; 512]).expect("nobody has asked it");
}

#[test]
fn as_a_row_of_its_own() {
    // In the run of all tests there is nothing to do.
    if std::env::var_os("KITFS_TEST_ROW").is_some() {
        Row::new(Failure::NameServerHangs).run();
    }
}

/// A process that reads a file in some way, which may cost it its life.
fn reader(way: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().expect("the test's program"))
        .args(["--exact", "hangs::as_a_reader", "--nocapture"])
        .env("KITFS_TEST_WAY", way)
        .env("KITFS_TEST_PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the test's program")
}

/// Waits for a child, in whose stead the test fails if that takes for ever.
fn wait(mut child: Child) -> ExitStatus {
    let mut status = None;
    host::soon(60, || {
        status = child.try_wait().expect("our own child");
        status.is_some()
    });
    status.unwrap_or_else(|| panic!("process {} does not end, in state {}", child.id(), state(child.id())))
}

fn state(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default().lines().skip(2).take(1).collect()
}

#[test]
fn as_a_reader() {
    // In the run of all tests there is nothing to do.
    let Some(path) = std::env::var_os("KITFS_TEST_PATH").map(PathBuf::from) else { return };
    let mut file = File::open(path).expect("open");
    match std::env::var("KITFS_TEST_WAY").as_deref() {
        Ok("read") => {
            file.read_to_end(&mut Vec::new()).expect("read");
        }
        Ok("direct") => {
            // Without the page cache, whose waits can be killed.
            let flags = rustix::fs::fcntl_getfl(&file).expect("its own flags") | rustix::fs::OFlags::DIRECT;
            rustix::fs::fcntl_setfl(&file, flags).expect("direct reads");
            let mut aligned = vec![0; 3 * 4096];
            let at = aligned.as_ptr().align_offset(4096);
            if let Err(error) = file.read(&mut aligned[at..at + 8192]) {
                std::process::exit(error.raw_os_error().unwrap_or(1));
            }
        }
        Ok("map") => {
            let len = file.metadata().expect("fstat").len() as usize;
            let flags = rustix::mm::MapFlags::PRIVATE;
            // SAFETY: a new mapping of a file that nobody writes to, read within its length.
            let byte = unsafe {
                let at = rustix::mm::mmap(std::ptr::null_mut(), len, rustix::mm::ProtFlags::READ, flags, &file, 0);
                at.expect("mmap").cast::<u8>().add(len / 2).read_volatile()
            };
            std::hint::black_box(byte);
        }
        other => panic!("there is no way {other:?}"),
    }
}
