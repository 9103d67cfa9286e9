//! Holders that follow each other: one that takes a mount, and one that leaves it to another program.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::mounts::connection::Connection;
use crate::mounts::control::Listener;
use crate::mounts::estate;
use crate::mounts::estate::{Estate, Keys};
use crate::mounts::holder::{End, Holder};
use crate::mounts::message::{Order, ToCaller};
use crate::mounts::process;
use crate::mounts::process::Signals;
use crate::mounts::record;
use crate::mounts::wire::Channel;

/// How long the worker that another holder left may take to leave.
const FAREWELL: Duration = Duration::from_secs(2);

impl Holder {
    /// Holds what another one held. Its worker is seen off, and followed by one of ours.
    pub(super) fn adopt(
        id: &str,
        socket: &Path,
        estate: Estate,
        descriptors: Vec<OwnedFd>,
        giver: &Channel,
        signals: Signals,
    ) -> io::Result<Self> {
        let [device, tree, opens] =
            <[OwnedFd; 3]>::try_from(descriptors).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let order = Order { request: estate.request, mounted: None };
        let mut holder = Self::new(id, socket, order, None, signals)?;
        holder.listener = Some(Listener::bind(socket)?);
        let connection = Connection::adopt(device, estate.device, estate.init_request, estate.init_reply);
        holder.connection = Some(connection);
        holder.opens = opens;
        holder.prepared = Some((estate.summary.clone(), tree));
        holder.snapshot = estate.snapshot;
        holder.mounted_at = estate.mounted_at;
        holder.takeovers = estate.takeovers;
        holder.oom_score = estate.oom_score;
        holder.was_served = true;
        holder.ready = Some(holder.write_record().map_err(io::Error::other)?);
        let state_dir = holder.request.state_dir.clone();
        record::forget(&state_dir, &estate.id);
        let _gone = std::fs::remove_file(holder.request.runtime_dir.join(format!("{}.sock", estate.id)));
        holder.predecessor = process::watch(estate.worker).map(|worker| (worker, Instant::now() + FAREWELL));
        // Nobody to wait for.
        holder.restart = holder.predecessor.is_none().then(Instant::now);
        tracing::warn!(reference = holder.request.reference, "another process holds the mount now");
        giver.send(&ToCaller::Ready(estate.summary), &[])?;
        Ok(holder)
    }

    /// What the next holder would need, once there is a mount.
    pub(super) fn estate(&self) -> Option<Estate> {
        let (Some(connection), Some((summary, _))) = (&self.connection, &self.prepared) else { return None };
        let (init_request, init_reply) = connection.negotiated();
        Some(Estate {
            request: self.request.clone(),
            summary: summary.clone(),
            id: self.id.clone(),
            worker: self.worker.as_ref().map_or(0, |worker| worker.process.pid()),
            device: connection.number(),
            init_request: init_request.to_vec(),
            init_reply: init_reply.to_vec(),
            mounted_at: self.mounted_at.clone(),
            takeovers: self.takeovers,
            snapshot: self.snapshot.clone(),
            oom_score: self.oom_score,
        })
    }

    /// Moves the mount to another program, by the road of a death: the worker is killed, and the next one comes
    /// from there. Whether that has begun.
    pub(super) fn upgrade(&mut self, program: File) -> bool {
        let Some(worker) = self.worker.as_ref().filter(|worker| self.ready.is_some() && worker.is_serving()) else {
            return false;
        };
        tracing::info!(pid = worker.process.pid(), "the mount moves to another program");
        worker.process.kill();
        self.next_program = Some(program);
        true
    }

    /// A worker serves. If it is the first of another program, that gets the holder too.
    pub(super) fn finish_upgrade(&mut self) {
        if self.old_program.take().is_none() {
            return;
        }
        let (Some(estate), Some(connection), Some((_, tree))) = (self.estate(), &self.connection, &self.prepared)
        else {
            return;
        };
        let keys = Keys { device: connection.device(), tree: tree.as_fd(), opens: self.opens.as_fd() };
        match estate::hand_over(&self.program, &estate, keys) {
            Ok(()) => self.end = Some(End::Replaced),
            Err(error) => tracing::error!(%error, "the mount's holder stays the one that it was"),
        }
    }

    /// The first worker of another program died before it served: the program before comes back. Whether there
    /// was one.
    pub(super) fn go_back(&mut self) -> bool {
        let Some(old) = self.old_program.take() else { return false };
        tracing::error!("the new program cannot serve this mount: the old one goes on");
        self.program = old;
        self.restart = Some(Instant::now());
        true
    }
}
