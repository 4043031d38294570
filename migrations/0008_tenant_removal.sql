-- A tenant that is being removed opens no more sessions, whatever a front that is behind believes; and only such a tenant's
-- rows can be erased, in batches, by functions that know no other tenant than the transaction's own.
alter table tenants add column remove_time timestamptz;

create policy owner_erases on sessions to current_user using (tenant_id = croft_tenant());
create policy owner_erases on events to current_user using (tenant_id = croft_tenant());
create policy owner_erases on idempotency_keys to current_user using (tenant_id = croft_tenant());
create policy owner_erases on api_keys to current_user using (tenant_id = croft_tenant());

create function croft_check_removal() returns void
    language plpgsql stable set search_path = public, pg_temp as $$
begin
    if not exists (
        select from tenants t where t.tenant_id = croft_tenant() and t.remove_time is not null
    ) then
        raise exception 'the tenant is not being removed' using errcode = 'insufficient_privilege';
    end if;
    if exists (select from sessions s where s.tenant_id = croft_tenant() and s.state <> 'terminated') then
        raise exception 'the tenant has open sessions' using errcode = 'insufficient_privilege';
    end if;
end
$$;

-- Deletes the tenant's credentials, and tells how many.
create function croft_erase_credentials() returns bigint
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
declare
    erased bigint;
begin
    perform croft_check_removal();
    delete from api_keys k where k.tenant_id = croft_tenant();
    get diagnostics erased = row_count;
    return erased;
end
$$;

-- Deletes so many of the tenant's rows at most, and tells how many: events, then idempotency keys, then sessions, with which
-- go their checkpoints and leases. Usage and audit stay: the books must balance.
create function croft_erase_sessions(rows_max bigint) returns bigint
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
declare
    erased bigint;
    room bigint := rows_max;
begin
    perform croft_check_removal();
    delete from events where ctid = any (array(
        select e.ctid from events e where e.tenant_id = croft_tenant() limit room
    ));
    get diagnostics erased = row_count;
    room := room - erased;
    delete from idempotency_keys where ctid = any (array(
        select k.ctid from idempotency_keys k where k.tenant_id = croft_tenant() limit room
    ));
    get diagnostics erased = row_count;
    room := room - erased;
    delete from sessions where ctid = any (array(
        select s.ctid from sessions s where s.tenant_id = croft_tenant() limit room
    ));
    get diagnostics erased = row_count;
    return rows_max - room + erased;
end
$$;

revoke execute on function croft_check_removal(), croft_erase_credentials(), croft_erase_sessions(bigint) from public;
grant execute on function croft_erase_credentials(), croft_erase_sessions(bigint) to croft_request;
