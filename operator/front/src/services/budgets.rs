//! `BudgetService`.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use croft_proto::id::TenantId;
use croft_proto::v1::budget_service_server::BudgetService;
use croft_proto::v1::{
    self, BudgetAction, BudgetPeriod, BudgetScope, DeleteBudgetRequest, DeleteBudgetResponse, ListBudgetsRequest,
    ListBudgetsResponse, SessionState, SetBudgetRequest, SetBudgetResponse,
};
use tonic::{Request, Response, Status};

use crate::acts::Act;
use crate::budget::period::Period;
use crate::budget::{Budget, Scope};
use crate::core::Core;
use crate::counters::{Amount, LARGEST};
use crate::door::Door;
use crate::error::Error;
use crate::identity::Identity;
use crate::session::validate;

/// Budgets that a tenant may have set. One more is refused: each call reads them all.
const BUDGETS_MAX: usize = 1_000;

/// The service, on the public port.
#[derive(Clone)]
pub struct Budgets {
    core: Arc<Core>,
}

impl Budgets {
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Tells `was` what stood there before, once it is about to be no more.
    async fn set(
        &self,
        identity: &Identity,
        request: SetBudgetRequest,
        was: &OnceLock<String>,
    ) -> Result<v1::Budget, Error> {
        let budget = parse(&request.budget.ok_or_else(|| Error::invalid("budget", "is missing"))?)?;
        self.check_session(identity.tenant, &budget).await?;
        let stored = self.core.stores.budgets.list(identity.tenant).await?;
        let found = stored.iter().find(|stored| {
            (stored.scope, &stored.subject, stored.period) == (budget.scope, &budget.subject, budget.period)
        });
        if found.is_none() && stored.len() >= BUDGETS_MAX {
            return Err(Error::invalid("budget", format!("is one too many: the tenant has {BUDGETS_MAX}")));
        }
        // Before it is set: whoever can't be told what is spent is told that nothing was done.
        let account = [budget.account(&crate::clock::now())];
        let spent = self.core.stores.budgets.ledgers(identity.tenant, &account).await?;
        let spent = spent.first().copied().unwrap_or_default();
        was.get_or_init(|| before(found));
        let put = self.core.stores.budgets.put(identity.tenant, &budget).await;
        self.core.budgets.forget(identity.tenant).await;
        put?;
        Ok(told(&budget, Amount { nano_usd: spent.nano_usd, tokens: spent.tokens }))
    }

    /// A session's budget goes with it; one for a session that never was would stay, and one that has ended spends nothing more.
    async fn check_session(&self, tenant: TenantId, budget: &Budget) -> Result<(), Error> {
        if budget.scope != Scope::Session {
            return Ok(());
        }
        let (id, session_id) = (validate::session_id(&budget.subject)?, budget.subject.clone());
        match self.core.stores.sessions.get(tenant, id).await? {
            Some(session) if session.state == SessionState::Terminated => Err(Error::SessionTerminated { session_id }),
            Some(_) => Ok(()),
            None => Err(Error::SessionNotFound { session_id }),
        }
    }

    /// Those that there were. Tells `was` of all that are about to go.
    async fn delete(
        &self,
        identity: &Identity,
        request: &DeleteBudgetRequest,
        was: &OnceLock<String>,
    ) -> Result<Vec<Budget>, Error> {
        let (scope, period) = (scope(request.scope())?, period(request.period())?);
        validate::printable("subject", &request.subject)?;
        // One that was set before subjects were brought into one form is stored as it was written.
        let mut subjects = BTreeSet::from([request.subject.clone()]);
        subjects.extend(subject(scope, &request.subject));
        let stored = self.core.stores.budgets.list(identity.tenant).await?;
        let is_meant =
            |stored: &Budget| (stored.scope, stored.period) == (scope, period) && subjects.contains(&stored.subject);
        let meant: Vec<_> = stored.into_iter().filter(is_meant).collect();
        was.get_or_init(|| before(&meant));
        let (mut found, mut deleted) = (Vec::new(), Ok(()));
        for budget in meant {
            match self.core.stores.budgets.delete(identity.tenant, scope, &budget.subject, period).await {
                Ok(true) => found.push(budget),
                Ok(false) => {}
                Err(error) => deleted = Err(error),
            }
        }
        self.core.budgets.forget(identity.tenant).await;
        deleted.map(|()| found)
    }
}

fn parse(budget: &v1::Budget) -> Result<Budget, Error> {
    let scope = scope(budget.scope())?;
    let subject = subject(scope, &budget.subject)?;
    for (field, limit) in
        [("budget.limit_nano_usd", budget.limit_nano_usd), ("budget.limit_tokens", budget.limit_tokens)]
    {
        if limit.is_some_and(|limit| !(0..=LARGEST).contains(&limit)) {
            return Err(Error::invalid(field, format!("is not between 0 and {LARGEST}")));
        }
    }
    if budget.limit_nano_usd.is_none() && budget.limit_tokens.is_none() {
        return Err(Error::invalid("budget", "limits neither money nor tokens"));
    }
    let action = match budget.action() {
        BudgetAction::Unspecified => BudgetAction::Block,
        action => action,
    };
    Ok(Budget {
        scope,
        subject,
        period: period(budget.period())?,
        nano_usd: budget.limit_nano_usd,
        tokens: budget.limit_tokens,
        action,
        is_given: false,
    })
}

/// Whom the budget is for, in the words in which calls are asked whether it holds for them: an id may be written in several ways.
fn subject(scope: Scope, subject: &str) -> Result<String, Error> {
    match scope {
        Scope::Tenant if subject.is_empty() => Ok(String::new()),
        Scope::Tenant => Err(Error::invalid("subject", "must be empty: it is the tenant's")),
        Scope::Agent => validate::name("subject", subject).map(|()| subject.to_owned()),
        Scope::Session => match validate::session_id(subject) {
            Ok(id) => Ok(id.to_string()),
            Err(_) => Err(Error::invalid("subject", "is no session's id")),
        },
    }
}

fn scope(scope: BudgetScope) -> Result<Scope, Error> {
    match scope {
        BudgetScope::Tenant => Ok(Scope::Tenant),
        BudgetScope::Agent => Ok(Scope::Agent),
        BudgetScope::Session => Ok(Scope::Session),
        BudgetScope::Unspecified => Err(Error::invalid("scope", "is missing")),
    }
}

fn period(period: BudgetPeriod) -> Result<Period, Error> {
    match period {
        BudgetPeriod::Day => Ok(Period::Day),
        BudgetPeriod::Month => Ok(Period::Month),
        BudgetPeriod::Life => Ok(Period::Life),
        BudgetPeriod::Unspecified => Err(Error::invalid("period", "is missing")),
    }
}

/// What a budget that was asked for is, in the audit log.
fn described(budget: &v1::Budget) -> String {
    let (scope, period) = (scope(budget.scope()), period(budget.period()));
    let scope = scope.map_or("of nothing", Scope::as_str);
    let period = period.map_or("never", Period::as_str);
    let limits = limits(budget.limit_nano_usd, budget.limit_tokens, budget.action());
    format!("budgets/{}: {scope}, {period}, {limits}", budget.subject)
}

fn limits(nano_usd: Option<i64>, tokens: Option<i64>, action: BudgetAction) -> String {
    let money = nano_usd.map(|limit| format!("{limit} nano-dollars, "));
    let tokens = tokens.map(|limit| format!("{limit} tokens, "));
    let action = match action {
        BudgetAction::Unspecified | BudgetAction::Block => "block",
        BudgetAction::Throttle => "throttle",
        BudgetAction::Warn => "warn",
    };
    format!("{}{}{action}", money.unwrap_or_default(), tokens.unwrap_or_default())
}

/// What stood there before.
fn before<'b>(budgets: impl IntoIterator<Item = &'b Budget>) -> String {
    let told: Vec<_> = budgets.into_iter().map(|was| limits(was.nano_usd, was.tokens, was.action)).collect();
    if told.is_empty() { "before none".to_owned() } else { format!("before {}", told.join(" and ")) }
}

fn told(budget: &Budget, spent: Amount) -> v1::Budget {
    let scope = match budget.scope {
        Scope::Tenant => BudgetScope::Tenant,
        Scope::Agent => BudgetScope::Agent,
        Scope::Session => BudgetScope::Session,
    };
    let period = match budget.period {
        Period::Day => BudgetPeriod::Day,
        Period::Month => BudgetPeriod::Month,
        Period::Life => BudgetPeriod::Life,
    };
    v1::Budget {
        scope: scope.into(),
        subject: budget.subject.clone(),
        period: period.into(),
        limit_nano_usd: budget.nano_usd,
        limit_tokens: budget.tokens,
        action: budget.action.into(),
        by_platform: budget.is_given,
        spent_nano_usd: spent.nano_usd,
        spent_tokens: spent.tokens,
    }
}

#[tonic::async_trait]
impl BudgetService for Budgets {
    async fn list_budgets(
        &self,
        request: Request<ListBudgetsRequest>,
    ) -> Result<Response<ListBudgetsResponse>, Status> {
        let identity = Door::Public.identify(&self.core, &request).await?;
        let budgets = self.core.budgets.list(identity.tenant).await?;
        let budgets = budgets.iter().map(|(budget, spent)| told(budget, *spent)).collect();
        Ok(Response::new(ListBudgetsResponse { budgets }))
    }

    async fn set_budget(&self, request: Request<SetBudgetRequest>) -> Result<Response<SetBudgetResponse>, Status> {
        let identity = Door::Public.identify(&self.core, &request).await?;
        let request = request.into_inner();
        let resource = request.budget.as_ref().map_or_else(|| "budgets/".to_owned(), described);
        let act = Act::of::<SetBudgetRequest>(&identity, resource.clone());
        let budgets = self.clone();
        // Also where nobody heard whether it was stored: a second try finds what the first may have set.
        let (was, asked) = (Arc::new(OnceLock::new()), resource);
        let known = Arc::clone(&was);
        let name = move |set: Result<&v1::Budget, &Error>| {
            known.get().map(|was: &String| format!("{}; {was}", set.map_or(asked, described)))
        };
        let set = async move { budgets.set(&identity, request, &was).await };
        let set = act.carry_out_and_tell(&self.core, set, name).await?;
        Ok(Response::new(SetBudgetResponse { budget: Some(set) }))
    }

    async fn delete_budget(
        &self,
        request: Request<DeleteBudgetRequest>,
    ) -> Result<Response<DeleteBudgetResponse>, Status> {
        let identity = Door::Public.identify(&self.core, &request).await?;
        let request = request.into_inner();
        let (scope, period) = (scope(request.scope()), period(request.period()));
        let resource = format!(
            "budgets/{}: {}, {}",
            request.subject,
            scope.map_or("of nothing", Scope::as_str),
            period.map_or("never", Period::as_str)
        );
        let act = Act::of::<DeleteBudgetRequest>(&identity, resource.clone());
        let budgets = self.clone();
        let was = Arc::new(OnceLock::new());
        let known = Arc::clone(&was);
        let name = move |found: Result<&Vec<Budget>, &Error>| match found {
            Ok(found) => Some(format!("{resource}; {}", before(found))),
            Err(_) => known.get().map(|was: &String| format!("{resource}; {was}")),
        };
        let delete = async move { budgets.delete(&identity, &request, &was).await };
        let found = act.carry_out_and_tell(&self.core, delete, name).await?;
        Ok(Response::new(DeleteBudgetResponse { found: !found.is_empty() }))
    }
}
