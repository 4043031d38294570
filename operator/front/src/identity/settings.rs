//! Who else may vouch for callers: OIDC issuers, from a file, and the cluster's issuer of service account tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use croft_serve::settings::Release;
use serde::Deserialize;

use super::role::Role;
use super::source::address;

/// The flags that concern JSON web tokens.
#[derive(Debug, Clone, Args)]
pub struct IdentityArgs {
    /// YAML file of the OIDC issuers whose tokens are taken; docs/identity.md has its fields
    #[arg(long, env = "CROFT_IDENTITY_PROVIDERS", value_name = "FILE")]
    pub identity_providers: Option<PathBuf>,
    /// The issuer of the cluster's service account tokens, as its API server is told by `--service-account-issuer`
    #[arg(long, env = "CROFT_SERVICE_ACCOUNT_ISSUER")]
    pub service_account_issuer: Option<String>,
    /// The public keys of that issuer as a JWKS: a file, or an `https://` URL
    #[arg(long, env = "CROFT_SERVICE_ACCOUNT_JWKS", value_name = "FILE|URL")]
    pub service_account_jwks: Option<String>,
    /// PEM file of who vouches for the server of that URL, in place of the machine's roots
    #[arg(long, env = "CROFT_SERVICE_ACCOUNT_CA", value_name = "FILE")]
    pub service_account_ca: Option<PathBuf>,
    /// The audience that service account tokens must be made for
    #[arg(long, env = "CROFT_SERVICE_ACCOUNT_AUDIENCE", default_value = "croft")]
    pub service_account_audience: String,
    /// What every service account of a tenant's namespace may do for the tenant
    #[arg(long, env = "CROFT_SERVICE_ACCOUNT_ROLE", default_value = "user")]
    pub service_account_role: Role,
    /// Between two looks at whether an issuer has other keys now, in milliseconds
    #[arg(long, env = "CROFT_JWKS_REFRESH_MS", default_value_t = 600_000)]
    pub jwks_refresh_ms: u64,
    /// Between two looks that tokens with an unknown key cause, however many they are, in milliseconds
    #[arg(long, env = "CROFT_JWKS_COOLDOWN_MS", default_value_t = 10_000)]
    pub jwks_cooldown_ms: u64,
}

/// What the flags and the file say.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub providers: Vec<Provider>,
    pub service_accounts: Option<ServiceAccounts>,
    pub timing: Timing,
}

/// Bounds of fetching keys, and of time in tokens.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A fetch that takes longer has failed.
    pub fetch_timeout: Duration,
    /// Between two fetches that unknown keys cause; also after a fetch that failed.
    pub cooldown: Duration,
    /// Between two fetches that nothing causes.
    pub refresh_every: Duration,
    /// By how much clocks may differ.
    pub leeway: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            fetch_timeout: Duration::from_secs(5),
            cooldown: Duration::from_secs(10),
            refresh_every: Duration::from_mins(10),
            leeway: Duration::from_secs(30),
        }
    }
}

/// An OIDC issuer, and how its tokens are read.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provider {
    /// For the audit log and metrics.
    pub name: String,
    /// `iss` of its tokens, to the letter.
    pub issuer: String,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
    /// Where its JWKS is; without it or `jwks_file`, the discovery document at the issuer's address tells.
    pub jwks_url: Option<String>,
    pub jwks_file: Option<PathBuf>,
    /// PEM file of who vouches for its server, in place of the machine's roots.
    pub ca_file: Option<PathBuf>,
    /// The claim that has the AgentTenant's name. A name with dots leads into nested claims, if no claim has it whole.
    pub tenant_claim: String,
    /// The tenants that it may speak for; all if there are none.
    #[serde(default)]
    pub tenants: BTreeSet<String>,
    /// The claim that has the caller's roles or groups: a list of words, or words with spaces between. Dots as above.
    #[serde(default = "roles")]
    pub roles_claim: String,
    /// Which of its words is which role; if there are none, its words are the roles' own names.
    #[serde(default)]
    pub roles: BTreeMap<String, Role>,
    /// Of those whose token has no word that is a role; if there is none, they may make no call.
    pub default_role: Option<Role>,
}

fn roles() -> String {
    "roles".to_owned()
}

/// The cluster's issuer of service account tokens.
#[derive(Debug, Clone)]
pub struct ServiceAccounts {
    pub issuer: String,
    /// A file, or an URL.
    pub jwks: String,
    pub ca_file: Option<PathBuf>,
    pub audience: String,
    pub role: Role,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    providers: Vec<Provider>,
}

/// Whether it is an address rather than a file.
pub(super) fn is_url(jwks: &str) -> bool {
    jwks.starts_with("https://") || jwks.starts_with("http://")
}

impl IdentityArgs {
    /// What they say together, or a sentence a mistake.
    pub fn read(&self) -> Result<Settings, Vec<String>> {
        let mut mistakes = Vec::new();
        let providers = match &self.identity_providers {
            Some(path) => read_providers(path).unwrap_or_else(|told| {
                mistakes.extend(told);
                Vec::new()
            }),
            None => Vec::new(),
        };
        let service_accounts = self.service_accounts(&mut mistakes);
        if let Some(accounts) = &service_accounts
            && providers.iter().any(|provider| provider.issuer == accounts.issuer)
        {
            mistakes.push(
                "--service-account-issuer (CROFT_SERVICE_ACCOUNT_ISSUER) is also an issuer of --identity-providers \
                 (CROFT_IDENTITY_PROVIDERS): a token would have two meanings."
                    .to_owned(),
            );
        }
        for (flag, milliseconds) in [
            ("--jwks-refresh-ms (CROFT_JWKS_REFRESH_MS)", self.jwks_refresh_ms),
            ("--jwks-cooldown-ms (CROFT_JWKS_COOLDOWN_MS)", self.jwks_cooldown_ms),
        ] {
            if milliseconds < 100 {
                mistakes.push(format!("{flag} must be at least 100."));
            }
        }
        let timing = Timing {
            cooldown: Duration::from_millis(self.jwks_cooldown_ms),
            refresh_every: Duration::from_millis(self.jwks_refresh_ms),
            ..Timing::default()
        };
        if mistakes.is_empty() { Ok(Settings { providers, service_accounts, timing }) } else { Err(mistakes) }
    }

    fn service_accounts(&self, mistakes: &mut Vec<String>) -> Option<ServiceAccounts> {
        let (issuer, jwks) = match (&self.service_account_issuer, &self.service_account_jwks) {
            (Some(issuer), Some(jwks)) => (issuer.clone(), jwks.clone()),
            (None, None) => return None,
            _ => {
                mistakes.push(
                    "--service-account-issuer (CROFT_SERVICE_ACCOUNT_ISSUER) and --service-account-jwks \
                     (CROFT_SERVICE_ACCOUNT_JWKS) must be set together."
                        .to_owned(),
                );
                return None;
            }
        };
        let usable = if is_url(&jwks) { address(&jwks).map_err(str::to_owned) } else { jwks_of_file(Path::new(&jwks)) };
        if let Err(problem) = usable {
            mistakes.push(format!("--service-account-jwks (CROFT_SERVICE_ACCOUNT_JWKS) is not usable: {problem}."));
        }
        if let Err(problem) = readable(self.service_account_ca.as_deref()) {
            mistakes.push(format!("--service-account-ca (CROFT_SERVICE_ACCOUNT_CA) is not usable: {problem}."));
        }
        let (audience, role) = (self.service_account_audience.clone(), self.service_account_role);
        Some(ServiceAccounts { issuer, jwks, ca_file: self.service_account_ca.clone(), audience, role })
    }
}

fn read_providers(path: &Path) -> Result<Vec<Provider>, Vec<String>> {
    let told = |mistake: String| {
        format!("{} of --identity-providers (CROFT_IDENTITY_PROVIDERS) is not usable: {mistake}.", path.display())
    };
    let text = std::fs::read_to_string(path).map_err(|error| vec![told(error.to_string())])?;
    parse(&text, &Release::beside(path)).map_err(|mistakes| mistakes.into_iter().map(told).collect())
}

fn parse(text: &str, release: &Release) -> Result<Vec<Provider>, Vec<String>> {
    let file: File = release.read(text).map_err(|error| vec![error])?;
    let mut mistakes = Vec::new();
    let (mut names, mut issuers) = (BTreeSet::new(), BTreeSet::new());
    for (number, provider) in file.providers.iter().enumerate() {
        let mut mistake = |text: &str| mistakes.push(format!("providers[{number}]{text}"));
        let Provider { name, issuer, audiences, jwks_url, jwks_file, ca_file, tenant_claim, roles_claim, .. } =
            provider;
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > 63 || !name.bytes().all(is_word) {
            mistake(".name must be of a-z, 0-9 and -, at most 63");
        } else if !names.insert(name.as_str()) {
            mistake(".name is that of another provider");
        }
        if !issuers.insert(issuer.as_str()) {
            mistake(".issuer is that of another provider");
        }
        if audiences.is_empty() || audiences.iter().any(String::is_empty) {
            mistake(".audiences must name who the tokens are for");
        }
        match (jwks_url, jwks_file) {
            (Some(_), Some(_)) => mistake(": jwksUrl and jwksFile exclude each other"),
            (Some(url), None) => {
                if let Err(problem) = address(url) {
                    mistake(&format!(".jwksUrl is not usable: {problem}"));
                }
            }
            (None, Some(path)) => {
                if let Err(problem) = jwks_of_file(path) {
                    mistake(&format!(".jwksFile is not usable: {problem}"));
                }
            }
            (None, None) => {
                if let Err(problem) = address(issuer) {
                    mistake(&format!(".issuer is not usable without jwksUrl: {problem}"));
                }
            }
        }
        if let Err(problem) = readable(ca_file.as_deref()) {
            mistake(&format!(".caFile is not usable: {problem}"));
        }
        if issuer.is_empty() || tenant_claim.is_empty() || roles_claim.is_empty() {
            mistake(": issuer, tenantClaim and rolesClaim must not be empty");
        }
    }
    if mistakes.is_empty() { Ok(file.providers) } else { Err(mistakes) }
}

fn readable(path: Option<&Path>) -> Result<(), String> {
    path.map_or(Ok(()), |path| std::fs::read(path).map(drop).map_err(|error| format!("{}: {error}", path.display())))
}

/// A file is there when the program starts, unlike a server, so that a mistake in it is told then.
fn jwks_of_file(path: &Path) -> Result<(), String> {
    let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    match super::jwks::parse(&text) {
        Ok(keys) if keys.is_empty() => Err(format!("{}: there is no usable key in it", path.display())),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{}: {error:#}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        identity: IdentityArgs,
    }

    fn read(flags: &[&str]) -> Result<Settings, Vec<String>> {
        Flags::try_parse_from([&["front"][..], flags].concat()).unwrap().identity.read()
    }

    const GOOD: &str = "
providers:
  - name: staff
    issuer: https://login.example.com/
    audiences: [croft]
    tenantClaim: team
    roles: { agents-admin: admin }
    defaultRole: viewer
";

    #[test]
    fn without_flags_nobody_else_vouches() {
        let settings = read(&[]).unwrap();
        assert!(settings.providers.is_empty() && settings.service_accounts.is_none());
    }

    #[test]
    fn a_provider_needs_little_to_be_whole() {
        let providers = parse(GOOD, &Release::Own).unwrap();
        assert_eq!(providers[0].roles_claim, "roles");
        assert_eq!(providers[0].roles["agents-admin"], Role::Admin);
        assert_eq!(providers[0].default_role, Some(Role::Viewer));
    }

    #[test]
    fn each_mistake_in_the_file_is_told() {
        for (wrong, with, told) in [
            ("name: staff", "name: Staff Only", "providers[0].name"),
            ("[croft]", "[]", "providers[0].audiences"),
            ("https://login", "http://login", "providers[0].issuer is not usable without jwksUrl"),
            ("tenantClaim: team", "tenantClaim: ''", "providers[0]: issuer, tenantClaim"),
            ("tenantClaim: team", "tenantClaims: team", "tenantClaims"),
            ("admin }", "owner }", "owner"),
            ("tenantClaim", "jwksUrl: ftp://keys\n    tenantClaim", "providers[0].jwksUrl is not usable"),
            ("tenantClaim", "jwksFile: /nowhere\n    tenantClaim", "providers[0].jwksFile is not usable: /nowhere"),
            ("tenantClaim", "caFile: /nowhere\n    tenantClaim", "providers[0].caFile is not usable: /nowhere"),
        ] {
            let mistakes = parse(&GOOD.replace(wrong, with), &Release::Own).unwrap_err();
            assert!(mistakes.iter().any(|mistake| mistake.contains(told)), "{mistakes:?} should tell of {told}");
        }
        let twice = format!("{GOOD}{}", GOOD.replace("\nproviders:\n", ""));
        assert_eq!(parse(&twice, &Release::Own).unwrap_err().len(), 2, "its name and its issuer");
    }

    #[test]
    fn a_file_of_another_release_may_say_more_than_is_known_here() {
        let later = GOOD.replace("tenantClaim", "later: [1]\n    tenantClaim");
        let providers = parse(&later, &Release::Another("7.0.0".to_owned())).unwrap();
        assert_eq!((providers[0].name.as_str(), providers[0].default_role), ("staff", Some(Role::Viewer)));
        assert!(parse(&later, &Release::Own).unwrap_err()[0].contains("later"));
    }

    #[test]
    fn half_of_the_service_account_flags_is_a_mistake() {
        let mistakes = read(&["--service-account-issuer=https://kubernetes.default.svc"]).unwrap_err();
        assert!(mistakes[0].contains("must be set together"), "{mistakes:?}");
        let both = ["--service-account-issuer=i", "--service-account-jwks=/nowhere", "--jwks-cooldown-ms=0"];
        let mistakes = read(&both).unwrap_err();
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(mistakes[0].contains("/nowhere") && mistakes[1].contains("--jwks-cooldown-ms"), "{mistakes:?}");
    }
}
