-- A tenant that has a large part of a table had it read from its beginning for each batch that was erased, through all that earlier batches had
-- left there, until a batch took longer than a statement may, and none got any further. In the order of the key, a batch reads what it deletes, and what is
-- deleted already is left out of the index by whoever comes across it first.

-- Deletes so many of the tenant's rows at most, and tells how many. Usage and audit stay: the books must balance.
create or replace function croft_erase_tenant(rows_max bigint) returns bigint
    language plpgsql volatile security definer set search_path = public, pg_temp
    set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
    erased bigint;
    room bigint := rows_max;
begin
    perform croft_check_removal();
    delete from budget_alerts where ctid = any (array(
        select a.ctid from budget_alerts a where a.tenant_id = croft_tenant() limit room
    ));
    get diagnostics erased = row_count;
    room := room - erased;
    delete from budgets where ctid = any (array(
        select b.ctid from budgets b where b.tenant_id = croft_tenant() limit room
    ));
    get diagnostics erased = row_count;
    room := room - erased;
    delete from events where ctid = any (array(
        select e.ctid from events e where e.tenant_id = croft_tenant() order by e.session_id, e.seq limit room
    ));
    get diagnostics erased = row_count;
    room := room - erased;
    delete from idempotency_keys where ctid = any (array(
        select k.ctid from idempotency_keys k where k.tenant_id = croft_tenant() limit room
    ));
    get diagnostics erased = row_count;
    room := room - erased;
    delete from usage_counters where ctid = any (array(
        select c.ctid from usage_counters c where c.tenant_id = croft_tenant() and c.scope = 'session' limit room
    ));
    get diagnostics erased = row_count;
    room := room - erased;
    -- With their checkpoints and leases.
    delete from sessions where ctid = any (array(
        select s.ctid from sessions s where s.tenant_id = croft_tenant() limit room
    ));
    get diagnostics erased = row_count;
    return rows_max - room + erased;
end
$$;

-- How many rows that has to delete still, counted so far. The owner counts, who sees sessions that are being erased too.
create or replace function croft_count_tenant_rows(rows_max bigint) returns bigint
    language sql stable security definer set search_path = public, pg_temp
    set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
        select count(*) from (
            select from budget_alerts a where a.tenant_id = croft_tenant()
            union all select from budgets b where b.tenant_id = croft_tenant()
            union all select from events e where e.tenant_id = croft_tenant()
            union all select from idempotency_keys k where k.tenant_id = croft_tenant()
            union all select from usage_counters c where c.tenant_id = croft_tenant() and c.scope = 'session'
            union all select from sessions s where s.tenant_id = croft_tenant()
            limit rows_max
        ) as counted
    $$;
