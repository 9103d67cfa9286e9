//! What code that waits for itself is made of. The test `schedules` puts shuttle's in its place, and so runs that code
//! under thousands of schedules.

pub(crate) use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use tokio::task::AbortHandle;
