//! The wall clock, for what people read and what is stored; durations are measured on the monotonic one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use croft_proto::Timestamp;

/// What it shows.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

/// How long ago that was by our clock; nothing, where it was by another's that is ahead of it.
pub(crate) fn since(then: Timestamp) -> Duration {
    let since_epoch =
        Duration::new(then.seconds.try_into().unwrap_or_default(), then.nanos.try_into().unwrap_or_default());
    (UNIX_EPOCH + since_epoch).elapsed().unwrap_or_default()
}
