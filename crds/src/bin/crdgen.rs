//! Writes the custom resource definitions to `crds/yaml` and into the chart.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    croft_crds::generate::write(&root)
}
