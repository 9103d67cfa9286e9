//! Progress bars: on a terminal, for work that takes long enough to wonder about; nothing elsewhere.

use std::io;
use std::io::IsTerminal;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use tokio::time::Instant;

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
    let coming: Vec<_> = layers.iter().filter(|layer| layer.index().is_none()).collect();
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
