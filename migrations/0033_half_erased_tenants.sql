-- A session whose erasure had begun when its tenant was archived stayed half erased for ever: fronts erase sessions of the tenants that they
-- are told of, and of that one they were told no more.
--
-- Tenants of which a session is being erased. One look into `sessions_ended` a tenant.
create function croft_erasing_tenants(rows_max bigint) returns setof uuid
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
begin
    perform set_config('croft.across', 'ids', true);
    return query
        select t.tenant_id from tenants t
        where exists (select from sessions s where s.tenant_id = t.tenant_id and s.terminate_time = '-infinity')
        limit rows_max;
    perform set_config('croft.across', '', true);
end
$$;

revoke execute on function croft_erasing_tenants(bigint) from public;
grant execute on function croft_erasing_tenants(bigint) to croft_request;
