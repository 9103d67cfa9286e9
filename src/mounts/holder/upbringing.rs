//! From the start of a worker to its first answer.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::Instant;

use crate::fs::Passthrough;
use crate::fuse::beat::Beat;
use crate::mounts::connection::Connection;
use crate::mounts::holder::{End, Event, Holder, Ready, SHORT_TICK, Stage, TICK, Worker};
use crate::mounts::message::{FromWorker, Task, ToCaller, ToWorker};
use crate::mounts::process;
use crate::mounts::process::Started;
use crate::mounts::record;
use crate::mounts::record::Record;
use crate::mounts::request::{AbsolutePath, MountFailure, Presence, State, Summary};
use crate::mounts::wire;
use crate::mounts::wire::Channel;

impl Holder {
    pub(super) fn start_worker(&mut self) -> io::Result<()> {
        let is_first_of_program = self.next_program.is_some();
        if let Some(next) = self.next_program.take() {
            self.old_program = Some(std::mem::replace(&mut self.program, next));
        }
        let (channel, theirs) = Channel::pair()?;
        let (keeper, asking) = Channel::pair()?;
        let (beat, page) = Beat::new()?;
        let arguments = [OsStr::new(process::WORK), OsStr::new(&self.id), self.request.directory.as_os_str()];
        // Standard error is the caller's in the foreground, else /dev/null already.
        let kept = self.request.audit.descriptors();
        let child = process::start(&self.program, &arguments, theirs, Stdio::inherit(), process::Session::Same, kept)?;
        let process = Started::new(child)?;
        tracing::debug!(pid = process.pid(), "a worker is started");
        let task = Task {
            request: self.request.clone(),
            predecessor: self.prepared.as_ref().map(|(summary, _)| (summary.clone(), self.snapshot.clone())),
            condemned: self.crashes.iter().filter(|(_, times)| **times > 1).map(|(request, _)| *request).collect(),
            oom_score: self.oom_score,
        };
        let mut descriptors = vec![page.as_fd(), asking.as_fd(), self.opens.as_fd()];
        descriptors.extend(self.prepared.as_ref().map(|(_, tree)| tree.as_fd()));
        // A worker that is dead by now is noticed as any other dead one.
        let sent = channel.send(&ToWorker::Prepare(Box::new(task)), &descriptors);
        if let Err(error) = sent {
            tracing::error!(%error, "a worker cannot be told what to do");
            process.kill();
        }
        self.worker = Some(Worker {
            process,
            channel,
            keeper,
            beat,
            stage: Stage::Preparing,
            started: Instant::now(),
            heard: (0, Instant::now()),
            dead: None,
            privileges: None,
            is_first_of_program,
            given_up: false,
        });
        Ok(())
    }

    pub(super) fn hear_worker(&mut self) {
        while let Some(worker) = &self.worker {
            match worker.channel.receive::<FromWorker>() {
                Ok(Some((message, descriptors))) => self.heard(message, descriptors),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Its end is noticed by its death; one that lives on without talking is of no use.
                Ok(None) | Err(_) => {
                    worker.process.kill();
                    let _ = wire::readable(worker.process.death(), Some(Instant::now() + SHORT_TICK));
                    self.handle(Event::WorkerDeath);
                    return;
                }
            }
        }
    }

    pub(super) fn heard(&mut self, message: FromWorker, mut descriptors: Vec<OwnedFd>) {
        match message {
            FromWorker::Confined(left) => {
                if let Some(worker) = &mut self.worker {
                    worker.privileges = Some(left);
                }
            }
            FromWorker::Progress(progress) => {
                if let Some(caller) = self.caller.as_ref().filter(|_| self.ready.is_none()) {
                    // A terminal that is stopped misses some.
                    let _ = caller.send(&ToCaller::Progress(progress), &[]);
                }
            }
            FromWorker::Prepared(summary) => {
                if let Err(failure) = self.greet(summary, descriptors.pop()) {
                    self.give_up_on_worker(failure);
                }
            }
            FromWorker::Failed(failure) => self.give_up_on_worker(failure),
            FromWorker::NeedsHelpers => {
                // What confines a worker confines the programs that it starts. The next one is not.
                self.request.source.helpers = true;
                if let Some(worker) = self.worker.take() {
                    worker.process.kill();
                    self.lingering.push(worker.process);
                }
                self.restart = Some(Instant::now());
            }
            FromWorker::Serving => self.serving(),
            FromWorker::Report(number, snapshot) => {
                self.snapshot = Some(snapshot);
                if let Some(client) = number {
                    let status = self.status(State::Ready);
                    self.clients.answer(client, status);
                }
            }
            FromWorker::Ended => {
                if self.connection.as_ref().is_none_or(Connection::has_ended) {
                    self.end.get_or_insert(End::Unmounted);
                }
            }
        }
    }

    /// The worker has prepared: mounts if it is the first one, and lets it shake hands.
    pub(super) fn greet(&mut self, summary: Summary, tree: Option<OwnedFd>) -> Result<(), MountFailure> {
        if let Some(mounted) = &self.mounted {
            if mounted.digest == summary.digest {
                self.end = Some(End::Same(summary));
                return Ok(());
            }
            let directory = self.request.directory.display();
            let message = format!(
                "{directory} has {} mounted, and {} is now {}",
                mounted.digest, self.request.reference, summary.digest
            );
            return Err(MountFailure::new(2, message));
        }
        match &self.prepared {
            Some((first, _)) if first.digest != summary.digest => {
                return Err(MountFailure::new(
                    1,
                    format!("a worker prepared {} in place of {}", summary.digest, first.digest),
                ));
            }
            Some(_) => {}
            None => {
                let tree = tree.ok_or_else(|| MountFailure::new(1, "a worker prepared no tree"))?;
                self.prepared = Some((summary, tree));
            }
        }
        if self.connection.is_none() {
            let connection =
                Connection::mount(&self.request).map_err(|error| MountFailure::new(1, error.to_string()))?;
            self.connection = Some(connection);
            self.mounted_at = jiff::Timestamp::now().to_string();
        }
        let (Some(connection), Some(worker)) = (&self.connection, &mut self.worker) else { return Ok(()) };
        let greeted = connection.greeter().and_then(|(ours, theirs)| {
            worker.channel.send(&ToWorker::Greet, &[connection.device(), theirs.as_fd()])?;
            Ok(ours)
        });
        worker.stage = Stage::Greeting(greeted.map_err(|error| MountFailure::new(1, error.to_string()))?);
        Ok(())
    }

    /// The worker has answered INIT.
    pub(super) fn hear_greeting(&mut self) {
        let (Some(worker), Some(connection)) = (&mut self.worker, &mut self.connection) else { return };
        let Stage::Greeting(greeter) = &worker.stage else { return };
        let mut reply = vec![0; 4096];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(greeter, &mut reply)).unwrap_or(0);
        reply.truncate(length);
        if reply.is_empty() {
            // It hung up; it dies, or it is killed for being late.
            worker.stage = Stage::Starting;
            return;
        }
        worker.stage = Stage::Starting;
        if let Err(error) = connection.settle(reply) {
            return self.give_up_on_worker(MountFailure::new(1, error.to_string()));
        }
        let passthrough = self.request.passthrough != Passthrough::Off
            && match self.probe_passthrough() {
                Ok(()) => true,
                Err(error) => {
                    tracing::info!(%error, "the kernel does not read cached files by itself here");
                    false
                }
            };
        let (Some(worker), Some(estate)) = (&self.worker, self.estate()) else { return };
        match worker.channel.send(&ToWorker::Serve { passthrough, estate: Box::new(estate) }, &[]) {
            Ok(()) => self.was_served = true,
            Err(error) => self.give_up_on_worker(MountFailure::new(1, error.to_string())),
        }
    }

    /// The worker answers the kernel from now on.
    pub(super) fn serving(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.stage = Stage::Serving;
            worker.started = Instant::now();
            worker.heard = (worker.beat.beats(), worker.started);
        }
        if self.ready.is_none() {
            if let Err(failure) = self.become_ready() {
                self.end = Some(End::Failed(failure));
            }
            return;
        }
        self.takeovers += 1;
        self.tell_touched();
        tracing::warn!(pid = self.worker.as_ref().map(|worker| worker.process.pid()), "a new worker has taken over");
        self.clients.renew();
        self.ask_worker(self.clients.waiting().collect());
        self.finish_upgrade();
    }

    /// Writes down what is mounted.
    pub(super) fn write_record(&self) -> Result<Ready, MountFailure> {
        let (Some(connection), Some((summary, _))) = (&self.connection, &self.prepared) else {
            return Err(MountFailure::new(1, "a worker serves what it did not prepare"));
        };
        let (init_request, init_reply) = connection.negotiated();
        let failed = |error: io::Error| MountFailure::new(1, format!("the mount cannot be recorded: {error}"));
        let record = Record {
            version: record::VERSION,
            directory: self.request.directory.clone(),
            reference: self.request.reference.clone(),
            summary: summary.clone(),
            holder_pid: std::process::id(),
            socket: AbsolutePath::new(&self.socket).map_err(failed)?,
            device: connection.number(),
            mounted_at: self.mounted_at.clone(),
            init_request: hex::encode(init_request),
            init_reply: hex::encode(init_reply),
        };
        Ok(Ready { _record: record.write(&self.request.state_dir, &self.id).map_err(failed)? })
    }

    pub(super) fn become_ready(&mut self) -> Result<(), MountFailure> {
        self.ready = Some(self.write_record()?);
        let (Some(connection), Some((summary, _))) = (&self.connection, &self.prepared) else { return Ok(()) };
        if rustix::process::geteuid().is_root() && !summary.comes_in_parts {
            // After INIT, which lowers it to what FUSE may ask for.
            connection.raise_readahead();
        }
        tracing::info!(reference = self.request.reference, digest = %summary.digest, directory = %self.request.directory.display(), "mounted");
        let told = match &self.caller {
            Some(caller) => {
                // The caller may have its terminal stopped; while it lives, there is room for this.
                let deadline = Some(Instant::now() + TICK * 5);
                caller.send_patiently(&ToCaller::Ready(summary.clone()), &[], deadline)
            }
            None => Ok(()),
        };
        if told.is_err() {
            self.end = Some(End::Cancelled);
        } else if self.request.presence == Presence::Background {
            self.caller = None;
        }
        Ok(())
    }

    /// A worker cannot do it. The first one's failure is the mount's, a later one's counts as a death.
    pub(super) fn give_up_on_worker(&mut self, failure: MountFailure) {
        if self.ready.is_none() {
            self.was_served = false;
            self.end = Some(End::Failed(failure));
            return;
        }
        tracing::error!(%failure, "a worker cannot take over");
        if let Some(worker) = &mut self.worker {
            worker.given_up = true;
            worker.process.kill();
        }
    }
}
