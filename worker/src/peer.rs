//! Who may call: the front, by its certificate, and nobody else.

use croft_serve::tls::{PeerRole, peer_role};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Lets the front through. Without a certificate a call is `UNAUTHENTICATED`, with another's `PERMISSION_DENIED`.
#[derive(Debug, Clone, Copy)]
pub struct FrontOnly {
    demanded: bool,
}

impl FrontOnly {
    /// `demanded: false` lets everyone through: for a transport that only the caller can reach.
    pub fn new(demanded: bool) -> Self {
        Self { demanded }
    }
}

impl Interceptor for FrontOnly {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        if !self.demanded {
            return Ok(request);
        }
        if request.peer_certs().is_none_or(|certificates| certificates.is_empty()) {
            return Err(Status::unauthenticated("this call needs the front's certificate"));
        }
        match peer_role(&request) {
            Some(PeerRole::Front) => Ok(request),
            Some(PeerRole::Operator | PeerRole::Worker { .. }) | None => {
                Err(Status::permission_denied("this certificate may not call a worker"))
            }
        }
    }
}
