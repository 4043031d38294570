//! A model call that asks for its grant: what it still asks for, and for how long it goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use croft_proto::v1::{BudgetAction, BudgetReached};
use tokio::time::Instant;
use uuid::Uuid;

use super::{DISBELIEVED_MAX, Keeper, Outcome, ROUNDS_MAX, Wish, reached_event};
use crate::budget::alert::exhausted;
use crate::budget::asked::Asked;
use crate::budget::queue::Head;
use crate::budget::reservation::{OUTPUT_TOKENS_MIN, Reservation, output_that_fits};
use crate::budget::{Account, Budget, Budgets};
use crate::clock::now;
use crate::counters::{Amount, Ask, Standing, Verdict, Window};
use crate::error::Error;
use crate::limits::Limits;
use crate::models::price::Quote;
use crate::session::Session;

/// A call of which a used-up budget says that it be slowed down comes one in so long.
const THROTTLED_TO: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct Asking<'keeper> {
    keeper: &'keeper Keeper,
    wish: Wish,
    /// Of the grant, should it come.
    id: String,
    give_up_at: Instant,
    /// Tokens that are asked for now: fewer than are wished for where a budget has no room for all of them.
    output: i64,
    /// The budget that has none.
    clipped_by: Option<Budget>,
    /// Accounts of which the counters want the ledger's word.
    unread: BTreeSet<Account>,
    /// Questions since the call waited last.
    rounds: usize,
    /// Those of them, the last ones, that told the ledger's word and were asked for it again.
    disbelieved: usize,
    /// While the call is the one that looks whether a budget has room by now.
    head: Option<Head>,
}

/// One question to the counters, and what it was made from.
struct Round {
    ask: Ask,
    budgets: Budgets,
    quote: Option<Quote>,
    /// The tenant's rates: the first windows of the ask.
    limits: Limits,
    /// The budgets that slow calls down: its other windows.
    throttles: Vec<Budget>,
}

impl Round {
    /// The counters ask for the ledger's word of a bound that they were told it of.
    fn is_disbelieved(&self, verdict: &Verdict) -> bool {
        let is_told = |place: &usize| self.ask.bounds.get(*place).is_some_and(|bound| bound.ledger.is_some());
        matches!(verdict, Verdict::Unknown(places) if places.iter().any(is_told))
    }
}

impl<'keeper> Asking<'keeper> {
    pub(super) fn new(keeper: &'keeper Keeper, wish: Wish) -> Self {
        Self {
            keeper,
            id: Uuid::now_v7().to_string(),
            give_up_at: Instant::now() + wish.patience,
            output: wish.output_tokens_max.max(1),
            clipped_by: None,
            unread: BTreeSet::new(),
            rounds: 0,
            disbelieved: 0,
            head: None,
            wish,
        }
    }

    /// Asks until it is granted, or refused for longer than it is worth waiting. Fails with [`Error::Unavailable`] where nobody can
    /// tell.
    pub(super) async fn outcome(mut self) -> Result<Outcome, Error> {
        loop {
            // As they are by now: who waits goes on when one is raised.
            let budgets = self.keeper.budgets(&self.wish.session).await?;
            let quote = Quote::of(&self.wish.model, self.wish.input_tokens, now().seconds);
            if let Some(reached) = self.unpriced(quote, &budgets).await? {
                return Ok(Outcome::Reached(reached));
            }
            let round = self.round(budgets, quote).await?;
            if round.ask.windows.is_empty() && round.ask.bounds.is_empty() {
                self.clipped_by = None;
                return Ok(self.granted(round));
            }
            self.rounds += 1;
            let verdict = self.ask(&round).await?;
            self.disbelieved = if round.is_disbelieved(&verdict) { self.disbelieved + 1 } else { 0 };
            let refused = match verdict {
                Verdict::Granted(_) => return Ok(self.granted(round)),
                Verdict::Unknown(places) if self.rounds < ROUNDS_MAX => {
                    let accounts = &round.budgets.accounts;
                    self.unread.extend(places.iter().filter_map(|place| accounts.get(*place)).cloned());
                    None
                }
                Verdict::Unknown(_) => {
                    return Err(Error::unavailable("the ledger of budgets", anyhow::anyhow!("it changes too often")));
                }
                Verdict::Full { window, retry_after } => self.full(&round, window, retry_after).await,
                Verdict::Spent { bound, standing } => self.spent(&round, bound, standing).await,
            };
            if let Some(refused) = refused {
                return Ok(refused);
            }
        }
    }

    /// The question as it is now.
    async fn round(&self, budgets: Budgets, quote: Option<Quote>) -> Result<Round, Error> {
        let (keeper, Wish { session, model, input_tokens, .. }) = (self.keeper, &self.wish);
        let tenant = session.tenant;
        let tokens = input_tokens.saturating_add(self.output);
        let limits = keeper.limiter.of_model_call(tenant, &model.provider, tokens);
        let (slowed, throttles): (Vec<_>, Vec<_>) = self.throttles(&budgets).await.into_iter().unzip();
        let windows = limits.windows.iter().cloned().chain(slowed).collect();
        let mut bounds = budgets.bounds();
        let unread = (0..).zip(&budgets.accounts).filter(|(_, account)| self.unread.contains(*account));
        let unread = unread.map(|(place, _)| place).collect();
        keeper.read(tenant, &budgets, &mut bounds, &unread).await?;
        if self.disbelieved >= DISBELIEVED_MAX {
            Keeper::insist(tenant, &mut bounds, &unread);
        }
        let nano_usd = quote.map_or(0, |quote| quote.nano_usd(*input_tokens, self.output));
        let (id, ttl) = (self.id.clone(), keeper.reservation_ttl);
        let ask = Ask { tenant, id, ttl, nano_usd, tokens, windows, bounds };
        Ok(Round { ask, budgets, quote, limits, throttles })
    }

    async fn ask(&self, round: &Round) -> Result<Verdict, Error> {
        let (keeper, tenant, accounts) = (self.keeper, round.ask.tenant, &round.budgets.accounts);
        let asked = Asked::new(keeper, tenant, &self.id, accounts);
        let verdict = keeper.counters.admit(&round.ask).await?.verdict;
        if let Verdict::Granted(standings) = &verdict {
            keeper.remember(tenant, &round.budgets, standings).await;
        }
        asked.answered();
        Ok(verdict)
    }

    fn granted(self, round: Round) -> Outcome {
        Outcome::Granted(Box::new(Reservation {
            model: self.wish.model,
            ask: round.ask,
            budgets: round.budgets,
            quote: round.quote,
            input_tokens: self.wish.input_tokens,
            output_tokens_max: self.output,
            clipped_by: self.clipped_by,
            weight: 0,
        }))
    }

    /// A window has no room for so long: waits for it, unless that is longer than the call may wait.
    async fn full(&mut self, round: &Round, window: usize, retry_after: Duration) -> Option<Outcome> {
        if Instant::now() + retry_after > self.give_up_at {
            return Some(Outcome::Limited(self.limited(round, window, retry_after)));
        }
        self.keeper.metrics.waits.inc();
        // Who waits for a rate keeps nobody from a budget's room.
        self.head = None;
        tokio::time::sleep(retry_after).await;
        self.rounds = 0;
        None
    }

    /// Why the call is held back for too long.
    fn limited(&self, round: &Round, window: usize, retry_after: Duration) -> String {
        let keeper = self.keeper;
        let behind_rates = window.checked_sub(round.limits.windows.len());
        if let Some(budget) = behind_rates.and_then(|place| round.throttles.get(place)) {
            self.count_refusal(budget.scope.as_str());
            return format!(
                "{} is used up, and lets one call through in {} s",
                budget.described(),
                THROTTLED_TO.as_secs()
            );
        }
        let error = round.limits.refusal(window, retry_after);
        keeper.limiter.refused(&error);
        error.to_string()
    }

    /// A budget has no room for all that is asked for: asks for less of it, or waits until calls that are running have settled, or gives
    /// up.
    async fn spent(&mut self, round: &Round, bound: usize, standing: Standing) -> Option<Outcome> {
        let budget = round.budgets.hard_of(bound).cloned();
        let enough = OUTPUT_TOKENS_MIN.min(self.wish.output_tokens_max);
        let fits = self.room_beside(round, bound, standing);
        if fits >= enough && fits < self.output && self.rounds < ROUNDS_MAX {
            (self.output, self.clipped_by) = (fits, budget);
            return None;
        }
        if self.room_beside(round, bound, Standing { reserved: Amount::default(), ..standing }) < enough {
            self.tell_exhausted(round, bound, standing.spent, enough).await;
        } else if self.waits_for_room(&round.budgets.accounts[bound]).await {
            return None;
        }
        Some(Outcome::Reached(self.reached(budget.as_ref())))
    }

    fn reached(&self, budget: Option<&Budget>) -> BudgetReached {
        self.count_refusal(budget.map_or("tenant", |budget| budget.scope.as_str()));
        reached_event(budget)
    }

    /// Tokens of output that a budget has room for where so much of it is taken.
    fn room_beside(&self, round: &Round, bound: usize, taken: Standing) -> i64 {
        output_that_fits(round.budgets.left(bound, taken), round.quote, self.wish.input_tokens)
    }

    /// What is left of a budget will never be spent, as not even such a call fits it: tells of all its thresholds.
    async fn tell_exhausted(&self, round: &Round, bound: usize, spent: Amount, output: i64) {
        let Wish { session, input_tokens, .. } = &self.wish;
        let call = Amount {
            nano_usd: round.quote.map_or(0, |quote| quote.nano_usd(*input_tokens, output)),
            tokens: input_tokens.saturating_add(output),
        };
        for alert in exhausted(&round.budgets, bound, &spent, &call, session.id) {
            self.keeper.alert(session.tenant, &alert).await;
        }
    }

    /// Waits until it is time to look again whether calls that are running have left room. False when the call may wait no longer.
    async fn waits_for_room(&mut self, account: &Account) -> bool {
        let Keeper { queues, metrics, .. } = self.keeper;
        if self.head.is_none() && !self.wish.patience.is_zero() {
            metrics.room_waits.inc();
        }
        let (tenant, head) = (self.wish.session.tenant, self.head.take());
        self.head = queues.wait(tenant, &account.key(), head, self.give_up_at).await;
        if self.head.is_none() {
            return false;
        }
        (self.output, self.clipped_by, self.rounds) = (self.wish.output_tokens_max.max(1), None, 0);
        true
    }

    /// What must be known of a price that isn't, before money may be spent by it.
    async fn unpriced(&self, quote: Option<Quote>, budgets: &Budgets) -> Result<Option<BudgetReached>, Error> {
        let Wish { session, model, .. } = &self.wish;
        let Some(budget) = budgets.hard_money() else { return Ok(None) };
        let described = budget.described();
        let message = if quote.is_none() {
            format!("the price of model {} is not known, and {described} must not be passed", model.model_id)
        } else if session.usage.unpriced_attempts > 0 {
            format!("the session used a model whose price is not known, and {described} must not be passed")
        } else if self.is_family_unpriced(session, budgets).await? {
            format!(
                "a session above or below used a model whose price is not known, and {described} must not be passed"
            )
        } else {
            return Ok(None);
        };
        self.count_refusal(budget.scope.as_str());
        Ok(Some(BudgetReached { scope: budget.scope.as_str().to_owned(), message }))
    }

    fn count_refusal(&self, scope: &str) {
        self.keeper.metrics.refusals.with_label_values(&[scope]).inc();
    }

    /// Whether nobody knows what the sub-agents have spent that share a limit of money with the session.
    async fn is_family_unpriced(&self, session: &Session, budgets: &Budgets) -> Result<bool, Error> {
        let is_alone = session.parent.is_none() && session.agent.sub_agents.is_empty();
        match budgets.hard_money_from(session).filter(|_| !is_alone) {
            Some(top) => self.keeper.store.is_unpriced(session.tenant, top).await,
            None => Ok(false),
        }
    }

    /// The budgets that are used up and say that calls be slowed down, with a window of each.
    async fn throttles(&self, budgets: &Budgets) -> Vec<(Window, Budget)> {
        let mut throttles = Vec::new();
        for (budget, place) in budgets.iter().filter(|(budget, _)| budget.action == BudgetAction::Throttle) {
            let key = budgets.accounts[place].key();
            let known = self.keeper.standings.get(&(self.wish.session.tenant, key.clone())).await;
            let Some(Standing { spent, .. }) = known else { continue };
            let is_used_up = budget.nano_usd.is_some_and(|limit| spent.nano_usd >= limit)
                || budget.tokens.is_some_and(|limit| spent.tokens >= limit);
            if is_used_up {
                let name = format!("throttle:{key}");
                let window = Window { name, limit: 1, span: THROTTLED_TO, amount: 1, settles: false };
                throttles.push((window, budget.clone()));
            }
        }
        throttles
    }
}
