-- What grew with the number of rows, and should not: looking whether a tenant is at its limit of sessions, and chaining a batch
-- of audit records.

-- Open sessions of each tenant, counted as they come and go; their sum is what counts. Each connection counts in a row of its
-- own, more or less: in a single one, all that open sessions of a tenant would wait for each other's commits.
create table open_sessions (
    tenant_id uuid not null,
    slot int not null,
    -- Below zero where sessions that were counted in another row have ended.
    sessions bigint not null,
    primary key (tenant_id, slot)
) with (fillfactor = 50);

insert into open_sessions (tenant_id, slot, sessions)
    select tenant_id, 0, count(*) from sessions where state <> 'terminated' group by tenant_id;

alter table open_sessions enable row level security;
alter table open_sessions force row level security;

create policy one_tenant on open_sessions for select to croft_request using (tenant_id = croft_tenant());
-- For the triggers, which run as the owner.
create policy owner_counts on open_sessions to current_user using (true) with check (true);

grant select on open_sessions to croft_request;

create function sessions_opened() returns trigger
    language plpgsql security definer set search_path = public, pg_temp as $$
begin
    insert into open_sessions as o (tenant_id, slot, sessions)
        select m.tenant_id, pg_backend_pid() % 16, count(*) from made m where m.state <> 'terminated'
        group by m.tenant_id order by m.tenant_id
        on conflict (tenant_id, slot) do update set sessions = o.sessions + excluded.sessions;
    return null;
end
$$;

create function sessions_ended() returns trigger
    language plpgsql security definer set search_path = public, pg_temp as $$
begin
    insert into open_sessions as o (tenant_id, slot, sessions)
        values (new.tenant_id, pg_backend_pid() % 16, -1)
        on conflict (tenant_id, slot) do update set sessions = o.sessions - 1;
    return null;
end
$$;

create trigger opened after insert on sessions referencing new table as made
    for each statement execute function sessions_opened();
create trigger ended after update of state on sessions for each row
    when (old.state <> 'terminated' and new.state = 'terminated') execute function sessions_ended();

-- As the trigger `chain` does for one record at a time: with the end of the chain read and written once a tenant, and so without
-- a heap of its old versions to look through for each record. The records of a tenant are in the order of the arrays.
create function croft_append_audit(tenants uuid[], actors text[], actions text[], resources text[], outcomes text[])
    returns void
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
declare
    entry record;
    head audit_heads;
    made timestamptz;
begin
    for entry in
        select e.tenant_id, e.actor, e.action, e.resource, e.outcome
        from unnest(tenants, actors, actions, resources, outcomes)
            with ordinality as e (tenant_id, actor, action, resource, outcome, place)
        -- By tenant, so that two batches take the locks of chains in the same order.
        order by e.tenant_id, e.place
    loop
        if head.tenant_id is distinct from entry.tenant_id then
            update audit_heads set number = head.number, hash = head.hash where tenant_id = head.tenant_id;
            insert into audit_heads (tenant_id, number, hash)
                values (entry.tenant_id, 0, decode(repeat('00', 32), 'hex'))
                on conflict do nothing;
            select * into strict head from audit_heads where tenant_id = entry.tenant_id for update;
        end if;
        made := clock_timestamp();
        head.number := head.number + 1;
        head.hash := sha256(
            head.hash
            || uuid_send(entry.tenant_id)
            || int8send(head.number)
            || int8send((extract(epoch from made) * 1000000)::bigint)
            || croft_framed(entry.actor)
            || croft_framed(entry.action)
            || croft_framed(entry.resource)
            || croft_framed(entry.outcome)
        );
        insert into audit_log (tenant_id, number, create_time, actor, action, resource, outcome, hash)
            values (
                entry.tenant_id, head.number, made, entry.actor, entry.action, entry.resource, entry.outcome, head.hash
            );
    end loop;
    update audit_heads set number = head.number, hash = head.hash where tenant_id = head.tenant_id;
end
$$;

-- Numbers are for the owner's functions to give: who else inserts has no right to the column, and is chained by the trigger.
create policy owner_appends on audit_log for insert to current_user with check (true);
drop trigger chain on audit_log;
create trigger chain before insert on audit_log for each row
    when (new.number is null) execute function audit_log_chain();

revoke execute on function croft_append_audit(uuid[], text[], text[], text[], text[]) from public;
grant execute on function croft_append_audit(uuid[], text[], text[], text[], text[]) to croft_writer;
