//! Every write to the API server goes through here, so that each is counted and bears the operator's name. Of what was written the
//! metadata comes back: nobody reads more, and a Secret's keys need not come at all.

use std::fmt::Debug;

use http::HeaderValue;
use http::header::ACCEPT;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{PartialObjectMeta, Request, Status};
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::leader::{Closed, Fence};
use crate::metrics::Metrics;

/// The name under which the API server keeps track of our fields.
pub const FIELD_MANAGER: &str = "croft-operator";

const METADATA: HeaderValue = HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// Anything that can be written, of a built-in kind or one of ours.
pub trait Object:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

/// Where writes go.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    metrics: Metrics,
    fence: Fence,
}

impl Writer {
    /// Writes through `client`, counted in `metrics`, for as long as `fence` is open; later writes fail.
    pub fn new(client: Client, metrics: Metrics, fence: Fence) -> Self {
        Self { client, metrics, fence }
    }

    /// Applies an object, also over fields that others hold.
    pub async fn apply<K: Object>(&self, object: &K) -> kube::Result<ObjectMeta> {
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let request = request::<K>(object.meta().namespace.as_deref());
        self.send::<K>("apply", request.patch(&object.name_any(), &parameters, &Patch::Apply(object))).await
    }

    /// Creates an object; fails if there is one of its name.
    pub async fn create<K: Object>(&self, object: &K) -> kube::Result<ObjectMeta> {
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
        self.send::<K>("create", request::<K>(object.meta().namespace.as_deref()).create(&parameters, body)).await
    }

    /// Merges `patch` into an object. With `metadata.resourceVersion` in it, it fails if the object has changed.
    pub async fn merge<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        patch: &Value,
    ) -> kube::Result<ObjectMeta> {
        self.send::<K>("patch", request::<K>(namespace).patch(name, &named(), &Patch::Merge(patch))).await
    }

    /// Puts `status` in the place of an object's status, if it is just the object with this UID; `None` if that is gone, whether or not
    /// another has its name.
    pub async fn replace_status<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        uid: &str,
        status: &impl Serialize,
    ) -> kube::Result<Option<ObjectMeta>> {
        // To a UID in a merge patch the API server pays no heed: of custom resources' metadata a write of the status changes nothing.
        let patch = json!([
            { "op": "test", "path": "/metadata/uid", "value": uid },
            { "op": "add", "path": "/status", "value": serde_json::to_value(status).map_err(kube::Error::SerdeError)? },
        ]);
        let patch = Patch::<()>::Json(serde_json::from_value(patch).map_err(kube::Error::SerdeError)?);
        let request = request::<K>(namespace).patch_subresource("status", name, &named(), &patch);
        match self.send::<K>("patch-status", request).await {
            Ok(written) => Ok(Some(written)),
            Err(kube::Error::Api(status)) if is_of_no_object(&status, name) || is_of_patch_alone(&status) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes just the object with this UID. One that is gone already is fine.
    pub async fn delete<K: Object>(&self, namespace: Option<&str>, name: &str, uid: &str) -> kube::Result<()> {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::background() };
        self.send_delete::<K>(namespace, name, &parameters).await
    }

    /// Deletes an object that is then given `seconds` to end, also if it is ending already. One that is gone is fine.
    pub async fn delete_within<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        seconds: u32,
    ) -> kube::Result<()> {
        let parameters = DeleteParams { grace_period_seconds: Some(seconds), ..DeleteParams::background() };
        self.send_delete::<K>(namespace, name, &parameters).await
    }

    async fn send_delete<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        parameters: &DeleteParams,
    ) -> kube::Result<()> {
        let request = request::<K>(namespace).delete(name, parameters).map_err(kube::Error::BuildRequest)?;
        self.begin::<K>("delete")?;
        match self.client.request_status::<K>(request).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn send<K: Object>(
        &self,
        verb: &'static str,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> kube::Result<ObjectMeta> {
        let mut request = request.map_err(kube::Error::BuildRequest)?;
        request.headers_mut().insert(ACCEPT, METADATA);
        self.begin::<K>(verb)?;
        self.client.request::<PartialObjectMeta<K>>(request).await.map(|written| written.metadata)
    }

    /// The last look at the fence before the request goes out.
    fn begin<K: Object>(&self, verb: &str) -> kube::Result<()> {
        if !self.fence.is_open() {
            return Err(kube::Error::Service(Box::new(Closed)));
        }
        self.metrics.writes.with_label_values(&[K::kind(&()).as_ref(), verb]).inc();
        Ok(())
    }
}

/// `Api` knows namespaced kinds from others by type, and we have both at hand.
fn request<K: Object>(namespace: Option<&str>) -> Request {
    Request::new(K::url_path(&(), namespace))
}

/// Whether there is no such object. Of a kind that it does not serve for a moment, as while it starts, the API server names none.
fn is_of_no_object(status: &Status, name: &str) -> bool {
    status.code == 404 && status.details.as_ref().is_some_and(|details| details.name == name)
}

/// Whether the API server could not apply the patch, so that the object is not the one that it tests for. Of what a patch would make of an
/// object, and is not valid, it says the same by code and reason, but names the object.
fn is_of_patch_alone(status: &Status) -> bool {
    status.code == 422 && status.details.as_ref().is_none_or(|details| details.name.is_empty())
}

fn named() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Word for word what Kubernetes 1.36 answers.
    #[test]
    fn a_patch_for_another_object_is_told_from_a_status_that_is_not_valid() {
        let told = |answer: Value| is_of_patch_alone(&serde_json::from_value(answer).unwrap());
        let of_patch = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "the server rejected our request due to an error in our request",
            "reason": "Invalid", "details": {}, "code": 422,
        });
        assert!(told(of_patch.clone()));
        let mut of_object = of_patch;
        of_object["details"] = json!({ "name": "talk", "group": "croft.dev", "kind": "AgentSession" });
        assert!(!told(of_object));
        assert!(!told(json!({ "status": "Failure", "message": "", "reason": "Conflict", "code": 409 })));
    }

    #[test]
    fn an_object_that_is_gone_is_told_from_a_kind_that_is_not_served() {
        let told = |details: Value| {
            let answer =
                json!({ "status": "Failure", "message": "", "reason": "NotFound", "code": 404, "details": details });
            is_of_no_object(&serde_json::from_value(answer).unwrap(), "talk")
        };
        assert!(told(json!({ "name": "talk", "group": "croft.dev", "kind": "agentsessions" })));
        assert!(!told(json!({})));
        assert!(!told(Value::Null));
    }
}
