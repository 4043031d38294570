//! The doors of the front: who may come in where, and with what credential.

use croft_serve::tls::{PeerRole, peer_role};
use tonic::Request;
use tonic::metadata::MetadataMap;

use crate::core::Core;
use crate::error::Error;
use crate::identity::Identity;

/// Which port a call came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Clients, with a credential of their tenant.
    Public,
    /// The operator, with its certificate and a token that names the tenant it acts for.
    Internal,
}

impl Door {
    /// The verified caller. The tenant of all that follows is this one's.
    pub async fn identify<T>(self, core: &Core, request: &Request<T>) -> Result<Identity, Error> {
        let token = bearer(request.metadata())?;
        match self {
            Self::Public => core.authenticator.authenticate_bearer(token).await,
            Self::Internal => match peer_role(request) {
                Some(PeerRole::Operator) => core.authenticator.authenticate_operator(token),
                _ => Err(Error::Forbidden { action: "calling the internal port" }),
            },
        }
    }
}

fn bearer(metadata: &MetadataMap) -> Result<&str, Error> {
    let missing = Error::Unauthenticated { problem: "the authorization header is missing" };
    let header = metadata.get("authorization").ok_or(missing)?;
    let token = header.to_str().ok().and_then(|text| text.split_once(' '));
    match token {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(Error::Unauthenticated { problem: "the authorization header is not `Bearer …`" }),
    }
}
