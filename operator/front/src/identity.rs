//! Who calls. The tenant of every query comes from here, never from a request.

pub mod api_key;
mod jwks;
pub mod operator;
mod refusal;
pub mod role;
mod seldom;
pub mod settings;
mod source;
mod tenure;
mod token;

use std::sync::Arc;

use croft_proto::id::TenantId;
use croft_serve::Tasks;
use prometheus::Registry;

pub use self::refusal::Refusal;
pub use self::role::{Call, Role, Roles};
pub use self::settings::Settings;
pub use self::tenure::Tenure;

use self::api_key::{ApiKeys, KeyStore};
use self::operator::OperatorKeys;
use self::refusal::Failure;
use self::token::Issuers;
use crate::error::Error;
use crate::tenants::Tenants;

/// What every caller without a valid credential is told, whatever is wrong with it.
pub(crate) const NEEDED: &str = "the authorization header must be `Bearer` and a valid API key or token";

/// What is missing until the operator has told of its tenants.
const TENANTS: &str = "the list of tenants";

/// A verified caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub tenant: TenantId,
    /// The AgentTenant's name.
    pub tenant_name: String,
    /// For the audit log: `api-key/ck_1a2b3c4d`, `oidc/<provider>/<sub>`, `service-account/<namespace>/<name>`, `operator`.
    pub actor: String,
    pub roles: Roles,
}

impl Identity {
    /// Fails with [`Error::Forbidden`] if no role of the caller's allows this call.
    pub fn may<C: Call>(&self) -> Result<(), Error> {
        self.roles.check::<C>().inspect_err(|_| {
            tracing::info!(tenant = %self.tenant, actor = self.actor, action = C::ACTION, "a call was forbidden");
        })
    }
}

/// Turns credentials into identities. Clones share what it remembers.
#[derive(Clone)]
pub struct Authenticator {
    tenants: Tenants,
    api_keys: ApiKeys,
    operator: Arc<OperatorKeys>,
    /// Nobody, unless [`Authenticator::with_issuers`] was told of some.
    issuers: Option<Arc<Issuers>>,
}

impl Authenticator {
    /// `ca` is the authority's certificates as PEM, by whose keys the operator signs; without it no operator is known.
    /// Fails when it holds something else.
    pub fn new(keys: Arc<dyn KeyStore>, tenants: Tenants, ca: Option<&[u8]>) -> Result<Self, operator::CaError> {
        let operator = ca.map(OperatorKeys::from_pem).transpose()?.unwrap_or_default();
        Ok(Self { tenants, api_keys: ApiKeys::new(keys), operator: Arc::new(operator), issuers: None })
    }

    /// Takes JSON web tokens, too. Keeps the issuers' keys fresh in tasks of its own.
    pub fn with_issuers(self, settings: &Settings, tasks: &Tasks, registry: &Registry) -> anyhow::Result<Self> {
        let issuers = Issuers::start(settings, tasks, registry)?;
        Ok(Self { issuers: Some(Arc::new(issuers)), ..self })
    }

    /// The caller that a bearer token of the clients' ports stands for.
    ///
    /// The kind of credential shows in its shape: one that begins with `ck_` is an API key, others are JSON web tokens. Fails
    /// with [`Error::Unauthenticated`]; with [`Error::Forbidden`] if it is good and gives no role; and with
    /// [`Error::Unavailable`] when nobody can say.
    pub async fn authenticate_bearer(&self, token: &str) -> Result<Identity, Error> {
        match &self.issuers {
            Some(issuers) if !token.starts_with("ck_") => {
                let identity = self.authenticate_token(issuers, token).await;
                identity.inspect_err(|failure| issuers.note(failure)).map_err(Error::from)
            }
            _ => {
                let key = self.api_keys.verify(token).await?;
                let tenant_name = self.known_tenant(key.tenant)?;
                let actor = format!("api-key/ck_{}", key.prefix);
                Ok(Identity { tenant: key.tenant, tenant_name, actor, roles: key.role.into() })
            }
        }
    }

    async fn authenticate_token(&self, issuers: &Issuers, token: &str) -> Result<Identity, Failure> {
        let subject = issuers.verify(token).await?;
        let Some(tenant) = self.tenants.by_name(&subject.tenant_name) else {
            let refused = Failure::Refused(Refusal::ForeignTenant);
            return Err(if self.tenants.synced() { refused } else { Failure::Missing(TENANTS) });
        };
        // A tenant without a namespace of its own has none that is equal: a token's is never empty.
        if subject.namespace.is_some_and(|namespace| namespace != tenant.namespace) {
            return Err(Refusal::ForeignTenant.into());
        }
        let (actor, roles) = (subject.actor, subject.roles);
        Ok(Identity { tenant: tenant.id, tenant_name: tenant.name.clone(), actor, roles })
    }

    /// The tenant that the operator acts for. Only for calls that came with the operator's certificate.
    pub fn authenticate_operator(&self, token: &str) -> Result<Identity, Error> {
        let claim = self.operator.verify(token)?;
        let tenant_name = self.known_tenant(claim.tenant)?;
        if tenant_name != claim.tenant_name {
            return Err(Error::Unauthenticated { problem: operator::NEEDED });
        }
        Ok(operators(claim.tenant, tenant_name))
    }

    /// As [`Self::authenticate_operator`], for a tenant that may be on its way out, or out already: this front need not know it.
    pub fn authenticate_removal(&self, token: &str) -> Result<Identity, Error> {
        let claim = self.operator.verify(token)?;
        if self.tenants.get(claim.tenant).is_some_and(|tenant| tenant.name != claim.tenant_name) {
            return Err(Error::Unauthenticated { problem: operator::NEEDED });
        }
        Ok(operators(claim.tenant, claim.tenant_name))
    }

    /// The operator, for what concerns all tenants. Only for calls that came with the operator's certificate.
    pub fn authenticate_for_all(&self, token: &str) -> Result<(), Error> {
        self.operator.verify_for_all(token)
    }

    /// The tenant's name. A credential outlives its tenant, but is worth nothing then.
    fn known_tenant(&self, id: TenantId) -> Result<String, Error> {
        match self.tenants.get(id) {
            Some(tenant) => Ok(tenant.name.clone()),
            None if self.tenants.synced() => Err(Error::Unauthenticated { problem: NEEDED }),
            None => Err(Error::unavailable(TENANTS, anyhow::anyhow!("no snapshot of routes yet"))),
        }
    }
}

/// The operator may do all for the tenant that its token names.
fn operators(tenant: TenantId, tenant_name: String) -> Identity {
    Identity { tenant, tenant_name, actor: "operator".to_owned(), roles: Role::Admin.into() }
}

#[cfg(test)]
mod tests {
    use croft_proto::v1::watch_routes_response::Change;
    use croft_proto::v1::{RouteSnapshot, TenantRoute, WatchRoutesResponse};

    use super::*;
    use crate::store::memory::Memory;
    use crate::tenants::TenantMirror;
    use secrecy::ExposeSecret;

    fn tell(tenants: &Tenants, routes: &[(TenantId, &str)]) {
        let tenants_told = routes.iter().map(|(id, name)| TenantRoute {
            tenant_id: id.to_string(),
            name: (*name).to_owned(),
            ..Default::default()
        });
        let change = Some(Change::Snapshot(RouteSnapshot { tenants: tenants_told.collect() }));
        tenants.apply(WatchRoutesResponse { version: 1, change });
    }

    #[tokio::test]
    async fn a_key_stands_for_its_tenant_for_as_long_as_the_tenant_exists() {
        let (store, tenants, heron) = (Arc::new(Memory::default()), Tenants::new(), TenantId::generate());
        store.upsert(heron, "heron").await.unwrap();
        let (stored, token) = api_key::generate(heron, "heron").unwrap();
        store.insert(&stored, None).await.unwrap();
        let authenticator = Authenticator::new(store, tenants.clone(), None).unwrap();
        let authenticate = || authenticator.authenticate_bearer(token.expose_secret());

        assert!(matches!(authenticate().await, Err(Error::Unavailable { .. })), "nobody knows yet");
        tell(&tenants, &[(heron, "heron")]);
        let identity = authenticate().await.unwrap();
        assert_eq!((identity.tenant, identity.tenant_name.as_str()), (heron, "heron"));
        assert_eq!(identity.actor, format!("api-key/ck_{}", stored.prefix));

        // The name has a new owner: the key is not theirs.
        tell(&tenants, &[(TenantId::generate(), "heron")]);
        assert!(matches!(authenticate().await, Err(Error::Unauthenticated { .. })));
    }

    #[tokio::test]
    async fn without_an_authority_nobody_is_the_operator() {
        let authenticator = Authenticator::new(Arc::new(Memory::default()), Tenants::new(), None).unwrap();
        let refused = authenticator.authenticate_operator("e30.e30.e30");
        assert!(matches!(refused, Err(Error::Unauthenticated { .. })));
    }
}
