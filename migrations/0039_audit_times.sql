-- A record told when it was stored: with the database away for hours, each of them the moment at which it was back. It tells when the act
-- was, too, by the front's clock. The hash covers that where it is there, so that records of before fit as they did.
alter table audit_log add column act_time timestamptz;

-- As before, with the times of the acts in microseconds since 1970, each of which may be missing. When records are stored is looked at once
-- the ends of all their chains are held: who waited for one said when the wait had begun, and a later record could seem to be the older one.
-- Beyond 2^53 the column would hold another number than the hash covers, and the chain would never fit again.
create function croft_append_audit(
    tenants uuid[], actors text[], actions text[], resources text[], outcomes text[], act_micros bigint[]
) returns void
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
declare
    made timestamptz;
begin
    if exists (select from unnest(act_micros) as told (micros) where told.micros not between 0 and 4102444800000000) then
        raise exception 'an act has a time of this century' using errcode = 'invalid_parameter_value';
    end if;
    -- By tenant, so that two batches take the locks of chains in the same order.
    insert into audit_heads (tenant_id, number, hash)
        select distinct e.tenant_id, 0, decode(repeat('00', 32), 'hex') from unnest(tenants) as e (tenant_id)
        where not exists (select from audit_heads h where h.tenant_id = e.tenant_id)
        order by e.tenant_id
        on conflict do nothing;
    perform from audit_heads h where h.tenant_id = any (tenants) order by h.tenant_id for update;
    made := clock_timestamp();
    with given as (
        select e.*, h.hash as start, h.number + row_number() over (partition by e.tenant_id order by e.place) as number
        from unnest(tenants, actors, actions, resources, outcomes, act_micros)
            with ordinality as e (tenant_id, actor, action, resource, outcome, act_micros, place)
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
            || coalesce(int8send(g.act_micros), ''::bytea)
        ) over (partition by g.tenant_id order by g.number rows unbounded preceding) as hash
        from given g
    ), added as (
        insert into audit_log (tenant_id, number, create_time, actor, action, resource, outcome, hash, act_time)
        select c.tenant_id, c.number, made, c.actor, c.action, c.resource, c.outcome, c.hash,
            timestamptz 'epoch' + c.act_micros * interval '1 microsecond'
        from chained c
    ), newest as (
        select distinct on (c.tenant_id) c.tenant_id, c.number, c.hash from chained c order by c.tenant_id, c.number desc
    )
    update audit_heads h set number = n.number, hash = n.hash from newest n where h.tenant_id = n.tenant_id;
end
$$;

revoke execute on function croft_append_audit(uuid[], text[], text[], text[], text[], bigint[]) from public;

-- Fronts of releases before, and whoever has no time to tell, go on with it.
create or replace function croft_append_audit(tenants uuid[], actors text[], actions text[], resources text[], outcomes text[])
    returns void
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
begin
    perform croft_append_audit(tenants, actors, actions, resources, outcomes, null::bigint[]);
end
$$;

-- As before, with the times of the acts; and it tells up to which record the journal was stored, which the front that keeps the journal
-- knows better: a journal that is stored further than it was ever given has had somebody else say so, to have the front's records taken for
-- stored. A batch without records moved that end, too, and left nothing behind. A batch may begin behind a gap: what was refused for good, or can't
-- be read any more, is never given.
create function croft_append_audit_once(
    journal_id uuid, first bigint, tenants uuid[], actors text[], actions text[], resources text[], outcomes text[],
    act_micros bigint[]
) returns bigint
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
declare
    known bigint;
    last bigint := first + cardinality(tenants) - 1;
    -- Where what is new begins in the arrays.
    place int;
begin
    if first is null or first < 1 or coalesce(cardinality(tenants), 0) = 0 then
        raise exception 'a batch has records, which are numbered from 1' using errcode = 'invalid_parameter_value';
    end if;
    select stored into known from audit_journals where journal = journal_id for update;
    if not found then
        insert into audit_journals (journal, stored) values (journal_id, 0) on conflict do nothing;
        select stored into strict known from audit_journals where journal = journal_id for update;
        delete from audit_journals where update_time < now() - interval '90 days';
    end if;
    if known < last then
        place := greatest(known - first + 1, 0) + 1;
        perform croft_append_audit(
            tenants[place:], actors[place:], actions[place:], resources[place:], outcomes[place:], act_micros[place:]
        );
        update audit_journals set stored = last, update_time = now() where journal = journal_id;
    end if;
    return known;
end
$$;

revoke execute on function croft_append_audit_once(uuid, bigint, uuid[], text[], text[], text[], text[], bigint[]) from public;
grant execute on function croft_append_audit_once(uuid, bigint, uuid[], text[], text[], text[], text[], bigint[]) to croft_writer;

create or replace function croft_append_audit_once(
    journal_id uuid, first bigint, tenants uuid[], actors text[], actions text[], resources text[], outcomes text[]
) returns void
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
begin
    perform croft_append_audit_once(journal_id, first, tenants, actors, actions, resources, outcomes, null::bigint[]);
end
$$;
