//! Rows of usage as CSV: <https://www.rfc-editor.org/rfc/rfc4180>.

use croft_proto::v1::{ProviderMode, UsageEvent};

/// The names of the columns.
pub(super) const HEAD: &str = "attempt_id,session_id,agent,provider,model,mode,input_uncached_tokens,cache_read_tokens,\
    cache_write_5m_tokens,cache_write_1h_tokens,output_tokens,reasoning_tokens,cost_usd,latency_ms,finish_reason,error_class,\
    usage_estimated,create_time,service_tier,sender\r\n";

/// One row. Its cost is in dollars, and empty when it is not known; its time is RFC 3339.
pub(super) fn line(row: &UsageEvent) -> String {
    let tokens = row.tokens.unwrap_or_default();
    let time = row.create_time.unwrap_or_default();
    let time = jiff::Timestamp::new(time.seconds, time.nanos).unwrap_or_default();
    let texts = [&row.attempt_id, &row.session_id, &row.agent, &row.provider, &row.model].map(|text| field(text));
    let mode = row.mode().as_str_name().trim_start_matches("PROVIDER_MODE_").to_ascii_lowercase();
    let mode = if row.mode() == ProviderMode::Unspecified { String::new() } else { mode };
    let numbers = [
        tokens.input_uncached_tokens,
        tokens.cache_read_tokens,
        tokens.cache_write_5m_tokens,
        tokens.cache_write_1h_tokens,
        tokens.output_tokens,
        tokens.reasoning_tokens,
    ]
    .map(|number| number.to_string());
    format!(
        "{},{mode},{},{},{},{},{},{},{time},{},{}\r\n",
        texts.join(","),
        numbers.join(","),
        row.cost_nano_usd.map(dollars).unwrap_or_default(),
        row.latency_ms,
        field(&row.finish_reason),
        field(&row.error_class),
        row.usage_estimated,
        field(&row.service_tier),
        field(&row.sender),
    )
}

/// Exact.
fn dollars(nano_usd: i64) -> String {
    let sign = if nano_usd < 0 { "-" } else { "" };
    let nano = nano_usd.unsigned_abs();
    format!("{sign}{}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000)
}

/// Quoted where it must be. What a spreadsheet would take for a formula gets an apostrophe first: names are a tenant's to choose, and
/// who opens the file may be somebody else.
fn field(text: &str) -> String {
    let safe = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() };
    if safe.contains([',', '"', '\r', '\n']) { format!("\"{}\"", safe.replace('"', "\"\"")) } else { safe }
}

#[cfg(test)]
mod tests {
    use croft_proto::Timestamp;
    use croft_proto::v1::TokenUsage;

    use super::*;

    #[test]
    fn a_row_has_a_value_for_each_column() {
        let row = UsageEvent {
            attempt_id: "a".into(),
            session_id: "s".into(),
            agent: "helper".into(),
            provider: "anthropic".into(),
            model: "m".into(),
            tokens: Some(TokenUsage { input_uncached_tokens: 1, output_tokens: 2, ..TokenUsage::default() }),
            cost_nano_usd: Some(1_500_000_001),
            latency_ms: 9,
            finish_reason: "end_turn".into(),
            create_time: Some(Timestamp { seconds: 1_790_000_000, nanos: 500_000_000 }),
            mode: ProviderMode::TenantKey.into(),
            service_tier: "flex".into(),
            sender: "oidc/ada@example.org".into(),
            ..UsageEvent::default()
        };
        let told = line(&row);
        assert_eq!(
            told,
            "a,s,helper,anthropic,m,tenant_key,1,0,0,0,2,0,1.500000001,9,end_turn,,false,2026-09-21T14:13:20.5Z,flex,oidc/ada@example.org\r\n"
        );
        assert_eq!(told.split(',').count(), HEAD.split(',').count());
        assert!(line(&UsageEvent { cost_nano_usd: None, ..row }).contains(",0,,9,"));
    }

    #[test]
    fn what_would_break_a_file_or_run_in_it_does_not() {
        assert_eq!(field("plain"), "plain");
        assert_eq!(field("a,b"), "\"a,b\"");
        assert_eq!(field("say \"hi\"\n"), "\"say \"\"hi\"\"\n\"");
        assert_eq!(field("=1+1"), "'=1+1");
        assert_eq!(field("@cmd,x"), "\"'@cmd,x\"");
    }
}
