//! What the holder says of the mount to those who ask.

use crate::mounts::holder::Holder;
use crate::mounts::message::{Answer, Identity, Query, ToWorker};
use crate::mounts::request::State;
use crate::mounts::status::Status;

impl Holder {
    pub(super) fn hear_clients(&mut self) {
        if let Some(listener) = &self.listener {
            self.clients.accept(listener);
        }
        let mut statuses = Vec::new();
        for (client, query, descriptor) in self.clients.hear() {
            let answer = match query {
                Query::Identity => self.identity().map(|identity| Answer::Identity(Box::new(identity))),
                Query::Upgrade => {
                    descriptor.is_some_and(|program| self.upgrade(program.into())).then_some(Answer::Upgrading)
                }
                Query::Status => {
                    statuses.push(client);
                    continue;
                }
            };
            self.clients.reply(client, &answer.unwrap_or(Answer::Preparing));
        }
        if self.ready.is_none() {
            for client in statuses {
                self.clients.reply(client, &Answer::Preparing);
            }
        } else if self.failed.is_some() {
            for client in statuses {
                let status = self.status(State::Failed);
                self.clients.answer(client, status);
            }
        } else {
            self.ask_worker(statuses);
        }
    }

    /// Asks the worker how it is. One that is dead or does not listen is asked in vain, and the next one
    /// again.
    pub(super) fn ask_worker(&self, clients: Vec<u64>) {
        let Some(worker) = self.worker.as_ref().filter(|worker| worker.is_serving()) else { return };
        for client in clients {
            let _ = worker.channel.send(&ToWorker::Report(client), &[]);
        }
    }

    pub(super) fn identity(&self) -> Option<Identity> {
        Some(Identity {
            device: self.connection.as_ref()?.number(),
            request: self.request.clone(),
            summary: self.prepared.as_ref()?.0.clone(),
            has_failed: self.failed.is_some(),
        })
    }

    /// The status, if the mount is ready. `state` is what it is at best.
    pub(super) fn status(&self, at_best: State) -> Option<Status> {
        let (Some((summary, _)), Some(_)) = (&self.prepared, &self.ready) else { return None };
        let snapshot = self.snapshot.as_ref();
        let state = match (at_best, snapshot) {
            (State::Ready, Some(snapshot)) => snapshot.state,
            (at_best, _) => at_best,
        };
        Some(Status {
            directory: self.request.directory.to_string_lossy().into_owned(),
            reference: self.request.reference.clone(),
            digest: summary.digest,
            pid: self.worker.as_ref().map_or(0, |worker| worker.process.pid()),
            holder_pid: std::process::id(),
            state,
            signers: summary.signers.clone(),
            policy: summary.policy,
            passthrough: snapshot.is_some_and(|snapshot| snapshot.passthrough),
            bytes_total: summary.bytes_total,
            bytes_verified: snapshot.map_or(0, |snapshot| snapshot.bytes_verified),
            bytes_fetched: snapshot.map_or(0, |snapshot| snapshot.bytes_fetched),
            cache_hits: snapshot.map_or(0, |snapshot| snapshot.cache_hits),
            privileges: self.worker.as_ref().and_then(|worker| worker.privileges.clone()),
            takeovers: self.takeovers,
            last_error: self.failed.clone().or_else(|| snapshot.and_then(|snapshot| snapshot.last_error.clone())),
            mounted_at: self.mounted_at.clone(),
        })
    }
}
