-- What models used and cost: one row for each attempt, written with the event that reports it. Rows outlive their session,
-- as bills do, so nothing here refers to one.
create table llm_usage_events (
    tenant_id uuid not null references tenants,
    -- Unique for all time, and kept so within the tenant: across tenants one could tell, or forestall, another's.
    attempt_id text collate "C" not null,
    session_id uuid not null,
    agent text collate "C" not null,
    provider text collate "C" not null,
    model text collate "C" not null,
    -- Whose key paid: `platform`, or one of the tenant's own ways.
    mode text collate "C" not null default 'platform',
    input_uncached_tokens bigint not null,
    cache_read_tokens bigint not null,
    cache_write_5m_tokens bigint not null,
    cache_write_1h_tokens bigint not null,
    output_tokens bigint not null,
    reasoning_tokens bigint not null,
    -- Billionths of a US dollar; null when the price is unknown.
    cost_nano_usd bigint,
    latency_ms bigint not null,
    finish_reason text not null,
    error_class text not null,
    usage_estimated boolean not null,
    create_time timestamptz not null,
    primary key (tenant_id, attempt_id)
);

create index llm_usage_events_newest on llm_usage_events (tenant_id, create_time, attempt_id);
create index llm_usage_events_session on llm_usage_events (tenant_id, session_id, create_time, attempt_id);

-- What may be spent in a calendar month (UTC).
create table budgets (
    tenant_id uuid not null references tenants,
    scope text not null check (scope in ('tenant', 'agent', 'session')),
    -- The agent's name or the session's id; empty for the tenant.
    subject text collate "C" not null default '',
    -- Billionths of a US dollar.
    limit_nano_usd bigint not null check (limit_nano_usd >= 0),
    update_time timestamptz not null default now(),
    primary key (tenant_id, scope, subject)
);

alter table llm_usage_events enable row level security;
alter table llm_usage_events force row level security;
alter table budgets enable row level security;
alter table budgets force row level security;

create policy one_tenant on llm_usage_events to croft_request
    using (tenant_id = croft_tenant()) with check (tenant_id = croft_tenant());
create policy one_tenant on budgets to croft_request
    using (tenant_id = croft_tenant()) with check (tenant_id = croft_tenant());
create policy any_tenant on llm_usage_events for insert to croft_writer with check (true);

-- A row of usage is never changed.
grant select, insert on llm_usage_events to croft_request;
grant select, insert, update, delete on budgets to croft_request;
grant insert on llm_usage_events to croft_writer;
