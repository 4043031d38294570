//! What nodes show to registries for the workers' images: the platform's pull secrets, as one Secret in the tenant's namespace, where
//! alone a pod can use them.
//!
//! What is planned and compared holds the sources' versions; what is in them is put in for the write, and dropped after it.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use secrecy::{ExposeSecret as _, SecretSlice};
use serde_json::{Map, Value, json};

use super::wanted::Wanted;

/// What the Secret is called.
pub(crate) const NAME: &str = "pull-credentials";
/// The one entry of a Secret of this type.
pub(crate) const ENTRY: &str = ".dockerconfigjson";
const TYPE: &str = "kubernetes.io/dockerconfigjson";

/// The Secret as it is planned.
#[derive(Debug, Clone)]
pub(crate) struct PullCredentials {
    /// Everything but the credentials.
    pub(crate) secret: Secret,
    /// The sources in the operator's namespace, with the version of each.
    pub(crate) sources: BTreeMap<String, String>,
}

/// See which there are with `kubectl -n tenant-acme describe secret pull-credentials`. None where no source is there.
pub(crate) fn pull_credentials(wanted: &Wanted, sources: &BTreeMap<String, String>) -> Option<PullCredentials> {
    let secret = Secret { metadata: wanted.child_meta(NAME), type_: Some(TYPE.to_owned()), ..Secret::default() };
    (!sources.is_empty()).then(|| PullCredentials { secret, sources: sources.clone() })
}

/// The Secret as it is written. Of two sources that know one registry the first in the order of their names counts; one that can't be
/// read says nothing.
pub(crate) fn filled(secret: &Secret, sources: &[SecretSlice<u8>]) -> Secret {
    let mut registries = Map::new();
    for source in sources {
        let read = serde_json::from_slice::<Value>(source.expose_secret()).ok();
        let Some(Value::Object(known)) = read.and_then(|mut read| read.get_mut("auths").map(Value::take)) else {
            continue;
        };
        for (registry, credentials) in known {
            registries.entry(registry).or_insert(credentials);
        }
    }
    let entry = ByteString(json!({ "auths": registries }).to_string().into_bytes());
    Secret { data: Some(BTreeMap::from([(ENTRY.to_owned(), entry)])), ..secret.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenant::fixtures;

    #[test]
    fn several_sources_become_one_and_one_that_cant_be_read_spoils_nothing() {
        let wanted = Wanted::parse(&fixtures::minimal(), &fixtures::keys(), &fixtures::settings()).unwrap();
        let sources = BTreeMap::from([("registry".to_owned(), "7".to_owned())]);
        let planned = pull_credentials(&wanted, &sources).unwrap();
        assert_eq!((planned.secret.data.as_ref(), planned.sources["registry"].as_str()), (None, "7"));
        assert!(pull_credentials(&wanted, &BTreeMap::new()).is_none());
        let source = |text: &str| SecretSlice::from(text.as_bytes().to_vec());
        let filled = filled(
            &planned.secret,
            &[
                source("{\"auths\": {\"one.example.com\": {\"auth\": \"first\"}}}"),
                source("no JSON"),
                source(
                    "{\"auths\":{\"one.example.com\":{\"auth\":\"second\"},\"two.example.com\":{\"auth\":\"third\"}}}",
                ),
            ],
        );
        let entry: Value = serde_json::from_slice(&filled.data.unwrap()[ENTRY].0).unwrap();
        let expected =
            json!({ "auths": { "one.example.com": { "auth": "first" }, "two.example.com": { "auth": "third" } } });
        assert_eq!(entry, expected);
        assert_eq!(filled.type_.as_deref(), Some("kubernetes.io/dockerconfigjson"));
    }
}
