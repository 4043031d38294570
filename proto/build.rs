//! Compiles `croft/v1/*.proto` without `protoc`: to tonic services, to prost messages, and to their JSON mapping.

use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let files = proto_files(Path::new("croft/v1"))?;
    let descriptors = protox::compile(&files, ["."])?;
    let encoded = descriptors.encode_to_vec();
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("croft.v1.descriptors.bin"), &encoded)?;
    let methods: Vec<_> = descriptors
        .file
        .iter()
        .flat_map(|file| file.service.iter().map(move |service| (file.package(), service)))
        .flat_map(|(package, service)| {
            service.method.iter().map(move |method| (package, service.name(), method.name()))
        })
        .map(|(package, service, method)| format!("{package}.{service}/{method}"))
        .collect();
    std::fs::write(out.join("croft.v1.methods.rs"), format!("&{methods:?}"))?;

    tonic_prost_build::configure()
        .bytes(".croft.v1.Image.data")
        .extern_path(".google.protobuf.Timestamp", "::pbjson_types::Timestamp")
        .compile_well_known_types(true)
        .compile_fds(descriptors)?;
    pbjson_build::Builder::new().register_descriptors(&encoded)?.ignore_unknown_fields().build(&[".croft.v1"])?;
    println!("cargo:rerun-if-changed=croft");
    Ok(())
}

fn proto_files(folder: &Path) -> Result<Vec<PathBuf>, std::io::Error> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
