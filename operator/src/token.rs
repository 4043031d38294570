//! The token by which the operator tells a front for which tenant it calls.
//!
//! The front takes it only on its internal port, from the operator's certificate, and checks it with the authority's
//! public key, which it has in its `ca.crt`.

use croft_crds::AgentTenant;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use kube::ResourceExt as _;
use serde::Serialize;

use crate::authority::Authority;

/// Which key signed it.
const KEY_ID: &str = "croft-ca";
/// A token is made for one call; this bounds what a clock that goes wrong may cost.
const LIFETIME_SECONDS: i64 = 120;

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant_id: Option<&'a str>,
    iat: i64,
    exp: i64,
}

/// Which tenant a call is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TenantRef {
    pub name: String,
    /// The UID of the AgentTenant.
    pub id: String,
}

impl From<&AgentTenant> for TenantRef {
    fn from(tenant: &AgentTenant) -> Self {
        Self { name: tenant.name_any(), id: tenant.uid().unwrap_or_default() }
    }
}

/// Makes tokens.
pub struct TokenMaker {
    key: EncodingKey,
}

impl TokenMaker {
    /// Signs with the authority's key.
    pub fn new(authority: &Authority) -> Result<Self, jsonwebtoken::errors::Error> {
        Ok(Self { key: EncodingKey::from_ec_pem(authority.key_pem().as_bytes())? })
    }

    /// A token for `tenant`, good for a call made at `now` (seconds since 1970).
    pub fn make(&self, tenant: &TenantRef, now: i64) -> Result<String, jsonwebtoken::errors::Error> {
        self.sign(Some(tenant), now)
    }

    /// A token for the one call that is for all tenants.
    pub fn make_for_all(&self, now: i64) -> Result<String, jsonwebtoken::errors::Error> {
        self.sign(None, now)
    }

    fn sign(&self, tenant: Option<&TenantRef>, now: i64) -> Result<String, jsonwebtoken::errors::Error> {
        let header = Header { kid: Some(KEY_ID.to_owned()), ..Header::new(Algorithm::ES256) };
        let claims = Claims {
            iss: "croft-operator",
            aud: "croft",
            sub: "operator",
            tenant: tenant.map(|tenant| tenant.name.as_str()),
            tenant_id: tenant.map(|tenant| tenant.id.as_str()),
            iat: now,
            exp: now + LIFETIME_SECONDS,
        };
        jsonwebtoken::encode(&header, &claims, &self.key)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};
    use serde_json::Value;

    use super::*;

    #[test]
    fn whoever_has_the_authoritys_certificate_can_check_a_token() {
        let now = jiff::Timestamp::now().as_second();
        let authority = Authority::generate(now).unwrap();
        let tenant = TenantRef { name: "heron".into(), id: "0c9e2f6e-8a8f-4a8e-9a56-3f3b7b1c2d4e".into() };
        let token = TokenMaker::new(&authority).unwrap().make(&tenant, now).unwrap();

        let (_, pem) = x509_parser::pem::parse_x509_pem(authority.cert_pem().as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        let key = DecodingKey::from_ec_der(&certificate.public_key().subject_public_key.data);
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&["croft"]);
        let decoded = jsonwebtoken::decode::<Value>(&token, &key, &validation).unwrap();
        assert_eq!(decoded.header.kid.as_deref(), Some("croft-ca"));
        assert_eq!(decoded.claims["tenant"], "heron");
        assert_eq!(decoded.claims["tenant_id"], tenant.id);
        assert!(decoded.claims["exp"].as_i64().unwrap() - decoded.claims["iat"].as_i64().unwrap() <= 300);
    }
}
