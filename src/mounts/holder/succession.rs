//! What comes after a worker's death.

use std::time::{Duration, Instant};

use crate::fuse::session;
use crate::mounts::holder::{End, Event, Holder, Stage, Worker};
use crate::mounts::message::FromWorker;
use crate::mounts::request::{LastError, MountFailure, State};

/// How often workers may die in a row, with no answer between them, before a mount has failed: in deaths that
/// others brought on them. One that they brought on themselves weighs more, for the request that did it
/// comes back.
const FRUITLESS_DEATHS: u32 = 100;

/// What a worker's own death weighs: the fifth is the last.
pub(super) const OWN_DEATH: u32 = 20;

/// The pause after a fruitless death; it doubles with each one that was the worker's own.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a worker may give no sign of life: it gives one every second.
const PULSE: Duration = Duration::from_secs(10);

/// A worker that lived longer did not die of the first request it saw.
const LONG_LIFE: Duration = Duration::from_secs(5);

impl Holder {
    /// The worker is dead. Decides what comes after it.
    pub(super) fn bury(&mut self) {
        // What it said last may change what its death means.
        self.hear_worker_out();
        let Some(mut worker) = self.worker.take() else { return };
        let pid = worker.process.pid();
        let (gone, was_killed) = (worker.process.is_gone(), worker.process.was_killed() && !worker.given_up);
        if !gone {
            tracing::warn!(pid, "a dead worker has threads that do not die");
            self.lingering.push(worker.process);
        }
        if self.end.is_some() {
            return;
        }
        let served = matches!(worker.stage, Stage::Serving);
        if !served && worker.is_first_of_program && self.go_back() {
            return;
        }
        let Some(connection) = self.connection.as_ref().filter(|_| self.ready.is_some()) else {
            let message = "the worker died before the mount was ready (the log may tell why)";
            self.end = Some(End::Failed(MountFailure::new(1, message)));
            return;
        };
        if connection.has_ended() {
            self.end = Some(End::Unmounted);
            return;
        }
        if self.failed.is_some() {
            return;
        }
        // One that had nothing to answer did not die of a request either.
        if gone && !was_killed {
            for request in worker.beat.noted_requests() {
                *self.crashes.entry(request).or_default() += 1;
            }
        }
        let served = served
            && (worker.beat.has_answered() || worker.started.elapsed() >= LONG_LIFE || !connection.has_requests());
        tracing::warn!(pid, served, "the worker died");
        if served {
            self.fruitless = 0;
            self.restart = Some(Instant::now());
        } else {
            let weight = if was_killed { 1 } else { OWN_DEATH };
            self.count_fruitless(weight, "the workers of this mount die before they answer");
        }
    }

    /// Kills a worker that serves and gives no sign of life: it is stopped, or stuck, and its successor is not.
    pub(super) fn listen_to_heart(&mut self, now: Instant) {
        let slept = now.duration_since(std::mem::replace(&mut self.looked, now)) > PULSE / 2;
        let Some(worker) = self.worker.as_mut().filter(|worker| worker.is_serving()) else { return };
        let beats = worker.beat.beats();
        if worker.heard.0 != beats || slept {
            // If this process stood still, so did the worker.
            worker.heard = (beats, now);
        } else if now.duration_since(worker.heard.1) > PULSE {
            tracing::error!(pid = worker.process.pid(), "a worker gives no sign of life, and is killed");
            worker.heard = (beats, now);
            worker.process.kill();
        }
    }

    pub(super) fn hear_worker_out(&mut self) {
        while let Some(worker) = &self.worker {
            let Ok(Some((message, descriptors))) = worker.channel.receive::<FromWorker>() else { return };
            // The dead prepare nothing: only what it reported counts.
            match message {
                FromWorker::Failed(failure) => self.give_up_on_worker(failure),
                FromWorker::Report(..) | FromWorker::Ended | FromWorker::Progress(_) | FromWorker::NeedsHelpers => {
                    self.heard(message, descriptors)
                }
                FromWorker::Confined(_) | FromWorker::Prepared(_) | FromWorker::Serving => {}
            }
        }
    }

    pub(super) fn count_fruitless(&mut self, weight: u32, message: &str) {
        if self.ready.is_none() {
            self.end = Some(End::Failed(MountFailure::new(1, message)));
            return;
        }
        self.fruitless += weight;
        if self.fruitless < FRUITLESS_DEATHS {
            let own = (self.fruitless / OWN_DEATH).saturating_sub(1);
            self.restart = Some(Instant::now() + PAUSE * 2u32.saturating_pow(own));
            return;
        }
        tracing::error!("{message}: the mount has failed, and answers every request with EIO");
        self.failed = Some(LastError::other(message.to_owned()));
        // What the dead ones had taken and not answered.
        if let Some(Err(error)) = self.connection.as_ref().map(|connection| session::resend(connection.device())) {
            tracing::warn!(%error, "requests that dead workers took stay without an answer");
        }
        self.handle(Event::Request);
        for client in self.clients.waiting().collect::<Vec<_>>() {
            let status = self.status(State::Failed);
            self.clients.answer(client, status);
        }
    }

    /// A thread that outlived its worker may have taken a request and died with it, after the requests were
    /// sent again: so they are once more.
    pub(super) fn look_at_lingering(&mut self) {
        let before = self.lingering.len();
        self.lingering.retain_mut(|process| !process.is_gone());
        let Some(connection) = self.connection.as_ref().filter(|_| self.lingering.len() < before) else { return };
        let serving = self.worker.as_ref().is_some_and(Worker::is_serving);
        if let Some(Err(error)) = serving.then(|| session::resend(connection.device())) {
            tracing::warn!(%error, "requests of a dead worker's last thread may be lost");
        }
    }
}
