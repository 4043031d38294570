//! What workers have of Secrets, as files: a key a provider, a token an MCP server, and folders of users' tokens.

use croft_crds::tenant::McpServerSpec;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    KeyToPath, ProjectedVolumeSource, SecretProjection, SecretVolumeSource, Volume, VolumeProjection,
};

use super::providers;
use super::wanted::{Provider, Wanted};

/// The volume of keys.
pub(crate) const KEYS: &str = "keys";

/// One entry of a Secret, as a file.
#[derive(Debug, PartialEq)]
struct File {
    secret: String,
    entry: String,
    path: String,
}

/// A Secret, as a folder.
#[derive(Debug, PartialEq)]
pub(crate) struct Folder {
    pub(crate) volume: String,
    secret: String,
}

/// What the workers of a Deployment have.
#[derive(Debug, Default)]
pub(crate) struct Mounts {
    files: Vec<File>,
    folders: Vec<Folder>,
}

impl Mounts {
    /// Of a Deployment that the API server has.
    pub(crate) fn of(deployment: &Deployment) -> Self {
        let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        let volumes = || pod.and_then(|pod| pod.volumes.as_ref()).into_iter().flatten();
        let projected = volumes().filter(|volume| volume.name == KEYS).filter_map(|volume| volume.projected.as_ref());
        let secrets = projected.flat_map(|keys| keys.sources.iter().flatten()).filter_map(|from| from.secret.as_ref());
        let files = secrets.flat_map(|secret| {
            secret.items.iter().flatten().map(|item| File {
                secret: secret.name.clone(),
                entry: item.key.clone(),
                path: item.path.clone(),
            })
        });
        let folders = volumes().filter_map(|volume| {
            Some(Folder { volume: volume.name.clone(), secret: volume.secret.as_ref()?.secret_name.clone()? })
        });
        Self { files: files.collect(), folders: folders.collect() }
    }

    /// Whether there is a key, where the spec has it.
    pub(crate) fn have_key(&self, provider: &Provider) -> bool {
        key(provider).is_some_and(|key| self.files.contains(&key))
    }

    /// Whether there is a token of the server, where the spec has it.
    pub(crate) fn have_token(&self, server: &McpServerSpec) -> bool {
        token(server).is_some_and(|token| self.files.contains(&token))
    }

    /// Whether there are tokens of the server's users, where the spec has them.
    pub(crate) fn have_user_tokens(&self, server: &McpServerSpec) -> bool {
        user_tokens(server).is_some_and(|folder| self.folders.contains(&folder))
    }
}

/// The folders that the workers shall have.
pub(crate) fn folders(wanted: &Wanted) -> impl Iterator<Item = (&str, Folder)> {
    wanted.mcp_servers.iter().filter_map(|server| Some((server.name.as_str(), user_tokens(server)?)))
}

/// The volume of keys that the workers shall have; none where there is no key. All in it is optional, so that one that is deleted later
/// keeps no new worker from starting before we have seen it.
pub(crate) fn keys_volume(wanted: &Wanted) -> Option<Volume> {
    let files = wanted.providers.iter().filter_map(key).chain(wanted.mcp_servers.iter().filter_map(token));
    let projections = files.map(|File { secret, entry, path }| {
        let item = KeyToPath { key: entry, path, mode: None };
        let secret = SecretProjection { name: secret, items: Some(vec![item]), optional: Some(true) };
        VolumeProjection { secret: Some(secret), ..VolumeProjection::default() }
    });
    let sources: Vec<_> = projections.collect();
    let has_any = !sources.is_empty();
    let projected = ProjectedVolumeSource { default_mode: Some(0o440), sources: Some(sources) };
    has_any.then(|| Volume { name: KEYS.to_owned(), projected: Some(projected), ..Volume::default() })
}

impl Folder {
    /// The folder as a volume: whole, so that a user who is added needs no new pod; optional, as keys are.
    pub(crate) fn into_volume(self) -> Volume {
        let source = SecretVolumeSource {
            secret_name: Some(self.secret),
            default_mode: Some(0o440),
            optional: Some(true),
            ..SecretVolumeSource::default()
        };
        Volume { name: self.volume, secret: Some(source), ..Volume::default() }
    }
}

fn key(provider: &Provider) -> Option<File> {
    let secret = &provider.key.as_ref()?.secret;
    let path = provider.name.as_str().to_owned();
    Some(File { secret: secret.name.clone(), entry: secret.key.clone(), path })
}

fn token(server: &McpServerSpec) -> Option<File> {
    let secret = server.token_secret_ref.as_ref()?;
    let path = providers::token_file(&server.name);
    Some(File { secret: secret.name.clone(), entry: secret.key.clone(), path })
}

/// A server's name has at most 40 characters, a volume's 63.
fn user_tokens(server: &McpServerSpec) -> Option<Folder> {
    let secret = server.user_tokens_secret_ref.as_ref()?.name.clone();
    Some(Folder { volume: format!("user-tokens-{}", server.name), secret })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::Issued;
    use crate::tenant::{fixtures, workers};

    #[test]
    fn workers_have_what_is_where_the_spec_has_it() {
        let wanted = Wanted::parse(&fixtures::full(), &fixtures::keys(), &fixtures::settings()).unwrap();
        let issued = Issued { cert: "the certificate".to_owned(), key: "the key".to_owned() };
        let mounts = Mounts::of(&workers::workers(&wanted, &issued));
        assert!(wanted.providers.len() == 1 && mounts.have_key(&wanted.providers[0]));
        let [mut tickets, maps, mut mail] = <[_; 3]>::try_from(wanted.mcp_servers).unwrap();
        assert_eq!([&tickets, &maps, &mail].map(|server| mounts.have_token(server)), [true, false, false]);
        assert_eq!([&tickets, &maps, &mail].map(|server| mounts.have_user_tokens(server)), [false, false, true]);

        // The lent key must not go where the tenant's own went, nor the other way round.
        let mut lent = wanted.providers[0].clone();
        lent.key.as_mut().unwrap().secret.name = "platform-keys".to_owned();
        assert!(!mounts.have_key(&lent));
        tickets.token_secret_ref.as_mut().unwrap().key = "another".to_owned();
        mail.user_tokens_secret_ref.as_mut().unwrap().name = "another".to_owned();
        assert!(!mounts.have_token(&tickets) && !mounts.have_user_tokens(&mail));
        assert!(!Mounts::of(&Deployment::default()).have_key(&wanted.providers[0]));
    }
}
