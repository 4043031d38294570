//! The CEL text that the policies are made of. What the API server gives is `object` (null on DELETE), `oldObject` (null
//! on CREATE), `request` and `namespaceObject`.

/// A namespace is made under a name that is kept for tenants.
pub(super) const NEW_TENANT_NAMESPACE: &str = "oldObject == null && ((has(object.metadata.name) && object.metadata.name.startsWith('tenant-')) || \
     (has(object.metadata.generateName) && object.metadata.generateName.startsWith('tenant-')))";

/// The object is, was or shall be marked as a tenant's.
pub(super) const BELONGS_TO_A_TENANT: &str = "(object != null && has(object.metadata.labels) && 'croft.dev/tenant' in object.metadata.labels) || \
     (oldObject != null && has(oldObject.metadata.labels) && 'croft.dev/tenant' in oldObject.metadata.labels)";

/// The mark is the same as before: none on a new object.
pub(super) const KEEPS_TENANT_LABEL: &str = "(object != null && has(object.metadata.labels) && 'croft.dev/tenant' in object.metadata.labels ? \
     object.metadata.labels['croft.dev/tenant'] : '') == \
     (oldObject != null && has(oldObject.metadata.labels) && 'croft.dev/tenant' in oldObject.metadata.labels ? \
     oldObject.metadata.labels['croft.dev/tenant'] : '')";

/// Nothing is deleted, or nothing keeps it.
pub(super) const MAY_BE_DELETED: &str =
    "request.operation != 'DELETE' || !has(oldObject.spec.preventDeletion) || !oldObject.spec.preventDeletion";

/// The operator's finalizer is where it was.
pub(super) const KEEPS_FINALIZER: &str = "request.operation != 'UPDATE' || !has(oldObject.metadata.finalizers) || \
     !('croft.dev/tenant' in oldObject.metadata.finalizers) || \
     (has(object.metadata.finalizers) && 'croft.dev/tenant' in object.metadata.finalizers)";

/// Nothing is deleted, or its parts are left to the operator and the cluster: with `Foreground` all of them would go at once, the
/// fence under running workers, and with `Orphan` none. What a finalizer asks for counts as what the deletion asks for.
pub(super) const TAKEN_APART_IN_ORDER: &str = "(request.operation != 'DELETE' || \
     ((!has(request.options.propagationPolicy) || request.options.propagationPolicy == 'Background') && \
     (!has(request.options.orphanDependents) || !request.options.orphanDependents))) && \
     (object == null || !has(object.metadata.finalizers) || object.metadata.finalizers.all(finalizer, \
     !(finalizer in ['orphan', 'foregroundDeletion']) || \
     (oldObject != null && has(oldObject.metadata.finalizers) && finalizer in oldObject.metadata.finalizers)))";

/// Of what is deleted already the deletion is not prevented anew.
pub(super) const DELETION_STANDS: &str = "request.operation != 'UPDATE' || !has(oldObject.metadata.deletionTimestamp) || \
     !has(object.spec.preventDeletion) || !object.spec.preventDeletion || \
     (has(oldObject.spec.preventDeletion) && oldObject.spec.preventDeletion)";

/// The pods that it makes would be marked as a tenant's workers.
pub(super) const MAKES_WORKERS: &str = "(has(object.spec.template) && has(object.spec.template.metadata) && \
     has(object.spec.template.metadata.labels) && 'croft.dev/tenant' in object.spec.template.metadata.labels) || \
     (has(object.spec.jobTemplate) && has(object.spec.jobTemplate.spec.template.metadata) && \
     has(object.spec.jobTemplate.spec.template.metadata.labels) && \
     'croft.dev/tenant' in object.spec.jobTemplate.spec.template.metadata.labels)";

/// A Service that is sent nothing but what is for it, or that goes: whoever holds it up must be able to let go.
pub(super) const TAKES_NO_EXTERNAL_ADDRESS: &str = "!has(object.spec.externalIPs) || \
     object.spec.externalIPs.size() == 0 || has(object.metadata.deletionTimestamp)";

/// The namespace is marked by the operator, who alone may do so.
pub(super) const IS_TENANT_NAMESPACE: &str =
    "has(namespaceObject.metadata.labels) && 'croft.dev/tenant' in namespaceObject.metadata.labels";

/// The namespace is there to stay.
pub(super) const TENANT_IS_NOT_ENDING: &str = "!has(namespaceObject.metadata.deletionTimestamp)";

/// There is no image of the tenant's own, or it is the one that was taken before: a list that has become shorter must
/// never keep anyone from suspending a tenant.
pub(super) const IMAGE_UNCHANGED: &str = "!has(object.spec.workers) || !has(object.spec.workers.image) || \
     (oldObject != null && has(oldObject.spec.workers) && has(oldObject.spec.workers.image) && \
     oldObject.spec.workers.image == object.spec.workers.image)";

/// The models are as they were: a rule that is newer than a tenant must never keep anyone from stopping or deleting it.
pub(super) const MODELS_UNCHANGED: &str =
    "oldObject != null && has(oldObject.spec.llm) && has(object.spec.llm) && oldObject.spec.llm == object.spec.llm";

/// A model in the cluster is looked for where Croft itself runs.
pub(super) const ANOTHERS_MODEL: &str = "has(object.spec.llm) && has(object.spec.llm.providers) && \
     object.spec.llm.providers.exists(provider, has(provider.service) && provider.service.namespace == OPERATORS_NAMESPACE)";
