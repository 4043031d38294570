//! The bearer token for a server: the tenant's, or the user's own, where the server takes each user's.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::Path;

use secrecy::SecretString;

use super::McpServer;
use crate::tools::Error;

/// The longest key that a Secret has.
const FILE_NAME_BYTES_MAX: usize = 253;

/// The token that goes to this server for a user; `None` for one that takes none. The error is a sentence for the model, and holds
/// nothing of any token; what went wrong beneath is in the log.
pub(super) fn of(server: &McpServer, user: &str) -> Result<Option<SecretString>, Error> {
    let name = &server.name;
    let (path, missing) = if let Some(folder) = &server.user_tokens_folder {
        let missing =
            format!("The user has no credential of their own for the tool's server {name}; the call was not made.");
        let Some(file) = file_name(user) else {
            tracing::warn!(server = %name, user, "no user's token for an MCP server: no file can have their name");
            return Err(Error(missing));
        };
        (folder.join(file), missing)
    } else if let Some(path) = &server.token_file {
        (path.clone(), format!("The credential for the tool's server {name} is not there."))
    } else {
        return Ok(None);
    };
    let token = read(&path).map_err(|problem| {
        tracing::warn!(server = %name, path = %path.display(), problem, "no token for an MCP server");
        Error(missing)
    })?;
    Ok(Some(token))
}

/// What a user's file is called: their name as in the audit log, with `.` for `/`, and `_` and two hex digits for each byte that is
/// neither that nor a letter, a digit or `-`. No two users share one, and each is a key that a Secret may have.
fn file_name(user: &str) -> Option<String> {
    let mut name = String::with_capacity(user.len());
    for byte in user.bytes() {
        match byte {
            b'/' => name.push('.'),
            byte if byte.is_ascii_alphanumeric() || byte == b'-' => name.push(char::from(byte)),
            // Writing to a text can't fail.
            byte => {
                let _ = write!(name, "_{byte:02x}");
            }
        }
    }
    // What begins with a dot is the folder itself, or of whoever mounted it.
    let is_usable = !name.is_empty() && !name.starts_with('.') && name.len() <= FILE_NAME_BYTES_MAX;
    is_usable.then_some(name)
}

fn read(path: &Path) -> Result<SecretString, &'static str> {
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => "it is not there",
        _ => "it can't be read",
    })?;
    let token = text.trim();
    // It goes into a header; the parser's own error could quote it.
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it is not one line of printable ASCII");
    }
    Ok(SecretString::from(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_user_has_a_file_of_their_own_in_the_folder() {
        for (user, expected) in [
            ("api-key/ck_1a2b3c4d", Some("api-key.ck_5f1a2b3c4d")),
            ("oidc/corp/alice@example.com", Some("oidc.corp.alice_40example_2ecom")),
            ("oidc/corp/alice/example.com", Some("oidc.corp.alice.example_2ecom")),
            ("service-account/tenant-acme/robot", Some("service-account.tenant-acme.robot")),
            ("operator", Some("operator")),
            ("oidc/corp/ä", Some("oidc.corp._c3_a4")),
            ("", None),
            ("//", None),
            ("/data", None),
        ] {
            assert_eq!(file_name(user).as_deref(), expected, "{user}");
        }
        assert_eq!(file_name(&"x".repeat(254)), None);
        assert_ne!(file_name("a/b"), file_name("a.b"));
        assert_ne!(file_name("a_2e"), file_name("a."));
    }
}
