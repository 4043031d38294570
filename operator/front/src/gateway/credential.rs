//! Where an HTTP request carries its credential. Browsers can set no header on an `EventSource` or a WebSocket, so there are other
//! places: the query, and the list of WebSocket protocols.

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use secrecy::{ExposeSecret, SecretString};

use super::{Gateway, Opens, Shared};
use crate::error::Error;
use crate::identity::{Call, NEEDED, Tenure};

/// Before a token among the WebSocket protocols.
const PROTOCOL_PREFIX: &str = "bearer.";

/// A bearer token, not yet verified.
pub(super) struct Credential {
    token: SecretString,
}

impl Credential {
    /// The `authorization` header wins over the protocols, and those over `access_token` of the query.
    pub(super) fn find(headers: &HeaderMap, access_token: Option<String>) -> Result<Self, Error> {
        let missing = Error::Unauthenticated { problem: NEEDED };
        let token = match headers.get(AUTHORIZATION) {
            Some(header) => header.to_str().ok().and_then(bearer).map(str::to_owned),
            None => protocols(headers)
                .find_map(|protocol| protocol.strip_prefix(PROTOCOL_PREFIX).map(str::to_owned))
                .or(access_token),
        };
        token.map(|token| Self { token: token.into() }).ok_or(missing)
    }

    /// Whose it is, and for how long. To open a stream is a call of the tenant's, which has so many in a minute, or is resumed, which it may
    /// do more often.
    pub(super) async fn admit<C: Call>(self, shared: &Shared, opens: Opens) -> Result<Tenure, Error> {
        let Gateway { authenticator, calls, options, .. } = &shared.gateway;
        let identity = authenticator.authenticate_bearer(self.token.expose_secret()).await?;
        identity.may::<C>()?;
        calls.limit(&identity, opens).await?;
        Ok(Tenure::of_token(authenticator.clone(), identity, self.token, options.recheck_every))
    }
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|header| header.to_str().ok())
        .flat_map(|header| header.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn found(headers: &[(HeaderName, &'static str)], access_token: Option<&str>) -> Option<String> {
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        let credential = Credential::find(&headers, access_token.map(str::to_owned)).ok()?;
        Some(credential.token.expose_secret().to_owned())
    }

    #[test]
    fn a_token_is_found_in_each_of_its_places_in_order() {
        let header = (AUTHORIZATION, "bearer ck_header");
        let protocol = (SEC_WEBSOCKET_PROTOCOL, "croft.v1, bearer.ck_protocol");
        assert_eq!(found(&[header.clone(), protocol.clone()], Some("ck_query")).unwrap(), "ck_header");
        assert_eq!(found(&[protocol], Some("ck_query")).unwrap(), "ck_protocol");
        assert_eq!(found(&[], Some("ck_query")).unwrap(), "ck_query");
        assert_eq!(found(&[], None), None);
    }

    #[test]
    fn a_header_that_is_no_bearer_is_not_made_good_by_the_query() {
        assert_eq!(found(&[(AUTHORIZATION, "Basic Y2s6Y2s=")], Some("ck_query")), None);
    }
}
