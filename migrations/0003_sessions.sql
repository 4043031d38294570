-- Sessions with all that changes together with them, in one transaction: events, checkpoint, lease, idempotency keys.
create table sessions (
    tenant_id uuid not null references tenants,
    session_id uuid not null,
    -- Words of croft.v1.SessionState.
    state text not null check (state in ('creating', 'ready', 'running', 'idle', 'terminated')),
    -- croft.v1.AgentSpec.
    agent bytea not null,
    agent_name text collate "C" not null,
    config_hash text not null,
    labels jsonb not null default '{}',
    create_time timestamptz not null,
    update_time timestamptz not null,
    last_seq bigint not null,
    input_seq bigint not null default 0,
    newest_input_seq bigint not null default 0,
    turn_id text not null default '',
    worker text not null default '',
    terminate_reason text not null default '',
    -- Words of croft.v1.StopReason.
    last_stop_reason text not null default 'unspecified',
    attempts bigint not null default 0,
    unpriced_attempts bigint not null default 0,
    input_uncached_tokens bigint not null default 0,
    cache_read_tokens bigint not null default 0,
    cache_write_5m_tokens bigint not null default 0,
    cache_write_1h_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    reasoning_tokens bigint not null default 0,
    cost_nano_usd bigint not null default 0,
    -- The epoch under which a turn may append; null while none may. It repeats the lease's, so that an append checks it on
    -- the very row that it locks: a read of another table could be older than the lock.
    lease_epoch bigint,
    primary key (tenant_id, session_id)
) with (fillfactor = 85);

-- Counts open sessions against the tenant's limit.
create index sessions_open on sessions (tenant_id) where state <> 'terminated';

-- No foreign key to sessions: the statement that inserts selects from the session's row, which it has just numbered, and a
-- check for each event would be the dearest part of the busiest insert.
create table events (
    tenant_id uuid not null,
    session_id uuid not null,
    seq bigint not null check (seq > 0),
    -- The name of the field in croft.v1.SessionEvent, for people.
    kind text not null,
    turn_id uuid,
    create_time timestamptz not null,
    -- croft.v1.SessionEvent without its session and number, which are columns.
    payload bytea not null,
    primary key (tenant_id, session_id, seq)
);

create table checkpoints (
    tenant_id uuid not null,
    session_id uuid not null,
    -- The last event that it stands for.
    seq bigint not null,
    -- croft.v1.SessionCheckpoint.
    checkpoint bytea not null,
    update_time timestamptz not null default now(),
    primary key (tenant_id, session_id),
    foreign key (tenant_id, session_id) references sessions on delete cascade
);

create table leases (
    tenant_id uuid not null,
    session_id uuid not null,
    -- Only grows.
    epoch bigint not null,
    -- The front that drives the turn; null once it was released.
    holder text,
    expire_time timestamptz,
    primary key (tenant_id, session_id),
    foreign key (tenant_id, session_id) references sessions on delete cascade,
    check ((holder is null) = (expire_time is null))
);

create index leases_held on leases (expire_time) where holder is not null;

create table idempotency_keys (
    tenant_id uuid not null,
    -- `sessions` for CreateSession, `sessions/<id>` for SendMessage.
    scope text not null,
    key text not null,
    body_hash bytea not null check (octet_length(body_hash) = 32),
    session_id uuid not null,
    first_seq bigint not null,
    use_time timestamptz not null default now(),
    primary key (tenant_id, scope, key)
);

-- Each new key drops old ones of its tenant by this.
create index idempotency_keys_age on idempotency_keys (tenant_id, use_time);

alter table sessions enable row level security;
alter table sessions force row level security;
alter table events enable row level security;
alter table events force row level security;
alter table checkpoints enable row level security;
alter table checkpoints force row level security;
alter table leases enable row level security;
alter table leases force row level security;
alter table idempotency_keys enable row level security;
alter table idempotency_keys force row level security;

create policy one_tenant on sessions to croft_request
    using (tenant_id = croft_tenant()) with check (tenant_id = croft_tenant());
create policy one_tenant on events to croft_request
    using (tenant_id = croft_tenant()) with check (tenant_id = croft_tenant());
create policy one_tenant on checkpoints to croft_request
    using (tenant_id = croft_tenant()) with check (tenant_id = croft_tenant());
create policy one_tenant on leases to croft_request
    using (tenant_id = croft_tenant()) with check (tenant_id = croft_tenant());
create policy one_tenant on idempotency_keys to croft_request
    using (tenant_id = croft_tenant()) with check (tenant_id = croft_tenant());
create policy any_tenant on events for insert to croft_writer with check (true);

grant select, insert, update on sessions, checkpoints, leases to croft_request;
-- Events are never changed.
grant select, insert on events to croft_request;
grant select, insert, update, delete on idempotency_keys to croft_request;
grant insert on events to croft_writer;

create policy owner_looks on leases for select to current_user using (true);

-- Whoever takes over abandoned turns does so for all tenants, and needs to know no more of them than ids.
create function croft_abandoned_leases(rows_max bigint) returns table (tenant_id uuid, session_id uuid)
    language sql volatile security definer set search_path = public, pg_temp
begin atomic
    select l.tenant_id, l.session_id
    from leases l
    where l.holder is not null and l.expire_time <= clock_timestamp()
    order by l.expire_time, l.tenant_id, l.session_id
    limit rows_max;
end;

revoke execute on function croft_abandoned_leases(bigint) from public;
grant execute on function croft_abandoned_leases(bigint) to croft_request;
