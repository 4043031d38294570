//! UsageService.

mod csv;

use std::pin::Pin;
use std::sync::Arc;

use croft_proto::Timestamp;
use croft_proto::id::TenantId;
use croft_proto::v1::usage_service_server::UsageService;
use croft_proto::v1::{
    ExportUsageRequest, ExportUsageResponse, ListUsageEventsRequest, ListUsageEventsResponse, SummarizeUsageRequest,
    SummarizeUsageResponse, UsageDimension,
};
use croft_serve::grpc::UnremarkableOnce;
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, stream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::PAGE_SIZE;
use crate::core::Core;
use crate::door::Door;
use crate::error::Error;
use crate::leaving::goodbye;
use crate::seats::Seat;
use crate::session::validate;
use crate::usage::{GROUPS_MAX, Selection};

/// The service, on the public port.
#[derive(Clone)]
pub struct Usage {
    core: Arc<Core>,
}

impl Usage {
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl UsageService for Usage {
    type ExportUsageStream = Pin<Box<dyn Stream<Item = Result<ExportUsageResponse, Status>> + Send>>;

    async fn list_usage_events(
        &self,
        request: Request<ListUsageEventsRequest>,
    ) -> Result<Response<ListUsageEventsResponse>, Status> {
        let identity = Door::Public.identify(&self.core, &request).await?;
        let request = request.into_inner();
        let session = match request.session_id.as_str() {
            "" => None,
            text => Some(validate::session_id(text)?),
        };
        let limit = validate::page_size(request.page_size, PAGE_SIZE)?;
        validate::printable("page_token", &request.page_token)?;
        let after = Some(request.page_token.as_str()).filter(|token| !token.is_empty());
        let mut usage_events = self
            .core
            .reads
            .one(identity.tenant, self.core.stores.usage.list(identity.tenant, session, None, after, limit + 1))
            .await?;
        let more = usage_events.len() > limit as usize;
        usage_events.truncate(limit as usize);
        let next_page_token = match usage_events.last() {
            Some(last) if more => last.attempt_id.clone(),
            _ => String::new(),
        };
        Ok(Response::new(ListUsageEventsResponse { usage_events, next_page_token }))
    }

    async fn summarize_usage(
        &self,
        request: Request<SummarizeUsageRequest>,
    ) -> Result<Response<SummarizeUsageResponse>, Status> {
        let identity = Door::Public.identify(&self.core, &request).await?;
        let request = request.into_inner();
        let group_by: Vec<_> = request.group_by().collect();
        if group_by.contains(&UsageDimension::Unspecified) {
            return Err(Error::invalid("group_by", "has an unknown dimension").into());
        }
        if (1..group_by.len()).any(|place| group_by[..place].contains(&group_by[place])) {
            return Err(Error::invalid("group_by", "has a dimension twice").into());
        }
        validate::time("start_time", request.start_time)?;
        validate::time("end_time", request.end_time)?;
        let usage = &self.core.stores.usage;
        let bound = |time: Option<Timestamp>| time.map(|time| up_to_the_microsecond((time.seconds, time.nanos)));
        let (start, end) = (bound(request.start_time), bound(request.end_time));
        let look = usage.summarize(identity.tenant, Selection { agent: None, start, end }, &group_by);
        let summaries = self.core.reads.one(identity.tenant, look).await?;
        if summaries.len() > GROUPS_MAX {
            let problem = format!("comes to more than {GROUPS_MAX} groups: ask for a shorter time or fewer dimensions");
            return Err(Error::invalid("group_by", problem).into());
        }
        Ok(Response::new(SummarizeUsageResponse { summaries }))
    }

    async fn export_usage(
        &self,
        request: Request<ExportUsageRequest>,
    ) -> Result<Response<Self::ExportUsageStream>, Status> {
        let tenure = Door::Public.admit(&self.core, &request).await?;
        let tenant = tenure.identity().tenant;
        let ExportUsageRequest { start_time, end_time } = request.into_inner();
        validate::time("start_time", start_time)?;
        validate::time("end_time", end_time)?;
        let span = [start_time, end_time].map(|time| time.map(|time| (time.seconds, time.nanos)));
        let seat = self.core.seats.take(tenant)?;
        let export = Export { core: Arc::clone(&self.core), tenant, span, after: None };
        let stopping = self.core.tasks.stopping();
        let admission = Admission { ended: tenure.ended().boxed(), stopping: stopping.clone(), _seat: seat };
        let pieces = stream::try_unfold((Some(export), admission), |(export, mut admission)| async move {
            let Some(export) = export else { return Ok(None) };
            let piece = admission.lasts(export.piece()).await?;
            Ok::<_, Status>(piece.map(|(piece, rest)| (piece, (rest, admission))))
        });
        let mut answer: Response<Self::ExportUsageStream> = Response::new(Box::pin(pieces));
        answer.extensions_mut().insert(UnremarkableOnce(stopping));
        Ok(answer)
    }
}

/// What an export needs to go on: its credential, this replica, and a seat among the tenant's streams.
struct Admission {
    ended: BoxFuture<'static, ()>,
    stopping: CancellationToken,
    _seat: Seat,
}

impl Admission {
    /// What `work` comes to, unless the export must end before.
    async fn lasts<T>(&mut self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = &mut self.ended => Err(Error::Unauthenticated { problem: "the credential that the export was begun with is good no more" }),
            () = self.stopping.cancelled() => Err(goodbye()),
            outcome = work => outcome,
        }
    }
}

/// Rows that are read, and told, at a time.
const PIECE: u32 = 1_000;

/// An export on its way: a page after the other, so that it takes little room however long it is.
struct Export {
    core: Arc<Core>,
    tenant: TenantId,
    /// From, and until, in seconds and nanoseconds.
    span: [Option<(i64, i32)>; 2],
    /// The last row that was told.
    after: Option<String>,
}

impl Export {
    /// The next piece, and what comes behind it.
    async fn piece(mut self) -> Result<Option<(ExportUsageResponse, Option<Self>)>, Error> {
        let is_first = self.after.is_none();
        let [start, end] = self.span;
        let before = end.map(up_to_the_microsecond);
        let look = self.core.stores.usage.list(self.tenant, None, before, self.after.as_deref(), PIECE);
        let reads = &self.core.reads;
        let rows = if is_first { reads.one(self.tenant, look).await? } else { reads.next(self.tenant, look).await? };
        let mut text = if is_first { csv::HEAD.to_owned() } else { String::new() };
        let mut is_last = rows.len() < PIECE as usize;
        self.after = rows.last().map(|row| row.attempt_id.clone()).or(self.after);
        for row in &rows {
            let time = row.create_time.map(|time| (time.seconds, time.nanos)).unwrap_or_default();
            // Newest first: all that follow are older still.
            if start.is_some_and(|start| time < start) {
                is_last = true;
                break;
            }
            if end.is_none_or(|end| time < end) {
                text.push_str(&csv::line(row));
            }
        }
        Ok(Some((ExportUsageResponse { csv: text }, (!is_last).then_some(self))))
    }
}

/// As the ledger keeps times; rounded up, so that what is at or behind it is so in whatever way it is looked for.
fn up_to_the_microsecond((seconds, nanos): (i64, i32)) -> Timestamp {
    match nanos % 1_000 {
        0 => Timestamp { seconds, nanos },
        _ if nanos >= 999_999_000 => Timestamp { seconds: seconds.saturating_add(1), nanos: 0 },
        rest => Timestamp { seconds, nanos: nanos - rest + 1_000 },
    }
}
