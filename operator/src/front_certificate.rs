//! Keeps the fronts' certificate fresh, in a Secret that their pods mount.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use croft_crds::labels;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta};

use crate::authority::{Authority, Error};
use crate::certificate::Subject;
use crate::context::Context;
use crate::tenant::tls;

/// The Secret, in the operator's namespace.
const SECRET: &str = "croft-front-tls";
/// Also how soon a deleted or garbled Secret is made again.
const CHECK_EVERY: Duration = Duration::from_secs(30);

/// A request that is never answered must not be the last look.
const ENSURE_MAX: Duration = Duration::from_secs(10);

/// Looks after the Secret for ever.
pub(crate) async fn keep(context: Arc<Context>) {
    loop {
        match tokio::time::timeout(ENSURE_MAX, ensure(&context)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = croft_serve::log::chain(&error);
                tracing::warn!(error, secret = SECRET, "cannot keep the fronts' certificate");
            }
            Err(_) => {
                tracing::warn!(secret = SECRET, "cannot keep the fronts' certificate: the API server does not answer");
            }
        }
        tokio::time::sleep(CHECK_EVERY).await;
    }
}

async fn ensure(context: &Context) -> Result<(), Error> {
    let namespace = &context.settings.namespace;
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let there = secrets.get_opt(SECRET).await.map_err(Error::Store)?;
    let (subject, now) = (Subject::front(namespace), context.now());
    if there.is_some_and(|secret| tls::holding(&secret, &subject, &context.authority, now).is_some()) {
        return Ok(());
    }
    let secret = secret(namespace, &subject, &context.authority, now)?;
    context.writer.apply(&secret).await.map_err(Error::Store)?;
    tracing::info!(secret = SECRET, "the fronts have a new certificate");
    Ok(())
}

fn secret(namespace: &str, subject: &Subject, authority: &Authority, now: i64) -> Result<Secret, Error> {
    let labels = [(labels::MANAGED_BY, labels::MANAGED_BY_CROFT), (labels::NAME, "croft")]
        .map(|(label, value)| (label.to_owned(), value.to_owned()));
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from(labels)),
            ..ObjectMeta::default()
        },
        ..tls::secret(authority, &subject.issue(authority, now)?)
    })
}
