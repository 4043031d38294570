//! Every child of both fixtures as YAML, to be read in review like code.

use super::wanted::Wanted;
use super::*;
use crate::certificate::Issued;

/// A certificate that never changes; its key would be a secret.
fn issued() -> Issued {
    Issued { cert: "the certificate".to_owned(), key: "the key".to_owned() }
}

fn wanted() -> [Wanted; 2] {
    [fixtures::full(), fixtures::minimal()]
        .map(|tenant| Wanted::parse(&tenant, &fixtures::keys(), &fixtures::settings()).unwrap())
}

macro_rules! snapshots {
    ($($test:ident => $build:expr;)*) => {
        $(
            #[test]
            fn $test() {
                let build = $build;
                let [full, minimal] = wanted();
                insta::assert_yaml_snapshot!(concat!(stringify!($test), "_full"), build(&full));
                insta::assert_yaml_snapshot!(concat!(stringify!($test), "_minimal"), build(&minimal));
            }
        )*
    };
}

snapshots! {
    namespace => namespace::namespace;
    fence => fence::fence;
    quota => quota::quota;
    limit_range => limit_range::limit_range;
    service_account => service_account::service_account;
    owner_role => owners::role;
    owner_binding => owners::role_binding;
    providers => providers::providers;
    workers => |wanted: &Wanted| workers::workers(wanted, &issued());
    workers_service => workers_service::workers_service;
    disruption_budget => disruption_budget::disruption_budget;
}

#[test]
fn a_renewed_certificate_or_another_provider_rolls_the_workers_and_nothing_else_does() {
    let [full, _] = wanted();
    let template = |wanted: &Wanted, issued: &Issued| workers::workers(wanted, issued).spec.unwrap().template;
    let before = template(&full, &issued());
    assert_ne!(before, template(&full, &Issued { cert: "another certificate".to_owned(), ..issued() }));
    let mut fewer = full.clone();
    fewer.providers.pop();
    assert_ne!(before, template(&fewer, &issued()));
    let mut rotated = full.clone();
    rotated.providers[0].key.as_mut().unwrap().fingerprint = fixtures::fingerprint("18");
    assert_eq!(before, template(&rotated, &issued()), "workers see another key in its file");
    let mut scaled = full;
    scaled.workers.replicas += 1;
    assert_eq!(before, template(&scaled, &issued()));
}

/// One who is lent a key.
fn borrower() -> Wanted {
    let mut tenant = fixtures::minimal();
    tenant.spec.llm.providers =
        vec![serde_json::from_value(serde_json::json!({ "name": "anthropic", "source": "Platform" })).unwrap()];
    Wanted::parse(&tenant, &fixtures::keys(), &fixtures::settings()).unwrap()
}

/// All but what is in them, which is made when they are written.
#[test]
fn secrets() {
    let wanted = borrower();
    let authority = Authority::generate(1_800_000_000).unwrap();
    let sources = std::collections::BTreeMap::from([("registry".to_owned(), "7".to_owned())]);
    let secrets = [
        tls::tls(&wanted, &authority, &issued()),
        platform_keys::platform_keys(&wanted).unwrap().secret,
        pull_credentials::pull_credentials(&wanted, &sources).unwrap().secret,
    ];
    insta::assert_yaml_snapshot!(secrets.map(|secret| Secret { data: None, ..secret }));
}

#[test]
fn lent_keys_are_planned_by_their_fingerprints_alone() {
    let wanted = borrower();
    let planned = platform_keys::platform_keys(&wanted).unwrap();
    assert_eq!(planned.secret.data, None);
    assert_eq!(planned.entries["anthropic"].from.key, "api-key");
    let keys = [("anthropic".to_owned(), b"sk-made-up".to_vec().into())].into();
    let filled = platform_keys::filled(&planned.secret, &keys);
    assert_eq!(filled.data.unwrap()["anthropic"].0, b"sk-made-up");
    let [_, minimal] = self::wanted();
    assert!(platform_keys::platform_keys(&minimal).is_none());
}

#[test]
fn the_certificate_is_kept_while_it_holds() {
    const NOW: i64 = 1_800_000_000;
    let authority = Authority::generate(NOW).unwrap();
    let [full, _] = wanted();
    let first = certificate(&full, &Observed::default(), &authority, NOW).unwrap();
    let there = Observed { tls: Some(Arc::new(tls::tls(&full, &authority, &first))), ..Observed::default() };
    let at = |now| certificate(&full, &there, &authority, now).unwrap().cert;
    assert_eq!(at(NOW + 1), first.cert);
    assert_ne!(at(crate::certificate::renew_at(NOW)), first.cert);
    let other = Authority::generate(NOW).unwrap();
    assert_ne!(certificate(&full, &there, &other, NOW).unwrap().cert, first.cert, "of another authority");
}
