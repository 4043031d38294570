//! JSON web tokens of those who may vouch for callers: OIDC issuers, and the cluster for its service accounts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use croft_serve::Tasks;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation};
use prometheus::Registry;
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::jwks::Jwks;
use super::refusal::{Failure, Metrics, Refusal};
use super::role::{Role, Roles};
use super::settings::{Provider, ServiceAccounts, Settings, is_url};
use super::source::{Source, client};

/// Longer ones are not looked at. Real ones have one or two kilobytes, with many groups perhaps ten.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Of a name in the audit log; what is longer is cut, and its end is told by a digest.
const ACTOR_CHARS_MAX: usize = 128;
const DIGEST_CHARS: usize = 16;

/// Whom a good token speaks of, before anyone knows whether there is such a tenant.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub(super) tenant_name: String,
    /// Where it must live.
    pub(super) namespace: Option<String>,
    pub(super) actor: String,
    pub(super) roles: Roles,
}

/// All whose tokens are taken.
pub(super) struct Issuers {
    /// By `iss`.
    known: HashMap<String, Issuer>,
    leeway_seconds: u64,
    metrics: Metrics,
}

struct Issuer {
    jwks: Jwks,
    audiences: Vec<String>,
    meaning: Meaning,
}

/// How claims are read.
enum Meaning {
    Provider(Box<Provider>),
    /// All service accounts have this role.
    ServiceAccounts(Role),
}

/// Of a token that is not verified yet: only good to know whose keys to verify it with.
#[derive(Deserialize)]
struct Unverified {
    iss: String,
}

impl Issuers {
    /// Fails when no connection to an issuer can be made ready; one that doesn't answer is no reason.
    pub(super) fn start(settings: &Settings, tasks: &Tasks, registry: &Registry) -> anyhow::Result<Self> {
        let (timing, metrics) = (settings.timing, Metrics::register(registry)?);
        let jwks = |name: &str, source| Jwks::start(name.to_owned(), source, timing, tasks, metrics.clone());
        let connect = |name: &str, ca_file: Option<&PathBuf>| {
            client(ca_file.map(PathBuf::as_path), timing.fetch_timeout)
                .with_context(|| format!("cannot fetch the keys of issuer {name}"))
        };
        let mut known = HashMap::new();
        for provider in &settings.providers {
            let Provider { name, issuer, audiences, jwks_url, jwks_file, ca_file, .. } = provider;
            let source = match (jwks_file, jwks_url) {
                (Some(path), _) => Source::File(path.clone()),
                (None, Some(url)) => Source::Address { client: connect(name, ca_file.as_ref())?, url: url.clone() },
                (None, None) => Source::Discovery { client: connect(name, ca_file.as_ref())?, issuer: issuer.clone() },
            };
            let (jwks, audiences) = (jwks(name, source), audiences.clone());
            let meaning = Meaning::Provider(Box::new(provider.clone()));
            known.insert(issuer.clone(), Issuer { jwks, audiences, meaning });
        }
        if let Some(ServiceAccounts { issuer, jwks: place, ca_file, audience, role }) = &settings.service_accounts {
            let source = if is_url(place) {
                Source::Address { client: connect("service-accounts", ca_file.as_ref())?, url: place.clone() }
            } else {
                Source::File(Path::new(place).to_owned())
            };
            let (jwks, audiences) = (jwks("service-accounts", source), vec![audience.clone()]);
            known.insert(issuer.clone(), Issuer { jwks, audiences, meaning: Meaning::ServiceAccounts(*role) });
        }
        Ok(Self { known, leeway_seconds: timing.leeway.as_secs(), metrics })
    }

    /// Whom the token speaks of, if one of our issuers made it for us and it is good now.
    pub(super) async fn verify(&self, token: &str) -> Result<Subject, Failure> {
        let unread = unread(token)?;
        let issuer = self.known.get(&unread.issuer).ok_or(Refusal::Issuer)?;
        let key = issuer.jwks.find(&unread.kid).await?;
        if !key.algorithms.contains(&unread.algorithm) {
            return Err(Refusal::Algorithm.into());
        }
        let mut validation = Validation::new(unread.algorithm);
        validation.leeway = self.leeway_seconds;
        validation.validate_nbf = true;
        validation.set_issuer(&[&unread.issuer]);
        validation.set_audience(&issuer.audiences);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let verified = jsonwebtoken::decode::<Map<String, Value>>(token, &key.decoding, &validation);
        let claims = verified.map_err(|error| why(error.kind()))?.claims;
        match &issuer.meaning {
            Meaning::Provider(provider) => person(provider, &claims),
            Meaning::ServiceAccounts(role) => service_account(*role, &claims).map_err(Failure::from),
        }
    }

    /// Counts a token that was not taken, and logs why: nobody else will be told.
    pub(super) fn note(&self, failure: &Failure) {
        let reason = failure.as_str();
        self.metrics.refused.with_label_values(&[reason]).inc();
        tracing::debug!(reason, "a token was refused");
    }
}

/// What a token says of itself, as far as it can be believed without its signature.
struct Unread {
    issuer: String,
    kid: String,
    algorithm: Algorithm,
}

fn unread(token: &str) -> Result<Unread, Refusal> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Refusal::TooLong);
    }
    let Header { alg, kid, crit, .. } = jsonwebtoken::decode_header(token).map_err(|_| Refusal::Malformed)?;
    // A key set's owner has published its keys: who signs with one as a shared secret is not he.
    if matches!(alg, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512) {
        return Err(Refusal::Algorithm);
    }
    // RFC 7515, section 4.1.11: what must be understood and isn't makes a token invalid.
    if crit.is_some() {
        return Err(Refusal::Malformed);
    }
    let Unverified { iss } = jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| Refusal::Malformed)?;
    Ok(Unread { issuer: iss, kid: kid.ok_or(Refusal::UnknownKey)?, algorithm: alg })
}

fn why(kind: &ErrorKind) -> Refusal {
    match kind {
        ErrorKind::InvalidSignature => Refusal::Signature,
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::ImmatureSignature => Refusal::NotYetValid,
        ErrorKind::InvalidAudience => Refusal::Audience,
        ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => Refusal::Audience,
        ErrorKind::InvalidIssuer => Refusal::Issuer,
        ErrorKind::InvalidAlgorithm => Refusal::Algorithm,
        _ => Refusal::Malformed,
    }
}

fn person(provider: &Provider, claims: &Map<String, Value>) -> Result<Subject, Failure> {
    let tenant_name = match claim(claims, &provider.tenant_claim) {
        Some(Value::String(name)) if !name.is_empty() => name.clone(),
        _ => return Err(Refusal::NoTenant.into()),
    };
    if !provider.tenants.is_empty() && !provider.tenants.contains(&tenant_name) {
        return Err(Refusal::ForeignTenant.into());
    }
    let words: Vec<&str> = match claim(claims, &provider.roles_claim) {
        Some(Value::String(words)) => words.split_whitespace().collect(),
        Some(Value::Array(words)) => words.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let role = |word: &str| {
        if provider.roles.is_empty() { word.parse().ok() } else { provider.roles.get(word).copied() }
    };
    let roles = Roles::of(words.into_iter().filter_map(role)).or(provider.default_role.map(Roles::from));
    let subject = subject(claims)?;
    let actor = format!("oidc/{}/{}", provider.name, presentable(subject));
    Ok(Subject { tenant_name, namespace: None, actor, roles: roles.ok_or(Failure::NoRole)? })
}

/// `sub` is `system:serviceaccount:<namespace>:<name>`.
fn service_account(role: Role, claims: &Map<String, Value>) -> Result<Subject, Refusal> {
    let account = subject(claims)?.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let (namespace, name) = account.ok_or(Refusal::NoTenant)?;
    let tenant_name = namespace.strip_prefix("tenant-").filter(|name| !name.is_empty()).ok_or(Refusal::NoTenant)?;
    // Tokens that are bound say it twice.
    let said_again = claims.get("kubernetes.io").and_then(|bound| bound.get("namespace"));
    if said_again.is_some_and(|again| again != namespace) {
        return Err(Refusal::Malformed);
    }
    Ok(Subject {
        tenant_name: tenant_name.to_owned(),
        namespace: Some(namespace.to_owned()),
        actor: format!("service-account/{namespace}/{}", presentable(name)),
        roles: role.into(),
    })
}

fn subject(claims: &Map<String, Value>) -> Result<&str, Refusal> {
    claims.get("sub").and_then(Value::as_str).filter(|subject| !subject.is_empty()).ok_or(Refusal::Malformed)
}

/// The claim of this name, or the one that the dots in it lead to.
fn claim<'claims>(claims: &'claims Map<String, Value>, name: &str) -> Option<&'claims Value> {
    claims.get(name).or_else(|| {
        let mut parts = name.split('.');
        let first = claims.get(parts.next()?)?;
        parts.try_fold(first, |within, part| within.get(part))
    })
}

/// A name as it can be shown. One of which something had to be left out ends in a digest of all of it, and so does one that looks as if:
/// no two names are shown as one.
fn presentable(name: &str) -> String {
    let shown: String = name.chars().filter(|letter| !letter.is_control()).take(ACTOR_CHARS_MAX).collect();
    if shown == name && !is_digested(name) {
        return shown;
    }
    format!("{shown}~{}", &hex::encode(Sha256::digest(name))[..DIGEST_CHARS])
}

fn is_digested(name: &str) -> bool {
    let digest = name.rsplit_once('~').map(|(_, digest)| digest);
    digest.is_some_and(|digest| {
        digest.len() == DIGEST_CHARS && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(value: &Value) -> &Map<String, Value> {
        value.as_object().unwrap()
    }

    fn provider() -> Provider {
        let provider = json!({
            "name": "staff", "issuer": "https://login.example.com", "audiences": ["croft"], "tenantClaim": "org.team",
            "rolesClaim": "groups", "roles": { "agents": "user", "books": "auditor" },
        });
        serde_json::from_value(provider).unwrap()
    }

    #[test]
    fn a_claim_is_found_whole_or_by_its_dots() {
        let value = json!({ "https://croft.dev/tenant": "heron", "org": { "team": "plover" }, "org.unit": "whole" });
        let found = |name| claim(claims(&value), name).and_then(Value::as_str);
        assert_eq!(found("https://croft.dev/tenant"), Some("heron"));
        assert_eq!(found("org.team"), Some("plover"));
        assert_eq!(found("org.unit"), Some("whole"));
        assert_eq!(found("org.team.lead"), None);
        assert_eq!(found(""), None);
    }

    #[test]
    fn roles_are_what_the_words_are_mapped_to() {
        let roles = |groups: Value| {
            let value = json!({ "sub": "u1", "org": { "team": "heron" }, "groups": groups });
            person(&provider(), claims(&value)).map(|subject| subject.roles)
        };
        assert_eq!(roles(json!(["agents", "football", 7])).unwrap(), Role::User.into());
        assert_eq!(roles(json!("books agents")).unwrap(), Roles::of([Role::User, Role::Auditor]).unwrap());
        // A word is no role by being its name, once there is a mapping.
        for none in [json!(["admin"]), json!([]), json!(null), json!({ "agents": true })] {
            assert!(matches!(roles(none.clone()), Err(Failure::NoRole)), "{none}");
        }
    }

    #[test]
    fn no_two_names_are_shown_as_one() {
        let long = |end: &str| format!("{}{end}", "x".repeat(ACTOR_CHARS_MAX));
        let given = ["u1", "u\n1", "u1\n", "\u{7f}u1"].map(str::to_owned);
        let made = [presentable("u\n1"), long(""), long("y"), long("z")];
        let names: Vec<_> = given.into_iter().chain(made).collect();
        let shown: std::collections::HashSet<_> = names.iter().map(|name| presentable(name)).collect();
        assert_eq!(shown.len(), names.len(), "{shown:?}");
        for plain in ["u1", "alice@example.com", "a~b", &long("")] {
            assert_eq!(presentable(plain), plain);
        }
        assert!(presentable(&long("y")).starts_with(&long("~")));
        assert!(!presentable("u\n1").contains('\n'));
    }

    #[test]
    fn an_issuer_speaks_for_its_tenants_alone() {
        let mut provider = provider();
        provider.default_role = Some(Role::Viewer);
        provider.tenants = ["heron".to_owned()].into();
        let speak = |team: Value| {
            let value = json!({ "sub": "u\n1", "org": { "team": team } });
            person(&provider, claims(&value))
        };
        let subject = speak(json!("heron")).unwrap();
        assert_eq!((subject.actor.as_str(), subject.roles), ("oidc/staff/u1~561c2c53f4392e30", Role::Viewer.into()));
        assert!(matches!(speak(json!("plover")), Err(Failure::Refused(Refusal::ForeignTenant))));
        for none in [json!(""), json!(["heron"]), json!(7)] {
            assert!(matches!(speak(none.clone()), Err(Failure::Refused(Refusal::NoTenant))), "{none}");
        }
    }

    #[test]
    fn a_service_account_belongs_to_the_tenant_of_its_namespace() {
        let read = |sub: &str, namespace: &str| {
            let value = json!({ "sub": sub, "kubernetes.io": { "namespace": namespace } });
            service_account(Role::User, claims(&value))
        };
        let subject = read("system:serviceaccount:tenant-heron:builder", "tenant-heron").unwrap();
        assert_eq!((subject.tenant_name.as_str(), subject.namespace.as_deref()), ("heron", Some("tenant-heron")));
        assert_eq!(subject.actor, "service-account/tenant-heron/builder");
        for (sub, namespace) in [
            ("system:serviceaccount:kube-system:builder", "kube-system"),
            ("system:serviceaccount:tenant-:builder", "tenant-"),
            ("system:serviceaccount:tenant-heron", "tenant-heron"),
            ("system:node:tenant-heron:builder", "tenant-heron"),
            ("system:serviceaccount:tenant-heron:builder", "tenant-plover"),
        ] {
            assert!(read(sub, namespace).is_err(), "{sub} in {namespace}");
        }
    }
}
