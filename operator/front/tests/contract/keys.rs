//! What every `KeyStore` promises.

use croft_front::Error;
use croft_front::identity::api_key::StoredKey;
use croft_front::identity::role::Role;
use croft_front::store::Stores;
use croft_proto::Timestamp;
use croft_proto::id::TenantId;

use super::fixtures::{tenant, two_tenants};

fn key(prefix: &str, tenant: TenantId) -> StoredKey {
    StoredKey { prefix: prefix.into(), tenant, tenant_name: "ours".into(), secret_hash: [7; 32], role: Role::Admin }
}

pub(crate) async fn finds_what_was_stored(stores: &Stores) {
    let ours = tenant(stores, "ours").await;
    for (number, role) in Role::ALL.into_iter().enumerate() {
        let key = StoredKey { role, ..key(&format!("1a2b3c4{number}"), ours) };
        stores.keys.insert(&key, None).await.unwrap();
        assert_eq!(stores.keys.find(&key.prefix).await.unwrap(), Some(key));
    }
}

pub(crate) async fn knows_no_other_prefix(stores: &Stores) {
    let key = key("1a2b3c4d", tenant(stores, "ours").await);
    stores.keys.insert(&key, None).await.unwrap();
    for prefix in ["", "1a2b3c4e", "1a2b", "%", "1a2b3c4d'; --"] {
        assert_eq!(stores.keys.find(prefix).await.unwrap(), None, "{prefix}");
    }
}

pub(crate) async fn refuses_unknown_tenants_and_taken_prefixes(stores: &Stores) {
    let unknown = stores.keys.insert(&key("1a2b3c4d", TenantId::generate()), None).await;
    assert!(matches!(&unknown, Err(Error::Invalid { field, .. }) if field == "tenant"), "{unknown:?}");
    let (ours, theirs) = (tenant(stores, "ours").await, tenant(stores, "theirs").await);
    stores.keys.insert(&key("1a2b3c4d", ours), None).await.unwrap();
    let taken = stores.keys.insert(&key("1a2b3c4d", theirs), None).await;
    assert!(matches!(&taken, Err(Error::Invalid { field, .. }) if field == "prefix"), "{taken:?}");
    assert_eq!(stores.keys.find("1a2b3c4d").await.unwrap().unwrap().tenant, ours);
}

/// So many seconds from now on.
fn ahead(seconds: i64) -> Timestamp {
    Timestamp { seconds: jiff::Timestamp::now().as_second() + seconds, nanos: 123_456_000 }
}

pub(crate) async fn finds_no_key_that_has_expired(stores: &Stores) {
    let ours = tenant(stores, "ours").await;
    for (prefix, seconds, is_good) in [("1a2b3c40", 60, true), ("1a2b3c41", -60, false)] {
        stores.keys.insert(&key(prefix, ours), Some(ahead(seconds))).await.unwrap();
        assert_eq!(stores.keys.find(prefix).await.unwrap().is_some(), is_good, "{prefix}");
    }
}

pub(crate) async fn finds_no_key_that_is_revoked(stores: &Stores) {
    let ours = tenant(stores, "ours").await;
    for prefix in ["1a2b3c40", "1a2b3c41"] {
        stores.keys.insert(&key(prefix, ours), None).await.unwrap();
    }
    assert!(stores.keys.revoke(ours, "1a2b3c40").await.unwrap());
    assert_eq!(stores.keys.find("1a2b3c40").await.unwrap(), None);
    assert!(stores.keys.find("1a2b3c41").await.unwrap().is_some(), "another of the tenant's keys");
    let revoked = async || stores.keys.list(ours).await.unwrap().iter().find_map(|key| key.revoke_time);
    let first = revoked().await;
    assert!(first.is_some());
    // Again is harmless, and changes nothing.
    assert!(stores.keys.revoke(ours, "1a2b3c40").await.unwrap());
    assert_eq!(revoked().await, first);
    // And a prefix that is revoked can't be given again.
    assert!(stores.keys.insert(&key("1a2b3c40", ours), None).await.is_err());
}

pub(crate) async fn revokes_and_lists_the_tenants_own_alone(stores: &Stores) {
    let [ours, theirs] = two_tenants(stores).await;
    let expire_time = ahead(60);
    stores.keys.insert(&key("1a2b3c40", ours), Some(expire_time)).await.unwrap();
    stores.keys.insert(&StoredKey { role: Role::Viewer, ..key("1a2b3c41", ours) }, None).await.unwrap();
    for (tenant, prefix) in [(theirs, "1a2b3c40"), (ours, "1a2b3c42"), (TenantId::generate(), "1a2b3c40")] {
        assert!(!stores.keys.revoke(tenant, prefix).await.unwrap(), "{prefix}");
    }
    assert!(stores.keys.find("1a2b3c40").await.unwrap().is_some());
    let listed = stores.keys.list(ours).await.unwrap();
    let told: Vec<_> = listed.iter().map(|key| (&*key.prefix, key.role, key.expire_time, key.revoke_time)).collect();
    assert_eq!(
        told,
        [("1a2b3c41", Role::Viewer, None, None), ("1a2b3c40", Role::Admin, Some(expire_time), None)],
        "newest first"
    );
    assert_eq!(stores.keys.list(theirs).await.unwrap(), []);
}
