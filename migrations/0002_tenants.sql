-- What the operator says of tenants is mirrored here, so that rows of a tenant have something to refer to. API keys are
-- beside it: they are how a tenant is found before it is known.
create table tenants (
    tenant_id uuid primary key,
    -- Not unique: a tenant that was deleted and made anew has another id.
    name text not null,
    create_time timestamptz not null default now(),
    update_time timestamptz not null default now()
);

create table api_keys (
    prefix text primary key check (prefix ~ '^[0-9a-f]{8}$'),
    tenant_id uuid not null references tenants,
    -- SHA-256 of the secret, which is kept nowhere.
    secret_hash bytea not null check (octet_length(secret_hash) = 32),
    create_time timestamptz not null default now(),
    expire_time timestamptz,
    revoke_time timestamptz
);

create index api_keys_tenant on api_keys (tenant_id);

alter table tenants enable row level security;
alter table tenants force row level security;
alter table api_keys enable row level security;
alter table api_keys force row level security;

create policy one_tenant on tenants to croft_request
    using (tenant_id = croft_tenant()) with check (tenant_id = croft_tenant());
create policy one_tenant on api_keys to croft_request
    using (tenant_id = croft_tenant()) with check (tenant_id = croft_tenant());

grant select, insert, update on tenants, api_keys to croft_request;

-- Row security is forced on the owner too; these let it look for the functions below.
create policy owner_looks on tenants for select to current_user using (true);
create policy owner_looks on api_keys for select to current_user using (true);

-- A credential comes before its tenant, so this looks across tenants. Who calls it has the key's public prefix.
create function croft_api_key(wanted text)
    returns table (prefix text, tenant_id uuid, tenant_name text, secret_hash bytea)
    language sql stable security definer set search_path = public, pg_temp
begin atomic
    select k.prefix, k.tenant_id, t.name, k.secret_hash
    from api_keys k
    join tenants t on t.tenant_id = k.tenant_id
    where k.prefix = wanted and k.revoke_time is null and (k.expire_time is null or k.expire_time > now());
end;

-- The tenant that has this name, or had it last. For the admin who names one on the command line.
create function croft_tenant_named(wanted text) returns uuid
    language sql stable security definer set search_path = public, pg_temp
begin atomic
    select t.tenant_id from tenants t where t.name = wanted order by t.update_time desc, t.tenant_id desc limit 1;
end;

revoke execute on function croft_api_key(text), croft_tenant_named(text) from public;
grant execute on function croft_api_key(text), croft_tenant_named(text) to croft_request;
