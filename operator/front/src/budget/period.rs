//! How long a budget is for.

use std::str::FromStr;

use croft_proto::Timestamp;

/// Days and months are those of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    Day,
    Month,
    Life,
}

impl Period {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::Life => "life",
        }
    }

    /// The one that this moment is in: `2026-11-25`, `2026-11` or `life`. The migrations' `croft_periods` says the same.
    pub fn name(self, moment: &Timestamp) -> String {
        let moment = jiff::Timestamp::from_second(moment.seconds).unwrap_or_default();
        match self {
            Self::Day => moment.strftime("%Y-%m-%d").to_string(),
            Self::Month => moment.strftime("%Y-%m").to_string(),
            Self::Life => "life".to_owned(),
        }
    }
}

/// The word is no period.
#[derive(Debug, thiserror::Error)]
#[error("a period is one of day, month, life")]
pub struct UnknownPeriod;

impl FromStr for Period {
    type Err = UnknownPeriod;

    fn from_str(text: &str) -> Result<Self, UnknownPeriod> {
        [Self::Day, Self::Month, Self::Life].into_iter().find(|period| period.as_str() == text).ok_or(UnknownPeriod)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_its_day_and_month_in_utc() {
        // 2026-11-30T23:59:59Z, and a second later.
        let [before, after] = [1_796_083_199, 1_796_083_200].map(|seconds| Timestamp { seconds, nanos: 0 });
        assert_eq!((Period::Day.name(&before), Period::Day.name(&after)), ("2026-11-30".into(), "2026-12-01".into()));
        assert_eq!((Period::Month.name(&before), Period::Month.name(&after)), ("2026-11".into(), "2026-12".into()));
        assert_eq!(Period::Life.name(&before), "life");
    }
}
