//! What every ledger of usage promises.

use croft_front::Error;
use croft_front::budget::{Account, Scope};
use croft_front::events::log::NewEvent;
use croft_front::session::across::Horizon;
use croft_front::store::Stores;
use croft_front::usage::{GROUPS_MAX, Selection};
use croft_proto::id::{SessionId, TenantId};
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ModelAttempt, ProviderMode, StepStarted, TokenUsage, UsageDimension, UsageTotals};
use uuid::Uuid;

use super::fixtures::{
    agent, append, appended, at, attempt, event, get, insert, new_session, session, tenant, terminated, two_tenants,
};

const DAY: i64 = 24 * 60 * 60;

pub(crate) async fn keeps_tenants_apart(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let (our_session, their_session) = (session(stores, ours).await, session(stores, theirs).await);
    // Not even an attempt's id is shared: theirs neither hides ours nor tells of it.
    appended(stores, append(theirs, their_session, vec![attempt("same", Some(1))])).await;
    appended(stores, append(ours, our_session, vec![attempt("same", Some(2))])).await;
    let rows = stores.usage.list(ours, None, None, None, 10).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.cost_nano_usd).collect::<Vec<_>>(), [Some(2)]);
    assert_eq!(stores.usage.list(ours, Some(their_session), None, None, 10).await.unwrap(), []);
    let totals = stores.usage.summarize(ours, Selection::default(), &[]).await.unwrap();
    assert_eq!(totals[0].totals.unwrap().cost_nano_usd, 2);
}

pub(crate) async fn counts_an_attempt_once(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let (first, second) = (session(stores, tenant).await, session(stores, tenant).await);
    let twice = append(tenant, first, vec![attempt("a", Some(7)), attempt("a", Some(7)), attempt("b", Some(1))]);
    appended(stores, twice).await;
    appended(stores, append(tenant, first, vec![attempt("a", Some(9))])).await;
    appended(stores, append(tenant, second, vec![attempt("a", Some(9))])).await;

    let rows = stores.usage.list(tenant, None, None, None, 10).await.unwrap();
    assert_eq!(rows.iter().map(|row| &*row.attempt_id).collect::<Vec<_>>(), ["b", "a"]);
    let usage = get(stores, tenant, first).await.usage;
    assert_eq!((usage.attempts, usage.cost_nano_usd), (2, 8));
    assert_eq!(get(stores, tenant, second).await.usage.attempts, 0);
    assert_eq!(get(stores, tenant, first).await.last_seq, 6, "the events are all there");
}

pub(crate) async fn takes_what_a_worker_makes_up(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let (zero, long) = ("a\0b", "x".repeat(5_000));
    let attempt = ModelAttempt {
        attempt_id: long.clone(),
        provider: zero.into(),
        model: long.clone(),
        finish_reason: zero.into(),
        error_class: long,
        service_tier: zero.into(),
        sender: zero.into(),
        cost_nano_usd: Some(5),
        ..ModelAttempt::default()
    };
    let started = StepStarted { worker: zero.into(), ..StepStarted::default() };
    let events = vec![Kind::StepStarted(started), Kind::ModelAttempt(attempt)];
    appended(stores, append(tenant, session, events)).await;

    let rows = stores.usage.list(tenant, None, None, None, 10).await.unwrap();
    let [row] = &rows[..] else { panic!("{rows:?}") };
    let (plain, cut) = ("a\u{fffd}b", "x".repeat(512));
    assert_eq!((&*row.attempt_id, &*row.model, &*row.error_class), (&*cut, &*cut, &*cut));
    assert_eq!((&*row.provider, &*row.finish_reason, &*row.service_tier, &*row.sender), (plain, plain, plain, plain));
    let session = get(stores, tenant, session).await;
    assert_eq!((&*session.worker, session.usage.cost_nano_usd), (plain, 5));
}

pub(crate) async fn tells_of_no_more_groups_than_fit_an_answer(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let attempts: Vec<_> = (0..GROUPS_MAX + 2)
        .map(|number| {
            let (attempt_id, model) = (format!("attempt-{number}"), format!("model-{number}"));
            Kind::ModelAttempt(ModelAttempt { attempt_id, model, ..ModelAttempt::default() })
        })
        .collect();
    for some in attempts.chunks(2_000) {
        appended(stores, append(tenant, session, some.to_vec())).await;
    }
    let groups = stores.usage.summarize(tenant, Selection::default(), &[UsageDimension::Model]).await.unwrap();
    assert_eq!(groups.len(), GROUPS_MAX + 1);
    let total = stores.usage.summarize(tenant, Selection::default(), &[UsageDimension::Agent]).await.unwrap();
    assert_eq!(total[0].totals.unwrap().attempts, i64::try_from(GROUPS_MAX + 2).unwrap());
}

pub(crate) async fn tells_unknown_prices(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    appended(stores, append(tenant, session, vec![attempt("a", None), attempt("b", Some(0))])).await;
    let rows = stores.usage.list(tenant, Some(session), None, None, 10).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.cost_nano_usd).collect::<Vec<_>>(), [Some(0), None]);
    let usage = get(stores, tenant, session).await.usage;
    assert_eq!((usage.attempts, usage.unpriced_attempts, usage.cost_nano_usd), (2, 1, 0));
    let totals = stores.usage.summarize(tenant, Selection::default(), &[]).await.unwrap()[0].totals.unwrap();
    assert_eq!(totals, usage);
}

pub(crate) async fn tells_whose_account_answered(stores: &Stores) {
    use ProviderMode::{InCluster, Platform, TenantEndpoint, TenantKey, Unspecified};
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let modes = [Unspecified, Platform, TenantKey, TenantEndpoint, InCluster];
    let attempts = modes.iter().zip('a'..).map(|(mode, id)| {
        let attempt = of(&id.to_string(), "anthropic", "claude-haiku-4-5", 1);
        Kind::ModelAttempt(ModelAttempt { mode: (*mode).into(), ..attempt })
    });
    appended(stores, append(tenant, session, attempts.collect())).await;
    let mut rows = stores.usage.list(tenant, None, None, None, 10).await.unwrap();
    rows.reverse();
    let told: Vec<_> = rows.iter().map(croft_proto::v1::UsageEvent::mode).collect();
    assert_eq!(told, [Platform, Platform, TenantKey, TenantEndpoint, InCluster]);
}

pub(crate) async fn tells_how_it_was_served(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    // In an append of its own, and with the opening of a session.
    let session = session(stores, tenant).await;
    let served = |id, tier: &str| ModelAttempt { service_tier: tier.into(), ..of(id, "openai", "gpt-6.1-sol", 1) };
    let attempts = [served("a", ""), served("b", "flex")];
    appended(stores, append(tenant, session, attempts.map(Kind::ModelAttempt).into())).await;
    used(stores, tenant, "helper", 9, served("c", "priority")).await;
    let rows = stores.usage.list(tenant, None, None, None, 10).await.unwrap();
    let mut told: Vec<_> = rows.iter().map(|row| (&*row.attempt_id, &*row.service_tier)).collect();
    told.sort_unstable();
    assert_eq!(told, [("a", ""), ("b", "flex"), ("c", "priority")]);
}

pub(crate) async fn tells_on_whose_behalf(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let by = |id, sender: &str, cost| ModelAttempt { sender: sender.into(), ..of(id, "scripted", "scripted-1", cost) };
    // With others in one append, with the opening of a session, and behind a session's end.
    let session = session(stores, tenant).await;
    let attempts = [by("a", "api-key/ck_1", 1), by("b", "oidc/Ada", 20), by("c", "", 300)];
    appended(stores, append(tenant, session, attempts.map(Kind::ModelAttempt).into())).await;
    used(stores, tenant, "helper", 9, by("d", "oidc/Ada", 4_000)).await;
    appended(stores, append(tenant, session, vec![terminated("done")])).await;
    let late = [event(Kind::ModelAttempt(by("e", "oidc/Ada", 50_000)))];
    stores.usage.add_behind_end(tenant, session, &late).await.unwrap();

    let rows = stores.usage.list(tenant, None, None, None, 10).await.unwrap();
    let mut told: Vec<_> = rows.iter().map(|row| (&*row.attempt_id, &*row.sender)).collect();
    told.sort_unstable();
    assert_eq!(told, [("a", "api-key/ck_1"), ("b", "oidc/Ada"), ("c", ""), ("d", "oidc/Ada"), ("e", "oidc/Ada")]);
    let sums = stores.usage.summarize(tenant, Selection::default(), &[UsageDimension::Sender]).await.unwrap();
    let sums: Vec<_> = sums.iter().map(|sum| (&*sum.keys[0], sum.totals.unwrap().cost_nano_usd)).collect();
    assert_eq!(sums, [("", 300), ("api-key/ck_1", 1), ("oidc/Ada", 54_020)]);
}

/// One attempt in a session of its own.
async fn used(stores: &Stores, tenant: TenantId, agent_name: &str, seconds: i64, attempt: ModelAttempt) -> String {
    let mut new = new_session(tenant);
    new.agent = agent(agent_name);
    new.events.push(NewEvent { create_time: at(seconds), ..event(Kind::ModelAttempt(attempt)) });
    insert(stores, new).await.id.to_string()
}

fn of(id: &str, provider: &str, model: &str, cost: i64) -> ModelAttempt {
    let Kind::ModelAttempt(attempt) = attempt(id, Some(cost)) else { unreachable!() };
    ModelAttempt { provider: provider.into(), model: model.into(), ..attempt }
}

pub(crate) async fn lists_newest_first_in_pages(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    // At the same moment, the id decides.
    for (id, seconds) in [("c", 1), ("a", 1), ("B", 1), ("z", 0), ("y", 5)] {
        used(stores, tenant, "helper", seconds, of(id, "scripted", "scripted-1", 1)).await;
    }
    let page = async |after, limit| {
        let rows = stores.usage.list(tenant, None, None, after, limit).await.unwrap();
        rows.into_iter().map(|row| row.attempt_id).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 10).await, ["y", "c", "a", "B", "z"]);
    assert_eq!(page(None, 2).await, ["y", "c"]);
    assert_eq!(page(Some("c"), 2).await, ["a", "B"]);
    assert_eq!(page(Some("z"), 2).await, [""; 0]);
    // Once, that was the end of the list, too.
    let wrong = stores.usage.list(tenant, None, None, Some("unknown"), 2).await.unwrap_err();
    assert!(matches!(&wrong, Error::Invalid { field, .. } if field == "page_token"), "{wrong:?}");
    let stranger = super::fixtures::tenant(stores, "stranger").await;
    assert!(stores.usage.list(stranger, None, None, Some("c"), 2).await.is_err(), "it is another's");
    let until = async |before, after| {
        let rows = stores.usage.list(tenant, None, Some(before), after, 2).await.unwrap();
        rows.into_iter().map(|row| row.attempt_id).collect::<Vec<_>>()
    };
    assert_eq!(until(at(6), None).await, ["y", "c"]);
    assert_eq!(until(at(5), None).await, ["c", "a"], "and none of that moment");
    assert_eq!(until(at(5), Some("c")).await, ["a", "B"]);
    assert_eq!(until(at(1), None).await, ["z"]);
    assert_eq!(until(at(0), None).await, [""; 0]);

    let row = &stores.usage.list(tenant, None, None, None, 1).await.unwrap()[0];
    assert_eq!((row.create_time, row.latency_ms, &*row.agent), (Some(at(5)), 321, "helper"));
    assert_eq!((&*row.finish_reason, &*row.error_class, row.usage_estimated), ("end_turn", "", false));
}

pub(crate) async fn summarizes_by_each_dimension(stores: &Stores) {
    use UsageDimension::{Agent, Day, Model, Provider, Session};
    let tenant = tenant(stores, "ours").await;
    let first = used(stores, tenant, "poet", 0, of("1", "scripted", "scripted-1", 1)).await;
    let second = used(stores, tenant, "Clerk", 1, of("2", "anthropic", "claude-haiku-4-5", 20)).await;
    let third = used(stores, tenant, "poet", DAY, of("3", "anthropic", "claude-haiku-4-5", 300)).await;

    let sums = async |start, end, by: &[UsageDimension]| {
        let summaries = stores.usage.summarize(tenant, Selection { agent: None, start, end }, by).await.unwrap();
        summaries
            .into_iter()
            .map(|summary| (summary.keys.join("/"), summary.totals.unwrap().cost_nano_usd))
            .collect::<Vec<_>>()
    };
    let expected = |pairs: &[(&str, i64)]| pairs.iter().map(|(key, sum)| ((*key).to_owned(), *sum)).collect::<Vec<_>>();
    assert_eq!(sums(None, None, &[]).await, expected(&[("", 321)]));
    assert_eq!(sums(None, None, &[Agent]).await, expected(&[("Clerk", 20), ("poet", 301)]));
    assert_eq!(sums(None, None, &[Model]).await, expected(&[("claude-haiku-4-5", 320), ("scripted-1", 1)]));
    assert_eq!(sums(None, None, &[Day]).await, expected(&[("2026-09-21", 21), ("2026-09-22", 300)]));
    assert_eq!(
        sums(None, None, &[Provider, Agent]).await,
        expected(&[("anthropic/Clerk", 20), ("anthropic/poet", 300), ("scripted/poet", 1)])
    );
    assert_eq!(sums(None, None, &[Session]).await, expected(&[(&first, 1), (&second, 20), (&third, 300)]));
    assert_eq!(sums(None, None, &[UsageDimension::Mode]).await, expected(&[("platform", 321)]));
    // The end is exclusive.
    assert_eq!(sums(Some(at(1)), Some(at(DAY)), &[]).await, expected(&[("", 20)]));
    assert_eq!(sums(Some(at(1)), None, &[Agent]).await, expected(&[("Clerk", 20), ("poet", 300)]));
    assert!(stores.usage.summarize(tenant, Selection::default(), &[UsageDimension::Unspecified]).await.is_err());
}

pub(crate) async fn summarizes_what_one_agent_used(stores: &Stores) {
    let [tenant, other] = two_tenants(stores).await;
    used(stores, tenant, "poet", 0, of("1", "scripted", "scripted-1", 1)).await;
    used(stores, tenant, "poet", 5, of("2", "anthropic", "claude-haiku-4-5", 20)).await;
    used(stores, tenant, "Poet", 5, of("3", "anthropic", "claude-haiku-4-5", 300)).await;
    used(stores, other, "poet", 5, of("4", "scripted", "scripted-1", 4_000)).await;
    let sums = async |agent: &str, start, end, by: &[UsageDimension]| {
        let summaries = stores.usage.summarize(tenant, Selection { agent: Some(agent), start, end }, by).await.unwrap();
        let told = summaries.into_iter().map(|summary| (summary.keys.join("/"), summary.totals.unwrap().cost_nano_usd));
        told.collect::<Vec<_>>()
    };
    let by_model = [UsageDimension::Model];
    assert_eq!(sums("poet", None, None, &by_model).await, [("claude-haiku-4-5".into(), 20), ("scripted-1".into(), 1)]);
    assert_eq!(sums("poet", Some(at(1)), Some(at(6)), &by_model).await, [("claude-haiku-4-5".into(), 20)]);
    assert_eq!(sums("poet", Some(at(1)), Some(at(5)), &by_model).await, []);
    assert_eq!(sums("Poet", None, None, &[]).await, [(String::new(), 300)]);
    assert_eq!(sums("nobody", None, None, &[]).await, [(String::new(), 0)]);
}

pub(crate) async fn totals_nothing_without_rows(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let totals = stores.usage.summarize(tenant, Selection::default(), &[]).await.unwrap();
    assert_eq!(totals.len(), 1);
    let nothing = UsageTotals { tokens: Some(TokenUsage::default()), ..UsageTotals::default() };
    assert_eq!(totals[0].totals, Some(nothing));
    assert_eq!(stores.usage.summarize(tenant, Selection::default(), &[UsageDimension::Agent]).await.unwrap(), []);
}

pub(crate) async fn takes_no_negative_tokens(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let mut forged = of("a", "scripted", "scripted-1", -5);
    forged.usage = Some(TokenUsage { input_uncached_tokens: -1_000, output_tokens: 3, ..TokenUsage::default() });
    used(stores, tenant, "helper", 0, forged).await;
    let row = &stores.usage.list(tenant, None, None, None, 1).await.unwrap()[0];
    assert_eq!(row.tokens, Some(TokenUsage { output_tokens: 3, ..TokenUsage::default() }));
    assert_eq!(row.cost_nano_usd, Some(0));
}

pub(crate) async fn adds_to_the_sessions_totals(stores: &Stores) {
    let tenant = tenant(stores, "ours").await;
    let session = session(stores, tenant).await;
    let all = TokenUsage {
        input_uncached_tokens: 1,
        cache_read_tokens: 20,
        cache_write_5m_tokens: 300,
        cache_write_1h_tokens: 4_000,
        output_tokens: 50_000,
        reasoning_tokens: 600_000,
    };
    for id in ["a", "b"] {
        let attempt = ModelAttempt { usage: Some(all), ..of(id, "scripted", "scripted-1", 11) };
        appended(stores, append(tenant, session, vec![Kind::ModelAttempt(attempt)])).await;
    }
    let usage = get(stores, tenant, session).await.usage;
    let twice = TokenUsage {
        input_uncached_tokens: 2,
        cache_read_tokens: 40,
        cache_write_5m_tokens: 600,
        cache_write_1h_tokens: 8_000,
        output_tokens: 100_000,
        reasoning_tokens: 1_200_000,
    };
    assert_eq!(usage, UsageTotals { attempts: 2, tokens: Some(twice), cost_nano_usd: 22, unpriced_attempts: 0 });
    assert_eq!(stores.usage.summarize(tenant, Selection::default(), &[]).await.unwrap()[0].totals, Some(usage));
}

pub(crate) async fn adds_what_an_ended_session_used(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let session = session(stores, ours).await;
    appended(stores, append(ours, session, vec![attempt("a", Some(3))])).await;
    appended(stores, append(ours, session, vec![terminated("enough")])).await;
    let late = [event(attempt("a", Some(9))), event(terminated("again")), event(attempt("b", Some(4)))];
    let is_told = async |since: &Horizon| {
        let changed = stores.across.changed(since, (0, SessionId(Uuid::nil())), 10).await.unwrap();
        changed.iter().any(|changed| changed.session == session)
    };
    for is_new in [true, false] {
        let before = stores.across.horizon().await.unwrap();
        stores.usage.add_behind_end(ours, session, &late).await.unwrap();
        assert_eq!(is_told(&before).await, is_new, "whoever follows the session hears what it has come to");
    }
    // What costs nobody knows what is counted once as well.
    let unknown = [event(attempt("d", None)), event(attempt("e", Some(0))), event(attempt("f", None))];
    for added in [2, 0] {
        assert_eq!(stores.usage.add_behind_end(ours, session, &unknown).await.unwrap(), added);
    }
    // Whose session it isn't, and nobody's.
    assert_eq!(stores.usage.add_behind_end(theirs, session, &unknown).await.unwrap(), 0);
    stores.usage.add_behind_end(theirs, session, &late).await.unwrap();
    stores.usage.add_behind_end(ours, SessionId::generate(), &[event(attempt("c", Some(1)))]).await.unwrap();

    let rows = stores.usage.list(ours, None, None, None, 10).await.unwrap();
    let told: Vec<_> = rows.iter().map(|row| (&*row.attempt_id, row.cost_nano_usd, &*row.agent)).collect();
    let unknown = [("f", None, "helper"), ("e", Some(0), "helper"), ("d", None, "helper")];
    assert_eq!(told, [&unknown[..], &[("b", Some(4), "helper"), ("a", Some(3), "helper")]].concat());
    assert_eq!(stores.usage.list(theirs, None, None, None, 10).await.unwrap(), []);
    let now = get(stores, ours, session).await;
    assert_eq!((now.usage.attempts, now.usage.cost_nano_usd, now.last_seq), (5, 7, 4), "its log is closed");
    assert_eq!(now.usage.unpriced_attempts, 2);
    assert_eq!(now.terminate_reason, "enough");
    let account = Account { scope: Scope::Agent, subject: "helper".into(), period: "life".into() };
    assert_eq!(stores.budgets.ledgers(ours, &[account]).await.unwrap()[0].nano_usd, 7, "budgets count it");
}
