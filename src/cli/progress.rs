//! Progress bars: on a terminal, for work that takes long enough to wonder about; nothing elsewhere.

use std::io;
use std::io::IsTerminal;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use tokio::time::Instant;

use crate::cli::text;
use crate::layers::Layer;

/// Nobody wonders about work that ends before this.
const PATIENCE: Duration = Duration::from_millis(300);

/// How often a bar moves.
const STEP: Duration = Duration::from_millis(100);

/// Does `work` while a bar shows how much of the layers has come from their sources. Layers that were
/// here before count as done.
pub async fn follow<T>(label: &'static str, layers: &[Arc<Layer>], work: impl Future<Output = T>) -> T {
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let coming: Vec<_> = layers.iter().filter(|layer| layer.proved().is_none()).collect();
    let total = coming.iter().map(|layer| layer.spec.descriptor.size).fold(0, u64::saturating_add);
    let mut work = pin!(work);
    let mut steps = tokio::time::interval_at(Instant::now() + PATIENCE, STEP);
    let mut bar = None;
    loop {
        tokio::select! {
            result = &mut work => {
                bar.iter().for_each(ProgressBar::finish_and_clear);
                return result;
            }
            _ = steps.tick() => {
                let bar = bar.get_or_insert_with(|| self::bar(label));
                bar.set_length(total);
                bar.set_position(coming.iter().map(|layer| layer.received()).fold(0, u64::saturating_add));
            }
        }
    }
}

/// A bar that counts bytes, on standard error if that is a terminal.
pub fn bar(label: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta}")
        .map(|style| style.progress_chars("=> "));
    let bar = ProgressBar::new(0).with_message(label);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A bar for work in another process, which tells how far it is.
pub struct Bar {
    label: &'static str,
    begun: Instant,
    shown: Option<ProgressBar>,
}

impl Bar {
    /// A bar that is not shown yet.
    pub fn new(label: &'static str) -> Self {
        Self { label, begun: Instant::now(), shown: None }
    }

    /// So much is done.
    pub fn set(&mut self, done: u64, total: u64) {
        if io::stderr().is_terminal() && self.begun.elapsed() >= PATIENCE {
            let bar = self.shown.get_or_insert_with(|| bar(self.label));
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// This is being done.
    pub fn say(&mut self, step: &str) {
        if let Some(bar) = &self.shown {
            bar.set_message(step.to_owned());
        }
    }

    /// Says something that is to stay on the screen.
    pub fn warn(&mut self, warning: &str) {
        let line = format!("kitfs: warning: {}", text::line(warning));
        match &self.shown {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// The work is over.
    pub fn finish(self) {
        self.shown.iter().for_each(ProgressBar::finish_and_clear);
    }
}
