//! The holder: keeps a mount's connection while workers come and go.
//!
//! One thread, one loop, no waiting but in poll. It starts the worker, mounts when the worker has prepared,
//! starts the next worker when one dies, answers on the control socket, and ends when the connection does.
//! It never touches the mounted file system, and knows nothing of kits.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use crate::fuse::session;
use crate::mounts::beat::Beat;
use crate::mounts::clients::Clients;
use crate::mounts::connection;
use crate::mounts::connection::{Busy, Connection};
use crate::mounts::control::Listener;
use crate::mounts::message::{Answer, FromCaller, FromWorker, Identity, Order, Task, ToCaller, ToWorker};
use crate::mounts::process;
use crate::mounts::process::{Signals, Started};
use crate::mounts::record;
use crate::mounts::record::{Record, Written};
use crate::mounts::request::{AbsolutePath, LastError, MountFailure, MountRequest, Presence, Snapshot, State, Summary};
use crate::mounts::status::Status;
use crate::mounts::wire;
use crate::mounts::wire::Channel;
use crate::mounts::worker::Served;

/// How often a connection without events is looked at. Polling it would wake us for every request on it.
const TICK: Duration = Duration::from_secs(1);

/// How often while something is under way.
const SHORT_TICK: Duration = Duration::from_millis(20);

/// How long the threads of a dead worker may take to follow it. One that is stuck in the kernel never does.
const LAST_THREADS: Duration = Duration::from_secs(1);

/// How long a worker may take from its start to its first answer, if its tree is there already.
const TAKEOVER: Duration = Duration::from_secs(60);

/// Deaths in a row, without an answer between them, that a mount survives.
const FRUITLESS_DEATHS: u32 = 5;

/// The pause after the first of them; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A worker that lived longer did not die of the first request it saw.
const LONG_LIFE: Duration = Duration::from_secs(5);

/// How long a mount that must end may stay busy.
const STOP_POLITELY: Duration = Duration::from_secs(4);

/// How long a worker may take to leave when the connection is gone.
const FAREWELL: Duration = Duration::from_secs(1);

/// The whole life of a holder.
pub(super) fn hold<S: Served>(id: &str, socket: &Path) -> ExitCode {
    let result = process::begin().and_then(|caller| {
        let signals = Signals::block()?;
        let order = caller.wait(Some(Instant::now() + FAREWELL * 10))?;
        let Some((FromCaller::Mount(order), _)) = order else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        S::start_log(&order.request.log, &order.request.state_dir);
        Holder::new(id, socket, *order, caller, signals)?.run()
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "this holder ends");
            ExitCode::FAILURE
        }
    }
}

struct Holder {
    id: String,
    request: MountRequest,
    /// The mount that this one may turn out to be; then nothing is mounted.
    mounted: Option<Summary>,
    signals: Signals,
    /// The process that waits for the mount, or with it.
    caller: Option<Channel>,
    listener: Option<Listener>,
    socket: PathBuf,
    clients: Clients,
    connection: Option<Connection>,
    worker: Option<Worker>,
    /// Dead workers with threads that are not.
    lingering: Vec<Started>,
    /// When to start the next worker.
    restart: Option<Instant>,
    prepared: Option<(Summary, OwnedFd)>,
    /// How the last worker was when last heard of.
    snapshot: Option<Snapshot>,
    /// There once the mount is ready.
    ready: Option<Ready>,
    takeovers: u64,
    /// Deaths in a row without an answer between them.
    fruitless: u32,
    /// No worker lives long enough: every request is refused.
    failed: Option<LastError>,
    stopping: Option<Stopping>,
    end: Option<End>,
    /// What the out-of-memory killer thought of us, and shall think of workers.
    oom_score: Option<i32>,
}

struct Ready {
    /// Removed when dropped.
    _record: Written,
    mounted_at: String,
}

struct Stopping {
    since: Instant,
    next_attempt: Instant,
}

/// How it ends.
enum End {
    /// The connection is gone.
    Unmounted,
    /// Whoever wanted the mount does not any more.
    Cancelled,
    /// There was never a mount.
    Failed(MountFailure),
    /// The kit is mounted already.
    Same(Summary),
}

struct Worker {
    process: Started,
    channel: Channel,
    beat: Beat,
    stage: Stage,
    started: Instant,
    /// When its first thread was seen dead.
    dead: Option<Instant>,
}

enum Stage {
    Preparing,
    /// Shaking hands on the other end of this socket.
    Greeting(OwnedFd),
    Starting,
    Serving,
}

/// What poll can tell of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Signal,
    WorkerMessage,
    Greeting,
    WorkerDeath,
    Caller,
    Client,
    Request,
}

impl Holder {
    fn new(id: &str, socket: &Path, order: Order, caller: Channel, signals: Signals) -> io::Result<Self> {
        let oom_score = process::oom_score();
        if rustix::process::geteuid().is_root() {
            if let Err(error) = process::set_oom_score(-1000) {
                tracing::debug!(%error, "the out-of-memory killer may take the holder");
            }
        }
        Ok(Self {
            id: id.to_owned(),
            request: order.request,
            mounted: order.mounted,
            signals,
            caller: Some(caller),
            listener: None,
            socket: socket.to_owned(),
            clients: Clients::default(),
            connection: None,
            worker: None,
            lingering: Vec::new(),
            restart: Some(Instant::now()),
            prepared: None,
            snapshot: None,
            ready: None,
            takeovers: 0,
            fruitless: 0,
            failed: None,
            stopping: None,
            end: None,
            oom_score,
        })
    }

    fn run(mut self) -> io::Result<()> {
        if self.mounted.is_none() {
            match Listener::bind(&self.socket) {
                Ok(listener) => self.listener = Some(listener),
                Err(error) => {
                    let message = format!("cannot listen at {}: {error}", self.socket.display());
                    self.end = Some(End::Failed(MountFailure::new(1, message)));
                }
            }
        }
        loop {
            self.tick();
            if let Some(end) = self.end.take() {
                self.finish(end);
                return Ok(());
            }
            for event in self.poll()? {
                self.handle(event);
            }
        }
    }

    /// Waits for something to happen, at most until the next tick.
    fn poll(&self) -> io::Result<Vec<Event>> {
        let mut sources = vec![(self.signals.as_fd(), PollFlags::IN, Event::Signal)];
        if let Some(worker) = &self.worker {
            sources.push((worker.channel.as_fd(), PollFlags::IN, Event::WorkerMessage));
            if let Stage::Greeting(greeter) = &worker.stage {
                sources.push((greeter.as_fd(), PollFlags::IN, Event::Greeting));
            }
            if worker.dead.is_none() {
                sources.push((worker.process.leader().as_fd(), PollFlags::IN, Event::WorkerDeath));
            }
        }
        if let Some(caller) = &self.caller {
            sources.push((caller.as_fd(), PollFlags::IN, Event::Caller));
        }
        if let Some(listener) = &self.listener {
            sources.push((listener.as_fd(), PollFlags::IN, Event::Client));
        }
        sources.extend(self.clients.descriptors().map(|client| (client, PollFlags::IN, Event::Client)));
        if let (Some(_), Some(connection)) = (&self.failed, &self.connection) {
            sources.push((connection.device(), PollFlags::IN, Event::Request));
        }
        let busy = self.stopping.is_some()
            || self.restart.is_some()
            || !self.lingering.is_empty()
            || self.worker.as_ref().is_some_and(|worker| worker.dead.is_some())
            || self.clients.any_waiting();
        let timeout = wire::timespec(if busy { SHORT_TICK } else { TICK });
        let mut polled = sources.iter().map(|(fd, flags, _)| PollFd::new(fd, *flags)).collect::<Vec<_>>();
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let happened = polled.iter().zip(&sources).filter(|(polled, _)| !polled.revents().is_empty());
        let mut events = happened.map(|(_, (_, _, event))| *event).collect::<Vec<_>>();
        events.sort_unstable();
        events.dedup();
        Ok(events)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Signal => self.take_signals(),
            Event::WorkerMessage => self.hear_worker(),
            Event::Greeting => self.hear_greeting(),
            Event::WorkerDeath => {
                if let Some(worker) = &mut self.worker {
                    worker.dead.get_or_insert_with(Instant::now);
                }
            }
            Event::Caller => self.hear_caller(),
            Event::Client => self.hear_clients(),
            Event::Request => {
                if let Some(Err(error)) = self.connection.as_ref().map(Connection::refuse_requests) {
                    tracing::error!(%error, "requests cannot be refused; the connection is aborted");
                    self.end = Some(End::Unmounted);
                }
            }
        }
    }

    /// What is due without any event.
    fn tick(&mut self) {
        let now = Instant::now();
        let threads_left = |worker: &mut Worker| {
            worker.dead.is_some_and(|dead| now.duration_since(dead) < LAST_THREADS) && !worker.process.is_gone()
        };
        if self.worker.as_mut().is_some_and(|worker| worker.dead.is_some() && !threads_left(worker)) {
            self.bury();
        }
        self.look_at_lingering();
        if self.ready.is_some() && self.end.is_none() && self.connection.as_ref().is_some_and(Connection::has_ended) {
            self.end = Some(End::Unmounted);
            return;
        }
        if self.restart.is_some_and(|due| due <= now) {
            self.restart = None;
            if let Err(error) = self.start_worker() {
                tracing::error!(%error, "a worker cannot be started");
                self.count_fruitless(&format!("a worker cannot be started: {error}"));
            }
        }
        if let Some(worker) = &self.worker {
            let patient = self.connection.is_none() || matches!(worker.stage, Stage::Serving);
            if !patient && now.duration_since(worker.started) > TAKEOVER && worker.dead.is_none() {
                tracing::error!(pid = worker.process.pid(), "a worker is not ready in time, and is killed");
                worker.process.kill();
            }
        }
        self.stop_if_asked(now);
        let serving = self.worker.as_ref().is_some_and(|worker| matches!(worker.stage, Stage::Serving));
        for client in self.clients.overdue(now, serving) {
            let status = self.status(State::Degraded);
            self.clients.answer(client, status);
        }
    }

    fn start_worker(&mut self) -> io::Result<()> {
        let (channel, theirs) = Channel::pair()?;
        let (beat, page) = Beat::new()?;
        let arguments = [OsStr::new(process::WORK), OsStr::new(&self.id), self.request.directory.as_os_str()];
        // Standard error is the caller's in the foreground, else /dev/null already.
        let child = process::start(&arguments, theirs, Stdio::inherit(), process::Session::Same)?;
        let process = Started::new(child)?;
        tracing::debug!(pid = process.pid(), "a worker is started");
        let task = Task {
            request: self.request.clone(),
            predecessor: self.prepared.as_ref().map(|(summary, _)| (summary.clone(), self.snapshot.clone())),
            oom_score: self.oom_score,
        };
        let mut descriptors = vec![page.as_fd()];
        descriptors.extend(self.prepared.as_ref().map(|(_, tree)| tree.as_fd()));
        // A worker that is dead by now is noticed as any other dead one.
        let sent = channel.send(&ToWorker::Prepare(Box::new(task)), &descriptors);
        if let Err(error) = sent {
            tracing::error!(%error, "a worker cannot be told what to do");
            process.kill();
        }
        self.worker =
            Some(Worker { process, channel, beat, stage: Stage::Preparing, started: Instant::now(), dead: None });
        Ok(())
    }

    fn hear_worker(&mut self) {
        while let Some(worker) = &self.worker {
            match worker.channel.receive::<FromWorker>() {
                Ok(Some((message, descriptors))) => self.heard(message, descriptors),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Its end is noticed by its death; one that lives on without talking is of no use.
                Ok(None) | Err(_) => {
                    worker.process.kill();
                    let _ = wire::readable(worker.process.leader(), Some(Instant::now() + SHORT_TICK));
                    self.handle(Event::WorkerDeath);
                    return;
                }
            }
        }
    }

    fn heard(&mut self, message: FromWorker, mut descriptors: Vec<OwnedFd>) {
        match message {
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
    fn greet(&mut self, summary: Summary, tree: Option<OwnedFd>) -> Result<(), MountFailure> {
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
    fn hear_greeting(&mut self) {
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
        let settled = connection.settle(reply).map_err(|error| MountFailure::new(1, error.to_string()));
        let told = settled.and_then(|()| {
            worker.channel.send(&ToWorker::Serve, &[]).map_err(|error| MountFailure::new(1, error.to_string()))
        });
        match told {
            Ok(()) => worker.stage = Stage::Starting,
            Err(failure) => self.give_up_on_worker(failure),
        }
    }

    /// The worker answers the kernel from now on.
    fn serving(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.stage = Stage::Serving;
            worker.started = Instant::now();
        }
        if self.ready.is_none() {
            if let Err(failure) = self.become_ready() {
                self.end = Some(End::Failed(failure));
            }
            return;
        }
        self.takeovers += 1;
        tracing::warn!(pid = self.worker.as_ref().map(|worker| worker.process.pid()), "a new worker has taken over");
        self.clients.renew();
        self.ask_worker(self.clients.waiting().collect());
    }

    fn become_ready(&mut self) -> Result<(), MountFailure> {
        let (Some(connection), Some((summary, _))) = (&self.connection, &self.prepared) else {
            return Err(MountFailure::new(1, "a worker serves what it did not prepare"));
        };
        if rustix::process::geteuid().is_root() {
            // After INIT, which lowers it to what FUSE may ask for.
            connection.raise_readahead();
        }
        let mounted_at = jiff::Timestamp::now().to_string();
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
            mounted_at: mounted_at.clone(),
            init_request: hex::encode(init_request),
            init_reply: hex::encode(init_reply),
        };
        let record = record.write(&self.request.state_dir, &self.id).map_err(failed)?;
        self.ready = Some(Ready { _record: record, mounted_at });
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
    fn give_up_on_worker(&mut self, failure: MountFailure) {
        if self.ready.is_none() {
            self.end = Some(End::Failed(failure));
            return;
        }
        tracing::error!(%failure, "a worker cannot take over");
        if let Some(worker) = &self.worker {
            worker.process.kill();
        }
    }

    /// The worker is dead. Decides what comes after it.
    fn bury(&mut self) {
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

    fn hear_worker_out(&mut self) {
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

    fn count_fruitless(&mut self, message: &str) {
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
    fn look_at_lingering(&mut self) {
        let before = self.lingering.len();
        self.lingering.retain_mut(|process| !process.is_gone());
        if self.lingering.len() < before && self.worker.as_ref().is_some_and(|w| matches!(w.stage, Stage::Serving)) {
            if let Some(Err(error)) = self.connection.as_ref().map(|connection| session::resend(connection.device())) {
                tracing::warn!(%error, "requests of a dead worker's last thread may be lost");
            }
        }
    }

    fn hear_caller(&mut self) {
        let Some(caller) = &self.caller else { return };
        match caller.receive::<FromCaller>() {
            Ok(Some(_)) => tracing::warn!("the caller asked twice"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => {
                self.caller = None;
                if self.ready.is_none() {
                    self.end = Some(End::Cancelled);
                } else {
                    self.stop();
                }
            }
        }
    }

    fn hear_clients(&mut self) {
        if let Some(listener) = &self.listener {
            self.clients.accept(listener);
        }
        let (identities, statuses) = self.clients.hear();
        for client in identities {
            let answer = self.identity().map_or(Answer::Preparing, |identity| Answer::Identity(Box::new(identity)));
            self.clients.reply(client, &answer);
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
    fn ask_worker(&self, clients: Vec<u64>) {
        let Some(worker) = self.worker.as_ref().filter(|worker| matches!(worker.stage, Stage::Serving)) else { return };
        for client in clients {
            let _ = worker.channel.send(&ToWorker::Report(client), &[]);
        }
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity {
            device: self.connection.as_ref()?.number(),
            request: self.request.clone(),
            summary: self.prepared.as_ref()?.0.clone(),
            has_failed: self.failed.is_some(),
        })
    }

    /// The status, if the mount is ready. `state` is what it is at best.
    fn status(&self, at_best: State) -> Option<Status> {
        let (Some((summary, _)), Some(ready)) = (&self.prepared, &self.ready) else { return None };
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
            takeovers: self.takeovers,
            last_error: self.failed.clone().or_else(|| snapshot.and_then(|snapshot| snapshot.last_error.clone())),
            mounted_at: ready.mounted_at.clone(),
        })
    }

    fn take_signals(&mut self) {
        while let Some(signal) = self.signals.take() {
            // There is no terminal to hang up.
            if signal != libc::SIGHUP {
                self.stop();
            }
        }
    }

    fn stop(&mut self) {
        if self.ready.is_none() {
            self.end.get_or_insert(End::Cancelled);
        } else if self.stopping.is_none() {
            let now = Instant::now();
            self.stopping = Some(Stopping { since: now, next_attempt: now });
        }
    }

    /// Unmounts politely while there is time for it, then takes the mount away from those who use it.
    fn stop_if_asked(&mut self, now: Instant) {
        let Some(stopping) = &mut self.stopping else { return };
        let late = now.duration_since(stopping.since) >= STOP_POLITELY;
        if !late && now < stopping.next_attempt {
            return;
        }
        stopping.next_attempt = now + FIRST_PAUSE * 5;
        let busy = if late { Busy::Detach } else { Busy::Keep };
        match self.unmount(busy) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => tracing::warn!(%error, "the mount cannot be unmounted"),
        }
        if late {
            self.end.get_or_insert(End::Unmounted);
        }
    }

    /// Unmounts, if what is topmost at the directory is ours.
    fn unmount(&self, busy: Busy) -> io::Result<()> {
        let Some(connection) = &self.connection else { return Ok(()) };
        let (_, entry) = crate::mounts::mountinfo::at(&self.request.directory)?;
        if entry.is_some_and(|entry| entry.device == connection.number()) {
            connection::unmount(&self.request.directory, busy)?;
        }
        Ok(())
    }

    /// Leaves nothing behind, and says so.
    fn finish(mut self, end: End) {
        if let Some(connection) = self.connection.take() {
            if !connection.has_ended() {
                self.connection = Some(connection);
                if let Err(error) = self.unmount(Busy::Detach) {
                    tracing::warn!(%error, "the mount is left in the tree");
                }
                if let Some(connection) = self.connection.take().filter(|connection| !connection.has_ended()) {
                    connection.abort();
                }
            }
        }
        if let Some(worker) = &mut self.worker {
            let polite = matches!(end, End::Unmounted) && matches!(worker.stage, Stage::Serving);
            if !polite || !worker.process.wait(FAREWELL) {
                worker.process.kill();
                if !worker.process.wait(FAREWELL) {
                    tracing::error!(pid = worker.process.pid(), "the worker does not die");
                }
            }
        }
        drop((self.listener.take(), self.ready.take()));
        tracing::info!(directory = %self.request.directory.display(), "the mount has ended");
        let last = match end {
            End::Failed(failure) => ToCaller::Failed(failure),
            End::Same(summary) => ToCaller::Same(summary),
            End::Cancelled => ToCaller::Failed(MountFailure::new(1, "the mount was cancelled")),
            End::Unmounted => return,
        };
        if let Some(caller) = &self.caller {
            // A caller that is gone knows.
            let _ = caller.send_patiently(&last, &[], Some(Instant::now() + FAREWELL));
        }
    }
}
