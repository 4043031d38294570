-- Budgets for a tenant, its agents and its sessions, over a day, a month (UTC) and for life, in money and in tokens; what the
-- ledger says of each of them without adding up its rows; and which of their thresholds were told of.

alter table budgets drop constraint budgets_pkey;
alter table budgets add column period text not null default 'month' check (period in ('day', 'month', 'life'));
alter table budgets add column limit_tokens bigint check (limit_tokens >= 0);
alter table budgets add column action text not null default 'block' check (action in ('block', 'throttle', 'warn'));
alter table budgets alter column limit_nano_usd drop not null;
alter table budgets add check (limit_nano_usd is not null or limit_tokens is not null);
alter table budgets add primary key (tenant_id, scope, subject, period);

-- Sums of the ledger, which grow with it in the same transaction. Each connection counts in a row of its own, more or less: in a
-- single one, all attempts of a tenant would wait for each other's commits. Their sum is what counts.
create table usage_counters (
    tenant_id uuid not null references tenants,
    scope text not null check (scope in ('tenant', 'agent')),
    -- The agent's name; empty for the tenant.
    subject text collate "C" not null,
    -- A day as `2026-11-25`, a month as `2026-11`, or `life`, in UTC.
    period text collate "C" not null,
    slot int not null,
    -- Grows with every change: of two sums, the one with the larger number of changes is the newer.
    changes bigint not null,
    nano_usd bigint not null,
    tokens bigint not null,
    primary key (tenant_id, scope, subject, period, slot)
) with (fillfactor = 50);

create function croft_periods(moment timestamptz) returns text[]
    language sql stable parallel safe
    return array[
        to_char(moment at time zone 'utc', 'YYYY-MM-DD'), to_char(moment at time zone 'utc', 'YYYY-MM'), 'life'
    ];

insert into usage_counters (tenant_id, scope, subject, period, slot, changes, nano_usd, tokens)
    select u.tenant_id, s.scope, s.subject, p.period, 0, count(*), coalesce(sum(u.cost_nano_usd), 0),
        sum(u.input_uncached_tokens + u.cache_read_tokens + u.cache_write_5m_tokens + u.cache_write_1h_tokens + u.output_tokens)
    from llm_usage_events u
    cross join lateral (values ('tenant', ''), ('agent', u.agent)) as s (scope, subject)
    cross join lateral unnest(croft_periods(u.create_time)) as p (period)
    group by u.tenant_id, s.scope, s.subject, p.period;

-- How often what a session's attempts cost was reckoned anew: with `attempts`, the version of its totals.
alter table sessions add column usage_revisions bigint not null default 0;

-- That a threshold of a budget was reached, once for each limit that it had, and who was told: the session whose attempt it was has
-- an event of it.
create table budget_alerts (
    tenant_id uuid not null references tenants,
    scope text not null,
    subject text collate "C" not null,
    period text collate "C" not null,
    unit text not null check (unit in ('nano_usd', 'tokens')),
    limit_amount bigint not null,
    percent int not null,
    spent_amount bigint not null,
    session_id uuid not null,
    create_time timestamptz not null default now(),
    -- When the session was told; null while it was not.
    tell_time timestamptz,
    primary key (tenant_id, scope, subject, period, unit, limit_amount, percent)
);

create index budget_alerts_untold on budget_alerts (create_time) where tell_time is null;

alter table usage_counters enable row level security;
alter table usage_counters force row level security;
alter table budget_alerts enable row level security;
alter table budget_alerts force row level security;

create policy one_tenant on usage_counters to croft_request
    using (tenant_id = croft_tenant()) with check (tenant_id = croft_tenant());
create policy one_tenant on budget_alerts to croft_request
    using (tenant_id = croft_tenant()) with check (tenant_id = croft_tenant());
-- For the function below, which runs as the owner.
create policy owner_looks on budget_alerts for select to current_user using (true);

grant select, insert, update on usage_counters, budget_alerts to croft_request;

-- Tenants with alerts that nobody was told of for so long: whoever found them has failed before it could.
create function croft_untold_alerts(older_than interval, rows_max bigint) returns setof uuid
    language sql stable security definer set search_path = public, pg_temp
    as $$
        select distinct a.tenant_id from budget_alerts a
        where a.tell_time is null and a.create_time < now() - older_than
        limit rows_max
    $$;

revoke execute on function croft_untold_alerts(interval, bigint) from public;
grant execute on function croft_untold_alerts(interval, bigint) to croft_request;
