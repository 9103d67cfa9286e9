//! Signatures that once held, put back in the place of newer ones, in the registry and in the cache at once. What is
//! mounted stays what was admitted; nothing else is admitted by them, with the registry or without it.

use std::path::Path;

use kitfs::digest::Digest;
use rustix::process::{Pid, Signal};

use crate::signed::push;
use crate::support::host;
use crate::support::kitfs::Kitfs;
use crate::support::registry::{Access, Registry};
use crate::support::shared;
use crate::support::tree::Tree;

/// What is put in the place of the kit's signature by the key that the policy wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replay {
    /// One by that key, of another kit; in the cache, what was kept about the same kit in another place.
    AnotherKit,
    /// One of this kit by another key.
    AnotherKey,
    /// The same, by a key that the policy accepted before.
    NoLongerAccepted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    BeforeMount,
    WhileMounted,
    BetweenBlockReads,
    AcrossRestart,
    DuringEviction,
}

const MOMENTS: [Moment; 5] = [
    Moment::BeforeMount,
    Moment::WhileMounted,
    Moment::BetweenBlockReads,
    Moment::AcrossRestart,
    Moment::DuringEviction,
];

/// A kit in a repository of its own, and an installation that has seen its signatures come and go.
struct Bench<'a> {
    folder: &'a Path,
    registry: &'a Registry,
    /// `sig` or `bundle`: cosign's tags, or referrers.
    form: &'a str,
    replay: Replay,
    repository: String,
    kitfs: Kitfs,
}

impl Bench<'_> {
    fn layout(&self, name: &str) -> std::path::PathBuf {
        self.folder.join("layouts").join(format!("{}-{name}", self.form))
    }

    fn key(&self, name: &str) -> String {
        self.folder.join(format!("keys/{name}.pub")).to_str().expect("a plain path").to_owned()
    }

    fn reference(&self, repository: &str) -> String {
        format!("{}/{repository}:1.0", self.registry.host())
    }

    /// What the cache keeps of the signatures beside the kit in a repository.
    fn kept(&self, repository: &str) -> std::path::PathBuf {
        let index = std::fs::read(self.layout("p256").join("index.json")).expect("a fixture");
        let index: serde_json::Value = serde_json::from_slice(&index).expect("an index");
        let place = format!(
            "{}/{repository}@{}",
            self.registry.host(),
            index["manifests"][0]["digest"].as_str().expect("a digest")
        );
        self.kitfs.path("cache/v1/material").join(Digest::of(place.as_bytes()).hex())
    }

    fn list(&self, repository: &str, words: &[&str]) -> i32 {
        let output = self.kitfs.run(&[&["ls", &self.reference(repository)], words].concat());
        assert!(output.code == 0 || output.stdout.is_empty(), "{output}");
        output.code
    }

    fn run(&self) {
        let (repository, shown) = (self.repository.as_str(), format!("{} {:?}", self.form, self.replay));
        let wanted = self.key("p256");
        let (before, layout, place) = match self.replay {
            Replay::AnotherKit => ("p256", "copied", format!("{repository}-twin")),
            Replay::AnotherKey => ("ed25519", "ed25519", repository.to_owned()),
            Replay::NoLongerAccepted => ("p384", "p384", repository.to_owned()),
        };
        push(self.registry, &self.layout(before), self.folder, &place);
        let accepted = if self.replay == Replay::NoLongerAccepted { self.key(before) } else { wanted.clone() };
        let code = self.list(&place, &["--key", &accepted]);
        assert_eq!(code == 6, self.replay == Replay::AnotherKey, "{shown}: {code}");
        let older = std::fs::read(self.kept(&place)).expect("signatures are kept");
        let replay = || {
            push(self.registry, &self.layout(layout), self.folder, repository);
            let kept = self.kept(repository);
            std::fs::remove_file(&kept).expect("it was kept");
            std::fs::write(kept, &older).expect("our own directory");
        };
        let original = format!("oci:{}:1.0", self.layout("p256").display());
        let original = self.kitfs.mount(&original);
        let truth = Tree::read(original.path());
        original.unmount();
        for moment in MOMENTS {
            let shown = format!("{shown} {moment:?}");
            push(self.registry, &self.layout("p256"), self.folder, repository);
            assert_eq!(self.list(repository, &["--key", &wanted]), 0, "{shown}: what the registry has counts");
            assert_eq!(self.list(repository, &["--key", &wanted, "--offline"]), 0, "{shown}: and is kept");
            if moment == Moment::BeforeMount {
                replay();
            } else {
                let mount = self.kitfs.mount_with(&self.reference(repository), &["--key", &wanted]);
                if moment == Moment::BetweenBlockReads {
                    for file in truth.files() {
                        std::io::Read::read(&mut std::fs::File::open(mount.at(&file)).expect("open"), &mut [0; 1])
                            .expect("read");
                    }
                }
                replay();
                if moment == Moment::AcrossRestart {
                    let worker = Pid::from_raw(mount.process("pid")).expect("a process id");
                    rustix::process::kill_process(worker, Signal::KILL).expect("it runs");
                }
                if moment == Moment::DuringEviction {
                    self.kitfs.run(&["cache", "prune"]).expect(0);
                }
                Tree::read(mount.path()).assert_is(&truth, &shown);
                mount.unmount();
            }
            let offline = ["--key", &wanted, "--offline"];
            assert!([6, 7].contains(&self.list(repository, &offline)), "{shown}: without the registry");
            let from = self.kitfs.path("home");
            let (mount, output) = self.kitfs.try_mount(&self.reference(repository), &offline[..2], &from);
            assert!(mount.is_none() && output.code == 6, "{shown}: {output}");
        }
    }
}

#[test]
fn signatures_that_are_replayed_admit_nothing() {
    let Some(folder) = shared::shared("fixtures/signed") else { return };
    if !host::can_mount() {
        return;
    }
    let Some(registry) = Registry::start(Access::Plain) else { return };
    for form in ["sig", "bundle"] {
        for replay in [Replay::AnotherKit, Replay::AnotherKey, Replay::NoLongerAccepted] {
            let repository = format!("{form}-{replay:?}").to_lowercase();
            Bench { folder: &folder, registry: &registry, form, replay, repository, kitfs: Kitfs::new() }.run();
        }
    }
}
