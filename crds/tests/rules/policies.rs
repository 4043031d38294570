//! Requests, judged in Rust by the policies that the chart installs.

use croft_crds::policy::judge;

use crate::corpus::requests::{SYSTEM, installed_in, requests};

#[test]
fn requests_that_a_policy_is_about_are_refused_and_others_are_not() {
    let policies = installed_in(SYSTEM);
    for asked in requests() {
        let said: Vec<_> = judge(&policies, &asked.request).into_iter().map(|refusal| refusal.says).collect();
        let wanted = &asked.says;
        assert!(
            said.len() == wanted.len() && wanted.iter().all(|sentence| said.iter().any(|said| said.contains(sentence))),
            "{asked:?}: wanted {wanted:?}, got {said:?}"
        );
    }
}

#[test]
fn each_policy_refuses_something_in_the_corpus() {
    let policies = installed_in(SYSTEM);
    let refusing: Vec<_> =
        requests().iter().flat_map(|asked| judge(&policies, &asked.request)).map(|refusal| refusal.policy).collect();
    for policy in &policies {
        assert!(refusing.contains(&policy.name), "nothing shows what {} is for", policy.name);
    }
}
