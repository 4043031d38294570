//! The calls that a front makes of a worker. What a worker answers is counted before it is decoded: its tenant runs it, and in somebody
//! else's hands a few megabytes of empty parts would be as many gigabytes of values.

use std::marker::PhantomData;

use axum::http::uri::PathAndQuery;
use bytes::Buf as _;
use croft_proto::conversation::MESSAGE_BYTES_MAX;
use croft_proto::v1::{
    ExecuteStepRequest, ExecuteStepResponse, InitWorkerSessionRequest, InitWorkerSessionResponse,
    RuntimeServiceTerminateSessionRequest, RuntimeServiceTerminateSessionResponse,
};
use croft_serve::trace;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{IntoRequest, IntoStreamingRequest, Request, Response, Status, Streaming};

use crate::intake::shape;

/// Smaller messages are not counted: most are a few words of an answer, and none of so few bytes becomes much.
const SMALL_BYTES: usize = 1024;
/// Of an answer that holds no conversation.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

type Propagate = fn(Request<()>) -> Result<Request<()>, Status>;

/// A client of one worker. Its calls carry the trace that they are made in. An answer of too many parts, or of too many bytes, fails
/// its call, or the step that it is part of.
#[derive(Clone)]
pub struct WorkerClient {
    grpc: Grpc<InterceptedService<Channel, Propagate>>,
}

impl WorkerClient {
    pub(super) fn new(channel: Channel) -> Self {
        let grpc = Grpc::new(InterceptedService::new(channel, trace::propagate as Propagate));
        Self { grpc: grpc.max_encoding_message_size(MESSAGE_BYTES_MAX) }
    }

    /// Makes a session known to the worker.
    pub async fn init_worker_session(
        &mut self,
        request: impl IntoRequest<InitWorkerSessionRequest>,
    ) -> Result<Response<InitWorkerSessionResponse>, Status> {
        self.ask(request, "/croft.v1.RuntimeService/InitWorkerSession").await
    }

    /// Has the worker forget a session.
    pub async fn terminate_session(
        &mut self,
        request: impl IntoRequest<RuntimeServiceTerminateSessionRequest>,
    ) -> Result<Response<RuntimeServiceTerminateSessionResponse>, Status> {
        self.ask(request, "/croft.v1.RuntimeService/TerminateSession").await
    }

    /// Runs one step of a turn.
    pub async fn execute_step(
        &mut self,
        request: impl IntoStreamingRequest<Message = ExecuteStepRequest>,
    ) -> Result<Response<Streaming<ExecuteStepResponse>>, Status> {
        let mut grpc = self.grpc.clone().max_decoding_message_size(MESSAGE_BYTES_MAX);
        grpc.ready().await.map_err(unready)?;
        let path = "/croft.v1.RuntimeService/ExecuteStep";
        grpc.streaming(request.into_streaming_request(), PathAndQuery::from_static(path), Counted::of(path)).await
    }

    async fn ask<Q, A>(&mut self, request: impl IntoRequest<Q>, path: &'static str) -> Result<Response<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc.clone().max_decoding_message_size(ANSWER_BYTES_MAX);
        grpc.ready().await.map_err(unready)?;
        grpc.unary(request.into_request(), PathAndQuery::from_static(path), Counted::of(path)).await
    }
}

fn unready(error: tonic::transport::Error) -> Status {
    Status::from_error(error.into())
}

/// Protobuf, of which what is decoded is counted first.
struct Counted<Q, A> {
    path: &'static str,
    messages: PhantomData<fn(Q) -> A>,
}

impl<Q, A> Counted<Q, A> {
    fn of(path: &'static str) -> Self {
        Self { path, messages: PhantomData }
    }
}

impl<Q: Message + 'static, A: Message + Default + 'static> Codec for Counted<Q, A> {
    type Encode = Q;
    type Decode = A;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::of(self.path)
    }

    fn decoder(&mut self) -> Self {
        Self::of(self.path)
    }
}

impl<Q: Message, A> Encoder for Counted<Q, A> {
    type Item = Q;
    type Error = Status;

    fn encode(&mut self, item: Q, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<Q, A: Message + Default> Decoder for Counted<Q, A> {
    type Item = A;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<A>, Status> {
        let broken = |problem: String| Status::internal(format!("what the worker said {problem}"));
        if buffer.remaining() > SMALL_BYTES {
            // A whole message, which is in one piece.
            shape::answered(self.path, buffer.chunk()).map_err(|problem| broken(problem.to_owned()))?;
        }
        A::decode(buffer).map(Some).map_err(|error| broken(format!("is not to be read: {error}")))
    }
}
