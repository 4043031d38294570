//! What every `KeyStore` promises.

use croft_front::Error;
use croft_front::identity::api_key::StoredKey;
use croft_front::identity::role::Role;
use croft_front::store::Stores;
use croft_proto::id::TenantId;

use super::fixtures::tenant;

fn key(prefix: &str, tenant: TenantId) -> StoredKey {
    StoredKey { prefix: prefix.into(), tenant, tenant_name: "ours".into(), secret_hash: [7; 32], role: Role::Admin }
}

pub(crate) async fn finds_what_was_stored(stores: &Stores) {
    let ours = tenant(stores, "ours").await;
    for (number, role) in Role::ALL.into_iter().enumerate() {
        let key = StoredKey { role, ..key(&format!("1a2b3c4{number}"), ours) };
        stores.keys.insert(&key).await.unwrap();
        assert_eq!(stores.keys.find(&key.prefix).await.unwrap(), Some(key));
    }
}

pub(crate) async fn knows_no_other_prefix(stores: &Stores) {
    let key = key("1a2b3c4d", tenant(stores, "ours").await);
    stores.keys.insert(&key).await.unwrap();
    for prefix in ["", "1a2b3c4e", "1a2b", "%", "1a2b3c4d'; --"] {
        assert_eq!(stores.keys.find(prefix).await.unwrap(), None, "{prefix}");
    }
}

pub(crate) async fn refuses_unknown_tenants_and_taken_prefixes(stores: &Stores) {
    let unknown = stores.keys.insert(&key("1a2b3c4d", TenantId::generate())).await;
    assert!(matches!(&unknown, Err(Error::Invalid { field, .. }) if field == "tenant"), "{unknown:?}");
    let (ours, theirs) = (tenant(stores, "ours").await, tenant(stores, "theirs").await);
    stores.keys.insert(&key("1a2b3c4d", ours)).await.unwrap();
    let taken = stores.keys.insert(&key("1a2b3c4d", theirs)).await;
    assert!(matches!(&taken, Err(Error::Invalid { field, .. }) if field == "prefix"), "{taken:?}");
    assert_eq!(stores.keys.find("1a2b3c4d").await.unwrap().unwrap().tenant, ours);
}
