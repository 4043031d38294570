//! Times on the wire. sqlx would bring a whole date library for them; all that is needed is a count of microseconds.

use croft_proto::Timestamp;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::{Decode, Encode, Type};

use crate::store::time::{micros, timestamp};

/// `timestamptz` and `timestamptz[]` in `pg_type.dat`.
const TIMESTAMPTZ: PgTypeInfo = PgTypeInfo::with_oid(Oid(1184));
const TIMESTAMPTZ_ARRAY: PgTypeInfo = PgTypeInfo::with_oid(Oid(1185));
/// Postgres counts from the year 2000.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A `timestamptz`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Time(pub Timestamp);

impl Type<sqlx::Postgres> for Time {
    fn type_info() -> PgTypeInfo {
        TIMESTAMPTZ
    }
}

impl PgHasArrayType for Time {
    fn array_type_info() -> PgTypeInfo {
        TIMESTAMPTZ_ARRAY
    }
}

impl Encode<'_, sqlx::Postgres> for Time {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let micros = micros(&self.0).saturating_sub(EPOCH_MICROS);
        Encode::<sqlx::Postgres>::encode_by_ref(&micros, buffer)
    }
}

impl<'row> Decode<'row, sqlx::Postgres> for Time {
    fn decode(value: PgValueRef<'row>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => {
                let micros: i64 = Decode::<sqlx::Postgres>::decode(value)?;
                Ok(Self(timestamp(micros.saturating_add(EPOCH_MICROS))))
            }
            PgValueFormat::Text => Err("a time outside of a prepared statement".into()),
        }
    }
}
