-- Budgets and alerts of sessions that were erased before migration 0028, which took none along. In a transaction of its own: it locks
-- the rows that go and nothing else, however long it takes.
--
-- A session is looked up by its key. Row security is forced on the owner, so that it goes tenant by tenant.
do $$
declare
    tenant uuid;
    session_form constant text := '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$';
begin
    for tenant in select t.tenant_id from tenants t loop
        perform set_config('croft.tenant', tenant::text, true);
        delete from budgets b where b.tenant_id = tenant and b.scope = 'session' and not exists (
            select from sessions s
            where s.tenant_id = tenant and s.session_id = case when b.subject ~ session_form then b.subject::uuid end
        );
        delete from budget_alerts a where a.tenant_id = tenant and a.scope = 'session' and not exists (
            select from sessions s
            where s.tenant_id = tenant and s.session_id = case when a.subject ~ session_form then a.subject::uuid end
        );
    end loop;
    perform set_config('croft.tenant', '', true);
end
$$;
