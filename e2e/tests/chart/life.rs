//! The chart's life on a real API server of its own: installed, upgraded from kinds that lack a field, rolled back, uninstalled, and
//! installed again. Tenants outlive all of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use croft_e2e::helm::root;
use serde_json::Value;

const NAMESPACE: &str = "croft-system";

/// An API server, etcd and the controllers, which go with this.
struct ControlPlane {
    folder: PathBuf,
}

impl ControlPlane {
    fn up() -> Self {
        let this = Self { folder: root().join("target/croft-chart") };
        this.cluster("up");
        this
    }

    fn cluster(&self, verb: &str) {
        let mut command = Command::new(root().join("e2e/cluster/cluster.sh"));
        succeeds(command.args(["control-plane", verb, "--dir"]).arg(&self.folder));
    }

    fn tool(&self, name: &str) -> Command {
        let path = format!("{}:{}", root().join("target/croft/bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(name);
        command.env("PATH", path).env("KUBECONFIG", self.folder.join("kubeconfig")).current_dir(root());
        command
    }

    /// `helm VERB croft …`, with what is needed to come up at all.
    fn helm(&self, verb: &str, chart: &Path) {
        let mut command = self.tool("helm");
        command.args([verb, "croft"]).arg(chart).args(["--namespace", NAMESPACE, "--values", "e2e/values.yaml"]);
        succeeds(&mut command);
    }

    fn kubectl(&self, arguments: &[&str]) -> Output {
        self.tool("kubectl").args(arguments).output().unwrap()
    }

    fn get(&self, arguments: &[&str]) -> Value {
        let got = succeeds(self.tool("kubectl").arg("get").args(arguments).args(["--output", "json"]));
        serde_json::from_slice(&got.stdout).unwrap()
    }

    /// Whether the kind of tenants has the field.
    fn has_field(&self) -> bool {
        let kind = self.get(&["crd", "agenttenants.croft.dev"]);
        !fields(&kind["spec"]["versions"][0])[FIELD].is_null()
    }

    fn has_policies(&self) -> bool {
        let policies = self.get(&["validatingadmissionpolicies"]);
        policies["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|policy| policy["metadata"]["name"].to_string().contains("croft"))
    }

    /// The tenant that was applied at first, and not another of its name.
    fn tenant(&self) -> String {
        self.get(&["agenttenant", "kept"])["metadata"]["uid"].as_str().unwrap().to_owned()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.cluster("down");
    }
}

fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
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
    succeeds(Command::new("cp").arg("--recursive").arg(root().join("charts/croft")).arg(&folder));
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
    let plane = ControlPlane::up();
    let (older, chart) = (older(), root().join("charts/croft"));
    succeeds(plane.tool("kubectl").args(["create", "namespace", NAMESPACE]));
    plane.helm("install", &older);
    assert!(!plane.has_field() && plane.has_policies());
    let manifest = root().join("target/croft-chart/tenant.yaml");
    let tenant = "apiVersion: croft.dev/v1alpha1\nkind: AgentTenant\nmetadata: { name: kept }\nspec: { tier: free }\n";
    std::fs::write(&manifest, tenant).unwrap();
    // The kinds are served a moment after they are there.
    for kind in ["agenttenants", "agentsessions"] {
        let kind = format!("crd/{kind}.croft.dev");
        succeeds(plane.tool("kubectl").args(["wait", &kind, "--for=condition=Established", "--timeout=30s"]));
    }
    succeeds(plane.tool("kubectl").arg("apply").arg("--filename").arg(&manifest));
    let uid = plane.tenant();

    plane.helm("upgrade", &chart);
    assert!(plane.has_field(), "the kinds are upgraded with the rest");
    assert_eq!(plane.tenant(), uid);
    let told = plane.kubectl(&[
        "patch",
        "agenttenant",
        "kept",
        "--type=merge",
        "--patch",
        r#"{"spec":{"deletionPolicy":"Archive"}}"#,
    ]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));

    succeeds(plane.tool("helm").args(["rollback", "croft", "1", "--namespace", NAMESPACE]));
    assert!(!plane.has_field(), "they go back with the rest");
    assert_eq!(plane.tenant(), uid);
    plane.helm("upgrade", &chart);

    succeeds(plane.tool("helm").args(["uninstall", "croft", "--namespace", NAMESPACE]));
    assert!(plane.has_field() && !plane.has_policies(), "the kinds stay, and nothing else");
    assert_eq!(plane.tenant(), uid);
    assert!(!plane.kubectl(&["get", "clusterrole", "croft-operator"]).status.success());

    plane.helm("install", &chart);
    assert!(plane.has_field() && plane.has_policies());
    assert_eq!(plane.tenant(), uid, "the kinds that stayed are taken over, with all that is in them");
    std::fs::remove_dir_all(older).unwrap();
}
