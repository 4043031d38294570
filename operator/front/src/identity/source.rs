//! Where an issuer's keys come from: a file, an address, or the address that the issuer's discovery document names.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use reqwest::{Certificate, Client, StatusCode, Url, redirect};
use serde::Deserialize;
use tonic::transport::Uri;

/// Of a document. Real ones have a few kilobytes.
const BYTES_MAX: usize = 1024 * 1024;

/// A place that keys are read from, as often as one likes.
pub(super) enum Source {
    File(PathBuf),
    Address { client: Client, url: String },
    Discovery { client: Client, issuer: String },
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

impl Source {
    /// A JWKS, as it stands now. Fails when it is too large or takes too long.
    pub(super) async fn read(&self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::File(path) => tokio::fs::read(path).await.with_context(|| format!("cannot read {}", path.display())),
            Self::Address { client, url } => get(client, url).await,
            Self::Discovery { client, issuer } => {
                let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
                let document: Discovered =
                    serde_json::from_slice(&get(client, &url).await?).context("the discovery document is garbled")?;
                // OpenID Connect Discovery 1.0, section 4.3.
                ensure!(document.issuer == *issuer, "the discovery document is that of another issuer");
                if let Err(problem) = discovered(&document.jwks_uri, issuer) {
                    bail!("the discovery document's jwks_uri is not usable: {problem}");
                }
                get(client, &document.jwks_uri).await
            }
        }
    }
}

/// The connection that keys are fetched by. `ca_file` is who vouches for the issuer; without it, the machine's roots are asked.
pub(super) fn client(ca_file: Option<&Path>, timeout: Duration) -> anyhow::Result<Client> {
    let mut builder = Client::builder()
        .timeout(timeout)
        // Who may say where keys come from is who was configured.
        .redirect(redirect::Policy::none())
        .user_agent(concat!("croft/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = ca_file {
        let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let roots = Certificate::from_pem_bundle(&pem).context("it holds no PEM certificates")?;
        ensure!(!roots.is_empty(), "there is no certificate in {}", path.display());
        builder = builder.tls_certs_only(roots);
    }
    builder.build().context("cannot speak TLS")
}

async fn get(client: &Client, url: &str) -> anyhow::Result<Vec<u8>> {
    let mut response = client.get(url).send().await?;
    ensure!(response.status() == StatusCode::OK, "{url} answers {}", response.status());
    let mut text = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        ensure!(text.len() + chunk.len() <= BYTES_MAX, "{url} answers with more than {BYTES_MAX} bytes");
        text.extend_from_slice(&chunk);
    }
    Ok(text)
}

/// Whether keys may be fetched from here, as whoever configured it says. Without TLS anyone on the way could hand us his own.
pub(super) fn address(text: &str) -> Result<(), &'static str> {
    let uri: Uri = text.parse().map_err(|_| "it isn't a URL")?;
    match (uri.scheme_str(), uri.host()) {
        (Some("https"), Some(host)) if !host.is_empty() => Ok(()),
        (Some("http"), Some("127.0.0.1" | "[::1]" | "localhost")) => Ok(()),
        _ => Err("it must begin with https:// and name a host"),
    }
}

/// Whether keys may be fetched from where this issuer says. One that is elsewhere, and that a tenant may run, has nobody ask what listens
/// on this machine.
fn discovered(text: &str, issuer: &str) -> Result<(), &'static str> {
    let is_plain = |text: &str| text.parse::<Uri>().is_ok_and(|uri| uri.scheme_str() == Some("http"));
    address(text)?;
    if is_plain(text) && !is_plain(issuer) {
        return Err("it must begin with https://, as the issuer's own address does");
    }
    if is_here(text) && !is_here(issuer) {
        return Err("it is on this machine, and the issuer is not");
    }
    Ok(())
}

/// Whether an address names this machine, in whatever way: what is fetched goes by the same reading of it.
fn is_here(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).trim_end_matches('.');
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(address) => address.is_loopback() || address.is_unspecified(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_by_tls_or_from_this_machine() {
        for good in ["https://login.example.com/keys", "http://127.0.0.1:8080/keys", "http://localhost/keys"] {
            assert_eq!(address(good), Ok(()), "{good}");
        }
        for bad in ["http://login.example.com/keys", "http://127.0.0.1.example.com/", "file:///keys", "/keys", ""] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_issuer_elsewhere_leads_nobody_to_this_machine() {
        let (here, elsewhere) = ("http://127.0.0.1:8080", "https://login.example.com/");
        assert_eq!(discovered("http://127.0.0.1:8080/keys", here), Ok(()));
        for issuer in [here, elsewhere] {
            assert_eq!(discovered("https://keys.example.com/", issuer), Ok(()), "{issuer}");
            assert!(discovered("http://keys.example.com/", issuer).is_err(), "{issuer}");
        }
        for bad in ["http://127.0.0.1:9464/metrics", "http://[::1]/", "http://localhost/", "HTTP://localhost/"] {
            assert!(discovered(bad, elsewhere).is_err(), "{bad}");
        }
        let by_tls = [
            "https://127.0.0.1:9464/",
            "https://127.9.9.9/",
            "https://127.1/",
            "https://0x7f000001/",
            "https://0.0.0.0/",
        ];
        let named = ["https://localhost/", "https://LOCALHOST./", "https://keys.localhost/"];
        let of_ten = ["https://[::1]:9464/", "https://[::]/", "https://[::ffff:127.0.0.1]/"];
        for here in by_tls.into_iter().chain(named).chain(of_ten) {
            assert!(discovered(here, elsewhere).is_err(), "{here}");
            assert_eq!(discovered(here, "https://localhost:8443"), Ok(()), "{here}");
        }
    }
}
