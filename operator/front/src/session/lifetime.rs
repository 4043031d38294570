//! How long a session may last: what was asked for, within what its tenant allows.

use croft_proto::Timestamp;
use croft_proto::v1::{CreateSessionRequest, TenantLimits};

use crate::error::Error;
use crate::store::time;

/// Ten years. What is longer is a mistake, or "never", which is 0.
const MS_MAX: i64 = 10 * 366 * 24 * 60 * 60 * 1_000;

/// The bounds of one session.
#[derive(Debug, PartialEq)]
pub(super) struct Lifetime {
    /// 0 is never.
    pub(super) idle_timeout_ms: i64,
    pub(super) expire_time: Option<Timestamp>,
}

impl Lifetime {
    /// For a session that is created at `now`. A tenant's bound is taken where nothing is asked for, and cuts what is longer.
    ///
    /// Fails with [`Error::Invalid`] for a negative time, and for one beyond ten years.
    pub(super) fn new(request: &CreateSessionRequest, limits: &TenantLimits, now: Timestamp) -> Result<Self, Error> {
        let idle_timeout_ms = within("idle_timeout_ms", request.idle_timeout_ms, limits.session_idle_timeout_ms)?;
        let lifetime_ms = within("lifetime_ms", request.lifetime_ms, limits.session_lifetime_ms)?;
        let expiry = || time::timestamp(time::micros(&now) + lifetime_ms * 1_000);
        Ok(Self { idle_timeout_ms, expire_time: (lifetime_ms > 0).then(expiry) })
    }
}

fn within(field: &str, asked: i64, allowed: i64) -> Result<i64, Error> {
    if !(0..=MS_MAX).contains(&asked) {
        return Err(Error::invalid(field, format!("is not between 0 and {MS_MAX} (ten years)")));
    }
    Ok(match (asked, allowed.clamp(0, MS_MAX)) {
        (0, allowed) => allowed,
        (asked, 0) => asked,
        (asked, allowed) => asked.min(allowed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp { seconds: 1_790_000_000, nanos: 0 };

    fn asked(idle_timeout_ms: i64, lifetime_ms: i64) -> CreateSessionRequest {
        CreateSessionRequest { idle_timeout_ms, lifetime_ms, ..CreateSessionRequest::default() }
    }

    fn allowed(session_idle_timeout_ms: i64, session_lifetime_ms: i64) -> TenantLimits {
        TenantLimits { session_idle_timeout_ms, session_lifetime_ms, ..TenantLimits::default() }
    }

    #[test]
    fn the_tenants_bound_is_taken_and_kept() {
        for (asked_for, bound, expected) in [(0, 0, 0), (0, 7, 7), (5, 0, 5), (5, 7, 5), (9, 7, 7), (5, -1, 5)] {
            let idle = Lifetime::new(&asked(asked_for, 0), &allowed(bound, 0), NOW).unwrap();
            assert_eq!(idle, Lifetime { idle_timeout_ms: expected, expire_time: None });
            let aged = Lifetime::new(&asked(0, asked_for), &allowed(0, bound), NOW).unwrap();
            let nanos = i32::try_from(expected).unwrap() * 1_000_000;
            assert_eq!(aged.expire_time, (expected > 0).then_some(Timestamp { nanos, ..NOW }));
        }
    }

    #[test]
    fn what_is_no_time_is_named() {
        for (request, wrong) in [
            (asked(-1, 0), "idle_timeout_ms"),
            (asked(0, -1), "lifetime_ms"),
            (asked(i64::MAX, 0), "idle_timeout_ms"),
            (asked(0, i64::MAX), "lifetime_ms"),
        ] {
            let refused = Lifetime::new(&request, &TenantLimits::default(), NOW);
            assert!(matches!(refused, Err(Error::Invalid { field, .. }) if field == wrong));
        }
    }
}
