//! The machine against what it promises, over any course of events.

use proptest::prelude::*;

use super::*;

const POLICY: Policy = Policy {
    window: 8,
    outcomes_min: 4,
    failures_percent: 50,
    open: Duration::from_secs(5),
    open_max: Duration::from_secs(30),
    trials: 2,
};

const FAILED: Outcome = Outcome::Failed { retry_after: None };

fn call(breaker: &mut Breaker, outcome: Outcome, now: Instant) -> Result<(), Duration> {
    let pass = breaker.admit(now)?;
    breaker.ended(pass, outcome, now);
    Ok(())
}

fn opened(now: Instant) -> Breaker {
    let mut breaker = Breaker::new(POLICY);
    for _ in 0..POLICY.outcomes_min {
        call(&mut breaker, FAILED, now).unwrap();
    }
    assert_eq!(breaker.state(now), State::Open);
    breaker
}

#[test]
fn too_few_failures_or_too_small_a_share_keep_it_closed() {
    let now = Instant::now();
    let mut breaker = Breaker::new(POLICY);
    for _ in 0..3 {
        call(&mut breaker, FAILED, now).unwrap();
    }
    assert_eq!(breaker.state(now), State::Closed, "three outcomes are too few");
    for _ in 0..8 {
        call(&mut breaker, Outcome::Answered, now).unwrap();
    }
    for _ in 0..3 {
        call(&mut breaker, FAILED, now).unwrap();
    }
    assert_eq!(breaker.state(now), State::Closed, "three in eight are too small a share");
    call(&mut breaker, FAILED, now).unwrap();
    assert_eq!(breaker.state(now), State::Open);
}

#[test]
fn it_is_closed_again_by_trials_that_go_well_one_after_another() {
    let now = Instant::now();
    let mut breaker = opened(now);
    assert_eq!(call(&mut breaker, Outcome::Answered, now), Err(POLICY.open));
    let later = now + POLICY.open;
    call(&mut breaker, Outcome::Answered, later).unwrap();
    assert_eq!(breaker.state(later), State::HalfOpen);
    call(&mut breaker, Outcome::Answered, later).unwrap();
    assert_eq!(breaker.state(later), State::Closed);
    assert!(breaker.is_idle(), "the failures of before are forgotten");
}

#[test]
fn a_trial_whose_answer_has_begun_lets_the_next_through_and_counts_once() {
    let now = Instant::now();
    let mut breaker = opened(now);
    let later = now + POLICY.open;
    let mut first = breaker.admit(later).unwrap();
    assert!(breaker.admit(later).is_err());
    breaker.began(&mut first);
    breaker.began(&mut first);
    breaker.ended(first, Outcome::Answered, later);
    assert_eq!(breaker.state(later), State::HalfOpen, "one has gone well, of two");
    let mut second = breaker.admit(later).unwrap();
    breaker.began(&mut second);
    assert_eq!(breaker.state(later), State::HalfOpen, "the second may still break off");
    breaker.ended(second, Outcome::Answered, later);
    assert_eq!(breaker.state(later), State::Closed);
}

/// Its provider took the connection and is not heard of again.
#[test]
fn a_trial_that_is_silent_for_too_long_keeps_no_other_back() {
    let now = Instant::now();
    let mut breaker = opened(now);
    let later = now + POLICY.open;
    let mut silent = breaker.admit(later).unwrap();
    let nearly = later + POLICY.open_max.checked_sub(Duration::from_secs(1)).unwrap();
    assert_eq!(breaker.admit(nearly), Err(Duration::from_secs(1)));
    let much_later = later + POLICY.open_max;
    let mut next = breaker.admit(much_later).unwrap();
    assert_eq!(breaker.admit(much_later), Err(POLICY.open), "one at a time");
    breaker.began(&mut silent);
    breaker.ended(silent, Outcome::Unknown, much_later);
    assert!(breaker.admit(much_later).is_err(), "the next one runs, whatever becomes of the first");
    breaker.began(&mut next);
    assert!(breaker.admit(much_later).is_ok());
}

#[test]
fn trials_that_begin_and_then_break_off_leave_it_open_for_longer() {
    let now = Instant::now();
    let mut breaker = opened(now);
    let later = now + POLICY.open;
    let mut trials = [(); 2].map(|()| {
        let mut trial = breaker.admit(later).unwrap();
        breaker.began(&mut trial);
        trial
    });
    trials.reverse();
    for trial in trials {
        breaker.ended(trial, FAILED, later);
        assert_eq!(breaker.admit(later), Err(2 * POLICY.open));
    }
}

#[test]
fn a_trial_that_ends_well_does_not_let_two_others_through_at_once() {
    let now = Instant::now();
    let mut breaker = Breaker::new(Policy { trials: 3, ..POLICY });
    for _ in 0..POLICY.outcomes_min {
        call(&mut breaker, FAILED, now).unwrap();
    }
    let later = now + POLICY.open;
    let mut first = breaker.admit(later).unwrap();
    breaker.began(&mut first);
    let _second = breaker.admit(later).unwrap();
    breaker.ended(first, Outcome::Answered, later);
    assert!(breaker.admit(later).is_err(), "the second trial runs");
}

#[test]
fn a_trial_that_fails_after_its_answer_began_opens_it_again() {
    let now = Instant::now();
    let mut breaker = opened(now);
    let later = now + POLICY.open;
    let mut first = breaker.admit(later).unwrap();
    breaker.began(&mut first);
    let second = breaker.admit(later).unwrap();
    breaker.ended(first, Outcome::Unknown, later);
    assert!(breaker.admit(later).is_err(), "the second trial runs");
    breaker.ended(first, FAILED, later);
    assert_eq!(breaker.state(later), State::Open);
    breaker.ended(second, Outcome::Answered, later);
    assert_eq!(breaker.state(later), State::Open);
}

#[test]
fn it_stays_open_for_longer_each_time_up_to_a_bound() {
    let mut now = Instant::now();
    let mut breaker = opened(now);
    for seconds in [5, 10, 20, 30, 30] {
        let wait = breaker.admit(now).unwrap_err();
        assert_eq!(wait, Duration::from_secs(seconds));
        now += wait;
        call(&mut breaker, FAILED, now).unwrap();
    }
}

#[test]
fn the_providers_wait_is_kept_up_to_a_bound() {
    let now = Instant::now();
    for (asked, kept) in [(1, 5), (12, 12), (900, 30)] {
        let mut breaker = Breaker::new(POLICY);
        for _ in 0..POLICY.outcomes_min {
            let retry_after = Some(Duration::from_secs(asked));
            call(&mut breaker, Outcome::Failed { retry_after }, now).unwrap();
        }
        assert_eq!(breaker.admit(now), Err(Duration::from_secs(kept)));
    }
}

#[test]
fn a_call_from_before_a_change_says_nothing_of_what_came_after() {
    let now = Instant::now();
    let mut breaker = Breaker::new(POLICY);
    let slow = breaker.admit(now).unwrap();
    for _ in 0..POLICY.outcomes_min {
        call(&mut breaker, FAILED, now).unwrap();
    }
    let later = now + POLICY.open;
    let trial = breaker.admit(later).unwrap();
    breaker.ended(slow, FAILED, later);
    assert_eq!(breaker.state(later), State::HalfOpen, "the slow call's failure was known before");
    breaker.ended(trial, Outcome::Answered, later);
    assert_eq!(breaker.state(later), State::HalfOpen);
}

#[test]
fn what_speaks_for_the_request_and_not_for_the_provider_is_an_answer() {
    for class in Class::ALL {
        let failed = matches!(Outcome::of(class, None), Outcome::Failed { .. });
        assert_eq!(failed, class.is_retryable(), "{class:?}");
    }
}

#[derive(Debug, Clone)]
enum Event {
    Admit,
    Begin(prop::sample::Index),
    End(prop::sample::Index, Outcome),
    Wait(Duration),
}

fn event() -> impl Strategy<Value = Event> {
    let outcome = prop_oneof![
        2 => Just(Outcome::Answered),
        3 => prop::option::of(0..100_u64)
            .prop_map(|seconds| Outcome::Failed { retry_after: seconds.map(Duration::from_secs) }),
        1 => Just(Outcome::Unknown),
    ];
    prop_oneof![
        3 => Just(Event::Admit),
        1 => any::<prop::sample::Index>().prop_map(Event::Begin),
        3 => (any::<prop::sample::Index>(), outcome).prop_map(|(pick, outcome)| Event::End(pick, outcome)),
        1 => (0..40_000_u64).prop_map(|milliseconds| Event::Wait(Duration::from_millis(milliseconds))),
    ]
}

proptest! {
    #[test]
    fn it_keeps_its_promises_over_any_course_of_events(events in prop::collection::vec(event(), 0..300)) {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(POLICY);
        let mut running: Vec<Pass> = Vec::new();
        // Failures since it was last not closed: it opens for no less than these.
        let mut failures = 0;
        for event in events {
            let before = breaker.state(now);
            match event {
                Event::Wait(time) => {
                    now += time;
                    // Time alone never opens or closes it.
                    let after = breaker.state(now);
                    prop_assert!(after == before || (before, after) == (State::Open, State::HalfOpen));
                }
                Event::Admit => match breaker.admit(now) {
                    Ok(pass) => {
                        prop_assert_ne!(before, State::Open);
                        running.push(pass);
                        if before == State::HalfOpen {
                            // One at a time: a second is refused until the first has begun or ended.
                            prop_assert!(breaker.clone().admit(now).is_err());
                        }
                    }
                    Err(wait) => {
                        prop_assert_ne!(before, State::Closed);
                        prop_assert!(wait <= POLICY.open_max && wait > Duration::ZERO);
                    }
                },
                Event::End(pick, outcome) if !running.is_empty() => {
                    let pass = running.swap_remove(pick.index(running.len()));
                    breaker.ended(pass, outcome, now);
                    let after = breaker.state(now);
                    if before == State::Closed && matches!(outcome, Outcome::Failed { .. }) {
                        failures += 1;
                    }
                    match (before, after) {
                        (State::Closed, State::Open) => {
                            prop_assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
                            prop_assert!(failures * 2 >= POLICY.outcomes_min);
                        }
                        (State::HalfOpen, State::Open) => {
                            prop_assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
                        }
                        (State::HalfOpen, State::Closed) => {
                            prop_assert_eq!(outcome, Outcome::Answered);
                            failures = 0;
                        }
                        (same, unchanged) => prop_assert_eq!(same, unchanged),
                    }
                }
                Event::Begin(pick) if !running.is_empty() => {
                    let pick = pick.index(running.len());
                    breaker.began(&mut running[pick]);
                    prop_assert_eq!(before, breaker.state(now));
                }
                Event::Begin(_) | Event::End(..) => {}
            }
        }
        // Whatever happened, it is never stuck: once all calls have ended and the wait is over, one goes through.
        for pass in running {
            breaker.ended(pass, Outcome::Unknown, now);
        }
        prop_assert!(breaker.admit(now + POLICY.open_max).is_ok());
    }
}
