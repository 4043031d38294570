-- Who did what. The log only grows: grants keep the front's roles from changing it, a trigger everyone else, and where
-- somebody got past both, a chain of hashes for each tenant tells.
create table audit_log (
    tenant_id uuid not null,
    -- Contiguous in the tenant, from 1.
    number bigint not null,
    create_time timestamptz not null,
    actor text not null,
    action text not null,
    resource text not null,
    outcome text not null,
    hash bytea not null,
    primary key (tenant_id, number)
);

-- The end of each tenant's chain; its lock puts the records of a tenant in order.
create table audit_heads (
    tenant_id uuid primary key,
    number bigint not null,
    hash bytea not null
);

alter table audit_log enable row level security;
alter table audit_log force row level security;
alter table audit_heads enable row level security;
alter table audit_heads force row level security;

create policy one_tenant on audit_log for select to croft_request using (tenant_id = croft_tenant());
create policy one_tenant on audit_heads for select to croft_request using (tenant_id = croft_tenant());
create policy any_tenant on audit_log for insert to croft_writer with check (true);
-- For the trigger, which runs as the owner.
create policy owner_chains on audit_heads to current_user using (true) with check (true);

grant select on audit_log, audit_heads to croft_request;
grant insert (tenant_id, actor, action, resource, outcome) on audit_log to croft_writer;

-- A text behind its length, so that no two records have the same bytes.
create function croft_framed(value text) returns bytea
    language sql immutable
    return int4send(octet_length(convert_to(value, 'UTF8'))) || convert_to(value, 'UTF8');

-- Numbers and chains a new record, so that who writes can neither choose a number nor forge a hash. `store::chain` in the
-- front computes the same hash.
create function audit_log_chain() returns trigger
    language plpgsql security definer set search_path = public, pg_temp as $$
declare
    head audit_heads;
begin
    insert into audit_heads (tenant_id, number, hash)
        values (new.tenant_id, 0, decode(repeat('00', 32), 'hex'))
        on conflict do nothing;
    select * into strict head from audit_heads where tenant_id = new.tenant_id for update;
    new.number := head.number + 1;
    new.create_time := clock_timestamp();
    new.hash := sha256(
        head.hash
        || uuid_send(new.tenant_id)
        || int8send(new.number)
        || int8send((extract(epoch from new.create_time) * 1000000)::bigint)
        || croft_framed(new.actor)
        || croft_framed(new.action)
        || croft_framed(new.resource)
        || croft_framed(new.outcome)
    );
    update audit_heads set number = new.number, hash = new.hash where tenant_id = new.tenant_id;
    return new;
end
$$;

create trigger chain before insert on audit_log for each row execute function audit_log_chain();

create function audit_log_refuse() returns trigger
    language plpgsql as $$
begin
    raise exception 'the audit log only grows' using errcode = 'insufficient_privilege';
end
$$;

create trigger only_grows before update or delete or truncate on audit_log
    for each statement execute function audit_log_refuse();
