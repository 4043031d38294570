//! The operator's word for whom it acts: a JSON web token signed with the authority's key, which only the operator
//! holds. It comes beside the operator's certificate, on the internal port.

use croft_proto::id::TenantId;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use x509_parser::pem::Pem;

use crate::error::Error;

pub(super) const NEEDED: &str = "the authorization header must be `Bearer` and a token of the operator's";
const NEEDED_FOR_ALL: &str =
    "the authorization header must be `Bearer` and a token of the operator's that names no tenant";

const ISSUER: &str = "croft-operator";
const AUDIENCE: &str = "croft";
const KEY_ID: &str = "croft-ca";
/// A token that is good for longer was not made as agreed.
const LIFETIME_MAX_SECONDS: u64 = 300;
const LEEWAY_SECONDS: u64 = 30;

/// The authority's certificates are not what they should be.
#[derive(Debug, thiserror::Error)]
#[error("the certificates of --tls-ca (CROFT_TLS_CA) are not usable: {problem}")]
pub struct CaError {
    problem: &'static str,
}

/// The keys that the operator may have signed with: one for each certificate of the authority, so that it can be
/// replaced.
#[derive(Default)]
pub(super) struct OperatorKeys {
    keys: Vec<DecodingKey>,
}

/// What a token says once it is verified, before anyone knows whether there is such a tenant.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) tenant: TenantId,
    pub(super) tenant_name: String,
}

#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    tenant: String,
    #[serde(default)]
    tenant_id: String,
    iat: u64,
    exp: u64,
}

impl OperatorKeys {
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, CaError> {
        let mut keys = Vec::new();
        for pem in Pem::iter_from_buffer(pem) {
            let pem = pem.map_err(|_| CaError { problem: "they are no PEM" })?;
            let certificate = pem.parse_x509().map_err(|_| CaError { problem: "one is garbled" })?;
            keys.push(DecodingKey::from_ec_der(&certificate.public_key().subject_public_key.data));
        }
        if keys.is_empty() {
            return Err(CaError { problem: "there is none" });
        }
        Ok(Self { keys })
    }

    /// The tenant that the token names, if the operator signed it for us lately.
    pub(super) fn verify(&self, token: &str) -> Result<Claim, Error> {
        let claim = self.claims(token).and_then(|claims| {
            let tenant = claims.tenant_id.parse().ok()?;
            Some(Claim { tenant, tenant_name: claims.tenant })
        });
        claim.ok_or(Error::Unauthenticated { problem: NEEDED })
    }

    /// As [`Self::verify`], of a token that names no tenant: it is for what concerns all of them.
    pub(super) fn verify_for_all(&self, token: &str) -> Result<(), Error> {
        match self.claims(token) {
            Some(claims) if claims.tenant.is_empty() && claims.tenant_id.is_empty() => Ok(()),
            _ => Err(Error::Unauthenticated { problem: NEEDED_FOR_ALL }),
        }
    }

    fn claims(&self, token: &str) -> Option<Claims> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        if header.kid.as_deref() != Some(KEY_ID) {
            return None;
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.leeway = LEEWAY_SECONDS;
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.sub = Some("operator".to_owned());
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let verified = |key: &DecodingKey| jsonwebtoken::decode::<Claims>(token, key, &validation).ok();
        let claims = self.keys.iter().find_map(verified)?.claims;
        let now = jsonwebtoken::get_current_timestamp();
        let is_fresh =
            claims.exp.checked_sub(claims.iat)? <= LIFETIME_MAX_SECONDS && claims.iat <= now + LEEWAY_SECONDS;
        is_fresh.then_some(claims)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header};
    use rcgen::{CertificateParams, KeyPair};
    use serde_json::{Value, json};

    use super::*;

    struct Authority {
        key: KeyPair,
        pem: String,
    }

    fn authority() -> Authority {
        let key = KeyPair::generate().unwrap();
        let pem = CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap().pem();
        Authority { key, pem }
    }

    impl Authority {
        fn sign(&self, claims: &Value, kid: &str) -> String {
            let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::ES256) };
            let key = EncodingKey::from_ec_der(self.key.serialized_der());
            jsonwebtoken::encode(&header, claims, &key).unwrap()
        }
    }

    fn claims(tenant: TenantId) -> Value {
        let now = jsonwebtoken::get_current_timestamp();
        json!({
            "iss": "croft-operator", "aud": "croft", "sub": "operator", "iat": now, "exp": now + 300,
            "tenant": "heron", "tenant_id": tenant.to_string(),
        })
    }

    #[test]
    fn a_token_of_the_authority_names_its_tenant_also_while_the_authority_is_replaced() {
        let (old, new, heron) = (authority(), authority(), TenantId::generate());
        let keys = OperatorKeys::from_pem(format!("{}{}", old.pem, new.pem).as_bytes()).unwrap();
        for authority in [&old, &new] {
            let claim = keys.verify(&authority.sign(&claims(heron), KEY_ID)).unwrap();
            assert_eq!(claim, Claim { tenant: heron, tenant_name: "heron".to_owned() });
        }
    }

    #[test]
    fn whatever_is_not_as_agreed_is_refused() {
        let (ours, theirs) = (authority(), authority());
        let keys = OperatorKeys::from_pem(ours.pem.as_bytes()).unwrap();
        let now = jsonwebtoken::get_current_timestamp();
        let changed = |field: &str, value: Value| {
            let mut claims = claims(TenantId::generate());
            claims[field] = value;
            ours.sign(&claims, KEY_ID)
        };
        let good = ours.sign(&claims(TenantId::generate()), KEY_ID);
        assert!(keys.verify(&good).is_ok());
        for (what, token) in [
            ("another authority", theirs.sign(&claims(TenantId::generate()), KEY_ID)),
            ("another key id", ours.sign(&claims(TenantId::generate()), "croft-front")),
            ("another issuer", changed("iss", json!("someone"))),
            ("another audience", changed("aud", json!("kubernetes"))),
            ("another subject", changed("sub", json!("front"))),
            ("over", changed("exp", json!(now - 60))),
            ("too long", changed("exp", json!(now + 3_600))),
            ("from the future", changed("iat", json!(now + 200))),
            ("no tenant id", changed("tenant_id", json!("heron"))),
            ("for all tenants", changed("tenant_id", json!(""))),
            ("garbled", good.replace('.', "")),
            ("unsigned", format!("{}.", good.rsplit_once('.').unwrap().0)),
        ] {
            assert!(matches!(keys.verify(&token), Err(Error::Unauthenticated { .. })), "{what}");
        }
    }

    #[test]
    fn a_token_for_all_tenants_names_none() {
        let (ours, theirs) = (authority(), authority());
        let keys = OperatorKeys::from_pem(ours.pem.as_bytes()).unwrap();
        let mut named = claims(TenantId::generate());
        assert!(keys.verify_for_all(&ours.sign(&named, KEY_ID)).is_err(), "it is for one tenant");
        named["tenant_id"] = json!("");
        assert!(keys.verify_for_all(&ours.sign(&named, KEY_ID)).is_err(), "it names one still");
        named["tenant"] = json!("");
        assert!(keys.verify_for_all(&ours.sign(&named, KEY_ID)).is_ok());
        for claim in ["tenant", "tenant_id"] {
            named.as_object_mut().unwrap().remove(claim);
        }
        assert!(keys.verify_for_all(&ours.sign(&named, KEY_ID)).is_ok());
        assert!(keys.verify_for_all(&theirs.sign(&named, KEY_ID)).is_err(), "another authority's");
    }

    #[test]
    fn a_file_without_certificates_is_named_as_the_fault() {
        for pem in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let Err(error) = OperatorKeys::from_pem(pem.as_bytes()) else { panic!("{pem:?} was taken") };
            assert!(error.to_string().contains("--tls-ca"));
        }
    }
}
