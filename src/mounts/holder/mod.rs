//! The holder: keeps a mount's connection while workers come and go.
//!
//! One thread, one loop, no waiting but in poll. It starts the worker, mounts when the worker has prepared,
//! starts the next worker when one dies, answers on the control socket, and ends when the connection does.
//! It never touches the mounted file system, and knows nothing of kits.

mod answers;
mod backings;
mod clients;
mod ending;
mod inheritance;
mod succession;
mod upbringing;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

use crate::fuse::beat::Beat;
use crate::fuse::opens;
use crate::mounts::connection::Connection;
use crate::mounts::control::Listener;
use crate::mounts::holder::backings::Backings;
use crate::mounts::holder::clients::Clients;
use crate::mounts::holder::succession::OWN_DEATH;
use crate::mounts::message::{FromCaller, Order};
use crate::mounts::privileges::Privileges;
use crate::mounts::process;
use crate::mounts::process::{ENDING, Signals, Started};
use crate::mounts::record::Written;
use crate::mounts::request::{LastError, MountFailure, MountRequest, Snapshot, State, Summary};
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

/// How long the caller may take to say what it wants.
const ORDER: Duration = Duration::from_secs(10);

/// The whole life of a holder.
pub(super) fn hold<S: Served>(id: &str, socket: &Path) -> ExitCode {
    let result = process::begin().and_then(|caller| {
        let signals = Signals::block(&[ENDING.as_slice(), &[libc::SIGIO]].concat())?;
        let order = caller.wait(Some(Instant::now() + ORDER))?;
        let (order, descriptors) = order.ok_or(io::ErrorKind::UnexpectedEof)?;
        let request = match &order {
            FromCaller::Mount(order) => order.request.clone(),
            FromCaller::Adopt(estate) => estate.request.clone(),
        };
        S::start_log(&request.log, &request.state_dir);
        request.audit.keep_private();
        let holder = match order {
            FromCaller::Mount(order) => Holder::new(id, socket, *order, Some(caller), signals)?,
            FromCaller::Adopt(estate) => Holder::adopt(id, socket, *estate, descriptors, &caller, signals)?,
        };
        if let Some(summary) = holder.run()? {
            S::unmounted(&request, &summary);
        }
        Ok(())
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
    /// What workers are started from.
    program: File,
    /// What the next worker is started from instead, and what this one was before it was; until a worker of the
    /// new program serves.
    next_program: Option<File>,
    old_program: Option<File>,
    /// The worker that another holder left, until it is gone, and when it is to be.
    predecessor: Option<(OwnedFd, Instant)>,
    /// The mount that this one may turn out to be; then nothing is mounted.
    mounted: Option<Summary>,
    signals: Signals,
    /// The process that waits for the mount, or with it.
    caller: Option<Channel>,
    listener: Option<Listener>,
    socket: PathBuf,
    clients: Clients,
    connection: Option<Connection>,
    /// What is open, as workers write it down for those after them.
    opens: OwnedFd,
    backings: Backings,
    worker: Option<Worker>,
    /// Dead workers with threads that are not.
    lingering: Vec<Started>,
    /// When to start the next worker.
    restart: Option<Instant>,
    prepared: Option<(Summary, OwnedFd)>,
    /// When it was mounted, RFC 3339.
    mounted_at: String,
    /// How the last worker was when last heard of.
    snapshot: Option<Snapshot>,
    /// There once the mount is ready.
    ready: Option<Ready>,
    /// Whether a worker was told to answer, and may have said that the kit is mounted.
    was_served: bool,
    takeovers: u64,
    /// What the deaths in a row weigh that had no answer between them.
    fruitless: u32,
    /// How many workers crashed while they worked on a request.
    crashes: HashMap<u64, u32>,
    /// No worker lives long enough: every request is refused.
    failed: Option<LastError>,
    stopping: Option<Stopping>,
    /// When the last tick was.
    looked: Instant,
    end: Option<End>,
    /// What the out-of-memory killer thought of us, and shall think of workers.
    oom_score: Option<i32>,
}

struct Ready {
    /// Removed when dropped.
    _record: Written,
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
    /// Another holder has the mount.
    Replaced,
}

struct Worker {
    process: Started,
    channel: Channel,
    /// On which it has files registered.
    keeper: Channel,
    beat: Beat,
    stage: Stage,
    started: Instant,
    /// Its beats when they were last seen to change, and when that was.
    heard: (u64, Instant),
    /// When its first thread was seen dead.
    dead: Option<Instant>,
    /// What it said that it has left.
    privileges: Option<Privileges>,
    /// It is the first that was started from its program, which may not be able to serve the mount.
    is_first_of_program: bool,
    /// It could not do what it was started for, and was killed for it.
    given_up: bool,
}

impl Worker {
    fn is_serving(&self) -> bool {
        matches!(self.stage, Stage::Serving) && self.dead.is_none()
    }
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
    Keeper,
    Greeting,
    WorkerDeath,
    PredecessorDeath,
    Caller,
    Client,
    Request,
}

impl Holder {
    fn new(id: &str, socket: &Path, order: Order, caller: Option<Channel>, signals: Signals) -> io::Result<Self> {
        let oom_score = process::oom_score();
        if let Err(error) = process::set_oom_score(-1000) {
            tracing::debug!(%error, "the out-of-memory killer may take the holder");
        }
        Ok(Self {
            id: id.to_owned(),
            request: order.request,
            program: process::program()?,
            next_program: None,
            old_program: None,
            predecessor: None,
            mounted: order.mounted,
            signals,
            caller,
            listener: None,
            socket: socket.to_owned(),
            clients: Clients::default(),
            connection: None,
            opens: opens::table()?,
            backings: Backings::default(),
            worker: None,
            lingering: Vec::new(),
            restart: Some(Instant::now()),
            prepared: None,
            mounted_at: String::new(),
            snapshot: None,
            ready: None,
            was_served: false,
            takeovers: 0,
            fruitless: 0,
            crashes: HashMap::new(),
            looked: Instant::now(),
            failed: None,
            stopping: None,
            end: None,
            oom_score,
        })
    }

    /// Holds the mount until it ends; what was mounted, if something was.
    fn run(mut self) -> io::Result<Option<Summary>> {
        if self.mounted.is_none() && self.listener.is_none() {
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
                let mounted = self.prepared.as_ref().filter(|_| self.was_served && !matches!(end, End::Replaced));
                let mounted = mounted.map(|(summary, _)| summary.clone());
                self.finish(end);
                return Ok(mounted);
            }
            for event in self.poll()? {
                self.handle(event);
            }
        }
    }

    /// Waits for something to happen, at most until the next tick.
    fn poll(&self) -> io::Result<Vec<Event>> {
        let mut sources = vec![(self.signals.as_fd(), PollFlags::IN, Event::Signal)];
        // A dead one is always readable, and is heard out when it is buried.
        if let Some(worker) = self.worker.as_ref().filter(|worker| worker.dead.is_none()) {
            sources.push((worker.channel.as_fd(), PollFlags::IN, Event::WorkerMessage));
            sources.push((worker.keeper.as_fd(), PollFlags::IN, Event::Keeper));
            if let Stage::Greeting(greeter) = &worker.stage {
                sources.push((greeter.as_fd(), PollFlags::IN, Event::Greeting));
            }
            sources.push((worker.process.death().as_fd(), PollFlags::IN, Event::WorkerDeath));
        }
        if let Some((predecessor, _)) = &self.predecessor {
            sources.push((predecessor.as_fd(), PollFlags::IN, Event::PredecessorDeath));
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
            Event::Keeper => self.hear_keeper(),
            Event::Greeting => self.hear_greeting(),
            Event::WorkerDeath => {
                if let Some(worker) = &mut self.worker {
                    worker.dead.get_or_insert_with(Instant::now);
                }
            }
            Event::PredecessorDeath => {
                self.predecessor = None;
                self.restart = Some(Instant::now());
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
        if self.worker.as_ref().is_some_and(|worker| worker.dead.is_none() && worker.process.is_headless()) {
            self.handle(Event::WorkerDeath);
        }
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
                self.count_fruitless(OWN_DEATH, &format!("a worker cannot be started: {error}"));
            }
        }
        if let Some(worker) = &mut self.worker {
            let patient = self.connection.is_none() || matches!(worker.stage, Stage::Serving);
            if !patient && now.duration_since(worker.started) > TAKEOVER && worker.dead.is_none() {
                tracing::error!(pid = worker.process.pid(), "a worker is not ready in time, and is killed");
                worker.given_up = true;
                worker.process.kill();
            }
        }
        self.listen_to_heart(now);
        if let Some((predecessor, _)) = self.predecessor.as_ref().filter(|(_, due)| *due <= now) {
            process::signal(predecessor, Signal::KILL);
        }
        self.stop_if_asked(now);
        let serving = self.worker.as_ref().is_some_and(Worker::is_serving);
        for client in self.clients.overdue(now, serving) {
            let status = self.status(State::Degraded);
            self.clients.answer(client, status);
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
}
