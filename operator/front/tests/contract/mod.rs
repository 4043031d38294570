//! What every store promises, written once and run against memory and Postgres.

pub(crate) mod across;
pub(crate) mod asking;
pub(crate) mod audit;
pub(crate) mod budgets;
pub(crate) mod creation;
#[path = "../doubles/mod.rs"]
pub(crate) mod doubles;
pub(crate) mod events;
pub(crate) mod fixtures;
pub(crate) mod keys;
pub(crate) mod leases;
pub(crate) mod models;
pub(crate) mod numbering;
pub(crate) mod removal;
pub(crate) mod retention;
pub(crate) mod sessions;
pub(crate) mod turns;
pub(crate) mod usage;

/// One test for each promise, each on stores of its own, which `crate::ground` makes.
macro_rules! promises {
    () => {
        $crate::contract::promises! {
            sessions: keeps_tenants_apart, starts_as_its_first_events_say, survives_a_round_trip_in_full,
                is_refused_for_a_tenant_that_nobody_knows, stops_at_the_limit_whoever_races,
                frees_a_place_when_one_ends, answers_a_repeated_key_with_the_same_session,
                makes_one_session_of_concurrent_requests_with_one_key, repeats_a_key_at_the_limit,
                lists_in_pages_newest_first, lists_no_more_than_fits_a_page, filters_by_state_and_labels, bills_attempts_of_the_first_events,
                has_one_child_for_each_call_of_a_parent, makes_no_child_of_a_parent_that_has_ended;
            asking: are_those_that_were_left_with_a_question_or_run_and_have_asked,
                are_there_while_their_turn_is_nobodys_or_a_message_waits, come_in_pages_newest_first_and_to_their_tenant_alone,
                end_a_page_that_is_full_of_agents;
            events: keeps_tenants_apart, numbers_without_holes_under_fifty_writers, projects_state,
                refuses_a_stale_epoch, refuses_a_released_lease, takes_a_word_to_a_turn_while_it_runs, fences_the_turn, ends_the_lease_with_the_session,
                takes_nothing_after_the_end, takes_nothing_for_unknown_sessions, stores_all_or_nothing,
                takes_no_previews, answers_a_repeated_key_with_the_same_number, keeps_keys_apart_by_session,
                appends_once_for_concurrent_requests_with_one_key, reads_in_pages, reads_no_more_than_fits_a_page, replaces_the_checkpoint,
                remembers_what_input_was_taken_up;
            leases: keeps_tenants_apart, has_one_holder, grows_its_epoch, passes_on_when_it_runs_out,
                renews_many_at_once_and_tells_of_those_that_are_lost,
                renews_while_it_is_held, survives_a_late_heartbeat, finds_abandoned_ones_longest_first,
                has_one_winner_of_many, is_not_taken_over_once_it_was_given_up, refuses_sessions_that_cannot_run, is_abandoned_when_given_up_while_a_message_waits,
                is_abandoned_by_a_message_that_finds_nobody, is_abandoned_by_a_holder_that_goes;
            turns: keeps_tenants_apart, begins_with_lease_and_message_together,
                begins_behind_no_message_that_its_caller_has_not_seen, brings_the_newest_checkpoint_along,
                stores_nothing_while_someone_holds_the_lease, has_one_winner_of_many, refuses_sessions_that_cannot_run,
                answers_a_repeated_key_without_taking_the_lease, gives_the_lease_up_with_the_last_word,
                keeps_the_lease_for_a_message_that_waits, says_of_a_turn_that_was_broken_off_that_it_runs, leaves_no_message_lying;
            numbering: holds_whatever_is_given_up_refused_or_repeated;
            usage: keeps_tenants_apart, counts_an_attempt_once, takes_what_a_worker_makes_up, tells_of_no_more_groups_than_fit_an_answer, tells_unknown_prices, tells_whose_account_answered, tells_how_it_was_served, tells_on_whose_behalf, lists_newest_first_in_pages,
                summarizes_by_each_dimension, summarizes_what_one_agent_used, totals_nothing_without_rows, takes_no_negative_tokens,
                adds_to_the_sessions_totals, adds_what_an_ended_session_used;
            budgets: keeps_tenants_apart, replaces_and_takes_away, adds_up_each_account_as_the_rows_do, counts_a_repeated_attempt_once,
                knows_nothing_of_what_was_not_spent, tells_of_a_threshold_once,
                knows_the_highest_threshold_of_each_limit_as_it_is, remembers_who_was_not_told,
                posts_an_alert_once_unless_its_try_failed, counts_what_sub_agents_used_for_all_above_them,
                tells_whose_cost_nobody_knows;
            audit: keeps_tenants_apart, numbers_and_chains_each_tenant, keeps_its_chain_under_concurrent_writers,
                lists_in_pages, finds_an_empty_log_intact, comes_by_what_is_known,
                tells_when_it_was_done_and_when_it_was_stored, tells_up_to_where_a_journal_was_stored,
                stores_each_record_of_a_journal_once;
            keys: finds_what_was_stored, knows_no_other_prefix, refuses_unknown_tenants_and_taken_prefixes,
                finds_no_key_that_has_expired, finds_no_key_that_is_revoked, revokes_and_lists_the_tenants_own_alone;
            models: holds_the_seed;
            across: finds_what_is_due_longest_first, lets_a_running_session_be_idle_for_as_long_as_it_likes,
                ends_a_session_only_while_it_is_due, ends_a_session_at_rest_only_while_no_turn_is_at_hand, fences_the_turn_of_a_session_that_is_too_old,
                ends_a_session_once_whoever_races, tells_each_change_of_state_from_a_horizon_on,
                finds_sub_agents_that_have_outlived_their_call;
            removal: shuts_the_door_for_good, shuts_the_door_on_a_tenant_that_nobody_knew,
                lets_no_session_slip_through, erases_nothing_that_is_not_being_removed,
                erases_in_batches_and_keeps_the_books, erases_credentials_of_the_tenant_alone,
                erases_budgets_and_alerts_that_are_not_posted_yet, counts_and_erases_what_is_being_erased,
                counts_what_ended_lately_in_the_midst_of_a_turn, has_no_key_made_behind_it;
            retention: erases_whole_sessions_longest_ended_first, leaves_what_is_open_or_has_just_ended,
                keeps_tenants_apart, keeps_the_books, records_each_session_with_its_erasure, frees_the_keys_of_what_it_erased, shares_the_work,
                erases_a_large_session_in_slices_and_shows_none_of_it, takes_budgets_and_alerts_of_a_session_along,
                erases_what_it_began_whatever_time_is_asked_for, tells_of_whom_it_erases_sessions, leaves_the_call_of_a_hidden_sub_agent_to_another;
            creation: leaves_nothing_behind_when_a_step_fails, leaves_nothing_behind_when_the_worker_hangs,
                leaves_nothing_behind_when_it_cannot_be_recorded, tells_a_worker_to_forget_what_came_twice,
                tells_a_full_tenant_of_its_sessions_rather_than_of_its_rates;
        }
    };
    ($($noun:ident: $($promise:ident),+;)+) => {
        $(mod $noun {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let ground = crate::ground().await;
                $crate::contract::$noun::$promise(&ground.stores).await;
                ground.end().await;
            })+
        })+
    };
}
pub(crate) use promises;
