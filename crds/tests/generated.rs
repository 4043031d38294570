//! The YAML that is in the repository is what the types say.

use std::path::Path;

#[test]
fn generated_files_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (path, text) in croft_crds::generate::files() {
        let stored = std::fs::read_to_string(root.join(&path)).unwrap_or_default();
        assert!(stored == text, "{} is stale: run `cargo run -p croft-crds --bin crdgen`", path.display());
    }
}
