//! The rate at which bodies are sent.

use std::time::Duration;

use parking_lot::Mutex;

/// `--upload-rate`: bodies start no faster than the rate allows on average.
pub(super) struct RateLimit {
    bytes_per_s: Option<u64>,
    /// When the bodies that were let through so far will have gone out at the rate.
    free_at: Mutex<tokio::time::Instant>,
}

impl RateLimit {
    pub(super) fn new(bytes_per_s: Option<u64>) -> Self {
        Self { bytes_per_s: bytes_per_s.filter(|rate| *rate > 0), free_at: Mutex::new(tokio::time::Instant::now()) }
    }

    /// Waits until a body of `bytes` may start.
    pub(super) async fn take(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_s else { return };
        let start = {
            let mut free_at = self.free_at.lock();
            let start = (*free_at).max(tokio::time::Instant::now());
            *free_at = start + Duration::from_secs_f64(bytes as f64 / rate as f64);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bodies_start_at_the_rate() {
        let limit = RateLimit::new(Some(1_000_000));
        let start = tokio::time::Instant::now();
        for _ in 0..5 {
            limit.take(2_000_000).await;
        }
        assert_eq!(start.elapsed().as_secs(), 8, "the fifth starts when four have gone out");
        let free = RateLimit::new(None);
        free.take(u64::MAX).await;
    }
}
