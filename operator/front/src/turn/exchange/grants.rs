//! Grants of model calls, between the worker that asks for them and the purse that gives them.

use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{ExecuteStepRequest, GrantRefused, GrantRequest, Model};
use futures::FutureExt;
use tokio::sync::mpsc;

use super::{Exchange, send};
use crate::error::Error;
use crate::models::takeover;
use crate::turn::purse::Told;

impl Exchange<'_> {
    /// Refuses a grant at once, or asks budgets and rates for it.
    pub(super) async fn grant(&mut self, request: GrantRequest, outgoing: &mpsc::Sender<ExecuteStepRequest>) {
        let refused = match self.core.models.get(&request.model) {
            Ok(model) => {
                let Some(refused) = self.unfit(&model, &request) else {
                    let purse = self.recorder.purse().clone();
                    self.asking.push(purse.grant(request, model).boxed());
                    return;
                };
                refused
            }
            Err(error) => GrantRefused {
                request_id: request.request_id,
                reason: "MODEL_UNKNOWN".to_owned(),
                message: error.to_string(),
            },
        };
        send(outgoing, ToWorker::GrantRefused(refused)).await;
    }

    /// Passes on what budgets and rates have said.
    pub(super) async fn answer(
        &mut self,
        told: Told,
        outgoing: &mpsc::Sender<ExecuteStepRequest>,
    ) -> Result<(), Error> {
        match told {
            Told::Granted { request, routed, grant } => {
                if let Some(routed) = routed {
                    let input_seq = self.input_seq.take();
                    self.recorder.store(vec![Kind::ModelRouted(routed)], None, input_seq).await?;
                }
                self.granted.give(&request, grant.clone());
                send(outgoing, ToWorker::Grant(grant)).await;
            }
            Told::Refused(refused) => send(outgoing, ToWorker::GrantRefused(refused)).await,
            Told::Reached(reached, refused) => {
                let input_seq = self.input_seq.take();
                self.recorder.store(vec![Kind::BudgetReached(reached)], None, input_seq).await?;
                match refused {
                    Some(refused) => send(outgoing, ToWorker::GrantRefused(refused)).await,
                    None => self.is_out_of_budget = true,
                }
            }
            Told::Nothing => {}
        }
        Ok(())
    }

    /// The refusal of a model that can't take over from the one that failed.
    fn unfit(&self, model: &Model, request: &GrantRequest) -> Option<GrantRefused> {
        let from = request.takeover.as_ref().and_then(|takeover| self.core.models.get(&takeover.from_model).ok());
        let why = takeover::unfit(model, from.as_deref(), request)?;
        let message = format!("model {} {why}", model.model_id);
        tracing::info!(model = model.model_id, why, "can't take over");
        Some(GrantRefused { request_id: request.request_id.clone(), reason: "MODEL_UNFIT".to_owned(), message })
    }
}
