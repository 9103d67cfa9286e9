//! Processes that stand still while a reader waits, as in a container that is paused: time in which nobody ran is
//! nobody's delay, and the reader has its bytes.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::support::faults::{Answer, Asked, Content, Faults};
use crate::support::host;
use crate::support::kit::Kit;
use crate::support::kitfs::Kitfs;
use crate::support::tree::Tree;

/// The longest that a read may wait for its source.
const READ_TIMEOUT: Duration = Duration::from_secs(6);

/// Longer than that, and shorter than what a worker alone may be without a sign of life.
const STANDSTILL: Duration = Duration::from_secs(9);

/// A file whose layer nobody has read before.
const COLD: &str = "model/weights.bin";

fn send(pid: i32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid).expect("a process id"), signal).expect("it runs");
}

/// Stops these processes of a mount while a reader waits for its source, which does well again once they go on.
fn check(stopped: &[&str], failing: fn(Answer) -> Answer) {
    let kit = Kit::usual("usual").pack();
    let content = Content::of(&kit);
    let cold = kit.layer("model.v1").digest.clone();
    let is_failing = Arc::new(AtomicBool::new(false));
    let fails = Arc::clone(&is_failing);
    let server = Faults::start(move |asked, _| {
        let answer = content.answer(asked);
        if fails.load(Ordering::SeqCst) { failing(answer) } else { answer }
    });
    let kitfs = Kitfs::new().with("KITFS_READ_TIMEOUT", format!("{}s", READ_TIMEOUT.as_secs()));
    let mount = kitfs.mount(&format!("{}/kit:v1", server.host()));
    let is_cold = |asked: &Asked| asked.path.ends_with(&cold);
    let before = server.asked().iter().filter(|asked| is_cold(asked)).count();
    is_failing.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| std::fs::read(mount.at(COLD)));
        let is_asked = || server.asked().iter().filter(|asked| is_cold(asked)).count() > before;
        assert!(host::soon(30, is_asked), "nobody asks the source");
        let pids: Vec<_> = stopped.iter().map(|key| mount.process(key)).collect();
        pids.iter().for_each(|pid| send(*pid, Signal::STOP));
        std::thread::sleep(STANDSTILL);
        pids.iter().rev().for_each(|pid| send(*pid, Signal::CONT));
        // It looks at its deadlines before anything else comes.
        mount.status();
        assert!(!reader.is_finished(), "{:?}", reader.join());
        is_failing.store(false, Ordering::SeqCst);
        reader.join().expect("it does not panic").expect("no deadline passes while nobody runs");
    });
    Tree::read(mount.path()).without("Kitfile").assert_is(&kit.tree, "after the standstill");
    mount.unmount();
}

#[test]
fn no_deadline_passes_while_nobody_runs() {
    if !host::can_mount() {
        return;
    }
    let silence = |_: Answer| Answer::silence();
    let stall = |honest: Answer| honest.stall(1000);
    std::thread::scope(|scope| {
        // All of a mount, and a worker that its holder must not give up for that.
        scope.spawn(|| check(&["holder_pid", "pid"], silence));
        scope.spawn(|| check(&["holder_pid", "pid"], stall));
        scope.spawn(|| check(&["pid"], silence));
    });
}

#[test]
fn no_push_fails_because_nobody_runs() {
    let content = Content::of(&Kit::usual("usual").pack());
    let (is_asked, goes_on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (asked_for, may_go_on) = (Arc::clone(&is_asked), Arc::clone(&goes_on));
    // A registry that takes its time for an upload, and believes what it is told.
    let server = Faults::start(move |asked, _| match asked.method.as_str() {
        "POST" => {
            asked_for.store(true, Ordering::SeqCst);
            host::soon(60, || may_go_on.load(Ordering::SeqCst));
            Answer::new(202).header("Location", "/v2/kit/blobs/uploads/1")
        }
        "PUT" => Answer::new(201).header("Location", "/v2/kit/blobs/1"),
        _ if asked.path.contains("/referrers/") => {
            let list =
                r#"{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}"#;
            Answer::new(200).header("Content-Type", "application/vnd.oci.image.index.v1+json").body(list)
        }
        _ => content.answer(asked),
    });
    let kitfs = Kitfs::new().with("KITFS_READ_TIMEOUT", format!("{}s", READ_TIMEOUT.as_secs()));
    let reference = format!("{}/kit:v1", server.host());
    let mut command = kitfs.other(kitfs.program());
    command.args(["index", &reference, "--attach"]);
    let mut push = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary under test");
    let pid = i32::try_from(push.id()).expect("a process id");
    assert!(host::soon(60, || is_asked.load(Ordering::SeqCst)), "nothing is pushed");
    send(pid, Signal::STOP);
    std::thread::sleep(STANDSTILL);
    send(pid, Signal::CONT);
    // It looks at its deadlines before the answer comes.
    std::thread::sleep(Duration::from_secs(1));
    assert!(push.try_wait().expect("our own child").is_none(), "a deadline passes while nobody runs");
    goes_on.store(true, Ordering::SeqCst);
    let output = push.wait_with_output().expect("our own child");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
