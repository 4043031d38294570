//! What anybody may ask without saying who he is, health and reflection: a few bytes, and soon.

use std::time::Duration;

use axum::body::Body;
use futures::StreamExt as _;
use futures::stream::try_unfold;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

/// Of all that one such call says. Somebody who lists everything by reflection says some hundreds.
pub(crate) const BYTES_MAX: usize = 4 * 1024;
/// From its head to its end.
const READ_MAX: Duration = Duration::from_secs(10);

/// The same request as it comes. It breaks off with `OUT_OF_RANGE` beyond so many bytes, and with `DEADLINE_EXCEEDED` when it has
/// not ended in time.
pub(crate) fn bounded(body: Body) -> Body {
    let until = Instant::now() + READ_MAX;
    Body::from_stream(try_unfold((body.into_data_stream(), 0), move |(mut chunks, read)| async move {
        let late = |_| Status::deadline_exceeded(format!("the request did not end within {} s", READ_MAX.as_secs()));
        let Some(chunk) = timeout_at(until, chunks.next()).await.map_err(late)? else { return Ok(None) };
        let chunk = chunk.map_err(|error| Status::cancelled(format!("the request broke off: {error}")))?;
        let read = read + chunk.len();
        if read > BYTES_MAX {
            return Err(Status::out_of_range(format!("the request is larger than {BYTES_MAX} bytes")));
        }
        Ok(Some((chunk, (chunks, read))))
    }))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use axum::body::{Bytes, to_bytes};
    use tonic::Code;

    use super::*;

    async fn refused(body: Body) -> Code {
        let error = to_bytes(bounded(body), usize::MAX).await.expect_err("it is read");
        let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            if let Some(status) = error.downcast_ref::<Status>() {
                return status.code();
            }
            cause = error.source();
        }
        panic!("{error:?}")
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_read_to_its_end_and_no_further_than_its_bounds() {
        let most = Bytes::from(vec![7; BYTES_MAX]);
        assert_eq!(to_bytes(bounded(Body::from(most.clone())), usize::MAX).await.unwrap(), most);
        let piece = Ok::<_, std::io::Error>(most);
        let more = futures::stream::iter([piece, Ok(Bytes::from_static(b"7"))]);
        assert_eq!(refused(Body::from_stream(more)).await, Code::OutOfRange);
        let first = Ok::<_, std::io::Error>(Bytes::from_static(b"\0"));
        let endless = futures::stream::iter([first]).chain(futures::stream::pending());
        assert_eq!(refused(Body::from_stream(endless)).await, Code::DeadlineExceeded);
    }
}
