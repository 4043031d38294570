//! Times as the stores keep them: microseconds since 1970, which is what Postgres can hold.

use croft_proto::Timestamp;

/// Microseconds since 1970, rounded down.
pub(crate) fn micros(time: &Timestamp) -> i64 {
    time.seconds.saturating_mul(1_000_000).saturating_add(i64::from(time.nanos / 1_000))
}

/// The other way round.
pub(crate) fn timestamp(micros: i64) -> Timestamp {
    let nanos = i32::try_from(micros.rem_euclid(1_000_000)).expect("below a million") * 1_000;
    Timestamp { seconds: micros.div_euclid(1_000_000), nanos }
}

/// What is left of a time once it was stored.
pub(crate) fn stored(time: &Timestamp) -> Timestamp {
    timestamp(micros(time))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn times_survive_to_the_microsecond(seconds in -62_135_596_800_i64..253_402_300_799, nanos in 0..999_999_999_i32) {
            let time = Timestamp { seconds, nanos };
            prop_assert_eq!(stored(&time), Timestamp { seconds, nanos: nanos / 1_000 * 1_000 });
        }
    }
}
