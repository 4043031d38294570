-- What the holder of an API key may do. Keys from before had no bound, and keep none.

alter table api_keys
    add column role text not null default 'admin' check (role in ('viewer', 'user', 'auditor', 'admin'));

-- A front of the release before asks for the other columns by name, and goes on as it was.
drop function croft_api_key(text);
create function croft_api_key(wanted text)
    returns table (prefix text, tenant_id uuid, tenant_name text, secret_hash bytea, role text)
    language sql stable security definer set search_path = public, pg_temp
begin atomic
    select k.prefix, k.tenant_id, t.name, k.secret_hash, k.role
    from api_keys k
    join tenants t on t.tenant_id = k.tenant_id
    where k.prefix = wanted and k.revoke_time is null and (k.expire_time is null or k.expire_time > now());
end;

revoke execute on function croft_api_key(text) from public;
grant execute on function croft_api_key(text) to croft_request;
