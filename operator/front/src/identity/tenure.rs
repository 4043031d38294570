//! How long a stream may go on: for as long as the credential that opened it is good, and stands for the same caller.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::{Authenticator, Identity};
use crate::error::Error;

/// The right to a stream, by the credential that it was opened with.
#[derive(Clone)]
pub struct Tenure {
    authenticator: Authenticator,
    identity: Identity,
    /// `None` is for whom the connection vouches: it ends with that.
    token: Option<SecretString>,
    recheck_every: Duration,
}

impl Tenure {
    /// Of a caller with a bearer token, that is looked at again so often: a key that is revoked is remembered for half a minute at
    /// most, so that the stream ends that much later than the key.
    pub fn of_token(
        authenticator: Authenticator,
        identity: Identity,
        token: SecretString,
        recheck_every: Duration,
    ) -> Self {
        Self { authenticator, identity, token: Some(token), recheck_every }
    }

    /// Of the operator, whose certificate the connection was opened with; its tokens are for single calls, and short.
    pub fn of_connection(authenticator: Authenticator, identity: Identity) -> Self {
        Self { authenticator, identity, token: None, recheck_every: Duration::MAX }
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Resolves once the credential is good no more, or has other roles than it had. While nobody can say, it holds.
    pub async fn ended(self) {
        let Some(token) = self.token else { return std::future::pending().await };
        loop {
            tokio::time::sleep(self.recheck_every).await;
            // Seldom, and larger than all else that a stream waits with.
            match Box::pin(self.authenticator.authenticate_bearer(token.expose_secret())).await {
                Ok(now) if now != self.identity => return,
                Err(Error::Unauthenticated { .. } | Error::Forbidden { .. }) => return,
                Ok(_) | Err(_) => {}
            }
        }
    }
}
