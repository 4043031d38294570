//! What was measured many times.

use std::time::Duration;

/// Times, smallest first.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    sorted: Vec<Duration>,
}

impl Samples {
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The time that `share` of the samples (0 to 1) stay within, by nearest rank; no samples give zero.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is at most the number of samples"
    )]
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (share * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }

    pub fn p50(&self) -> Duration {
        self.quantile(0.5)
    }

    pub fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    pub fn max(&self) -> Duration {
        self.sorted.last().copied().unwrap_or_default()
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut sorted: Vec<_> = times.into_iter().collect();
        sorted.sort_unstable();
        Self { sorted }
    }
}

/// For people: three figures and a unit.
pub fn human(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match seconds {
        ..0.000_001 => format!("{:.0} ns", seconds * 1e9),
        ..0.001 => format!("{:.1} µs", seconds * 1e6),
        ..0.1 => format!("{:.1} ms", seconds * 1e3),
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let samples: Samples = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(samples.p50(), Duration::from_millis(100));
        assert_eq!(samples.p99(), Duration::from_millis(198));
        assert_eq!(samples.max(), Duration::from_millis(200));
        assert_eq!(Samples::default().p99(), Duration::ZERO);
    }

    #[test]
    fn times_are_written_with_the_unit_that_fits() {
        let written = [37, 4_200, 12_340_000, 123_400_000, 1_234_000_000].map(Duration::from_nanos).map(human);
        assert_eq!(written, ["37 ns", "4.2 µs", "12.3 ms", "123 ms", "1.23 s"]);
    }
}
