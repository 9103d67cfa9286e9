//! OPENs that wait for a better answer.
//!
//! An inode that was opened before it was proved is read through us, and cached twice, until its last close, which for a
//! model that is served is never. So the OPEN of a file that nobody can read yet waits for its proof, if that is soon.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::{Errno, ReplyOpen, RequestId};
use tokio::runtime::Handle;

use crate::fs::KitFs;
use crate::fs::Passthrough;
use crate::fuse::beat::Beat;
use crate::fuse::caller;
use crate::fuse::opens::{Opens, RESENT};
use crate::fuse::reply_opened;
use crate::kit::tree::Inode;
use crate::ledger::chain;

/// An OPEN that is to be answered.
pub(super) struct Opening {
    pub(super) fs: Arc<KitFs>,
    pub(super) opens: Arc<Opens>,
    pub(super) passthrough: Passthrough,
    pub(super) beat: Beat,
    pub(super) request: RequestId,
    pub(super) inode: Inode,
}

/// The OPENs of a connection that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    replies: Mutex<HashMap<u64, (RequestId, ReplyOpen)>>,
    /// Held by the one that is answered: a proof ends the waits of many, and the threads that fetch would all stand
    /// before the same table.
    answering: tokio::sync::Mutex<()>,
}

impl Opening {
    /// Answers at once, or on `runtime` when the file is proved or cannot be soon. `pid` is who asks.
    pub(super) fn begin(self, waiting: &Arc<Waiting>, runtime: &Handle, pid: u32, reply: ReplyOpen) {
        let Err(reply) = waiting.join(self.request, reply) else { return };
        let decides = self.opens.passes_through() && !self.opens.is_open(self.inode.0);
        let whole = if decides { self.fs.soon_whole(self.inode, self.passthrough) } else { None };
        // Nobody could kill one that is not seen.
        let Some(whole) = whole.filter(|_| caller::is_seen(pid)) else { return self.answer(reply) };
        waiting.lock().insert(self.request.0 & !RESENT, (self.request, reply));
        let waiting = Arc::clone(waiting);
        runtime.spawn(async move {
            tokio::select! {
                () = self.beat.noted(self.request, whole) => {
                    let _turn = waiting.answering.lock().await;
                    waiting.take(self.request).into_iter().for_each(|reply| self.answer(reply));
                }
                () = caller::killed(pid) => {
                    waiting.take(self.request).into_iter().for_each(|reply| reply.error(Errno::EINTR));
                    self.beat.answered();
                }
            }
        });
    }

    fn answer(&self, reply: ReplyOpen) {
        let _note = self.beat.note(self.request);
        match self.opens.open(self.request, self.inode.0, || self.fs.whole(self.inode, self.passthrough)) {
            Ok((handle, mode)) => reply_opened(reply, handle, mode),
            Err(error) => {
                let path = self.fs.tree().path(self.inode).map(|path| path.to_string());
                tracing::error!(path, "open failed: {}", chain(&error));
                reply.error(Errno::EIO);
            }
        }
        self.beat.answered();
    }
}

impl Waiting {
    /// Has a request answered as it was sent last, if it waits: the kernel sends again what has no answer, and answered
    /// twice it would count as opened twice. Otherwise the reply comes back.
    fn join(&self, request: RequestId, reply: ReplyOpen) -> Result<(), ReplyOpen> {
        let mut replies = self.lock();
        let Some(known) = replies.get_mut(&(request.0 & !RESENT)) else { return Err(reply) };
        // The kernel knows a request by its newest number, and takes no answer to an older one.
        let (before, old) = std::mem::replace(known, (request, reply));
        if before == request {
            // It has that number as well, and would answer it when it is dropped.
            std::mem::forget(old);
        }
        Ok(())
    }

    /// The reply to a request that waited.
    fn take(&self, request: RequestId) -> Option<ReplyOpen> {
        self.lock().remove(&(request.0 & !RESENT)).map(|(_, reply)| reply)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, (RequestId, ReplyOpen)>> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
