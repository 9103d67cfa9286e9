//! What comes after a worker's death.

use std::time::{Duration, Instant};

use crate::fuse::session;
use crate::mounts::holder::{End, Event, Holder, Stage, Worker};
use crate::mounts::message::FromWorker;
use crate::mounts::request::{LastError, MountFailure, State};

/// Deaths in a row, without an answer between them, that a mount survives.
const FRUITLESS_DEATHS: u32 = 5;

/// The pause after the first of them; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A worker that lived longer did not die of the first request it saw.
const LONG_LIFE: Duration = Duration::from_secs(5);

impl Holder {
    /// The worker is dead. Decides what comes after it.
    pub(super) fn bury(&mut self) {
        // What it said last may change what its death means.
        self.hear_worker_out();
        let Some(mut worker) = self.worker.take() else { return };
        let pid = worker.process.pid();
        if !worker.process.is_gone() {
            tracing::warn!(pid, "a dead worker has threads that do not die");
            self.lingering.push(worker.process);
        }
        if self.end.is_some() {
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
        let served = matches!(worker.stage, Stage::Serving)
            && (worker.beat.has_answered() || worker.started.elapsed() >= LONG_LIFE || connection.waiting() == Some(0));
        tracing::warn!(pid, served, "the worker died");
        if served {
            self.fruitless = 0;
            self.restart = Some(Instant::now());
        } else {
            self.count_fruitless("the workers of this mount die before they answer");
        }
    }

    pub(super) fn hear_worker_out(&mut self) {
        while let Some(worker) = &self.worker {
            let Ok(Some((message, descriptors))) = worker.channel.receive::<FromWorker>() else { return };
            // The dead prepare nothing: only what it reported counts.
            match message {
                FromWorker::Failed(failure) => self.give_up_on_worker(failure),
                FromWorker::Report(..) | FromWorker::Ended | FromWorker::Progress(_) => {
                    self.heard(message, descriptors)
                }
                FromWorker::Prepared(_) | FromWorker::Serving => {}
            }
        }
    }

    pub(super) fn count_fruitless(&mut self, message: &str) {
        if self.ready.is_none() {
            self.end = Some(End::Failed(MountFailure::new(1, message)));
            return;
        }
        self.fruitless += 1;
        if self.fruitless < FRUITLESS_DEATHS {
            self.restart = Some(Instant::now() + FIRST_PAUSE * 2u32.pow(self.fruitless - 1));
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
        if self.lingering.len() < before && self.worker.as_ref().is_some_and(Worker::is_serving) {
            if let Some(Err(error)) = self.connection.as_ref().map(|connection| session::resend(connection.device())) {
                tracing::warn!(%error, "requests of a dead worker's last thread may be lost");
            }
        }
    }
}
