-- A batch of audit records whose commit was not heard of, or whose front was killed before it could note that it is stored, is given
-- again: it must not be stored again. Each front numbers what it is given in a journal of its own, and up to which number a
-- journal is stored is written with its records.
create table audit_journals (
    journal uuid primary key,
    stored bigint not null,
    update_time timestamptz not null default now()
) with (fillfactor = 50);

-- They are no tenant's: only the function below, which runs as the owner, reads and writes them.
alter table audit_journals enable row level security;
alter table audit_journals force row level security;
create policy owner_notes on audit_journals to current_user using (true) with check (true);

-- Records number `first` and following of a journal, but for those that are stored already. The batches of a journal come in its
-- order. A journal that nobody wrote for ninety days is forgotten: one begins whenever a front starts.
create function croft_append_audit_once(
    journal_id uuid, first bigint, tenants uuid[], actors text[], actions text[], resources text[], outcomes text[]
) returns void
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
declare
    known bigint;
    last bigint := first + cardinality(tenants) - 1;
    -- Where what is new begins in the arrays.
    place int;
begin
    select stored into known from audit_journals where journal = journal_id for update;
    if not found then
        insert into audit_journals (journal, stored) values (journal_id, 0) on conflict do nothing;
        select stored into strict known from audit_journals where journal = journal_id for update;
        delete from audit_journals where update_time < now() - interval '90 days';
    end if;
    if known >= last then
        return;
    end if;
    place := greatest(known - first + 1, 0) + 1;
    perform croft_append_audit(tenants[place:], actors[place:], actions[place:], resources[place:], outcomes[place:]);
    update audit_journals set stored = last, update_time = now() where journal = journal_id;
end
$$;

-- Fronts of the release before this one go on with `croft_append_audit` until they are replaced.
revoke execute on function croft_append_audit_once(uuid, bigint, uuid[], text[], text[], text[], text[]) from public;
grant execute on function croft_append_audit_once(uuid, bigint, uuid[], text[], text[], text[], text[]) to croft_writer;

-- The hash of each row of a window, which follows that of the row before it, and the first one's that of `start`.
create function croft_chain(hash bytea, start bytea, payload bytea) returns bytea
    language sql immutable
    return sha256(coalesce(hash, start) || payload);
create aggregate croft_chained(bytea, bytea) (sfunc = croft_chain, stype = bytea);

-- As before, and in half the time: one statement for a batch rather than one for a record, and what `croft_framed` says without calling
-- it, which took a third of the rest.
create or replace function croft_append_audit(tenants uuid[], actors text[], actions text[], resources text[], outcomes text[])
    returns void
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
declare
    made timestamptz := clock_timestamp();
begin
    -- By tenant, so that two batches take the locks of chains in the same order.
    insert into audit_heads (tenant_id, number, hash)
        select distinct e.tenant_id, 0, decode(repeat('00', 32), 'hex') from unnest(tenants) as e (tenant_id)
        where not exists (select from audit_heads h where h.tenant_id = e.tenant_id)
        order by e.tenant_id
        on conflict do nothing;
    perform from audit_heads h where h.tenant_id = any (tenants) order by h.tenant_id for update;
    with given as (
        select e.*, h.hash as start, h.number + row_number() over (partition by e.tenant_id order by e.place) as number
        from unnest(tenants, actors, actions, resources, outcomes)
            with ordinality as e (tenant_id, actor, action, resource, outcome, place)
        join audit_heads h on h.tenant_id = e.tenant_id
    ), chained as materialized (
        select g.*, croft_chained(
            g.start,
            uuid_send(g.tenant_id)
            || int8send(g.number)
            || int8send((extract(epoch from made) * 1000000)::bigint)
            || int4send(octet_length(convert_to(g.actor, 'UTF8'))) || convert_to(g.actor, 'UTF8')
            || int4send(octet_length(convert_to(g.action, 'UTF8'))) || convert_to(g.action, 'UTF8')
            || int4send(octet_length(convert_to(g.resource, 'UTF8'))) || convert_to(g.resource, 'UTF8')
            || int4send(octet_length(convert_to(g.outcome, 'UTF8'))) || convert_to(g.outcome, 'UTF8')
        ) over (partition by g.tenant_id order by g.number rows unbounded preceding) as hash
        from given g
    ), added as (
        insert into audit_log (tenant_id, number, create_time, actor, action, resource, outcome, hash)
        select c.tenant_id, c.number, made, c.actor, c.action, c.resource, c.outcome, c.hash from chained c
    ), newest as (
        select distinct on (c.tenant_id) c.tenant_id, c.number, c.hash from chained c order by c.tenant_id, c.number desc
    )
    update audit_heads h set number = n.number, hash = n.hash from newest n where h.tenant_id = n.tenant_id;
end
$$;
