//! Those who ask a holder: at most a few at a time, none of them waited for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::mounts::control::Listener;
use crate::mounts::message::{Answer, Query};
use crate::mounts::status::Status;
use crate::mounts::wire::Channel;

/// More at a time are sent away.
const MOST: usize = 64;

/// How long a worker may take to say how it is.
const REPORT: Duration = Duration::from_secs(2);

/// How long the next worker may take to be there and say it.
const TAKEOVER: Duration = Duration::from_secs(5);

/// Who asks, by number.
#[derive(Debug, Default)]
pub(super) struct Clients {
    asking: Vec<Client>,
    next: u64,
}

#[derive(Debug)]
struct Client {
    number: u64,
    channel: Channel,
    since: Instant,
    /// It has asked how the mount is.
    waits: bool,
}

impl Clients {
    /// Everybody's sockets.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.asking.iter().map(|client| client.channel.as_fd())
    }

    /// Whether anybody waits for a worker.
    pub(super) fn any_waiting(&self) -> bool {
        self.asking.iter().any(|client| client.waits)
    }

    /// Those who wait for a worker.
    pub(super) fn waiting(&self) -> impl Iterator<Item = u64> {
        self.asking.iter().filter(|client| client.waits).map(|client| client.number)
    }

    /// Lets in who knocks.
    pub(super) fn accept(&mut self, listener: &Listener) {
        while let Ok(Some(channel)) = listener.accept() {
            if self.asking.len() < MOST {
                self.asking.push(Client { number: self.next, channel, since: Instant::now(), waits: false });
                self.next += 1;
            }
        }
    }

    /// Reads what they ask, and the descriptor that came with it. Those who left are forgotten.
    pub(super) fn hear(&mut self) -> Vec<(u64, Query, Option<OwnedFd>)> {
        let mut questions = Vec::new();
        self.asking.retain_mut(|client| match client.channel.receive::<Query>() {
            Ok(Some((query, mut descriptors))) => {
                if matches!(query, Query::Status) {
                    (client.waits, client.since) = (true, Instant::now());
                }
                questions.push((client.number, query, descriptors.pop()));
                true
            }
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
            Ok(None) => false,
        });
        questions
    }

    /// Those who have waited for as long as they may. Those who do not even ask are forgotten.
    pub(super) fn overdue(&mut self, now: Instant, serving: bool) -> Vec<u64> {
        let longest = if serving { REPORT } else { TAKEOVER };
        let late = |client: &Client, longest| now.duration_since(client.since) >= longest;
        self.asking.retain(|client| client.waits || !late(client, TAKEOVER));
        self.asking.iter().filter(|client| client.waits && late(client, longest)).map(|client| client.number).collect()
    }

    /// There is another worker to wait for.
    pub(super) fn renew(&mut self) {
        for client in &mut self.asking {
            client.since = Instant::now();
        }
    }

    /// Tells one of them how the mount is, and is done with it.
    pub(super) fn answer(&mut self, number: u64, status: Option<Status>) {
        let answer = status.map_or(Answer::Preparing, |status| Answer::Status(Box::new(status)));
        self.reply(number, &answer);
    }

    /// Answers one of them, and is done with it.
    pub(super) fn reply(&mut self, number: u64, answer: &Answer) {
        self.asking.retain(|client| {
            if client.number == number {
                // It may have left.
                let _ = client.channel.send(answer, &[]);
            }
            client.number != number
        });
    }
}
