//! How many requests are under way at once, and whose turn it is.
//!
//! What a reader waits for goes at once. What is fetched ahead takes a lane, and what is fetched in the
//! background takes one when nobody else wants any. The number of lanes follows what the link gives: it
//! doubles as long as that brings a quarter more bytes a second, else it goes back; and where it never
//! did, half of it may do. So a link with long round trips, or with a limit for each connection, is filled, and a
//! loopback or a busy processor is not crowded. A source of which one connection alone brings plenty, once it
//! flows, gets few and long requests.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::source::FAST;
use crate::sync::{Mutex, MutexGuard, PoisonError};

/// Lanes at the start.
const FIRST: usize = 8;

/// The fewest: while one is answered the next is on its way.
const FEWEST: usize = 2;

/// The most. A registry may well refuse more connections of one client.
const MOST: usize = 16;

/// What more lanes have to bring.
const GAIN: f64 = 1.25;

/// What fewer lanes may cost.
const LOSS: f64 = 0.95;

/// A measurement takes at least this long, and several answers in each lane.
const MEASURED: Duration = Duration::from_millis(60);

/// Answers in each lane that make a measurement.
const ANSWERS: usize = 2;

/// How long somebody may wait for what lies behind other things in the same request.
const PATIENCE: Duration = Duration::from_millis(200);

/// Bytes that show how fast a connection flows, and twice as many after which what was seen counts half.
const SEEN: u64 = 4 * 1024 * 1024;
const REMEMBERED: u64 = 16 * SEEN;

/// Measurements after which the number of lanes is tried again, because links change.
const SETTLED_FOR: u32 = 40;

/// Whose fetch it is. The more urgent is the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// A reader waits for it.
    Demand,
    /// A reader will want it.
    Ahead,
    /// Nobody has asked for it yet.
    Background,
}

/// The lanes of one mount.
#[derive(Debug)]
pub(super) struct Lanes {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    limit: usize,
    /// Fetches under way, by purpose.
    busy: [usize; 3],
    /// Fetches that wait for a lane, in the order of their turns.
    waiting: BTreeSet<(Purpose, u64)>,
    /// The number of the next place in the queue.
    next: u64,
    gauge: Gauge,
    flow: FlowRate,
}

impl State {
    fn limit(&self) -> usize {
        if self.flow.rate().is_some_and(|rate| rate >= FAST) { FEWEST } else { self.limit }
    }
}

/// How fast single connections bring what follows the first bytes of an answer, by what is waited for it.
#[derive(Debug, Default)]
struct FlowRate {
    bytes: u64,
    waited: Duration,
}

impl FlowRate {
    fn note(&mut self, bytes: u64, waited: Duration) {
        self.bytes += bytes;
        self.waited += waited;
        if self.bytes > REMEMBERED {
            self.bytes /= 2;
            self.waited /= 2;
        }
    }

    /// Bytes a second, once enough was seen.
    fn rate(&self) -> Option<f64> {
        let seconds = self.waited.as_secs_f64().max(f64::MIN_POSITIVE);
        (self.bytes >= SEEN).then(|| self.bytes as f64 / seconds)
    }
}

/// A lane, or the right to go without one. Dropping it gives it back.
#[derive(Debug)]
#[must_use]
pub(super) struct Lane {
    lanes: Arc<Lanes>,
    purpose: Purpose,
    bytes: u64,
}

/// A place in the queue for a lane. Dropping it leaves the queue.
#[derive(Debug)]
#[must_use]
pub(super) struct Turn {
    lanes: Arc<Lanes>,
    place: (Purpose, u64),
}

impl Lanes {
    pub(super) fn new() -> Arc<Self> {
        let (gauge, flow) = (Gauge::default(), FlowRate::default());
        let state = State { limit: FIRST, busy: [0; 3], waiting: BTreeSet::new(), next: 0, gauge, flow };
        Arc::new(Self { state: Mutex::new(state), changed: Notify::new() })
    }

    /// How many fetches ahead may be under way now.
    pub(super) fn limit(&self) -> usize {
        self.lock().limit()
    }

    /// Queues for a lane, behind all that have the same purpose: they were begun in the order in which they will be
    /// wanted, and one that comes late holds up everybody who reads.
    pub(super) fn queue(self: &Arc<Self>, purpose: Purpose) -> Turn {
        let mut state = self.lock();
        let place = (purpose, state.next);
        state.next += 1;
        if purpose != Purpose::Demand {
            state.waiting.insert(place);
        }
        Turn { lanes: Arc::clone(self), place }
    }

    /// Takes a lane, when it is this purpose's turn.
    pub(super) async fn take(self: &Arc<Self>, purpose: Purpose) -> Lane {
        self.queue(purpose).lane().await
    }

    /// Bytes that a lane brings before somebody who waits for the last of them would mind.
    pub(super) fn reach(&self) -> u64 {
        let rate = self.lock().flow.rate().unwrap_or_default();
        (rate * PATIENCE.as_secs_f64()) as u64
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Whose fetch waits.
    pub(super) fn purpose(&self) -> Purpose {
        self.place.0
    }

    /// The lane, once it is free and nobody comes before.
    pub(super) async fn lane(self) -> Lane {
        loop {
            let changed = self.lanes.changed.notified();
            if let Some(lane) = self.lane_now() {
                return lane;
            }
            changed.await;
        }
    }

    fn lane_now(&self) -> Option<Lane> {
        let mut state = self.lanes.lock();
        let purpose = self.purpose();
        let [demand, ahead, background] = state.busy;
        let is_free = demand + ahead + background < state.limit();
        let is_first = state.waiting.first() == Some(&self.place);
        let is_turn = match purpose {
            Purpose::Demand => true,
            Purpose::Ahead => is_free && is_first,
            Purpose::Background => is_free && is_first && demand + ahead == 0,
        };
        if !is_turn {
            return None;
        }
        state.busy[purpose as usize] += 1;
        let is_next_asked = state.waiting.remove(&self.place) && !state.waiting.is_empty();
        drop(state);
        if is_next_asked {
            // There may be another free one.
            self.lanes.changed.notify_waiters();
        }
        Some(Lane { lanes: Arc::clone(&self.lanes), purpose, bytes: 0 })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let gave_up = self.lanes.lock().waiting.remove(&self.place);
        if gave_up {
            // The others have let it go first, and nobody else may come by.
            self.lanes.changed.notify_waiters();
        }
    }
}

impl Lane {
    /// Says how many bytes came through it.
    pub(super) fn carried(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Says how long was waited for so many bytes that followed the first of an answer.
    pub(super) fn flowed(&self, bytes: u64, waited: Duration) {
        self.lanes.lock().flow.note(bytes, waited);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut state = self.lanes.lock();
        let was_full = state.busy.iter().sum::<usize>() >= state.limit && state.limit == state.limit();
        state.busy[self.purpose as usize] -= 1;
        let limit = state.limit;
        if was_full && self.bytes > 0 {
            state.limit = state.gauge.note(self.bytes, limit, Instant::now());
        } else if self.bytes > 0 {
            state.gauge.interrupt();
        }
        drop(state);
        // Many wait, and for different turns.
        self.lanes.changed.notify_waiters();
    }
}

/// Measures what a number of lanes gives, and says which number comes next.
#[derive(Debug, Default)]
struct Gauge {
    began: Option<Instant>,
    bytes: u64,
    answers: usize,
    /// The number of lanes that was best so far, and its bytes a second.
    best: Option<(usize, f64)>,
    trial: Trial,
    settled: u32,
}

/// Which numbers of lanes are being tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trial {
    #[default]
    More,
    Fewer,
    None,
}

impl Gauge {
    /// The lanes were not all used: what was measured says nothing.
    fn interrupt(&mut self) {
        self.began = None;
    }

    fn note(&mut self, bytes: u64, limit: usize, now: Instant) -> usize {
        let Some(began) = self.began else {
            (self.began, self.bytes, self.answers) = (Some(now), 0, 0);
            return limit;
        };
        self.bytes += bytes;
        self.answers += 1;
        let took = now.duration_since(began);
        if took < MEASURED || self.answers < ANSWERS * limit {
            return limit;
        }
        let rate = self.bytes as f64 / took.as_secs_f64();
        self.began = None;
        self.next(limit, rate)
    }

    fn next(&mut self, limit: usize, rate: f64) -> usize {
        let (best, best_rate) = *self.best.get_or_insert((limit, rate));
        match self.trial {
            Trial::More if limit == best || rate >= best_rate * GAIN => {
                self.best = Some((limit, rate));
                if limit < MOST {
                    return (limit * 2).min(MOST);
                }
                self.trial = Trial::None;
                limit
            }
            Trial::More => {
                // Where more has helped before, fewer is known to be worse.
                self.trial = if best == FIRST { Trial::Fewer } else { Trial::None };
                if self.trial == Trial::Fewer { FEWEST } else { best }
            }
            Trial::Fewer => {
                self.trial = Trial::None;
                if rate >= best_rate * LOSS { limit } else { best }
            }
            Trial::None => {
                self.settled += 1;
                if self.settled >= SETTLED_FOR {
                    *self = Self::default();
                }
                limit
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Waker};

    /// Lets fetches of 2 MiB run over a link, and says how many lanes there are in the end.
    fn lanes_on(link: impl Fn(usize) -> f64) -> usize {
        let (mut gauge, mut limit, mut now) = (Gauge::default(), FIRST, Instant::now());
        for _answer in 0..1000 {
            let bytes = 2 << 20;
            now += Duration::from_secs_f64(f64::from(bytes) / link(limit));
            limit = gauge.note(bytes as u64, limit, now);
            if gauge.trial == Trial::None {
                break;
            }
        }
        limit
    }

    #[test]
    fn a_link_with_a_limit_for_each_connection_is_filled() {
        assert_eq!(lanes_on(|lanes| lanes as f64 * 33e6), MOST);
    }

    #[test]
    fn a_link_that_is_full_gets_no_more() {
        assert_eq!(lanes_on(|lanes| lanes.min(8) as f64 * 33e6), 8);
        assert_eq!(lanes_on(|_| 1e9), FEWEST);
    }

    #[tokio::test]
    async fn a_connection_that_flows_fast_is_left_alone() {
        let lanes = Lanes::new();
        let lane = lanes.take(Purpose::Ahead).await;
        lane.flowed(SEEN / 2, Duration::from_millis(1));
        assert_eq!((lanes.limit(), lanes.reach()), (FIRST, 0), "too early to tell");
        lane.flowed(SEEN / 2, Duration::from_millis(1));
        assert_eq!(lanes.limit(), FEWEST);
        assert!(lanes.reach() > 49 * SEEN, "{}", lanes.reach());
        for _ in 0..100 {
            lane.flowed(SEEN, Duration::from_millis(80));
        }
        assert_eq!(lanes.limit(), FIRST);
        assert!((2 * SEEN..3 * SEEN).contains(&lanes.reach()), "{}", lanes.reach());
    }

    #[tokio::test]
    async fn who_waits_goes_first_and_the_background_last() {
        let lanes = Lanes::new();
        let mut ahead = Vec::new();
        for _ in 0..FIRST {
            ahead.push(lanes.take(Purpose::Ahead).await);
        }
        let demand = lanes.take(Purpose::Demand).await;
        let is_waiting = |purpose| {
            let lanes = &lanes;
            async move { tokio::time::timeout(Duration::from_millis(1), lanes.take(purpose)).await.is_err() }
        };
        assert!(is_waiting(Purpose::Ahead).await && is_waiting(Purpose::Background).await);
        ahead.truncate(1);
        assert!(!is_waiting(Purpose::Ahead).await && is_waiting(Purpose::Background).await);
        drop((ahead, demand));
        assert!(!is_waiting(Purpose::Background).await);
    }

    #[tokio::test]
    async fn who_gives_up_waiting_holds_nobody_up() {
        let lanes = Lanes::new();
        let mut held = Vec::new();
        for _ in 0..FIRST {
            held.push(lanes.take(Purpose::Demand).await);
        }
        let context = &mut Context::from_waker(Waker::noop());
        let mut ahead = Box::pin(lanes.take(Purpose::Ahead));
        let mut background = Box::pin(lanes.take(Purpose::Background));
        assert!(ahead.as_mut().poll(context).is_pending() && background.as_mut().poll(context).is_pending());
        drop(held);
        assert!(background.as_mut().poll(context).is_pending(), "it is the other's turn");
        drop(ahead);
        assert!(background.as_mut().poll(context).is_ready(), "nobody else is there");
    }

    #[test]
    fn turns_come_in_the_order_of_the_queue() {
        let lanes = Lanes::new();
        let context = &mut Context::from_waker(Waker::noop());
        let mut turns: Vec<_> = (0..2 * FIRST).map(|_| Box::pin(lanes.queue(Purpose::Ahead).lane())).collect();
        let mut comes = |turn: usize| match turns[turn].as_mut().poll(context) {
            std::task::Poll::Ready(lane) => Some(lane),
            std::task::Poll::Pending => None,
        };
        assert!((1..2 * FIRST).rev().all(|late| comes(late).is_none()), "before the first");
        let mut held: Vec<_> = (0..FIRST).filter_map(&mut comes).collect();
        assert_eq!(held.len(), FIRST);
        held.pop();
        assert!(comes(FIRST + 1).is_none() && comes(FIRST).is_some());
    }
}
