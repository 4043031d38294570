//! The doors of the front: who may come in where, and with what credential.

use croft_serve::tls::{PeerRole, peer_role};
use tonic::Request;
use tonic::metadata::MetadataMap;

use crate::core::Core;
use crate::error::Error;
use crate::identity::{Call, Identity};

/// Which port a call came in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Clients, with a credential of their tenant.
    Public,
    /// The operator, with its certificate and a token that names the tenant it acts for.
    Internal,
}

impl Door {
    /// The verified caller, who has a role for this call. The tenant of all that follows is this one's.
    pub async fn identify<C: Call>(self, core: &Core, request: &Request<C>) -> Result<Identity, Error> {
        let identity = match self {
            Self::Public => core.authenticator.authenticate_bearer(bearer(request.metadata())?).await?,
            Self::Internal => core.authenticator.authenticate_operator(operators_token(request)?)?,
        };
        identity.may::<C>()?;
        Ok(identity)
    }
}

/// The operator, with a token that names no tenant, since what it asks for concerns all of them.
pub fn for_all<T>(core: &Core, request: &Request<T>) -> Result<(), Error> {
    core.authenticator.authenticate_for_all(operators_token(request)?)
}

/// The operator, with a token that names a tenant that is to be removed, whether or not this front knows it.
pub fn for_removal<T>(core: &Core, request: &Request<T>) -> Result<Identity, Error> {
    core.authenticator.authenticate_removal(operators_token(request)?)
}

/// The bearer token of a call that came with the operator's certificate.
fn operators_token<T>(request: &Request<T>) -> Result<&str, Error> {
    match peer_role(request) {
        Some(PeerRole::Operator) => bearer(request.metadata()),
        _ => Err(Error::Forbidden { action: "calling the internal port" }),
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
