-- Alerts that nobody has tried to post within a day are no news: without a webhook they wait for one, and the first that is set would be
-- told of all that there ever were.
create or replace function croft_claim_hooks(rows_max bigint, lease interval)
    returns table (
        tenant_id uuid, tenant_name text, scope text, subject text, period text, unit text, limit_amount bigint,
        percent int, spent_amount bigint, session_id uuid, create_time timestamptz, hook_tries int
    )
    language sql volatile security definer set search_path = public, pg_temp
    as $$
        update budget_alerts set hook_time = null where hook_time <= now() - interval '1 day' and hook_tries = 0;
        update budget_alerts a set hook_tries = a.hook_tries + 1, hook_time = now() + lease
        from tenants t
        where t.tenant_id = a.tenant_id and a.ctid = any (array(
            select d.ctid from budget_alerts d where d.hook_time <= now() order by d.hook_time limit rows_max
            for update skip locked
        ))
        returning a.tenant_id, t.name, a.scope, a.subject, a.period, a.unit, a.limit_amount, a.percent, a.spent_amount,
            a.session_id, a.create_time, a.hook_tries
    $$;
