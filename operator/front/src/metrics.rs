//! The front's own instruments; what every program has is croft-serve's.

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::audit::lag::Lag;
use crate::turn::told::Told;

/// In seconds; a turn may go on for a day.
const MESSAGE_WAITS: [f64; 12] = [0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0];

/// Instruments of sessions and turns. No label carries a tenant or a session: their number has no bound.
#[derive(Clone)]
pub struct Metrics {
    pub sessions_created: IntCounter,
    /// Sessions that were ended as their time was up, by the reason in their last event.
    pub sessions_expired: IntCounterVec,
    /// Ended sessions that were erased, since they had been kept for long enough.
    pub sessions_erased: IntCounter,
    /// By stop reason.
    pub turns: IntCounterVec,
    pub turns_running: IntGauge,
    /// What comes before a turn's first token, in seconds: `accept`, from SendMessage until the message is stored; and from there
    /// until a worker was chosen that knows the session, `place`, and until it said its first word, `ready`.
    pub turn_stages: HistogramVec,
    /// Of messages that came while a turn ran: from when they were stored until their own turn began, in seconds. The sum's rate is how many
    /// of them wait on average. One whose session ends meanwhile has no turn, and is not in it.
    pub message_waits: Histogram,
    /// From a turn's beginning to its first preview or agent message, in seconds.
    pub first_token: Histogram,
    pub events_stored: IntCounter,
    pub lease_losses: IntCounter,
    /// From other replicas.
    pub takeovers: IntCounter,
    /// In the midst of a turn, which goes on from what is stored at another, or ends with the last that it may lose.
    pub workers_lost: IntCounter,
    /// What workers did.
    pub(crate) told: Told,
    /// Attempts at a model whose price is unknown.
    pub unpriced_attempts: IntCounter,
    pub audit_records: IntCounter,
    pub audit_failures: IntCounter,
    /// Records that were set aside, since the database refused them for good or nobody could read them.
    pub audit_refused: IntCounter,
    /// Records that waited on disk.
    pub audit_kept: IntCounter,
    pub audit_lag: Lag,
}

impl Metrics {
    /// Registers the instruments. Fails if one is registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let turns =
            IntCounterVec::new(Opts::new("croft_turns_total", "Turns that ended, by stop reason"), &["stop_reason"])?;
        registry.register(Box::new(turns.clone()))?;
        let expired = Opts::new("croft_sessions_expired_total", "Sessions that were ended as their time was up");
        let sessions_expired = IntCounterVec::new(expired, &["reason"])?;
        registry.register(Box::new(sessions_expired.clone()))?;
        let turns_running = IntGauge::new("croft_turns_running", "Turns that this replica drives")?;
        registry.register(Box::new(turns_running.clone()))?;
        let buckets = vec![0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let stages = HistogramOpts::new("croft_turn_stage_seconds", "What comes before a turn's first token, by stage");
        let turn_stages = HistogramVec::new(stages.buckets(buckets.clone()), &["stage"])?;
        registry.register(Box::new(turn_stages.clone()))?;
        let waits = HistogramOpts::new("croft_message_wait_seconds", "How long messages waited behind a running turn");
        let message_waits = Histogram::with_opts(waits.buckets(MESSAGE_WAITS.to_vec()))?;
        registry.register(Box::new(message_waits.clone()))?;
        let first_token = Histogram::with_opts(
            HistogramOpts::new("croft_first_token_seconds", "From a turn's beginning to its first token")
                .buckets(buckets),
        )?;
        registry.register(Box::new(first_token.clone()))?;
        let audit_lag = Lag::default();
        registry.register(Box::new(audit_lag.clone()))?;
        Ok(Self {
            sessions_created: counter("croft_sessions_created_total", "Sessions created")?,
            sessions_expired,
            sessions_erased: counter("croft_sessions_erased_total", "Ended sessions that were kept for long enough")?,
            turns,
            turns_running,
            turn_stages,
            message_waits,
            first_token,
            events_stored: counter("croft_events_stored_total", "Durable events stored by turns")?,
            lease_losses: counter("croft_lease_losses_total", "Turns that found their lease taken over")?,
            takeovers: counter("croft_turn_takeovers_total", "Turns taken over from a replica that went silent")?,
            workers_lost: counter("croft_turn_workers_lost_total", "Workers that were lost in the midst of a turn")?,
            told: Told::register(registry)?,
            unpriced_attempts: counter("croft_unpriced_attempts_total", "Model attempts whose price is unknown")?,
            audit_records: counter("croft_audit_records_total", "Audit records stored")?,
            audit_lag,
            audit_kept: counter("croft_audit_kept_total", "Audit records that waited on disk for the database")?,
            audit_refused: counter(
                "croft_audit_refused_total",
                "Audit records that were set aside, or that the database had for stored before they were sent",
            )?,
            audit_failures: counter("croft_audit_write_failures_total", "Tries to store audit records that failed")?,
        })
    }
}
