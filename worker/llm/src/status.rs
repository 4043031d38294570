//! What an HTTP status says by itself of a refused call, where the body says nothing more.

use crate::error::Class;

pub(crate) fn class(status: u16) -> Class {
    match status {
        401 | 403 => Class::Auth,
        402 => Class::Quota,
        // The last is a proxy's word for a provider that was silent:
        // <https://developers.cloudflare.com/support/troubleshooting/http-status-codes/cloudflare-5xx-errors/error-524/>
        408 | 504 | 524 => Class::Timeout,
        413 => Class::Context,
        429 => Class::Rate,
        // A conflict passes, say the providers' own SDKs. A body that tells of an error under a status that says all is
        // well is the provider's fault until it is known to be ours.
        200 | 409 | 500.. => Class::Overload,
        _ => Class::Invalid,
    }
}

/// What stands in for a message that was not given.
pub(crate) fn message(status: u16) -> String {
    format!("answered with HTTP status {status}")
}
