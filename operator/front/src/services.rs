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

use crate::error::Error;

const PAGE_SIZE: u32 = 100;
const PAGE_SIZE_MAX: i32 = 1_000;

/// A request's page size, 0 meaning the default.
fn page_size(asked: i32) -> Result<u32, Error> {
    match asked {
        0 => Ok(PAGE_SIZE),
        1..=PAGE_SIZE_MAX => Ok(asked.unsigned_abs()),
        _ => Err(Error::invalid("page_size", format!("is not between 0 and {PAGE_SIZE_MAX}"))),
    }
}
