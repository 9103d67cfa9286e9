//! How long something may be waited for, measured in time in which this process ran.
//!
//! A process that was stopped, or whose machine or container stood still, finds all deadlines passed when it goes on,
//! before it has looked at what arrived in the meantime. So a wait is made in short ticks, and one that took much
//! longer than it should counts for no more than it should have taken. Who waited goes on with what was left.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout;

/// What a standstill may count for.
const TICK: Duration = Duration::from_secs(1);

/// How late a tick may be on a machine that is only busy.
const LATE: Duration = Duration::from_secs(2);

/// Time that may be waited.
#[derive(Clone, Copy, Debug)]
pub struct Patience(Duration);

/// It has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Patience {
    /// So much of it.
    pub fn new(time: Duration) -> Self {
        Self(time)
    }

    /// What is left.
    pub fn left(&self) -> Duration {
        self.0
    }

    /// Waits for `work` while there is any left.
    pub async fn wait_for<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Exhausted> {
        let mut work = pin!(work);
        while !self.0.is_zero() {
            let tick = self.0.min(TICK);
            let began = Instant::now();
            let done = timeout(tick, work.as_mut()).await;
            let took = began.elapsed();
            self.0 = self.0.saturating_sub(if took > tick + LATE { tick } else { took });
            if let Ok(done) = done {
                return Ok(done);
            }
        }
        Err(Exhausted)
    }

    /// Spends so much of it on doing nothing; false, and at once, where less is left.
    pub async fn pause(&mut self, time: Duration) -> bool {
        time < self.0 && self.wait_for(sleep(time)).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn what_takes_too_long_is_given_up() {
        let (began, limit) = (Instant::now(), Duration::from_millis(20));
        assert_eq!(Patience::new(limit).wait_for(pending::<()>()).await, Err(Exhausted));
        assert!(began.elapsed() >= limit);
    }

    #[tokio::test]
    async fn waits_add_up() {
        let mut patience = Patience::new(Duration::from_secs(600));
        assert!(patience.pause(Duration::from_millis(50)).await);
        assert!(patience.left() <= Duration::from_millis(599_950), "{patience:?}");
        assert!(!patience.pause(Duration::from_secs(600)).await);
        let mut none = Patience::new(Duration::ZERO);
        assert_eq!(none.wait_for(async {}).await, Err(Exhausted));
    }

    #[tokio::test]
    async fn a_standstill_counts_for_a_tick_of_each_wait() {
        let (mut outer, mut inner) = (Patience::new(TICK * 3), Patience::new(TICK * 2));
        let work = async {
            // Nothing else runs in this thread.
            std::thread::sleep(TICK * 2 + LATE);
            sleep(TICK / 10).await;
        };
        assert_eq!(outer.wait_for(inner.wait_for(work)).await, Ok(Ok(())));
        assert!(outer.left() > TICK && inner.left() < TICK * 2, "{outer:?} {inner:?}");
    }
}
