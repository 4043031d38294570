//! Grants of model calls, between the worker that asks for them and the purse that gives them.

use croft_proto::v1::execute_step_request::Message as ToWorker;
use croft_proto::v1::session_event::Kind;
use croft_proto::v1::{GrantRefused, GrantRequest, Model};
use futures::FutureExt;

use super::Exchange;
use super::outgoing::Outgoing;
use crate::error::Error;
use crate::models::takeover;
use crate::turn::purse::Told;

impl Exchange<'_> {
    /// Refuses a grant at once, or asks budgets and rates for it.
    pub(super) fn grant(&mut self, request: GrantRequest, outgoing: &mut Outgoing) {
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
        outgoing.tell(ToWorker::GrantRefused(refused));
    }

    /// Passes on what budgets and rates have said.
    pub(super) async fn answer(&mut self, told: Told, outgoing: &mut Outgoing) -> Result<(), Error> {
        match told {
            Told::Granted { request, routed, grant } => {
                if let Some(routed) = routed {
                    let input_seq = self.input_seq.take();
                    self.recorder.store(vec![Kind::ModelRouted(routed)], None, input_seq).await?;
                }
                self.recorder.granted.give(&request, grant.clone());
                outgoing.tell(ToWorker::Grant(grant));
            }
            Told::Refused(refused) => outgoing.tell(ToWorker::GrantRefused(refused)),
            Told::Reached(reached, refused) => {
                let input_seq = self.input_seq.take();
                self.recorder.store(vec![Kind::BudgetReached(reached)], None, input_seq).await?;
                match refused {
                    Some(refused) => outgoing.tell(ToWorker::GrantRefused(refused)),
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
