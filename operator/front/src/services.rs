//! The smaller services: what was used, what there is to use, and who did what, which only read; what may be spent; and what
//! the operator asks about its tenants.

mod audit;
mod budgets;
mod models;
mod tenants;
mod usage;

pub use audit::Audit;
pub use budgets::Budgets;
pub use models::Models;
pub use tenants::Tenants;
pub use usage::Usage;

/// Of a page of usage or of audit records whose caller names no size.
const PAGE_SIZE: u32 = 100;
