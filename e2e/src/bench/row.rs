//! A line of the table that a benchmark prints.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::samples::{Samples, human};

/// The head of the table.
pub const HEAD: &str = "| measure | n | p50 | p99 | max | reach | holds | besides |\n\
                        | --- | --- | --- | --- | --- | --- | --- | --- |";

/// One measure with its outcome.
#[derive(Debug, Clone)]
pub struct Row {
    measure: String,
    figure: Figure,
    reach: String,
    holds: Option<bool>,
    besides: Vec<String>,
}

#[derive(Debug, Clone)]
enum Figure {
    Times(Samples),
    Value(String),
}

impl Row {
    /// Of times.
    pub fn times(measure: impl Into<String>, times: Samples) -> Self {
        Self::new(measure, Figure::Times(times))
    }

    /// Of one figure with its unit.
    pub fn value(measure: impl Into<String>, value: impl Into<String>) -> Self {
        Self::new(measure, Figure::Value(value.into()))
    }

    fn new(measure: impl Into<String>, figure: Figure) -> Self {
        Self { measure: measure.into(), figure, reach: String::new(), holds: None, besides: Vec::new() }
    }

    /// 99 of 100 must stay within `reach`.
    pub fn p99_within(self, reach: Duration) -> Self {
        let holds = matches!(&self.figure, Figure::Times(times) if !times.is_empty() && times.p99() <= reach);
        self.reach(format!("p99 ≤ {}", human(reach)), holds)
    }

    /// All must stay within `reach`.
    pub fn all_within(self, reach: Duration) -> Self {
        let holds = matches!(&self.figure, Figure::Times(times) if !times.is_empty() && times.max() <= reach);
        self.reach(format!("≤ {}", human(reach)), holds)
    }

    /// What was to be reached, and whether it was.
    pub fn reach(mut self, reach: impl Into<String>, holds: bool) -> Self {
        self.reach = reach.into();
        self.holds = Some(holds);
        self
    }

    /// Something else to know.
    pub fn besides(mut self, note: impl Into<String>) -> Self {
        self.besides.push(note.into());
        self
    }

    /// `false` if a reach was missed.
    pub fn holds(&self) -> bool {
        self.holds.unwrap_or(true)
    }
}

impl Display for Row {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let [count, p50, p99, max] = match &self.figure {
            Figure::Times(times) => {
                [times.len().to_string(), human(times.p50()), human(times.p99()), human(times.max())]
            }
            Figure::Value(value) => [String::new(), value.clone(), String::new(), String::new()],
        };
        let holds = match self.holds {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "",
        };
        let besides = self.besides.join("; ");
        write!(out, "| {} | {count} | {p50} | {p99} | {max} | {} | {holds} | {besides} |", self.measure, self.reach)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_its_reach_holds() {
        let times: Samples = [10, 20, 30].map(Duration::from_millis).into_iter().collect();
        let row = Row::times("heron", times.clone()).p99_within(Duration::from_millis(300)).besides("2 writes");
        let line = "| heron | 3 | 20.0 ms | 30.0 ms | 30.0 ms | p99 ≤ 300 ms | yes | 2 writes |";
        assert_eq!(row.to_string(), line);
        assert!(!Row::times("heron", times).all_within(Duration::from_millis(29)).holds());
        assert!(!Row::times("egret", Samples::default()).all_within(Duration::MAX).holds(), "nothing was measured");
    }
}
