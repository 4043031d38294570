//! What the API server noted: who asked for what, without the bodies.

use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// The API server's audit log. It is written before the answer goes out, so a look after a call sees the call.
#[derive(Debug, Clone)]
pub struct Audit {
    path: PathBuf,
}

/// A place in the log.
#[derive(Debug, Clone, Copy)]
pub struct Place(u64);

/// One request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub user: String,
    /// The id of the token that it came with; empty for one who came with another credential.
    pub credential: String,
    pub verb: String,
    /// Such as `agentsessions/status`.
    pub resource: String,
    pub code: u64,
}

impl Audit {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The end of the log as it is now.
    pub fn end(&self) -> anyhow::Result<Place> {
        Ok(Place(std::fs::metadata(&self.path).context("the audit log is not there")?.len()))
    }

    /// What was answered since. Fails if the log has been rotated, for then part of it is elsewhere.
    pub fn since(&self, place: Place) -> anyhow::Result<Vec<Entry>> {
        let mut file = std::fs::File::open(&self.path).context("the audit log is not there")?;
        ensure!(file.metadata()?.len() >= place.0, "the audit log was rotated during a measure");
        file.seek(SeekFrom::Start(place.0))?;
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        Ok(lines.filter_map(|line| entry(&line)).collect())
    }
}

impl Entry {
    /// Whether it may have changed anything beside the lease of an election.
    pub fn is_write(&self) -> bool {
        matches!(self.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection")
            && self.resource != "leases"
    }
}

fn entry(line: &str) -> Option<Entry> {
    let value: Value = serde_json::from_str(line).ok()?;
    if value["stage"] != "ResponseComplete" {
        return None;
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (resource, subresource) = (text(&value["objectRef"]["resource"]), text(&value["objectRef"]["subresource"]));
    Some(Entry {
        user: text(&value["user"]["username"]),
        credential: text(&value["user"]["extra"]["authentication.kubernetes.io/credential-id"][0]),
        verb: text(&value["verb"]),
        resource: if subresource.is_empty() { resource } else { format!("{resource}/{subresource}") },
        code: value["responseStatus"]["code"].as_u64().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answered_requests_are_read_and_writes_told_apart() {
        let line = r#"{"stage":"ResponseComplete","verb":"patch","user":{"username":"heron",
            "extra":{"authentication.kubernetes.io/credential-id":["JTI=plum"]}},
            "objectRef":{"resource":"agentsessions","subresource":"status"},"responseStatus":{"code":200}}"#;
        let read = entry(line).unwrap();
        assert_eq!((read.user.as_str(), read.resource.as_str(), read.code), ("heron", "agentsessions/status", 200));
        assert_eq!(read.credential, "JTI=plum");
        assert!(read.is_write());
        assert!(!Entry { resource: "leases".into(), ..read.clone() }.is_write());
        assert!(!Entry { verb: "watch".into(), ..read }.is_write());
        assert_eq!(entry(r#"{"stage":"ResponseStarted"}"#), None);
    }
}
