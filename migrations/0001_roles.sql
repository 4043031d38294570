-- Two roles, since two rights must not meet in one: the front answers one tenant at a time as croft_request, and writes
-- batches for many tenants as croft_writer, which reads nothing. Its login role is let into both and is nothing by itself.
--
-- Roles belong to all databases of the server: another one may have made them, or be making them now.
do $$
begin
    create role croft_request nologin;
exception
    when duplicate_object or unique_violation then null;
end
$$;

do $$
begin
    create role croft_writer nologin;
exception
    when duplicate_object or unique_violation then null;
end
$$;

-- The tenant of the transaction at hand; null, which equals nothing, when none was set.
create function croft_tenant() returns uuid
    language sql stable parallel safe
    return nullif(current_setting('croft.tenant', true), '')::uuid;
