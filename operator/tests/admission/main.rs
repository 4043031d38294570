//! The corpus of croft-crds at a real API server: what it must refuse, with the sentence that a person gets, and what it
//! must take.

mod api;
#[path = "../../../crds/tests/corpus/mod.rs"]
mod corpus;
#[path = "../cluster/kinds.rs"]
mod kinds;
mod objects;
mod policies;
