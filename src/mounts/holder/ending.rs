//! The end of a mount, when it is asked for and when it comes.

use std::io;
use std::time::{Duration, Instant};

use crate::mounts::connection;
use crate::mounts::connection::{Busy, Connection};
use crate::mounts::holder::{End, Holder, Stage, Stopping};
use crate::mounts::message::ToCaller;
use crate::mounts::mountinfo;
use crate::mounts::process;
use crate::mounts::request::MountFailure;

/// How long a mount that must end may stay busy.
const STOP_POLITELY: Duration = Duration::from_secs(4);

/// How long a worker may take to leave when the connection is gone.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often it is tried.
const STOP_AGAIN: Duration = Duration::from_millis(500);

impl Holder {
    pub(super) fn take_signals(&mut self) {
        while let Some(signal) = self.signals.take() {
            match signal {
                libc::SIGIO => self.look_at_leases(),
                // There is no terminal to hang up, and daemons reload.
                libc::SIGHUP => match process::newer_program() {
                    Ok(program) => {
                        if !self.upgrade(program) {
                            tracing::warn!("the mount does not move to another program: it is not served just now");
                        }
                    }
                    Err(error) => tracing::error!(%error, "the program in the place of this one cannot be opened"),
                },
                _ => self.stop(),
            }
        }
    }

    pub(super) fn stop(&mut self) {
        if self.ready.is_none() {
            self.end.get_or_insert(End::Cancelled);
        } else if self.stopping.is_none() {
            let now = Instant::now();
            self.stopping = Some(Stopping { since: now, next_attempt: now });
        }
    }

    /// Unmounts politely while there is time for it, then takes the mount away from those who use it.
    pub(super) fn stop_if_asked(&mut self, now: Instant) {
        let Some(stopping) = &mut self.stopping else { return };
        let late = now.duration_since(stopping.since) >= STOP_POLITELY;
        if !late && now < stopping.next_attempt {
            return;
        }
        stopping.next_attempt = now + STOP_AGAIN;
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
    pub(super) fn unmount(&self, busy: Busy) -> io::Result<()> {
        let Some(connection) = &self.connection else { return Ok(()) };
        let (_, entry) = mountinfo::at(&self.request.directory)?;
        if entry.is_some_and(|entry| entry.device == connection.number()) {
            connection::unmount(&self.request.directory, busy)?;
        }
        Ok(())
    }

    /// Leaves nothing behind, and says so.
    pub(super) fn finish(mut self, end: End) {
        let lives = |connection: &&Connection| !connection.has_ended();
        if !matches!(end, End::Replaced) && self.connection.as_ref().filter(lives).is_some() {
            if let Err(error) = self.unmount(Busy::Detach) {
                tracing::warn!(%error, "the mount is left in the tree");
            }
            // Those who use what was detached would wait for a worker that does not come.
            if let Some(connection) = self.connection.as_ref().filter(lives) {
                connection.abort();
            }
            self.connection = None;
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
        if matches!(end, End::Replaced) {
            return;
        }
        tracing::info!(directory = %self.request.directory.display(), "the mount has ended");
        let last = match end {
            End::Failed(failure) => ToCaller::Failed(failure),
            End::Same(summary) => ToCaller::Same(summary),
            End::Cancelled => ToCaller::Failed(MountFailure::new(1, "the mount was cancelled")),
            End::Unmounted | End::Replaced => return,
        };
        if let Some(caller) = &self.caller {
            // A caller that is gone knows.
            let _ = caller.send_patiently(&last, &[], Some(Instant::now() + FAREWELL));
        }
    }
}
