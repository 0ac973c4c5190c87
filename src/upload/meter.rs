//! Speed of the last seconds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back the speed looks.
const WINDOW: Duration = Duration::from_secs(10);

/// Counts bytes and tells how many a second there were lately.
#[derive(Debug, Default)]
pub struct Meter {
    /// Bytes by second, oldest first; at most one entry per second of the window.
    seconds: VecDeque<(Instant, u64)>,
}

impl Meter {
    /// Counts `bytes` now.
    pub fn add(&mut self, bytes: u64) {
        self.add_at(Instant::now(), bytes);
    }

    /// Bytes per second over the last seconds; 0 when nothing moved.
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s_at(Instant::now())
    }

    fn add_at(&mut self, now: Instant, bytes: u64) {
        self.seconds.retain(|(at, _)| now.duration_since(*at) < WINDOW);
        match self.seconds.back_mut() {
            Some((at, sum)) if now.duration_since(*at) < Duration::from_secs(1) => *sum += bytes,
            _ => self.seconds.push_back((now, bytes)),
        }
    }

    fn bytes_per_s_at(&self, now: Instant) -> u64 {
        let recent = || self.seconds.iter().filter(|(at, _)| now.duration_since(*at) < WINDOW);
        let Some((first, _)) = recent().next() else { return 0 };
        let bytes: u64 = recent().map(|(_, bytes)| bytes).sum();
        let elapsed = now.duration_since(*first).max(Duration::from_secs(1));
        (bytes as f64 / elapsed.as_secs_f64()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_that_of_the_last_seconds() {
        let mut meter = Meter::default();
        let start = Instant::now();
        assert_eq!(meter.bytes_per_s_at(start), 0);
        for second in 0..5 {
            meter.add_at(start + Duration::from_secs(second), 1000);
        }
        assert_eq!(meter.bytes_per_s_at(start + Duration::from_secs(5)), 1000);
        assert_eq!(meter.bytes_per_s_at(start + Duration::from_secs(60)), 0, "old bytes count no more");
        for i in 0..1_000_000u64 {
            meter.add_at(start + Duration::from_millis(10_000 + i / 1000), 1);
        }
        assert!(meter.seconds.len() <= 11);
    }
}
