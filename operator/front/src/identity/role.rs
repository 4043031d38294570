//! What a caller may do: roles, what each allows, and what each call asks for. A request that is not in the table at the end can't be
//! identified by a [`Door`](crate::door::Door), so that no call is without its role.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use croft_proto::v1::{
    CreateSessionRequest, DeleteBudgetRequest, ExportUsageRequest, GetModelRequest, GetSessionRequest,
    InterruptSessionRequest, ListApprovalsRequest, ListAuditRecordsRequest, ListBudgetsRequest, ListModelsRequest,
    ListSessionsRequest, ListUsageEventsRequest, RecommendModelsRequest, ResolveApprovalRequest, SendMessageRequest,
    SetBudgetRequest, StreamEventsRequest, SummarizeUsageRequest, TerminateSessionRequest, VerifyAuditLogRequest,
};
use serde::Deserialize;

use crate::error::Error;

/// What somebody is to a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees sessions, their events, models, usage and budgets.
    Viewer,
    /// Sees all that, and works with sessions: creates them, talks to them, approves, ends them.
    User,
    /// Sees all that a viewer sees, and the audit log.
    Auditor,
    /// May make every call.
    Admin,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Viewer, Self::User, Self::Auditor, Self::Admin];

    /// As it is stored and configured.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::User => "user",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }

    fn allows(self, permission: Permission) -> bool {
        match permission {
            Permission::Read => true,
            Permission::Work => matches!(self, Self::User | Self::Admin),
            Permission::Audit => matches!(self, Self::Auditor | Self::Admin),
            Permission::Manage => self == Self::Admin,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The word is no role.
#[derive(Debug, thiserror::Error)]
#[error("a role is one of viewer, user, auditor, admin")]
pub struct UnknownRole;

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(UnknownRole)
    }
}

/// The roles of one caller, never none: who has none is no [`Identity`](super::Identity).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roles(Vec<Role>);

impl Roles {
    /// Of what a token names; `None` when that is no role at all.
    pub fn of(roles: impl IntoIterator<Item = Role>) -> Option<Self> {
        let mut roles: Vec<_> = roles.into_iter().collect();
        roles.sort_unstable();
        roles.dedup();
        (!roles.is_empty()).then_some(Self(roles))
    }

    /// Fails with [`Error::Forbidden`], in fixed words, if none of the roles allows this call.
    pub fn check<C: Call>(&self) -> Result<(), Error> {
        if self.0.iter().any(|role| role.allows(C::PERMISSION)) {
            Ok(())
        } else {
            Err(Error::Forbidden { action: C::ACTION })
        }
    }
}

impl From<Role> for Roles {
    fn from(role: Role) -> Self {
        Self(vec![role])
    }
}

/// What a call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    Read,
    Work,
    Audit,
    Manage,
}

/// A request that somebody must have a role for.
pub trait Call {
    const PERMISSION: Permission;
    /// What the caller does, for the refusal.
    const ACTION: &'static str;
    /// What it is called in the audit log, if it changes something.
    const AUDITED: Option<&'static str>;
}

macro_rules! calls {
    ($($request:ty: $permission:ident, $action:literal $(as $audited:literal)?;)*) => {
        $(impl Call for $request {
            const PERMISSION: Permission = Permission::$permission;
            const ACTION: &'static str = $action;
            const AUDITED: Option<&'static str> = audited!($($audited)?);
        })*
    };
}

macro_rules! audited {
    () => {
        None
    };
    ($word:literal) => {
        Some($word)
    };
}

calls! {
    GetSessionRequest: Read, "reading sessions";
    ListSessionsRequest: Read, "reading sessions";
    StreamEventsRequest: Read, "reading sessions";
    ListApprovalsRequest: Read, "reading approvals";
    ListModelsRequest: Read, "reading models";
    GetModelRequest: Read, "reading models";
    ListUsageEventsRequest: Read, "reading usage";
    ExportUsageRequest: Read, "reading usage";
    RecommendModelsRequest: Read, "reading models";
    SummarizeUsageRequest: Read, "reading usage";
    ListBudgetsRequest: Read, "reading budgets";
    CreateSessionRequest: Work, "creating sessions" as "session.create";
    SendMessageRequest: Work, "sending messages" as "session.send_message";
    InterruptSessionRequest: Work, "interrupting sessions" as "session.interrupt";
    ResolveApprovalRequest: Work, "resolving approvals" as "approval.resolve";
    TerminateSessionRequest: Work, "terminating sessions" as "session.terminate";
    SetBudgetRequest: Manage, "setting budgets" as "budget.set";
    DeleteBudgetRequest: Manage, "setting budgets" as "budget.delete";
    ListAuditRecordsRequest: Audit, "reading the audit log";
    VerifyAuditLogRequest: Audit, "verifying the audit log";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who may, in the order viewer, user, auditor, admin.
    fn may<C: Call>() -> [bool; 4] {
        Role::ALL.map(|role| match Roles::from(role).check::<C>() {
            Ok(()) => true,
            Err(Error::Forbidden { action }) => {
                assert_eq!(action, C::ACTION);
                false
            }
            Err(other) => panic!("{other:?}"),
        })
    }

    #[test]
    fn each_role_may_make_its_calls_and_no_other() {
        let everyone = [true; 4];
        assert_eq!(may::<GetSessionRequest>(), everyone);
        assert_eq!(may::<ListSessionsRequest>(), everyone);
        assert_eq!(may::<StreamEventsRequest>(), everyone);
        assert_eq!(may::<ListApprovalsRequest>(), everyone);
        assert_eq!(may::<ListModelsRequest>(), everyone);
        assert_eq!(may::<GetModelRequest>(), everyone);
        assert_eq!(may::<ListUsageEventsRequest>(), everyone);
        assert_eq!(may::<SummarizeUsageRequest>(), everyone);
        assert_eq!(may::<ExportUsageRequest>(), everyone);
        assert_eq!(may::<RecommendModelsRequest>(), everyone);
        let workers = [false, true, false, true];
        assert_eq!(may::<CreateSessionRequest>(), workers);
        assert_eq!(may::<SendMessageRequest>(), workers);
        assert_eq!(may::<InterruptSessionRequest>(), workers);
        assert_eq!(may::<ResolveApprovalRequest>(), workers);
        assert_eq!(may::<TerminateSessionRequest>(), workers);
        let auditors = [false, false, true, true];
        assert_eq!(may::<ListAuditRecordsRequest>(), auditors);
        assert_eq!(may::<VerifyAuditLogRequest>(), auditors);
        assert_eq!(may::<ListBudgetsRequest>(), everyone);
        let admins = [false, false, false, true];
        assert_eq!(may::<SetBudgetRequest>(), admins);
        assert_eq!(may::<DeleteBudgetRequest>(), admins);
    }

    #[test]
    fn several_roles_add_up_and_none_are_none() {
        let both = Roles::of([Role::Auditor, Role::User, Role::User]).unwrap();
        both.check::<SendMessageRequest>().unwrap();
        both.check::<VerifyAuditLogRequest>().unwrap();
        assert_eq!(Roles::of([]), None);
    }

    #[test]
    fn a_role_is_stored_under_the_name_that_reads_it() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse::<Role>().unwrap(), role);
            assert_eq!(serde_json::from_value::<Role>(role.as_str().into()).unwrap(), role);
        }
        assert!("Admin".parse::<Role>().is_err());
    }
}
