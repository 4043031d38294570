//! The chart's life on a real API server of its own: installed, upgraded from kinds that lack a field, rolled back, uninstalled, and
//! installed again. Tenants outlive all of it.

use std::path::PathBuf;
use std::process::{Command, Output};

use croft_e2e::bench::stage::NAMESPACE;
use croft_e2e::control_plane::{ControlPlane, succeeds};
use croft_e2e::helm::root;
use serde_json::Value;

fn kubectl(plane: &ControlPlane, arguments: &[&str]) -> Output {
    plane.tool("kubectl").args(arguments).output().unwrap()
}

fn get(plane: &ControlPlane, arguments: &[&str]) -> Value {
    let got = succeeds(plane.tool("kubectl").arg("get").args(arguments).args(["--output", "json"])).unwrap();
    serde_json::from_slice(&got.stdout).unwrap()
}

/// Whether the kind of tenants has the field.
fn has_field(plane: &ControlPlane) -> bool {
    let kind = get(plane, &["crd", "agenttenants.croft.dev"]);
    !fields(&kind["spec"]["versions"][0])[FIELD].is_null()
}

fn has_policies(plane: &ControlPlane) -> bool {
    let policies = get(plane, &["validatingadmissionpolicies"]);
    policies["items"].as_array().unwrap().iter().any(|policy| policy["metadata"]["name"].to_string().contains("croft"))
}

/// The tenant that was applied at first, and not another of its name.
fn tenant(plane: &ControlPlane) -> String {
    get(plane, &["agenttenant", "kept"])["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// One that an older release didn't have, and which no rule of the kind speaks of.
const FIELD: &str = "deletionPolicy";

fn fields(version: &Value) -> &Value {
    &version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
}

/// The chart as an older release would have it.
fn older() -> PathBuf {
    let folder = root().join("target/croft-chart-older");
    let _ = std::fs::remove_dir_all(&folder);
    succeeds(Command::new("cp").arg("--recursive").arg(root().join("charts/croft")).arg(&folder)).unwrap();
    let file = folder.join("charts/crds/templates/agenttenants.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut kind: Value = serde_yaml::from_str(&text).unwrap();
    let spec = kind["spec"]["versions"][0].pointer_mut("/schema/openAPIV3Schema/properties/spec").unwrap();
    spec["properties"].as_object_mut().unwrap().remove(FIELD).unwrap();
    std::fs::write(&file, serde_yaml::to_string(&kind).unwrap()).unwrap();
    folder
}

#[test]
fn tenants_outlive_upgrades_rollbacks_and_uninstallation() {
    let plane = ControlPlane::up("croft-chart").unwrap();
    let (older, chart) = (older(), root().join("charts/croft"));
    plane.install(&older).unwrap();
    assert!(!has_field(&plane) && has_policies(&plane));
    let manifest = plane.folder().join("tenant.yaml");
    let kept = "apiVersion: croft.dev/v1alpha1\nkind: AgentTenant\nmetadata: { name: kept }\nspec: { tier: free }\n";
    std::fs::write(&manifest, kept).unwrap();
    succeeds(plane.tool("kubectl").arg("apply").arg("--filename").arg(&manifest)).unwrap();
    let uid = tenant(&plane);

    plane.helm("upgrade", &chart).unwrap();
    assert!(has_field(&plane), "the kinds are upgraded with the rest");
    assert_eq!(tenant(&plane), uid);
    let patch = r#"{"spec":{"deletionPolicy":"Archive"}}"#;
    let told = kubectl(&plane, &["patch", "agenttenant", "kept", "--type=merge", "--patch", patch]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));

    succeeds(plane.tool("helm").args(["rollback", "croft", "1", "--namespace", NAMESPACE])).unwrap();
    assert!(!has_field(&plane), "they go back with the rest");
    assert_eq!(tenant(&plane), uid);
    plane.helm("upgrade", &chart).unwrap();

    succeeds(plane.tool("helm").args(["uninstall", "croft", "--namespace", NAMESPACE])).unwrap();
    assert!(has_field(&plane) && !has_policies(&plane), "the kinds stay, and nothing else");
    assert_eq!(tenant(&plane), uid);
    assert!(!kubectl(&plane, &["get", "clusterrole", "croft-operator"]).status.success());

    plane.helm("install", &chart).unwrap();
    assert!(has_field(&plane) && has_policies(&plane));
    assert_eq!(tenant(&plane), uid, "the kinds that stayed are taken over, with all that is in them");
    std::fs::remove_dir_all(older).unwrap();
}
