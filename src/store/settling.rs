//! What becomes of new files once whoever waited for them has had them.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::store::Store;

/// How long new files stay in memory alone. Whoever waited for them reads them now, perhaps through a descriptor
/// that is open for writing, and the disk would be in the way. Until they are on it, all they have to fear is a
/// power cut, which costs another proof.
const SETTLING: Duration = Duration::from_secs(5);

impl Store {
    /// Does `work` to new files a while from now, in a thread of its own. Where none can be had it is left: it brings
    /// to the disk what is kept there anyway.
    pub fn when_settled(self: &Arc<Self>, work: impl FnOnce(&Self) -> io::Result<()> + Send + 'static) {
        let store = Arc::clone(self);
        let settling = thread::Builder::new().name("kitfs-settle".to_owned()).spawn(move || {
            thread::sleep(SETTLING);
            if let Err(error) = work(&store) {
                tracing::debug!(%error, "new files are not known to be on the disk");
            }
        });
        if let Err(error) = settling {
            tracing::debug!(%error, "new files are not brought to the disk");
        }
    }
}
